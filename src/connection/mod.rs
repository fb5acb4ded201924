//! One client: reads its requests and writes the answers in order. The connection ends when either side closes, a
//! limit is exceeded or a deadline passes.
//!
//! Knows HTTP and the deadlines of its client; what a request means is known to its [`Service`] only.
//!
//! A worker holds many thousands of these futures, so they are kept small: on the path of a visit, functions return
//! an async block, which keeps its arguments once where an async fn keeps them twice, and rare cases are boxed.

#![allow(clippy::manual_async_fn)]

mod context;
mod departures;
mod exchange;
mod response;
mod service;
mod table;
mod write_buffer;

use std::{future::poll_fn, io, os::fd::AsRawFd, pin::pin, rc::Rc, task::Poll};

use monoio::io::{AsyncWriteRent, CancelableAsyncReadRent};

pub use self::{
    context::{ClientContext, ClientHandle, ClientLimits},
    departures::{Allowance, Departures},
    response::Response,
    service::{Feed, Service},
};
use self::{
    departures::Samples,
    exchange::{Alone, ClosedBy, Exchange, Next, Started},
    table::Phase,
    write_buffer::Form,
};
use crate::{
    access_log::{Origin, Record},
    http::{
        Refusal, Version,
        body::{BodyError, BodyReader},
        request::{self, BODY_TOO_LARGE, HeadScan, Method, Request, Whole},
    },
    proxy_protocol::{self, Header},
    runtime::{budget::Budget, read_buffer::ReadBuffer},
};

/// Requests of one client that are answered at a time. The bytes of further ones stay unread.
const PIPELINE_MAX: usize = 16;
/// What a client that was refused may still send before the connection is cut.
const LINGER_BYTES_MAX: usize = 256 * 1024;

/// A byte stream to a client.
pub trait Stream: CancelableAsyncReadRent + AsyncWriteRent + AsRawFd + 'static {}

impl<S: CancelableAsyncReadRent + AsyncWriteRent + AsRawFd + 'static> Stream for S {}

/// A connection to a client.
pub struct Connection<S> {
    /// Dropped before the stream closes.
    client: ClientHandle,
    stream: S,
    received: ReadBuffer,
    scan: HeadScan,
    budget: Budget,
    /// The form of the answer to the request whose body is being read; `None` while a head is being read.
    body_of: Option<Form>,
    /// Whether it has carried a request.
    is_reused: bool,
    /// Whether a proxy has relayed it for a client that it does not name.
    is_unnamed: bool,
    /// Of its passes.
    samples: Samples,
}

/// A connection that leaves its worker between two requests. All that was received is answered, all answers are
/// written, and no operation of it is in progress: whoever serves it next takes up what the client sends next.
#[derive(Debug)]
pub struct Departed<S> {
    /// The stream.
    pub stream: S,
    /// What is known of its client.
    pub client: Origin,
}

/// Why a connection ends before its last answer.
enum End {
    /// It leaves for another worker.
    Departs,
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

impl<S: Stream> Connection<S> {
    /// A connection that was just accepted and registered.
    pub fn new(stream: S, client: ClientHandle) -> Self {
        Self {
            client,
            stream,
            received: ReadBuffer::default(),
            scan: HeadScan::default(),
            budget: Budget::default(),
            body_of: None,
            is_reused: false,
            is_unnamed: false,
            samples: Samples::default(),
        }
    }

    /// A connection that has left another worker, and was registered here.
    pub fn resume(stream: S, client: ClientHandle, origin: Origin) -> Self {
        let Origin { is_unnamed, is_reused, .. } = origin;
        let samples = client.context().departures().of_moved();
        Self { is_unnamed, is_reused, samples, ..Self::new(stream, client) }
    }

    /// Serves the client until one side closes, or the connection leaves for another worker.
    pub fn serve<V: Service>(
        mut self,
        service: Rc<V>,
    ) -> impl Future<Output = Option<Box<Departed<S>>>> {
        async move {
            // One that comes from another worker has had its header.
            let is_relayed = self.client.context().limits().proxy_protocol && !self.is_reused;
            if !is_relayed || Box::pin(self.receive_proxy_header()).await.is_ok() {
                match self.serve_requests(&*service).await {
                    Err(End::Refused(refusal)) => Box::pin(self.refuse(refusal)).await,
                    Err(End::Departs) => return Some(self.depart()),
                    Ok(()) | Err(End::Gone) => {}
                }
            }
            self.received.release(self.client.context().read_buffers());
            None
        }
    }

