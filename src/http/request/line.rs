//! The first line of a request: method, target and version.

use super::{
    Method, Refusal, Version,
    target::{self, Target},
};

pub(super) const NO_REQUEST_LINE: Refusal =
    Refusal::bad("a request line is a method, a target and a version");

/// A request line that obeys the grammar.
pub(super) struct RequestLine<'a> {
    pub(super) method: &'a [u8],
    pub(super) target: &'a str,
    pub(super) version: Version,
}

impl<'a> RequestLine<'a> {
    /// RFC 9112 section 3: `request-line = method SP request-target SP HTTP-version`. `line` has no line end, and its
    /// characters were checked.
    pub(super) fn split(line: &'a [u8]) -> Result<Self, Refusal> {
        let mut parts = line.splitn(3, |&byte| byte == b' ');
        let (Some(method), Some(target), Some(version)) =
            (parts.next(), parts.next(), parts.next())
        else {
            return Err(NO_REQUEST_LINE);
        };
        let target = str::from_utf8(target).map_err(|_| target::NO_URI)?;
        Ok(Self { method, target, version: judge_version(version)? })
    }

    /// What it asks; `None` for an unknown method, whose target is not checked: its form depends on the method.
    pub(super) fn meaning(&self) -> Result<Option<(Method, Target<'a>)>, Refusal> {
        match Method::known(self.method) {
            Some(method) => Ok(Some((method, Target::parse(self.target, method)?))),
            None => Ok(None),
        }
    }
}

/// RFC 9112 section 2.3: `HTTP-version = "HTTP" "/" DIGIT "." DIGIT`, case-sensitive. Whether `byte` may
/// stand at `place` in it.
pub(super) const fn is_version_byte(place: usize, byte: u8) -> bool {
    match place {
        0 => byte == b'H',
        1 | 2 => byte == b'T',
        3 => byte == b'P',
        4 => byte == b'/',
        5 | 7 => byte.is_ascii_digit(),
        6 => byte == b'.',
        _ => false,
    }
}

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
