//! Binding: one socket for each worker and address, all before any connection is accepted.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
    time::Duration,
};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{
    After, Listener,
    holder::{self, Connection, Holder},
};

/// Connections that the kernel completes ahead of accept(2); the kernel takes the smaller of this and
/// `net.core.somaxconn`.
pub const BACKLOG: i32 = 4096;

/// How often an address in use is tried, and the pause between tries.
const TRIES_MAX: u32 = 20;
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another socket listens there already.
    #[error("cannot listen on {address}: another process listens there already")]
    InUse {
        /// The address asked for.
        address: SocketAddr,
    },
    /// No socket listens there, but a connection uses the port, and no socket option helps against that: it was
    /// opened from this machine without `SO_REUSEADDR`.
    #[error(
        "cannot listen on {address}: the port is in use by a connection ({connection}), not by a \
         listener; try again when that has ended, and keep the port from outgoing connections by \
         sysctl net.ipv4.ip_local_reserved_ports={}",
        .address.port()
    )]
    Connected {
        /// The address asked for.
        address: SocketAddr,
        /// The one that was found.
        connection: Connection,
    },
    /// Neither: a socket is bound to the port.
    #[error(
        "cannot listen on {address}: another socket is bound to the port, and neither listens nor is \
         connected"
    )]
    Bound {
        /// The address asked for.
        address: SocketAddr,
    },
    /// Ports below `net.ipv4.ip_unprivileged_port_start` need a capability.
    #[error(
        "cannot listen on {address}: no permission; choose a port from 1024 on, or grant the \
         capability CAP_NET_BIND_SERVICE"
    )]
    Denied {
        /// The address asked for.
        address: SocketAddr,
    },
    /// The address is not one of this machine's.
    #[error("cannot listen on {address}: this machine does not have that address")]
    NotHere {
        /// The address asked for.
        address: SocketAddr,
    },
    /// Anything else.
    #[error("cannot listen on {address}: {error}")]
    Other {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
}

impl BindError {
    fn new(address: SocketAddr, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::AddrInUse => match holder::of(address) {
                // Where the system does not tell, the most likely case.
                Some(Holder::Listener) | None => Self::InUse { address },
                Some(Holder::Connection(connection)) => Self::Connected { address, connection },
                Some(Holder::Other) => Self::Bound { address },
            },
            io::ErrorKind::PermissionDenied => Self::Denied { address },
            io::ErrorKind::AddrNotAvailable => Self::NotHere { address },
            _ => Self::Other { address, error },
        }
    }
}

/// Binds `address` once for each of `count` workers. All sockets listen when this returns; port 0
/// becomes one free port for all.
///
/// Unless `share` allows others there, the first socket listens without `SO_REUSEPORT`. The kernel lets no such
/// socket listen beside another one, nor another one beside it, whoever their users are (`inet_csk_get_port`, which
/// listen(2) asks once more, holding the port's lock): of several starts at the same moment one succeeds. Only then
/// is the option set, and the other sockets join the first, which is never closed: a later start finds it listening.
/// From then on processes of the same user can join too, if they ask for that.
///
/// # Errors
/// When the address cannot be bound, or another process listens there and `share` does not allow it.
pub fn bind(address: SocketAddr, count: usize, share: bool) -> Result<Vec<Listener>, BindError> {
    let fail = |error| BindError::new(address, error);
    let first = listen_with_retries(address, share).map_err(fail)?;
    first.set_reuse_port(true).map_err(fail)?;
    let first = StdListener::from(first);
    let address = first.local_addr().map_err(fail)?;
    let mut sockets = vec![first];
    for _ in 1..count {
        sockets.push(listen_with_retries(address, true).map_err(fail)?.into());
    }
    let after = if share { After::Share } else { After::Close };
    Ok(sockets.into_iter().map(|socket| Listener { socket, address, after }).collect())
}

/// Whether `address` can be bound. The socket does not listen, so it disturbs no other socket.
///
/// # Errors
/// When it cannot.
pub fn probe(address: SocketAddr, share: bool) -> Result<(), BindError> {
    let bound = prepare(address, share)
        .and_then(|socket| socket.bind(&SockAddr::from(address)).map(|()| socket));
    bound.map(drop).map_err(|error| BindError::new(address, error))
}

/// Listens on `address`, with retries while it is in use. A process that was killed keeps its sockets until the
/// kernel has freed its rings, which happens after the process is gone. And a listen(2) that is about to fail makes
/// another one fail at the same moment.
// Before any worker runs.
#[allow(clippy::disallowed_methods)]
fn listen_with_retries(address: SocketAddr, reuse_port: bool) -> io::Result<Socket> {
    let mut tries = 1;
    loop {
        match listen(address, reuse_port) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < TRIES_MAX => {
                tries += 1;
                std::thread::sleep(RETRY_PAUSE);
            }
            result => return result,
        }
    }
}

