//! One connection to the counter, run by one task: it carries one call at a time.
//!
//! A read is posted for as long as the connection lives. While it carries no call, whatever that read
//! gives, the end of the stream or bytes that nobody asked for, retires the connection.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, RawFd},
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, Waker},
};

use monoio::{
    buf::IoBuf,
    io::{AsyncWriteRent, OwnedReadHalf, OwnedWriteHalf, Splitable},
    net::TcpStream,
};
use nix::sys::socket::{Shutdown, shutdown};

use super::{CallBytes, CallError, DialError, Opening, Upstream, UpstreamLimits, dial::dial};
use crate::{
    clock::Moment,
    deadlines::Key,
    http::{
        body::BodyError,
        response::{self, HeadScan, Response},
    },
    read_buffer::ReadBuffer,
};

/// Interim responses before a final one. Each is a step forward for a counter that is alive; a
/// counter that sends nothing else is not.
const INTERIM_MAX: usize = 16;

/// What others know of a connection: how to give it a call and how to end it.
pub(super) struct Link {
    /// Where it leads.
    address: SocketAddr,
    /// The socket, for as long as the task has it.
    socket: Cell<Option<RawFd>>,
    assigned: Cell<Option<Key>>,
    waker: RefCell<Option<Waker>>,
    idle_since: Cell<Moment>,
    /// Whether it has carried a call to its end.
    proven: Cell<bool>,
}

impl Link {
    fn new(address: SocketAddr, socket: RawFd) -> Rc<Self> {
        Rc::new(Self {
            address,
            socket: Cell::new(Some(socket)),
            assigned: Cell::new(None),
            waker: RefCell::new(None),
            idle_since: Cell::new(crate::clock::now()),
            proven: Cell::new(false),
        })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Gives it a call. It must not have one.
    pub(super) fn assign(&self, key: Key) {
        let earlier = self.assigned.replace(Some(key));
        assert!(earlier.is_none(), "a connection carries one call at a time");
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    /// Ends it: its pending operations end by themselves.
    pub(super) fn cut(&self) {
        if let Some(socket) = self.socket.get() {
            // An error means that the counter was faster.
            let _ = shutdown(socket, Shutdown::Both);
        }
    }

    /// The socket is about to close.
    pub(super) fn gone(&self) {
        self.socket.set(None);
    }

    /// It carries no call from `now` on.
    pub(super) fn rest(&self, now: Moment) {
        self.idle_since.set(now);
    }

    pub(super) fn idle_since(&self) -> Moment {
        self.idle_since.get()
    }
}

/// Opens a connection and runs it to its end.
pub(super) async fn run(mut opening: Opening) {
    let upstream = Rc::clone(&opening.upstream);
    // Boxed: it is over soon, and its timer is larger than all the rest.
    match Box::pin(open(&upstream)).await {
        Ok((stream, address)) => {
            let link = Link::new(address, stream.as_raw_fd());
            let retired = Retire { upstream: &upstream, link: &link };
            opening.done(&link);
            carry(&upstream, &link, stream).await;
            drop(retired);
        }
        Err(error) => {
            tracing::debug!(%error, "cannot connect to the counter");
            opening.error = DialError::from(&error);
        }
    }
}

/// Connects to an address that is the counter's when the connection stands. Tries again only when the
/// addresses have changed meanwhile, which they do once a second at most.
async fn open(upstream: &Upstream) -> io::Result<(TcpStream, SocketAddr)> {
    loop {
        let tried = upstream.state.borrow().addresses.in_order();
        let dialed = dial(&tried, upstream.limits.get().connect_timeout).await;
        let addresses = &mut upstream.state.borrow_mut().addresses;
        match dialed {
            Ok((stream, address)) if addresses.contains(address) => {
                addresses.prefer(address);
                return Ok((stream, address));
            }
            Err(error) if !addresses.has_others_than(&tried) => return Err(error),
            _ => {}
        }
    }
}

/// However the task ends, by a panic too, the connection gets no further call and the one it had is
/// answered.
struct Retire<'a> {
    upstream: &'a Rc<Upstream>,
    link: &'a Rc<Link>,
}

impl Drop for Retire<'_> {
    fn drop(&mut self) {
        self.upstream.retire(self.link);
        // A call that was assigned and not taken up was not sent.
        if let Some(key) = self.link.assigned.take() {
            unsent(self.upstream, self.link, key);
        }
    }
}

type Reader = OwnedReadHalf<TcpStream>;
type Writer = OwnedWriteHalf<TcpStream>;

/// Carries calls until the connection is of no more use.
async fn carry(upstream: &Rc<Upstream>, link: &Rc<Link>, stream: TcpStream) {
    let (reader, mut writer) = stream.into_split();
    let mut receiving = pin!(receive(Rc::clone(upstream), reader, ReadBuffer::default()));
    while let Some(key) = next_call(link, receiving.as_mut()).await {
        let Some(request) = upstream.request(key) else { break };
        let mut sending = pin!(send(&mut writer, request));
        let mut sent = begin(sending.as_mut()).await;
        let mut exchange = Exchange::default();
        let outcome = loop {
            let (received, reader, mut received_bytes) = receiving.as_mut().await;
            if sent.is_none() {
                // It is over: the kernel takes a request whole, and answers come after it.
                sent = Some(sending.as_mut().await);
            }
            let step = match sent {
                Some(Ok(())) => exchange.step(upstream, &mut received_bytes, received),
                Some(Err(Unsent::Nothing)) => Step::Unsent,
                Some(Err(Unsent::Some)) | None => Step::Failed,
            };
            receiving.set(receive(Rc::clone(upstream), reader, received_bytes));
            if !matches!(step, Step::More) {
                break step;
            }
        };
        match outcome {
            Step::Done { status, reusable } => {
                upstream.end(key, Ok(status));
                if !reusable {
                    break;
                }
            }
            Step::Unsent => {
                unsent(upstream, link, key);
                break;
            }
            Step::Failed | Step::More => {
                upstream.end(key, Err(CallError::Broken));
                break;
            }
        }
        link.proven.set(true);
        if !upstream.release(link) {
            break;
        }
    }
}

