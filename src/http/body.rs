//! The body of a message: how many of the received bytes belong to it, and which of these are its content.
//!
//! Knows the framing of RFC 9112 section 6 and 7; keeps no content.

use super::is_token_byte;

/// Bytes that chunk extensions and trailer fields of one message may have in all.
pub const CHUNK_OVERHEAD_MAX: u32 = 8 * 1024;
/// Hexadecimal digits of a chunk size: as many as 64 bits hold.
const CHUNK_SIZE_DIGITS_MAX: u8 = 16;
/// Long enough for every field name in [`TRAILERS_REFUSED`].
const TRAILER_NAME_KEPT: usize = 18;

/// RFC 9110 section 6.5.1: fields that describe framing, routing, authentication or the content
/// itself must not come after it. A recipient that merged them would read another message.
const TRAILERS_REFUSED: [&[u8]; 11] = [
    b"authorization",
    b"connection",
    b"content-encoding",
    b"content-length",
    b"content-range",
    b"content-type",
    b"cookie",
    b"host",
    b"te",
    b"trailer",
    b"transfer-encoding",
];

/// Why a body cannot be read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// More content than the limit. It is not read, so the next message cannot be found.
    #[error("the body is larger than the limit")]
    TooLarge,
    /// The chunked coding is broken.
    #[error("{0}")]
    Malformed(&'static str),
}

/// How far the received bytes advanced a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the input that belong to the body.
    pub consumed: usize,
    /// Whether the body is whole. What follows is the next message.
    pub done: bool,
}

/// A body being read. Feed it bytes in order with [`advance`](Self::advance) until it is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BodyReader {
    framing: Framing,
    /// Content bytes that may still come before the limit.
    content_left: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Framing {
    Sized { left: u64 },
    Chunked(Chunked),
    ToClose,
}

impl BodyReader {
    /// A message without a body.
    pub const EMPTY: Self = Self { framing: Framing::Sized { left: 0 }, content_left: 0 };

    /// `Content-Length: length`.
    pub const fn sized(length: u64, content_max: u64) -> Self {
        Self { framing: Framing::Sized { left: length }, content_left: content_max }
    }

    /// `Transfer-Encoding: chunked`.
    pub const fn chunked(content_max: u64) -> Self {
        Self { framing: Framing::Chunked(Chunked::new()), content_left: content_max }
    }

    /// A response body that ends where the connection does (RFC 9112 section 6.3, point 8).
    pub const fn to_close(content_max: u64) -> Self {
        Self { framing: Framing::ToClose, content_left: content_max }
    }

    /// Whether there is nothing to read.
    pub const fn is_empty(&self) -> bool {
        matches!(self.framing, Framing::Sized { left: 0 })
    }

    /// How much is left, if the length is known.
    pub const fn content_length(&self) -> Option<u64> {
        match self.framing {
            Framing::Sized { left } => Some(left),
            _ => None,
        }
    }

    /// Whether the body ends where the connection does.
    pub const fn ends_with_connection(&self) -> bool {
        matches!(self.framing, Framing::ToClose)
    }

    /// Takes what belongs to the body from the start of `bytes`, which may be empty.
    ///
    /// # Errors
    /// When the content exceeds the limit, as soon as its length or the size of a chunk says so, or when the
    /// chunked coding is broken. Neither the reader nor the connection can be used after that.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<Progress, BodyError> {
        self.advance_with(bytes, |_| {})
    }

    /// The same; `take` is given the content in pieces, in their order.
    ///
    /// # Errors
    /// Those of [`advance`](Self::advance); what was given until then is not the whole content.
    pub fn advance_with(
        &mut self,
        bytes: &[u8],
        mut take: impl FnMut(&[u8]),
    ) -> Result<Progress, BodyError> {
        match &mut self.framing {
            Framing::Sized { left } if *left > self.content_left => Err(BodyError::TooLarge),
            Framing::Sized { left } => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= taken as u64;
                let done = *left == 0;
                spend(&mut self.content_left, taken)?;
                take(&bytes[..taken]);
                Ok(Progress { consumed: taken, done })
            }
            Framing::ToClose => {
                spend(&mut self.content_left, bytes.len())?;
                take(bytes);
                Ok(Progress { consumed: bytes.len(), done: false })
            }
            Framing::Chunked(chunked) => chunked.advance(bytes, &mut self.content_left, take),
        }
    }
}

fn spend(content_left: &mut u64, bytes: usize) -> Result<(), BodyError> {
    *content_left = content_left.checked_sub(bytes as u64).ok_or(BodyError::TooLarge)?;
    Ok(())
}

