//! The pool: which call goes over which connection, when connections are opened and closed, and how calls end.
//!
//! A value without I/O: each event is a function, which is given the time, and [`Pool::next_action`] gives what to do
//! about it. The states are drawn in [`state`]. Knows nothing of sockets and tasks. It keeps the wakers of callers
//! but wakes nobody: that is an action too.

mod batches;
mod state;

use std::{
    collections::VecDeque,
    mem,
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
    /// When it began; `None` if it has had a connection, which has sent nothing of it, or has gathered for a batch.
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
    /// The calls that are `Queued`, in the order in which they get a connection. Empty while one is idle or has room.
    queue: VecDeque<QueuedCall>,
    /// The connections that are `Idle`, the one used last at the back.
    idle: VecDeque<ConnectionId>,
    /// The busy ones that can get another call; the last has had room for the shortest time. None where a connection
    /// carries one call at a time.
    roomy: Vec<ConnectionId>,
    /// Whether a new connection will carry several calls, as far as the last answer tells.
    pipelines: bool,
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
            roomy: Vec::new(),
            pipelines: false,
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

    /// Event: a call begins. It gets a busy connection that has room, else the one used last, or waits for the next to
    /// be free, since `began`.
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

    /// Gives a call that begins a connection, or lets it wait.
    fn send(&mut self, call: CallId, began: Option<Stamp>, now: Moment) {
        match self.free_connection(now) {
            Some(connection) => self.assign(call, connection, now),
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
            CallState::Gathered if self.leave_batch(call, None) => {
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
        self.idle.push_back(id);
        self.serve_queue(now);
        // It was dialed for several, and carries one at first.
        self.dial_for_queue(now);
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
        } else {
            // What was known is of the past: a connection for each call that waits.
            self.pipelines = false;
            if self.queue.len() > self.dialing
                && let Some(queued) = self.queue.pop_front()
            {
                self.end(queued.id, Err(CallError::NoConnection(error)), now);
            }
        }
        self.release_due(now);
        self.dial_for_queue(now);
    }

    /// Event: the connection's task asks what to send next, and what becomes of the content of the answer.
    pub(super) fn take_request(
        &mut self,
        id: ConnectionId,
        now: impl FnOnce() -> Moment,
    ) -> Option<Taken> {
        let connection = self.connection_mut(id);
        let call = connection.take_request()?;
        let (more, adds) = (connection.waiting(), connection.adds);
        let PooledCall { request, content, batcher, .. } = self.call_mut(call);
        let (request, content) = (Rc::clone(request), *content);
        let Some(batcher) = *batcher else {
            return Some(Taken { request, content, batched: 0, more });
        };
        let taken = self.take_batch(batcher, call, adds, now());
        // The next batch may be one of them.
        Some(Taken { more: self.connection_mut(id).waiting(), ..taken })
    }

    /// Event: not a byte has left of the last `count` requests that were taken, and the connection sends no more. It may
    /// be read to its end, for the answers to what it has sent; the others go elsewhere.
    pub(super) fn not_sent(&mut self, id: ConnectionId, count: usize, now: Moment) {
        let connection = self.connection_mut(id);
        connection.not_sent(count);
        // One that carries nothing else closes at once, and is then asked whether it ever worked.
        if connection.taken > 0 {
            self.give_back(id);
            if self.connection_mut(id).is_forsaken() {
                self.cut(id);
            }
            self.serve_queue(now);
            self.release_due(now);
            self.dial_for_queue(now);
        }
    }

    /// What a connection has not sent goes elsewhere.
    fn give_back(&mut self, id: ConnectionId) {
        self.settle_room(id);
        while let connection = self.connection_mut(id)
            && connection.waiting() > 0
            && let Some(waits) = connection.calls.pop_last()
        {
            if self.waits_on(waits, id) {
                self.requeue(waits, id);
            } else {
                self.connection_mut(id).made_up();
            }
        }
    }

    /// Event: the oldest call that was taken was answered. Returns whether the connection stays open: it must be
    /// reusable. If it carries no other call, its address must still be the counter's, and there must not be more
    /// connections than the limit.
    #[must_use]
    pub(super) fn answered(&mut self, id: ConnectionId, answer: Answer, now: Moment) -> bool {
        let Answer { status, reusable, pipelines, content, added } = answer;
        let connection = self.connection_mut(id);
        let is_first = !connection.has_completed_call;
        let Some(call) = connection.answered(now) else { return false };
        connection.pipelines = pipelines;
        connection.adds |= added.is_some();
        self.pipelines = pipelines;
        match reusable {
            true => self.stopping = None,
            false => self.set_aside(now),
        }
        let waits = self.waits_on(call, id);
        let mut outcome = Ok(status);
        if waits && !self.has_added(call, status, added, reusable || !is_first) {
            outcome = Err(CallError::Broken);
        }
        if !waits {
            self.connection_mut(id).made_up();
        }
        self.connection_mut(id).lives();
        if waits {
            self.call_mut(call).answer_content = content;
            self.end(call, outcome, now);
        }
        let stays = reusable && self.goes_on(id, now);
        if !stays {
            self.close(id, now);
        }
        self.serve_queue(now);
        self.release_due(now);
        stays
    }

    /// Whether this connection, which was just answered and can be used again, is kept open.
    fn goes_on(&mut self, id: ConnectionId, now: Moment) -> bool {
        let is_welcome = self.is_welcome(id);
        if !self.pipelines {
            // It carries one call at a time from now on.
            self.give_back(id);
        }
        let connection = self.connection_mut(id);
        let may_stay = is_welcome && !connection.sends_no_more;
        if connection.calls.is_empty() {
            connection.state = ConnectionState::Idle(now);
            self.settle_room(id);
            if may_stay {
                self.idle.push_back(id);
            }
            return may_stay;
        }
        if connection.is_forsaken() {
            return false;
        }
        self.settle_room(id);
        true
    }

    /// Whether a connection could be kept: its address is the counter's, and there are no more than the limit.
    fn is_welcome(&self, id: ConnectionId) -> bool {
        let address = self.connections.get(id).and_then(|connection| connection.address);
        self.connections.len() <= self.limits.connections_max
            && address.is_some_and(|address| self.addresses.contains(address))
    }

    /// Event: an established connection has ended. Calls that it has not sent get another connection, but one fails if
    /// this connection never completed a call: the next would be no better. To the breaker, what it carried is one call.
    pub(super) fn closed(&mut self, id: ConnectionId, now: Moment) {
        match self.connection_mut(id).state {
            ConnectionState::Dialing => unreachable!("a connection that never stood cannot close"),
            ConnectionState::Idle(_) => self.idle.retain(|idle| *idle != id),
            ConnectionState::Busy => {
                let connection = self.connection_mut(id);
                let (has_completed_call, is_told) =
                    (connection.has_completed_call, connection.is_told);
                self.leave(id, has_completed_call, is_told, now);
            }
            ConnectionState::Closing => {}
        }
        self.connections.remove(id);
        self.serve_queue(now);
        self.release_due(now);
        self.dial_for_queue(now);
    }

    /// A connection whose last answer has come gets no further call.
    fn close(&mut self, id: ConnectionId, now: Moment) {
        // The counter has answered, so the breaker need not know of those that it leaves unanswered.
        self.leave(id, true, true, now);
    }

    /// Ends what a connection carries: a call that it may have sent fails. One that it has not sent goes elsewhere, or
    /// fails too where `requeues` says so.
    fn leave(&mut self, id: ConnectionId, requeues: bool, mut is_told: bool, now: Moment) {
        let (calls, taken) = self.connection_mut(id).close();
        self.settle_room(id);
        for (place, &call) in calls.iter().enumerate() {
            let error = match place < taken {
                true => CallError::Broken,
                false if requeues => break,
                false => CallError::NoConnection(DialError::Other),
            };
            if !self.waits_on(call, id) {
                continue;
            }
            match mem::replace(&mut is_told, true) {
                false => self.end(call, Err(error), now),
                true => self.end_untold(call, Err(error), now),
            }
        }
        if requeues {
            // The first of them is the next.
            let waiting = calls.iter().rev().take(calls.len() - taken);
            waiting.for_each(|call| self.requeue(*call, id));
        }
    }

    /// Event: time has passed. Calls whose deadlines have passed end, and a connection with the last call that it
    /// carries. Connections that were idle for too long are closed.
    pub(super) fn expire(&mut self, now: Moment) {
        while let Some((began, key)) = self.calls.pop_expired(now) {
            let call = CallId(key);
            let state = self.call_mut(call).state;
            let mut is_told = false;
            match state {
                CallState::Assigned(connection) => {
                    self.time_is_over(call, connection, now);
                    is_told = began != Began::Elsewhere
                        && mem::replace(&mut self.connection_mut(connection).is_told, true);
                }
                CallState::Queued => self.remove_from_queue(call),
                CallState::Gathered => drop(self.leave_batch(call, Some(now))),
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
                _ if is_told => self.end_untold(call, late, now),
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

    /// The time of a call on this connection is over. A connection that nobody waits for is cut; another one gives back
    /// what it has not sent.
    fn time_is_over(&mut self, call: CallId, id: ConnectionId, now: Moment) {
        let connection = self.connection_mut(id);
        connection.time_is_over(call);
        self.give_back(id);
        if self.connection_mut(id).is_forsaken() {
            self.cut(id);
        }
        self.serve_queue(now);
    }

    /// Event: the counter has other addresses. Connections to addresses that are gone are closed: an idle one at
    /// once, one that carries calls once they were answered.
    pub(super) fn set_addresses(&mut self, addresses: Vec<SocketAddr>, now: Moment) {
        self.addresses.replace(addresses);
        let Self { addresses, connections, idle, actions, .. } = self;
        idle.retain(|id| {
            let connection = &mut connections[*id];
            let stays = connection.address.is_some_and(|address| addresses.contains(address));
            if !stays {
                drop(connection.close());
                actions.push_back(Action::Cut(*id));
            }
            stays
        });
        self.settle_rooms();
        self.serve_queue(now);
    }

    /// Event: other limits. Time-outs apply to calls in progress and to idle connections too. Connections beyond the
    /// new maximum close as their calls end.
    pub(super) fn set_limits(&mut self, limits: UpstreamLimits, now: Moment) {
        for began in [Began::Here, Began::Elsewhere, Began::Batch] {
            self.calls.set_timeout(began, limits.call_timeout);
        }
        self.limits = limits;
        self.settle_rooms();
        self.serve_queue(now);
        self.expire(now);
    }

    /// Whether nothing is left of all calls and connections.
    #[cfg(any(test, simulation))]
    pub(super) fn is_empty(&self) -> bool {
        let Self { calls, connections, queue, idle, dialing, gathered, gathering, .. } = self;
        let left = [calls.len(), connections.len(), queue.len(), idle.len(), *dialing];
        left.iter().sum::<usize>() + gathered + gathering == 0
    }

    /// Dials connections for the queued calls, as far as the limit allows: for each one, or for as many as one
    /// connection will carry.
    fn dial_for_queue(&mut self, now: Moment) {
        let of_each = if self.pipelines { self.limits.pipeline_max.max(1) } else { 1 };
        while self.dialing.saturating_mul(of_each) < self.queue.len()
            && self.connections.len() < self.limits.connections_max
        {
            if self.connections.len() > self.dialing && now < self.dial_after {
                break;
            }
            self.dialing += 1;
            let id = self.connections.insert(PooledConnection::dialing(now));
            self.actions.push_back(Action::Dial(id));
        }
        assert!(self.dialing <= self.connections.len(), "more dials than connections");
        let none_free = self.idle.is_empty() && self.roomy.is_empty();
        assert!(self.queue.is_empty() || none_free, "calls wait while a connection is free");
    }

    /// Whether a call would find no connection and no place in the queue; `waits` says that it gets no free one at once.
    fn is_full(&self, waits: bool) -> bool {
        let none_free = self.idle.is_empty() && self.roomy.is_empty();
        (waits || none_free) && self.queued_calls() >= self.queue_room()
    }

    /// How many calls may be queued: the maximum, and one for each connection that is being dialed or can be.
    fn queue_room(&self) -> usize {
        let dialable = self.limits.connections_max.saturating_sub(self.connections.len());
        self.limits.queue_max + self.dialing + dialable
    }

    /// The connection that gets the next call: a busy one that has room, else the one used last. A busy one that has
    /// been silent comes behind those that are idle: it may hang.
    fn free_connection(&mut self, now: Moment) -> Option<ConnectionId> {
        let roomy = self.roomy.last().copied();
        match roomy {
            Some(id) if self.connections[id].is_silent(now) => self.idle.pop_back().or(roomy),
            Some(_) => roomy,
            None => self.idle.pop_back(),
        }
    }

    /// Free connections get the calls that have waited longest.
    fn serve_queue(&mut self, now: Moment) {
        while !self.queue.is_empty()
            && let Some(id) = self.free_connection(now)
            && let Some(QueuedCall { id: call, since }) = self.queue.pop_front()
        {
            self.actions.extend(since.map(Action::Waited));
            self.assign(call, id, now);
        }
    }

    fn assign(&mut self, call: CallId, id: ConnectionId, now: Moment) {
        self.call_mut(call).assign(id);
        if self.connection_mut(id).assign(call, now) {
            self.actions.push_back(Action::Send(id));
        }
        self.settle_room(id);
    }

    /// Notes whether a busy connection can get another call.
    fn settle_room(&mut self, id: ConnectionId) {
        let most = self.limits.pipeline_max;
        let connection = self.connection_mut(id);
        let (was_roomy, has_room) = (connection.is_roomy, connection.has_room(most));
        // A connection that carries one call at a time never has room. One that stays busy with few keeps it: whatever
        // makes it unwelcome settles the room of all.
        if was_roomy == has_room {
            return;
        }
        if has_room {
            let is_welcome = self.is_welcome(id);
            self.connection_mut(id).is_roomy = is_welcome;
            if is_welcome {
                self.roomy.push(id);
            }
        } else {
            self.lose_room(id);
        }
    }

    fn lose_room(&mut self, id: ConnectionId) {
        self.connection_mut(id).is_roomy = false;
        // It is most often the last.
        let place = self.roomy.iter().rposition(|roomy| *roomy == id);
        place.map(|place| self.roomy.remove(place));
    }

    /// The same for all connections: what holds for all of them has changed.
    fn settle_rooms(&mut self) {
        let busy = self.connections.iter().filter(|(_, connection)| connection.pipelines);
        let busy: Vec<_> = busy.map(|(id, _)| id).collect();
        for id in busy {
            match self.connections[id].is_roomy && !self.is_welcome(id) {
                true => self.lose_room(id),
                false => self.settle_room(id),
            }
        }
    }

    /// Whether a call has not ended, and is on this connection.
    fn waits_on(&self, call: CallId, id: ConnectionId) -> bool {
        self.calls.get(call.0).is_some_and(|entry| entry.state == CallState::Assigned(id))
    }

    /// A call that this connection has not sent waits for another one, before all others.
    fn requeue(&mut self, call: CallId, id: ConnectionId) {
        if !self.waits_on(call, id) {
            return;
        }
        let entry = self.call_mut(call);
        if let Some(batcher) = entry.batcher {
            return self.requeue_batch(batcher, call);
        }
        if entry.abandoned {
            self.calls.remove(call.0);
            return;
        }
        entry.requeue();
        self.queue_first(call);
    }

    fn queue_first(&mut self, call: CallId) {
        self.queue.push_front(QueuedCall { id: call, since: None });
    }

    fn remove_from_queue(&mut self, call: CallId) {
        // It is most often the first; at most, the queue is as long as its limit.
        let place = self.queue.iter().position(|queued| queued.id == call);
        assert!(place.and_then(|place| self.queue.remove(place)).is_some(), "it is in the queue");
    }

    fn cut(&mut self, id: ConnectionId) {
        drop(self.connection_mut(id).close());
        self.actions.push_back(Action::Cut(id));
    }

    /// Ends a call that is not in the queue any more, and tells the breaker.
    fn end(&mut self, call: CallId, outcome: Result<u16, CallError>, now: Moment) {
        match self.call_mut(call).batcher_of_batch() {
            Some(batcher) => self.end_batch(batcher, call, outcome, now),
            None => self.end_one(call, outcome, now),
        }
    }

    /// Ends a call that is not in the queue any more, and says nothing to the breaker.
    fn end_untold(&mut self, call: CallId, outcome: Result<u16, CallError>, now: Moment) {
        let entry = self.call_mut(call);
        entry.told = true;
        match entry.batcher_of_batch() {
            Some(batcher) => self.end_batch(batcher, call, outcome, now),
            None => self.finish(call, outcome),
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
mod pipelining;
#[cfg(test)]
mod tests;
