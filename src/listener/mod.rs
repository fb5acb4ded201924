//! The listening sockets: one for each worker and address, and how connections are accepted from them.
//!
//! Knows addresses, how the kernel distributes connections, and what becomes of an address when this process stops;
//! nothing of what a connection says.

mod bind;
mod detach;
mod holder;
pub mod inherited;

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener as StdListener},
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

pub use self::{
    bind::{BACKLOG, BindError, bind, probe},
    detach::{Detached, Detacher},
};
use crate::runtime::{budget::Budget, clock, host};

/// The first and the longest pause after an accept(2) that failed for lack of resources.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// How long a handshake that has begun may take before a shared socket closes: two round trips around the world. Less
/// than the second after which a client repeats an unanswered SYN, so that the repeated one reaches another socket.
const HANDSHAKE: Duration = Duration::from_millis(500);
/// How often the queue is checked meanwhile.
const QUEUE_TICK: Duration = Duration::from_millis(10);

/// A socket that one worker accepts from.
#[derive(Debug)]
pub struct Listener {
    /// It listens.
    pub socket: StdListener,
    /// Where.
    pub address: SocketAddr,
    /// What becomes of the address when this process stops.
    pub after: After,
}

/// What becomes of an address when this process stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// It closes: later clients are refused.
    Close,
    /// Other processes may listen there, and the kernel sends them later clients.
    Share,
    /// The socket stays open in the service manager; later clients wait for the next process.
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
    /// A connection, and the address of who has opened it.
    Connection(TcpStream, IpAddr),
    /// Nothing: it was interrupted, or the client gave up while it was queued.
    Nothing,
    /// The process or the system lacks what a connection takes, such as open files. A try without this pause would
    /// fail at once again.
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
            Ok((stream, peer)) => {
                self.back_off = BACK_OFF.0;
                close_on_exec(&stream);
                Ok(Accepted::Connection(stream, peer.ip()))
            }
            Err(error) => self.judge(error).await,
        }
    }

    async fn judge(&mut self, error: io::Error) -> io::Result<Accepted> {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ECANCELED | Errno::ECONNABORTED | Errno::EINTR) => Ok(Accepted::Nothing),
            // This is no listening socket: nothing will ever be accepted here.
            Some(Errno::EBADF | Errno::EINVAL | Errno::ENOTSOCK) => Err(error),
            // A ring's socket is nonblocking only if it is shared, with a worker or a process that uses epoll: then
            // the worker has to poll.
            Some(Errno::EAGAIN) => {
                monoio::time::sleep(QUEUE_TICK).await;
                Ok(Accepted::Nothing)
            }
            _ => {
                let pause = self.back_off;
                self.back_off = (pause * 2).min(BACK_OFF.1);
                Ok(Accepted::Exhausted(error, pause))
            }
        }
    }

    /// Closes the socket, after giving the connections that the kernel has queued to `serve`, since a close would
    /// reset them.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn close(self, mut serve: impl FnMut(TcpStream, IpAddr)) -> io::Result<()> {
        match self.after {
            // The queue belongs to the next process.
            After::Leave => return Ok(()),
            After::Share if !kernel_migrates() => {
                self.queue.set_nonblocking(true)?;
                drop_new_handshakes(&self.queue)?;
                let end = clock::now().after(HANDSHAKE);
                while clock::now() < end {
                    serve_queued(&self.queue, &mut serve)?;
                    monoio::time::sleep(QUEUE_TICK).await;
                }
            }
            After::Share | After::Close => self.queue.set_nonblocking(true)?,
        }
        serve_queued(&self.queue, &mut serve)
    }
}

/// Serves the connections that are queued.
fn serve_queued(queue: &StdListener, serve: &mut impl FnMut(TcpStream, IpAddr)) -> io::Result<()> {
    while let Ok((stream, peer)) = queue.accept() {
        stream.set_nonblocking(monoio::utils::is_legacy())?;
        serve(TcpStream::from_std(stream)?, peer.ip());
    }
    Ok(())
}

/// Whether the kernel moves the connections that wait in the queue of a closed socket to others that share its
/// address (Linux 5.14). Read when it matters, since it can change at any time; a read of /proc does not block.
fn kernel_migrates() -> bool {
    host::sysctl("net.ipv4.tcp_migrate_req").is_some_and(|value| value != "0")
}

/// Drops the SYNs of new handshakes at this socket, while handshakes that have begun can complete.
///
/// The kernel sends this socket its share of new connections until it is closed, and a close drops the handshakes
/// that have begun: their clients believe that they are connected, and are reset. An unanswered SYN costs its client
/// a second, after which it is repeated and reaches another socket.
fn drop_new_handshakes(queue: &StdListener) -> io::Result<()> {
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
