//! Answers on their way to one client, gathered into as few writes as possible.

#![allow(clippy::manual_async_fn)]

use std::{io, mem};

use bytes::{Buf, Bytes};
use monoio::{buf::IoBuf, io::AsyncWriteRent};

use super::{Phase, Seat};
use crate::{
    clock,
    http::{
        Refusal,
        render::{self, Rendered},
    },
};

/// Gathered bytes that are written before more are added.
const FLUSH_BYTES: usize = 8 * 1024;
/// A body from this size on is written as it is, not copied.
const DIRECT_BYTES: usize = 4 * 1024;

/// Room for the head of an answer behind what was gathered.
const HEAD_BYTES: usize = 1024;

/// What the request has to say about the form of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// A `HEAD`: the body stays out.
    pub head_only: bool,
    /// The connection closes after this answer, and the answer says so.
    pub close: bool,
    /// The answer says that the connection stays open, which HTTP/1.0 does not take for granted.
    pub keep_alive: bool,
}

/// Answers that are not written yet.
#[derive(Debug)]
pub struct Outbox {
    gathered: Vec<u8>,
    /// A large body, which follows what is gathered.
    direct: Option<Bytes>,
}

impl Outbox {
    /// An empty outbox.
    pub fn new() -> Self {
        Self { gathered: Vec::with_capacity(FLUSH_BYTES + DIRECT_BYTES + HEAD_BYTES), direct: None }
    }

    /// Adds an answer. To be flushed before the next one when it is [full](Self::is_full).
    pub fn push(&mut self, answer: &Rendered, form: Form) {
        debug_assert!(self.direct.is_none(), "an answer after a large body needs a flush between");
        self.gathered.extend_from_slice(&answer.head);
        if form.close {
            self.gathered.extend_from_slice(b"connection: close\r\n");
        } else if form.keep_alive {
            self.gathered.extend_from_slice(b"connection: keep-alive\r\n");
        }
        self.gathered.extend_from_slice(b"\r\n");
        match answer.body.len() {
            _ if form.head_only => {}
            0..DIRECT_BYTES => self.gathered.extend_from_slice(&answer.body),
            DIRECT_BYTES.. => self.direct = Some(answer.body.clone()),
        }
    }

    /// Adds the answer to a request that is not served: one line that says why, which a `HEAD` does
    /// not get to see.
    pub fn push_refusal(&mut self, refusal: Refusal, head_only: bool) {
        let text = format!("{}\n", refusal.reason);
        let answer = render::text(refusal.status, text, clock::unix_seconds());
        self.push(&answer, Form { head_only, close: true, keep_alive: false });
    }

    /// Adds an interim response as it is.
    pub fn push_interim(&mut self, response: &'static [u8]) {
        self.gathered.extend_from_slice(response);
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.gathered.is_empty() && self.direct.is_none()
    }

    /// Whether it is to be flushed before an answer is added.
    pub fn is_full(&self) -> bool {
        self.gathered.len() >= FLUSH_BYTES || self.direct.is_some()
    }

    /// Writes all that was gathered.
    ///
    /// # Errors
    /// What the stream says. The client has then received some unknown part.
    pub fn flush<S: AsyncWriteRent>(
        &mut self,
        stream: &mut S,
        seat: &Seat,
    ) -> impl Future<Output = io::Result<()>> {
        async move {
            let mut written = 0;
            while written < self.gathered.len() {
                seat.wait(Phase::Write);
                let gathered = mem::take(&mut self.gathered);
                let (result, slice) = stream.write(gathered.slice(written..)).await;
                self.gathered = slice.into_inner();
                written += progress(result)?;
            }
            self.gathered.clear();
            if let Some(direct) = self.direct.take() {
                Box::pin(write_all(stream, direct, seat)).await?;
            }
            // What is waited for next is not the client.
            seat.rest();
            Ok(())
        }
    }
}

async fn write_all<S: AsyncWriteRent>(
    stream: &mut S,
    mut bytes: Bytes,
    seat: &Seat,
) -> io::Result<()> {
    while !bytes.is_empty() {
        // Anew with each part that the client takes.
        seat.wait(Phase::Write);
        let (result, unwritten) = stream.write(bytes).await;
        bytes = unwritten;
        bytes.advance(progress(result)?);
    }
    Ok(())
}

/// A write that writes nothing would be tried for ever.
fn progress(written: io::Result<usize>) -> io::Result<usize> {
    match written {
        Ok(0) => Err(io::ErrorKind::WriteZero.into()),
        result => result,
    }
}
