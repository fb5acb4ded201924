//! The counter as a client sees it: each worker's connections to it, and the calls they carry.
//!
//! A call is sent at most once. It waits in a queue for a connection, is written to it, and is
//! answered by what that connection then receives; what cannot be told apart ends the connection.
//! Knows nothing of pages or of the visitor.

mod breaker;
mod calls;
mod dial;
mod link;
mod origin;
pub mod resolve;

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;

pub use self::origin::{Host, Target, without_secrets};
use self::{
    breaker::{Breaker, Change},
    calls::{Calls, Stage},
    dial::Addresses,
    link::Link,
};
use crate::{
    clock::{self, Moment},
    deadlines::Key,
    http::HeadLimits,
    observe::metrics::WorkerMetrics,
    read_buffer::ReadBufferPool,
    task,
};

/// What each worker may ask of one counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpstreamLimits {
    /// Until a connection to one address stands.
    pub connect_timeout: Duration,
    /// A whole call: waiting for a connection, sending, the answer.
    pub call_timeout: Duration,
    /// Connections at a time.
    pub connections_max: usize,
    /// Calls that may wait for a connection, beside those for which one is being opened.
    pub queue_max: usize,
    /// How long an unused connection is kept.
    pub idle_timeout: Duration,
    /// The size of a response head.
    pub head: HeadLimits,
    /// Content that is read and discarded to keep a connection; a longer response closes it.
    pub drain_bytes_max: u64,
}

/// What a call sends, as it goes over the wire. A worker's calls share it, and no other thread does:
/// counting them takes no atomic operation.
pub type CallBytes = Rc<Bytes>;

/// Why a call failed. The visit may or may not have been counted, except where it says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// No connection could be opened, for this reason; the visit was not counted.
    #[error("no connection to the counter: {0:?}")]
    NoConnection(DialError),
    /// The time was up.
    #[error("the counter took too long")]
    TimedOut,
    /// The connection ended, or what came was no response.
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
    /// Another reason, or it was of no use from the beginning.
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
    limits: Cell<UpstreamLimits>,
    buffers: ReadBufferPool,
    metrics: Arc<WorkerMetrics>,
    /// Asks for the addresses to be looked up anew.
    refresh: Box<dyn Fn()>,
    state: RefCell<State>,
}

struct State {
    metrics: Arc<WorkerMetrics>,
    breaker: Breaker,
    calls: Calls,
    addresses: Addresses,
    /// Connections that carry no call, the one used last at the back.
    idle: VecDeque<Rc<Link>>,
    /// Calls without a connection, in the order in which they get one. Some may have ended.
    waiting: VecDeque<Key>,
    /// Connections that stand or are being opened.
    open: usize,
    /// Connections that are being opened.
    dialing: usize,
    /// While other connections stand, none is opened before this: one could not be.
    dial_after: Moment,
}

/// How long none is opened after one could not be, while others stand.
const DIAL_PAUSE: Duration = Duration::from_millis(100);

/// A call under way. Dropping it gives the answer up, not the visit: what was sent stays sent.
///
/// Its holder leads to the upstream, so that who needs both keeps one pointer.
pub struct Call<H: AsRef<Upstream>> {
    holder: H,
    key: Key,
}

impl Upstream {
    /// A counter without connections. `refresh` is called after a connect failed.
    pub fn new(
        limits: UpstreamLimits,
        addresses: Vec<SocketAddr>,
        metrics: Arc<WorkerMetrics>,
        refresh: Box<dyn Fn()>,
    ) -> Rc<Self> {
        let state = State {
            metrics: Arc::clone(&metrics),
            breaker: Breaker::default(),
            calls: Calls::new(limits.call_timeout),
            addresses: Addresses::new(addresses),
            idle: VecDeque::new(),
            waiting: VecDeque::new(),
            open: 0,
            dialing: 0,
            dial_after: clock::now(),
        };
        Rc::new(Self {
            buffers: ReadBufferPool::new(limits.head.head_bytes_max),
            state: RefCell::new(state),
            limits: Cell::new(limits),
            metrics,
            refresh,
        })
    }

