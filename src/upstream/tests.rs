//! A counter that moves to another address while its old one still answers.

use std::{
    cell::Cell,
    future::poll_fn,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    thread,
};

use super::*;
use crate::{config::RESPONSE_HEAD, runtime::driver};

/// Ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// A counter that reports each call, answers when the test says so, and reports the end of a connection.
struct Peer {
    address: SocketAddr,
    told: mpsc::Receiver<Told>,
    answers: mpsc::Sender<()>,
}

#[derive(Debug, PartialEq)]
enum Told {
    Called,
    Ended,
}

impl Peer {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, told) = mpsc::channel();
        let (answers, answer) = mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if serve(stream, &tell, &answer).is_none() {
                    return;
                }
            }
        });
        Self { address, told, answers }
    }

    fn answer(&self) {
        self.answers.send(()).unwrap();
    }

    #[track_caller]
    fn expect(&self, told: Told) {
        assert_eq!(self.told.recv_timeout(PATIENCE), Ok(told));
    }
}

/// Serves one connection; `None` when the test has ended.
fn serve(
    mut stream: TcpStream,
    tell: &mpsc::Sender<Told>,
    answer: &mpsc::Receiver<()>,
) -> Option<()> {
    let mut buffer = [0; 64];
    while let Ok(1..) = stream.read(&mut buffer) {
        tell.send(Told::Called).ok()?;
        answer.recv().ok()?;
        if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").is_err() {
            break;
        }
    }
    tell.send(Told::Ended).ok()
}

/// An upstream of one connection at a time, so that it shows what frees it.
fn upstream(addresses: Vec<SocketAddr>) -> Rc<Upstream> {
    let limits = UpstreamLimits {
        connect_timeout: PATIENCE,
        call_timeout: PATIENCE,
        connections_max: 1,
        pipeline_max: 1,
        queue_max: 10,
        idle_timeout: PATIENCE,
        head: RESPONSE_HEAD,
        drain_bytes_max: 0,
    };
    Upstream::new(limits, addresses, Arc::default(), Box::new(|| {}))
}

fn begin(upstream: &Rc<Upstream>) -> Call<Rc<Upstream>> {
    let request = Rc::new(Bytes::from_static(b"POST / HTTP/1.1\r\n\r\n"));
    upstream.call(&request, Content::Discarded, None, None, Rc::clone(upstream)).unwrap()
}

async fn end(call: Call<Rc<Upstream>>) -> Result<u16, CallError> {
    poll_fn(|context| call.poll(context)).await
}

/// Lets the tasks before this one begin to connect. That they have connected is seen only when the
/// worker waits.
async fn begin_to_connect() {
    monoio::spawn(async {}).await;
}

/// Runs `test` on each driver that this machine gives.
fn on_each_driver<F: Future<Output = ()>>(test: impl Fn() -> F) {
    for choice in [driver::Choice::Auto, driver::Choice::Epoll] {
        let (mut runtime, _) = driver::build(choice).unwrap();
        runtime.block_on(test());
    }
}

#[test]
fn an_idle_connection_to_an_address_that_is_no_longer_the_counters_ends_at_once() {
    on_each_driver(|| async {
        let [old, new] = [(); 2].map(|()| Peer::start());
        let upstream = upstream(vec![old.address]);
        old.answer();
        assert_eq!(end(begin(&upstream)).await, Ok(200));
        old.expect(Told::Called);
        upstream.set_addresses(vec![new.address]);
        old.expect(Told::Ended);
        new.answer();
        assert_eq!(end(begin(&upstream)).await, Ok(200));
        new.expect(Told::Called);
    });
}

#[test]
fn a_call_under_way_is_answered_by_the_old_address_and_the_waiting_ones_by_the_new() {
    on_each_driver(|| async {
        let [old, new] = [(); 2].map(|()| Peer::start());
        let upstream = upstream(vec![old.address]);
        let under_way = begin(&upstream);
        let called = Cell::new(false);
        while !called.get() {
            called.set(old.told.try_recv() == Ok(Told::Called));
            monoio::time::sleep(Duration::ZERO).await;
        }
        let waiting = begin(&upstream);
        upstream.set_addresses(vec![new.address]);
        old.answer();
        new.answer();
        assert_eq!(end(under_way).await, Ok(200));
        assert_eq!(end(waiting).await, Ok(200));
        old.expect(Told::Ended);
        new.expect(Told::Called);
    });
}

