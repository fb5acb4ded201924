//! In place of the listening sockets: addresses of the world.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use monoio::{
    io::CancelHandle,
    net::{self, TcpStream},
    world::Process,
};

/// `ECANCELED` and `EMFILE`.
const CANCELED: i32 = 125;
const PAUSE: Duration = Duration::from_millis(10);

/// Where one worker accepts.
#[derive(Debug)]
pub struct Listener {
    /// The address.
    pub address: SocketAddr,
    /// Whose it is.
    pub process: Process,
    /// Connections accepted here and elsewhere.
    pub accepted: Arc<AtomicU64>,
}

/// A connection on its way to another worker.
#[derive(Debug)]
pub struct Detached(TcpStream);

impl Detached {
    /// It is one of this worker from now on.
    ///
    /// # Errors
    /// Never.
    #[allow(clippy::unnecessary_wraps)]
    pub fn attach(self) -> io::Result<TcpStream> {
        Ok(self.0)
    }
}

/// Detaches connections: so many so far.
#[derive(Debug, Default)]
pub struct Detacher(u32);

/// Of so many connections one is not detached, since the system lacks a descriptor at that moment.
const REFUSED: u32 = 4;

impl Detacher {
    /// It is nobody's from now on.
    ///
    /// # Errors
    /// The connection itself, each time in [`REFUSED`].
    ///
    /// # Panics
    /// When something is still read or written: that would go on at the worker that it leaves.
    pub fn detach(&mut self, stream: TcpStream) -> Result<Detached, TcpStream> {
        assert!(!stream.is_in_use(), "a connection leaves its worker in the midst of an operation");
        self.0 += 1;
        if self.0.is_multiple_of(REFUSED) { Err(stream) } else { Ok(Detached(stream)) }
    }
}

/// Accepts connections from one listener.
pub struct Acceptor(Listener);

/// What waiting for a connection brought.
#[derive(Debug)]
pub enum Accepted {
    /// A connection, and the address of who has made it.
    Connection(TcpStream, IpAddr),
    /// Nothing: it was interrupted.
    Nothing,
    /// The process lacks what a connection takes; to be tried again after a pause.
    Exhausted(io::Error, Duration),
}

impl Acceptor {
    /// Begins to listen.
    ///
    /// # Errors
    /// Never.
    #[allow(clippy::unnecessary_wraps)]
    pub fn open(listener: Listener) -> io::Result<Self> {
        net::listen(listener.process, listener.address);
        Ok(Self(listener))
    }

    /// Waits for a connection, until `interrupt` is cancelled.
    ///
    /// # Errors
    /// Never.
    pub async fn accept(&mut self, interrupt: CancelHandle) -> io::Result<Accepted> {
        Ok(match net::accept(self.0.address, Some(interrupt)).await {
            Ok(stream) => {
                self.0.accepted.fetch_add(1, Ordering::Relaxed);
                let peer = stream.maker();
                Accepted::Connection(stream, peer)
            }
            Err(error) if error.raw_os_error() == Some(CANCELED) => Accepted::Nothing,
            Err(error) => Accepted::Exhausted(error, PAUSE),
        })
    }

    /// Serves who is queued, and closes.
    ///
    /// # Errors
    /// Never.
    #[allow(clippy::unused_async)]
    pub async fn close(self, mut serve: impl FnMut(TcpStream, IpAddr)) -> io::Result<()> {
        let Listener { address, process, accepted } = self.0;
        while let Some(stream) = net::try_accept(process, address) {
            accepted.fetch_add(1, Ordering::Relaxed);
            let peer = stream.maker();
            serve(stream, peer);
        }
        net::close_listener(address);
        Ok(())
    }
}
