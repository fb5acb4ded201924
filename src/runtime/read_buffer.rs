//! Bytes that were received and not read yet, and the buffers that they are received into.
//!
//! A connection that waits holds a small buffer; one that receives more borrows a large one from its
//! worker for as long as it needs it. Knows nothing of what the bytes say.

#![allow(clippy::manual_async_fn)]

use std::{
    cell::{Cell, RefCell},
    io, mem,
};

use monoio::{
    buf::{IoBufMut, SliceMut},
    io::{AsyncReadRent, CancelHandle, CancelableAsyncReadRent},
};

/// The buffer of a connection that waits. Requests of most programs fit; those of browsers take a second read, into a
/// large buffer. It fills a chunk of 208 bytes of glibc's malloc.
const SMALL_BYTES: usize = 200;
/// Free large buffers that a worker keeps.
const SPARES_MAX: usize = 64;

/// A worker's free large buffers. Each has room for `large_bytes`.
#[derive(Debug)]
pub struct ReadBufferPool {
    large_bytes: Cell<usize>,
    /// All of the present size.
    spares: RefCell<Vec<Vec<u8>>>,
}

impl ReadBufferPool {
    /// No buffers yet; new ones have room for `large_bytes`.
    pub fn new(large_bytes: usize) -> Self {
        let spares = RefCell::new(Vec::with_capacity(SPARES_MAX));
        Self { large_bytes: Cell::new(large_bytes), spares }
    }

    /// Sets the size of new buffers. Borrowed ones keep their size, and are dropped when they are given back.
    pub fn set_large_bytes(&self, large_bytes: usize) {
        if self.large_bytes.replace(large_bytes) != large_bytes {
            self.spares.borrow_mut().clear();
        }
    }

    /// An empty large buffer.
    pub fn take(&self) -> Vec<u8> {
        let spare = self.spares.borrow_mut().pop();
        spare.unwrap_or_else(|| Vec::with_capacity(self.large_bytes.get()))
    }

    /// Takes a buffer back, and empties it. One of another size is dropped.
    pub fn give_back(&self, mut buffer: Vec<u8>) {
        let mut spares = self.spares.borrow_mut();
        if spares.len() < SPARES_MAX && buffer.capacity() == self.large_bytes.get() {
            buffer.clear();
            spares.push(buffer);
        }
    }

    /// How many bytes each spare buffer holds: none.
    #[cfg(test)]
    pub fn spare_lengths(&self) -> Vec<usize> {
        self.spares.borrow().iter().map(Vec::len).collect()
    }
}

/// Bytes received, in order, and how many of them were read.
#[derive(Debug, Default)]
pub struct ReadBuffer {
    bytes: Vec<u8>,
    /// How many of `bytes` were read; never more than there are.
    read: usize,
    /// The small buffer, while `bytes` is a large one.
    small: Vec<u8>,
}

impl ReadBuffer {
    /// The bytes that were received and not read.
    pub fn unread(&self) -> &[u8] {
        &self.bytes[self.read..]
    }

    /// Marks the first `count` unread bytes as read.
    pub fn consume(&mut self, count: usize) {
        assert!(count <= self.unread().len(), "consumed bytes that were not received");
        self.read += count;
    }

    /// Receives once, appending to what is unread; gives the number of bytes, 0 at the end of the
    /// stream.
    ///
    /// # Errors
    /// The stream's error; `OutOfMemory` when the unread bytes fill a large buffer, which the limits on
    /// unread bytes prevent.
    pub fn fill<R: AsyncReadRent>(
        &mut self,
        stream: &mut R,
        pool: &ReadBufferPool,
    ) -> impl Future<Output = io::Result<usize>> {
        async move {
            self.make_room(pool, false)?;
            let (result, slice) = stream.read(self.lend()).await;
            self.bytes = slice.into_inner();
            result
        }
    }

    /// Receives once, like [`fill`](Self::fill), into the room that was made.
    ///
    /// # Errors
    /// The stream's error.
    pub async fn receive<R: AsyncReadRent>(&mut self, stream: &mut R) -> io::Result<usize> {
        let (result, slice) = stream.read(self.lend()).await;
        self.bytes = slice.into_inner();
        result
    }

    /// Receives like [`fill`](Self::fill), until `cancel` is cancelled; then it ends with an error or, if bytes had
    /// arrived before, with those.
    ///
    /// # Errors
    /// As `fill`; `ECANCELED` when it was cancelled.
    pub async fn fill_until<R: CancelableAsyncReadRent>(
        &mut self,
        stream: &mut R,
        pool: &ReadBufferPool,
        cancel: CancelHandle,
    ) -> io::Result<usize> {
        self.make_room(pool, false)?;
        let (result, slice) = stream.cancelable_read(self.lend(), cancel).await;
        self.bytes = slice.into_inner();
        result
    }

