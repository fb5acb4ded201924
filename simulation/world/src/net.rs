//! What `monoio::net` has: streams, and how they are connected and accepted.

use std::{
    collections::VecDeque,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, RawFd},
    rc::Rc,
};

use monoio::{
    BufResult,
    buf::{IoBuf, IoBufMut, IoVecBuf, IoVecBufMut},
    io::{AsyncReadRent, AsyncWriteRent},
};

use crate::{
    io::{CancelHandle, CancelableAsyncReadRent, Splitable},
    operation::{self, Kind},
    tcp::Backlog,
    world::{Process, SocketKey, with, with_any},
};

/// Listens at an address.
pub fn listen(process: Process, address: SocketAddr) {
    with(|world| {
        let backlog = Backlog { process, waiting: VecDeque::new(), hangs: false };
        world.backlogs.insert(address, backlog);
        world.retry(|kind| kind == Kind::Connect(address));
    });
}

/// Whether somebody listens at an address.
pub fn is_listening(address: SocketAddr) -> bool {
    with(|world| world.backlogs.contains_key(&address))
}

/// From now on nobody who connects to `address` is answered, or they are again.
pub fn set_hanging(address: SocketAddr, hangs: bool) {
    with(|world| {
        if let Some(backlog) = world.backlogs.get_mut(&address) {
            backlog.hangs = hangs;
        }
        world.retry(|kind| kind == Kind::Connect(address));
    });
}

/// Listens no more: who waits to be accepted is reset, who comes is refused.
pub fn close_listener(address: SocketAddr) {
    with(|world| {
        let Some(backlog) = world.backlogs.remove(&address) else { return };
        for socket in backlog.waiting {
            world.sockets[socket].resets = true;
            world.close(socket);
        }
        world.retry(|kind| kind == Kind::Connect(address));
    });
}

/// Accepts a connection.
///
/// # Errors
/// `ECANCELED`; `EMFILE` now and then.
pub async fn accept(address: SocketAddr, cancel: Option<CancelHandle>) -> io::Result<TcpStream> {
    let socket =
        operation::end(operation::begin(Kind::Accept(address), (), cancel.as_ref())).await?;
    Ok(TcpStream { socket })
}

/// Accepts a connection that waits, if there is one.
pub fn try_accept(process: Process, address: SocketAddr) -> Option<TcpStream> {
    let socket = with(|world| world.take_waiting(process, address))?;
    Some(TcpStream { socket })
}

/// A connection.
#[derive(Debug)]
pub struct TcpStream {
    socket: SocketKey,
}

/// The half that is read from.
#[derive(Debug)]
pub struct OwnedReadHalf<T>(Rc<T>);

/// The half that is written to.
#[derive(Debug)]
pub struct OwnedWriteHalf<T>(Rc<T>);

impl TcpStream {
    /// Connects to an address.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn connect_addr(address: SocketAddr) -> io::Result<Self> {
        let socket = operation::end(operation::begin(Kind::Connect(address), (), None)).await?;
        Ok(Self { socket })
    }

    /// Changes nothing: nothing is ever delayed to fill a packet.
    ///
    /// # Errors
    /// Never.
    #[allow(clippy::unnecessary_wraps)]
    pub fn set_nodelay(&self, _: bool) -> io::Result<()> {
        Ok(())
    }

    /// Which end of which connection it is.
    pub fn key(&self) -> SocketKey {
        self.socket
    }

    /// Whether an operation of it has not ended.
    pub fn is_in_use(&self) -> bool {
        let is_own =
            |operation: &operation::Operation| operation.kind.socket() == Some(self.socket);
        with(|world| world.operations.values().any(is_own))
    }

    /// The address of who has made the connection.
    pub fn maker(&self) -> IpAddr {
        with(|world| world.sockets[self.socket].maker)
    }

    /// What a trace calls it.
    pub fn set_name(&self, name: &str) {
        with(|world| {
            let peer = world.sockets[self.socket].peer;
            world.sockets[self.socket].name = name.into();
            world.sockets[peer].name = format!("the server of {name}").into();
        });
    }

    /// When it is closed, it resets its connection.
    pub fn reset_at_close(&self) {
        with(|world| world.sockets[self.socket].resets = true);
    }

    /// Reads what has arrived, up to `most` bytes; nothing at the end.
    ///
    /// # Errors
    /// When the connection was reset.
    pub async fn receive(&self, most: usize) -> io::Result<Vec<u8>> {
        let buffer = Vec::with_capacity(most);
        let (outcome, buffer) = operation::begin(Kind::Read(self.socket), buffer, None).await;
        outcome.map(|_| buffer)
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// When the connection was reset or closed.
    pub async fn send(&self, bytes: Vec<u8>) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (outcome, buffer) = operation::begin(Kind::Write(self.socket), rest, None).await;
            rest = buffer;
            rest.drain(..outcome?);
        }
        Ok(())
    }

    /// Sends no more.
    pub fn end(&self) {
        with(|world| world.shut_down(self.socket, false, true));
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        with_any(|world| world.release(self.socket));
    }
}

