//! The states of a call and of a connection in the pool. Each transition is a function; one that is not drawn here is
//! a bug and fails an assertion.
//!
//! A call:
//!
//! ```text
//!                            call
//!                 none idle   │   one idle
//!             ┌───────────────┴────────────────┐
//!             ▼       a connection is free     ▼
//!         ┌────────┐ ───────────────────► ┌──────────┐
//!         │ Queued │                      │ Assigned │
//!         └────────┘ ◄─────────────────── └──────────┘
//!             │           requeue              │
//!             │ timed out                      │ answered
//!             │ dial failed                    │ timed out
//!             │            ┌───────┐           │ connection closed
//!             └──────────► │ Ended │ ◄─────────┘
//!                          └───────┘
//! ```
//!
//! When the caller leaves, a queued or ended call is removed. An assigned one may have been sent: it is
//! abandoned, and stays until it ends, since its deadline is what cuts a connection that never answers.
//!
//! A connection:
//!
//! ```text
//!         dial
//!           │
//!           ▼
//!     ┌─────────┐ connected ┌──────┐          assign           ┌──────┐ ◄─┐ assign, take request, not sent,
//!     │ Dialing │ ────────► │ Idle │ ────────────────────────► │ Busy │   │ answered, others left
//!     └─────────┘           └──────┘ ◄──────────────────────── └──────┘ ──┘
//!          │                    │     answered, none left          │
//!          │                    │ cut                              │ answered and not reusable, cut
//!          │                    │           ┌─────────┐            │
//!          │                    └─────────► │ Closing │ ◄──────────┘
//!          │ dial failed                    └─────────┘
//!          ▼                                     ▼
//!       removed ◄──────────── closed (also from Idle and Busy)
//! ```
//!
//! A busy connection carries calls in the order in which it was given them. Those that its task has taken, always the
//! first ones, are in flight: some of them may have been sent. Of the others it is certain that nothing was. An answer
//! is the oldest one's.
//!
//! ```text
//!     calls:   [ in flight, in flight, in flight | waits, waits ]
//!                    ▲                           ▲             ▲
//!                 answered                  take request     assign
//! ```
//!
//! It carries one call at a time until an answer has shown that it stays open (HTTP/1.1, with a length, no
//! `Connection: close`), and then as many as the limit says. One that has room and is busy gets the next call before one
//! that is idle, so that there are few, unless it has given no answer for [`SILENCE`].
//!
//! A call that takes too long ends, and its place among those in flight stays, so that the answers behind it go to
//! whom they are for. Its connection is stuck: it gets no other call, and gives back those that wait, until the late
//! answer has come. When the time of all its calls is over, it is cut.
//!
//! A connection is cut also when it was idle for too long, and an idle one when its address is no longer the counter's.
//!
//! Calls that register several visits have states of their own besides: see [`batches`](super::batches).

use std::{mem, net::SocketAddr, rc::Rc, task::Waker, time::Duration};

use enum_map::Enum;
use slotmap::new_key_type;

use super::super::{CallBytes, CallError, Content, ShortContent, fifo::Fifo};
use crate::runtime::{clock::Moment, deadlines::Key};

new_key_type! {
    /// Names a connection, from its dial to its end. An id is never used for another one.
    pub(in crate::upstream) struct ConnectionId;
    /// Names a batcher. An id is never used for another one.
    pub(in crate::upstream) struct BatcherId;
}

/// Names a call. An id is never used for another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::upstream) struct CallId(pub(super) Key);

/// Where a call began: each kind of call has a queue of deadlines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
pub(super) enum Began {
    /// At this counter.
    Here,
    /// At another one, which was sent nothing of it.
    Elsewhere,
    /// It is a batch that was sent. Its deadline comes after those of its members.
    Batch,
    /// It is a batch that is held back.
    Held,
}

