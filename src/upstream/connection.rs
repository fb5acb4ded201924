//! One connection to the counter, run by one task, which only moves bytes: the pool decides what to send and what
//! becomes of a call.
//!
//! Requests that are ready at the same time leave in one write, and all answers that a read gives are told at once. A
//! write is never waited for with a read that is due: which calls have left whole, and which not at all, is known from
//! what the writes have taken.
//!
//! A read is posted for as long as the connection lives. While it carries no call, whatever that read gives, the end
//! of the stream or unexpected bytes, ends the connection.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    io, mem,
    net::SocketAddr,
    os::fd::{AsRawFd, RawFd},
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, Waker},
};

use monoio::{
    buf::IoBuf,
    io::{AsyncWriteRent, OwnedReadHalf, OwnedWriteHalf, Splitable},
    net::TcpStream,
};
use nix::sys::socket::{Shutdown, shutdown};

use super::{
    CallBytes, DialError, Upstream,
    dial::dial,
    in_flight::{InFlight, Left, Sent},
    pool::ConnectionId,
    response_reader::{Answer, ResponseLimits},
};
use crate::runtime::{
    clock::{self, Stamp},
    read_buffer::ReadBuffer,
    turn,
};

type Reader = OwnedReadHalf<TcpStream>;
type Writer = OwnedWriteHalf<TcpStream>;

/// An established connection, as others can wake or cut it.
pub(super) struct Handle {
    socket: RawFd,
    /// The task's; `None` until it has waited for a call.
    waker: RefCell<Option<Waker>>,
}

impl Handle {
    /// Wakes the task, which then asks for its call.
    pub(super) fn wake(&self) {
        // The runtime's waker only puts the task into a queue, so nothing else borrows this meanwhile.
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    /// Ends the connection: its pending operations end by themselves.
    pub(super) fn cut(&self) {
        // An error means that the counter has closed already.
        let _ = shutdown(self.socket, Shutdown::Both);
    }

    fn set_waker(&self, new: &Waker) {
        let mut waker = self.waker.borrow_mut();
        if waker.as_ref().is_none_or(|waker| !waker.will_wake(new)) {
            *waker = Some(new.clone());
        }
    }
}

/// A connection's place in the pool, from its dial to its end. However its task ends, by a panic too, the pool
/// is told.
pub(super) struct PoolGuard {
    upstream: Rc<Upstream>,
    id: ConnectionId,
    /// Why there is no connection; `None` once it is established.
    not_connected: Option<DialError>,
    /// Whether it has carried a call.
    used: Cell<bool>,
}

/// A request that is to be sent.
pub(super) struct Outgoing {
    request: CallBytes,
    sent: Sent,
    /// How many others can be taken.
    more: usize,
}

impl PoolGuard {
    /// For a connection that is about to be dialed.
    pub(super) fn new(upstream: &Rc<Upstream>, id: ConnectionId) -> Self {
        upstream.counts.connections.increment();
        upstream.counts.dialed.increment();
        Self {
            upstream: Rc::clone(upstream),
            id,
            not_connected: Some(DialError::Other),
            used: Cell::default(),
        }
    }

    /// The connection is established.
    pub(super) fn connected(&mut self, address: SocketAddr, socket: RawFd) -> Rc<Handle> {
        let handle = Rc::new(Handle { socket, waker: RefCell::new(None) });
        self.upstream.handles.borrow_mut().insert(self.id, Rc::clone(&handle));
        self.not_connected = None;
        self.upstream.note_time();
        self.upstream.tell(|pool| pool.connected(self.id, address, clock::now()));
        handle
    }

    /// The request to send next, if the connection has a call that was not sent.
    pub(super) fn take_request(&self) -> Option<Outgoing> {
        let taken = self.upstream.pool.borrow_mut().take_request(self.id, clock::now)?;
        if taken.batched > 0 {
            self.upstream.counts.batched_visits.add(taken.batched as u64);
            // Those that it leaves behind may be so many that they wait no longer.
            self.upstream.tell(|_| ());
        }
        if self.used.replace(true) {
            self.upstream.counts.reused.increment();
        }
        let began = Stamp::new(self.upstream.last_event());
        let sent = Sent { content: taken.content, began, bytes: taken.request.len() };
        Some(Outgoing { request: taken.request, sent, more: taken.more })
    }

