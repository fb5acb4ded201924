//! The response to one call: bytes in, the answer out. A value without I/O.

use std::cell::RefCell;

use super::{Content, ShortContent, UpstreamLimits};
use crate::{
    http::{
        HeadLimits, Version,
        body::{BodyError, BodyReader},
        response::{self, HeadScan, Response},
    },
    runtime::read_buffer::ReadBufferPool,
};

/// Interim responses before a final one. A counter that sends more of them makes no progress.
const INTERIM_MAX: u8 = 16;

/// How large a response may be, and buffers of that size.
#[derive(Debug)]
pub(super) struct ResponseLimits {
    head: HeadLimits,
    drain_bytes_max: u64,
    pub(super) buffers: ReadBufferPool,
    last: LastHead,
}

/// The final head that was read last, byte for byte, and what it says.
///
/// A counter sends the same head again and again, but for its `Date`, and to compare takes a tenth of the time that it
/// takes to parse.
#[derive(Debug, Default)]
struct LastHead(RefCell<Option<(Vec<u8>, FinalResponse)>>);

/// A longer head is parsed each time.
const LAST_HEAD_MAX: usize = 512;

impl LastHead {
    /// What `bytes` say if they begin with this head, and how long it is.
    fn begins(&self, bytes: &[u8]) -> Option<(usize, FinalResponse)> {
        let last = self.0.borrow();
        let (head, response) = last.as_ref().filter(|(head, _)| bytes.starts_with(head))?;
        Some((head.len(), response.clone()))
    }

    /// `head` says this.
    fn keep(&self, head: &[u8], response: &FinalResponse) {
        if head.len() > LAST_HEAD_MAX {
            return;
        }
        let mut last = self.0.borrow_mut();
        let (kept, said) =
            last.get_or_insert_with(|| (Vec::with_capacity(LAST_HEAD_MAX), response.clone()));
        kept.clear();
        kept.extend_from_slice(head);
        *said = response.clone();
    }
}

impl ResponseLimits {
    pub(super) fn new(limits: &UpstreamLimits) -> Self {
        Self {
            head: limits.head,
            drain_bytes_max: limits.drain_bytes_max,
            buffers: ReadBufferPool::new(limits.head.head_bytes_max),
            last: LastHead::default(),
        }
    }

    /// Whether `limits` say the same.
    pub(super) fn agree_with(&self, limits: &UpstreamLimits) -> bool {
        (self.head, self.drain_bytes_max) == (limits.head, limits.drain_bytes_max)
    }
}

/// What a call was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Whether the connection can carry another call.
    pub(super) reusable: bool,
    /// Whether it can carry several at a time: such a connection is reusable, and speaks HTTP/1.1 (RFC 9112
    /// section 9.3.2).
    pub(super) pipelines: bool,
    /// The content, if it is kept and whole.
    pub(super) content: Option<Box<ShortContent>>,
    /// How many visits the counter says that the call has registered.
    pub(super) added: Option<u32>,
}

/// The connection ended too early, or what was received is not the response to one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Broken;

/// Reads one response.
#[derive(Debug)]
pub(super) struct ResponseReader {
    scan: HeadScan,
    interim: u8,
    final_response: Option<FinalResponse>,
    /// What was read of the final response's content; `None` where it is discarded.
    content: Option<Box<ShortContent>>,
}

/// A final response whose head was read.
#[derive(Debug, Clone)]
struct FinalResponse {
    status: u16,
    /// Whether the connection can carry another call once the body is whole.
    persistent: bool,
    version: Version,
    body: BodyReader,
    added: Option<u32>,
}

impl From<Response> for FinalResponse {
    fn from(Response { status, persistent, version, body, added, .. }: Response) -> Self {
        Self { status, persistent, version, body, added }
    }
}

impl FinalResponse {
    fn answer(&self, reusable: bool, content: Option<Box<ShortContent>>) -> Answer {
        let pipelines = reusable && self.version == Version::Http11;
        Answer { status: self.status, reusable, pipelines, content, added: self.added }
    }
}

impl ResponseReader {
    /// For a call that does this with the content of its answer.
    pub(super) fn new(content: Content) -> Self {
        Self {
            scan: HeadScan::default(),
            interim: 0,
            final_response: None,
            content: (content == Content::Kept).then(Box::default),
        }
    }

