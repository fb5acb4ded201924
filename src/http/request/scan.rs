//! A request head that is not whole yet: a fault is reported as soon as its bytes show it.
//!
//! Each byte is checked once, in order, however the peer splits them. So a head with several faults is refused for
//! the first of them, whether it came whole or a byte at a time.
//!
//! ```text
//! EmptyLine -CR-> EmptyLineFeed -LF-> EmptyLine
//! EmptyLine ----> Method -SP-> Target -SP-> Version -CR-> RequestLineFeed -LF-> LineStart
//! LineStart ----> Name -":"-> Value -CR-> ValueLineFeed -LF-> LineStart
//! LineStart -CR-> EndLineFeed -LF-> Whole
//! ```

use memchr::memmem;

use super::{
    HEAD_FIELDS_CAP, HEAD_TOO_LARGE, HeadLimits, METHOD_BYTES_MAX, Refusal, TARGET_TOO_LONG,
    TOO_MANY_FIELDS, WITHOUT_CRLF,
    fields::{Fields, Seen},
    is_token_byte,
    line::{NO_REQUEST_LINE, RequestLine, is_version_byte},
    target::{NO_URI, is_target_byte},
};

/// The end of the last line, and the empty line behind it.
const END: &[u8] = b"\r\n\r\n";

/// How far a growing head was checked, and what of it still matters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeadScan {
    /// Bytes checked already. Heads are far smaller than its maximum; small, since each client has one.
    judged: u32,
    /// Where the line being checked began.
    line_start: u32,
    /// Where its target, version or value began, once that has begun.
    part_start: u32,
    /// Fields that were whole.
    fields: u8,
    seen: Seen,
    state: State,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    EmptyLine,
    EmptyLineFeed,
    Method,
    Target,
    Version,
    RequestLineFeed,
    LineStart,
    Name,
    Value,
    ValueLineFeed,
    EndLineFeed,
    Whole,
}

impl HeadScan {
    /// Whether only empty lines were received.
    pub(super) const fn is_before_request(&self) -> bool {
        matches!(self.state, State::EmptyLine | State::EmptyLineFeed)
    }

    /// The length of the head, with empty lines before it, once that is known.
    pub(super) fn end(&self) -> Option<usize> {
        (self.state == State::Whole).then_some(self.judged as usize)
    }

    /// Whether it is worth while to parse `bytes` as a head that is whole and right, with no empty line before it.
    pub(super) fn may_be_whole(&self, bytes: &[u8]) -> bool {
        self.has_doubled(bytes)
            && bytes.first().is_some_and(|&byte| is_token_byte(byte))
            && (bytes.ends_with(END) || memmem::find(bytes, END).is_some())
    }

    /// Whether at least as much is new in `bytes` as was checked: so all bytes of which that is true, call by call, are
    /// at most twice as many as came.
    pub(super) fn has_doubled(&self, bytes: &[u8]) -> bool {
        bytes.len() / 2 >= self.judged as usize
    }

    /// Checks what is new in `bytes`, to the end of the head at most.
    pub(super) fn judge(&mut self, bytes: &[u8], limits: &HeadLimits) -> Result<(), Refusal> {
        let mut at = self.judged as usize;
        while at < bytes.len() && self.state != State::Whole {
            at = match self.state {
                State::Method => self.judge_method(bytes, at)?,
                State::Target => self.judge_target(bytes, at, limits)?,
                State::Version => self.judge_version(bytes, at)?,
                State::Name => self.judge_name(bytes, at)?,
                State::Value => self.judge_value(bytes, at)?,
                _ => self.judge_line_end(bytes, at, limits)?,
            };
        }
        self.judged = place(at)?;
        Ok(())
    }

    /// Checks the byte at `at`, which is between two lines; returns where to go on.
    fn judge_line_end(
        &mut self,
        bytes: &[u8],
        at: usize,
        limits: &HeadLimits,
    ) -> Result<usize, Refusal> {
        let next = at + 1;
        match (self.state, bytes[at]) {
            (State::EmptyLine, b'\r') => self.state = State::EmptyLineFeed,
            (State::EmptyLineFeed, b'\n') => self.begin_line(State::EmptyLine, next)?,
            (State::EmptyLine, byte) if is_token_byte(byte) => {
                self.state = State::Method;
                return Ok(at);
            }
            (State::EmptyLine | State::EmptyLineFeed, _) => {
                return Err(Refusal::bad("a request must begin with a method"));
            }
            (State::RequestLineFeed, b'\n') => {
                self.judge_request_line(&bytes[..at - 1])?;
                self.begin_line(State::LineStart, next)?;
            }
            (State::ValueLineFeed, b'\n') => {
                self.judge_field(bytes, at - 1, limits)?;
                self.begin_line(State::LineStart, next)?;
            }
            (State::LineStart, b'\r') => self.state = State::EndLineFeed,
            (State::EndLineFeed, b'\n') => self.state = State::Whole,
            (State::LineStart, byte) if is_token_byte(byte) => {
                self.state = State::Name;
                return Ok(at);
            }
            (State::LineStart, byte) if byte != b'\n' => return Err(NAME_IS_NO_TOKEN),
            _ => return Err(WITHOUT_CRLF),
        }
        Ok(next)
    }