    /// From now on, these limits hold, for calls under way too. Connections beyond the new number end: an idle one
    /// at once, one that carries a call once that call has its answer.
    pub fn set_limits(&self, limits: UpstreamLimits) {
        self.limits.set(limits);
        let State { calls, idle, open, .. } = &mut *self.state.borrow_mut();
        calls.set_timeout(limits.call_timeout);
        let excess = open.saturating_sub(limits.connections_max).min(idle.len());
        idle.drain(..excess).for_each(|link| link.cut());
    }

    /// From now on, calls go to these addresses. Connections to others end: an idle one at once, one
    /// that carries a call once that call has its answer.
    pub fn set_addresses(&self, addresses: Vec<SocketAddr>) {
        let State { addresses: current, idle, .. } = &mut *self.state.borrow_mut();
        current.replace(addresses);
        idle.retain(|link| {
            let stays = current.contains(link.address());
            if !stays {
                link.cut();
            }
            stays
        });
    }

    /// Begins a call, which sends `request`, on the connection used last, or on the
    /// next to be free or opened. `holder` leads to this upstream.
    ///
    /// # Errors
    /// When too many wait already, or the counter fails.
    pub fn call<H: AsRef<Self>>(
        self: &Rc<Self>,
        request: &CallBytes,
        holder: H,
    ) -> Result<Call<H>, NotBegun> {
        debug_assert!(std::ptr::eq(holder.as_ref(), &**self), "another's holder");
        let mut state = self.state.borrow_mut();
        let now = clock::now();
        state.expire(now, self.limits.get().idle_timeout);
        if !state.breaker.admit(now) {
            return Err(NotBegun::Failing);
        }
        if let Some(link) = state.idle.pop_back() {
            let key = state.calls.begin(request, Stage::Sent(Rc::clone(&link)), now);
            link.assign(key);
            return Ok(Call { holder, key });
        }
        state.forget_ended();
        if state.waiting.len() >= self.limits.get().queue_max + state.dialing_or_dialable(self) {
            return Err(NotBegun::Overloaded);
        }
        let key = state.calls.begin(request, Stage::Waiting, now);
        state.waiting.push_back(key);
        drop(state);
        self.dial_for_waiting();
        Ok(Call { holder, key })
    }

    /// Ends the calls and closes the unused connections whose time is up.
    pub fn expire(self: &Rc<Self>) {
        self.state.borrow_mut().expire(clock::now(), self.limits.get().idle_timeout);
        self.dial_for_waiting();
    }

    /// Opens a connection for each waiting call that none is being opened for, as far as the limit
    /// allows.
    fn dial_for_waiting(self: &Rc<Self>) {
        loop {
            let mut state = self.state.borrow_mut();
            state.forget_ended();
            let connections_max = self.limits.get().connections_max;
            if state.dialing >= state.waiting.len() || state.open >= connections_max {
                return;
            }
            if state.open > state.dialing && clock::now() < state.dial_after {
                return;
            }
            state.open += 1;
            state.dialing += 1;
            drop(state);
            self.metrics.counter_connections.increment();
            let opening =
                Opening { upstream: Rc::clone(self), done: false, error: DialError::Other };
            drop(task::spawn("counter connection", &self.metrics, link::run(opening)));
        }
    }

    /// The connection's call has ended and it can carry another; false when it is to end instead, since
    /// the counter has moved away from its address or there are more than may be.
    fn release(&self, link: &Rc<Link>) -> bool {
        let mut state = self.state.borrow_mut();
        let stays = state.addresses.contains(link.address())
            && state.open <= self.limits.get().connections_max;
        if stays {
            state.assign_next(link);
        }
        stays
    }

    /// What a call sends; `None` when it has ended meanwhile.
    fn request(&self, key: Key) -> Option<CallBytes> {
        self.state.borrow().calls.request(key)
    }