/// A call, until its caller has left and it has ended.
#[derive(Debug)]
pub(super) struct PooledCall {
    pub(super) request: CallBytes,
    /// What becomes of the content of its answer.
    pub(super) content: Content,
    /// The content, from its end until its caller takes it.
    pub(super) answer_content: Option<Box<ShortContent>>,
    pub(super) state: CallState,
    /// The caller's, while it waits for the outcome.
    pub(super) waker: Option<Waker>,
    /// The caller has left; a batch has none.
    pub(super) abandoned: bool,
    /// Of a batch, and of those that gather for one.
    pub(super) batcher: Option<BatcherId>,
    /// It is a batch, and the breaker knows that it failed.
    pub(super) told: bool,
    /// It is a call of its own, whose answer tells this batcher whether the counter takes several visits in one.
    pub(super) tells: Option<BatcherId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallState {
    /// It is in the queue. Not a byte of it was sent.
    Queued,
    /// It is on this connection, and on no other.
    Assigned(ConnectionId),
    /// It waits for its batch to be sent.
    Gathered,
    /// This batch, which is on a connection, carries it.
    Aboard(CallId),
    /// It is a batch, and the one before it is in flight.
    Held,
    /// The counter's status, or why there is none.
    Ended(Result<u16, CallError>),
}

impl PooledCall {
    pub(super) fn new(request: CallBytes, content: Content) -> Self {
        Self {
            request,
            content,
            answer_content: None,
            state: CallState::Queued,
            waker: None,
            abandoned: false,
            batcher: None,
            told: false,
            tells: None,
        }
    }

    /// A batch that is held back. Its caller has left from the beginning: it goes as soon as it ends.
    pub(super) fn batch(request: &CallBytes, batcher: BatcherId) -> Self {
        Self {
            state: CallState::Held,
            abandoned: true,
            batcher: Some(batcher),
            ..Self::new(Rc::clone(request), Content::Discarded)
        }
    }

    /// The batcher, if this is a batch.
    pub(super) fn batcher_of_batch(&self) -> Option<BatcherId> {
        let is_member = matches!(self.state, CallState::Gathered | CallState::Aboard(_));
        self.batcher.filter(|_| !is_member)
    }

    /// It waits for a connection of its own after all.
    pub(super) fn leave_batch(&mut self, batcher: BatcherId) {
        assert_eq!(self.state, CallState::Gathered, "it has gathered, and was not sent");
        (self.state, self.batcher, self.tells) = (CallState::Queued, None, Some(batcher));
    }

    /// It is held back no longer.
    pub(super) fn release(&mut self) {
        assert_eq!(self.state, CallState::Held, "a batch is released once");
        self.state = CallState::Queued;
    }

    pub(super) fn assign(&mut self, connection: ConnectionId) {
        assert_eq!(self.state, CallState::Queued, "a call is on one connection at a time");
        self.state = CallState::Assigned(connection);
    }

    /// It goes back from a connection that sent nothing of it.
    pub(super) fn requeue(&mut self) {
        assert!(matches!(self.state, CallState::Assigned(_)), "only an assigned call is requeued");
        self.state = CallState::Queued;
    }

    pub(super) fn end(&mut self, outcome: Result<u16, CallError>) {
        assert!(!matches!(self.state, CallState::Ended(_)), "a call ends once");
        self.state = CallState::Ended(outcome);
    }
}

/// A connection that has been busy and silent for so long gets no call while another one is idle.
pub(super) const SILENCE: Duration = Duration::from_millis(100);

/// A connection, from its dial to its end.
#[derive(Debug)]
pub(super) struct PooledConnection {
    pub(super) state: ConnectionState,
    /// Where it leads; `None` while it is dialed.
    pub(super) address: Option<SocketAddr>,
    /// What it carries, in the order in which it is sent and answered; nothing unless it is busy. One whose time was
    /// over keeps its place if it may have been sent.
    pub(super) calls: Fifo<CallId>,
    /// How many of these, from the first, its task has taken.
    pub(super) taken: usize,
    /// How many of those that were taken have ended before their answer.
    pub(super) late: usize,
    /// A connection that has not may never have worked.
    pub(super) has_completed_call: bool,
    /// It may carry several calls: its last answer has shown that it stays open.
    pub(super) pipelines: bool,
    /// An answer has said how much its call has added.
    pub(super) adds: bool,
    /// The time of one of its calls was over, and it was not made up for.
    pub(super) is_stuck: bool,
    /// The breaker knows that it is stuck.
    pub(super) is_told: bool,
    /// It is only read from.
    pub(super) sends_no_more: bool,
    /// It is one of those with room.
    pub(super) is_roomy: bool,
    /// When it became busy, or its last answer came, whichever is later. Before that, when it was established.
    heard: Moment,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectionState {
    /// It is being opened.
    Dialing,
    /// It carries no call, since this moment.
    Idle(Moment),
    /// It carries calls.
    Busy,
    /// It gets no further call; its task is about to end.
    Closing,
}

impl PooledConnection {
    pub(super) fn dialing(now: Moment) -> Self {
        Self {
            state: ConnectionState::Dialing,
            address: None,
            calls: Fifo::default(),
            taken: 0,
            late: 0,
            has_completed_call: false,
            pipelines: false,
            adds: false,
            is_stuck: false,
            is_told: false,
            sends_no_more: false,
            is_roomy: false,
            heard: now,
        }
    }