/// Not a byte of a call has left: it gets another connection. But where a connection was of no use
/// from its beginning, the next would be no better.
fn unsent(upstream: &Upstream, link: &Link, key: Key) {
    if link.proven.get() {
        upstream.put_back(key);
    } else {
        upstream.end(key, Err(CallError::NoConnection(DialError::Other)));
    }
}

/// Begins to send; what came of it, if that is known at once.
///
/// A ring takes the request when it is next entered. That it has is of no interest before the answer
/// comes, so nobody is woken for it; should it fail, the read that is posted ends as well. epoll must
/// be waited on if it cannot send at once.
async fn begin<F: Future>(mut sending: Pin<&mut F>) -> Option<F::Output> {
    let mut unwoken = Context::from_waker(Waker::noop());
    match sending.as_mut().poll(&mut unwoken) {
        Poll::Ready(sent) => Some(sent),
        Poll::Pending if monoio::utils::is_legacy() => Some(sending.await),
        Poll::Pending => None,
    }
}

#[allow(clippy::manual_async_fn)]
fn receive(
    upstream: Rc<Upstream>,
    mut reader: Reader,
    mut received_bytes: ReadBuffer,
) -> impl Future<Output = (io::Result<usize>, Reader, ReadBuffer)> {
    async move {
        let received = received_bytes.fill(&mut reader, &upstream.buffers).await;
        (received, reader, received_bytes)
    }
}

/// The next call that the connection is given; `None` when it ended before, whatever it was given.
async fn next_call<F: Future>(link: &Link, mut receiving: Pin<&mut F>) -> Option<Key> {
    poll_fn(|context| {
        // First: a connection that has ended must not take a call with it.
        if receiving.as_mut().poll(context).is_ready() {
            return Poll::Ready(None);
        }
        if let Some(key) = link.assigned.take() {
            return Poll::Ready(Some(key));
        }
        let mut waker = link.waker.borrow_mut();
        if waker.as_ref().is_none_or(|waker| !waker.will_wake(context.waker())) {
            *waker = Some(context.waker().clone());
        }
        Poll::Pending
    })
    .await
}

/// How much of a request may have left when sending it failed.
#[derive(Clone, Copy)]
enum Unsent {
    /// Not a byte.
    Nothing,
    /// Some of it.
    Some,
}

async fn send(writer: &mut Writer, mut request: CallBytes) -> Result<(), Unsent> {
    let length = request.len();
    let mut sent = 0;
    while sent < length {
        let (result, slice) = writer.write(request.slice(sent..)).await;
        request = slice.into_inner();
        match result {
            Ok(count @ 1..) => sent += count,
            Ok(0) | Err(_) if sent == 0 => return Err(Unsent::Nothing),
            Ok(0) | Err(_) => return Err(Unsent::Some),
        }
    }
    Ok(())
}

/// The response to one call, as far as it was received.
#[derive(Default)]
struct Exchange {
    scan: HeadScan,
    interim: usize,
    final_response: Option<Response>,
}

/// What receiving once brought.
enum Step {
    More,
    Done {
        status: u16,
        reusable: bool,
    },
    /// Not a byte of the request has left.
    Unsent,
    Failed,
}

impl Exchange {
    fn step(
        &mut self,
        upstream: &Upstream,
        received_bytes: &mut ReadBuffer,
        received: io::Result<usize>,
    ) -> Step {
        match received {
            Ok(1..) => self.read(upstream, received_bytes),
            Ok(0) => match &self.final_response {
                // RFC 9112 section 6.3, point 8: the close is the end of such a body.
                Some(response) if response.body.ends_with_connection() => {
                    Step::Done { status: response.status, reusable: false }
                }
                _ => Step::Failed,
            },
            Err(_) => Step::Failed,
        }
    }

    fn read(&mut self, upstream: &Upstream, received_bytes: &mut ReadBuffer) -> Step {
        let UpstreamLimits { head, drain_bytes_max, .. } = upstream.limits.get();
        while self.final_response.is_none() {
            let unread = received_bytes.unread();
            let parsed = response::parse(unread, &mut self.scan, &head, drain_bytes_max);
            match parsed {
                Ok(None) => return Step::More,
                Ok(Some(response)) => {
                    received_bytes.consume(response.head_bytes);
                    self.scan = HeadScan::default();
                    if !response.is_interim() {
                        self.final_response = Some(response);
                    } else if self.interim == INTERIM_MAX {
                        return Step::Failed;
                    } else {
                        self.interim += 1;
                    }
                }
                Err(malformed) => {
                    tracing::debug!(%malformed);
                    return Step::Failed;
                }
            }
        }
        let Some(response) = &mut self.final_response else { return Step::More };
        match response.body.advance(received_bytes.unread()) {
            Ok(progress) => {
                received_bytes.consume(progress.consumed);
                if !progress.done {
                    return Step::More;
                }
                // Bytes after the response answer nothing that was asked.
                let reusable = response.persistent && received_bytes.unread().is_empty();
                Step::Done { status: response.status, reusable }
            }
            // The response is complete as far as anybody cares; its connection is not.
            Err(BodyError::TooLarge) => Step::Done { status: response.status, reusable: false },
            Err(BodyError::Malformed(_)) => Step::Failed,
        }
    }
}
