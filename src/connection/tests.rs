//! How answers are gathered into writes, and that no buffer carries bytes from one client to another, on a stream
//! that records what is written.

use std::{
    cell::RefCell,
    collections::VecDeque,
    net::{IpAddr, Ipv4Addr},
    os::{fd::RawFd, unix::net::UnixStream},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    task::{Context, Waker},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::StatusCode;
use ipnet::IpNet;
use monoio::{
    BufResult,
    buf::{IoBuf, IoBufMut, IoVecBuf, IoVecBufMut, Slice, SliceMut},
    io::{AsyncReadRent, CancelHandle},
};

use super::*;
use crate::{
    http::{HeadLimits, request::Request},
    runtime::driver::Choice,
};

/// Who is on the other side of these streams.
const PEER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A stream that gives these pieces, one a read, and records what was written.
#[derive(Clone)]
struct Recorder(Rc<RefCell<Record>>);

#[derive(Default)]
struct Record {
    pieces: VecDeque<Vec<u8>>,
    /// A piece may be larger than the buffer that it is read into, so that it is received at once.
    grows_buffers: bool,
    last_read: LastRead,
    /// How much each write had.
    writes: Vec<usize>,
    written: Vec<u8>,
    fault: Option<Fault>,
}

/// What happens to a read when all pieces were read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum LastRead {
    #[default]
    EndOfStream,
    Error,
    NeverEnds,
}

/// What happens to the write that would pass this many bytes.
#[derive(Clone, Copy)]
struct Fault {
    after: usize,
    kind: FaultKind,
}

#[derive(Debug, Clone, Copy)]
enum FaultKind {
    Error,
    WritesNothing,
    NeverEnds,
}

impl Recorder {
    /// A stream that gives each piece in one read.
    fn whole(pieces: Vec<Vec<u8>>) -> Self {
        let pieces = pieces.into();
        Self(Rc::new(RefCell::new(Record { pieces, grows_buffers: true, ..Record::default() })))
    }

    fn of(pieces: &[&[u8]], fault: Option<Fault>) -> Self {
        let pieces = pieces.iter().map(|piece| piece.to_vec()).collect();
        Self(Rc::new(RefCell::new(Record { pieces, fault, ..Record::default() })))
    }

    fn written(&self) -> Vec<u8> {
        self.0.borrow().written.clone()
    }
}

/// What a buffer holds: a generic one shows it as a pointer only.
fn bytes_of<T: IoBuf>(buf: &T) -> &[u8] {
    let buf: &dyn std::any::Any = buf;
    match buf.downcast_ref::<Slice<Vec<u8>>>() {
        Some(slice) => &slice.get_ref()[slice.begin()..slice.end()],
        None => buf.downcast_ref::<Bytes>().expect("a slice of a vector, or bytes"),
    }
}

impl AsRawFd for Recorder {
    fn as_raw_fd(&self) -> RawFd {
        -1
    }
}

impl AsyncReadRent for Recorder {
    async fn read<T: IoBufMut>(&mut self, mut buf: T) -> BufResult<usize, T> {
        let piece = self.0.borrow_mut().pieces.pop_front();
        let Some(mut piece) = piece else {
            let end = poll_fn(|_| match self.0.borrow().last_read {
                LastRead::EndOfStream => Poll::Ready(Ok(0)),
                LastRead::Error => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                LastRead::NeverEnds => Poll::Pending,
            });
            return (end.await, buf);
        };
        let slice = (&mut buf as &mut dyn std::any::Any).downcast_mut::<SliceMut<Vec<u8>>>();
        let slice = slice.expect("a read buffer reads into a slice");
        let mut record = self.0.borrow_mut();
        let room = if record.grows_buffers { usize::MAX } else { slice.end() - slice.begin() };
        if piece.len() > room {
            record.pieces.push_front(piece.split_off(room));
        }
        slice.get_mut().extend_from_slice(&piece);
        drop(record);
        (Ok(piece.len()), buf)
    }

    async fn readv<T: IoVecBufMut>(&mut self, buf: T) -> BufResult<usize, T> {
        (Err(io::ErrorKind::Unsupported.into()), buf)
    }
}

impl CancelableAsyncReadRent for Recorder {
    async fn cancelable_read<T: IoBufMut>(
        &mut self,
        buf: T,
        _: CancelHandle,
    ) -> BufResult<usize, T> {
        self.read(buf).await
    }

    async fn cancelable_readv<T: IoVecBufMut>(
        &mut self,
        buf: T,
        _: CancelHandle,
    ) -> BufResult<usize, T> {
        self.readv(buf).await
    }
}

impl AsyncWriteRent for Recorder {
    async fn write<T: IoBuf>(&mut self, buf: T) -> BufResult<usize, T> {
        let bytes = bytes_of(&buf);
        let fault = self.0.borrow().fault;
        let room = fault.map_or(usize::MAX, |fault| fault.after - self.0.borrow().written.len());
        let taken = bytes.len().min(room);
        if let (0, Some(Fault { kind, .. })) = (taken, fault) {
            match kind {
                FaultKind::Error => return (Err(io::ErrorKind::ConnectionReset.into()), buf),
                FaultKind::WritesNothing => return (Ok(0), buf),
                FaultKind::NeverEnds => std::future::pending().await,
            }
        }
        let mut record = self.0.borrow_mut();
        record.writes.push(taken);
        record.written.extend_from_slice(&bytes[..taken]);
        drop(record);
        (Ok(taken), buf)
    }

