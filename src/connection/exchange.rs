//! Requests between their head and their answer: several at the same time, or one alone.

use std::task::{Context, Poll, ready};

use smallvec::SmallVec;

use super::{
    Feed, Response, Service,
    write_buffer::{Form, PooledWriteBuffer},
};
use crate::{
    access_log::Record,
    http::{Refusal, body::BodyReader},
};

/// A request and the form of its answer.
pub(super) struct Exchange<T> {
    /// The request, or its answer if that is known already.
    pub(super) state: Result<T, Response>,
    pub(super) form: Form,
    /// For the access log, if it has an entry for this request. Dropped without an answer, it says so.
    pub(super) record: Option<Record>,
}

impl<A> Exchange<A> {
    pub(super) fn start<V: Service<Admitted = A>>(self, service: &V) -> Exchange<V::Pending> {
        let Self { state, form, mut record } = self;
        let state = state.and_then(|admitted| {
            let started = service.start(admitted);
            if let Some(record) = &mut record {
                record.set_outcome(service.outcome(started.as_ref()));
            }
            started
        });
        Exchange { state, form, record }
    }

    /// It is refused after all.
    pub(super) fn refuse(&mut self, refusal: &Refusal) {
        if let Some(record) = self.record.take() {
            record.answer(refusal.status, refusal.content_bytes(self.form.head_only));
        }
    }
}

impl<P> Exchange<P> {
    /// Puts the answer into `buffer` once it is ready.
    pub(super) fn poll<V: Service<Pending = P>>(
        &mut self,
        service: &V,
        buffer: &mut PooledWriteBuffer<'_>,
        context: &mut Context<'_>,
    ) -> Poll<()> {
        match &mut self.state {
            Ok(pending) => {
                let response = ready!(service.poll_response(pending, context));
                if let Some(record) = &mut self.record {
                    record.set_outcome(service.outcome(Ok(pending)));
                }
                buffer.push(&response, self.form);
                note_answer(&mut self.record, &response, self.form);
            }
            Err(response) => {
                buffer.push(response, self.form);
                note_answer(&mut self.record, response, self.form);
            }
        }
        Poll::Ready(())
    }
}

fn note_answer(record: &mut Option<Record>, response: &Response, form: Form) {
    if let Some(record) = record.take() {
        let content_bytes = if form.head_only { 0 } else { response.content().len() };
        record.answer(response.status(), content_bytes);
    }
}

/// Requests that were started, in their order.
pub(super) type Started<V> = SmallVec<[Exchange<<V as Service>::Pending>; 1]>;

/// What follows once all that was started is answered.
pub(super) enum Next<A> {
    /// More requests may be whole in the read buffer.
    Start,
    /// The next request is not whole.
    Read,
    /// This request has a body, or must not run at the same time as others.
    Alone(Box<Alone<A>>),
    /// There is no next request, but content that comes piece by piece.
    Stream(Box<Box<dyn Feed>>),
    /// There is no next request.
    Close(ClosedBy),
    /// The next request is not served.
    Refuse(Box<Refusal>),
}

/// Who has said that a request is the last of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClosedBy {
    /// It sends no other (RFC 9112 section 9.6).
    Client,
    /// The next request, or the body that is not read, may be on its way already.
    Server,
}

/// A request that runs alone.
pub(super) struct Alone<A> {
    pub(super) exchange: Exchange<A>,
    /// `None` when the connection goes on.
    pub(super) closed_by: Option<ClosedBy>,
    pub(super) body: BodyReader,
    pub(super) expects_continue: bool,
    /// The body is held back by the client and not asked for. The answer closes the connection.
    pub(super) leaves_body: bool,
}
