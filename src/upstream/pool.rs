//! The pool: which call goes over which connection, when connections are opened and closed, and how calls end.
//!
//! A value without I/O: each event is a function, which is given the time, and [`Pool::next_action`] gives what to do
//! about it. The states are drawn in [`state`]. Knows nothing of sockets and tasks. It keeps the wakers of callers
//! but wakes nobody: that is an action too.

mod batches;
mod state;

use std::{
    collections::VecDeque,
    net::SocketAddr,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use slotmap::SlotMap;

pub(super) use self::state::{BatcherId, CallId, ConnectionId};
use self::{
    batches::{Batcher, HOLD_TIME, Taken},
    state::{Began, CallState, ConnectionState, PooledCall, PooledConnection},
};
use super::{
    CallBytes, CallError, Content, DialError, NotBegun, ShortContent, UpstreamLimits,
    addresses::Addresses,
    balance::Standing,
    breaker::{Breaker, Change, PROBE_INTERVAL},
    response_reader::Answer,
};
use crate::runtime::{
    clock::{Moment, Stamp},
    deadlines::Deadlines,
};

/// How long no connection is dialed after a dial has failed, while others are established.
const DIAL_PAUSE: Duration = Duration::from_millis(100);

/// What to do about an event.
#[derive(Debug)]
pub(super) enum Action {
    /// Open a connection. `connected` or `dial_failed` tells the result.
    Dial(ConnectionId),
    /// Wake the connection's task, which takes the request of the call that it was given.
    Send(ConnectionId),
    /// Shut the connection's socket down: its task ends, and `closed` tells so.
    Cut(ConnectionId),
    /// Wake a caller, whose call has ended.
    Wake(Waker),
    /// Count how long a call has waited for its connection: since this time.
    Waited(Stamp),
    /// Count that calls fail at once from now on, or are made again.
    Breaker(Change),
}

/// A call in the queue.
struct QueuedCall {
    id: CallId,
    /// When it began; `None` if it has had a connection, which has sent nothing of it.
    since: Option<Stamp>,
}

/// One worker's calls to one counter, and its connections to it.
pub(super) struct Pool {
    limits: UpstreamLimits,
    addresses: Addresses,
    breaker: Breaker,
    /// A call that has not ended has a deadline.
    calls: Deadlines<PooledCall, Began>,
    connections: SlotMap<ConnectionId, PooledConnection>,
    batchers: SlotMap<BatcherId, Batcher>,
    /// How many visits have gathered, in all batchers.
    gathered: usize,
    /// In how many batchers some have.
    gathering: usize,
    /// The batchers of batches that have ended: the next one may be held back. Empty between two events.
    due: Vec<BatcherId>,
    /// The calls that are `Queued`, in the order in which they get a connection. Empty while one is idle.
    queue: VecDeque<QueuedCall>,
    /// The connections that are `Idle`, the one used last at the back.
    idle: VecDeque<ConnectionId>,
    /// How many connections are `Dialing`.
    dialing: usize,
    /// While other connections stand, none is dialed before this.
    dial_after: Moment,
    /// The last answer ended its connection, and the next probe may begin then. Only for who has another counter.
    stopping: Option<Moment>,
    actions: VecDeque<Action>,
}

impl Pool {
    /// No calls and no connections.
    pub(super) fn new(limits: UpstreamLimits, addresses: Vec<SocketAddr>, now: Moment) -> Self {
        Self {
            addresses: Addresses::new(addresses),
            breaker: Breaker::default(),
            calls: Deadlines::new(|began| match began {
                Began::Here | Began::Elsewhere | Began::Batch => limits.call_timeout,
                Began::Held => HOLD_TIME,
            }),
            connections: SlotMap::with_key(),
            batchers: SlotMap::with_key(),
            gathered: 0,
            gathering: 0,
            due: Vec::new(),
            queue: VecDeque::new(),
            idle: VecDeque::new(),
            dialing: 0,
            dial_after: now,
            stopping: None,
            actions: VecDeque::new(),
            limits,
        }
    }

    /// What to do next about the events so far, in their order.
    pub(super) fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    pub(super) fn limits(&self) -> &UpstreamLimits {
        &self.limits
    }

    pub(super) fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// How many connections carry no call.
    pub(super) fn idle_connections(&self) -> usize {
        self.idle.len()
    }

    /// How many calls wait for a connection, each visit that has gathered as one. Where some have, the first of them
    /// stands for their batch, which may be in the queue too.
    pub(super) fn queued_calls(&self) -> usize {
        self.queue.len() + self.gathered - self.gathering
    }

    /// How many calls have not ended, or their callers have not left.
    pub(super) fn calls_in_flight(&self) -> usize {
        self.calls.len()
    }

    /// Whether it takes a call.
    pub(super) fn standing(&self, now: Moment) -> Standing {
        if self.addresses.is_empty() {
            Standing::Absent
        } else if !self.breaker.admits(now) {
            Standing::Failing
        } else if self.is_full(false) {
            Standing::Full
        } else if self.stopping.is_some_and(|next_probe| now < next_probe) {
            Standing::Stopping
        } else {
            Standing::Open
        }
    }

    /// Event: the counter stops, or does not register visits. Where there is another, it gets no more than probes until
    /// an answer leaves its connection open.
    pub(super) fn set_aside(&mut self, now: Moment) {
        self.stopping.get_or_insert(now.after(PROBE_INTERVAL));
    }

    /// Event: a call begins. It gets the connection used last, or waits for the next to be free, since
    /// `began`.
    ///
    /// # Errors
    /// When too many wait already, or the counter fails.
    pub(super) fn call(
        &mut self,
        request: &CallBytes,
        content: Content,
        now: Moment,
        began: Stamp,
    ) -> Result<CallId, NotBegun> {
        let call = self.begin(request, content, false, now)?;
        self.calls.arm(call.0, Began::Here, now);
        self.send(call, Some(began), now);
        Ok(call)
    }

    /// Event: a call begins that another counter could not be sent, and whose deadline is that of `since`.
    ///
    /// # Errors
    /// When too many wait already, or the counter fails.
    pub(super) fn call_since(
        &mut self,
        request: &CallBytes,
        content: Content,
        since: Moment,
        now: Moment,
        began: Stamp,
    ) -> Result<CallId, NotBegun> {
        let call = self.begin(request, content, false, now)?;
        self.calls.arm_since(call.0, Began::Elsewhere, since);
        self.send(call, Some(began), now);
        Ok(call)
    }

    /// `waits` says that it may have no connection even if one is idle.
    fn begin(
        &mut self,
        request: &CallBytes,
        content: Content,
        waits: bool,
        now: Moment,
    ) -> Result<CallId, NotBegun> {
        self.expire(now);
        if !self.breaker.admit(now) {
            return Err(NotBegun::Failing);
        }
        if self.is_full(waits) {
            return Err(NotBegun::Overloaded);
        }
        if let Some(next_probe) = &mut self.stopping
            && *next_probe <= now
        {
            *next_probe = now.after(PROBE_INTERVAL);
        }
        Ok(CallId(self.calls.insert(PooledCall::new(Rc::clone(request), content))))
    }

    /// Gives a call that begins the connection used last, or lets it wait.
    fn send(&mut self, call: CallId, began: Option<Stamp>, now: Moment) {
        match self.idle.pop_back() {
            Some(connection) => self.assign(call, connection),
            None => {
                self.queue.push_back(QueuedCall { id: call, since: began });
                self.dial_for_queue(now);
            }
        }
    }

    /// The outcome of a call; until it has ended, the caller's waker is kept.
    pub(super) fn poll(
        &mut self,
        call: CallId,
        context: &mut Context<'_>,
    ) -> Poll<Result<u16, CallError>> {
        let call = self.call_mut(call);
        if let CallState::Ended(outcome) = call.state {
            return Poll::Ready(outcome);
        }
        if call.waker.as_ref().is_none_or(|waker| !waker.will_wake(context.waker())) {
            call.waker = Some(context.waker().clone());
        }
        Poll::Pending
    }

    /// The content of a call's answer, if it was kept: once, to its caller.
    pub(super) fn take_content(&mut self, call: CallId) -> Option<Box<ShortContent>> {
        self.call_mut(call).answer_content.take()
    }

    /// Event: the caller has left. Gives its waker back.
    pub(super) fn dropped(&mut self, call: CallId) -> Option<Waker> {
        let entry = self.call_mut(call);
        let (waker, state) = (entry.waker.take(), entry.state);
        match state {
            CallState::Assigned(_) => entry.abandoned = true,
            CallState::Queued => {
                self.remove_from_queue(call);
                self.calls.remove(call.0);
            }
            CallState::Gathered if self.leave_batch(call, false) => {
                self.call_mut(call).abandoned = true;
            }
            CallState::Gathered | CallState::Aboard(_) | CallState::Ended(_) => {
                drop(self.calls.remove(call.0));
            }
            CallState::Held => unreachable!("a batch has no caller"),
        }
        waker
    }

    /// Event: a connection to one of the counter's addresses is established. It gets the call that has waited
    /// longest.
    pub(super) fn connected(&mut self, id: ConnectionId, address: SocketAddr, now: Moment) {
        self.addresses.prefer(address);
        self.connection_mut(id).connected(address, now);
        self.dialing -= 1;
        self.assign_next(id);
    }

    /// Event: a connection could not be opened. The call that has waited longest fails, unless a connection is being
    /// opened for each call that waits, or one is established, which will become free.
    pub(super) fn dial_failed(&mut self, id: ConnectionId, error: DialError, now: Moment) {
        let connection = self.connections.remove(id);
        let dialing = connection.is_some_and(|gone| gone.state == ConnectionState::Dialing);
        assert!(dialing, "a dial fails once");
        self.dialing -= 1;
        if self.connections.len() > self.dialing {
            self.dial_after = now.after(DIAL_PAUSE);
        } else if self.queue.len() > self.dialing
            && let Some(queued) = self.queue.pop_front()
        {
            self.end(queued.id, Err(CallError::NoConnection(error)), now);
        }
        self.release_due(now);
        self.dial_for_queue(now);
    }

    /// Event: the connection's task asks what to send, and what becomes of the content of the answer.
    pub(super) fn take_request(
        &mut self,
        id: ConnectionId,
        now: impl FnOnce() -> Moment,
    ) -> Option<Taken> {
        let call = self.connection_mut(id).take_request()?;
        let PooledCall { request, content, batcher, .. } = self.call_mut(call);
        let (request, content) = (Rc::clone(request), *content);
        Some(match *batcher {
            Some(batcher) => self.take_batch(batcher, call, now()),
            None => Taken { request, content, batched: 0 },
        })
    }

    /// Event: not a byte of the request that was taken has left. The connection is about to close.
    pub(super) fn not_sent(&mut self, id: ConnectionId) {
        self.connection_mut(id).not_sent();
    }

    /// Event: the call was answered. Returns whether the connection stays open: it must be reusable, its address must
    /// still be the counter's, and there must not be more connections than the limit.
    #[must_use]
    pub(super) fn answered(&mut self, id: ConnectionId, answer: Answer, now: Moment) -> bool {
        let Answer { status, reusable, content } = answer;
        let connection = self.connection_mut(id);
        let Some(call) = connection.answered(now) else { return false };
        let address = connection.address;
        let stays = reusable
            && self.connections.len() <= self.limits.connections_max
            && address.is_some_and(|address| self.addresses.contains(address));
        self.call_mut(call).answer_content = content;
        match reusable {
            true => self.stopping = None,
            false => self.set_aside(now),
        }
        self.end(call, Ok(status), now);
        if stays {
            self.assign_next(id);
        } else {
            self.connection_mut(id).close();
        }
        self.release_due(now);
        stays
    }

    /// Event: an established connection has ended. A call that it has not sent gets another connection, but fails if
    /// this one never completed a call: the next would be no better.
    pub(super) fn closed(&mut self, id: ConnectionId, now: Moment) {
        let Some(connection) = self.connections.remove(id) else {
            unreachable!("a connection closes once")
        };
        match connection.state {
            ConnectionState::Dialing => unreachable!("a connection that never stood cannot close"),
            ConnectionState::Idle(_) => self.idle.retain(|idle| *idle != id),
            ConnectionState::Assigned(call) if connection.has_completed_call => self.requeue(call),
            ConnectionState::Assigned(call) => {
                self.end(call, Err(CallError::NoConnection(DialError::Other)), now);
            }
            ConnectionState::InFlight(call) => self.end(call, Err(CallError::Broken), now),
            ConnectionState::Closing => {}
        }
        self.release_due(now);
        self.dial_for_queue(now);
    }

    /// Event: time has passed. Calls whose deadlines have passed end, and with each its connection, since a late
    /// answer there would belong to no call. Connections that were idle for too long are closed.
    pub(super) fn expire(&mut self, now: Moment) {
        while let Some((began, key)) = self.calls.pop_expired(now) {
            let call = CallId(key);
            let state = self.call_mut(call).state;
            match state {
                CallState::Assigned(connection) => self.cut(connection),
                CallState::Queued => self.remove_from_queue(call),
                CallState::Gathered => drop(self.leave_batch(call, true)),
                CallState::Held => {
                    self.release(call, None, now);
                    continue;
                }
                // Its batch goes on, with a deadline of its own.
                CallState::Aboard(_) | CallState::Ended(_) => {}
            }
            let late = Err(CallError::TimedOut);
            match (began, state) {
                // The other counter has taken a part of its time, so it says nothing about this one.
                (Began::Elsewhere, _) => self.finish(call, late),
                (_, CallState::Aboard(batch)) => {
                    self.finish(call, late);
                    self.tell_of_batch(batch, late, now);
                }
                _ => self.end(call, late, now),
            }
        }
        while let Some(&id) = self.idle.front()
            && let ConnectionState::Idle(since) = self.connection_mut(id).state
            && since.after(self.limits.idle_timeout) <= now
        {
            self.idle.pop_front();
            self.cut(id);
        }
        self.release_due(now);
        self.dial_for_queue(now);
    }

    /// Event: the counter has other addresses. Connections to addresses that are gone are closed: an idle one at
    /// once, one that carries a call once that call was answered.
    pub(super) fn set_addresses(&mut self, addresses: Vec<SocketAddr>) {
        self.addresses.replace(addresses);
        let Self { addresses, connections, idle, actions, .. } = self;
        idle.retain(|id| {
            let connection = &mut connections[*id];
            let stays = connection.address.is_some_and(|address| addresses.contains(address));
            if !stays {
                connection.close();
                actions.push_back(Action::Cut(*id));
            }
            stays
        });
    }

    /// Event: other limits. Time-outs apply to calls in progress and to idle connections too. Connections beyond the
    /// new maximum close as their calls end.
    pub(super) fn set_limits(&mut self, limits: UpstreamLimits, now: Moment) {
        for began in [Began::Here, Began::Elsewhere, Began::Batch] {
            self.calls.set_timeout(began, limits.call_timeout);
        }
        self.limits = limits;
        self.expire(now);
    }

    /// Whether nothing is left of all calls and connections.
    #[cfg(any(test, simulation))]
    pub(super) fn is_empty(&self) -> bool {
        let Self { calls, connections, queue, idle, dialing, gathered, gathering, .. } = self;
        let left = [calls.len(), connections.len(), queue.len(), idle.len(), *dialing];
        left.iter().sum::<usize>() + gathered + gathering == 0
    }

    /// Dials a connection for each queued call that has none, as far as the limit allows.
    fn dial_for_queue(&mut self, now: Moment) {
        while self.dialing < self.queue.len()
            && self.connections.len() < self.limits.connections_max
        {
            if self.connections.len() > self.dialing && now < self.dial_after {
                break;
            }
            self.dialing += 1;
            let id = self.connections.insert(PooledConnection::dialing());
            self.actions.push_back(Action::Dial(id));
        }
        assert!(self.dialing <= self.connections.len(), "more dials than connections");
        assert!(self.queue.is_empty() || self.idle.is_empty(), "calls wait while one is idle");
    }

    /// Whether a call would find no connection and no place in the queue; `waits` says that it gets no idle one at once.
    fn is_full(&self, waits: bool) -> bool {
        (waits || self.idle.is_empty()) && self.queued_calls() >= self.queue_room()
    }

    /// How many calls may be queued: the maximum, and one for each connection that is being dialed or can be.
    fn queue_room(&self) -> usize {
        let dialable = self.limits.connections_max.saturating_sub(self.connections.len());
        self.limits.queue_max + self.dialing + dialable
    }

    /// A connection that has become idle gets the call that has waited longest.
    fn assign_next(&mut self, id: ConnectionId) {
        match self.queue.pop_front() {
            Some(QueuedCall { id: call, since }) => {
                self.actions.extend(since.map(Action::Waited));
                self.assign(call, id);
            }
            None => self.idle.push_back(id),
        }
    }

    fn assign(&mut self, call: CallId, id: ConnectionId) {
        self.call_mut(call).assign(id);
        self.connection_mut(id).assign(call);
        self.actions.push_back(Action::Send(id));
    }

    /// A call that was not sent gets another connection, before all others.
    fn requeue(&mut self, call: CallId) {
        let entry = self.call_mut(call);
        if let Some(batcher) = entry.batcher {
            return self.requeue_batch(batcher, call);
        }
        if entry.abandoned {
            self.calls.remove(call.0);
            return;
        }
        entry.requeue();
        self.send_first(call);
    }

    fn send_first(&mut self, call: CallId) {
        match self.idle.pop_back() {
            Some(connection) => self.assign(call, connection),
            None => self.queue.push_front(QueuedCall { id: call, since: None }),
        }
    }

    fn remove_from_queue(&mut self, call: CallId) {
        // It is most often the first; at most, the queue is as long as its limit.
        let place = self.queue.iter().position(|queued| queued.id == call);
        assert!(place.and_then(|place| self.queue.remove(place)).is_some(), "it is in the queue");
    }

    fn cut(&mut self, id: ConnectionId) {
        self.connection_mut(id).close();
        self.actions.push_back(Action::Cut(id));
    }

    /// Ends a call that is not in the queue any more, and tells the breaker.
    fn end(&mut self, call: CallId, outcome: Result<u16, CallError>, now: Moment) {
        match self.call_mut(call).batcher_of_batch() {
            Some(batcher) => self.end_batch(batcher, call, outcome, now),
            None => self.end_one(call, outcome, now),
        }
    }

    /// Ends a call that is no batch.
    fn end_one(&mut self, call: CallId, outcome: Result<u16, CallError>, now: Moment) {
        self.finish(call, outcome);
        self.tell_breaker(outcome, now);
    }

    fn tell_breaker(&mut self, outcome: Result<u16, CallError>, now: Moment) {
        let change = match outcome {
            Ok(_) => self.breaker.succeeded(),
            Err(_) => self.breaker.failed(now),
        };
        self.actions.extend(change.map(Action::Breaker));
    }

    /// Ends a call, whatever that says about the counter.
    fn finish(&mut self, call: CallId, outcome: Result<u16, CallError>) {
        let entry = self.call_mut(call);
        entry.end(outcome);
        let (waker, abandoned) = (entry.waker.take(), entry.abandoned);
        self.actions.extend(waker.map(Action::Wake));
        if abandoned {
            self.calls.remove(call.0);
        } else {
            self.calls.disarm(call.0);
        }
    }

    /// What a call sends.
    pub(super) fn request(&self, call: CallId) -> CallBytes {
        let Some(entry) = self.calls.get(call.0) else {
            unreachable!("a call stays while its caller names it")
        };
        Rc::clone(&entry.request)
    }

    fn call_mut(&mut self, call: CallId) -> &mut PooledCall {
        let Some(entry) = self.calls.get_mut(call.0) else {
            unreachable!("a call stays while its caller or its connection names it")
        };
        entry
    }

    fn connection_mut(&mut self, id: ConnectionId) -> &mut PooledConnection {
        let Some(connection) = self.connections.get_mut(id) else {
            unreachable!("a connection stays until its task tells that it has ended")
        };
        connection
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