impl AsRawFd for TcpStream {
    fn as_raw_fd(&self) -> RawFd {
        with(|world| world.sockets[self.socket].descriptor.expect("an open stream"))
    }
}

impl AsyncReadRent for TcpStream {
    fn read<T: IoBufMut>(&mut self, buf: T) -> impl Future<Output = BufResult<usize, T>> {
        operation::begin(Kind::Read(self.socket), buf, None)
    }

    async fn readv<T: IoVecBufMut>(&mut self, buf: T) -> BufResult<usize, T> {
        (Err(io::ErrorKind::Unsupported.into()), buf)
    }
}

impl CancelableAsyncReadRent for TcpStream {
    fn cancelable_read<T: IoBufMut>(
        &mut self,
        buf: T,
        cancel: CancelHandle,
    ) -> impl Future<Output = BufResult<usize, T>> {
        operation::begin(Kind::Read(self.socket), buf, Some(&cancel))
    }

    async fn cancelable_readv<T: IoVecBufMut>(
        &mut self,
        buf: T,
        _: CancelHandle,
    ) -> BufResult<usize, T> {
        (Err(io::ErrorKind::Unsupported.into()), buf)
    }
}

impl AsyncWriteRent for TcpStream {
    fn write<T: IoBuf>(&mut self, buf: T) -> impl Future<Output = BufResult<usize, T>> {
        operation::begin(Kind::Write(self.socket), buf, None)
    }

    async fn writev<T: IoVecBuf>(&mut self, buf: T) -> BufResult<usize, T> {
        (Err(io::ErrorKind::Unsupported.into()), buf)
    }

    async fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    async fn shutdown(&mut self) -> io::Result<()> {
        with(|world| world.shut_down(self.socket, false, true));
        Ok(())
    }
}

impl Splitable for TcpStream {
    type OwnedRead = OwnedReadHalf<Self>;
    type OwnedWrite = OwnedWriteHalf<Self>;

    fn into_split(self) -> (OwnedReadHalf<Self>, OwnedWriteHalf<Self>) {
        let stream = Rc::new(self);
        (OwnedReadHalf(Rc::clone(&stream)), OwnedWriteHalf(stream))
    }
}

impl AsyncReadRent for OwnedReadHalf<TcpStream> {
    fn read<T: IoBufMut>(&mut self, buf: T) -> impl Future<Output = BufResult<usize, T>> {
        operation::begin(Kind::Read(self.0.socket), buf, None)
    }

    async fn readv<T: IoVecBufMut>(&mut self, buf: T) -> BufResult<usize, T> {
        (Err(io::ErrorKind::Unsupported.into()), buf)
    }
}

impl AsyncWriteRent for OwnedWriteHalf<TcpStream> {
    fn write<T: IoBuf>(&mut self, buf: T) -> impl Future<Output = BufResult<usize, T>> {
        operation::begin(Kind::Write(self.0.socket), buf, None)
    }

    async fn writev<T: IoVecBuf>(&mut self, buf: T) -> BufResult<usize, T> {
        (Err(io::ErrorKind::Unsupported.into()), buf)
    }

    async fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    async fn shutdown(&mut self) -> io::Result<()> {
        with(|world| world.shut_down(self.0.socket, false, true));
        Ok(())
    }
}
