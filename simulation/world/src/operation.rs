//! Operations that the kernel has: it owns their buffers until they have completed.
//!
//! ```text
//!   submitted --can complete--> attempted --> completed --polled--> gone, with its buffer
//!       |  ^                        |
//!       |  +------ cannot yet ------+
//!       |
//!       +--given up--> abandoned --completes, or is cancelled--> gone; what it received is lost
//! ```
//!
//! On a ring, an operation is submitted when it is begun, and completes some time after it can. With epoll it is
//! attempted whenever it is polled, and one that is given up has done nothing.

use std::{
    any::Any,
    future::Future,
    io,
    marker::PhantomData,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use monoio::{
    BufResult,
    buf::{Slice, SliceMut},
};
use slotmap::new_key_type;

use crate::{
    io::CancelHandle,
    world::{Process, SocketKey, What, World, with, with_any},
};

new_key_type! {
    /// Names an operation.
    pub(crate) struct OperationKey;
}

/// What an operation ends with: its outcome, its buffer, the socket that it gives.
type Ended = (io::Result<usize>, Box<dyn Any>, Option<SocketKey>);

/// What `ECANCELED` is.
const CANCELED: i32 = 125;

pub(crate) struct Operation {
    pub(crate) kind: Kind,
    pub(crate) process: Process,
    /// The kernel's while the operation is under way.
    buffer: Option<Box<dyn Any>>,
    waker: Option<Waker>,
    outcome: Option<io::Result<usize>>,
    /// What connect and accept give.
    socket: Option<SocketKey>,
    /// Nobody waits for it.
    abandoned: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Read(SocketKey),
    Write(SocketKey),
    Connect(SocketAddr),
    Accept(SocketAddr),
}

impl Kind {
    pub(crate) fn socket(self) -> Option<SocketKey> {
        match self {
            Self::Read(socket) | Self::Write(socket) => Some(socket),
            Self::Connect(_) | Self::Accept(_) => None,
        }
    }
}

/// Waits for an operation; dropped before its end, it gives it up.
pub(crate) struct Waiting<T> {
    operation: OperationKey,
    ended: bool,
    buffer: PhantomData<T>,
}

// Nothing in it is pinned: the buffer is the kernel's.
impl<T> Unpin for Waiting<T> {}

/// Begins an operation on `buffer`.
pub(crate) fn begin<T: 'static>(
    kind: Kind,
    buffer: T,
    cancel: Option<&CancelHandle>,
) -> Waiting<T> {
    let operation = with(|world| world.submit(kind, Box::new(buffer)));
    if let Some(cancel) = cancel {
        cancel.add(operation);
        if cancel.is_canceled() {
            with(|world| world.cancel_soon(operation));
        }
    }
    Waiting { operation, ended: false, buffer: PhantomData }
}

impl<T: 'static> Waiting<T> {
    /// The outcome, the buffer, and the socket that it gave.
    fn poll_end(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<(io::Result<usize>, T, Option<SocketKey>)> {
        let ended = with(|world| world.poll_operation(self.operation, context.waker()));
        let Some((outcome, buffer, socket)) = ended else { return Poll::Pending };
        self.ended = true;
        let buffer = buffer.downcast().expect("the buffer that was given");
        Poll::Ready((outcome, *buffer, socket))
    }
}

impl<T: 'static> Future for Waiting<T> {
    type Output = BufResult<usize, T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<BufResult<usize, T>> {
        self.poll_end(context).map(|(outcome, buffer, _)| (outcome, buffer))
    }
}

/// Waits for a connection that is made or accepted.
pub(crate) async fn end(mut waiting: Waiting<()>) -> io::Result<SocketKey> {
    let (outcome, (), socket) = std::future::poll_fn(|context| waiting.poll_end(context)).await;
    outcome.map(|_| socket.expect("what succeeds gives a socket"))
}

impl<T> Drop for Waiting<T> {
    fn drop(&mut self) {
        if !self.ended {
            with_any(|world| world.abandon(self.operation));
        }
    }
}

impl World {
    fn submit(&mut self, kind: Kind, buffer: Box<dyn Any>) -> OperationKey {
        let operation = self.operations.insert(Operation {
            kind,
            process: self.running,
            buffer: Some(buffer),
            waker: None,
            outcome: None,
            socket: None,
            abandoned: false,
        });
        if let Some(socket) = kind.socket() {
            self.sockets[socket].references += 1;
        }
        if !self.settings.legacy || matches!(kind, Kind::Connect(_)) {
            self.attempt_soon(operation);
        }
        operation
    }

    fn attempt_soon(&mut self, operation: OperationKey) {
        let delay = self.delay(self.settings.completion);
        self.at(self.now() + delay, What::Attempt(operation));
    }

    pub(crate) fn cancel_soon(&mut self, operation: OperationKey) {
        let delay = self.delay(self.settings.completion);
        self.at(self.now() + delay, What::Cancel(operation));
    }

    /// Something has happened that operations like this may have waited for.
    pub(crate) fn retry(&mut self, is: impl Fn(Kind) -> bool) {
        let waiting = self.operations.iter().filter(|(_, operation)| is(operation.kind));
        let waiting: Vec<_> = waiting.map(|(key, _)| key).collect();
        waiting.into_iter().for_each(|operation| self.attempt_soon(operation));
    }

