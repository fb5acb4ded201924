//! Opening a connection to the counter: each of its addresses in turn. With the listener, the only place that
//! knows the kind of stream.

use std::{io, net::SocketAddr, time::Duration};

use monoio::net::TcpStream;

/// Connects to the first of `addresses` that answers, giving each `timeout`.
///
/// # Errors
/// The error of the last address; `NotFound` when there is none.
pub(super) async fn dial(
    addresses: &[SocketAddr],
    timeout: Duration,
) -> io::Result<(TcpStream, SocketAddr)> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
    for &address in addresses {
        let connect = TcpStream::connect_addr(address);
        match monoio::time::timeout(timeout, connect).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                return Ok((stream, address));
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}
