//! Answers to one client, gathered into as few writes as possible.

#![allow(clippy::manual_async_fn)]

use std::{
    cell::RefCell,
    io, mem,
    ops::{Deref, DerefMut},
    os::fd::AsRawFd,
};

use bytes::{Buf, Bytes};
use monoio::{buf::IoBuf, io::AsyncWriteRent};

use super::{ClientHandle, Phase, Response};
use crate::{
    http::Refusal,
    runtime::{clock, turn},
};

/// Gathered bytes that are written before more are added.
const FLUSH_BYTES: usize = 8 * 1024;
/// A body from this size on is written as it is, not copied.
const DIRECT_BYTES: usize = 4 * 1024;

/// Room for the head of an answer behind what was gathered.
const HEAD_BYTES: usize = 1024;
/// What a write buffer has room for before it grows.
const CAPACITY: usize = FLUSH_BYTES + DIRECT_BYTES + HEAD_BYTES;

/// Free write buffers that a worker keeps.
const SPARES_MAX: usize = 64;

/// The form that a request demands of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// For a `HEAD`: the answer is sent without its body.
    pub head_only: bool,
    /// The connection closes after this answer, and the answer says so.
    pub close: bool,
    /// The answer says that the connection stays open, which is not the default in HTTP/1.0.
    pub keep_alive: bool,
}

/// A worker's free write buffers, all of them empty.
#[derive(Debug, Default)]
pub struct WriteBufferPool {
    /// Boxed: each client with a visit in progress holds one.
    #[allow(clippy::vec_box)]
    spares: RefCell<Vec<Box<WriteBuffer>>>,
}

impl WriteBufferPool {
    /// An empty write buffer, which returns to the pool when it is dropped.
    pub fn take(&self) -> PooledWriteBuffer<'_> {
        let spare = self.spares.borrow_mut().pop();
        PooledWriteBuffer {
            pool: self,
            buffer: Some(spare.unwrap_or_else(|| Box::new(WriteBuffer::new()))),
        }
    }

    /// Takes a write buffer back and empties it: what it still holds was for a client that is gone. A buffer that has
    /// grown is freed, and so is one whose memory went with a write that was never awaited.
    fn put(&self, mut buffer: Box<WriteBuffer>) {
        buffer.clear();
        let mut spares = self.spares.borrow_mut();
        if spares.len() < SPARES_MAX && buffer.gathered.capacity() == CAPACITY {
            spares.push(buffer);
        }
    }
}

/// A borrowed write buffer. However its holder drops it, by an error or a panic too, it goes back empty.
#[derive(Debug)]
pub struct PooledWriteBuffer<'a> {
    pool: &'a WriteBufferPool,
    /// `None` only while it is dropped.
    buffer: Option<Box<WriteBuffer>>,
}

impl Deref for PooledWriteBuffer<'_> {
    type Target = WriteBuffer;

    fn deref(&self) -> &WriteBuffer {
        let Some(buffer) = &self.buffer else { unreachable!("only drop takes it") };
        buffer
    }
}

impl DerefMut for PooledWriteBuffer<'_> {
    fn deref_mut(&mut self) -> &mut WriteBuffer {
        let Some(buffer) = &mut self.buffer else { unreachable!("only drop takes it") };
        buffer
    }
}

impl Drop for PooledWriteBuffer<'_> {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.pool.put(buffer);
        }
    }
}

/// Answers that are not written yet.
#[derive(Debug)]
pub struct WriteBuffer {
    gathered: Vec<u8>,
    /// A large body, which follows what is gathered.
    direct: Option<Bytes>,
}

impl WriteBuffer {
    fn new() -> Self {
        Self { gathered: Vec::with_capacity(CAPACITY), direct: None }
    }

    fn clear(&mut self) {
        self.gathered.clear();
        self.direct = None;
    }

    /// Adds an answer. The buffer must be flushed before the next answer when it is [full](Self::is_full).
    ///
    /// # Panics
    /// After a large body that was not flushed: the answers would be mixed.
    pub fn push(&mut self, response: &Response, form: Form) {
        assert!(self.direct.is_none(), "an answer after a large body needs a flush between");
        self.gathered.extend_from_slice(&response.http1_head(clock::unix_seconds()));
        if form.close {
            self.gathered.extend_from_slice(b"connection: close\r\n");
        } else if form.keep_alive {
            self.gathered.extend_from_slice(b"connection: keep-alive\r\n");
        }
        self.gathered.extend_from_slice(b"\r\n");
        let content = response.content();
        match content.len() {
            _ if form.head_only => {}
            0..DIRECT_BYTES => self.gathered.extend_from_slice(content),
            DIRECT_BYTES.. => self.direct = Some(content.clone()),
        }
    }

