//! The first line of a request: method, target and version, before any of them is given a meaning.

use super::{HeadLimits, METHOD_BYTES_MAX, Refusal, TARGET_TOO_LONG, Version, is_token_byte};

/// A request line that obeys the grammar.
pub(super) struct RequestLine<'a> {
    pub(super) method: &'a str,
    pub(super) target: &'a str,
    pub(super) version: Version,
}

impl<'a> RequestLine<'a> {
    /// RFC 9112 section 3: `request-line = method SP request-target SP HTTP-version`. `line` comes
    /// without its line end.
    pub(super) fn parse(line: &'a [u8], limits: &HeadLimits) -> Result<Self, Refusal> {
        let mut parts = line.split(|&byte| byte == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Refusal::bad("a request line is a method, a target and a version"));
        };
        if method.len() > METHOD_BYTES_MAX {
            return Err(Refusal::bad("the method is too long"));
        }
        let (Ok(method), false, true) = (
            str::from_utf8(method),
            method.is_empty(),
            method.iter().all(|&byte| is_token_byte(byte)),
        ) else {
            return Err(Refusal::bad("the method is not a token"));
        };
        if target.len() > limits.target_bytes_max {
            return Err(TARGET_TOO_LONG);
        }
        let target = str::from_utf8(target).unwrap_or_default();
        judge_target(target.as_bytes())?;
        Ok(Self { method, target, version: judge_version(version)? })
    }
}

/// RFC 3986 section 2: a URI is made of visible ASCII characters, and not of those that set it apart
/// from what surrounds it. (Some others that it excludes are sent by browsers all the same.)
pub(super) fn judge_target(target: &[u8]) -> Result<(), Refusal> {
    let is_uri_byte = |byte: &u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'<' | b'>');
    if target.is_empty() || !target.iter().all(is_uri_byte) {
        return Err(Refusal::bad("the request target is not a URI"));
    }
    Ok(())
}

/// RFC 9112 section 2.3: `HTTP-version = "HTTP" "/" DIGIT "." DIGIT`, case-sensitive.
fn judge_version(version: &[u8]) -> Result<Version, Refusal> {
    match version {
        b"HTTP/1.0" => Ok(Version::Http10),
        // RFC 9110 section 2.5: a higher minor version is read as the highest that is known here.
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'1'..=b'9'] => Ok(Version::Http11),
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => {
            // RFC 9110 section 15.6.6: the major version is not supported.
            Err(Refusal::new(505, "only HTTP/1.0 and HTTP/1.1 are spoken here"))
        }
        _ => Err(Refusal::bad("the HTTP version is malformed")),
    }
}
