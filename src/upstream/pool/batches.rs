//! Calls that register several visits each (group commit): visits that arrive while such a call is in flight are
//! registered by the next one.
//!
//! ```text
//!   join ---> Gathered ---take batch---> Aboard ---the batch's call ends---> Ended
//!                 ▲                        │
//!                 └────────requeue─────────┘   not a byte of it was sent
//! ```
//!
//! Each visit is a [`PooledCall`] with a caller and a deadline of its own. A batch is one more, without a caller. It is
//! `Held` while the batch before it is in flight, then waits for a connection and is sent like any call. What it
//! carries is decided when its connection takes it: those that have gathered and have not left. A batch that was taken
//! longer than [`HOLD_TIME`] ago holds none back, so that a call that hangs delays few visits but its own.
//!
//! To the circuit breaker a batch is one call, however many visits fail with it.
//!
//! A visit that leaves before its batch was taken is not registered. One that leaves later keeps its place, so that the
//! numbers of the others stay right.

use std::{collections::VecDeque, mem, rc::Rc, time::Duration};

use smallvec::SmallVec;

use super::{
    CallId, Pool,
    state::{BatcherId, Began, CallState, PooledCall},
};
use crate::{
    runtime::clock::{Moment, Stamp},
    upstream::{Batching, CallBytes, CallError, Content, NotBegun},
};

/// How long the call in flight holds the next one back.
pub(super) const HOLD_TIME: Duration = Duration::from_millis(100);

/// Gathers the visits of one kind of call.
pub(super) struct Batcher {
    batching: Batching,
    /// The call with [`PLACEHOLDER`](crate::upstream::batching::PLACEHOLDER) in it.
    template: CallBytes,
    /// The call of one visit.
    single: CallBytes,
    /// In the order of their arrival.
    gathered: VecDeque<Member>,
    /// The batch that will carry them, until a connection takes it. There is one if and only if some have gathered.
    next: Option<CallId>,
    /// The batches that connections have taken.
    sent: SmallVec<[Sent; 1]>,
    /// For the members of the next batch: it keeps its room.
    spare: Vec<Member>,
    /// Nobody can join any more: it goes with its last batch.
    closed: bool,
    /// Whether the counter takes batches that are only offered to it.
    offer: Offer,
}

/// What a counter has said of a batch that is offered to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Offer {
    /// Nothing, or its connections end with their first answer.
    Silent,
    /// In its last answer of success, how much was added.
    Adds,
    /// Something else than what it was asked for, or it has refused. It gets no batch any more: somebody on the way does
    /// not know of them.
    Broken,
}

#[derive(Clone, Copy)]
struct Member {
    call: CallId,
    joined: Moment,
}

/// A batch, and those that it registers, also those that have left since.
struct Sent {
    call: CallId,
    members: Vec<Member>,
    /// When a connection took it.
    taken: Moment,
}

/// What a connection sends.
pub(in crate::upstream) struct Taken {
    pub(in crate::upstream) request: CallBytes,
    /// What becomes of the content of the answer.
    pub(in crate::upstream) content: Content,
    /// How many visits a batch registers; 0 where the call is none.
    pub(in crate::upstream) batched: usize,
    /// How many other calls wait to be taken.
    pub(in crate::upstream) more: usize,
}

impl Batcher {
    /// Whether a call may register several visits.
    fn batches(&self) -> bool {
        self.offer == Offer::Adds || self.batching.is_promised()
    }

    fn is_idle(&self) -> bool {
        self.gathered.is_empty() && self.sent.is_empty()
    }

    /// Since when the next batch is held back; `None` where it is not.
    fn held_since(&self, now: Moment) -> Option<Moment> {
        if self.gathered.len() >= self.batching.max() {
            return None;
        }
        let youngest = self.sent.iter().map(|sent| sent.taken).max();
        youngest.filter(|taken| now < taken.after(HOLD_TIME))
    }

    /// What registers `count` visits; the bytes of `first`, which may have a trace, are those of the first of them.
    fn request(&self, first: &CallBytes, count: usize) -> CallBytes {
        match count {
            1 if Rc::ptr_eq(first, &self.template) => Rc::clone(&self.single),
            _ => Rc::new(self.batching.render(first, count)),
        }
    }
}

impl Pool {
    /// A batcher for calls of `template`.
    pub(in crate::upstream) fn add_batcher(
        &mut self,
        template: &CallBytes,
        batching: Batching,
    ) -> BatcherId {
        self.batchers.insert(Batcher {
            batching,
            template: Rc::clone(template),
            single: Rc::new(batching.render(template, 1)),
            gathered: VecDeque::new(),
            next: None,
            sent: SmallVec::new(),
            spare: Vec::new(),
            closed: false,
            offer: Offer::Silent,
        })
    }