    /// Adds the answer to a request that is not served: one line that says why, left out for a `HEAD`.
    pub fn push_refusal(&mut self, refusal: Refusal, head_only: bool) {
        let response = Response::text(refusal.status, refusal.content());
        self.push(&response, Form { head_only, close: true, keep_alive: false });
    }

    /// Adds an interim response as it is.
    pub fn push_interim(&mut self, response: &'static [u8]) {
        self.gathered.extend_from_slice(response);
    }

    /// Adds content that follows an answer. The buffer must be flushed before anything else is added.
    pub fn push_piece(&mut self, piece: Bytes) {
        assert!(self.direct.is_none(), "a piece after a large body needs a flush between");
        self.direct = Some(piece);
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.gathered.is_empty() && self.direct.is_none()
    }

    /// Whether it must be flushed before an answer is added.
    pub fn is_full(&self) -> bool {
        self.gathered.len() >= FLUSH_BYTES || self.direct.is_some()
    }

    /// Writes all that was gathered.
    ///
    /// # Errors
    /// The stream's error. It is unknown how much the client has received.
    pub fn flush<S: AsyncWriteRent + AsRawFd>(
        &mut self,
        stream: &mut S,
        client: &ClientHandle,
    ) -> impl Future<Output = io::Result<()>> {
        async move {
            let mut written =
                turn::send_now(stream.as_raw_fd(), &self.gathered).unwrap_or(Ok(0))?;
            while written < self.gathered.len() {
                client.arm_deadline(Phase::Write);
                let gathered = mem::take(&mut self.gathered);
                let (result, slice) = stream.write(gathered.slice(written..)).await;
                self.gathered = slice.into_inner();
                written += progress(result)?;
            }
            self.gathered.clear();
            if let Some(direct) = self.direct.take() {
                Box::pin(write_all(stream, direct, client)).await?;
            }
            // The next wait is not for the client.
            client.disarm_deadline();
            Ok(())
        }
    }
}

async fn write_all<S: AsyncWriteRent>(
    stream: &mut S,
    mut bytes: Bytes,
    client: &ClientHandle,
) -> io::Result<()> {
    while !bytes.is_empty() {
        // Starts again with each part that the client takes.
        client.arm_deadline(Phase::Write);
        let (result, unwritten) = stream.write(bytes).await;
        bytes = unwritten;
        bytes.advance(progress(result)?);
    }
    Ok(())
}

/// A write that writes nothing would be repeated forever.
fn progress(written: io::Result<usize>) -> io::Result<usize> {
    match written {
        Ok(0) => Err(io::ErrorKind::WriteZero.into()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(buffer: &mut WriteBuffer, body_bytes: usize) {
        let response = Response::text(200, vec![b'x'; body_bytes]);
        buffer.push(&response, Form { head_only: false, close: false, keep_alive: false });
    }

    #[test]
    fn a_write_buffer_that_is_dropped_comes_back_empty() {
        let pool = WriteBufferPool::default();
        for body_bytes in [0, 1, DIRECT_BYTES - 1, DIRECT_BYTES] {
            let mut buffer = pool.take();
            assert!(buffer.is_empty());
            fill(&mut buffer, body_bytes);
            drop(buffer);
            assert_eq!(pool.spares.borrow().len(), 1);
        }
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut buffer = pool.take();
            fill(&mut buffer, 1);
            panic!("on purpose");
        }));
        assert!(panicked.is_err());
        assert!(pool.take().is_empty());
    }

    #[test]
    fn spares_are_bounded_in_number_and_size() {
        let pool = WriteBufferPool::default();
        let taken: Vec<_> = (0..=SPARES_MAX).map(|_| pool.take()).collect();
        drop(taken);
        assert_eq!(pool.spares.borrow().len(), SPARES_MAX);

        let pool = WriteBufferPool::default();
        let mut grown = pool.take();
        for _ in 0..5 {
            fill(&mut grown, DIRECT_BYTES - 1);
        }
        drop(grown);
        assert!(pool.spares.borrow().is_empty());
    }
}
