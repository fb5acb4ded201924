//! One connection to the counter, run by one task, which only moves bytes: the pool decides what to send and what
//! becomes of a call.
//!
//! A read is posted for as long as the connection lives. While it carries no call, whatever that read gives, the end
//! of the stream or unexpected bytes, ends the connection.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, RawFd},
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

use monoio::{
    buf::IoBuf,
    io::{AsyncWriteRent, OwnedReadHalf, OwnedWriteHalf, Splitable},
    net::TcpStream,
};
use nix::sys::socket::{Shutdown, shutdown};

use super::{
    CallBytes, Content, DialError, Upstream,
    dial::dial,
    pool::ConnectionId,
    response_reader::{Answer, Broken, ResponseLimits, ResponseReader},
};
use crate::runtime::{
    clock::{self, Stamp},
    read_buffer::ReadBuffer,
    turn,
};

type Reader = OwnedReadHalf<TcpStream>;
type Writer = OwnedWriteHalf<TcpStream>;

/// An established connection, as others can wake or cut it.
pub(super) struct Handle {
    socket: RawFd,
    /// The task's; `None` until it has waited for a call.
    waker: RefCell<Option<Waker>>,
}

impl Handle {
    /// Wakes the task, which then asks for its call.
    pub(super) fn wake(&self) {
        // The runtime's waker only puts the task into a queue, so nothing else borrows this meanwhile.
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    /// Ends the connection: its pending operations end by themselves.
    pub(super) fn cut(&self) {
        // An error means that the counter has closed already.
        let _ = shutdown(self.socket, Shutdown::Both);
    }

    fn set_waker(&self, new: &Waker) {
        let mut waker = self.waker.borrow_mut();
        if waker.as_ref().is_none_or(|waker| !waker.will_wake(new)) {
            *waker = Some(new.clone());
        }
    }
}

/// A connection's place in the pool, from its dial to its end. However its task ends, by a panic too, the pool
/// is told.
pub(super) struct PoolGuard {
    upstream: Rc<Upstream>,
    id: ConnectionId,
    /// Why there is no connection; `None` once it is established.
    not_connected: Option<DialError>,
    /// Whether it has carried a call.
    used: Cell<bool>,
    /// What becomes of the content of the answer to its call.
    content: Cell<Content>,
    /// When its call got it.
    call_began: Cell<Stamp>,
}

impl PoolGuard {
    /// For a connection that is about to be dialed.
    pub(super) fn new(upstream: &Rc<Upstream>, id: ConnectionId) -> Self {
        upstream.counts.connections.increment();
        upstream.counts.dialed.increment();
        Self {
            upstream: Rc::clone(upstream),
            id,
            not_connected: Some(DialError::Other),
            used: Cell::default(),
            content: Cell::default(),
            call_began: Cell::default(),
        }
    }

    /// The connection is established.
    pub(super) fn connected(&mut self, address: SocketAddr, socket: RawFd) -> Rc<Handle> {
        let handle = Rc::new(Handle { socket, waker: RefCell::new(None) });
        self.upstream.handles.borrow_mut().insert(self.id, Rc::clone(&handle));
        self.not_connected = None;
        self.upstream.note_time();
        self.upstream.tell(|pool| pool.connected(self.id, address, clock::now()));
        handle
    }

    /// The request to send, if the connection has a call.
    pub(super) fn take_request(&self) -> Option<CallBytes> {
        let taken = self.upstream.pool.borrow_mut().take_request(self.id, clock::now)?;
        self.content.set(taken.content);
        if taken.batched > 0 {
            self.upstream.counts.batched_visits.add(taken.batched as u64);
            // Those that it leaves behind may be so many that they wait no longer.
            self.upstream.tell(|_| ());
        }
        self.call_began.set(Stamp::new(self.upstream.last_event()));
        if self.used.replace(true) {
            self.upstream.counts.reused.increment();
        }
        Some(taken.request)
    }

    /// The call was answered. Returns whether the connection stays open.
    fn answered(&self, answer: Answer) -> bool {
        let Upstream { counts, .. } = &*self.upstream;
        self.upstream.note_time();
        let now = self.upstream.last_event();
        let micros = self.call_began.get().micros_until(now);
        counts.calls.add(micros);
        counts.last_call_micros.set(micros);
        counts.last_answer_micros.set(now);
        self.upstream.tell(|pool| pool.answered(self.id, answer, clock::now()))
    }

