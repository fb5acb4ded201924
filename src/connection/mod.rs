//! One client: its requests are read, answered in order and written; it ends when either side closes,
//! a limit is passed or a deadline ends.
//!
//! Knows HTTP and its peer's pace; what a request means is its [`Service`]'s to say.
//!
//! A worker holds many thousands of these futures, so they are kept small: on the way of a visit,
//! functions return an async block, which keeps its arguments once where an async fn keeps them twice,
//! and what is rare is boxed.

#![allow(clippy::manual_async_fn)]

mod clients;
mod outbox;

use std::{
    future::poll_fn,
    io,
    os::fd::AsRawFd,
    pin::pin,
    rc::Rc,
    task::{Context, Poll},
};

use monoio::io::{AsyncWriteRent, CancelableAsyncReadRent};
use smallvec::SmallVec;

pub use self::{
    clients::{ClientLimits, Clients, Phase, Seat},
    outbox::{Form, Outbox},
};
use crate::{
    http::{
        Refusal, Version,
        body::{BodyError, BodyReader},
        request::{self, BODY_TOO_LARGE, HeadScan, Method, Request},
    },
    inbox::Inbox,
    pace::Pace,
};

/// Requests of one client that are answered at a time. The bytes of further ones stay unread.
const PIPELINE_MAX: usize = 16;
/// What a client that was refused may still send before the connection is cut.
const LINGER_BYTES_MAX: usize = 256 * 1024;

/// A byte stream to a client.
pub trait Stream: CancelableAsyncReadRent + AsyncWriteRent + AsRawFd + 'static {}

impl<S: CancelableAsyncReadRent + AsyncWriteRent + AsRawFd + 'static> Stream for S {}

/// What answers requests: the site, the counter's face, the admin listener.
///
/// A request is admitted, started once its body is whole, and polled until its answer is in the
/// outbox. Several requests of one client may be started before the first is answered.
pub trait Service: 'static {
    /// An admitted request on the way to its answer. Dropping it gives the answer up.
    type Pending: Unpin;
    /// What other threads tell it.
    type Word: Send + 'static;

    /// Decides what is to be done. Nothing happens yet: the body may still turn out malformed.
    fn admit(&self, request: &Request<'_>) -> Self::Pending;

    /// Whether the answer is a refusal whatever the body says, so that nobody needs to send it.
    fn is_refused(&self, _pending: &Self::Pending) -> bool {
        false
    }

    /// Begins what was decided. Called once.
    fn start(&self, pending: &mut Self::Pending);

    /// Puts the answer into `outbox` once it is ready. Not called again after that.
    fn poll_answer(
        &self,
        pending: &mut Self::Pending,
        form: Form,
        outbox: &mut Outbox,
        context: &mut Context<'_>,
    ) -> Poll<()>;

    /// Takes a word from another thread.
    fn hear(&self, word: Self::Word);

    /// Ends its own waits whose time is up. Called several times in each of its shortest deadlines.
    fn expire(&self) {}
}

/// A connection to a client.
pub struct Connection<S> {
    /// Given up before the stream closes.
    seat: Seat,
    stream: S,
    inbox: Inbox,
    scan: HeadScan,
    pace: Pace,
    /// The form of the answer to the request whose body is being read; `None` while it is a head.
    body_of: Option<Form>,
}

/// Why a conversation ends before its last answer.
enum End {
    /// The client is gone, or too slow to be told anything.
    Gone,
    /// The client is told what was wrong.
    Refused(Refusal),
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

/// A request that was started.
struct Turn<P> {
    pending: P,
    form: Form,
}

type Batch<P> = SmallVec<[Turn<P>; 1]>;

/// What follows once all that was gathered is answered.
enum Next<P> {
    /// Requests may still be whole in the inbox.
    Gather,
    /// The next request is not whole.
    Read,
    /// This request has a body, or must not run beside others.
    Alone(Box<Alone<P>>),
    /// The client said, or is told, that there is no next request.
    Close,
    /// The next request is not served.
    Refuse(Box<Refusal>),
}

struct Alone<P> {
    turn: Turn<P>,
    body: BodyReader,
    expects_continue: bool,
    /// The body is held back by the client and not asked for. The answer closes the connection.
    leaves_body: bool,
}

impl<S: Stream> Connection<S> {
    /// A connection that was just accepted and has its seat.
    pub fn new(stream: S, seat: Seat) -> Self {
        Self {
            seat,
            stream,
            inbox: Inbox::default(),
            scan: HeadScan::default(),
            pace: Pace::default(),
            body_of: None,
        }
    }