    /// Reads what was received and not consumed before: how many bytes of it are consumed, and the answer once
    /// it is whole. What follows it belongs to the next call, if `others` were sent; else it belongs to none, and the
    /// connection can carry no more.
    ///
    /// # Errors
    /// When there will be no answer.
    pub(super) fn read(
        &mut self,
        bytes: &[u8],
        others: bool,
        limits: &ResponseLimits,
    ) -> Result<(usize, Option<Answer>), Broken> {
        let heads = self.read_heads(bytes, limits)?;
        let Some(response) = &mut self.final_response else { return Ok((heads, None)) };
        let (body, kept) = (&bytes[heads..], &mut self.content);
        let keep = |piece: &[u8]| kept.iter_mut().for_each(|content| content.push(piece));
        match response.body.advance_with(body, keep) {
            Ok(progress) => {
                let reusable = response.persistent && (others || progress.consumed == body.len());
                let answer = progress.done.then(|| response.answer(reusable, kept.take()));
                Ok((heads + progress.consumed, answer))
            }
            // The status is known, so the call is answered; the rest of the body stays unread, so the connection
            // closes.
            Err(BodyError::TooLarge) => Ok((bytes.len(), Some(response.answer(false, None)))),
            Err(BodyError::Malformed(_)) => Err(Broken),
        }
    }

    /// The counter has closed the connection.
    ///
    /// # Errors
    /// When the response was not whole.
    pub(super) fn read_end(&self) -> Result<Answer, Broken> {
        match &self.final_response {
            // RFC 9112 section 6.3, point 8: the close is the end of such a body. Whether it was cut off cannot be
            // known, so its content is not told: the beginning of a number is another number.
            Some(response) if response.body.ends_with_connection() => {
                Ok(response.answer(false, None))
            }
            _ => Err(Broken),
        }
    }

