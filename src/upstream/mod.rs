//! The counter as a client sees it: each worker's connections to it, and the calls they carry.
//!
//! A call is sent at most once. It waits in a queue for a connection, is written to it, and is answered by what that
//! connection receives next; a response that is not clearly this call's ends the connection. Knows nothing of pages
//! or of the visitor.
//!
//! `pool` decides, as a value without I/O; [`Upstream`] tells it of events and does what it decides;
//! `connection` is the task of one connection, and moves its bytes.

mod addresses;
pub mod balance;
mod batching;
mod breaker;
mod connection;
mod content;
mod dial;
mod endpoint;
mod fifo;
mod in_flight;
mod pool;
pub mod resolve;
mod response_reader;
pub mod slots;

use std::{
    cell::{Cell, RefCell},
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use slotmap::SecondaryMap;

use self::{
    balance::Candidate,
    breaker::Change,
    connection::{Handle, PoolGuard},
    pool::{Action, BatcherId, CallId, ConnectionId, Pool},
    response_reader::ResponseLimits,
};
pub use self::{
    batching::Batching,
    content::{Content, ShortContent},
    endpoint::{Endpoint, EndpointError, Host, without_secrets},
};
use crate::{
    http::HeadLimits,
    metrics::{UpstreamMetrics, WorkerMetrics},
    runtime::{
        clock::{self, Moment, Stamp},
        task,
    },
};

/// The limits of one worker's calls to one counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpstreamLimits {
    /// Until a connection to one address is established.
    pub connect_timeout: Duration,
    /// A whole call: waiting for a connection, sending, the answer.
    pub call_timeout: Duration,
    /// Connections at a time.
    pub connections_max: usize,
    /// Calls that one connection may carry at a time, once it has shown that it stays open.
    pub pipeline_max: usize,
    /// Calls that may wait for a connection, in addition to those for which one is being opened.
    pub queue_max: usize,
    /// How long an unused connection is kept.
    pub idle_timeout: Duration,
    /// The size of a response head.
    pub head: HeadLimits,
    /// Content that is read and discarded to keep a connection; a longer response closes it.
    pub drain_bytes_max: u64,
}

/// The bytes that a call sends. Only calls of one worker share them, so their reference count needs no atomic
/// operation.
pub type CallBytes = Rc<Bytes>;

/// Why a call failed. The visit may or may not have been counted, except where it says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// No connection could be opened, for this reason; the visit was not counted.
    #[error("no connection to the counter: {0:?}")]
    NoConnection(DialError),
    /// The deadline has passed.
    #[error("the counter took too long")]
    TimedOut,
    /// The connection ended, or what was received is no answer to the call.
    #[error("the counter's connection failed")]
    Broken,
}

/// Why no connection could be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DialError {
    /// Nobody listens there.
    Refused,
    /// It took too long.
    TimedOut,
    /// The name has no address.
    NoAddress,
    /// Another reason, or the connection ended before its first call was sent.
    Other,
}

impl From<&io::Error> for DialError {
    fn from(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::TimedOut => Self::TimedOut,
            io::ErrorKind::NotFound => Self::NoAddress,
            _ => Self::Other,
        }
    }
}

/// Why a call was not begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotBegun {
    /// Too many calls wait already.
    #[error("too many visits wait for the counter")]
    Overloaded,
    /// The last calls have all failed, and it is not time for a probe.
    #[error("the counter fails")]
    Failing,
}

/// One worker's side of one counter.
pub struct Upstream {
    pool: RefCell<Pool>,
    /// Of the established connections.
    handles: RefCell<SecondaryMap<ConnectionId, Rc<Handle>>>,
    /// For the calls that begin from now on.
    response_limits: RefCell<Rc<ResponseLimits>>,
    metrics: Arc<WorkerMetrics>,
    /// What is counted of this counter alone.
    counts: Arc<UpstreamMetrics>,
    /// When the last call began or a connection became free, by [`clock::micros`]. A call gets its connection at such
    /// an event, so that its visit reads the clock only twice.
    last_event: Cell<u64>,
    /// Asks for the addresses to be looked up again.
    refresh: Box<dyn Fn()>,
}