    /// Serves the client until it or the server has had enough.
    pub fn serve<V: Service>(mut self, service: Rc<V>) -> impl Future<Output = ()> {
        async move {
            if let Err(End::Refused(refusal)) = self.converse(&*service).await {
                Box::pin(self.refuse(refusal)).await;
            }
            self.inbox.release(self.seat.clients().buffers());
        }
    }

    fn converse<V: Service>(&mut self, service: &V) -> impl Future<Output = Result<(), End>> {
        async move {
            loop {
                let mut batch = Batch::new();
                let next = self.gather(service, &mut batch);
                if !batch.is_empty() {
                    self.answer(service, &mut batch).await?;
                }
                drop(batch);
                match next {
                    Next::Gather => {}
                    Next::Read => {
                        if self.await_head() == Phase::Head {
                            Box::pin(self.receive_rest(HEAD_TOO_SLOW)).await?;
                        } else {
                            self.receive().await?;
                        }
                    }
                    Next::Alone(alone) => {
                        let closes = alone.turn.form.close;
                        Box::pin(self.answer_alone(service, *alone)).await?;
                        if closes {
                            return self.part().await;
                        }
                    }
                    Next::Close => return self.part().await,
                    Next::Refuse(refusal) => return Err(End::Refused(*refusal)),
                }
            }
        }
    }

    /// Starts the requests that are whole, for as long as they may run beside each other.
    fn gather<V: Service>(
        &mut self,
        service: &V,
        batch: &mut Batch<V::Pending>,
    ) -> Next<V::Pending> {
        while batch.len() < PIPELINE_MAX {
            let ClientLimits { head, body_bytes_max, .. } = self.seat.clients().limits();
            let unread = self.inbox.unread();
            let parsed = request::parse(unread, &mut self.scan, &head, body_bytes_max);
            let whole = match parsed {
                Ok(Some(whole)) => whole,
                Ok(None) => return Next::Read,
                Err(refusal) => return Next::Refuse(Box::new(refusal)),
            };
            let request = whole.request;
            let mut pending = service.admit(&request);
            // RFC 9110 section 10.1.1: where the head tells the final status, it is sent at once. The
            // client may or may not send its body after that, so the connection ends there.
            let leaves_body = request.expects_continue
                && !request.body.is_empty()
                && service.is_refused(&pending);
            let clients = self.seat.clients();
            let persistent = request.persistent
                && !leaves_body
                && !clients.is_draining()
                && !clients.makes_room();
            let form = Form {
                head_only: request.method == Method::Head,
                close: !persistent,
                keep_alive: persistent && request.version == Version::Http10,
            };
            let alone = !request.body.is_empty() || !request.method.is_safe();
            let (body, expects_continue) = (request.body, request.expects_continue);
            self.inbox.consume(whole.head_bytes);
            self.scan = HeadScan::default();
            self.seat.rest();
            if alone {
                let turn = Turn { pending, form };
                let alone = Alone { turn, body, expects_continue, leaves_body };
                return Next::Alone(Box::new(alone));
            }
            service.start(&mut pending);
            batch.push(Turn { pending, form });
            if form.close {
                return Next::Close;
            }
        }
        Next::Gather
    }

    /// Writes the answers in the order of their requests: as many in one write as are ready, but
    /// none waits for one that is not.
    fn answer<V: Service>(
        &mut self,
        service: &V,
        batch: &mut Batch<V::Pending>,
    ) -> impl Future<Output = Result<(), End>> {
        async move {
            let mut outbox = self.seat.clients().outbox();
            for Turn { pending, form } in batch {
                // Answers that are ready are written before another one is waited for.
                while !poll_fn(|context| {
                    match service.poll_answer(pending, *form, &mut outbox, context) {
                        Poll::Pending if outbox.is_empty() => Poll::Pending,
                        answer => Poll::Ready(answer.is_ready()),
                    }
                })
                .await
                {
                    outbox.flush(&mut self.stream, &self.seat).await?;
                }
                if outbox.is_full() {
                    outbox.flush(&mut self.stream, &self.seat).await?;
                }
            }
            outbox.flush(&mut self.stream, &self.seat).await?;
            Ok(())
        }
    }

