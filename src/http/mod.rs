//! The wire format of HTTP/1.x, pure: bytes in, value out; value in, bytes out.
//!
//! Nothing here does I/O, reads a clock or knows a socket. A peer's bytes are judged by the rules of RFC 9110 and RFC
//! 9112 in [`request`], [`response`] and [`body`]; what tallyring sends is rendered by monoio-http's encoder in
//! [`render`].

pub mod body;
mod head;
pub mod hosts;
#[cfg(test)]
mod properties;
pub mod render;
pub mod request;
pub mod response;
mod target;
pub mod trace_context;

/// Why a peer's message is not served: the status that says so and one line that says why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {reason}")]
pub struct Refusal {
    /// The status code of the answer, 4xx or 5xx.
    pub status: u16,
    /// What was wrong, in one line for the person at the other end.
    pub reason: &'static str,
}

impl Refusal {
    /// A message that breaks the grammar or its framing rules.
    pub const fn bad(reason: &'static str) -> Self {
        Self { status: 400, reason }
    }

    /// A message refused with another status than 400.
    pub const fn new(status: u16, reason: &'static str) -> Self {
        Self { status, reason }
    }

    /// The content of its answer, which is left out for a `HEAD`.
    pub(crate) fn content(&self) -> String {
        format!("{}\n", self.reason)
    }

    /// How many bytes of it are sent.
    pub(crate) const fn content_bytes(&self, head_only: bool) -> usize {
        if head_only { 0 } else { self.reason.len() + 1 }
    }
}

/// The protocol versions that are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0: connections close unless both sides ask for keep-alive.
    Http10,
    /// HTTP/1.1: connections stay open unless one side asks to close.
    Http11,
}

/// The most header fields a head may have, whatever the configuration says: the parser keeps them
/// on its stack.
pub const HEAD_FIELDS_CAP: usize = 128;

/// How large a message head may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLimits {
    /// The whole head, from the first byte of its first line to the end of its empty line.
    pub head_bytes_max: usize,
    /// Header fields; at most [`HEAD_FIELDS_CAP`].
    pub head_fields_max: usize,
    /// The request target. Responses have none.
    pub target_bytes_max: usize,
}

/// RFC 9110 section 5.6.2: the characters of a token.
pub(crate) const fn is_token_byte(byte: u8) -> bool {
    TOKEN_BYTES[byte as usize]
}

/// A table, since names are long and each of their bytes is looked up.
const TOKEN_BYTES: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < b'\x7f' {
        table[byte as usize] = byte.is_ascii_alphanumeric()
            || matches!(byte, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~');
        byte += 1;
    }
    table
};

/// The elements of a comma-separated list (RFC 9110 section 5.6.1), without surrounding whitespace; empty elements
/// are included, since some fields refuse them.
pub(crate) fn list_elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii)
}

/// The options in `Connection` fields that decide whether a connection persists.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ConnectionOptions {
    close: bool,
    keep_alive: bool,
}

impl ConnectionOptions {
    /// Those of a message without the field.
    pub(crate) const NONE: Self = Self { close: false, keep_alive: false };

    /// Notes the value of a field.
    #[inline]
    pub(crate) fn note(&mut self, value: &[u8]) {
        for option in list_elements(value) {
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    /// Whether the connection may carry another request: RFC 9112 section 9.3, in its order.
    pub(crate) const fn is_persistent(self, version: Version) -> bool {
        match version {
            _ if self.close => false,
            Version::Http11 => true,
            Version::Http10 => self.keep_alive,
        }
    }
}

/// RFC 9110 section 8.6: `Content-Length = 1*DIGIT`. A list, a sign, a space or more than 19 digits
/// is refused; leading zeros too, since others read them as octal.
pub(crate) fn content_length(value: &[u8]) -> Option<u64> {
    let digits = matches!(value.len(), 1..=19) && value.iter().all(u8::is_ascii_digit);
    if !digits || (value.len() > 1 && value[0] == b'0') {
        return None;
    }
    Some(value.iter().fold(0, |length, digit| length * 10 + u64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_length(value: &str, expected: Option<u64>) {
        assert_eq!(content_length(value.as_bytes()), expected, "{value:?}");
    }

    #[test]
    fn a_content_length_is_digits_and_nothing_else() {
        check_length("0", Some(0));
        check_length("65536", Some(65536));
        check_length("9999999999999999999", Some(9_999_999_999_999_999_999));
        for refused in ["", "00", "005", "+5", "-1", "-0", " 5", "5 ", "5,5", "0x5", "1_0", "5.0"] {
            check_length(refused, None);
        }
        check_length("10000000000000000000", None);
    }

    #[test]
    fn a_token_holds_no_delimiter() {
        let tokens: Vec<u8> = (0..=255u8).filter(|&byte| is_token_byte(byte)).collect();
        let mut expected: Vec<u8> = b"!#$%&'*+-.^_`|~".to_vec();
        expected.extend(b'0'..=b'9');
        expected.extend(b'A'..=b'Z');
        expected.extend(b'a'..=b'z');
        expected.sort_unstable();
        assert_eq!(tokens, expected);
    }
}