    /// Not a byte of the call has left.
    fn not_sent(&self) {
        self.upstream.tell(|pool| pool.not_sent(self.id));
    }
}

impl Drop for PoolGuard {
    fn drop(&mut self) {
        let Self { upstream, id, not_connected, .. } = self;
        upstream.counts.connections.decrement();
        upstream.handles.borrow_mut().remove(*id);
        match *not_connected {
            None => {
                upstream.note_time();
                upstream.tell(|pool| pool.closed(*id, clock::now()));
            }
            Some(error) => {
                (upstream.refresh)();
                upstream.tell(|pool| pool.dial_failed(*id, error, clock::now()));
            }
        }
    }
}

/// Opens a connection and runs it to its end.
pub(super) async fn dial_and_run(mut guard: PoolGuard) {
    // Boxed: it is over soon, and its timer is larger than all the rest.
    match Box::pin(open(&guard.upstream)).await {
        Ok((stream, address)) => run(guard, stream, address).await,
        Err(error) => {
            tracing::debug!(%error, "cannot connect to the counter");
            guard.not_connected = Some(DialError::from(&error));
        }
    }
}

/// Connects to an address that is still the counter's when the connection is established. Dials again only when the
/// addresses have changed meanwhile, which happens once a second at most.
async fn open(upstream: &Upstream) -> io::Result<(TcpStream, SocketAddr)> {
    loop {
        let (tried, timeout) = {
            let pool = upstream.pool.borrow();
            (pool.addresses().in_order(), pool.limits().connect_timeout)
        };
        let dialed = dial(&tried, timeout).await;
        let pool = upstream.pool.borrow();
        match dialed {
            Ok((stream, address)) if pool.addresses().contains(address) => {
                return Ok((stream, address));
            }
            Err(error) if !pool.addresses().has_others_than(&tried) => return Err(error),
            _ => {}
        }
    }
}

/// Carries calls until the connection can carry no more.
async fn run(guard: PoolGuard, stream: TcpStream, address: SocketAddr) {
    let socket = stream.as_raw_fd();
    let (reader, mut writer) = stream.into_split();
    let mut receiver = Receiver::new(guard.upstream.response_limits(), reader, receive);
    // Declared last and so dropped first: when the socket closes, nobody has its number any more.
    let mut guard = guard;
    let handle = guard.connected(address, socket);
    while let Some(request) = next_call(&guard, &handle, &mut receiver).await {
        let limits = guard.upstream.response_limits();
        let content = guard.content.get();
        match exchange(&limits, request, content, socket, &mut writer, &mut receiver).await {
            Ok(answer) => {
                if !guard.answered(answer) {
                    return;
                }
            }
            Err(ExchangeError::Broken) => return,
            Err(ExchangeError::NotSent) => return guard.not_sent(),
        }
    }
}

/// The request of the connection's next call; `None` when the connection has ended, even if it has a call.
async fn next_call<F: Future<Output = Received>>(
    guard: &PoolGuard,
    handle: &Handle,
    receiver: &mut Receiver<F>,
) -> Option<CallBytes> {
    poll_fn(|context| {
        // First: a connection that has ended must not take a call with it.
        if receiver.poll_received(context).is_ready() {
            return Poll::Ready(None);
        }
        let request = guard.take_request();
        if request.is_some() {
            return Poll::Ready(request);
        }
        handle.set_waker(context.waker());
        Poll::Pending
    })
    .await
}

/// Why an exchange gave no answer. The connection can carry no more calls.
enum ExchangeError {
    /// Not a byte of the request has left.
    NotSent,
    /// Some of it may have left.
    Broken,
}

impl From<Broken> for ExchangeError {
    fn from(Broken: Broken) -> Self {
        Self::Broken
    }
}

/// Sends one request and receives the answer.
async fn exchange<F: Future<Output = Received>>(
    limits: &Rc<ResponseLimits>,
    request: CallBytes,
    content: Content,
    socket: RawFd,
    writer: &mut Writer,
    receiver: &mut Receiver<F>,
) -> Result<Answer, ExchangeError> {
    let mut sending = Sending::UnderWay(pin!(send(socket, writer, request)));
    let mut response = ResponseReader::new(content);
    loop {
        let receiving = pin!(receiver.receive(limits, |received, buffer| match received {
            Ok(1..) => {
                let (consumed, answer) = response.read(buffer.unread(), limits)?;
                buffer.consume(consumed);
                Ok(answer)
            }
            Ok(0) => response.read_end().map(Some),
            Err(_) => Err(Broken),
        }));
        let read = sending.beside(receiving).await?;
        // Before the answer is used: a request that has not left whole ends its connection.
        sending.end().await?;
        if let Some(answer) = read? {
            return Ok(answer);
        }
    }
}

/// A request that is being sent.
enum Sending<'a, F> {
    UnderWay(Pin<&'a mut F>),
    Ended,
}

impl<F: Future<Output = Result<(), ExchangeError>>> Sending<'_, F> {
    /// Sends while `receiving` is awaited. Gives up as soon as the request cannot be sent.
    async fn beside<R: Future>(
        &mut self,
        mut receiving: Pin<&mut R>,
    ) -> Result<R::Output, ExchangeError> {
        poll_fn(|context| {
            if let Poll::Ready(Err(error)) = self.poll(context) {
                return Poll::Ready(Err(error));
            }
            receiving.as_mut().poll(context).map(Ok)
        })
        .await
    }