    /// Event: nobody joins a batcher any more. All its members have left.
    pub(in crate::upstream) fn close_batcher(&mut self, id: BatcherId) {
        let batcher = &mut self.batchers[id];
        batcher.closed = true;
        if batcher.is_idle() {
            self.batchers.remove(id);
        }
    }

    /// Whether a visit that begins now joins others; else it has a call of its own.
    pub(in crate::upstream) fn joins(&self, id: BatcherId) -> bool {
        self.batchers[id].batches()
    }

    /// This call, which has just begun, is one that would join this batcher's if the counter took several visits in one.
    pub(in crate::upstream) fn tells(&mut self, call: CallId, id: BatcherId) {
        self.call_mut(call).tells = Some(id);
    }

    /// Event: a call was answered, and with how much was added, if that was said; `stays` is whether connections carry
    /// several calls one after the other. Returns whether the status may be believed. A batch that was only offered must
    /// be confirmed: behind a proxy, a counter that ignores the number and adds 1 may have got it. One that was promised
    /// need not be, but must not be denied.
    pub(super) fn has_added(
        &mut self,
        call: CallId,
        status: u16,
        added: Option<u32>,
        stays: bool,
    ) -> bool {
        let entry = self.call_mut(call);
        let Some(id) = entry.tells.or(entry.batcher) else { return true };
        // The routes may be others by now.
        let Some(batcher) = self.batchers.get_mut(id) else { return true };
        let batched = batcher.batches();
        let sent = batcher.sent.iter().find(|sent| sent.call == call);
        let count = sent.map_or(1, |sent| sent.members.len());
        let is_success = (200..300).contains(&status);
        let is_true = match added {
            _ if count == 1 || !is_success || batcher.batching.is_unchecked() => true,
            Some(added) => usize::try_from(added) == Ok(count),
            None => batcher.batching.is_promised(),
        };
        // A query may be what it refuses.
        let is_refused = count > 1 && (400..500).contains(&status);
        batcher.offer = match batcher.offer {
            _ if !is_true || is_refused => Offer::Broken,
            offer if offer == Offer::Broken || !is_success => offer,
            // A batch goes on a connection that is known, so it takes one that stays.
            _ if stays && added.is_some() => Offer::Adds,
            _ => Offer::Silent,
        };
        if batched && !batcher.batches() {
            self.due.push(id);
        }
        is_true
    }

    /// Event: a visit begins whose call may carry others too. One that another counter could not be sent has the deadline
    /// of `since`.
    ///
    /// # Errors
    /// When too many wait already, or the counter fails.
    pub(in crate::upstream) fn join(
        &mut self,
        id: BatcherId,
        (request, content): (&CallBytes, Content),
        since: Option<Moment>,
        now: Moment,
        began: Stamp,
    ) -> Result<CallId, NotBegun> {
        let batcher = &self.batchers[id];
        let waits = batcher.next.is_some() || !batcher.sent.is_empty();
        let call = self.begin(request, content, waits, now)?;
        match since {
            None => self.calls.arm(call.0, Began::Here, now),
            Some(since) => self.calls.arm_since(call.0, Began::Elsewhere, since),
        }
        let entry = self.call_mut(call);
        (entry.batcher, entry.state) = (Some(id), CallState::Gathered);
        self.drop_left(id);
        self.gathered += 1;
        self.batchers[id].gathered.push_back(Member { call, joined: now });
        let next = self.next_batch(id);
        self.hold_or_release(id, next, Some(began), now);
        Ok(call)
    }

    /// Lets a batch have a connection, unless one that was taken a moment ago holds it back.
    fn hold_or_release(&mut self, id: BatcherId, next: CallId, began: Option<Stamp>, now: Moment) {
        if self.call_mut(next).state != CallState::Held {
            return;
        }
        match self.batchers[id].held_since(now) {
            Some(since) => self.calls.arm_since(next.0, Began::Held, since),
            None => self.release(next, began, now),
        }
    }

    /// The batch that will carry those that have gathered: held back, if it is new.
    fn next_batch(&mut self, id: BatcherId) -> CallId {
        let batcher = &mut self.batchers[id];
        if let Some(next) = batcher.next {
            return next;
        }
        let call = CallId(self.calls.insert(PooledCall::batch(&batcher.template, id)));
        batcher.next = Some(call);
        self.gathering += 1;
        call
    }

    /// Lets a batch that was held back have a connection.
    pub(super) fn release(&mut self, call: CallId, began: Option<Stamp>, now: Moment) {
        self.calls.disarm(call.0);
        self.call_mut(call).release();
        self.send(call, began, now);
    }