#[test]
fn a_connection_to_an_address_that_stays_is_kept() {
    on_each_driver(|| async {
        let [first, second] = [(); 2].map(|()| Peer::start());
        let upstream = upstream(vec![first.address]);
        for addresses in [vec![first.address], vec![second.address, first.address]] {
            upstream.set_addresses(addresses);
            first.answer();
            assert_eq!(end(begin(&upstream)).await, Ok(200));
            first.expect(Told::Called);
        }
        assert!(first.told.try_recv().is_err(), "its connection ended");
    });
}

#[test]
fn a_connection_that_is_opened_to_an_address_that_has_gone_carries_no_call() {
    on_each_driver(|| async {
        let [old, new] = [(); 2].map(|()| Peer::start());
        let upstream = upstream(vec![old.address]);
        let call = begin(&upstream);
        begin_to_connect().await;
        upstream.set_addresses(vec![new.address]);
        old.answer();
        new.answer();
        assert_eq!(end(call).await, Ok(200));
        new.expect(Told::Called);
        assert_ne!(old.told.try_recv(), Ok(Told::Called));
    });
}

#[test]
fn a_call_whose_address_refuses_is_tried_at_the_new_one() {
    on_each_driver(|| async {
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let new = Peer::start();
        let upstream = upstream(vec![gone]);
        let call = begin(&upstream);
        begin_to_connect().await;
        upstream.set_addresses(vec![new.address]);
        new.answer();
        assert_eq!(end(call).await, Ok(200));
        new.expect(Told::Called);
    });
}

/// Ends a connection's task by a panic, after `progress`.
#[track_caller]
fn check_panic(progress: fn(&mut PoolGuard), expected: CallError) {
    on_each_driver(|| async move {
        let upstream = upstream(vec![]);
        let id = upstream
            .pool
            .borrow_mut()
            .call(&CallBytes::default(), Content::Discarded, clock::now(), Stamp::default())
            .unwrap();
        let call = Call { holder: Rc::clone(&upstream), id };
        let Some(Action::Dial(connection)) = upstream.next_action() else { panic!("no dial") };
        let mut guard = PoolGuard::new(&upstream, connection);
        let task = async move {
            progress(&mut guard);
            panic!("on purpose");
        };
        task::spawn("counter connection", &upstream.metrics, task).await;
        assert_eq!(end(call).await, Err(expected));
        assert_eq!(upstream.counts.connections.read(), 0);
        assert!(upstream.is_empty());
    });
}

#[test]
fn a_connection_whose_task_panics_leaves_the_pool_and_ends_its_call() {
    /// A descriptor that is never open, so that a cut finds nothing.
    const NO_SOCKET: i32 = -1;
    let connected = |guard: &mut PoolGuard| {
        guard.connected(SocketAddr::from(([127, 0, 0, 1], 1)), NO_SOCKET);
    };
    check_panic(|_| {}, CallError::NoConnection(DialError::Other));
    check_panic(connected, CallError::NoConnection(DialError::Other));
    let taken_up = |guard: &mut PoolGuard| {
        guard.connected(SocketAddr::from(([127, 0, 0, 1], 1)), NO_SOCKET);
        assert!(guard.take_request().is_some());
    };
    check_panic(taken_up, CallError::Broken);
}

#[test]
fn other_limits_hold_from_then_on() {
    on_each_driver(|| async {
        let peer = Peer::start();
        let upstream = upstream(vec![peer.address]);
        let calls = [begin(&upstream), begin(&upstream)];
        assert_eq!(upstream.counts.connections.read(), 1);
        let mut limits = *upstream.pool.borrow().limits();
        limits.connections_max = 2;
        // Less than what the peer answers.
        limits.head.head_bytes_max = 20;
        upstream.set_limits(limits);
        assert_eq!(upstream.counts.connections.read(), 2);
        for call in calls {
            peer.answer();
            assert_eq!(end(call).await, Err(CallError::Broken));
        }
    });
}
