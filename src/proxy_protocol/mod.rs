//! The PROXY protocol: the header in which a load balancer says, before the first request, for whom it has opened a
//! connection. Pure: bytes in, value out. Knows nothing of HTTP and of sockets.
//!
//! The rules are those of HAProxy's `proxy-protocol.txt`, versions 1 (a line of text) and 2 (binary). Whether a
//! connection has a header is a setting and never guessed (its section 2).

mod crc32c;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use self::crc32c::Crc32c;

/// Section 2.1: the longest line of version 1, with its CRLF.
const LINE_BYTES_MAX: usize = 107;
/// What every header of version 1 begins with.
const LINE_BEGIN: &[u8] = b"PROXY ";
/// Section 2.2: what every header of version 2 begins with.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// A header of version 2 without what its length counts: signature, version and command, family, length.
const FIXED_BYTES: usize = 16;
/// The addresses of two UNIX sockets, which are the longest.
const UNIX_BYTES: usize = 2 * 108;
/// What may follow the addresses. All that a header holds fits 536 bytes, says section 2, but a client's certificate
/// makes some longer.
const EXTENSIONS_BYTES_MAX: usize = 1024;
/// No header is longer.
pub const HEADER_BYTES_MAX: usize = FIXED_BYTES + UNIX_BYTES + EXTENSIONS_BYTES_MAX;

// The message about it names the number.
const _: () = assert!(LINE_BYTES_MAX < HEADER_BYTES_MAX && HEADER_BYTES_MAX == 1256);

/// A header that is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Its length; the first request follows.
    pub bytes: usize,
    /// The ends of the connection that was relayed. `None` where the header does not tell (`LOCAL`, `UNKNOWN`, a
    /// family without IP addresses): then the ends of this connection count, as without a header.
    pub relayed: Option<Relayed>,
    /// Whether the proxy has opened the connection for itself (`LOCAL`). If not, and it is not told for whom, what is
    /// sent is a client's all the same.
    pub is_local: bool,
}

/// The ends of the connection that a proxy has accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relayed {
    /// The client.
    pub source: SocketAddr,
    /// Where the client has connected to.
    pub destination: SocketAddr,
}

/// Bytes that no header begins with, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

/// Reads a header from the start of `bytes`, which grow from call to call. `None` while it is not whole.
///
/// # Errors
/// As soon as the bytes cannot become a header: the same however they were split.
pub fn parse(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    if begins(bytes, SIGNATURE) {
        parse_binary(bytes)
    } else if begins(bytes, LINE_BEGIN) {
        parse_line(bytes)
    } else {
        Err(Malformed("there is no PROXY header"))
    }
}

/// Whether `bytes` begin with `prefix`, or may once there are more of them.
fn begins(bytes: &[u8], prefix: &[u8]) -> bool {
    let known = bytes.len().min(prefix.len());
    bytes[..known] == prefix[..known]
}

/// Section 2.1. What is in the line is read once its end is there.
fn parse_line(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    let line = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
    let Some(end) = memchr::memchr(b'\n', line) else {
        return match line.len() {
            LINE_BYTES_MAX => Err(Malformed("the line is longer than 107 bytes")),
            _ => Ok(None),
        };
    };
    let text = line[..end].strip_suffix(b"\r").and_then(|text| str::from_utf8(text).ok());
    // LINE_BEGIN has no line end, so what is there is longer.
    let text = text.filter(|text| text.is_ascii() && !text.contains('\r'));
    let text = text.ok_or(Malformed("the line is not ASCII with CRLF at its end"))?;
    let (protocol, rest) = match text[LINE_BEGIN.len()..].split_once(' ') {
        Some((protocol, rest)) => (protocol, Some(rest)),
        None => (&text[LINE_BEGIN.len()..], None),
    };
    let relayed = match (protocol, rest) {
        // Whatever follows is ignored.
        ("UNKNOWN", _) => None,
        ("TCP4", Some(rest)) => Some(parse_ends(rest, |text| text.parse().ok().map(IpAddr::V4))?),
        ("TCP6", Some(rest)) => Some(parse_ends(rest, |text| text.parse().ok().map(IpAddr::V6))?),
        _ => return Err(Malformed("the protocol is not TCP4, TCP6 or UNKNOWN")),
    };
    Ok(Some(Header { bytes: end + 1, relayed, is_local: false }))
}

/// Two addresses and two ports, with one space between.
fn parse_ends(text: &str, address: fn(&str) -> Option<IpAddr>) -> Result<Relayed, Malformed> {
    let mut words = text.split(' ');
    let mut next = || words.next().unwrap_or_default();
    let (source, destination) = (address(next()), address(next()));
    let (source_port, destination_port) = (port(next()), port(next()));
    let ends = (source, destination, source_port, destination_port, words.next());
    let (Some(source), Some(destination), Some(source_port), Some(destination_port), None) = ends
    else {
        return Err(Malformed(
            "the line does not have two addresses of its protocol and two ports",
        ));
    };
    Ok(Relayed {
        source: SocketAddr::new(source, source_port),
        destination: SocketAddr::new(destination, destination_port),
    })
}