    fn depart(mut self) -> Box<Departed<S>> {
        assert!(self.received.unread().is_empty(), "a connection leaves with bytes of a request");
        self.received.release(self.client.context().read_buffers());
        let client = self.origin();
        Box::new(Departed { stream: self.stream, client })
    }

    /// Receives what a proxy says of the connection before the first request. A connection that begins otherwise, or
    /// too late, is closed without an answer: HTTP is not spoken yet.
    async fn receive_proxy_header(&mut self) -> Result<(), End> {
        let peer = self.client.peer();
        if !self.client.context().trusts(peer) {
            let reason = format!("{peer} is none of --trusted-proxy");
            self.client.context().refuse_proxy_header(&reason);
            return Err(End::Gone);
        }
        self.client.arm_deadline(Phase::Head);
        loop {
            match proxy_protocol::parse(self.received.unread()) {
                Ok(Some(Header { bytes, relayed, is_local })) => {
                    // What came behind it is the first request, whose time begins now.
                    self.received.consume(bytes);
                    self.client.disarm_deadline();
                    self.is_unnamed = relayed.is_none() && !is_local;
                    relayed.into_iter().for_each(|ends| self.client.set_address(ends.source));
                    return Ok(());
                }
                Ok(None) => {}
                Err(malformed) => {
                    self.client.context().refuse_proxy_header(&malformed);
                    return Err(End::Gone);
                }
            }
            if let Err(end) = self.receive_rest(HEAD_TOO_SLOW).await {
                if matches!(end, End::Refused(_)) {
                    self.client.context().refuse_proxy_header(&"it took too long");
                }
                return Err(end);
            }
        }
    }

    fn serve_requests<V: Service>(&mut self, service: &V) -> impl Future<Output = Result<(), End>> {
        async move {
            loop {
                let mut started = Started::<V>::new();
                let next = self.start_requests(service, &mut started);
                if !started.is_empty() {
                    self.write_responses(service, &mut started).await?;
                }
                drop(started);
                match next {
                    Next::Start => {}
                    Next::Read => {
                        if self.departs() {
                            return Err(End::Departs);
                        }
                        if self.arm_read_deadline() == Phase::Head {
                            Box::pin(self.receive_rest(HEAD_TOO_SLOW)).await?;
                            continue;
                        }
                        // Here, not in a future of its own: it would be polled for each visit.
                        let buffers = self.client.context().read_buffers();
                        let filling = pin!(self.received.fill(&mut self.stream, buffers));
                        if self.budget.run(filling).await? == 0 {
                            return Err(End::Gone);
                        }
                    }
                    Next::Alone(alone) => {
                        let closed_by = alone.closed_by;
                        Box::pin(self.serve_alone(service, *alone)).await?;
                        if let Some(closed_by) = closed_by {
                            return self.close_gracefully(closed_by).await;
                        }
                    }
                    Next::Stream(feed) => return Box::pin(self.write_stream(*feed)).await,
                    Next::Close(closed_by) => return self.close_gracefully(closed_by).await,
                    Next::Refuse(refusal) => return Err(End::Refused(*refusal)),
                }
            }
        }
    }

    /// Starts the requests that are whole, as long as they may run at the same time.
    fn start_requests<V: Service>(
        &mut self,
        service: &V,
        started: &mut Started<V>,
    ) -> Next<V::Admitted> {
        while started.len() < PIPELINE_MAX {
            let unread = self.received.unread();
            if unread.is_empty() {
                return Next::Read;
            }
            let context = self.client.context();
            let ClientLimits { head, body_bytes_max, .. } = context.limits();
            let parsed = request::parse(unread, &mut self.scan, &head, body_bytes_max);
            // Where it lies: it is large.
            let Whole { request, head_bytes } = match &parsed {
                Ok(Some(whole)) => whole,
                Ok(None) => return Next::Read,
                Err(refusal) => return Next::Refuse(Box::new(*refusal)),
            };
            let admitted = service.admit(request);
            // RFC 9110 section 10.1.1: where the head tells the final status, it is sent at once. The
            // client may or may not send its body after that, so the connection ends there.
            let leaves_body = request.expects_continue
                && !request.body.is_empty()
                && admitted.as_ref().is_err_and(Response::is_error);
            let feed = admitted.as_ref().err().and_then(Response::take_feed);
            let ends = leaves_body || feed.is_some();
            let closed_by = self.closed_by(service, request, &unread[*head_bytes..], ends);
            let form = Form {
                head_only: request.method == Method::Head,
                close: closed_by.is_some(),
                keep_alive: closed_by.is_none() && request.version == Version::Http10,
            };
            let is_alone = !request.body.is_empty() || !service.may_overlap(request);
            let body_of_alone = is_alone.then(|| request.body.clone());
            let record = self.record(request);
            let (expects_continue, head_bytes) = (request.expects_continue, *head_bytes);
            self.is_reused = true;
            self.received.consume(head_bytes);
            self.scan = HeadScan::default();
            self.client.disarm_deadline();
            if let Some(body) = body_of_alone {
                let exchange = Exchange { state: admitted, form, record };
                let alone = Alone { exchange, closed_by, body, expects_continue, leaves_body };
                return Next::Alone(Box::new(alone));
            }
            started.push(Exchange { state: admitted, form, record }.start(service));
            match (feed, closed_by) {
                (Some(feed), _) if !form.head_only => return Next::Stream(Box::new(feed)),
                (_, Some(closed_by)) => return Next::Close(closed_by),
                (_, None) => {}
            }
        }
        Next::Start
    }