    pub(super) fn connected(&mut self, address: SocketAddr, now: Moment) {
        assert_eq!(self.state, ConnectionState::Dialing, "a connection is dialed once");
        self.state = ConnectionState::Idle(now);
        self.address = Some(address);
    }

    /// Whether it can get a call besides those that it carries, at most `most` together.
    pub(super) fn has_room(&self, most: usize) -> bool {
        self.pipelines
            && self.calls.len() < most
            && self.state == ConnectionState::Busy
            && !self.is_stuck
            && !self.sends_no_more
    }

    /// Whether it has given no answer for so long that an idle one is better.
    pub(super) fn is_silent(&self, now: Moment) -> bool {
        self.heard.after(SILENCE) <= now
    }

    /// Returns whether it waits for calls: there was none that its task would find by itself.
    pub(super) fn assign(&mut self, call: CallId, now: Moment) -> bool {
        let takes = match self.state {
            ConnectionState::Idle(_) => {
                self.heard = now;
                true
            }
            ConnectionState::Busy => self.has_room(usize::MAX),
            ConnectionState::Dialing | ConnectionState::Closing => false,
        };
        assert!(takes, "it takes no call: {self:?}");
        self.state = ConnectionState::Busy;
        self.calls.push(call);
        self.waiting() == 1
    }

    /// How many of its calls its task has not taken.
    pub(super) fn waiting(&self) -> usize {
        self.calls.len() - self.taken
    }

    /// The call that is to be sent next, if there is one.
    pub(super) fn take_request(&mut self) -> Option<CallId> {
        let call = *self.calls.get(self.taken)?;
        self.taken += 1;
        Some(call)
    }

    /// Not a byte of the last `count` calls in flight has left: it is as if their requests had not been taken. It sends
    /// no more.
    pub(super) fn not_sent(&mut self, count: usize) {
        self.sends_no_more = true;
        if self.state != ConnectionState::Closing {
            assert!(count <= self.taken, "it has not taken so many: {self:?}");
            self.taken -= count;
        }
    }

    /// The call that was answered; `None` when the connection was cut before.
    pub(super) fn answered(&mut self, now: Moment) -> Option<CallId> {
        if self.state == ConnectionState::Closing {
            return None;
        }
        let call = if self.taken > 0 { self.calls.pop() } else { None };
        assert!(call.is_some(), "a connection tells of a call that it has not taken: {self:?}");
        self.taken -= 1;
        self.has_completed_call = true;
        self.heard = now;
        call
    }

    /// The answer to a call whose time was over has come.
    pub(super) fn made_up(&mut self) {
        self.late -= 1;
    }

    /// An answer has come: unless others are late, it is not stuck.
    pub(super) fn lives(&mut self) {
        if self.late == 0 {
            (self.is_stuck, self.is_told) = (false, false);
        }
    }

    /// A call that it carries ends before its answer. One that may have been sent keeps its place.
    pub(super) fn time_is_over(&mut self, call: CallId) {
        let place = self.calls.iter().position(|other| *other == call);
        let Some(place) = place else { unreachable!("it carries the call") };
        if place < self.taken {
            self.late += 1;
        } else {
            self.calls.remove(place);
        }
        self.is_stuck = true;
    }

    /// Whether nobody waits for what it carries.
    pub(super) fn is_forsaken(&self) -> bool {
        self.calls.len() == self.late
    }

    /// It gets no further call. Returns what it carried, and how many of them were taken.
    pub(super) fn close(&mut self) -> (Fifo<CallId>, usize) {
        assert_ne!(self.state, ConnectionState::Dialing, "what is dialed has no socket yet");
        self.state = ConnectionState::Closing;
        self.late = 0;
        (mem::take(&mut self.calls), mem::take(&mut self.taken))
    }
}