/// The chunked coding of RFC 9112 section 7.1, a byte at a time except for content.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Chunked {
    state: State,
    /// The size of the current chunk, then what is left of it.
    size: u64,
    size_digits: u8,
    /// Extension and trailer bytes that may still come.
    overhead_left: u32,
    trailer_name: [u8; TRAILER_NAME_KEPT],
    trailer_name_bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Size,
    BeforeExtension,
    ExtensionNameStart,
    ExtensionName,
    AfterExtensionName,
    ExtensionValueStart,
    ExtensionToken,
    ExtensionQuoted,
    ExtensionQuotedPair,
    AfterExtensionQuoted,
    SizeLineFeed,
    Data,
    DataCarriageReturn,
    DataLineFeed,
    LineStart,
    TrailerName,
    TrailerValue,
    TrailerLineFeed,
    EndLineFeed,
}

impl Chunked {
    const fn new() -> Self {
        Self {
            state: State::Size,
            size: 0,
            size_digits: 0,
            overhead_left: CHUNK_OVERHEAD_MAX,
            trailer_name: [0; TRAILER_NAME_KEPT],
            trailer_name_bytes: 0,
        }
    }

    fn advance(
        &mut self,
        bytes: &[u8],
        content_left: &mut u64,
        mut take: impl FnMut(&[u8]),
    ) -> Result<Progress, BodyError> {
        let mut at = 0;
        while at < bytes.len() {
            if self.state == State::Data {
                let rest = bytes.len() - at;
                let taken = usize::try_from(self.size).unwrap_or(usize::MAX).min(rest);
                spend(content_left, taken)?;
                take(&bytes[at..at + taken]);
                self.size -= taken as u64;
                at += taken;
                if self.size == 0 {
                    self.state = State::DataCarriageReturn;
                }
                continue;
            }
            let byte = bytes[at];
            at += 1;
            if self.state == State::EndLineFeed {
                expect(byte, b'\n', "the chunked body must end in CRLF")?;
                return Ok(Progress { consumed: at, done: true });
            }
            self.state = self.step(byte)?;
            // The line of a chunk's size has just ended.
            if self.state == State::Data && self.size > *content_left {
                return Err(BodyError::TooLarge);
            }
        }
        Ok(Progress { consumed: at, done: false })
    }

    /// The state after `byte`, in every state but the two that [`advance`](Self::advance) handles.
    fn step(&mut self, byte: u8) -> Result<State, BodyError> {
        use State::*;
        match self.state {
            Size => self.size_byte(byte),
            BeforeExtension | ExtensionNameStart | ExtensionName | AfterExtensionName
            | ExtensionValueStart | ExtensionToken | ExtensionQuoted | ExtensionQuotedPair
            | AfterExtensionQuoted => {
                self.spend_overhead()?;
                self.extension_byte(byte)
            }
            SizeLineFeed => {
                expect(byte, b'\n', "the chunk size line must end in CRLF")?;
                Ok(if self.size == 0 { LineStart } else { Data })
            }
            DataCarriageReturn => {
                expect(byte, b'\r', "the chunk is longer than its size")?;
                Ok(DataLineFeed)
            }
            DataLineFeed => {
                expect(byte, b'\n', "the chunk must end in CRLF")?;
                self.size_digits = 0;
                Ok(Size)
            }
            LineStart if byte == b'\r' => Ok(EndLineFeed),
            LineStart => {
                self.trailer_name_bytes = 0;
                self.trailer_name_byte(byte)
            }
            TrailerName => self.trailer_name_byte(byte),
            TrailerValue => {
                self.spend_overhead()?;
                match byte {
                    b'\r' => Ok(TrailerLineFeed),
                    b'\t' | b' '..=b'~' | 0x80.. => Ok(TrailerValue),
                    _ => Err(BodyError::Malformed("a trailer value holds a control character")),
                }
            }
            TrailerLineFeed => {
                expect(byte, b'\n', "a trailer line must end in CRLF")?;
                Ok(LineStart)
            }
            Data | EndLineFeed => unreachable!("handled by advance"),
        }
    }