    /// Reads heads up to the final one; gives how many bytes they are.
    fn read_heads(&mut self, bytes: &[u8], limits: &ResponseLimits) -> Result<usize, Broken> {
        let mut read = 0;
        while self.final_response.is_none() {
            if let Some((head_bytes, response)) = limits.last.begins(&bytes[read..]) {
                (read, self.final_response) = (read + head_bytes, Some(response));
                break;
            }
            let (head, scan) = (&limits.head, &mut self.scan);
            let response = match response::parse(&bytes[read..], scan, head, limits.drain_bytes_max)
            {
                Ok(Some(response)) => response,
                Ok(None) => break,
                Err(malformed) => {
                    tracing::debug!(%malformed);
                    return Err(Broken);
                }
            };
            let head = &bytes[read..][..response.head_bytes];
            read += response.head_bytes;
            self.scan = HeadScan::default();
            if !response.is_interim() {
                let response = FinalResponse::from(response);
                limits.last.keep(head, &response);
                self.final_response = Some(response);
            } else if self.interim == INTERIM_MAX {
                return Err(Broken);
            } else {
                self.interim += 1;
            }
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::RESPONSE_HEAD;

    const DRAIN_BYTES_MAX: u64 = 10;

    const LIMITS: UpstreamLimits = UpstreamLimits {
        connect_timeout: Duration::ZERO,
        call_timeout: Duration::ZERO,
        connections_max: 1,
        pipeline_max: 1,
        queue_max: 1,
        idle_timeout: Duration::ZERO,
        head: RESPONSE_HEAD,
        drain_bytes_max: DRAIN_BYTES_MAX,
    };

    fn limits() -> ResponseLimits {
        ResponseLimits::new(&LIMITS)
    }

    /// Reads `text` and then the end of the stream, receiving as many bytes at a time as `piece`.
    fn read(text: &str, piece: usize, content: Content) -> Result<Answer, Broken> {
        read_after(&limits(), text, piece, content)
    }

    /// The same, after what was read with these limits before.
    fn read_after(
        limits: &ResponseLimits,
        text: &str,
        piece: usize,
        content: Content,
    ) -> Result<Answer, Broken> {
        let mut reader = ResponseReader::new(content);
        let mut unread = Vec::new();
        for received in text.as_bytes().chunks(piece) {
            unread.extend_from_slice(received);
            let (consumed, answer) = reader.read(&unread, false, limits)?;
            unread.drain(..consumed);
            if let Some(answer) = answer {
                return Ok(answer);
            }
        }
        reader.read_end()
    }

    #[track_caller]
    fn check(text: &str, expected: Result<Answer, Broken>) {
        for piece in 1..=text.len().max(1) {
            let read = read(text, piece, Content::Discarded);
            assert_eq!(read, expected, "{text:?}, {piece} bytes at a time");
        }
    }

    const fn answer(status: u16, reusable: bool) -> Result<Answer, Broken> {
        Ok(Answer { status, reusable, pipelines: reusable, content: None, added: None })
    }

    #[test]
    fn an_answer_is_the_final_response_once_it_is_whole() {
        check("HTTP/1.1 204 Counted\r\n\r\n", answer(204, true));
        check("HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno", answer(500, true));
        check("HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nn", Err(Broken));
        check(
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            answer(200, false),
        );
        check(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
            answer(200, true),
        );
        check("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n", Err(Broken));
        check("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n", Err(Broken));
        check("", Err(Broken));
        check("220 ready\r\n", Err(Broken));
    }

    #[test]
    fn a_connection_can_carry_several_calls_only_by_http_1_1() {
        let keep_alive = "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n";
        check(keep_alive, answer(200, true).map(|answer| Answer { pipelines: false, ..answer }));
        let newer = "HTTP/1.7 200 OK\r\nContent-Length: 0\r\n\r\n";
        check(newer, answer(200, true));
    }

    #[test]
    fn a_close_ends_a_body_of_no_length_and_no_other() {
        check("HTTP/1.1 200 OK\r\n\r\nto the end", answer(200, false));
        check("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nto the en", Err(Broken));
    }

    #[test]
    fn interim_responses_come_before_a_final_one() {
        let interim = "HTTP/1.1 100 Continue\r\n\r\n";
        let counted = "HTTP/1.1 204 Counted\r\n\r\n";
        check(&(interim.repeat(INTERIM_MAX.into()) + counted), answer(204, true));
        check(&(interim.repeat(usize::from(INTERIM_MAX) + 1) + counted), Err(Broken));
        check(interim, Err(Broken));
    }

    #[test]
    fn bytes_after_the_response_spoil_the_connection_unless_others_were_sent() {
        let text = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1\r\n";
        assert_eq!(read(text, text.len(), Content::Discarded), answer(200, false));
        let (mut reader, limits) = (ResponseReader::new(Content::Discarded), limits());
        let whole = text.len() - 2;
        let read = reader.read(text.as_bytes(), true, &limits);
        assert_eq!(read, answer(200, true).map(|answer| (whole, Some(answer))));
    }

    #[test]
    fn a_long_body_spoils_the_connection_and_not_the_call() {
        let body = |bytes: usize| {
            format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n{}", "a".repeat(bytes))
        };
        check(&body(10), answer(200, true));
        check(&body(11), answer(200, false));
    }

    /// The content that is kept, however the response is split. It is told with the answer, so an error has none.
    #[track_caller]
    fn check_content(text: &str, expected: Option<&str>) {
        for piece in 1..=text.len() {
            let answer = read(text, piece, Content::Kept).expect("an answer");
            let content = answer.content.as_deref().and_then(ShortContent::whole);
            let content = content.map(|bytes| str::from_utf8(bytes).unwrap());
            assert_eq!(content, expected, "{text:?}, {piece} bytes at a time");
        }
    }

    #[test]
    fn the_content_of_the_final_response_is_kept_in_any_pieces() {
        let ok = "HTTP/1.1 200 OK\r\n";
        check_content(&format!("{ok}Content-Length: 3\r\n\r\n42\n"), Some("42\n"));
        check_content(&format!("{ok}Content-Length: 0\r\n\r\n"), Some(""));
        let chunks =
            "Transfer-Encoding: chunked\r\n\r\n1;a=5\r\n4\r\n2\r\n2\n\r\n0\r\nB: 6\r\n\r\n";
        check_content(&format!("{ok}{chunks}"), Some("42\n"));
        check_content(
            &format!("HTTP/1.1 103 Hints\r\nB: 7\r\n\r\n{ok}Content-Length: 1\r\n\r\n1"),
            Some("1"),
        );
        // Statuses are not judged here.
        check_content("HTTP/1.1 500 No\r\nContent-Length: 1\r\n\r\n1", Some("1"));
        // Bytes after the response are not its own.
        let first = read(&format!("{ok}Content-Length: 1\r\n\r\n12"), 100, Content::Kept).unwrap();
        assert_eq!(first.content.unwrap().whole(), Some(&b"1"[..]));
    }

    #[test]
    fn a_content_that_may_not_be_whole_is_not_told() {
        let ok = "HTTP/1.1 200 OK\r\n";
        // One that ends with the connection may have been cut off.
        check_content(&format!("{ok}\r\n42\n"), None);
        // More than the limit of what is read.
        check_content(&format!("{ok}Content-Length: 11\r\n\r\n12345678901"), None);
        let chunks = "Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n6\r\n678901\r\n0\r\n\r\n";
        check_content(&format!("{ok}{chunks}"), None);
        check_content("HTTP/1.1 204 Counted\r\nContent-Length: 1\r\n\r\n", Some(""));
        let cut = format!("{ok}Content-Length: 3\r\n\r\n42");
        assert_eq!(read(&cut, 1, Content::Kept), Err(Broken));
    }

    #[test]
    fn what_was_read_before_changes_no_answer() {
        let long = "B: ".to_owned() + &"b".repeat(LAST_HEAD_MAX);
        let ok = "HTTP/1.1 200 OK\r\n";
        let texts = [
            format!("{ok}Content-Length: 2\r\n\r\n42"),
            format!("{ok}Content-Length: 2\r\n\r\n43"),
            format!("{ok}Content-Length: 2\r\n\r\n4"),
            format!("{ok}Content-Length: 2\r\n\r\n42+"),
            format!("{ok}Content-Length: 3\r\n\r\n421"),
            format!("{ok}Content-Length: 2\r\nB: 1\r\n\r\n42"),
            format!("{ok}Content-Length: 2\r\n{long}\r\n\r\n42"),
            format!("{ok}Connection: close\r\nContent-Length: 2\r\n\r\n42"),
            format!("{ok}Transfer-Encoding: chunked\r\n\r\n2\r\n42\r\n0\r\n\r\n"),
            format!("{ok}\r\n42"),
            format!("{ok}Content-Length: 2\n\r\n42"),
            format!("HTTP/1.1 100 On\r\n\r\n{ok}Content-Length: 2\r\n\r\n42"),
            String::from("HTTP/1.1 100 On\r\n\r\nHTTP/1.1 100 On\r\n\r\nHTTP/1.1 204 C\r\n\r\n"),
            String::from("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n42"),
            String::from("HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\n42"),
        ];
        for (before, text) in texts.iter().flat_map(|one| texts.iter().map(move |two| (one, two))) {
            for (piece, content) in [1, 7, 40, 1000]
                .into_iter()
                .flat_map(|at| [(at, Content::Kept), (at, Content::Discarded)])
            {
                let limits = limits();
                let _ = read_after(&limits, before, 1000, Content::Kept);
                let (after, alone) =
                    (read_after(&limits, text, piece, content), read(text, piece, content));
                assert_eq!(after, alone, "{text:?} after {before:?}, {piece} bytes at a time");
            }
        }
    }

    #[test]
    fn the_last_head_is_known_again_unless_it_is_long() {
        let head = |bytes: usize| {
            let begin = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nB: ";
            begin.to_owned() + &"b".repeat(bytes - begin.len() - 4) + "\r\n\r\n"
        };
        for (bytes, is_known) in [(60, true), (LAST_HEAD_MAX, true), (LAST_HEAD_MAX + 1, false)] {
            let (limits, text) = (limits(), head(bytes) + "42");
            read_after(&limits, &text, 1000, Content::Kept).unwrap();
            let known = limits.last.begins(text.as_bytes()).map(|(length, _)| length);
            assert_eq!(known, is_known.then_some(bytes));
            // Not by its beginning, nor by one byte less.
            assert!(limits.last.begins(&text.as_bytes()[..bytes - 1]).is_none());
            assert!(limits.last.begins(&text.as_bytes()[1..]).is_none());
        }
    }

    #[test]
    fn other_limits_are_noticed() {
        let mut other = UpstreamLimits {
            connect_timeout: Duration::MAX,
            call_timeout: Duration::MAX,
            connections_max: 2,
            pipeline_max: 2,
            queue_max: 2,
            idle_timeout: Duration::MAX,
            ..LIMITS
        };
        assert!(limits().agree_with(&other));
        other.drain_bytes_max += 1;
        assert!(!limits().agree_with(&other));
        other.drain_bytes_max -= 1;
        other.head.head_bytes_max += 1;
        assert!(!limits().agree_with(&other));
    }
}
