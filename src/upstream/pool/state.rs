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
//!     ┌─────────┐ connected ┌──────┐ assign  ┌──────────┐ take request ┌──────────┐
//!     │ Dialing │ ────────► │ Idle │ ──────► │ Assigned │ ───────────► │ InFlight │
//!     └─────────┘           └──────┘         └──────────┘ ◄─────────── └──────────┘
//!          │                 │   ▲                │          not sent       │
//!          │                 │   └──────── answered, reusable ──────────────┤
//!          │                 │ cut                │ cut                     │ answered, cut
//!          │                 │                    ▼                         │
//!          │                 │               ┌─────────┐                    │
//!          │                 └─────────────► │ Closing │ ◄──────────────────┘
//!          │                                 └─────────┘
//!          │ dial failed                          │
//!          ▼                                      ▼
//!       removed ◄───────────── closed (also from Idle, Assigned and InFlight)
//! ```
//!
//! A connection is cut when its call has timed out, when it was idle for too long, and when its address is no longer
//! the counter's. A call is `InFlight` only when its request was taken: before that, it is certain that it was not
//! sent.
//!
//! Calls that register several visits have states of their own besides: see [`batches`](super::batches).
//!
//! To pipeline calls, `InFlight` would hold a queue of them: an answer is the oldest one's, and a connection with
//! room is assigned another.

use std::{net::SocketAddr, rc::Rc, task::Waker};

use enum_map::Enum;
use slotmap::new_key_type;

use super::super::{CallBytes, CallError, Content, ShortContent};
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

/// A connection, from its dial to its end.
#[derive(Debug)]
pub(super) struct PooledConnection {
    pub(super) state: ConnectionState,
    /// Where it leads; `None` while it is dialed.
    pub(super) address: Option<SocketAddr>,
    /// A connection that has not may never have worked.
    pub(super) has_completed_call: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectionState {
    /// It is being opened.
    Dialing,
    /// It carries no call, since this moment.
    Idle(Moment),
    /// It was given a call, whose request its task has not taken.
    Assigned(CallId),
    /// Its task sends the call or waits for the answer.
    InFlight(CallId),
    /// It gets no further call; its task is about to end.
    Closing,
}

impl PooledConnection {
    pub(super) fn dialing() -> Self {
        Self { state: ConnectionState::Dialing, address: None, has_completed_call: false }
    }

    pub(super) fn connected(&mut self, address: SocketAddr, now: Moment) {
        assert_eq!(self.state, ConnectionState::Dialing, "a connection is dialed once");
        self.state = ConnectionState::Idle(now);
        self.address = Some(address);
    }

    pub(super) fn assign(&mut self, call: CallId) {
        let idle = matches!(self.state, ConnectionState::Idle(_));
        assert!(idle, "a connection carries one call at a time: {:?}", self.state);
        self.state = ConnectionState::Assigned(call);
    }

    /// The call that is to be sent, if there is one.
    pub(super) fn take_request(&mut self) -> Option<CallId> {
        let ConnectionState::Assigned(call) = self.state else { return None };
        self.state = ConnectionState::InFlight(call);
        Some(call)
    }

    /// Not a byte of the call has left: it is as if its request had not been taken.
    pub(super) fn not_sent(&mut self) {
        if let Some(call) = self.call_in_flight() {
            self.state = ConnectionState::Assigned(call);
        }
    }

    /// The call that was answered; `None` when it had ended before, and its connection was cut.
    pub(super) fn answered(&mut self, now: Moment) -> Option<CallId> {
        let call = self.call_in_flight()?;
        self.state = ConnectionState::Idle(now);
        self.has_completed_call = true;
        Some(call)
    }

    /// It gets no further call.
    pub(super) fn close(&mut self) {
        assert_ne!(self.state, ConnectionState::Dialing, "what is dialed has no socket yet");
        self.state = ConnectionState::Closing;
    }

    fn call_in_flight(&self) -> Option<CallId> {
        match self.state {
            ConnectionState::InFlight(call) => Some(call),
            ConnectionState::Closing => None,
            state => {
                unreachable!(
                    "a connection tells of a call whose request it has not taken: {state:?}"
                )
            }
        }
    }
}