    /// Who says that a request is the last, if it is; `behind` is what was received behind its head. Its answer may end the
    /// connection in any case.
    fn closed_by<V: Service>(
        &self,
        service: &V,
        request: &Request<'_>,
        behind: &[u8],
        ends: bool,
    ) -> Option<ClosedBy> {
        let context = self.client.context();
        let is_followed = context.is_draining()
            && request.body.is_empty()
            && (holds_request(behind) || service.drains_unread() && self.client.has_unread())
            && context.drains_further();
        if ends {
            Some(ClosedBy::Server)
        } else if !request.persistent {
            Some(ClosedBy::Client)
        } else if context.closes_for_newcomer() || context.is_draining() && !is_followed {
            Some(ClosedBy::Server)
        } else {
            None
        }
    }

    /// The record of a request that begins, if it is to be in the access log.
    fn record(&self, request: &Request<'_>) -> Option<Record> {
        let log = self.client.context().access_log()?;
        log.begin(self.origin(), request)
    }

    fn origin(&self) -> Origin {
        let Self { is_unnamed, is_reused, .. } = *self;
        Origin { peer: self.client.peer(), is_unnamed, is_reused }
    }

    /// Writes the answers in the order of their requests. Those that are ready share a write, but do not wait for one
    /// that is not.
    fn write_responses<V: Service>(
        &mut self,
        service: &V,
        started: &mut Started<V>,
    ) -> impl Future<Output = Result<(), End>> {
        async move {
            let mut buffer = self.client.context().write_buffer();
            for exchange in started {
                // Answers that are ready are written before another one is waited for.
                while !poll_fn(|context| match exchange.poll(service, &mut buffer, context) {
                    Poll::Pending if buffer.is_empty() => {
                        buffer.give_back();
                        Poll::Pending
                    }
                    polled => Poll::Ready(polled.is_ready()),
                })
                .await
                {
                    buffer.flush(&mut self.stream, &self.client).await?;
                }
                if buffer.is_full() {
                    buffer.flush(&mut self.stream, &self.client).await?;
                }
            }
            buffer.flush(&mut self.stream, &self.client).await?;
            Ok(())
        }
    }

    /// Writes content as it comes. It ends when the feed does, or when the client has gone or takes too long over a
    /// piece; nothing that the client sends is read meanwhile.
    async fn write_stream(&mut self, mut feed: Box<dyn Feed>) -> Result<(), End> {
        while let Some(piece) = poll_fn(|context| feed.poll_piece(context)).await {
            let mut buffer = self.client.context().write_buffer();
            buffer.push_piece(piece);
            buffer.flush(&mut self.stream, &self.client).await?;
        }
        drop(feed);
        self.close_gracefully(ClosedBy::Server).await
    }

    /// Reads a request's body to its end and only then starts the request.
    async fn serve_alone<V: Service>(
        &mut self,
        service: &V,
        mut alone: Alone<V::Admitted>,
    ) -> Result<(), End> {
        if !alone.body.is_empty() && !alone.leaves_body {
            self.body_of = Some(alone.exchange.form);
            if alone.expects_continue && self.received.unread().is_empty() {
                let mut buffer = self.client.context().write_buffer();
                buffer.push_interim(b"HTTP/1.1 100 Continue\r\n\r\n");
                buffer.flush(&mut self.stream, &self.client).await?;
            }
            let discarded = self.discard_body(&mut alone.body).await;
            if let Err(End::Refused(refusal)) = &discarded {
                alone.exchange.refuse(refusal);
            }
            discarded?;
            self.body_of = None;
        }
        let started = alone.exchange.start(service);
        self.write_responses(service, &mut Started::<V>::from_iter([started])).await
    }