/// Digits without a sign and without zeros in front.
fn port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let canonical = digits && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| canonical)
}

/// Section 2.2. What a byte says is judged as soon as it is there; addresses and what follows them, once all is.
fn parse_binary(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    let Some(&version_and_command) = bytes.get(SIGNATURE.len()) else { return Ok(None) };
    let is_local = match version_and_command {
        0x20 => true,
        0x21 => false,
        _ => return Err(Malformed("the version is not 2, or the command not LOCAL or PROXY")),
    };
    let Some(&family) = bytes.get(SIGNATURE.len() + 1) else { return Ok(None) };
    let family = match family {
        // The family of a connection that the proxy has made for itself is ignored.
        _ if is_local => Family::Unknown,
        0x00 => Family::Unknown,
        0x11 => Family::TcpIpv4,
        0x21 => Family::TcpIpv6,
        0x12 => Family::Other(2 * (4 + 2)),
        0x22 => Family::Other(2 * (16 + 2)),
        0x31 | 0x32 => Family::Other(UNIX_BYTES),
        _ => return Err(Malformed("the family or the protocol is not known in version 2")),
    };
    let Some(&[high, low]) = bytes.get(SIGNATURE.len() + 2..FIXED_BYTES) else { return Ok(None) };
    let length = FIXED_BYTES + usize::from(u16::from_be_bytes([high, low]));
    if length > HEADER_BYTES_MAX {
        return Err(Malformed("the header is longer than 1256 bytes"));
    }
    if length - FIXED_BYTES < family.address_bytes() {
        return Err(Malformed("the header is too short for its addresses"));
    }
    let Some(header) = bytes.get(..length) else { return Ok(None) };
    if family != Family::Unknown {
        check_extensions(header, FIXED_BYTES + family.address_bytes())?;
    }
    let relayed = family.relayed(&header[FIXED_BYTES..]);
    Ok(Some(Header { bytes: length, relayed, is_local }))
}

/// What addresses a header of version 2 has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    /// None, or nobody knows how many bytes they are: all of it is skipped.
    Unknown,
    TcpIpv4,
    TcpIpv6,
    /// Of so many bytes, and not those of a TCP connection.
    Other(usize),
}

impl Family {
    fn address_bytes(self) -> usize {
        match self {
            Self::Unknown => 0,
            Self::TcpIpv4 => 2 * (4 + 2),
            Self::TcpIpv6 => 2 * (16 + 2),
            Self::Other(bytes) => bytes,
        }
    }

    /// Both addresses, then both ports; `bytes` are long enough.
    fn relayed(self, bytes: &[u8]) -> Option<Relayed> {
        let ends = match self {
            Self::TcpIpv4 => {
                let (source, rest) = bytes.split_first_chunk::<4>()?;
                let (destination, ports) = rest.split_first_chunk::<4>()?;
                (Ipv4Addr::from(*source).into(), Ipv4Addr::from(*destination).into(), ports)
            }
            Self::TcpIpv6 => {
                let (source, rest) = bytes.split_first_chunk::<16>()?;
                let (destination, ports) = rest.split_first_chunk::<16>()?;
                (Ipv6Addr::from(*source).into(), Ipv6Addr::from(*destination).into(), ports)
            }
            Self::Unknown | Self::Other(_) => return None,
        };
        let (source, destination, ports): (IpAddr, IpAddr, &[u8]) = ends;
        let &[high, low, destination_high, destination_low] = ports.first_chunk::<4>()?;
        let port = u16::from_be_bytes([high, low]);
        let destination_port = u16::from_be_bytes([destination_high, destination_low]);
        Some(Relayed {
            source: SocketAddr::new(source, port),
            destination: SocketAddr::new(destination, destination_port),
        })
    }
}

/// The type of the extension that holds a checksum of the whole header.
const CRC32C: u8 = 0x03;

/// Walks over the extensions (type, length, value) from `at` to the end of `header`. Only a checksum is looked at.
fn check_extensions(header: &[u8], mut at: usize) -> Result<(), Malformed> {
    while at < header.len() {
        let Some(&[kind, high, low]) = header.get(at..at + 3) else {
            return Err(Malformed("an extension is cut short"));
        };
        let value = at + 3..at + 3 + usize::from(u16::from_be_bytes([high, low]));
        let Some(bytes) = header.get(value.clone()) else {
            return Err(Malformed("an extension is longer than the header"));
        };
        if kind == CRC32C {
            // Section 2.2.3: computed with zeros in its own place.
            let mut checksum = Crc32c::default();
            checksum.add(&header[..value.start]);
            checksum.add(&[0; 4]);
            checksum.add(&header[value.end..]);
            if bytes != checksum.value().to_be_bytes() {
                return Err(Malformed("the checksum is wrong"));
            }
        }
        at = value.end;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
