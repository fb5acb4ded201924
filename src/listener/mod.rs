//! The listening sockets: one for each worker and address, and how connections are accepted from them.
//!
//! Knows addresses, how the kernel shares connections out, and who goes on listening when this process
//! stops; what a connection says is not its business.

mod bind;
mod holder;
pub mod inherited;

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
    os::fd::AsRawFd,
    pin::pin,
    time::Duration,
};

use monoio::{
    io::CancelHandle,
    net::{TcpListener, TcpStream},
};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, fcntl},
};
use socket2::{SockFilter, SockRef};

pub use self::bind::{BACKLOG, BindError, bind, probe};
use crate::runtime::{budget::Budget, clock, host};

/// The first and the longest pause after an accept(2) that failed for want of resources.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// How long a handshake that has begun is waited for before a shared address is given up: two round
/// trips to the far side of the world. Shorter than the second after which a client repeats a SYN that
/// nobody answered, so that the repeated one finds the others.
const HANDSHAKE: Duration = Duration::from_millis(500);
/// How often the queue is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(10);

/// A socket that one worker accepts from.
#[derive(Debug)]
pub struct Listener {
    /// It listens.
    pub socket: StdListener,
    /// Where.
    pub address: SocketAddr,
    /// What is to become of the address when this process stops.
    pub after: After,
}

/// What becomes of an address when this process stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// It is closed: who comes then is refused.
    Close,
    /// Other processes may listen there, to whom the kernel sends those who come then.
    Share,
    /// The socket stays open in the service manager; who comes then waits for the next process.
    Leave,
}

/// Accepts connections from one listener, on its worker.
pub struct Acceptor {
    listener: TcpListener,
    /// The same socket, for what it has queued when it closes.
    queue: StdListener,
    after: After,
    budget: Budget,
    back_off: Duration,
}

/// What waiting for a connection brought.
#[derive(Debug)]
pub enum Accepted {
    /// A connection.
    Connection(TcpStream),
    /// Nothing: it was interrupted, or the client gave up while it was queued.
    Nothing,
    /// The process or the system lacks what a connection takes, such as open files. The next try would fail
    /// at once, for ever: it is to be made after this pause.
    Exhausted(io::Error, Duration),
}

impl Acceptor {
    /// Opens the listener on this worker's runtime.
    ///
    /// # Errors
    /// When the runtime cannot take its socket.
    pub fn open(listener: Listener) -> io::Result<Self> {
        let Listener { socket, after, .. } = listener;
        // A ring waits on a blocking socket; the epoll driver does its own waiting.
        socket.set_nonblocking(monoio::utils::is_legacy())?;
        let queue = socket.try_clone()?;
        let listener = TcpListener::from_std(socket)?;
        Ok(Self { listener, queue, after, budget: Budget::default(), back_off: BACK_OFF.0 })
    }

    /// Waits for a connection, until `interrupt` is cancelled.
    ///
    /// # Errors
    /// When the socket fails for good.
    pub async fn accept(&mut self, interrupt: CancelHandle) -> io::Result<Accepted> {
        let accepted = {
            // Never dropped while it is pending: it may already hold a connection.
            let accepting = pin!(self.listener.cancelable_accept(interrupt));
            self.budget.run(accepting).await
        };
        match accepted {
            Ok((stream, _)) => {
                self.back_off = BACK_OFF.0;
                close_on_exec(&stream);
                Ok(Accepted::Connection(stream))
            }
            Err(error) => self.judge(error).await,
        }
    }

    async fn judge(&mut self, error: io::Error) -> io::Result<Accepted> {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ECANCELED | Errno::ECONNABORTED | Errno::EINTR) => Ok(Accepted::Nothing),
            // This is no listening socket, and will not be one: nothing is ever accepted here.
            Some(Errno::EBADF | Errno::EINVAL | Errno::ENOTSOCK) => Err(error),
            // Only a socket that others have too is set nonblocking under a ring, by a worker of
            // theirs or ours that waits on epoll: then nothing is left but to look again.
            Some(Errno::EAGAIN) => {
                monoio::time::sleep(LOOK).await;
                Ok(Accepted::Nothing)
            }
            _ => {
                let pause = self.back_off;
                self.back_off = (pause * 2).min(BACK_OFF.1);
                Ok(Accepted::Exhausted(error, pause))
            }
        }
    }

    /// Closes the socket, but for the connections that the kernel has already queued: these are given to
    /// `serve`, since a close would reset them.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn close(self, mut serve: impl FnMut(TcpStream)) -> io::Result<()> {
        match self.after {
            // The queue is the next process's.
            After::Leave => return Ok(()),
            After::Share if !kernel_migrates() => {
                self.queue.set_nonblocking(true)?;
                turn_newcomers_away(&self.queue)?;
                let end = clock::now().after(HANDSHAKE);
                while clock::now() < end {
                    empty(&self.queue, &mut serve)?;
                    monoio::time::sleep(LOOK).await;
                }
            }
            After::Share | After::Close => self.queue.set_nonblocking(true)?,
        }
        empty(&self.queue, &mut serve)
    }
}

/// Serves the connections that are queued.
fn empty(queue: &StdListener, serve: &mut impl FnMut(TcpStream)) -> io::Result<()> {
    while let Ok((stream, _)) = queue.accept() {
        stream.set_nonblocking(monoio::utils::is_legacy())?;
        serve(TcpStream::from_std(stream)?);
    }
    Ok(())
}

/// Whether the kernel moves the connections that wait in the queue of a closed socket to others that
/// share its address (Linux 5.14). Asked when it matters, since it can be set at any time; /proc does
/// not make a worker wait.
fn kernel_migrates() -> bool {
    host::sysctl("net.ipv4.tcp_migrate_req").is_some_and(|value| value != "0")
}

/// Lets no further handshake begin at this socket, while those that have begun can end.
///
/// The kernel goes on sending this socket its share of newcomers until it is closed, and a close drops
/// the handshakes that have begun: their clients believe to be connected and are reset. A SYN that is
/// not answered costs its client a second, after which it is sent again, to the others by then.
fn turn_newcomers_away(queue: &StdListener) -> io::Result<()> {
    // Where the filter reads: the TCP header is at the start, its flags in the byte 13.
    const LOAD_BYTE: u16 = 0x30;
    const AND: u16 = 0x54;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    const SYN_AND_ACK: u32 = 0x12;
    SockRef::from(queue).attach_filter(&[
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS),
        SockFilter::new(AND, 0, 0, SYN_AND_ACK),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ])
}

/// monoio accepts without `SOCK_CLOEXEC` on a ring.
fn close_on_exec(stream: &TcpStream) {
    // Fails only on a descriptor that is not open.
    let _ = fcntl(stream.as_raw_fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
}
