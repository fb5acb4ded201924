//! Answers to one client, gathered into as few writes as possible.

#![allow(clippy::manual_async_fn)]

use std::{
    cell::{Cell, RefCell},
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

/// What a write buffer has room for before it grows: the answer to one visit, with a page of usual length.
const SMALL_BYTES: usize = 512;
/// Room for the head of an answer behind what was gathered.
const HEAD_BYTES: usize = 1024;
/// The largest write buffer that is kept. It doubles when it grows.
const LARGE_BYTES: usize = 2 * (FLUSH_BYTES + DIRECT_BYTES + HEAD_BYTES);

/// What all free write buffers of a worker may hold. With small ones, this is for a burst of 2,048 answers.
const SPARE_BYTES_MAX: usize = 1024 * 1024;

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
    /// Boxed: the task of each client has room for one.
    #[allow(clippy::vec_box)]
    spares: RefCell<Vec<Box<WriteBuffer>>>,
    /// The capacity of all spares.
    spare_bytes: Cell<usize>,
}

impl WriteBufferPool {
    /// The write buffer of a client.
    pub fn lend(&self) -> PooledWriteBuffer<'_> {
        PooledWriteBuffer { pool: self, buffer: None }
    }

    /// How many buffers are free.
    #[cfg(test)]
    pub fn spares(&self) -> usize {
        self.spares.borrow().len()
    }

    /// An empty buffer, the one that was used last.
    fn take(&self) -> Box<WriteBuffer> {
        let Some(spare) = self.spares.borrow_mut().pop() else {
            return Box::new(WriteBuffer::new());
        };
        self.spare_bytes.update(|bytes| bytes - spare.gathered.capacity());
        spare
    }

    /// Takes a write buffer back and empties it: what it still holds was for a client that is gone. A buffer that has
    /// grown too far is freed, and so is one whose memory went with a write that was never awaited.
    fn put(&self, mut buffer: Box<WriteBuffer>) {
        buffer.clear();
        let mut spares = self.spares.borrow_mut();
        let capacity = buffer.gathered.capacity();
        let spare_bytes = self.spare_bytes.get() + capacity;
        if (SMALL_BYTES..=LARGE_BYTES).contains(&capacity) && spare_bytes <= SPARE_BYTES_MAX {
            spares.push(buffer);
            self.spare_bytes.set(spare_bytes);
        }
    }
}

/// A write buffer whose memory is the worker's: it is borrowed for the first answer that is added, and goes back when it
/// is [given back](Self::give_back) or dropped. However that happens, by an error or a panic too, it goes back empty.
#[derive(Debug)]
pub struct PooledWriteBuffer<'a> {
    pool: &'a WriteBufferPool,
    /// `None` while nothing was added.
    buffer: Option<Box<WriteBuffer>>,
}

impl PooledWriteBuffer<'_> {
    /// Gives the memory back before the client waits for something else. Until the next answer is added, it is empty.
    pub fn give_back(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.pool.put(buffer);
        }
    }
}

impl Deref for PooledWriteBuffer<'_> {
    type Target = WriteBuffer;

    fn deref(&self) -> &WriteBuffer {
        static EMPTY: WriteBuffer = WriteBuffer { gathered: Vec::new(), direct: None };
        self.buffer.as_deref().unwrap_or(&EMPTY)
    }
}

impl DerefMut for PooledWriteBuffer<'_> {
    fn deref_mut(&mut self) -> &mut WriteBuffer {
        self.buffer.get_or_insert_with(|| self.pool.take())
    }
}

impl Drop for PooledWriteBuffer<'_> {
    fn drop(&mut self) {
        self.give_back();
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
        Self { gathered: Vec::with_capacity(SMALL_BYTES), direct: None }
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
            let mut buffer = pool.lend();
            assert!(buffer.is_empty());
            fill(&mut buffer, body_bytes);
            assert!(!buffer.is_empty());
            drop(buffer);
            assert_eq!(pool.spares(), 1);
            assert!(pool.take().is_empty());
        }
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut buffer = pool.lend();
            fill(&mut buffer, 1);
            panic!("on purpose");
        }));
        assert!(panicked.is_err());
        assert_eq!(pool.spares(), 1);
        assert!(pool.take().is_empty());
    }

    #[test]
    fn a_client_that_waits_has_none() {
        let pool = WriteBufferPool::default();
        let (mut one, mut other) = (pool.lend(), pool.lend());
        assert!(one.is_empty() && !one.is_full() && one.buffer.is_none());
        fill(&mut one, DIRECT_BYTES);
        one.give_back();
        // Given back with an answer in it, as after a failed write.
        assert!(one.is_empty() && one.buffer.is_none());
        fill(&mut other, 1);
        assert!(pool.spares() == 0);
        let answer = String::from_utf8(other.gathered.clone()).unwrap();
        assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 1, "{answer}");
        assert!(answer.ends_with("\r\n\r\nx") && other.direct.is_none(), "{answer}");
        fill(&mut one, 1);
        drop((one, other));
        assert_eq!(pool.spares(), 2);
    }

    /// The capacities of the spares after `buffers` clients had answers of `body_bytes` at the same time.
    fn spares(buffers: usize, answers: usize, body_bytes: usize) -> Vec<usize> {
        let pool = WriteBufferPool::default();
        let mut lent: Vec<_> = (0..buffers).map(|_| pool.lend()).collect();
        for buffer in &mut lent {
            (0..answers).for_each(|_| fill(buffer, body_bytes));
        }
        drop(lent);
        let capacities: Vec<_> =
            pool.spares.borrow().iter().map(|spare| spare.gathered.capacity()).collect();
        assert_eq!(pool.spare_bytes.get(), capacities.iter().sum::<usize>());
        (0..capacities.len()).for_each(|_| drop(pool.take()));
        assert_eq!(pool.spare_bytes.get(), 0);
        capacities
    }

    #[test]
    fn spares_are_bounded_in_number_and_size() {
        let small = SPARE_BYTES_MAX / SMALL_BYTES;
        assert_eq!(spares(small + 1, 1, 1), vec![SMALL_BYTES; small]);
        // The most that is gathered before a flush.
        let large = spares(100, 3, DIRECT_BYTES - 1);
        assert!((SPARE_BYTES_MAX / LARGE_BYTES..100).contains(&large.len()), "{large:?}");
        assert!(large.iter().all(|bytes| *bytes > FLUSH_BYTES), "{large:?}");
        assert_eq!(spares(1, 7, DIRECT_BYTES - 1), [0; 0]);
    }

    #[test]
    fn a_write_buffer_without_its_memory_is_not_kept() {
        let pool = WriteBufferPool::default();
        let mut buffer = pool.lend();
        fill(&mut buffer, 1);
        // As a write does that is never awaited to its end.
        drop(mem::take(&mut buffer.gathered));
        drop(buffer);
        assert!(pool.spares() == 0);
    }
}
