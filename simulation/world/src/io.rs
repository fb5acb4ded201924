//! What `monoio::io` has: the traits of streams, and how an operation is cancelled.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    mem,
    rc::Rc,
};

pub use monoio::io::{AsyncReadRent, AsyncWriteRent, sink};
use monoio::{
    BufResult,
    buf::{IoBufMut, IoVecBufMut},
};

pub use rustix::io::Errno;

pub use crate::net::{OwnedReadHalf, OwnedWriteHalf};
use crate::{operation::OperationKey, world::with};

/// A stream that two tasks can use, one for each direction.
pub trait Splitable {
    /// What is read from.
    type OwnedRead;
    /// What is written to.
    type OwnedWrite;

    /// Makes two of it.
    fn into_split(self) -> (Self::OwnedRead, Self::OwnedWrite);
}

/// A stream whose reads can be cancelled.
pub trait CancelableAsyncReadRent: AsyncReadRent {
    /// Reads until it is cancelled.
    fn cancelable_read<T: IoBufMut>(
        &mut self,
        buf: T,
        cancel: CancelHandle,
    ) -> impl Future<Output = BufResult<usize, T>>;

    /// As `readv`.
    fn cancelable_readv<T: IoVecBufMut>(
        &mut self,
        buf: T,
        cancel: CancelHandle,
    ) -> impl Future<Output = BufResult<usize, T>>;
}

/// Cancels operations.
#[derive(Debug, Default)]
pub struct Canceller(Rc<Shared>);

/// What an operation is begun with, so that it can be cancelled.
#[derive(Debug, Clone)]
pub struct CancelHandle(Rc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    canceled: Cell<bool>,
    operations: RefCell<Vec<OperationKey>>,
}

impl Canceller {
    /// Of no operation yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What to begin an operation with.
    pub fn handle(&self) -> CancelHandle {
        CancelHandle(Rc::clone(&self.0))
    }

    /// Asks the kernel to end the operations. They may complete before it does.
    pub fn cancel(self) -> Self {
        self.0.canceled.set(true);
        let operations = mem::take(&mut *self.0.operations.borrow_mut());
        with(|world| operations.into_iter().for_each(|operation| world.cancel_soon(operation)));
        Self::default()
    }
}

impl CancelHandle {
    /// Whether it was cancelled before anything began.
    pub(crate) fn is_canceled(&self) -> bool {
        self.0.canceled.get()
    }

    pub(crate) fn add(&self, operation: OperationKey) {
        self.0.operations.borrow_mut().push(operation);
    }
}