    /// RFC 9112 section 7.1: `chunk-size = 1*HEXDIG`. No prefix, sign, underscore or whitespace.
    fn size_byte(&mut self, byte: u8) -> Result<State, BodyError> {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            _ if self.size_digits == 0 => {
                return Err(BodyError::Malformed("a chunk size must be hexadecimal digits"));
            }
            b'\r' => return Ok(State::SizeLineFeed),
            b';' => return Ok(State::ExtensionNameStart),
            b' ' | b'\t' => return Ok(State::BeforeExtension),
            _ => return Err(BodyError::Malformed("a chunk size must be hexadecimal digits")),
        };
        if self.size_digits == CHUNK_SIZE_DIGITS_MAX {
            return Err(BodyError::Malformed("a chunk size has too many digits"));
        }
        self.size = if self.size_digits == 0 { 0 } else { self.size << 4 } | u64::from(digit);
        self.size_digits += 1;
        Ok(State::Size)
    }

    /// RFC 9112 section 7.1.1:
    /// `chunk-ext = *( BWS ";" BWS chunk-ext-name [ BWS "=" BWS chunk-ext-val ] )`.
    fn extension_byte(&self, byte: u8) -> Result<State, BodyError> {
        use State::*;
        let token = is_token_byte(byte);
        let space = byte == b' ' || byte == b'\t';
        match (self.state, byte) {
            (
                BeforeExtension | ExtensionNameStart | AfterExtensionName | ExtensionValueStart,
                _,
            ) if space => Ok(self.state),
            (ExtensionNameStart | ExtensionName, _) if token => Ok(ExtensionName),
            (ExtensionValueStart | ExtensionToken, _) if token => Ok(ExtensionToken),
            (ExtensionName, _) if space => Ok(AfterExtensionName),
            (ExtensionToken | AfterExtensionQuoted, _) if space => Ok(BeforeExtension),
            (ExtensionValueStart, b'"') => Ok(ExtensionQuoted),
            (ExtensionName | AfterExtensionName, b'=') => Ok(ExtensionValueStart),
            (
                BeforeExtension | ExtensionName | AfterExtensionName | ExtensionToken
                | AfterExtensionQuoted,
                b';',
            ) => Ok(ExtensionNameStart),
            (ExtensionName | ExtensionToken | AfterExtensionQuoted, b'\r') => Ok(SizeLineFeed),
            (ExtensionQuoted, b'"') => Ok(AfterExtensionQuoted),
            (ExtensionQuoted, b'\\') => Ok(ExtensionQuotedPair),
            (ExtensionQuoted | ExtensionQuotedPair, b'\t' | b' '..=b'~' | 0x80..) => {
                Ok(ExtensionQuoted)
            }
            _ => Err(BodyError::Malformed("a chunk extension is malformed")),
        }
    }

    fn trailer_name_byte(&mut self, byte: u8) -> Result<State, BodyError> {
        self.spend_overhead()?;
        if byte == b':' && self.trailer_name_bytes > 0 {
            let kept = &self.trailer_name[..self.trailer_name_bytes.min(TRAILER_NAME_KEPT)];
            if self.trailer_name_bytes <= TRAILER_NAME_KEPT && TRAILERS_REFUSED.contains(&kept) {
                return Err(BodyError::Malformed("a field that must not be a trailer"));
            }
            return Ok(State::TrailerValue);
        }
        if !is_token_byte(byte) {
            return Err(BodyError::Malformed("a trailer name is not a token"));
        }
        if let Some(kept) = self.trailer_name.get_mut(self.trailer_name_bytes) {
            *kept = byte.to_ascii_lowercase();
        }
        self.trailer_name_bytes += 1;
        Ok(State::TrailerName)
    }

    fn spend_overhead(&mut self) -> Result<(), BodyError> {
        let spent = BodyError::Malformed("too many bytes of chunk extensions and trailers");
        self.overhead_left = self.overhead_left.checked_sub(1).ok_or(spent)?;
        Ok(())
    }
}