    fn poll_operation(&mut self, key: OperationKey, waker: &Waker) -> Option<Ended> {
        if self.settings.legacy && !matches!(self.operations[key].kind, Kind::Connect(_)) {
            self.complete(key);
        }
        let operation = &mut self.operations[key];
        if operation.outcome.is_none() {
            operation.waker = Some(waker.clone());
            return None;
        }
        let operation = self.remove_operation(key)?;
        Some((operation.outcome?, operation.buffer?, operation.socket))
    }

    /// Completes an operation on a ring; lets it be polled where there is epoll.
    pub(crate) fn attempt(&mut self, key: OperationKey) {
        let Some(operation) = self.operations.get(key) else { return };
        if operation.outcome.is_some() {
            return;
        }
        let at_once = self.settings.legacy && !matches!(operation.kind, Kind::Connect(_));
        if at_once || self.complete(key) {
            self.tell(key);
        }
    }

    pub(crate) fn cancel(&mut self, key: OperationKey) {
        let Some(operation) = self.operations.get_mut(key) else { return };
        if operation.outcome.is_none() {
            operation.outcome = Some(Err(io::Error::from_raw_os_error(CANCELED)));
            self.tell(key);
        }
    }

    /// It has ended, or can be tried again.
    fn tell(&mut self, key: OperationKey) {
        let Some(operation) = self.operations.get_mut(key) else { return };
        if operation.abandoned {
            self.remove_operation(key);
        } else if let Some(waker) = operation.waker.take() {
            waker.wake();
        }
    }

    fn remove_operation(&mut self, key: OperationKey) -> Option<Operation> {
        let operation = self.operations.remove(key)?;
        if let Some(socket) = operation.kind.socket() {
            self.release(socket);
        }
        if operation.abandoned
            && let (Kind::Connect(_), Some(socket)) = (operation.kind, operation.socket)
        {
            self.close(socket);
        }
        // monoio loses the socket of an accept that has completed and was given up: it stays open.
        Some(operation)
    }

    fn abandon(&mut self, key: OperationKey) {
        let legacy = self.settings.legacy;
        let Some(operation) = self.operations.get_mut(key) else { return };
        operation.abandoned = true;
        operation.waker = None;
        if legacy || operation.outcome.is_some() {
            self.remove_operation(key);
        } else {
            // The asynchronous cancel races with the completion.
            self.cancel_soon(key);
        }
    }

    /// Does what the operation is for, if it can; whether it has ended.
    fn complete(&mut self, key: OperationKey) -> bool {
        let operation = &mut self.operations[key];
        if operation.outcome.is_some() {
            return true;
        }
        let (kind, process) = (operation.kind, operation.process);
        let mut buffer = operation.buffer.take();
        let ended = match (kind, &mut buffer) {
            (Kind::Read(socket), Some(buffer)) => {
                self.read(socket, &mut **buffer).map(|outcome| (outcome, None))
            }
            (Kind::Write(socket), Some(buffer)) => {
                self.write(socket, bytes_of(&**buffer)).map(|outcome| (outcome, None))
            }
            (Kind::Connect(address), _) => self.connect(process, address).map(unzip),
            (Kind::Accept(address), _) => self.accept(process, address).map(unzip),
            (_, None) => unreachable!("it has its buffer until it ends"),
        };
        let operation = &mut self.operations[key];
        operation.buffer = buffer;
        let Some((outcome, socket)) = ended else { return false };
        operation.outcome = Some(outcome);
        operation.socket = socket;
        true
    }

    fn read(&mut self, socket: SocketKey, buffer: &mut dyn Any) -> Option<io::Result<usize>> {
        if let Some(slice) = buffer.downcast_mut::<SliceMut<Vec<u8>>>() {
            let room = slice.end() - slice.begin();
            assert_eq!(slice.get_ref().len(), slice.begin(), "it is read behind what was there");
            return self.receive(socket, room, slice.get_mut());
        }
        let bytes = buffer.downcast_mut::<Vec<u8>>().expect("a kind of buffer that is simulated");
        self.receive(socket, bytes.capacity() - bytes.len(), bytes)
    }
}

fn unzip(socket: io::Result<SocketKey>) -> (io::Result<usize>, Option<SocketKey>) {
    match socket {
        Ok(socket) => (Ok(0), Some(socket)),
        Err(error) => (Err(error), None),
    }
}

/// What is to be written: the kinds of buffers that the code of tallyring writes from.
fn bytes_of(buffer: &dyn Any) -> &[u8] {
    if let Some(slice) = buffer.downcast_ref::<Slice<Vec<u8>>>() {
        return &slice.get_ref()[slice.begin()..slice.end()];
    }
    if let Some(slice) = buffer.downcast_ref::<Slice<std::rc::Rc<Bytes>>>() {
        return &slice.get_ref()[slice.begin()..slice.end()];
    }
    if let Some(bytes) = buffer.downcast_ref::<Vec<u8>>() {
        return bytes;
    }
    buffer.downcast_ref::<Bytes>().expect("a kind of buffer that is simulated")
}
