//! `tallyring health`: one question to a running server, for those who watch over containers. It needs
//! no shell and no curl beside the program.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    time::{Duration, Instant},
};

use crate::{
    config::{HealthConfig, RESPONSE_HEAD},
    http::response::{self, HeadScan, Malformed, Response},
    upstream::Host,
};

/// Why the server is not healthy.
#[derive(Debug, thiserror::Error)]
pub enum Unhealthy {
    /// Its name has no address.
    #[error("its name cannot be looked up: {0}")]
    NoAddress(io::Error),
    /// Nobody answers.
    #[error("it does not answer: {0}")]
    Silent(io::Error),
    /// It answers something else than HTTP.
    #[error("{0}")]
    Malformed(#[from] Malformed),
    /// It says so itself.
    #[error("it answers {0}")]
    Status(u16),
}

/// Asks once; the status of a 2xx answer.
///
/// # Errors
/// When there is no such answer in time.
pub fn ask(config: &HealthConfig) -> Result<u16, Unhealthy> {
    let end = Instant::now() + config.timeout;
    let mut tried = Err(io::ErrorKind::NotFound.into());
    for address in addresses(&config.target.origin).map_err(Unhealthy::NoAddress)? {
        tried = connect(address, end);
        if tried.is_ok() {
            break;
        }
    }
    let mut stream = tried.map_err(Unhealthy::Silent)?;
    stream.write_all(&config.target.probe()).map_err(Unhealthy::Silent)?;
    match receive(&mut stream, end)?.status {
        status @ 200..=299 => Ok(status),
        status => Err(Unhealthy::Status(status)),
    }
}

fn addresses(host: &Host) -> io::Result<Vec<SocketAddr>> {
    match host {
        Host::Address(address) => Ok(vec![*address]),
        Host::Name(name, port) => Ok((name.as_str(), *port).to_socket_addrs()?.collect()),
    }
}

fn connect(address: SocketAddr, end: Instant) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, left(end)?)?;
    stream.set_write_timeout(Some(left(end)?))?;
    Ok(stream)
}

/// Reads the head of the final response; what follows it does not matter.
fn receive(stream: &mut TcpStream, end: Instant) -> Result<Response, Unhealthy> {
    let mut bytes = Vec::new();
    let mut scan = HeadScan::default();
    let mut buffer = [0; 4096];
    loop {
        if let Some(head) = response::parse(&bytes, &mut scan, &RESPONSE_HEAD, u64::MAX)? {
            if !head.is_interim() {
                return Ok(head);
            }
            bytes.drain(..head.head_bytes);
            scan = HeadScan::default();
            continue;
        }
        match read(stream, &mut buffer, end).map_err(Unhealthy::Silent)? {
            0 => return Err(Unhealthy::Silent(io::Error::other("it has closed"))),
            count => bytes.extend_from_slice(&buffer[..count]),
        }
    }
}

fn read(stream: &mut TcpStream, buffer: &mut [u8], end: Instant) -> io::Result<usize> {
    stream.set_read_timeout(Some(left(end)?))?;
    match stream.read(buffer) {
        // What a socket says when its time is up is not for people.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(io::ErrorKind::TimedOut.into())
        }
        result => result,
    }
}

/// The time that is left; none is an error.
fn left(end: Instant) -> io::Result<Duration> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}