    /// Reads what was received, and tells of the answers. Returns whether the connection goes on.
    fn read(
        &self,
        calls: &mut InFlight,
        limits: &ResponseLimits,
        received: &io::Result<usize>,
        buffer: &mut ReadBuffer,
    ) -> bool {
        let mut is_noted = false;
        calls.read(received, buffer, limits, |call, answer| {
            // Answers that come together come at one time.
            if !mem::replace(&mut is_noted, true) {
                self.upstream.note_time();
            }
            self.answered(call, answer)
        })
    }

    /// A call was answered at the last event. Returns whether the connection stays open.
    fn answered(&self, call: &Sent, answer: Answer) -> bool {
        let Upstream { counts, .. } = &*self.upstream;
        let now = self.upstream.last_event();
        let micros = call.began.micros_until(now);
        counts.calls.add(micros);
        counts.last_call_micros.set(micros);
        counts.last_answer_micros.set(now);
        self.upstream.tell(|pool| pool.answered(self.id, answer, clock::now()))
    }

    /// Not a byte of the last `count` calls has left, and no other call will be sent.
    fn not_sent(&self, count: usize) {
        self.upstream.tell(|pool| pool.not_sent(self.id, count, clock::now()));
    }
}

impl Drop for PoolGuard {
    fn drop(&mut self) {
        let Self { upstream, id, not_connected, .. } = self;
        upstream.counts.connections.decrement();
        upstream.handles.borrow_mut().remove(*id);
        match *not_connected {
            None => {
                upstream.note_time();
                upstream.tell(|pool| pool.closed(*id, clock::now()));
            }
            Some(error) => {
                (upstream.refresh)();
                upstream.tell(|pool| pool.dial_failed(*id, error, clock::now()));
            }
        }
    }
}

/// Opens a connection and runs it to its end.
pub(super) async fn dial_and_run(mut guard: PoolGuard) {
    // Boxed: it is over soon, and its timer is larger than all the rest.
    match Box::pin(open(&guard.upstream)).await {
        Ok((stream, address)) => run(guard, stream, address).await,
        Err(error) => {
            tracing::debug!(%error, "cannot connect to the counter");
            guard.not_connected = Some(DialError::from(&error));
        }
    }
}

/// Connects to an address that is still the counter's when the connection is established. Dials again only when the
/// addresses have changed meanwhile, which happens once a second at most.
async fn open(upstream: &Upstream) -> io::Result<(TcpStream, SocketAddr)> {
    loop {
        let (tried, timeout) = {
            let pool = upstream.pool.borrow();
            (pool.addresses().in_order(), pool.limits().connect_timeout)
        };
        let dialed = dial(&tried, timeout).await;
        let pool = upstream.pool.borrow();
        match dialed {
            Ok((stream, address)) if pool.addresses().contains(address) => {
                return Ok((stream, address));
            }
            Err(error) if !pool.addresses().has_others_than(&tried) => return Err(error),
            _ => {}
        }
    }
}

/// The bytes of requests after which a write takes no further one.
const WRITE_BYTES_MAX: usize = 32 * 1024;

/// What a connection waits for.
enum Event {
    /// A write has ended.
    Written(Written),
    /// A read has ended, or what it gave can be made sense of now.
    Received(Received),
    /// There is a call to send.
    Send(Outgoing),
}

/// Carries calls until the connection can carry no more.
async fn run(guard: PoolGuard, stream: TcpStream, address: SocketAddr) {
    let socket = stream.as_raw_fd();
    let (reader, writer) = stream.into_split();
    let mut limits = guard.upstream.response_limits();
    let mut receiver = Receiver::new(Rc::clone(&limits), reader, receive);
    // It is here while nothing is being written.
    let mut writer = Some(writer);
    let mut writing = pin!(nothing(write));
    let mut calls = InFlight::default();
    // Declared last and so dropped first: when the socket closes, nobody has its number any more.
    let mut guard = guard;
    let handle = guard.connected(address, socket);
    loop {
        let event = poll_fn(|context| {
            if let Some(write) = writing.as_mut().as_pin_mut()
                && let Poll::Ready(written) = write.poll(context)
            {
                return Poll::Ready(Event::Written(written));
            }
            // Before a call is taken: a connection that has ended must not take one with it.
            if calls.expects_bytes()
                && let Poll::Ready(received) = receiver.poll(context)
            {
                return Poll::Ready(Event::Received(received));
            }
            if writer.is_some()
                && let Some(outgoing) = guard.take_request()
            {
                return Poll::Ready(Event::Send(outgoing));
            }
            handle.set_waker(context.waker());
            Poll::Pending
        })
        .await;
        let written = match event {
            Event::Send(outgoing) => {
                limits = guard.upstream.response_limits();
                let requests = gather(&guard, outgoing, &mut calls);
                let left = turn::send_now(socket, &requests)
                    .map_or(Left::UpTo(0), |result| calls.written(&result));
                writer.take().map(|idle| (left, idle, requests))
            }
            Event::Written((result, used, requests)) => {
                Some((calls.written(&result), used, requests))
            }
            Event::Received((result, reader, mut buffer)) => {
                if !guard.read(&mut calls, &limits, &result, &mut buffer) {
                    return;
                }
                receiver.go_on(&limits, (result, reader, buffer), &calls);
                None
            }
        };
        if let Some((left, used, requests)) = written {
            writing.set(None);
            match left {
                Left::Whole => writer = Some(used),
                Left::UpTo(sent) => writing.set(Some(write(used, requests, sent))),
                Left::Never(count) => guard.not_sent(count),
            }
        }
        if calls.is_over() {
            return;
        }
    }
}

/// The bytes to write: those of this request, and of the others that are ready.
fn gather(guard: &PoolGuard, first: Outgoing, calls: &mut InFlight) -> CallBytes {
    let Outgoing { request, sent, more } = first;
    calls.push(sent);
    if more == 0 {
        return request;
    }
    let room = request.len().saturating_mul(more + 1).min(WRITE_BYTES_MAX);
    let mut bytes = Vec::with_capacity(room);
    bytes.extend_from_slice(&request);
    while bytes.len() < WRITE_BYTES_MAX
        && let Some(Outgoing { request, sent, .. }) = guard.take_request()
    {
        bytes.extend_from_slice(&request);
        calls.push(sent);
    }
    Rc::new(bytes.into())
}

/// The result of a write, and what the next one needs.
type Written = (io::Result<usize>, Writer, CallBytes);

/// Writes once, from this place on.
#[allow(clippy::manual_async_fn)]
fn write(mut writer: Writer, requests: CallBytes, from: usize) -> impl Future<Output = Written> {
    async move {
        let (result, slice) = writer.write(requests.slice(from..)).await;
        (result, writer, slice.into_inner())
    }
}

/// No write, of those that `write` makes.
fn nothing<F>(_: fn(Writer, CallBytes, usize) -> F) -> Option<F> {
    None
}

/// The result of a read, and what the next read needs.
type Received = (io::Result<usize>, Reader, ReadBuffer);

/// The read that is posted for as long as the connection lives. It is dropped only with the connection, since
/// the bytes that it may have received are lost with it.
struct Receiver<F> {
    reading: Pin<Box<F>>,
    post: fn(Rc<ResponseLimits>, Reader, ReadBuffer, bool) -> F,
    /// What was received before the call that it answers is known to have left. Meanwhile no read is posted.
    held: Option<Box<Received>>,
}

impl<F: Future<Output = Received>> Receiver<F> {
    fn new(
        limits: Rc<ResponseLimits>,
        reader: Reader,
        post: fn(Rc<ResponseLimits>, Reader, ReadBuffer, bool) -> F,
    ) -> Self {
        let reading = Box::pin(post(limits, reader, ReadBuffer::default(), false));
        Self { reading, post, held: None }
    }

    /// Posts the read, unless it is posted. Once something was received, [`go_on`](Self::go_on) comes next.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Received> {
        match self.held.take() {
            Some(held) => Poll::Ready(*held),
            None => self.reading.as_mut().poll(context),
        }
    }

    /// Prepares the next read, which is posted when it is first waited for.
    fn go_on(&mut self, limits: &Rc<ResponseLimits>, received: Received, calls: &InFlight) {
        let (_, reader, buffer) = received;
        if !buffer.unread().is_empty() && !calls.awaits_answer() {
            self.held = Some(Box::new((Ok(buffer.unread().len()), reader, buffer)));
            return;
        }
        self.reading.set((self.post)(Rc::clone(limits), reader, buffer, calls.expects_much()));
    }
}

#[allow(clippy::manual_async_fn)]
fn receive(
    limits: Rc<ResponseLimits>,
    mut reader: Reader,
    mut buffer: ReadBuffer,
    much: bool,
) -> impl Future<Output = Received> {
    async move {
        let received = match buffer.make_room(&limits.buffers, much) {
            Ok(()) => buffer.receive(&mut reader).await,
            Err(error) => Err(error),
        };
        (received, reader, buffer)
    }
}
