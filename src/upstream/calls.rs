//! The calls of one worker to one counter: where each stands, and who waits for it.

use std::{
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use super::{CallBytes, CallError, link::Link};
use crate::{
    clock::Moment,
    deadlines::{Deadlines, Key},
};

/// Calls that have begun and whose outcome nobody has taken yet.
pub(super) struct Calls(Deadlines<CallState, ()>);

struct CallState {
    request: CallBytes,
    stage: Stage,
    waker: Option<Waker>,
    /// Nobody will ask for the outcome. A call that was sent keeps its deadline all the same, since
    /// nothing else ends its connection if the counter never answers.
    abandoned: bool,
}

/// How far a call is.
pub(super) enum Stage {
    /// It has no connection. Nothing was sent.
    Waiting,
    /// It was given to a connection, and may have been sent.
    Sent(Rc<Link>),
    /// It has ended: the counter's status, or why there is none.
    Ended(Result<u16, CallError>),
}

impl Calls {
    /// No calls; each to come may take this long.
    pub(super) fn new(call_timeout: Duration) -> Self {
        Self(Deadlines::new(|()| call_timeout))
    }

    /// Calls may take this long from now on, those under way too.
    pub(super) fn set_timeout(&mut self, call_timeout: Duration) {
        self.0.set_timeout((), call_timeout);
    }

    pub(super) fn begin(&mut self, request: &CallBytes, stage: Stage, now: Moment) -> Key {
        let key = self.0.insert(CallState {
            request: Rc::clone(request),
            stage,
            waker: None,
            abandoned: false,
        });
        self.0.arm(key, (), now);
        key
    }

    /// What is to be sent for a call that was given to a connection and has not ended.
    pub(super) fn request(&self, key: Key) -> Option<CallBytes> {
        let call = self.0.get(key)?;
        matches!(call.stage, Stage::Sent(_)).then(|| Rc::clone(&call.request))
    }

    pub(super) fn is_waiting(&self, key: Key) -> bool {
        self.0.get(key).is_some_and(|call| matches!(call.stage, Stage::Waiting))
    }

    /// Gives a waiting call to a connection; false when it does not wait any more.
    pub(super) fn send_on(&mut self, key: Key, link: &Rc<Link>) -> bool {
        let Some(call) = self.0.get_mut(key) else { return false };
        if !matches!(call.stage, Stage::Waiting) {
            return false;
        }
        call.stage = Stage::Sent(Rc::clone(link));
        true
    }

    /// Takes a call back from a connection that sent nothing of it; false when it has ended.
    pub(super) fn wait_again(&mut self, key: Key) -> bool {
        let Some(call) = self.0.get_mut(key) else { return false };
        if !matches!(call.stage, Stage::Sent(_)) {
            return false;
        }
        if call.abandoned {
            self.0.remove(key);
            return false;
        }
        call.stage = Stage::Waiting;
        true
    }

    /// Ends a call; false when it has ended before. The first end counts: what comes after a time-out
    /// changes nothing.
    pub(super) fn end(&mut self, key: Key, outcome: Result<u16, CallError>) -> bool {
        let Some(call) = self.0.get_mut(key) else { return false };
        if matches!(call.stage, Stage::Ended(_)) {
            return false;
        }
        call.stage = Stage::Ended(outcome);
        if let Some(waker) = call.waker.take() {
            waker.wake();
        }
        if call.abandoned {
            self.0.remove(key);
        } else {
            self.0.disarm(key);
        }
        true
    }

    /// A call whose time is up, to be ended. A connection that it was given to is cut: what it may
    /// still receive belongs to nobody.
    pub(super) fn cut_expired(&mut self, now: Moment) -> Option<Key> {
        let (_, key) = self.0.pop_expired(now)?;
        if let Some(CallState { stage: Stage::Sent(link), .. }) = self.0.get(key) {
            link.cut();
        }
        Some(key)
    }

    pub(super) fn poll(
        &mut self,
        key: Key,
        context: &mut Context<'_>,
    ) -> Poll<Result<u16, CallError>> {
        let Some(call) = self.0.get_mut(key) else {
            unreachable!("a call is forgotten only when its handle is dropped");
        };
        if let Stage::Ended(outcome) = call.stage {
            return Poll::Ready(outcome);
        }
        if call.waker.as_ref().is_none_or(|waker| !waker.will_wake(context.waker())) {
            call.waker = Some(context.waker().clone());
        }
        Poll::Pending
    }

    /// Nobody waits for the call any more. What was sent stays sent.
    pub(super) fn forget(&mut self, key: Key) {
        match self.0.get_mut(key) {
            Some(call) if matches!(call.stage, Stage::Sent(_)) => call.abandoned = true,
            _ => drop(self.0.remove(key)),
        }
    }
}