    async fn discard_body(&mut self, body: &mut BodyReader) -> Result<(), End> {
        self.client.arm_deadline(Phase::Body);
        loop {
            let progress = body.advance(self.received.unread()).map_err(|error| {
                End::Refused(match error {
                    BodyError::TooLarge => BODY_TOO_LARGE,
                    BodyError::Malformed(reason) => Refusal::bad(reason),
                })
            })?;
            self.received.consume(progress.consumed);
            if progress.done {
                self.client.disarm_deadline();
                return Ok(());
            }
            self.receive_rest(BODY_TOO_SLOW).await?;
        }
    }

    /// Whether it leaves for another worker. It may where all that was received is answered and written, and no read
    /// is posted: a read that is cancelled may have taken bytes.
    fn departs(&mut self) -> bool {
        let context = self.client.context();
        self.is_reused
            && self.received.unread().is_empty()
            && !context.is_draining()
            && context.departures().pass(&mut self.samples)
    }

    /// Starts the deadline for the next head, or for the rest of it; returns which of them.
    fn arm_read_deadline(&self) -> Phase {
        let waits_for_first_byte = self.received.unread().is_empty();
        let drains = self.client.context().is_draining();
        let phase = match waits_for_first_byte {
            true if drains => Phase::DrainIdle,
            true => Phase::Idle,
            false => Phase::Head,
        };
        self.client.arm_deadline(phase);
        phase
    }

    /// Receives more of a request that has begun; `too_slow` is the answer when the deadline passes.
    async fn receive_rest(&mut self, too_slow: Refusal) -> Result<(), End> {
        let cancel = self.client.cancel_handle();
        let buffers = self.client.context().read_buffers();
        let filling = pin!(self.received.fill_until(&mut self.stream, buffers, cancel));
        let received = self.budget.run(filling).await;
        self.client.forget_canceller();
        if matches!(self.client.expired_phase(), Some(Phase::Head | Phase::Body)) {
            return Err(End::Refused(too_slow));
        }
        match received? {
            0 => Err(End::Gone),
            _ => Ok(()),
        }
    }

    /// Tells the client what was wrong, then makes sure that the answer arrives.
    async fn refuse(&mut self, refusal: Refusal) {
        self.client.context().metrics().refuse_request(refusal.status);
        // RFC 9110 section 9.3.2: no content in an answer to a HEAD. A client would take it for the
        // beginning of the next answer.
        let head_only = match self.body_of {
            Some(form) => form.head_only,
            None => request::is_head(self.received.unread()),
        };
        // Of a request whose head was whole there is a record.
        if self.body_of.is_none()
            && let Some(log) = self.client.context().access_log()
        {
            let answer = (refusal.status, refusal.content_bytes(head_only));
            log.refuse(self.origin(), self.received.unread(), answer);
        }
        let mut buffer = self.client.context().write_buffer();
        buffer.push_refusal(refusal, head_only);
        let told = buffer.flush(&mut self.stream, &self.client).await;
        drop(buffer);
        if told.is_ok() {
            self.linger().await;
        }
    }

    /// Closes after a last answer.
    ///
    /// Bytes that are unread at the close, or arrive after it, would make the kernel send a reset, which can destroy
    /// the answer before the client has read it.
    async fn close_gracefully(&mut self, closed_by: ClosedBy) -> Result<(), End> {
        let more_may_come = closed_by == ClosedBy::Server;
        if more_may_come || !self.received.unread().is_empty() || self.client.has_unread() {
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
        self.client.arm_deadline(Phase::Linger);
        let mut discarded = 0;
        while discarded < LINGER_BYTES_MAX {
            self.received.consume(self.received.unread().len());
            match self.received.fill(&mut self.stream, self.client.context().read_buffers()).await {
                Ok(count @ 1..) => discarded += count,
                _ => return,
            }
        }
    }
}

/// Whether there is the head of a request behind that of one without a body. Empty lines are none (RFC 9112 section 2.2).
fn holds_request(rest: &[u8]) -> bool {
    let begin = rest.iter().position(|byte| !b"\r\n".contains(byte)).unwrap_or(rest.len());
    memchr::memmem::find(&rest[begin..], b"\r\n\r\n").is_some()
}

const HEAD_TOO_SLOW: Refusal = Refusal::new(408, "the request head took too long");
const BODY_TOO_SLOW: Refusal = Refusal::new(408, "the request body took too long");

#[cfg(test)]
mod tests;