    async fn writev<T: IoVecBuf>(&mut self, buf: T) -> BufResult<usize, T> {
        (Err(io::ErrorKind::Unsupported.into()), buf)
    }

    async fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    async fn shutdown(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Answers `/N` with N bytes, and `/wait…` once it is released.
#[derive(Default)]
struct Echo {
    held: RefCell<VecDeque<Waker>>,
    released: std::cell::Cell<bool>,
    started: std::cell::Cell<usize>,
    /// Whether all requests may run at the same time.
    overlaps: bool,
}

struct Asked {
    bytes: usize,
    waits: bool,
}

impl Service for Echo {
    type Admitted = Asked;
    type Pending = Asked;
    type Message = ();

    fn admit(&self, request: &Request<'_>) -> Result<Asked, Response> {
        let waits = request.path.starts_with("/wait");
        Ok(Asked { bytes: request.path[1..].parse().unwrap_or(0), waits })
    }

    fn may_overlap(&self, request: &Request<'_>) -> bool {
        self.overlaps || request.method.is_safe()
    }

    fn start(&self, asked: Asked) -> Result<Asked, Response> {
        self.started.set(self.started.get() + 1);
        Ok(asked)
    }

    fn poll_response(&self, asked: &mut Asked, context: &mut Context<'_>) -> Poll<Response> {
        if asked.waits && !self.released.get() {
            self.held.borrow_mut().push_back(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Response::new(StatusCode::OK, vec![], vec![b'x'; asked.bytes]))
    }

    fn on_message(&self, (): ()) {}
}

fn clients() -> Rc<ClientContext> {
    clients_with_timeout(Duration::from_secs(60))
}

fn clients_with_timeout(timeout: Duration) -> Rc<ClientContext> {
    let limits = ClientLimits {
        head: HeadLimits { head_bytes_max: 4096, head_fields_max: 10, target_bytes_max: 256 },
        body_bytes_max: 1024,
        connections_max: 10,
        head_timeout: timeout,
        body_timeout: timeout,
        idle_timeout: timeout,
        write_timeout: timeout,
        drain_idle_timeout: timeout,
        proxy_protocol: false,
    };
    ClientContext::new(limits, Arc::default(), None, Arc::default())
}

fn requests(paths: &[&str]) -> Vec<u8> {
    paths
        .iter()
        .flat_map(|path| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes())
        .collect()
}

/// The bytes of an answer with so much content.
fn answer_bytes(content: usize) -> usize {
    let response = Response::new(StatusCode::OK, vec![], vec![b'x'; content]);
    response.http1_head(0).len() + b"\r\n".len() + content
}

/// The bytes of answers with so much content each.
fn answers_bytes<const N: usize>(contents: [usize; N]) -> usize {
    contents.into_iter().map(answer_bytes).sum()
}

/// The writes that serving `pieces` took.
#[track_caller]
fn check_writes(pieces: Vec<Vec<u8>>, expected: &[usize]) {
    let stream = Recorder::whole(pieces);
    let connection = Connection::new(stream.clone(), clients().register(-1, PEER));
    let serving = pin!(connection.serve(Rc::new(Echo::default())));
    let done = serving.poll(&mut Context::from_waker(Waker::noop()));
    assert!(done.is_ready(), "nothing here waits");
    assert_eq!(stream.0.borrow().writes, expected);
}

#[test]
fn answers_that_are_ready_share_a_write() {
    let [ten, twenty] = [10, 20].map(answer_bytes);
    check_writes(vec![requests(&["/10"])], &[ten]);
    check_writes(vec![requests(&["/10", "/20", "/30"])], &[answers_bytes([10, 20, 30])]);
    check_writes(vec![requests(&["/10"]), requests(&["/20"])], &[ten, twenty]);
}

#[test]
fn a_write_and_a_batch_are_bounded() {
    check_writes(vec![requests(&["/3000"; 4])], &[answers_bytes([3000; 3]), answer_bytes(3000)]);
    check_writes(
        vec![requests(&["/1"; 40])],
        &[answers_bytes([1; 16]), answers_bytes([1; 16]), answers_bytes([1; 8])],
    );
    // A large body is written as it is, behind what came before it.
    let before = answers_bytes([10, 5000]) - 5000;
    check_writes(vec![requests(&["/10", "/5000", "/20"])], &[before, 5000, answer_bytes(20)]);
}

#[test]
fn no_answer_waits_for_one_that_is_not_ready() {
    let stream = Recorder::whole(vec![requests(&["/10", "/wait", "/20", "/wait", "/30"])]);
    let service = Rc::new(Echo::default());
    let connection = Connection::new(stream.clone(), clients().register(-1, PEER));
    let mut serving = pin!(connection.serve(Rc::clone(&service)));
    let mut context = Context::from_waker(Waker::noop());
    assert!(serving.as_mut().poll(&mut context).is_pending());
    // All were started; the answers before the one that waits were written.
    assert_eq!(service.started.get(), 5);
    assert_eq!(stream.0.borrow().writes, [answer_bytes(10)]);
    service.released.set(true);
    assert!(serving.poll(&mut context).is_ready());
    let rest = answers_bytes([0, 20, 0, 30]);
    assert_eq!(stream.0.borrow().writes, [answer_bytes(10), rest]);
}

#[test]
fn a_client_that_waits_for_an_answer_holds_no_write_buffer() {
    let clients = clients();
    let service = Rc::new(Echo::default());
    let stream_of = |paths: &[&str]| Recorder::whole(vec![requests(paths)]);
    let streams =
        [stream_of(&["/wait", "/3"]), stream_of(&["/1", "/wait", "/4"]), stream_of(&["/wait"])];
    let mut serving: Vec<_> = streams
        .iter()
        .map(|stream| Connection::new(stream.clone(), clients.register(-1, PEER)))
        .map(|connection| Box::pin(connection.serve(Rc::clone(&service))))
        .collect();
    let mut context = Context::from_waker(Waker::noop());
    for client in &mut serving {
        assert!(client.as_mut().poll(&mut context).is_pending());
    }
    // One of them has used one, and gave it back.
    assert_eq!(clients.spare_write_buffers(), 1);
    // One that leaves while it waits takes nothing of the others with it.
    drop(serving.pop());
    service.released.set(true);
    for client in &mut serving {
        assert!(client.as_mut().poll(&mut context).is_ready());
    }
    assert_eq!(streams[0].0.borrow().writes, [answers_bytes([0, 3])]);
    assert_eq!(streams[1].0.borrow().writes, [answer_bytes(1), answers_bytes([0, 4])]);
    assert_eq!(streams[2].0.borrow().writes, [0; 0]);
    assert_eq!(clients.spare_write_buffers(), 1);
}

#[test]
fn what_is_not_safe_runs_alone() {
    let mut bytes = requests(&["/wait"]);
    bytes.extend_from_slice(b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc");
    bytes.extend(requests(&["/2"]));
    let stream = Recorder::whole(vec![bytes]);
    let service = Rc::new(Echo::default());
    let connection = Connection::new(stream.clone(), clients().register(-1, PEER));
    let mut serving = pin!(connection.serve(Rc::clone(&service)));
    let mut context = Context::from_waker(Waker::noop());
    assert!(serving.as_mut().poll(&mut context).is_pending());
    assert_eq!(service.started.get(), 1);
    service.released.set(true);
    assert!(serving.poll(&mut context).is_ready());
    assert_eq!(stream.0.borrow().writes, [0, 1, 2].map(answer_bytes));
}

#[test]
fn a_service_may_say_that_nothing_need_run_alone() {
    let post = b"POST /wait HTTP/1.1\r\nHost: a\r\n\r\n";
    for (overlaps, expected) in [(false, 1), (true, 3)] {
        let stream = Recorder::whole(vec![post.repeat(3)]);
        let service = Rc::new(Echo { overlaps, ..Echo::default() });
        let connection = Connection::new(stream, clients().register(-1, PEER));
        let mut serving = pin!(connection.serve(Rc::clone(&service)));
        assert!(serving.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(service.started.get(), expected);
    }
}

/// What a client is answered that has sent `bytes` before it could know of the drain: the contents, and how many of the
/// answers say that they are the last.
#[track_caller]
fn check_drain(bytes: Vec<u8>, answers: usize) {
    let stream = Recorder::whole(vec![bytes, requests(&["/1"])]);
    let clients = clients();
    let connection = Connection::new(stream.clone(), clients.register(-1, PEER));
    clients.drain();
    let serving = pin!(connection.serve(Rc::new(Echo::default())));
    assert!(serving.poll(&mut Context::from_waker(Waker::noop())).is_ready());
    let text = String::from_utf8(stream.written()).unwrap();
    let parts: Vec<_> = text.split("HTTP/1.1 200 OK").skip(1).collect();
    assert_eq!(parts.len(), answers, "{text}");
    let last: Vec<_> = parts.iter().map(|part| part.contains("connection: close")).collect();
    assert!(last.iter().rposition(|last| !last).is_none_or(|place| place + 1 < answers));
    assert_eq!(last.iter().filter(|last| **last).count(), 1, "{text}");
}

#[test]
fn a_drain_answers_what_was_received_whole_and_no_more() {
    check_drain(requests(&["/1"]), 1);
    check_drain(requests(&["/1"; 5]), 5);
    check_drain(requests(&["/1"; 40]), 40);
    let half = requests(&["/1", "/1"])[..50].to_vec();
    assert!(half.len() > requests(&["/1"]).len());
    check_drain(half, 1);
    // One that never pauses.
    check_drain(requests(&vec!["/1"; 5000]), context::DRAINED_MAX as usize + 1);
    // Neither empty lines nor a body that looks like a head is a request.
    check_drain([requests(&["/1"]), b"\r\n\r\n\r\n".repeat(9)].concat(), 1);
    let body = b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\na\r\n\r\nbcde";
    check_drain(body.to_vec(), 1);
}

/// A client that was answered `/10` in one window, and is answered what follows in the next, in which all may leave.
fn leaves(
    clients: &Rc<ClientContext>,
    pieces: Vec<Vec<u8>>,
) -> (Recorder, Option<Box<Departed<Recorder>>>) {
    let first = [requests(&["/10"]), requests(&["/wait"])];
    let mut pieces = VecDeque::from(pieces);
    let behind = pieces.pop_front().unwrap();
    let [ten, wait] = first;
    let stream = Recorder::whole([vec![ten, [wait, behind].concat()], pieces.into()].concat());
    let service = Rc::new(Echo::default());
    let connection = Connection::new(stream.clone(), clients.register(-1, PEER));
    let mut serving = pin!(connection.serve(Rc::clone(&service)));
    let mut context = Context::from_waker(Waker::noop());
    clients.departures().next_window();
    assert!(serving.as_mut().poll(&mut context).is_pending());
    assert_eq!(clients.departures().next_window(), 1);
    clients.departures().allow(Allowance { first: 1, all: 1, connections: 1 });
    service.released.set(true);
    let Poll::Ready(departed) = serving.poll(&mut context) else { panic!("nothing here waits") };
    assert_eq!(clients.metrics().connections.read(), 0);
    (stream, departed)
}

#[test]
fn a_connection_leaves_when_all_that_came_is_answered_and_goes_on_elsewhere() {
    let there = clients();
    let limits = there.limits();
    // Its header came at the first worker.
    there.set_limits(ClientLimits { proxy_protocol: true, ..limits });
    for behind in [vec![], requests(&["/20"])] {
        let here = clients();
        let (stream, departed) = leaves(&here, vec![behind.clone(), requests(&["/30"])]);
        let Departed { stream: left, client } = *departed.unwrap();
        assert_eq!((client.peer, client.is_reused, client.is_unnamed), (PEER, true, false));
        let answered = if behind.is_empty() { answer_bytes(0) } else { answers_bytes([0, 20]) };
        assert_eq!(stream.0.borrow().writes, [answer_bytes(10), answered]);
        let connection = Connection::resume(left, there.register_moved(-1, client.peer), client);
        let serving = pin!(connection.serve(Rc::new(Echo::default())));
        let Poll::Ready(None) = serving.poll(&mut Context::from_waker(Waker::noop())) else {
            panic!("it ends with its client")
        };
        assert_eq!(stream.0.borrow().writes[2..], [answer_bytes(30)]);
        let (metrics, accepted) = (there.metrics(), here.metrics().accepted.read());
        assert_eq!((accepted, metrics.accepted.read(), metrics.connections.read()), (1, 0, 0));
    }
}

#[test]
fn a_connection_with_a_part_of_a_request_or_at_a_drain_stays() {
    let request = requests(&["/20"]);
    let (begin, rest) = request.split_at(7);
    let (stream, departed) = leaves(&clients(), vec![begin.to_vec(), rest.to_vec()]);
    // It leaves behind that one.
    assert!(departed.is_some());
    assert_eq!(stream.0.borrow().writes, [10, 0, 20].map(answer_bytes));
    let drains = clients();
    drains.drain();
    let stream = Recorder::whole(vec![requests(&["/10"])]);
    let mut connection = Connection::new(stream, drains.register(-1, PEER));
    connection.is_reused = true;
    drains.departures().next_window();
    connection.departs();
    drains.departures().next_window();
    drains.departures().allow(Allowance { first: 9, all: 9, connections: 9 });
    assert!(!connection.departs());
}

#[test]
fn newcomers_that_wait_together_close_one_client_each_however_often_they_are_woken() {
    const NEWCOMERS: u64 = 3;
    const WAKES: u64 = 50;
    let (mut runtime, _) = crate::runtime::driver::build(Choice::Epoll).unwrap();
    runtime.block_on(async {
        let clients = clients();
        clients.set_limits(ClientLimits { connections_max: 300, ..clients.limits() });
        // Idle clients that take long to leave.
        let pairs: Vec<_> = (0..300).map(|_| UnixStream::pair().unwrap()).collect();
        let register = |socket: &UnixStream| {
            let client = clients.register(socket.as_raw_fd(), PEER);
            client.arm_deadline(Phase::Idle);
            client
        };
        let open: Vec<_> = pairs.iter().map(|(near, _)| register(near)).collect();
        let wait = || clients.wait_for_capacity(|| {});
        let mut waiting = pin!(futures_util::future::join3(wait(), wait(), wait()));
        let evicted = || clients.metrics().evicted.read();
        let mut first = None;
        let mut wakes = 0;
        while wakes < WAKES {
            clients.expire();
            wakes += u64::from(first.is_some());
            assert!(waiting.as_mut().now_or_never().is_none());
            crate::runtime::budget::pause().await;
            if first.is_none() && evicted() > 0 {
                first = Some(crate::runtime::clock::now());
            }
        }
        let passed = crate::runtime::clock::now().since(first.unwrap()).as_millis();
        let most = NEWCOMERS * (2 + u64::try_from(passed).unwrap() / 100);
        assert!((NEWCOMERS..=most).contains(&evicted()), "{} in {passed} ms", evicted());
        drop(open);
        waiting.await;
    });
}

/// Panics at `/panic`, as no service should.
struct Panics;

impl Service for Panics {
    type Admitted = ();
    type Pending = ();
    type Message = ();

    fn admit(&self, request: &Request<'_>) -> Result<(), Response> {
        assert!(request.path != "/panic", "on purpose");
        Ok(())
    }

    fn start(&self, (): ()) -> Result<(), Response> {
        Ok(())
    }

    fn poll_response(&self, (): &mut (), _: &mut Context<'_>) -> Poll<Response> {
        Poll::Ready(Response::new(StatusCode::OK, vec![], "fine"))
    }

    fn on_message(&self, (): ()) {}
}

#[test]
fn a_panic_costs_its_connection_alone() {
    let (mut runtime, _) = crate::runtime::driver::build(Choice::Epoll).unwrap();
    let clients = clients();
    let service = Rc::new(Panics);
    let streams = ["/panic", "/"].map(|path| Recorder::whole(vec![requests(&[path])]));
    runtime.block_on(async {
        for stream in &streams {
            let connection = Connection::new(stream.clone(), clients.register(-1, PEER));
            let serving = connection.serve(Rc::clone(&service));
            crate::runtime::task::spawn("connection", clients.metrics(), serving.map(drop)).await;
        }
    });
    assert!(streams[0].0.borrow().writes.is_empty());
    assert_eq!(streams[1].0.borrow().writes, [answer_bytes(4)]);
    assert_eq!(clients.metrics().panics.read(), 1);
    // It has left the table.
    assert_eq!(clients.metrics().connections.read(), 0);
}

/// What a client receives that shares its worker with `clients`.
fn receives(clients: &Rc<ClientContext>, pieces: &[&[u8]], fault: Option<Fault>) -> Vec<u8> {
    receives_of(Echo::default(), clients, pieces, fault)
}

/// The same, of any service.
fn receives_of<V: Service>(
    service: V,
    clients: &Rc<ClientContext>,
    pieces: &[&[u8]],
    fault: Option<Fault>,
) -> Vec<u8> {
    let stream = Recorder::of(pieces, fault);
    let connection = Connection::new(stream.clone(), clients.register(-1, PEER));
    let serving = pin!(connection.serve(Rc::new(service)));
    let done = serving.poll(&mut Context::from_waker(Waker::noop()));
    let waits = fault.is_some_and(|fault| matches!(fault.kind, FaultKind::NeverEnds));
    assert!(done.is_ready() || waits, "nothing here waits");
    without_dates(stream.written())
}

/// With each date replaced, which may be of another second.
fn without_dates(mut bytes: Vec<u8>) -> Vec<u8> {
    const FIELD: &[u8] = b"\r\ndate: ";
    const DATE_BYTES: usize = "Sun, 06 Nov 1994 08:49:37 GMT".len();
    for place in 0..bytes.len() {
        if bytes[place..].starts_with(FIELD) {
            bytes
                .iter_mut()
                .skip(place + FIELD.len())
                .take(DATE_BYTES)
                .for_each(|byte| *byte = b'x');
        }
    }
    bytes
}

/// All kinds of answers and refusals.
fn conversations() -> Vec<Vec<Vec<u8>>> {
    let refused = b"BAD\r\n\r\n".to_vec();
    let head = |fields: &str| format!("POST /7 HTTP/1.1\r\nHost: a\r\n{fields}\r\n").into_bytes();
    let expects = "Expect: 100-continue\r\n";
    vec![
        vec![requests(&["/10"])],
        vec![requests(&["/10", "/20", "/30"])],
        vec![requests(&["/10", "/5000", "/20"])],
        vec![requests(&["/3000"; 4])],
        vec![requests(&["/10"]), refused.clone()],
        vec![refused],
        vec![b"HEAD /< HTTP/1.1\r\n\r\n".to_vec()],
        vec![head(&format!("{expects}Content-Length: 3\r\n")), b"abc".to_vec()],
        vec![head(&format!("{expects}Content-Length: 9999\r\n"))],
        vec![[head("Transfer-Encoding: chunked\r\n"), b"x".to_vec()].concat()],
    ]
}

#[test]
fn what_one_client_did_not_take_reaches_no_other() {
    let innocent = requests(&["/10", "/5000", "/20"]);
    let expected = receives(&clients(), &[&innocent], None);
    for conversation in conversations() {
        let pieces: Vec<&[u8]> = conversation.iter().map(Vec::as_slice).collect();
        let whole = receives(&clients(), &pieces, None);
        assert!(!whole.is_empty());
        for kind in [FaultKind::Error, FaultKind::WritesNothing, FaultKind::NeverEnds] {
            let clients = clients();
            for after in 0..whole.len() {
                let received = receives(&clients, &pieces, Some(Fault { after, kind }));
                assert_eq!(received.len(), after);
                assert!(
                    receives(&clients, &[&innocent], None) == expected,
                    "after {:?} with {kind:?} at {after}",
                    String::from_utf8_lossy(&conversation.concat())
                );
            }
        }
    }
}

/// A request with this path, for which a read buffer must grow.
fn long_request(path: &str) -> Vec<u8> {
    let padding = "p".repeat(300);
    format!("GET {path} HTTP/1.1\r\nHost: a\r\nX: {padding}\r\n\r\n").into_bytes()
}

fn long_post(rest: &str) -> Vec<u8> {
    let padding = "p".repeat(300);
    format!("POST /7 HTTP/1.1\r\nHost: a\r\nX: {padding}\r\n{rest}").into_bytes()
}

/// A client that sends more than a small buffer holds, and how its connection ends.
struct ReadPath {
    name: &'static str,
    bytes: Vec<u8>,
    last_read: LastRead,
    fault: Option<Fault>,
    /// The large buffers in the pool after that: one, or none when it is freed with the connection.
    spares: usize,
}

impl ReadPath {
    fn new(name: &'static str, bytes: Vec<u8>, last_read: LastRead, spares: usize) -> Self {
        Self { name, bytes, last_read, fault: None, spares }
    }

    /// Serves the client with `service`; what waits at the end is cancelled. `wait` is called before that.
    fn serve<V: Service>(
        &self,
        clients: &Rc<ClientContext>,
        service: V,
        wait: impl FnOnce(&Recorder),
    ) {
        let stream = Recorder::of(&[&self.bytes], self.fault);
        stream.0.borrow_mut().last_read = self.last_read;
        let connection = Connection::new(stream.clone(), clients.register(-1, PEER));
        let mut serving = pin!(connection.serve(Rc::new(service)));
        let mut context = Context::from_waker(Waker::noop());
        if serving.as_mut().poll(&mut context).is_pending() {
            wait(&stream);
            let _ = serving.poll(&mut context);
        }
    }

    /// The pool has what it should have, all of it empty, and the next client gets its own answers only.
    #[track_caller]
    fn check(&self, clients: &Rc<ClientContext>) {
        let lengths = clients.read_buffers().spare_lengths();
        assert_eq!(lengths, vec![0; self.spares], "{}", self.name);
        let innocent = [long_request("/10"), requests(&["/20"])].concat();
        let expected = receives(&self::clients(), &[&innocent], None);
        assert!(receives(clients, &[&innocent], None) == expected, "after: {}", self.name);
    }
}

/// How a connection can end, in each phase.
fn read_paths() -> Vec<ReadPath> {
    use LastRead::{EndOfStream, Error, NeverEnds};
    let path = ReadPath::new;
    let head = long_request("/10")[..300].to_vec();
    let body = || long_post("Content-Length: 9\r\n\r\nhalf");
    let begun = || [long_request("/10"), head.clone()].concat();
    let malformed = [&head[..], b"\0"].concat();
    let too_large = format!("GET / HTTP/1.1\r\nX: {}", "p".repeat(5000)).into_bytes();
    let last = long_post("Connection: close\r\nContent-Length: 1\r\n\r\n1");
    let closing = [last, begun()].concat();
    let mut paths = vec![
        path("idle, closed", long_request("/10"), EndOfStream, 1),
        path("idle, reset", long_request("/10"), Error, 1),
        path("idle, cancelled", long_request("/10"), NeverEnds, 1),
        path("head, closed", head.clone(), EndOfStream, 1),
        path("head, reset", head.clone(), Error, 1),
        path("head, cancelled", head.clone(), NeverEnds, 0),
        path("second head, closed", begun(), EndOfStream, 1),
        path("second head, cancelled", begun(), NeverEnds, 0),
        path("body, closed", body(), EndOfStream, 1),
        path("body, reset", body(), Error, 1),
        path("body, cancelled", body(), NeverEnds, 1),
        path("head, refused", [malformed.clone(), begun()].concat(), EndOfStream, 1),
        path("head too large, refused", too_large, EndOfStream, 1),
        path("body, refused", long_post("Transfer-Encoding: chunked\r\n\r\nx"), EndOfStream, 1),
        path("body too large, refused", long_post("Content-Length: 9999\r\n\r\n"), EndOfStream, 1),
        path("refused, reset", malformed, Error, 1),
        path("last answer, closed", closing.clone(), EndOfStream, 1),
        path("last answer, cancelled", closing, NeverEnds, 1),
    ];
    for (name, kind, spares) in [
        ("write, reset", FaultKind::Error, 1),
        ("write, nothing written", FaultKind::WritesNothing, 1),
        ("write, cancelled", FaultKind::NeverEnds, 0),
    ] {
        let fault = Some(Fault { after: 5, kind });
        paths.push(ReadPath { fault, ..path(name, begun(), EndOfStream, spares) });
    }
    paths
}

#[test]
fn a_read_buffer_comes_back_empty_from_every_path() {
    for path in read_paths() {
        let clients = clients();
        path.serve(&clients, Echo::default(), |_| {});
        path.check(&clients);
    }
}

#[test]
fn a_read_buffer_comes_back_empty_from_a_client_that_is_too_slow() {
    for (name, bytes) in [
        ("slow head", long_request("/10")[..300].to_vec()),
        ("slow body", long_post("Content-Length: 999\r\n\r\nbody")),
    ] {
        let clients = clients_with_timeout(Duration::ZERO);
        let path = ReadPath::new(name, bytes, LastRead::NeverEnds, 1);
        path.serve(&clients, Echo::default(), |stream| {
            clients.expire();
            // As a read that is cancelled.
            stream.0.borrow_mut().last_read = LastRead::Error;
        });
        assert_eq!(clients.metrics().bad_requests().sum::<u64>(), 1, "{name}");
        path.check(&clients);
    }
}

#[test]
fn a_read_buffer_does_not_come_back_from_a_panic() {
    let clients = clients();
    let bytes = [long_request("/panic"), long_request("/10")].concat();
    let path = ReadPath::new("panic", bytes, LastRead::EndOfStream, 0);
    let panicked = catch_unwind(AssertUnwindSafe(|| path.serve(&clients, Panics, |_| {})));
    assert!(panicked.is_err());
    path.check(&clients);
}

/// Answers each request with pieces of this size, as many as there are.
struct Streams {
    piece: usize,
    pieces: usize,
    /// Pieces that were asked for, of all clients.
    asked: Rc<std::cell::Cell<usize>>,
}

struct Pieces {
    piece: Bytes,
    left: usize,
    asked: Rc<std::cell::Cell<usize>>,
}

impl Feed for Pieces {
    fn poll_piece(&mut self, _: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let Some(left) = self.left.checked_sub(1) else { return Poll::Ready(None) };
        self.left = left;
        self.asked.set(self.asked.get() + 1);
        Poll::Ready(Some(self.piece.clone()))
    }
}

impl Service for Streams {
    type Admitted = std::convert::Infallible;
    type Pending = std::convert::Infallible;
    type Message = ();

    fn admit(&self, _: &Request<'_>) -> Result<Self::Admitted, Response> {
        let piece = vec![b'x'; self.piece].into();
        let feed = Pieces { piece, left: self.pieces, asked: Rc::clone(&self.asked) };
        Err(Response::stream(vec![], Box::new(feed)))
    }

    fn start(&self, admitted: Self::Admitted) -> Result<Self::Pending, Response> {
        match admitted {}
    }

    fn poll_response(&self, pending: &mut Self::Pending, _: &mut Context<'_>) -> Poll<Response> {
        match *pending {}
    }

    fn on_message(&self, (): ()) {}
}

fn streams(piece: usize, pieces: usize) -> Streams {
    Streams { piece, pieces, asked: Rc::default() }
}

#[test]
fn a_stream_is_written_piece_by_piece_and_ends_with_the_connection() {
    for (method, expected) in [("GET", 2), ("HEAD", 0)] {
        let requests = format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n").repeat(2);
        let stream = Recorder::whole(vec![requests.into()]);
        let connection = Connection::new(stream.clone(), clients().register(-1, PEER));
        let serving = pin!(connection.serve(Rc::new(streams(100, 2))));
        assert!(serving.poll(&mut Context::from_waker(Waker::noop())).is_ready());
        let written = String::from_utf8(stream.written()).unwrap();
        let (head, content) = written.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with("HTTP/1.1 200 OK") && head.ends_with("connection: close"),
            "{head}"
        );
        assert!(!head.contains("content-length"), "{head}");
        // Nothing follows: the second request is not answered.
        assert_eq!(content, "x".repeat(100 * expected), "{method}");
        assert_eq!(stream.0.borrow().writes.len(), 1 + expected);
    }
}

#[test]
fn what_one_client_did_not_take_of_a_stream_reaches_no_other() {
    let innocent = requests(&["/10", "/5000", "/20"]);
    let expected = receives(&clients(), &[&innocent], None);
    let request: &[&[u8]] = &[&requests(&["/"])];
    for (piece, pieces) in [(1, 3), (100, 3), (1_500, 2)] {
        let stream = || streams(piece, pieces);
        let whole = receives_of(stream(), &clients(), request, None);
        assert!(whole.len() > piece * pieces);
        for kind in [FaultKind::Error, FaultKind::WritesNothing, FaultKind::NeverEnds] {
            let clients = clients();
            for after in 0..whole.len() {
                let fault = Some(Fault { after, kind });
                let received = receives_of(stream(), &clients, request, fault);
                assert!(received.len() == after && whole.starts_with(&received), "{after}");
                // Nor does another watcher.
                for (of, service) in [("answers", None), ("a stream", Some(stream()))] {
                    let (received, expected) = match service {
                        None => (receives(&clients, &[&innocent], None), &expected),
                        Some(service) => (receives_of(service, &clients, request, None), &whole),
                    };
                    assert!(
                        received == *expected,
                        "{of} after {pieces} pieces of {piece} with {kind:?} at {after}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_client_that_takes_nothing_of_a_stream_is_cut() {
    let (mut runtime, _) = crate::runtime::driver::build(Choice::Epoll).unwrap();
    let clients = clients_with_timeout(Duration::from_millis(50));
    // Far more than the kernel's buffers hold.
    let (piece, pieces) = (1 << 20, 1 << 20);
    let service = Rc::new(streams(piece, pieces));
    runtime.block_on(async {
        let listener = monoio::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        io::Write::write_all(&mut client, &requests(&["/"])).unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let handle = clients.register(stream.as_raw_fd(), PEER);
        let connection = Connection::new(stream, handle);
        let serving = connection.serve(Rc::clone(&service));
        let task = crate::runtime::task::spawn("connection", clients.metrics(), serving.map(drop));
        while clients.metrics().connections.read() > 0 {
            monoio::time::sleep(Duration::from_millis(5)).await;
            clients.expire();
        }
        task.await;
        drop(client);
    });
    // Of what it did not take, no more than a piece was waiting.
    assert!(service.asked.get() < 100, "{}", service.asked.get());
}

const PROXY_LINE: &[u8] = b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n";

/// A client of a server that expects a PROXY header, which sends these pieces; its answers, and what is known of it
/// while it is served.
fn serve_relayed(pieces: &[&[u8]]) -> (String, Option<IpAddr>, u64) {
    let clients = clients();
    clients.set_limits(ClientLimits { proxy_protocol: true, ..clients.limits() });
    let stream = Recorder::of(pieces, None);
    stream.0.borrow_mut().last_read = LastRead::NeverEnds;
    let client = clients.register(-1, PEER);
    let address = Rc::new(std::cell::Cell::new(None));
    let service = Rc::new(Echo::default());
    let mut serving = Box::pin(Connection::new(stream.clone(), client).serve(service));
    let context = &mut Context::from_waker(Waker::noop());
    // It ends by itself, or waits for its next request.
    while serving.as_mut().poll(context).is_pending() {
        address.set(clients.peers().pop().filter(|peer| *peer != PEER));
        if stream.0.borrow().pieces.is_empty() {
            break;
        }
    }
    drop(serving);
    assert!(clients.peers().is_empty(), "the address of a client that has left is kept");
    // Two runs may be in two seconds.
    let answers = String::from_utf8(stream.written()).unwrap();
    let answers = answers.split_inclusive("\r\n").filter(|line| !line.starts_with("date: "));
    (answers.collect(), address.get(), clients.metrics().bad_requests().sum())
}

#[test]
fn a_relayed_connection_is_that_of_its_client() {
    let requests = requests(&["/1", "/2"]);
    let whole = [PROXY_LINE, &requests].concat();
    let expected = serve_relayed(&[&whole]);
    assert_eq!(expected.0.matches("HTTP/1.1 200 OK").count(), 2, "{expected:?}");
    assert_eq!(expected.1, Some("192.0.2.1".parse().unwrap()));
    assert_eq!(expected.2, 0);
    for cut in 1..whole.len() {
        assert_eq!(serve_relayed(&[&whole[..cut], &whole[cut..]]), expected, "cut at {cut}");
    }
    // Nothing is known of a client that a proxy does not name, and an IPv4 client is one in any form.
    let unnamed = serve_relayed(&[b"PROXY UNKNOWN\r\n", &requests]);
    assert_eq!(unnamed, (expected.0.clone(), None, 0));
    let mapped = serve_relayed(&[b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", &requests]);
    assert_eq!(mapped, expected);
}

#[test]
fn a_connection_without_a_proxy_header_is_closed_without_an_answer() {
    let requests = requests(&["/1"]);
    let wrong_line = [b"PROXY TCP4 192.0.2.01 198.51.100.7 56324 443\r\n", &requests[..]].concat();
    let twice = [b"PROXY UNKNOWN\n", &requests[..]].concat();
    for bytes in [&requests, &wrong_line, &twice] {
        for cut in 1..bytes.len() {
            let seen = serve_relayed(&[&bytes[..cut], &bytes[cut..]]);
            assert_eq!(seen, (String::new(), None, 1), "cut at {cut}");
        }
    }
    // One header is enough: a second one is no request.
    let (answer, ..) = serve_relayed(&[PROXY_LINE, PROXY_LINE]);
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[test]
fn a_proxy_header_is_believed_of_trusted_proxies_only() {
    let bytes = [PROXY_LINE, &requests(&["/1"])].concat();
    // The peer is the last one of the network, or the first one behind it.
    for (network, answers, refused) in [("127.0.0.1/32", 1, 0), ("127.0.0.2/31", 0, 1)] {
        let trusted = Arc::from([network.parse::<IpNet>().unwrap()]);
        let limits = ClientLimits { proxy_protocol: true, ..clients().limits() };
        let clients = ClientContext::new(limits, Arc::default(), None, trusted);
        let seen = String::from_utf8(receives(&clients, &[&bytes], None)).unwrap();
        assert_eq!(seen.matches("HTTP/1.1 200 OK").count(), answers, "{network}: {seen}");
        assert_eq!(clients.metrics().bad_requests().sum::<u64>(), refused, "{network}");
    }
}

#[test]
fn a_proxy_header_that_does_not_come_is_counted_and_closed() {
    let clients = clients_with_timeout(Duration::ZERO);
    clients.set_limits(ClientLimits { proxy_protocol: true, ..clients.limits() });
    let path = ReadPath::new("a part", PROXY_LINE[..9].to_vec(), LastRead::NeverEnds, 0);
    path.serve(&clients, Echo::default(), |stream| {
        clients.expire();
        // As a read that is cancelled.
        stream.0.borrow_mut().last_read = LastRead::Error;
    });
    assert_eq!(clients.metrics().bad_requests().sum::<u64>(), 1);
}

#[test]
fn each_request_has_one_entry_in_the_access_log() {
    // Where the first write fails: the first answer was given, and the last ones never were.
    for (fault, statuses) in [
        (None, vec![200, 200, 200, 400]),
        (Some(Fault { after: 10, kind: FaultKind::Error }), vec![200, 499, 499]),
    ] {
        let (producer, mut entries) = crate::access_log::ring(4096);
        let rules =
            crate::access_log::Rules { one_in: std::num::NonZeroU32::MIN, trusted: Arc::new([]) };
        let recorder = crate::access_log::Recorder::new(rules, producer, Arc::default());
        let (limits, log) = (clients().limits(), Some(recorder));
        let clients = ClientContext::new(limits, Arc::default(), log, Arc::default());
        let requests = [requests(&["/9000", "/1", "/2"]), b"bad\r\n\r\n".to_vec()].concat();
        receives(&clients, &[&requests], fault);
        let mut seen = Vec::new();
        while let Some(entry) = entries.next() {
            assert_eq!(entry.client, PEER);
            seen.push((entry.status, String::from_utf8_lossy(entry.line).into_owned()));
        }
        seen.sort_by_key(|(status, _)| *status);
        assert_eq!(
            seen.iter().map(|(status, _)| *status).collect::<Vec<_>>(),
            statuses,
            "{seen:?}"
        );
        assert!(seen[0].1.starts_with("GET /9000 "), "{seen:?}");
    }
}
