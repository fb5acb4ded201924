//! Routes that are replaced while their visits are in progress.

use std::{
    future::poll_fn,
    io::{Read, Write},
    net::TcpListener,
    sync::mpsc,
    thread,
};

use super::*;
use crate::{
    config::internal_client_limits,
    http::request::HeadScan,
    runtime::driver,
    upstream::{Batching, UpstreamLimits},
};

/// A counter that answers each call when it is told to.
fn gated_counter() -> (SocketAddr, mpsc::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (open, gate) = mpsc::channel();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        while let Ok(1..) = stream.read(&mut [0; 1024])
            && gate.recv().is_ok()
        {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
        }
    });
    (address, open)
}

fn upstream(address: SocketAddr, metrics: &Arc<WorkerMetrics>) -> Rc<Upstream> {
    let limits = UpstreamLimits {
        connect_timeout: std::time::Duration::from_secs(60),
        call_timeout: std::time::Duration::from_secs(60),
        connections_max: 1,
        pipeline_max: 1,
        queue_max: 10,
        idle_timeout: std::time::Duration::from_secs(60),
        head: crate::config::RESPONSE_HEAD,
        drain_bytes_max: 0,
    };
    Upstream::new(limits, vec![address], Arc::clone(metrics), Box::new(|| {}))
}

/// Routes whose visits are welcomed with a text.
fn routes(welcomes: &[(&str, &'static str)]) -> Arc<RouteSet> {
    routes_of(welcomes, None)
}

/// The same, where one call registers so many visits.
fn routes_of(welcomes: &[(&str, &'static str)], batch_max: Option<usize>) -> Arc<RouteSet> {
    const CALL: &[u8] = b"POST /{n} HTTP/1.1\r\nhost: a\r\n\r\n";
    let page = |text: &'static str| Page {
        content_type: render::TEXT_PLAIN,
        body: text.as_bytes().into(),
    };
    let route = |&(path, welcome): &(&str, &'static str)| Route {
        path: path.to_owned(),
        kind: RouteKind::Visits(Box::new(Visits {
            methods: vec![Method::Get, Method::Post],
            counters: vec![VisitCounter {
                upstream: 0,
                call: Bytes::from_static(CALL),
                batching: batch_max.and_then(|max| Batching::of(CALL, max)),
                url: "http://a/".into(),
            }],
            pages: Pages { welcome: page(welcome), sorry: page("sorry") },
        })),
    };
    let rules = Rules { accept: Accept::Success, sorry_status: StatusCode::OK, traces: None };
    Arc::new(RouteSet { rules, routes: welcomes.iter().map(route).collect() })
}

fn admit(site: &Site, request: &str) -> Result<Admitted, Response> {
    let limits = internal_client_limits(1);
    let parsed = crate::http::request::parse(
        request.as_bytes(),
        &mut HeadScan::default(),
        &limits.head,
        limits.body_bytes_max,
    );
    site.admit(&parsed.unwrap().unwrap().request)
}

fn get(site: &Site, path: &str) -> Result<Admitted, Response> {
    admit(site, &format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"))
}

/// The answer, once there is one.
async fn answer(site: &Site, registration: &mut Registration) -> Bytes {
    poll_fn(|context| site.poll_response(registration, context)).await.content().clone()
}

/// A visit that is being registered.
fn start(site: &Site, admitted: Result<Admitted, Response>) -> Registration {
    let started = admitted.and_then(|route| site.start(route));
    started.unwrap_or_else(|response| panic!("it is in progress, not {response:?}"))
}

#[test]
fn a_visit_ends_with_the_route_that_it_began_with() {
    let (mut runtime, _) = driver::build(driver::Choice::Auto).unwrap();
    runtime.block_on(async {
        let (address, open) = gated_counter();
        let metrics = Arc::<WorkerMetrics>::default();
        let upstreams = vec![upstream(address, &metrics)];
        let before = routes(&[("/stays", "old"), ("/goes", "gone")]);
        let site = Site::new(upstreams, &before, Arc::clone(&metrics), Box::new(|_| {}), 0);
        let mut underway = ["/stays", "/goes"].map(|path| start(&site, get(&site, path)));
        // One whose body is still being read.
        let admitted = admit(&site, "POST /goes HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n");
        let old = Rc::downgrade(underway[1].route());

        site.on_message(Message::Routes(routes(&[("/comes", "new"), ("/stays", "changed")])));
        let not_found = get(&site, "/goes").err().unwrap();
        assert!(not_found.is_error() && not_found.content() == "there is no such page\n");
        assert!(get(&site, "/comes").is_ok());
        (0..3).for_each(|_| open.send(()).unwrap());
        for (visit, welcome) in underway.iter_mut().zip(["old", "gone"]) {
            assert_eq!(answer(&site, visit).await, welcome);
        }
        let mut last = start(&site, admitted);
        assert_eq!(answer(&site, &mut last).await, "gone");
        assert_eq!((metrics.started.read(), metrics.welcomed.read()), (3, 3));

        // A route with a visit left stays, and is freed with the last.
        assert!(old.upgrade().is_some());
        drop(underway);
        assert!(old.upgrade().is_some());
        drop(last);
        assert!(old.upgrade().is_none());

        let mut visit = start(&site, get(&site, "/stays"));
        open.send(()).unwrap();
        assert_eq!(answer(&site, &mut visit).await, "changed");
    });
}

#[test]
fn a_visit_of_a_route_that_is_gone_is_abandoned_in_the_same_book() {
    let (mut runtime, _) = driver::build(driver::Choice::Auto).unwrap();
    runtime.block_on(async {
        let (address, _open) = gated_counter();
        let metrics = Arc::<WorkerMetrics>::default();
        let upstreams = vec![upstream(address, &metrics)];
        let before = routes(&[("/", "old")]);
        let site = Site::new(upstreams, &before, Arc::clone(&metrics), Box::new(|_| {}), 0);
        let visit = start(&site, get(&site, "/"));
        site.on_message(Message::Routes(routes(&[])));
        drop(visit);
        assert_eq!((metrics.started.read(), metrics.abandoned.read()), (1, 1));
    });
}

#[test]
fn a_counter_that_is_called_otherwise_is_the_same_one() {
    let (mut runtime, _) = driver::build(driver::Choice::Auto).unwrap();
    runtime.block_on(async {
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let metrics = Arc::<WorkerMetrics>::default();
        let upstreams = vec![upstream(nobody, &metrics)];
        let reports = Rc::new(RefCell::new(Vec::new()));
        let told = Rc::clone(&reports);
        let report = Box::new(move |failures: Failures| told.borrow_mut().push(failures));
        let before = routes(&[("/", "welcome")]);
        let site = Site::new(upstreams, &before, Arc::clone(&metrics), report, 0);
        let mut visit = start(&site, get(&site, "/"));
        assert_eq!(answer(&site, &mut visit).await, "sorry");
        let registered = |reports: &RefCell<Vec<Failures>>| {
            reports.take().into_iter().map(|failures| failures.registered).collect::<Vec<_>>()
        };
        assert_eq!(registered(&reports), [false]);
        drop(visit);

        // What was reported of it has an end, though its calls are others.
        site.on_message(Message::Routes(routes_of(&[("/", "welcome")], Some(10))));
        let (address, open) = gated_counter();
        site.on_message(Message::Addresses(0, vec![address]));
        open.send(()).unwrap();
        let mut visit = start(&site, get(&site, "/"));
        assert_eq!(answer(&site, &mut visit).await, "welcome");
        site.expire();
        assert_eq!(registered(&reports), [true]);
    });
}
