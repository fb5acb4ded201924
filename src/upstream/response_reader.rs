//! The response to one call: bytes in, the answer out. A value without I/O.

use super::UpstreamLimits;
use crate::{
    http::{
        HeadLimits,
        body::BodyError,
        response::{self, HeadScan, Response},
    },
    runtime::read_buffer::ReadBufferPool,
};

/// Interim responses before a final one. A counter that sends more of them makes no progress.
const INTERIM_MAX: usize = 16;

/// How large a response may be, and buffers of that size.
#[derive(Debug)]
pub(super) struct ResponseLimits {
    head: HeadLimits,
    drain_bytes_max: u64,
    pub(super) buffers: ReadBufferPool,
}

impl ResponseLimits {
    pub(super) fn new(limits: &UpstreamLimits) -> Self {
        Self {
            head: limits.head,
            drain_bytes_max: limits.drain_bytes_max,
            buffers: ReadBufferPool::new(limits.head.head_bytes_max),
        }
    }

    /// Whether `limits` say the same.
    pub(super) fn agree_with(&self, limits: &UpstreamLimits) -> bool {
        (self.head, self.drain_bytes_max) == (limits.head, limits.drain_bytes_max)
    }
}

/// What a call was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Whether the connection can carry another call.
    pub(super) reusable: bool,
}

/// The connection ended too early, or what was received is not the response to one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Broken;

/// Reads one response.
#[derive(Debug, Default)]
pub(super) struct ResponseReader {
    scan: HeadScan,
    interim: usize,
    final_response: Option<Response>,
}

impl ResponseReader {
    /// Reads what was received and not consumed before: how many bytes of it are consumed, and the answer once
    /// it is whole.
    ///
    /// # Errors
    /// When there will be no answer.
    pub(super) fn read(
        &mut self,
        bytes: &[u8],
        limits: &ResponseLimits,
    ) -> Result<(usize, Option<Answer>), Broken> {
        let heads = self.read_heads(bytes, limits)?;
        let Some(response) = &mut self.final_response else { return Ok((heads, None)) };
        let (status, body) = (response.status, &bytes[heads..]);
        match response.body.advance(body) {
            Ok(progress) => {
                // Bytes after the response belong to no call.
                let reusable = response.persistent && progress.consumed == body.len();
                let answer = progress.done.then_some(Answer { status, reusable });
                Ok((heads + progress.consumed, answer))
            }
            // The status is known, so the call is answered; the rest of the body stays unread, so the connection
            // closes.
            Err(BodyError::TooLarge) => Ok((bytes.len(), Some(Answer { status, reusable: false }))),
            Err(BodyError::Malformed(_)) => Err(Broken),
        }
    }

    /// The counter has closed the connection.
    ///
    /// # Errors
    /// When the response was not whole.
    pub(super) fn read_end(&self) -> Result<Answer, Broken> {
        match &self.final_response {
            // RFC 9112 section 6.3, point 8: the close is the end of such a body.
            Some(response) if response.body.ends_with_connection() => {
                Ok(Answer { status: response.status, reusable: false })
            }
            _ => Err(Broken),
        }
    }

    /// Reads heads up to the final one; gives how many bytes they are.
    fn read_heads(&mut self, bytes: &[u8], limits: &ResponseLimits) -> Result<usize, Broken> {
        let mut read = 0;
        while self.final_response.is_none() {
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
            read += response.head_bytes;
            self.scan = HeadScan::default();
            if !response.is_interim() {
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
        queue_max: 1,
        idle_timeout: Duration::ZERO,
        head: RESPONSE_HEAD,
        drain_bytes_max: DRAIN_BYTES_MAX,
    };

    fn limits() -> ResponseLimits {
        ResponseLimits::new(&LIMITS)
    }

    /// Reads `text` and then the end of the stream, receiving as many bytes at a time as `piece`.
    fn read(text: &str, piece: usize) -> Result<Answer, Broken> {
        let (mut reader, limits) = (ResponseReader::default(), limits());
        let mut unread = Vec::new();
        for received in text.as_bytes().chunks(piece) {
            unread.extend_from_slice(received);
            let (consumed, answer) = reader.read(&unread, &limits)?;
            unread.drain(..consumed);
            if let Some(answer) = answer {
                return Ok(answer);
            }
        }
        reader.read_end()
    }

    #[track_caller]
    fn check(text: &str, expected: Result<Answer, Broken>) {
        assert_eq!(read(text, text.len().max(1)), expected, "{text:?}");
        assert_eq!(read(text, 1), expected, "{text:?}, a byte at a time");
    }

    const fn answer(status: u16, reusable: bool) -> Result<Answer, Broken> {
        Ok(Answer { status, reusable })
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
    fn a_close_ends_a_body_of_no_length_and_no_other() {
        check("HTTP/1.1 200 OK\r\n\r\nto the end", answer(200, false));
        check("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nto the en", Err(Broken));
    }

    #[test]
    fn interim_responses_come_before_a_final_one() {
        let interim = "HTTP/1.1 100 Continue\r\n\r\n";
        let counted = "HTTP/1.1 204 Counted\r\n\r\n";
        check(&(interim.repeat(INTERIM_MAX) + counted), answer(204, true));
        check(&(interim.repeat(INTERIM_MAX + 1) + counted), Err(Broken));
        check(interim, Err(Broken));
    }

    #[test]
    fn bytes_after_the_response_spoil_the_connection() {
        let text = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1\r\n";
        assert_eq!(read(text, text.len()), answer(200, false));
    }

    #[test]
    fn a_long_body_spoils_the_connection_and_not_the_call() {
        let body = |bytes: usize| {
            format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n{}", "a".repeat(bytes))
        };
        check(&body(10), answer(200, true));
        check(&body(11), answer(200, false));
    }

    #[test]
    fn other_limits_are_noticed() {
        let mut other = UpstreamLimits {
            connect_timeout: Duration::MAX,
            call_timeout: Duration::MAX,
            connections_max: 2,
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