    /// Reads a request's body to its end and only then starts the request.
    async fn answer_alone<V: Service>(
        &mut self,
        service: &V,
        mut alone: Alone<V::Pending>,
    ) -> Result<(), End> {
        if !alone.body.is_empty() && !alone.leaves_body {
            self.body_of = Some(alone.turn.form);
            if alone.expects_continue && self.inbox.unread().is_empty() {
                let mut outbox = self.seat.clients().outbox();
                outbox.push_interim(b"HTTP/1.1 100 Continue\r\n\r\n");
                outbox.flush(&mut self.stream, &self.seat).await?;
            }
            self.discard_body(&mut alone.body).await?;
            self.body_of = None;
        }
        service.start(&mut alone.turn.pending);
        self.answer(service, &mut Batch::from_iter([alone.turn])).await?;
        if alone.leaves_body {
            // The body may already be on its way.
            self.linger().await;
        }
        Ok(())
    }

    async fn discard_body(&mut self, body: &mut BodyReader) -> Result<(), End> {
        self.seat.wait(Phase::Body);
        loop {
            let progress = body.advance(self.inbox.unread()).map_err(|error| {
                End::Refused(match error {
                    BodyError::TooLarge => BODY_TOO_LARGE,
                    BodyError::Malformed(reason) => Refusal::bad(reason),
                })
            })?;
            self.inbox.consume(progress.consumed);
            if progress.done {
                self.seat.rest();
                return Ok(());
            }
            self.receive_rest(BODY_TOO_SLOW).await?;
        }
    }

    /// Waits for the next head, or for the rest of it; says what it waits for.
    fn await_head(&self) -> Phase {
        let waits_for_first_byte = self.inbox.unread().is_empty();
        let drains = self.seat.clients().is_draining();
        let phase = match waits_for_first_byte {
            true if drains => Phase::Parting,
            true => Phase::Idle,
            false => Phase::Head,
        };
        self.seat.wait(phase);
        phase
    }

    /// Receives the first bytes of a request.
    fn receive(&mut self) -> impl Future<Output = Result<(), End>> {
        async move {
            let buffers = self.seat.clients().buffers();
            let filling = pin!(self.inbox.fill(&mut self.stream, buffers));
            match self.pace.keep(filling).await? {
                0 => Err(End::Gone),
                _ => Ok(()),
            }
        }
    }

    /// Receives more of a request that has begun; `too_slow` is for whose time was up.
    async fn receive_rest(&mut self, too_slow: Refusal) -> Result<(), End> {
        let stop = self.seat.stop();
        let buffers = self.seat.clients().buffers();
        let filling = pin!(self.inbox.fill_until(&mut self.stream, buffers, stop));
        let received = self.pace.keep(filling).await;
        self.seat.forget_stop();
        if matches!(self.seat.expired_phase(), Some(Phase::Head | Phase::Body)) {
            return Err(End::Refused(too_slow));
        }
        match received? {
            0 => Err(End::Gone),
            _ => Ok(()),
        }
    }

    /// Tells the client what was wrong, then sees to it that the answer arrives.
    async fn refuse(&mut self, refusal: Refusal) {
        self.seat.clients().metrics().bad_requests.increment();
        // RFC 9110 section 9.3.2: no content in an answer to a HEAD. A client would take it for the
        // beginning of the next answer.
        let head_only = match self.body_of {
            Some(form) => form.head_only,
            None => request::is_head(self.inbox.unread()),
        };
        let mut outbox = self.seat.clients().outbox();
        outbox.push_refusal(refusal, head_only);
        let told = outbox.flush(&mut self.stream, &self.seat).await;
        drop(outbox);
        if told.is_ok() {
            self.linger().await;
        }
    }

    /// Closes after a last answer.
    async fn part(&mut self) -> Result<(), End> {
        // Unread bytes at the close would make the kernel send a reset, which can overtake the answer.
        if !self.inbox.unread().is_empty() || self.seat.has_unread() {
            Box::pin(self.linger()).await;
        }
        Ok(())
    }

    /// RFC 9112 section 9.6: closes the sending side, and reads on until the client closes its own,
    /// so that no reset destroys the last answer before the client has read it.
    async fn linger(&mut self) {
        if self.stream.shutdown().await.is_err() {
            return;
        }
        self.seat.wait(Phase::Linger);
        let mut discarded = 0;
        while discarded < LINGER_BYTES_MAX {
            self.inbox.consume(self.inbox.unread().len());
            match self.inbox.fill(&mut self.stream, self.seat.clients().buffers()).await {
                Ok(count @ 1..) => discarded += count,
                _ => return,
            }
        }
    }
}

const HEAD_TOO_SLOW: Refusal = Refusal::new(408, "the request head took too long");
const BODY_TOO_SLOW: Refusal = Refusal::new(408, "the request body took too long");

#[cfg(test)]
mod tests;
