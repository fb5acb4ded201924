//! The listening sockets: one for each worker and address, and the accept loop.
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
    rc::Rc,
    time::Duration,
};

use monoio::net::{TcpListener, TcpStream};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, fcntl},
};
use socket2::{SockFilter, SockRef};

pub use self::bind::{BACKLOG, BindError, bind, probe};
use crate::{
    clock,
    connection::{Clients, Connection, Service},
    host,
    liveness::{Liveness, Shown},
    pace::Pace,
    task,
};

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

/// Accepts clients until the worker drains, then those that the kernel had already queued. What it waits
/// on ends when `liveness` interrupts it: it then shows that it lives, or sees that the worker drains.
///
/// # Errors
/// When the socket fails for good.
pub async fn accept<V: Service>(
    listener: Listener,
    clients: Rc<Clients>,
    service: Rc<V>,
    liveness: Rc<Liveness>,
    mut shown: Shown,
) -> io::Result<()> {
    let Listener { socket, after, .. } = listener;
    // A ring waits on a blocking socket; the epoll driver does its own waiting.
    socket.set_nonblocking(monoio::utils::is_legacy())?;
    let queue = socket.try_clone()?;
    let listener = TcpListener::from_std(socket)?;
    let welcome = |stream: TcpStream| {
        let seat = clients.seat(stream.as_raw_fd());
        let connection = Connection::new(stream, seat);
        drop(task::spawn("connection", clients.metrics(), connection.serve(Rc::clone(&service))));
    };
    let mut back_off = BACK_OFF.0;
    let mut failing_since = None;
    let mut pace = Pace::default();
    while !clients.is_draining() {
        liveness.show(&mut shown);
        // Never dropped while it is pending: it may already hold a connection.
        let accepting = pin!(listener.cancelable_accept(liveness.handle()));
        match pace.keep(accepting).await {
            Ok((stream, _)) => {
                (back_off, failing_since) = (BACK_OFF.0, None);
                close_on_exec(&stream);
                let since = clock::now();
                while !clients.has_room() && !clients.is_draining() {
                    liveness.show(&mut shown);
                    clients.make_room(since).await;
                }
                welcome(stream);
            }
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                // Interrupted, or the client gave up while it was queued.
                Some(Errno::ECANCELED | Errno::ECONNABORTED | Errno::EINTR) => {}
                // This is no listening socket, and will not be one: nothing is ever accepted here.
                Some(Errno::EBADF | Errno::EINVAL | Errno::ENOTSOCK) => {
                    return Err(error);
                }
                // Only a socket that others have too is set nonblocking under a ring, by a worker of
                // theirs or ours that waits on epoll: then nothing is left but to look again.
                Some(Errno::EAGAIN) => monoio::time::sleep(LOOK).await,
                // accept(2) would fail again at once, for ever: make room, then wait.
                _ => {
                    tracing::warn!(%error, "cannot accept; trying again in {back_off:?}");
                    clients.evict(*failing_since.get_or_insert_with(clock::now));
                    monoio::time::sleep(back_off).await;
                    back_off = (back_off * 2).min(BACK_OFF.1);
                }
            },
        }
    }
    let empty = || -> io::Result<()> {
        while let Ok((stream, _)) = queue.accept() {
            stream.set_nonblocking(monoio::utils::is_legacy())?;
            welcome(TcpStream::from_std(stream)?);
        }
        Ok(())
    };
    match after {
        // The queue is the next process's.
        After::Leave => return Ok(()),
        After::Share if !kernel_migrates() => {
            queue.set_nonblocking(true)?;
            turn_newcomers_away(&queue)?;
            let end = clock::now().after(HANDSHAKE);
            while clock::now() < end {
                empty()?;
                monoio::time::sleep(LOOK).await;
            }
        }
        After::Share | After::Close => queue.set_nonblocking(true)?,
    }
    // Closing the socket would reset the connections that wait in its queue.
    empty()
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