fn expect(byte: u8, expected: u8, reason: &'static str) -> Result<(), BodyError> {
    if byte == expected { Ok(()) } else { Err(BodyError::Malformed(reason)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `bytes` whole and then in every split of two, and one byte at a time.
    #[track_caller]
    fn check(reader: &BodyReader, bytes: &[u8], expected: Result<Option<usize>, ()>) {
        let mut fault = None;
        let cuts = (0..=bytes.len()).map(|cut| vec![0, cut, bytes.len()]);
        for cuts in cuts.chain([(0..=bytes.len()).collect()]) {
            let mut reader = reader.clone();
            let mut result = Ok(None);
            for pair in cuts.windows(2) {
                match reader.advance(&bytes[pair[0]..pair[1]]) {
                    Ok(Progress { consumed, done: true }) => {
                        result = Ok(Some(pair[0] + consumed));
                        break;
                    }
                    Ok(Progress { consumed, done: false }) => {
                        assert_eq!(consumed, pair[1] - pair[0], "left bytes behind");
                    }
                    Err(error) => {
                        result = Err(());
                        assert_eq!(*fault.get_or_insert(error), error, "cut at {:?}", &cuts[1..]);
                        break;
                    }
                }
            }
            let text = String::from_utf8_lossy(bytes);
            assert_eq!(result, expected, "{text:?} cut at {:?}", &cuts[1..cuts.len() - 1]);
        }
    }

    /// The content of `bytes`, which are cut in every place.
    #[track_caller]
    fn check_content(reader: &BodyReader, bytes: &str, expected: &str) {
        for cut in 0..=bytes.len() {
            let (mut reader, mut content) = (reader.clone(), Vec::new());
            let (first, rest) = bytes.as_bytes().split_at(cut);
            for piece in [first, rest] {
                reader.advance_with(piece, |piece| content.extend_from_slice(piece)).unwrap();
            }
            assert_eq!(content, expected.as_bytes(), "{bytes:?} cut at {cut}");
        }
    }

    #[test]
    fn the_content_is_what_is_not_framing() {
        check_content(&BodyReader::sized(5, 5), "hello", "hello");
        check_content(&BodyReader::to_close(9), "0\r\n\r\n", "0\r\n\r\n");
        let chunks = "5;a=b\r\nhello\r\n2\r\n\r\n\r\n0\r\nSum: 1\r\n\r\n";
        check_content(&BodyReader::chunked(9), chunks, "hello\r\n");
        check_content(&BodyReader::chunked(9), "0\r\n\r\n", "");
        let mut content = Vec::new();
        let taken = BodyReader::sized(5, 5)
            .advance_with(b"helloGET", |piece| content.extend_from_slice(piece));
        assert_eq!((taken.unwrap().consumed, &content[..]), (5, &b"hello"[..]));
    }

    #[track_caller]
    fn check_chunked(bytes: &str, expected: Result<Option<usize>, ()>) {
        check(&BodyReader::chunked(1000), bytes.as_bytes(), expected);
    }

    #[test]
    fn a_sized_body_ends_at_its_length() {
        check(&BodyReader::sized(5, 5), b"hello", Ok(Some(5)));
        check(&BodyReader::sized(5, 5), b"hell", Ok(None));
        check(&BodyReader::sized(6, 5), b"hello!", Err(()));
        assert_eq!(
            BodyReader::sized(5, 5).advance(b"helloGET"),
            Ok(Progress { consumed: 5, done: true })
        );
    }

    #[test]
    fn a_body_to_the_close_has_no_end_of_its_own() {
        check(&BodyReader::to_close(5), b"hello", Ok(None));
        check(&BodyReader::to_close(4), b"hello", Err(()));
    }

    #[test]
    fn chunks_are_read_to_their_end() {
        check_chunked("0\r\n\r\n", Ok(Some(5)));
        check_chunked("5\r\nhello\r\n0\r\n\r\n", Ok(Some(15)));
        check_chunked("5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", Ok(Some(26)));
        check_chunked("a\r\n0123456789\r\n0\r\n\r\n", Ok(Some(20)));
        check_chunked("A\r\n0123456789\r\n00\r\n\r\n", Ok(Some(21)));
        check_chunked("5\r\nhello\r\n0\r\n", Ok(None));
        check_chunked("5\r\nhello\r\n", Ok(None));
    }

    #[test]
    fn chunk_sizes_are_strictly_hexadecimal() {
        for size in ["", " 5", "5 ", "+5", "-1", "0x5", "1_0", "g", "5\t", "5\r5"] {
            check_chunked(&format!("{size}\r\nhello\r\n0\r\n\r\n"), Err(()));
        }
        check_chunked("0000000000000005\r\nhello\r\n0\r\n\r\n", Ok(Some(30)));
        check_chunked("00000000000000005\r\nhello\r\n0\r\n\r\n", Err(()));
        check_chunked("FFFFFFFFFFFFFFFF0\r\nhello\r\n0\r\n\r\n", Err(()));
    }

    #[test]
    fn chunk_line_ends_are_crlf_and_where_they_belong() {
        check_chunked("5\nhello\r\n0\r\n\r\n", Err(()));
        check_chunked("5\rhello\r\n0\r\n\r\n", Err(()));
        check_chunked("5\r\nhello\n0\r\n\r\n", Err(()));
        check_chunked("5\r\nhello0\r\n\r\n", Err(()));
        check_chunked("5\r\nhello!!\r\n0\r\n\r\n", Err(()));
        check_chunked("5\r\nhello\r\n0\r\n\n", Err(()));
        check_chunked("5\r\nhello\r\n0\r\n\rX", Err(()));
    }

    #[test]
    fn chunk_extensions_are_well_formed() {
        for extension in
            [";a", ";a=b", ";a;b=c", " ;a", "; a = b ;c", ";a=\"\"", ";a=\"x;\\\" y\"", ";a=b ;c"]
        {
            let bytes = format!("5{extension}\r\nhello\r\n0\r\n\r\n");
            check_chunked(&bytes, Ok(Some(bytes.len())));
        }
        for extension in
            [";", ";;a", ";a=", ";bad[=x", ";\0ext", ";a\rX", ";a=\"", ";a=\"\r", ";=b", ";a b"]
        {
            check_chunked(&format!("5{extension}\r\nhello\r\n0\r\n\r\n"), Err(()));
        }
        let long = "a".repeat(CHUNK_OVERHEAD_MAX as usize);
        check_overhead(&format!("5;{}\r\nhello\r\n0\r\n\r\n", &long[1..]), true);
        check_overhead(&format!("5;{long}\r\nhello\r\n0\r\n\r\n"), false);
    }

    #[test]
    fn trailers_are_bounded_and_change_no_framing() {
        check_chunked("0\r\nX-Sum: 1\r\nY:\r\n\r\n", Ok(Some(19)));
        check_chunked("0\r\nX-Sum: 1\r\n", Ok(None));
        for trailer in ["Content-Length: 5", "transfer-encoding: chunked", "HOST: a", "TE:"] {
            check_chunked(&format!("0\r\n{trailer}\r\n\r\n"), Err(()));
        }
        for trailer in [": a", "X Y: a", "X", " X: a", "X: \0", "X: a\rb"] {
            check_chunked(&format!("0\r\n{trailer}\r\n\r\n"), Err(()));
        }
        let long = "a".repeat(CHUNK_OVERHEAD_MAX as usize);
        check_overhead(&format!("0\r\nX:{}\r\n\r\n", &long[3..]), true);
        check_overhead(&format!("0\r\nX:{}\r\n\r\n", &long[2..]), false);
    }

    /// Long inputs, fed whole: every split of them would take minutes.
    #[track_caller]
    fn check_overhead(bytes: &str, accepted: bool) {
        let result = BodyReader::chunked(1000).advance(bytes.as_bytes());
        assert_eq!(result.is_ok_and(|progress| progress.done), accepted);
    }

    #[track_caller]
    fn check_at_once(mut reader: BodyReader, bytes: &str, expected: Result<(), BodyError>) {
        let progress = reader.advance(bytes.as_bytes());
        assert_eq!(progress.map(|progress| assert!(!progress.done)), expected, "{bytes:?}");
    }

    #[test]
    fn content_that_is_announced_too_large_is_not_waited_for() {
        check_at_once(BodyReader::sized(8, 8), "", Ok(()));
        check_at_once(BodyReader::sized(9, 8), "", Err(BodyError::TooLarge));
        check_at_once(BodyReader::sized(u64::MAX, 8), "", Err(BodyError::TooLarge));
        check_at_once(BodyReader::to_close(8), "", Ok(()));
        for line in
            ["9\r\n", "FFFFFFFFFFFFFFFF\r\n", "0000000000000009;a=b\r\n", "8\r\nabcdefgh\r\n1\r\n"]
        {
            check_at_once(BodyReader::chunked(8), line, Err(BodyError::TooLarge));
            // Its line may still turn out to be malformed.
            check_at_once(BodyReader::chunked(8), &line[..line.len() - 1], Ok(()));
        }
        for line in ["8\r\n", "8\r\nabcdefgh\r\n0\r\n", "4\r\nabcd\r\n4\r\n"] {
            check_at_once(BodyReader::chunked(8), line, Ok(()));
        }
        for line in ["FFFFFFFFFFFFFFFF0", "9;;", "9\rx", "9x"] {
            let result = BodyReader::chunked(8).advance(line.as_bytes());
            assert!(matches!(result, Err(BodyError::Malformed(_))), "{line:?}: {result:?}");
        }
    }

    #[test]
    fn content_is_bounded_over_all_chunks() {
        check(&BodyReader::chunked(8), b"4\r\nabcd\r\n4\r\nefgh\r\n0\r\n\r\n", Ok(Some(23)));
        check(&BodyReader::chunked(7), b"4\r\nabcd\r\n4\r\nefgh\r\n0\r\n\r\n", Err(()));
    }
}