/// A call in progress. Dropping it gives up the answer only: a request that was sent stays sent.
///
/// Its holder leads to the upstream, so that a visit keeps one pointer for both.
pub struct Call<H: AsRef<Upstream>> {
    holder: H,
    id: CallId,
}

/// Calls that register several visits each.
pub struct Batcher {
    upstream: Rc<Upstream>,
    id: BatcherId,
}

impl Upstream {
    /// A counter without connections. `refresh` is called after a connect failed.
    pub fn new(
        limits: UpstreamLimits,
        addresses: Vec<SocketAddr>,
        metrics: Arc<WorkerMetrics>,
        refresh: Box<dyn Fn()>,
    ) -> Rc<Self> {
        Rc::new(Self {
            response_limits: RefCell::new(Rc::new(ResponseLimits::new(&limits))),
            pool: RefCell::new(Pool::new(limits, addresses, clock::now())),
            handles: RefCell::default(),
            counts: metrics.add_upstream(),
            last_event: Cell::new(clock::micros()),
            metrics,
            refresh,
        })
    }

    /// From now on, calls go to these addresses. Connections to others end: an idle one at once, one
    /// that carries a call once that call has its answer.
    pub fn set_addresses(self: &Rc<Self>, addresses: Vec<SocketAddr>) {
        self.tell(|pool| pool.set_addresses(addresses, clock::now()));
    }

    /// Applies new limits: the sizes to responses of calls that begin, the connect time-out to connections that are
    /// dialed, the other time-outs also to calls and connections that exist. Connections beyond the maximum close as
    /// their calls end.
    pub fn set_limits(self: &Rc<Self>, limits: UpstreamLimits) {
        if !self.response_limits.borrow().agree_with(&limits) {
            self.response_limits.replace(Rc::new(ResponseLimits::new(&limits)));
        }
        self.tell(|pool| pool.set_limits(limits, clock::now()));
    }

    /// Begins a call, which sends `request`, on the connection used last, or on the
    /// next to be free or opened. `holder` leads to this upstream.
    ///
    /// What becomes of the content of its answer is said by `content`. A call that another counter could not be sent has
    /// the deadline of `since`, when it began there. With a `batcher`, one of this upstream, it may go together with
    /// others.
    ///
    /// # Errors
    /// When too many wait already, or the counter fails.
    pub fn call<H: AsRef<Self>>(
        self: &Rc<Self>,
        request: &CallBytes,
        content: Content,
        since: Option<Moment>,
        batcher: Option<&Batcher>,
        holder: H,
    ) -> Result<Call<H>, NotBegun> {
        debug_assert!(std::ptr::eq(holder.as_ref(), &**self), "the holder of another upstream");
        self.note_time();
        let began = Stamp::new(self.last_event());
        let id = self.tell(|pool| {
            let (batcher, now) = (batcher.map(|batcher| batcher.id), clock::now());
            if let Some(id) = batcher.filter(|id| pool.joins(*id)) {
                return pool.join(id, (request, content), since, now, began);
            }
            let call = match since {
                None => pool.call(request, content, now, began),
                Some(since) => pool.call_since(request, content, since, now, began),
            }?;
            batcher.into_iter().for_each(|id| pool.tells(call, id));
            Ok(call)
        })?;
        Ok(Call { holder, id })
    }

    /// Lets calls that send `call` go together.
    pub fn batcher(self: &Rc<Self>, call: &CallBytes, batching: Batching) -> Batcher {
        let id = self.pool.borrow_mut().add_batcher(call, batching);
        Batcher { upstream: Rc::clone(self), id }
    }

    /// How it stands as one of several counters; `place` is its place among them.
    pub fn candidate(&self, place: u8) -> Candidate {
        let pool = self.pool.borrow();
        let (standing, in_flight) = (pool.standing(clock::now()), pool.calls_in_flight());
        Candidate { place, standing, in_flight }
    }

    /// It answers, and does not register visits. Where there is another counter, it gets no more than probes until
    /// its next good answer.
    pub fn set_aside(&self) {
        self.pool.borrow_mut().set_aside(clock::now());
    }