    /// A call that is certain not to have left gets another connection, before all others.
    fn put_back(&self, key: Key) {
        let mut state = self.state.borrow_mut();
        if !state.calls.wait_again(key) {
            return;
        }
        match state.idle.pop_back() {
            Some(link) if state.calls.send_on(key, &link) => link.assign(key),
            _ => state.waiting.push_front(key),
        }
    }

    /// A call ends with what the counter answered, or why it did not.
    fn end(&self, key: Key, outcome: Result<u16, CallError>) {
        self.state.borrow_mut().end(key, outcome);
    }

    /// The connection is of no use any more: it gets no further call.
    fn retire(&self, link: &Rc<Link>) {
        link.gone();
        self.state.borrow_mut().idle.retain(|idle| !Rc::ptr_eq(idle, link));
    }
}

impl State {
    fn assign_next(&mut self, link: &Rc<Link>) {
        while let Some(key) = self.waiting.pop_front() {
            if self.calls.send_on(key, link) {
                link.assign(key);
                return;
            }
        }
        link.rest(clock::now());
        self.idle.push_back(Rc::clone(link));
    }

    /// No connection could be opened: the call that has waited longest fails, unless connections are
    /// being opened for all that wait, or one stands that will be free in time.
    fn not_dialed(&mut self, error: DialError) {
        self.dialing -= 1;
        self.forget_ended();
        // This one is still counted as open.
        if self.open > self.dialing + 1 {
            self.dial_after = clock::now().after(DIAL_PAUSE);
            return;
        }
        if self.waiting.len() > self.dialing
            && let Some(key) = self.waiting.pop_front()
        {
            self.end(key, Err(CallError::NoConnection(error)));
        }
    }

    /// Ends a call, unless it has ended before, and draws the conclusion for those to come.
    fn end(&mut self, key: Key, outcome: Result<u16, CallError>) {
        if !self.calls.end(key, outcome) {
            return;
        }
        let change = match outcome {
            Ok(_) => self.breaker.succeeded(),
            Err(_) => self.breaker.failed(clock::now()),
        };
        match change {
            Some(Change::Opened) => self.metrics.counters_failing.increment(),
            Some(Change::Closed) => self.metrics.counters_failing.decrement(),
            None => {}
        }
    }

    fn expire(&mut self, now: Moment, idle_timeout: Duration) {
        while let Some(key) = self.calls.cut_expired(now) {
            self.end(key, Err(CallError::TimedOut));
        }
        while let Some(link) = self.idle.front()
            && link.idle_since().after(idle_timeout) <= now
        {
            link.cut();
            self.idle.pop_front();
        }
    }

    /// Drops ended calls from the front of the queue.
    fn forget_ended(&mut self) {
        while let Some(key) = self.waiting.front()
            && !self.calls.is_waiting(*key)
        {
            self.waiting.pop_front();
        }
    }

    /// Connections that are being opened, and that a waiting call may still have opened.
    fn dialing_or_dialable(&self, upstream: &Upstream) -> usize {
        self.dialing + upstream.limits.get().connections_max.saturating_sub(self.open)
    }
}

/// The right to have one connection, from the moment it is being opened until it is closed. However
/// its task ends, the counts are right.
struct Opening {
    upstream: Rc<Upstream>,
    done: bool,
    /// Why it could not be opened, once that is known.
    error: DialError,
}

impl Opening {
    /// The connection stands: the call that has waited longest is its first.
    fn done(&mut self, link: &Rc<Link>) {
        self.done = true;
        let mut state = self.upstream.state.borrow_mut();
        state.dialing -= 1;
        state.assign_next(link);
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.upstream.metrics.counter_connections.decrement();
        if !self.done {
            (self.upstream.refresh)();
            self.upstream.state.borrow_mut().not_dialed(self.error);
        }
        self.upstream.state.borrow_mut().open -= 1;
        self.upstream.dial_for_waiting();
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
        self.holder.as_ref().state.borrow_mut().calls.poll(self.key, context)
    }
}

impl<H: AsRef<Upstream>> Drop for Call<H> {
    fn drop(&mut self) {
        self.holder.as_ref().state.borrow_mut().calls.forget(self.key);
    }
}

#[cfg(test)]
mod tests;
