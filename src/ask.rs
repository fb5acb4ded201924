//! A blocking HTTP client for one request, for commands that ask a running server. So they need neither a shell nor
//! curl.

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

/// The longest text that is read as the reason for a status.
const REASON_BYTES_MAX: u64 = 4096;
/// So much of a line is shown.
const LINE_CHARS_MAX: usize = 200;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The server's name has no address.
    #[error("its name cannot be looked up: {0}")]
    NoAddress(io::Error),
    /// The server does not answer.
    #[error("it does not answer: {0}")]
    Silent(io::Error),
    /// Its answer is not HTTP.
    #[error("{0}")]
    Malformed(#[from] Malformed),
    /// Its answer has no length, or too much content.
    #[error("its answer has no length, or a larger one than {0} bytes")]
    TooLarge(u64),
}

impl AskError {
    /// Whether no server listens at the address.
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Silent(error) if error.kind() == io::ErrorKind::ConnectionRefused)
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The content.
    pub body: Vec<u8>,
}

/// Asks once and reads only the status.
///
/// # Errors
/// When there is no answer until `end`.
pub fn status(target: &Endpoint, end: Instant) -> Result<u16, AskError> {
    Ok(Call::begin(target, end)?.head()?.status)
}

/// Asks once; the status, and if it is not 2xx, what a short text behind it says in its first line.
///
/// # Errors
/// When there is no answer until `end`. Without its text it is one all the same.
pub fn status_and_reason(
    target: &Endpoint,
    end: Instant,
) -> Result<(u16, Option<String>), AskError> {
    let mut call = Call::begin(target, end)?;
    let head = call.head()?;
    if matches!(head.status, 200..=299) {
        return Ok((head.status, None));
    }
    let reason = call.content(&head, REASON_BYTES_MAX).ok();
    let reason = reason.map(|content| first_line(&content)).filter(|reason| !reason.is_empty());
    Ok((head.status, reason))
}

/// The first line of a content, for a message.
pub fn first_line(content: &[u8]) -> String {
    let text = String::from_utf8_lossy(content);
    text.lines().next().unwrap_or_default().chars().take(LINE_CHARS_MAX).collect()
}

/// Asks once; the whole answer, with a content of at most `body_max` bytes.
///
/// # Errors
/// When there is no such answer until `end`.
pub fn get(target: &Endpoint, end: Instant, body_max: u64) -> Result<Answer, AskError> {
    let mut call = Call::begin(target, end)?;
    let head = call.head()?;
    let body = call.content(&head, body_max)?;
    Ok(Answer { status: head.status, body })
}

/// A request that was sent.
struct Call {
    stream: TcpStream,
    end: Instant,
    /// Received bytes that are not used yet.
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

    /// Reads the head of the final response. It stays in `bytes`, before what follows.
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

    /// Reads the content of the response with this head.
    fn content(&mut self, head: &Response, bytes_max: u64) -> Result<Vec<u8>, AskError> {
        let length = head.body.content_length().filter(|length| *length <= bytes_max);
        let length = length.ok_or(AskError::TooLarge(bytes_max))?;
        let mut body = self.bytes.split_off(head.head_bytes);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        while body.len() < length {
            self.read_into(&mut body)?;
        }
        body.truncate(length);
        Ok(body)
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
            // Like a signal (signal(7)), a completion of a ring of this thread interrupts a read with a time-out;
            // `doctor` has built a ring before it asks.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The error of a time-out, but with a clearer message.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            result => return result,
        }
    }
}

/// The time that is left until `end`, or an error.
fn left(end: Instant) -> io::Result<Duration> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}