    /// A connection sends a batch: those of its members who have not left. Only one of them, unless the counter is known
    /// to take more: `adds` is whether an answer on this connection has said how much it added.
    pub(super) fn take_batch(
        &mut self,
        id: BatcherId,
        call: CallId,
        adds: bool,
        now: Moment,
    ) -> Taken {
        let batcher = &mut self.batchers[id];
        assert_eq!(batcher.next.take(), Some(call), "a batch is taken once");
        self.gathering -= 1;
        let is_known = batcher.batching.is_promised() || adds && batcher.offer == Offer::Adds;
        let most = if is_known { batcher.batching.max() } else { 1 };
        let count = batcher.gathered.len().min(most);
        let mut members = mem::take(&mut batcher.spare);
        members.extend(batcher.gathered.drain(..count));
        self.gathered -= count;
        let mut content = Content::Discarded;
        for member in &members {
            let Some(entry) = self.calls.get_mut(member.call.0) else { continue };
            entry.state = CallState::Aboard(call);
            if entry.content == Content::Kept {
                content = Content::Kept;
            }
        }
        let (Some(first), Some(last)) = (members.first(), members.last()) else {
            unreachable!("a batch whose last member has left is removed")
        };
        // The deadlines of all others are earlier.
        self.calls.arm_since(call.0, Began::Batch, last.joined);
        let batched = members.len();
        let request = batcher.request(
            &self
                .calls
                .get(first.call.0)
                .map_or_else(|| Rc::clone(&batcher.template), |first| Rc::clone(&first.request)),
            batched,
        );
        batcher.sent.push(Sent { call, members, taken: now });
        if !batcher.gathered.is_empty() {
            if batcher.batches() {
                let next = self.next_batch(id);
                self.hold_or_release(id, next, None, now);
            } else {
                self.dissolve(id, now);
            }
        }
        Taken { request, content, batched, more: 0 }
    }

    /// A batch goes back from a connection that sent nothing of it. Its members are again the first that have gathered.
    pub(super) fn requeue_batch(&mut self, id: BatcherId, call: CallId) {
        if self.batchers[id].next == Some(call) {
            // It was not taken, so the last to leave it goes too.
            self.drop_left(id);
            return self.requeue_untaken(id, call);
        }
        let batcher = &mut self.batchers[id];
        let place = batcher.sent.iter().position(|sent| sent.call == call);
        let place = place.unwrap_or_else(|| unreachable!("a batch is next or sent"));
        let mut members = batcher.sent.swap_remove(place).members;
        self.calls.remove(call.0);
        let is_left = |member: &Member| match self.calls.get(member.call.0) {
            Some(entry) => entry.abandoned || entry.state != CallState::Aboard(call),
            None => true,
        };
        if !members.iter().all(is_left) {
            self.drop_left(id);
        }
        let batcher = &mut self.batchers[id];
        for member in members.drain(..).rev() {
            match self.calls.get_mut(member.call.0) {
                Some(entry) if entry.state == CallState::Aboard(call) && !entry.abandoned => {
                    entry.state = CallState::Gathered;
                    batcher.gathered.push_front(member);
                    self.gathered += 1;
                }
                Some(entry) if entry.abandoned => drop(self.calls.remove(member.call.0)),
                _ => {}
            }
        }
        batcher.spare = members;
        if batcher.gathered.is_empty() {
            return self.due.push(id);
        }
        let next = self.next_batch(id);
        if self.call_mut(next).state == CallState::Held {
            self.calls.disarm(next.0);
            self.call_mut(next).release();
            self.queue_first(next);
        }
    }

    fn requeue_untaken(&mut self, id: BatcherId, call: CallId) {
        let batcher = &mut self.batchers[id];
        if !batcher.gathered.is_empty() {
            self.call_mut(call).requeue();
            return self.queue_first(call);
        }
        batcher.next = None;
        self.gathering -= 1;
        self.calls.remove(call.0);
        self.due.push(id);
    }

    /// The last to leave a batch that is on a connection stays in it, as does who leaves a call that is. Not where the
    /// batch goes with others.
    fn drop_left(&mut self, id: BatcherId) {
        let gathered = &mut self.batchers[id].gathered;
        if let Some(Member { call, .. }) = gathered.front()
            && self.calls.get(call.0).is_some_and(|call| call.abandoned)
        {
            self.calls.remove(call.0);
            gathered.pop_front();
            self.gathered -= 1;
        }
    }