    /// The room that was made, which the kernel owns until the read has ended. Not a `Result`: a value to which `?`
    /// is applied in the statement of an await stays in the future of each connection.
    fn lend(&mut self) -> SliceMut<Vec<u8>> {
        let bytes = mem::take(&mut self.bytes);
        let (held, room) = (bytes.len(), bytes.capacity());
        bytes.slice_mut(held..room)
    }

    /// Makes room behind what is unread: in a large buffer if much is expected.
    ///
    /// # Errors
    /// `OutOfMemory`, as [`fill`](Self::fill).
    pub fn make_room(&mut self, pool: &ReadBufferPool, much: bool) -> io::Result<()> {
        if self.read > 0 {
            self.bytes.drain(..self.read);
            self.read = 0;
        }
        if self.bytes.is_empty() && !much {
            self.shrink(pool);
        }
        let is_large = self.bytes.capacity() >= pool.large_bytes.get();
        if self.bytes.len() < self.bytes.capacity() && (is_large || !much) {
            return Ok(());
        }
        if is_large {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        if self.bytes.capacity() == 0 && self.small.capacity() == 0 {
            self.bytes = Vec::with_capacity(SMALL_BYTES.min(pool.large_bytes.get()));
            if !much {
                return Ok(());
            }
        }
        let mut large = pool.take();
        large.extend_from_slice(&self.bytes);
        let outgrown = mem::replace(&mut self.bytes, large);
        if self.small.capacity() == 0 {
            self.small = outgrown;
        }
        // Else it is a large buffer of an earlier, smaller size: it is dropped.
        Ok(())
    }

    /// Gives an empty large buffer back.
    fn shrink(&mut self, pool: &ReadBufferPool) {
        if self.small.capacity() > 0 {
            let mut small = mem::take(&mut self.small);
            small.clear();
            pool.give_back(mem::replace(&mut self.bytes, small));
        }
    }

    /// Gives the large buffer back, if there is one. Called before the read buffer is dropped, so that another
    /// connection can use the large one.
    pub fn release(&mut self, pool: &ReadBufferPool) {
        self.bytes.clear();
        self.read = 0;
        self.shrink(pool);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use monoio::{BufResult, buf::IoVecBufMut};

    use super::*;

    /// A stream that gives these pieces, one a read.
    struct Pieces(VecDeque<Vec<u8>>);

    impl AsyncReadRent for Pieces {
        async fn read<T: IoBufMut>(&mut self, buf: T) -> BufResult<usize, T> {
            // A generic buffer can be written to only through a pointer, so a reader of `Vec`s does.
            let mut buf = buf;
            let Some(slice) =
                (&mut buf as &mut dyn std::any::Any).downcast_mut::<SliceMut<Vec<u8>>>()
            else {
                return (Err(io::ErrorKind::Unsupported.into()), buf);
            };
            let room = slice.end() - slice.begin();
            let piece = self.0.pop_front().unwrap_or_default();
            let (now, later) = piece.split_at(piece.len().min(room));
            slice.get_mut().extend_from_slice(now);
            if !later.is_empty() {
                self.0.push_front(later.to_vec());
            }
            (Ok(now.len()), buf)
        }

        async fn readv<T: IoVecBufMut>(&mut self, buf: T) -> BufResult<usize, T> {
            (Err(io::ErrorKind::Unsupported.into()), buf)
        }
    }

    fn fill(
        read_buffer: &mut ReadBuffer,
        stream: &mut Pieces,
        pool: &ReadBufferPool,
    ) -> io::Result<usize> {
        let future = std::pin::pin!(read_buffer.fill(stream, pool));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let std::task::Poll::Ready(result) = future.poll(&mut context) else {
            panic!("the pieces are at hand")
        };
        result
    }

    #[test]
    fn it_grows_to_a_large_buffer_and_gives_it_back() {
        let pool = ReadBufferPool::new(2000);
        let mut read_buffer = ReadBuffer::default();
        let bytes: Vec<u8> = (0..1999u32).map(|i| i.to_le_bytes()[0]).collect();
        let mut stream = Pieces([bytes.clone(), b"x".to_vec(), b"y".to_vec()].into());
        assert_eq!(fill(&mut read_buffer, &mut stream, &pool).unwrap(), SMALL_BYTES);
        assert_eq!(fill(&mut read_buffer, &mut stream, &pool).unwrap(), bytes.len() - SMALL_BYTES);
        assert_eq!(read_buffer.unread(), bytes);
        assert_eq!(fill(&mut read_buffer, &mut stream, &pool).unwrap(), 1);
        let full = fill(&mut read_buffer, &mut stream, &pool).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::OutOfMemory);

        read_buffer.consume(1999);
        assert_eq!(read_buffer.unread(), b"x");
        assert_eq!(fill(&mut read_buffer, &mut stream, &pool).unwrap(), 1);
        assert_eq!(read_buffer.unread(), b"xy");
        assert_eq!(pool.spares.borrow().len(), 0);
        read_buffer.consume(2);
        assert_eq!(fill(&mut read_buffer, &mut stream, &pool).unwrap(), 0);
        assert_eq!(pool.spares.borrow().len(), 1);
        assert_eq!(read_buffer.bytes.capacity(), SMALL_BYTES);
    }

    #[test]
    fn it_begins_with_a_large_buffer_where_much_is_expected() {
        let pool = ReadBufferPool::new(1000);
        let mut read_buffer = ReadBuffer::default();
        for (much, capacity, spares) in [(true, 1000, 0), (false, SMALL_BYTES, 1), (true, 1000, 0)]
        {
            read_buffer.make_room(&pool, much).unwrap();
            assert_eq!(read_buffer.bytes.capacity(), capacity);
            assert_eq!(pool.spare_lengths(), vec![0; spares]);
        }
        // What is unread is kept.
        let mut stream = Pieces([vec![b'x'; 3]].into());
        read_buffer.make_room(&pool, false).unwrap();
        fill(&mut read_buffer, &mut stream, &pool).unwrap();
        read_buffer.consume(1);
        read_buffer.make_room(&pool, true).unwrap();
        assert_eq!((read_buffer.unread(), read_buffer.bytes.capacity()), (&b"xx"[..], 1000));
    }

    #[test]
    fn buffers_of_two_sizes_are_not_mixed() {
        let pool = ReadBufferPool::new(1000);
        let mut read_buffer = ReadBuffer::default();
        let bytes = vec![b'x'; 4000];
        let mut stream = Pieces([bytes.clone()].into());
        fill(&mut read_buffer, &mut stream, &pool).unwrap();
        fill(&mut read_buffer, &mut stream, &pool).unwrap();
        pool.give_back(pool.take());
        // A full large buffer is replaced by one of the new size, and the small one is kept.
        pool.set_large_bytes(3000);
        assert_eq!(pool.spares.borrow().len(), 0);
        assert_eq!(fill(&mut read_buffer, &mut stream, &pool).unwrap(), 2000);
        assert_eq!(read_buffer.unread(), &bytes[..3000]);
        assert_eq!(
            (read_buffer.bytes.capacity(), read_buffer.small.capacity()),
            (3000, SMALL_BYTES)
        );
        // One that is larger than the new size is used to its end, and dropped.
        pool.set_large_bytes(2000);
        let full = fill(&mut read_buffer, &mut stream, &pool).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::OutOfMemory);
        read_buffer.consume(2999);
        assert_eq!(fill(&mut read_buffer, &mut stream, &pool).unwrap(), 1000);
        read_buffer.consume(1001);
        assert_eq!(fill(&mut read_buffer, &mut stream, &pool).unwrap(), 0);
        assert_eq!(pool.spares.borrow().len(), 0);
        assert_eq!((read_buffer.bytes.capacity(), pool.take().capacity()), (SMALL_BYTES, 2000));
    }

    #[test]
    fn a_buffer_that_is_given_back_is_empty() {
        let mut unread = ReadBuffer::default();
        let (pool, mut stream) = (ReadBufferPool::new(1000), Pieces([vec![b'x'; 500]].into()));
        fill(&mut unread, &mut stream, &pool).unwrap();
        fill(&mut unread, &mut stream, &pool).unwrap();
        unread.consume(1);
        unread.release(&pool);
        assert!(unread.unread().is_empty());
        pool.give_back({
            let mut buffer = Vec::with_capacity(1000);
            buffer.extend_from_slice(b"secret");
            buffer
        });
        assert_eq!(pool.spare_lengths(), [0, 0]);
        assert!(pool.take().is_empty());
    }

    #[test]
    fn spares_are_bounded() {
        let pool = ReadBufferPool::new(100);
        let taken: Vec<_> = (0..=SPARES_MAX).map(|_| pool.take()).collect();
        taken.into_iter().for_each(|buffer| pool.give_back(buffer));
        assert_eq!(pool.spares.borrow().len(), SPARES_MAX);
    }
}