    /// What is counted of this counter alone.
    pub fn counts(&self) -> &UpstreamMetrics {
        &self.counts
    }

    /// Ends the calls and closes the unused connections whose deadlines have passed.
    pub fn expire(self: &Rc<Self>) {
        self.tell(|pool| pool.expire(clock::now()));
    }

    /// When the last event was, in microseconds of [`clock::micros`].
    pub fn last_event(&self) -> u64 {
        self.last_event.get()
    }

    /// Reads the clock for an event, at which calls may get a connection.
    fn note_time(&self) {
        self.last_event.set(clock::micros());
    }

    /// Whether nothing is left of all calls and connections.
    #[cfg(any(test, simulation))]
    pub fn is_empty(&self) -> bool {
        self.handles.borrow().is_empty() && self.pool.borrow().is_empty()
    }

    /// Tells the pool of an event, then performs its actions. The pool is not borrowed meanwhile, since an action may
    /// cause another event.
    fn tell<T>(self: &Rc<Self>, event: impl FnOnce(&mut Pool) -> T) -> T {
        let result = self.change(event);
        while let Some(action) = self.next_action() {
            self.perform(action);
        }
        result
    }

    fn change<T>(&self, event: impl FnOnce(&mut Pool) -> T) -> T {
        let mut pool = self.pool.borrow_mut();
        let result = event(&mut pool);
        self.counts.idle.set(pool.idle_connections() as u64);
        self.counts.queued.set(pool.queued_calls() as u64);
        result
    }

    fn next_action(&self) -> Option<Action> {
        self.pool.borrow_mut().next_action()
    }

    fn perform(self: &Rc<Self>, action: Action) {
        match action {
            Action::Dial(id) => {
                let run = connection::dial_and_run(PoolGuard::new(self, id));
                drop(task::spawn("counter connection", &self.metrics, run));
            }
            Action::Send(id) => self.with_handle(id, Handle::wake),
            Action::Cut(id) => self.with_handle(id, Handle::cut),
            Action::Wake(waker) => waker.wake(),
            // Its connection became free at the last event.
            Action::Waited(since) => self.counts.waits.add(since.micros_until(self.last_event())),
            Action::Breaker(Change::Opened) => self.counts.failing.set(1),
            Action::Breaker(Change::Closed) => self.counts.failing.set(0),
        }
    }

    /// Does nothing when the connection has not begun to wait for calls, or has ended.
    fn with_handle(&self, id: ConnectionId, act: impl FnOnce(&Handle)) {
        if let Some(handle) = self.handles.borrow().get(id) {
            act(handle);
        }
    }

    fn response_limits(&self) -> Rc<ResponseLimits> {
        Rc::clone(&self.response_limits.borrow())
    }
}

impl<H: AsRef<Upstream>> Call<H> {
    /// Who holds it.
    pub fn holder(&self) -> &H {
        &self.holder
    }

    /// The worker's counts.
    pub fn metrics(&self) -> &WorkerMetrics {
        &self.holder.as_ref().metrics
    }

    /// The status of the counter's final response, once it was received whole.
    pub fn poll(&self, context: &mut Context<'_>) -> Poll<Result<u16, CallError>> {
        self.holder.as_ref().pool.borrow_mut().poll(self.id, context)
    }

    /// What it sends.
    pub fn request(&self) -> CallBytes {
        self.holder.as_ref().pool.borrow().request(self.id)
    }

    /// The content of that response, once, if it is [kept](Content::Kept) and its end was told by its framing.
    pub fn take_content(&self) -> Option<Box<ShortContent>> {
        self.holder.as_ref().pool.borrow_mut().take_content(self.id)
    }
}

impl Drop for Batcher {
    fn drop(&mut self) {
        self.upstream.pool.borrow_mut().close_batcher(self.id);
    }
}

impl<H: AsRef<Upstream>> Drop for Call<H> {
    fn drop(&mut self) {
        // The waker is dropped after the borrow, since it may drop another call.
        let waker = self.holder.as_ref().change(|pool| pool.dropped(self.id));
        drop(waker);
    }
}

#[cfg(test)]
mod tests;