    async fn end(&mut self) -> Result<(), ExchangeError> {
        poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ExchangeError>> {
        let Self::UnderWay(send) = self else { return Poll::Ready(Ok(())) };
        let sent = ready!(send.as_mut().poll(context));
        *self = Self::Ended;
        Poll::Ready(sent)
    }
}

/// `socket` is the writer's.
async fn send(
    socket: RawFd,
    writer: &mut Writer,
    mut request: CallBytes,
) -> Result<(), ExchangeError> {
    let length = request.len();
    let Ok(mut sent) = turn::send_now(socket, &request).unwrap_or(Ok(0)) else {
        return Err(ExchangeError::NotSent);
    };
    while sent < length {
        let (result, slice) = writer.write(request.slice(sent..)).await;
        request = slice.into_inner();
        match result {
            Ok(count @ 1..) => sent += count,
            Ok(0) | Err(_) if sent == 0 => return Err(ExchangeError::NotSent),
            Ok(0) | Err(_) => return Err(ExchangeError::Broken),
        }
    }
    Ok(())
}

/// The result of a read, and what the next read needs.
type Received = (io::Result<usize>, Reader, ReadBuffer);

/// The read that is posted for as long as the connection lives. It is dropped only with the connection, since
/// the bytes that it may have received are lost with it.
struct Receiver<F> {
    reading: Pin<Box<F>>,
    post: fn(Rc<ResponseLimits>, Reader, ReadBuffer) -> F,
}

impl<F: Future<Output = Received>> Receiver<F> {
    fn new(
        limits: Rc<ResponseLimits>,
        reader: Reader,
        post: fn(Rc<ResponseLimits>, Reader, ReadBuffer) -> F,
    ) -> Self {
        Self { reading: Box::pin(post(limits, reader, ReadBuffer::default())), post }
    }

    /// Posts the read, unless it is posted. Ready once something was received, which is discarded; it must not be
    /// polled after that.
    fn poll_received(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.reading.as_mut().poll(context).map(drop)
    }

    /// Waits until something was received, lets `read` look at it, and prepares the next read, which is posted
    /// when it is first waited for.
    async fn receive<T>(
        &mut self,
        limits: &Rc<ResponseLimits>,
        read: impl FnOnce(io::Result<usize>, &mut ReadBuffer) -> T,
    ) -> T {
        let (received, reader, mut buffer) = self.reading.as_mut().await;
        let result = read(received, &mut buffer);
        self.reading.set((self.post)(Rc::clone(limits), reader, buffer));
        result
    }
}

#[allow(clippy::manual_async_fn)]
fn receive(
    limits: Rc<ResponseLimits>,
    mut reader: Reader,
    mut buffer: ReadBuffer,
) -> impl Future<Output = Received> {
    async move {
        let received = buffer.fill(&mut reader, &limits.buffers).await;
        (received, reader, buffer)
    }
}
