//! How answers are gathered into writes, and what becomes of a buffer whose write fails, on a stream
//! that records them.

use std::{
    cell::RefCell, collections::VecDeque, os::fd::RawFd, sync::Arc, task::Waker, time::Duration,
};

use bytes::Bytes;
use http::StatusCode;
use monoio::{
    BufResult,
    buf::{IoBuf, IoBufMut, IoVecBuf, IoVecBufMut, Slice, SliceMut},
    io::{AsyncReadRent, CancelHandle},
};

use super::*;
use crate::http::{HeadLimits, request::Request};

/// A stream that gives these pieces, one a read, and records what was written.
#[derive(Clone, Default)]
struct Recorder(Rc<RefCell<Record>>);

#[derive(Default)]
struct Record {
    pieces: VecDeque<Vec<u8>>,
    /// How much each write had.
    writes: Vec<usize>,
    written: Vec<u8>,
    fault: Option<Fault>,
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
        let piece = self.0.borrow_mut().pieces.pop_front().unwrap_or_default();
        let slice = (&mut buf as &mut dyn std::any::Any).downcast_mut::<SliceMut<Vec<u8>>>();
        slice.expect("a read buffer reads into a slice").get_mut().extend_from_slice(&piece);
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

/// Answers `/N` with N bytes; those to `/wait…` once they are let go.
#[derive(Default)]
struct Echo {
    held: RefCell<VecDeque<Waker>>,
    let_go: std::cell::Cell<bool>,
    started: std::cell::Cell<usize>,
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

    fn start(&self, asked: Asked) -> Result<Asked, Response> {
        self.started.set(self.started.get() + 1);
        Ok(asked)
    }

    fn poll_response(&self, asked: &mut Asked, context: &mut Context<'_>) -> Poll<Response> {
        if asked.waits && !self.let_go.get() {
            self.held.borrow_mut().push_back(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Response::new(StatusCode::OK, vec![], vec![b'x'; asked.bytes]))
    }

    fn on_message(&self, (): ()) {}
}

fn clients() -> Rc<ClientContext> {
    let minute = Duration::from_secs(60);
    let limits = ClientLimits {
        head: HeadLimits { head_bytes_max: 4096, head_fields_max: 10, target_bytes_max: 256 },
        body_bytes_max: 1024,
        connections_max: 10,
        head_timeout: minute,
        body_timeout: minute,
        idle_timeout: minute,
        write_timeout: minute,
        drain_idle_timeout: minute,
    };
    ClientContext::new(limits, Arc::default())
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
    let stream = Recorder::default();
    stream.0.borrow_mut().pieces = pieces.into();
    let connection = Connection::new(stream.clone(), clients().register(-1));
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
    let stream = Recorder::default();
    stream.0.borrow_mut().pieces.push_back(requests(&["/10", "/wait", "/20", "/wait", "/30"]));
    let service = Rc::new(Echo::default());
    let connection = Connection::new(stream.clone(), clients().register(-1));
    let mut serving = pin!(connection.serve(Rc::clone(&service)));
    let mut context = Context::from_waker(Waker::noop());
    assert!(serving.as_mut().poll(&mut context).is_pending());
    // All were started; what stands before the one that waits was written.
    assert_eq!(service.started.get(), 5);
    assert_eq!(stream.0.borrow().writes, [answer_bytes(10)]);
    service.let_go.set(true);
    assert!(serving.poll(&mut context).is_ready());
    let rest = answers_bytes([0, 20, 0, 30]);
    assert_eq!(stream.0.borrow().writes, [answer_bytes(10), rest]);
}

#[test]
fn what_is_not_safe_runs_alone() {
    let stream = Recorder::default();
    let mut bytes = requests(&["/wait"]);
    bytes.extend_from_slice(b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc");
    bytes.extend(requests(&["/2"]));
    stream.0.borrow_mut().pieces.push_back(bytes);
    let service = Rc::new(Echo::default());
    let connection = Connection::new(stream.clone(), clients().register(-1));
    let mut serving = pin!(connection.serve(Rc::clone(&service)));
    let mut context = Context::from_waker(Waker::noop());
    assert!(serving.as_mut().poll(&mut context).is_pending());
    assert_eq!(service.started.get(), 1);
    service.let_go.set(true);
    assert!(serving.poll(&mut context).is_ready());
    assert_eq!(stream.0.borrow().writes, [0, 1, 2].map(answer_bytes));
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
    let (mut runtime, _) =
        crate::runtime::driver::build(crate::runtime::driver::Choice::Epoll).unwrap();
    let clients = clients();
    let service = Rc::new(Panics);
    let streams = ["/panic", "/"].map(|path| {
        let stream = Recorder::default();
        stream.0.borrow_mut().pieces.push_back(requests(&[path]));
        stream
    });
    runtime.block_on(async {
        for stream in &streams {
            let connection = Connection::new(stream.clone(), clients.register(-1));
            let serving = connection.serve(Rc::clone(&service));
            crate::runtime::task::spawn("connection", clients.metrics(), serving).await;
        }
    });
    assert!(streams[0].0.borrow().writes.is_empty());
    assert_eq!(streams[1].0.borrow().writes, [answer_bytes(4)]);
    assert_eq!(clients.metrics().panics.read(), 1);
    // Its place was given up.
    assert_eq!(clients.metrics().connections.read(), 0);
}

/// What a client receives that is served on these clients' buffers; it leaves when its time is up.
fn receives(clients: &Rc<ClientContext>, pieces: &[&[u8]], fault: Option<Fault>) -> Vec<u8> {
    let stream = Recorder::of(pieces, fault);
    let connection = Connection::new(stream.clone(), clients.register(-1));
    let serving = pin!(connection.serve(Rc::new(Echo::default())));
    let done = serving.poll(&mut Context::from_waker(Waker::noop()));
    let waits = fault.is_some_and(|fault| matches!(fault.kind, FaultKind::NeverEnds));
    assert!(done.is_ready() || waits, "nothing here waits");
    without_dates(stream.written())
}

/// With the same in place of each date, which may be that of another second.
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

/// Every way to be answered, and to be refused.
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
