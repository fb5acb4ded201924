//! The fields that decide how a request is read; all others are checked for syntax and skipped.

use super::{
    BODY_TOO_LARGE, ConnectionOptions, Refusal, Version, body::BodyReader, content_length,
    is_token_byte, list_elements, target::is_host,
};

/// What came in earlier lines, as far as it makes a later one wrong.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seen(u8);

impl Seen {
    const HTTP_1_0: u8 = 1;
    const HOST: u8 = 1 << 1;
    const CONTENT_TYPE: u8 = 1 << 2;
    const CONTENT_LENGTH: u8 = 1 << 3;
    const TRANSFER_ENCODING: u8 = 1 << 4;

    /// A request line of this version.
    pub(super) const fn after(version: Version) -> Self {
        Self(match version {
            Version::Http10 => Self::HTTP_1_0,
            Version::Http11 => 0,
        })
    }

    const fn has(self, what: u8) -> bool {
        self.0 & what != 0
    }

    /// Notes a field that must not be repeated.
    fn once(&mut self, what: u8, reason: &'static str) -> Result<(), Refusal> {
        if self.has(what) {
            return Err(Refusal::bad(reason));
        }
        self.0 |= what;
        Ok(())
    }
}

/// What the fields of a request say.
pub(super) struct Fields<'a> {
    pub(super) seen: Seen,
    pub(super) host: Option<&'a [u8]>,
    pub(super) has_origin: bool,
    pub(super) accept: Option<&'a [u8]>,
    pub(super) connection: ConnectionOptions,
    pub(super) expects_continue: bool,
    content_length: u64,
    /// A transfer coding that is not understood.
    is_coding_unknown: bool,
}

impl<'a> Fields<'a> {
    /// Fields that come after `seen`.
    pub(super) const fn after(seen: Seen) -> Self {
        Self {
            seen,
            host: None,
            has_origin: false,
            accept: None,
            connection: ConnectionOptions::NONE,
            expects_continue: false,
            content_length: 0,
            is_coding_unknown: false,
        }
    }

    /// Notes a field; refuses it if it is wrong by itself or after the earlier ones.
    // Inlined, since most fields are none of these, and a call for each costs more than the match.
    #[inline(always)]
    pub(super) fn note(&mut self, name: &[u8], value: &'a [u8]) -> Result<(), Refusal> {
        // By length first, which tells most of them apart.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => self.note_host(value)?,
            // The one of this length that most clients send.
            6 if name.eq_ignore_ascii_case(b"accept") => self.accept = self.accept.or(Some(value)),
            6 if name.eq_ignore_ascii_case(b"expect") => {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Refusal::new(417, "the only expectation met here is 100-continue"));
                }
                self.expects_continue = true;
            }
            6 if name.eq_ignore_ascii_case(b"origin") => self.has_origin = true,
            10 if name.eq_ignore_ascii_case(b"connection") => self.connection.note(value),
            12 if name.eq_ignore_ascii_case(b"content-type") => {
                let repeated = "a request must not have several Content-Type fields";
                self.seen.once(Seen::CONTENT_TYPE, repeated)?;
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => self.note_length(value)?,
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => self.note_codings(value)?,
            _ => {}
        }
        Ok(())
    }

    /// RFC 9112 section 3.2: several Host fields, or one that is not valid, are 400.
    fn note_host(&mut self, value: &'a [u8]) -> Result<(), Refusal> {
        self.seen.once(Seen::HOST, "a request must have one Host field, not several")?;
        if !is_host(value) {
            return Err(Refusal::bad("the Host field is not a host with an optional port"));
        }
        self.host = Some(value);
        Ok(())
    }

    fn note_length(&mut self, value: &[u8]) -> Result<(), Refusal> {
        self.seen.once(Seen::CONTENT_LENGTH, "Content-Length must not be repeated")?;
        if self.seen.has(Seen::TRANSFER_ENCODING) {
            return Err(LENGTH_AND_CODING);
        }
        let malformed = Refusal::bad("Content-Length must be one decimal number");
        self.content_length = content_length(value).ok_or(malformed)?;
        Ok(())
    }

    fn note_codings(&mut self, value: &[u8]) -> Result<(), Refusal> {
        self.seen.once(Seen::TRANSFER_ENCODING, "Transfer-Encoding must not be repeated")?;
        if self.seen.has(Seen::CONTENT_LENGTH) {
            return Err(LENGTH_AND_CODING);
        }
        // RFC 9112 section 6.1: faulty framing, since HTTP/1.0 has no transfer codings.
        if self.seen.has(Seen::HTTP_1_0) {
            return Err(Refusal::bad("HTTP/1.0 has no Transfer-Encoding"));
        }
        if !value.eq_ignore_ascii_case(b"chunked") {
            judge_codings(value)?;
            self.is_coding_unknown = true;
        }
        Ok(())
    }

    /// RFC 9112 section 3.2: a 1.1 request without a Host is answered with 400.
    pub(super) fn require_host(&self) -> Result<(), Refusal> {
        if self.host.is_none() && !self.seen.has(Seen::HTTP_1_0) {
            return Err(Refusal::bad("an HTTP/1.1 request must have a Host field"));
        }
        Ok(())
    }

    /// RFC 9112 section 6.3: how long the body is.
    pub(super) fn body(&self, content_max: u64) -> Result<BodyReader, Refusal> {
        if self.is_coding_unknown {
            // RFC 9112 section 6.1.
            return Err(Refusal::new(501, "the only transfer coding understood here is chunked"));
        }
        if self.seen.has(Seen::TRANSFER_ENCODING) {
            return Ok(BodyReader::chunked(content_max));
        }
        match self.content_length {
            0 => Ok(BodyReader::EMPTY),
            length if length > content_max => Err(BODY_TOO_LARGE),
            length => Ok(BodyReader::sized(length, content_max)),
        }
    }
}

/// RFC 9112 section 6.1: a server may reject such a request, and ought to treat it as an attempt at smuggling.
const LENGTH_AND_CODING: Refusal =
    Refusal::bad("Content-Length and Transfer-Encoding exclude each other");

/// RFC 9112 section 6.3, point 4: a `chunked` that is repeated or not the last leaves the length unknown,
/// which is 400. Other codings may be well-formed and not understood, which is 501.
fn judge_codings(codings: &[u8]) -> Result<(), Refusal> {
    let mut well_formed = true;
    let mut after_chunked = false;
    for coding in list_elements(codings) {
        well_formed &= !after_chunked;
        well_formed &= !coding.is_empty() && coding.iter().all(|&byte| is_token_byte(byte));
        after_chunked = coding.eq_ignore_ascii_case(b"chunked");
    }
    if !well_formed {
        return Err(Refusal::bad("Transfer-Encoding must be chunked, once and last"));
    }
    Ok(())
}