    /// A visit that has gathered leaves, or its time is over, at `late`. `true` if it was kept, since its batch may have
    /// been sent.
    pub(super) fn leave_batch(&mut self, call: CallId, late: Option<Moment>) -> bool {
        let Some(id) = self.call_mut(call).batcher else { unreachable!("only a member gathers") };
        let batcher = &self.batchers[id];
        let next = batcher.next.unwrap_or_else(|| unreachable!("some have gathered"));
        let is_last = batcher.gathered.len() == 1;
        let next_state = self.calls.get(next.0).map(|call| call.state);
        if let (true, Some(CallState::Assigned(connection))) = (is_last, next_state) {
            let Some(now) = late else { return true };
            self.time_is_over(next, connection, now);
        }
        let batcher = &mut self.batchers[id];
        let place = batcher.gathered.iter().position(|member| member.call == call);
        assert!(
            place.and_then(|place| batcher.gathered.remove(place)).is_some(),
            "it has gathered"
        );
        self.gathered -= 1;
        if is_last {
            batcher.next = None;
            self.gathering -= 1;
            if next_state == Some(CallState::Queued) {
                self.remove_from_queue(next);
            }
            self.calls.remove(next.0);
            if self.batchers[id].closed {
                self.due.push(id);
            }
        }
        false
    }

    /// Ends a batch: each of its members that waits has its outcome, and its own share of the answer.
    pub(super) fn end_batch(
        &mut self,
        id: BatcherId,
        call: CallId,
        outcome: Result<u16, CallError>,
        now: Moment,
    ) {
        self.tell_of_batch(call, outcome, now);
        let content = self.calls.remove(call.0).and_then(|mut batch| batch.answer_content.take());
        let batcher = &mut self.batchers[id];
        let mut members = match batcher.sent.iter().position(|sent| sent.call == call) {
            Some(place) => batcher.sent.swap_remove(place).members,
            None => {
                assert_eq!(batcher.next.take(), Some(call), "a batch is next or sent");
                self.gathering -= 1;
                self.gathered -= batcher.gathered.len();
                batcher.gathered.drain(..).collect()
            }
        };
        let count = members.len();
        for (place, member) in members.drain(..).enumerate() {
            let Some(entry) = self.calls.get_mut(member.call.0) else { continue };
            if matches!(entry.state, CallState::Ended(_)) {
                continue;
            }
            if entry.content == Content::Kept {
                let share = content.as_ref().and_then(|content| content.share(place, count));
                entry.answer_content = share.map(Box::new);
            }
            self.finish(member.call, outcome);
        }
        self.batchers[id].spare = members;
        self.due.push(id);
    }

    /// Tells the breaker of a batch: of a failure once, though the time of its visits ends before its own.
    pub(super) fn tell_of_batch(
        &mut self,
        batch: CallId,
        outcome: Result<u16, CallError>,
        now: Moment,
    ) {
        let Some(entry) = self.calls.get_mut(batch.0) else { return };
        if !mem::replace(&mut entry.told, outcome.is_err()) || outcome.is_ok() {
            self.tell_breaker(outcome, now);
        }
    }

    /// Lets the batches have connections that were held back by those that have ended.
    pub(super) fn release_due(&mut self, now: Moment) {
        while let Some(id) = self.due.pop() {
            let Some(batcher) = self.batchers.get(id) else { continue };
            if batcher.closed && batcher.is_idle() {
                self.batchers.remove(id);
            } else if let Some(next) = batcher.next {
                if batcher.batches() {
                    self.hold_or_release(id, next, None, now);
                } else {
                    self.part(id, next, now);
                }
            }
        }
    }

    /// The counter takes no batches: those that have gathered for this one have calls of their own, unless a connection
    /// has it already.
    fn part(&mut self, id: BatcherId, next: CallId, now: Moment) {
        match self.call_mut(next).state {
            CallState::Held => {}
            CallState::Queued => self.remove_from_queue(next),
            _ => return,
        }
        self.batchers[id].next = None;
        self.gathering -= 1;
        self.calls.remove(next.0);
        self.dissolve(id, now);
    }

    /// Those that have gathered, and have no batch, have calls of their own. They have waited longer than all others.
    fn dissolve(&mut self, id: BatcherId, now: Moment) {
        let members = mem::take(&mut self.batchers[id].gathered);
        self.gathered -= members.len();
        for Member { call, .. } in members.into_iter().rev() {
            if self.call_mut(call).abandoned {
                self.calls.remove(call.0);
                continue;
            }
            self.call_mut(call).leave_batch(id);
            self.queue_first(call);
        }
        self.serve_queue(now);
        self.dial_for_queue(now);
    }
}

#[cfg(test)]
mod tests;
