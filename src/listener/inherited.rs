//! Sockets that a service manager has opened and handed down (sd_listen_fds(3)).
//!
//! They stay open in the manager while no process serves them: a client that connects during a restart waits in the
//! kernel's queue for the next process, and is not refused.

use std::{env, io, net::TcpListener as StdListener, process, sync::OnceLock};

use listenfd::ListenFd;
use socket2::SockRef;

use super::{After, Listener};

/// Why a socket that was handed down cannot be served.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot serve on socket {place} of the service manager's: {error}; hand over listening TCP \
     sockets, by ListenStream= in the socket unit"
)]
pub struct InheritError {
    /// Which, counted from 1.
    place: usize,
    /// What is wrong with it.
    error: io::Error,
}

/// Whether [`take`] finds any, or has found some.
pub fn are_expected() -> bool {
    // `take` removes the variables that tell so.
    static EXPECTED: OnceLock<bool> = OnceLock::new();
    *EXPECTED.get_or_init(are_announced)
}

fn are_announced() -> bool {
    let number = |name| env::var(name).ok()?.parse::<u32>().ok();
    let ours = match env::var("LISTEN_PID") {
        Ok(text) if !text.is_empty() => text.parse() == Ok(process::id()),
        _ => true,
    };
    ours && number("LISTEN_FDS").is_some_and(|count| count > 0)
}

/// The listening sockets that were handed to this process, none if it was not started that way. Called once: the
/// sockets belong to the caller from then on.
///
/// # Errors
/// When one is no listening TCP socket.
pub fn take() -> Result<Vec<StdListener>, InheritError> {
    are_expected();
    let mut handed = ListenFd::from_env();
    let mut sockets = Vec::with_capacity(handed.len());
    for index in 0..handed.len() {
        let fail = |error| InheritError { place: index + 1, error };
        let socket = handed.take_tcp_listener(index).map_err(fail)?;
        let socket = socket.ok_or_else(|| fail(io::ErrorKind::NotFound.into()))?;
        if !SockRef::from(&socket).is_listener().map_err(fail)? {
            return Err(fail(io::Error::other("it does not listen")));
        }
        // Accepted sockets inherit it.
        SockRef::from(&socket).set_tcp_nodelay(true).map_err(fail)?;
        sockets.push(socket);
    }
    Ok(sockets)
}

/// Lets `count` workers accept from one socket: the kernel wakes one ring for each connection (`IORING_OP_ACCEPT`
/// waits exclusively), and a worker that is late finds nothing.
///
/// # Errors
/// When there are no more descriptors.
pub fn share_out(socket: &StdListener, count: usize) -> io::Result<Vec<Listener>> {
    let address = socket.local_addr()?;
    let one = || Ok(Listener { socket: socket.try_clone()?, address, after: After::Leave });
    (0..count).map(|_| one()).collect()
}
