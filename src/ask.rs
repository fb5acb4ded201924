//! One question to a running server, for commands that ask and end: a blocking HTTP client for one request. It needs
//! no shell and no curl beside the program.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    time::{Duration, Instant},
};

use crate::{
    config::RESPONSE_HEAD,
    http::response::{self, HeadScan, Malformed, Response},
    upstream::{Endpoint, Host},
};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The server's name has no address.
    #[error("its name cannot be looked up: {0}")]
    NoAddress(io::Error),
    /// Nobody answers.
    #[error("it does not answer: {0}")]
    Silent(io::Error),
    /// It answers something else than HTTP.
    #[error("{0}")]
    Malformed(#[from] Malformed),
    /// It answers with more, or in another form, than what is asked for can have.
    #[error("its answer has no length, or a larger one than {0} bytes")]
    TooLarge(u64),
}

impl AskError {
    /// Whether nobody listens at the address, so that no server runs there.
    pub fn is_nobody(&self) -> bool {
        matches!(self, Self::Silent(error) if error.kind() == io::ErrorKind::ConnectionRefused)
    }
}

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The content.
    pub body: Vec<u8>,
}

/// Asks once, and reads no more than the status.
///
/// # Errors
/// When there is no answer until `end`.
pub fn status(target: &Endpoint, end: Instant) -> Result<u16, AskError> {
    Ok(Call::begin(target, end)?.head()?.status)
}

/// Asks once; the whole answer, whose content has a length of at most `body_max`.
///
/// # Errors
/// When there is no such answer until `end`.
pub fn get(target: &Endpoint, end: Instant, body_max: u64) -> Result<Answer, AskError> {
    let mut call = Call::begin(target, end)?;
    let head = call.head()?;
    let length = head.body.content_length().filter(|length| *length <= body_max);
    let length = length.ok_or(AskError::TooLarge(body_max))?;
    let mut body = call.bytes.split_off(head.head_bytes);
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    while body.len() < length {
        call.read_into(&mut body)?;
    }
    body.truncate(length);
    Ok(Answer { status: head.status, body })
}

/// A request that was sent.
struct Call {
    stream: TcpStream,
    end: Instant,
    /// What was received and is not used.
    bytes: Vec<u8>,
}

impl Call {
    fn begin(target: &Endpoint, end: Instant) -> Result<Self, AskError> {
        let mut tried = Err(io::ErrorKind::NotFound.into());
        for address in addresses(&target.origin).map_err(AskError::NoAddress)? {
            tried = connect(address, end);
            if tried.is_ok() {
                break;
            }
        }
        let mut stream = tried.map_err(AskError::Silent)?;
        stream.write_all(&target.probe()).map_err(AskError::Silent)?;
        Ok(Self { stream, end, bytes: Vec::new() })
    }

    /// Reads the head of the final response, which is left in front of what follows it.
    fn head(&mut self) -> Result<Response, AskError> {
        let mut scan = HeadScan::default();
        loop {
            if let Some(head) = response::parse(&self.bytes, &mut scan, &RESPONSE_HEAD, u64::MAX)? {
                if !head.is_interim() {
                    return Ok(head);
                }
                self.bytes.drain(..head.head_bytes);
                scan = HeadScan::default();
                continue;
            }
            let mut bytes = std::mem::take(&mut self.bytes);
            self.read_into(&mut bytes)?;
            self.bytes = bytes;
        }
    }

    fn read_into(&mut self, bytes: &mut Vec<u8>) -> Result<(), AskError> {
        let mut buffer = [0; 16 * 1024];
        match read(&mut self.stream, &mut buffer, self.end).map_err(AskError::Silent)? {
            0 => Err(AskError::Silent(io::Error::other("it has closed"))),
            count => {
                bytes.extend_from_slice(&buffer[..count]);
                Ok(())
            }
        }
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

fn read(stream: &mut TcpStream, buffer: &mut [u8], end: Instant) -> io::Result<usize> {
    loop {
        stream.set_read_timeout(Some(left(end)?))?;
        match stream.read(buffer) {
            // What a ring of this thread has completed interrupts a read that has a time-out, as a signal does
            // (signal(7)); the doctor has built one before it asks.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // What a socket says when its time is up is not for people.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            result => return result,
        }
    }
}

/// The time that is left; none is an error.
fn left(end: Instant) -> io::Result<Duration> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}