fn listen(address: SocketAddr, reuse_port: bool) -> io::Result<Socket> {
    let socket = prepare(address, reuse_port)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn prepare(address: SocketAddr, reuse_port: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of an earlier run that linger in TIME_WAIT do not block the address.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    if address.is_ipv6() {
        // [::]:3000 beside 0.0.0.0:3000 must be possible; each means its own protocol.
        socket.set_only_v6(true)?;
    }
    // Accepted sockets inherit it.
    socket.set_tcp_nodelay(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: &str = "127.0.0.1:0";

    #[test]
    fn all_listen_on_one_free_port() {
        let listeners = bind(LOOPBACK.parse().unwrap(), 3, false).unwrap();
        let addresses: Vec<_> = listeners.iter().map(|listener| listener.address).collect();
        assert_eq!(addresses.len(), 3);
        assert!(addresses.iter().all(|address| *address == addresses[0]));
        assert_ne!(addresses[0].port(), 0);
    }

    #[test]
    fn a_second_server_is_refused_unless_it_shares() {
        let first = bind(LOOPBACK.parse().unwrap(), 1, false).unwrap();
        let address = first[0].address;
        assert!(matches!(bind(address, 1, false), Err(BindError::InUse { .. })));
        assert_eq!(bind(address, 1, true).unwrap().len(), 1);
        drop(first);
        assert_eq!(bind(address, 1, false).unwrap().len(), 1);
    }

    #[test]
    fn a_probe_finds_what_a_bind_would_and_disturbs_nobody() {
        let first = bind(LOOPBACK.parse().unwrap(), 2, false).unwrap();
        let address = first[0].address;
        assert!(matches!(probe(address, false), Err(BindError::InUse { .. })));
        assert!(probe(address, true).is_ok());
        drop(first);
        assert!(probe(address, false).is_ok());
        assert_eq!(bind(address, 1, false).unwrap().len(), 1);
        let elsewhere = probe("192.0.2.1:0".parse().unwrap(), false);
        assert!(matches!(elsewhere, Err(BindError::NotHere { .. })), "{elsewhere:?}");
    }

    /// A port that no other process gets from the kernel, but on which a process can listen that names it: the socket
    /// is bound and does not listen.
    fn reserve() -> (Socket, SocketAddr) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&LOOPBACK.parse::<SocketAddr>().unwrap().into()).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        (socket, address)
    }

    #[test]
    fn one_of_many_simultaneous_starts_succeeds() {
        const STARTS: usize = 8;
        for _ in 0..3 {
            let (_reserved, address) = reserve();
            let together = std::sync::Barrier::new(STARTS);
            let bound = std::thread::scope(|scope| {
                let start = || {
                    together.wait();
                    bind(address, 2, false)
                };
                let starts: Vec<_> = (0..STARTS).map(|_| scope.spawn(start)).collect();
                // All are kept until the last has tried.
                starts.into_iter().map(|start| start.join().unwrap()).collect::<Vec<_>>()
            });
            assert_eq!(bound.iter().filter(|bound| bound.is_ok()).count(), 1, "{bound:?}");
        }
    }

    #[track_caller]
    fn check_refused(address: SocketAddr, words: &str) {
        let said = bind(address, 1, false).unwrap_err().to_string();
        assert!(said.contains(words), "no {words:?} in {said:?}");
    }

    #[test]
    fn who_holds_a_port_is_told() {
        let other_end = StdListener::bind(LOOPBACK).unwrap();
        let peer = other_end.local_addr().unwrap();
        // Bound first: a port that is chosen by the connect may be another connection's too.
        let outgoing = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        outgoing.bind(&LOOPBACK.parse::<SocketAddr>().unwrap().into()).unwrap();
        outgoing.connect(&peer.into()).unwrap();
        let outgoing = std::net::TcpStream::from(outgoing);
        let address = outgoing.local_addr().unwrap();
        let any = SocketAddr::new("0.0.0.0".parse().unwrap(), address.port());
        for wanted in [address, any] {
            check_refused(wanted, &format!("in use by a connection ({address} to {peer}), not by"));
        }
        let (mut accepted, _) = other_end.accept().unwrap();
        // The side that closes first keeps the port for a minute.
        drop(outgoing);
        assert_eq!(io::Read::read(&mut accepted, &mut [0]).unwrap(), 0);
        drop(accepted);
        check_refused(address, &format!("{address} to {peer} in TIME_WAIT, for a minute at most"));
        check_refused(peer, "another process listens there already");
        let bound = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        bound.bind(&LOOPBACK.parse::<SocketAddr>().unwrap().into()).unwrap();
        let address = bound.local_addr().unwrap().as_socket().unwrap();
        check_refused(address, "neither listens nor is connected");
    }

    #[test]
    fn the_sockets_of_an_address_share_its_connections() {
        let listeners = bind(LOOPBACK.parse().unwrap(), 2, false).unwrap();
        let shared = bind(listeners[0].address, 1, true).unwrap();
        let sockets: Vec<_> = listeners.iter().chain(&shared).map(|one| &one.socket).collect();
        sockets.iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
        // The kernel picks by the client's port; 300 times never the same one.
        let connect = |_| std::net::TcpStream::connect(listeners[0].address).unwrap();
        let _clients: Vec<_> = (0..300).map(connect).collect();
        for socket in sockets {
            assert!(socket.accept().is_ok());
        }
    }

    #[test]
    fn both_protocols_can_have_the_same_port() {
        let v4 = bind("0.0.0.0:0".parse().unwrap(), 1, false).unwrap();
        let port = v4[0].address.port();
        // A machine without IPv6 fails, which is not tested here.
        match bind(SocketAddr::new("::".parse().unwrap(), port), 1, false) {
            Ok(_) => {}
            Err(BindError::InUse { .. }) => panic!("the IPv6 socket took the IPv4 port"),
            Err(error) => println!("no IPv6 here: {error}"),
        }
    }
}
