//! Connections on their way from the runtime of one worker to that of another.
//!
//! A stream of monoio gives its descriptor as a number only, of which no owned descriptor can be made without unsafe
//! code. The kernel makes one: it is sent through a pair of local sockets of the same thread (unix(7), `SCM_RIGHTS`).

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::TcpStream as StdTcpStream,
    os::{
        fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd},
        unix::net::UnixDatagram,
    },
};

use monoio::net::TcpStream;
use nix::{
    sys::socket::{ControlMessage, MsgFlags, sendmsg},
    unistd::close,
};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

/// A connection that no runtime knows: it can go to any thread.
#[derive(Debug)]
pub struct Detached(StdTcpStream);

impl Detached {
    /// Attaches it to the runtime of this thread.
    ///
    /// # Errors
    /// When the runtime cannot take it; it is closed then.
    pub fn attach(self) -> io::Result<TcpStream> {
        // The epoll driver needs a nonblocking socket; a ring waits on a blocking one.
        self.0.set_nonblocking(monoio::utils::is_legacy())?;
        TcpStream::from_std(self.0)
    }
}

/// Detaches connections from the runtime of its thread.
#[derive(Debug, Default)]
pub struct Detacher {
    /// Empty, both of them. Taken while a descriptor is in it, and put back only when that has arrived: what a failure
    /// leaves behind goes with the pair.
    pair: Option<(UnixDatagram, UnixDatagram)>,
}

impl Detacher {
    /// Detaches a connection of which no operation is in progress: what a posted read received would be lost.
    ///
    /// # Errors
    /// The connection itself, still attached, when the process or the system lacks descriptors.
    pub fn detach(&mut self, stream: TcpStream) -> Result<Detached, TcpStream> {
        match self.duplicate(stream.as_raw_fd()) {
            Ok(socket) => {
                // Taken out of the driver first: its registration with epoll is one of the connection, and would
                // outlive this descriptor.
                let _ = close(stream.into_raw_fd());
                Ok(Detached(socket.into()))
            }
            Err(error) => {
                tracing::debug!(%error, "a connection is not handed over");
                Err(stream)
            }
        }
    }

    fn duplicate(&mut self, descriptor: RawFd) -> io::Result<OwnedFd> {
        let (near, far) = self.pair.take().map_or_else(pair, Ok)?;
        let rights = [descriptor];
        let rights = [ControlMessage::ScmRights(&rights)];
        sendmsg::<()>(near.as_raw_fd(), &[IoSlice::new(&[0])], &rights, MsgFlags::empty(), None)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let mut bytes = [IoSliceMut::new(&mut byte)];
        let received = recvmsg(&far, &mut bytes, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let socket = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
            _ => None,
        });
        match socket {
            Some(socket) if !received.flags.contains(ReturnFlags::CTRUNC) => {
                self.pair = Some((near, far));
                Ok(socket)
            }
            _ => Err(io::Error::other("no descriptor is free")),
        }
    }
}

fn pair() -> io::Result<(UnixDatagram, UnixDatagram)> {
    let (near, far) = UnixDatagram::pair()?;
    // A worker never blocks.
    near.set_nonblocking(true)?;
    far.set_nonblocking(true)?;
    Ok((near, far))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpListener as StdListener,
        thread,
    };

    use monoio::io::{AsyncReadRent, AsyncWriteRentExt};

    use super::*;
    use crate::runtime::driver::{self, Choice};

    const DRIVERS: [Choice; 2] = [Choice::Auto, Choice::Epoll];

    /// Answers the first byte of a connection, on a thread and a runtime of its own.
    fn answer(connection: Detached, driver: Choice) -> thread::JoinHandle<()> {
        thread::spawn(move || {
            let (mut runtime, _) = driver::build(driver).unwrap();
            runtime.block_on(async {
                let mut stream = connection.attach().unwrap();
                let (read, buffer) = stream.read(vec![0; 1]).await;
                assert_eq!(read.unwrap(), 1);
                stream.write_all(buffer).await.0.unwrap();
            });
        })
    }

    #[test]
    fn another_runtime_serves_a_detached_connection_and_closes_it() {
        for (from, to) in DRIVERS.into_iter().flat_map(|from| DRIVERS.map(|to| (from, to))) {
            let socket = StdListener::bind("127.0.0.1:0").unwrap();
            let address = socket.local_addr().unwrap();
            let (mut runtime, _) = driver::build(from).unwrap();
            runtime.block_on(async {
                socket.set_nonblocking(monoio::utils::is_legacy()).unwrap();
                let listener = monoio::net::TcpListener::from_std(socket).unwrap();
                let mut detacher = Detacher::default();
                // The pair is used again.
                for byte in [1_u8, 2, 3] {
                    let mut client = StdTcpStream::connect(address).unwrap();
                    let (stream, _) = listener.accept().await.unwrap();
                    let serving = answer(detacher.detach(stream).unwrap(), to);
                    client.write_all(&[byte]).unwrap();
                    let mut said = Vec::new();
                    // Its end is the close: nobody else keeps it open.
                    client.read_to_end(&mut said).unwrap();
                    assert_eq!(said, [byte], "from {from:?} to {to:?}");
                    serving.join().unwrap();
                }
            });
        }
    }

    #[test]
    fn what_is_no_descriptor_is_not_detached_and_leaves_no_pair() {
        let mut detacher = Detacher::default();
        detacher.duplicate(-1).unwrap_err();
        assert!(detacher.pair.is_none());
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        detacher.duplicate(listener.as_raw_fd()).unwrap();
        assert!(detacher.pair.is_some());
    }
}