    fn judge_method(&mut self, bytes: &[u8], at: usize) -> Result<usize, Refusal> {
        let end = run(bytes, at, is_token_byte);
        if end - self.line_start as usize > METHOD_BYTES_MAX {
            return Err(Refusal::bad("the method is too long"));
        }
        match bytes.get(end) {
            None => Ok(end),
            Some(b' ') => self.begin_part(State::Target, end + 1),
            Some(b'\r' | b'\n') => Err(NO_REQUEST_LINE),
            Some(_) => Err(Refusal::bad("the method is not a token")),
        }
    }

    fn judge_target(
        &mut self,
        bytes: &[u8],
        at: usize,
        limits: &HeadLimits,
    ) -> Result<usize, Refusal> {
        let end = run(bytes, at, is_target_byte);
        let target_bytes = end - self.part_start as usize;
        if target_bytes > limits.target_bytes_max {
            return Err(TARGET_TOO_LONG);
        }
        match bytes.get(end) {
            None => Ok(end),
            Some(b' ') if target_bytes > 0 => self.begin_part(State::Version, end + 1),
            Some(b' ' | b'\r' | b'\n') => Err(NO_REQUEST_LINE),
            Some(_) => Err(NO_URI),
        }
    }

    fn judge_version(&mut self, bytes: &[u8], at: usize) -> Result<usize, Refusal> {
        let version_bytes = at - self.part_start as usize;
        match bytes[at] {
            b'\r' if version_bytes == b"HTTP/1.1".len() => self.state = State::RequestLineFeed,
            byte if is_version_byte(version_bytes, byte) => {}
            _ => return Err(Refusal::bad("the HTTP version is malformed")),
        }
        Ok(at + 1)
    }

    fn judge_name(&mut self, bytes: &[u8], at: usize) -> Result<usize, Refusal> {
        let end = run(bytes, at, is_token_byte);
        match bytes.get(end) {
            None => Ok(end),
            Some(b':') => self.begin_part(State::Value, end + 1),
            Some(_) => Err(NAME_IS_NO_TOKEN),
        }
    }

    /// RFC 9110 section 5.5: `field-vchar = VCHAR / obs-text`, and spaces and tabs between them.
    fn judge_value(&mut self, bytes: &[u8], at: usize) -> Result<usize, Refusal> {
        let Some(end) = first_control(&bytes[at..]).map(|length| at + length) else {
            return Ok(bytes.len());
        };
        match bytes[end] {
            b'\r' => self.state = State::ValueLineFeed,
            b'\n' => return Err(WITHOUT_CRLF),
            _ => return Err(Refusal::bad("a field value holds a control character")),
        }
        Ok(end + 1)
    }

    /// Checks the meaning of a request line that is whole and obeys the grammar.
    fn judge_request_line(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let line = RequestLine::split(&bytes[self.line_start as usize..])?;
        line.meaning()?;
        self.seen = Seen::after(line.version);
        Ok(())
    }

    /// Checks the meaning of a field whose line is whole; `end` is the end of its value.
    fn judge_field(
        &mut self,
        bytes: &[u8],
        end: usize,
        limits: &HeadLimits,
    ) -> Result<(), Refusal> {
        // There can be more already, if the limit was lowered.
        if usize::from(self.fields) >= limits.head_fields_max.min(HEAD_FIELDS_CAP) {
            return Err(TOO_MANY_FIELDS);
        }
        self.fields += 1;
        let (line_start, part_start) = (self.line_start as usize, self.part_start as usize);
        let name = &bytes[line_start..part_start - 1];
        let mut fields = Fields::after(self.seen);
        fields.note(name, bytes[part_start..end].trim_ascii())?;
        self.seen = fields.seen;
        Ok(())
    }

    fn begin_line(&mut self, state: State, at: usize) -> Result<(), Refusal> {
        self.line_start = place(at)?;
        self.state = state;
        Ok(())
    }

    fn begin_part(&mut self, state: State, at: usize) -> Result<usize, Refusal> {
        self.part_start = place(at)?;
        self.state = state;
        Ok(at)
    }
}

/// Where the run of bytes from `at` on ends that satisfy `is_such`.
fn run(bytes: &[u8], at: usize, is_such: impl Fn(u8) -> bool) -> usize {
    bytes[at..].iter().position(|&byte| !is_such(byte)).map_or(bytes.len(), |length| at + length)
}

/// The place of the first control character that is no tab.
fn first_control(bytes: &[u8]) -> Option<usize> {
    let is_control = |byte: u8| (byte < b' ' && byte != b'\t') | (byte == 0x7f);
    // Whole chunks without an early exit, so that the compiler can use vector instructions.
    let (chunks, _) = bytes.as_chunks::<16>();
    let is_clear =
        |chunk: &&[u8; 16]| !chunk.iter().fold(false, |found, &byte| found | is_control(byte));
    let clear = 16 * chunks.iter().take_while(is_clear).count();
    let length = bytes[clear..].iter().position(|&byte| is_control(byte))?;
    Some(clear + length)
}

fn place(at: usize) -> Result<u32, Refusal> {
    u32::try_from(at).map_err(|_| HEAD_TOO_LARGE)
}

const NAME_IS_NO_TOKEN: Refusal = Refusal::bad("a field name is not a token");
