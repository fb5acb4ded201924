//! Those who watch the server: each is sent its figures twice a second, as server-sent events
//! (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).
//!
//! All share the bytes of one event. A watcher who is slow misses events and is cut in the end, and nobody is watched
//! for longer than [`WATCH_MAX`]: an event says so, and a browser comes back by itself.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};

use super::stats::Sources;
use crate::{
    connection::{Feed, Response},
    http::render,
    runtime::clock::{self, Moment},
};

/// Watchers at a time. Far fewer than the admin listener's connections, so that probes and scrapers find one.
pub(super) const WATCHERS_MAX: usize = 16;
/// How often the figures are sent.
const INTERVAL: Duration = Duration::from_millis(500);
/// How long a watcher may take over one event.
const EVENT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a watcher stays.
const WATCH_MAX: Duration = Duration::from_secs(600);
/// What is sent before the end of a stream that lasted that long, so that a page knows it from a server that has gone.
pub(super) const RENEW: &str =
    "retry: 100\nevent: renew\ndata: this stream is over; connect again\n\n";

const _: () = assert!(INTERVAL.as_millis() < EVENT_TIMEOUT.as_millis());

/// All watchers.
pub(super) struct Watchers(Rc<Shared>);

/// What they have in common.
struct Shared {
    sources: Arc<Sources>,
    /// The last event, which is none before the first.
    event: RefCell<Bytes>,
    /// How many events there were.
    events: Cell<u64>,
    next_event: Cell<Moment>,
    watching: Cell<usize>,
    /// The server stops: no events come any more.
    ended: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

/// One of them.
struct Watcher {
    shared: Rc<Shared>,
    /// The event that it has got last.
    seen: u64,
    /// When it got that one, until it has taken it.
    given: Option<Moment>,
    /// When it has to go; `None` once it was told so.
    leaves: Option<Moment>,
}

impl Watchers {
    /// Nobody watches these yet.
    pub(super) fn new(sources: Arc<Sources>) -> Self {
        Self(Rc::new(Shared {
            sources,
            event: RefCell::default(),
            events: Cell::default(),
            next_event: Cell::new(clock::now()),
            watching: Cell::default(),
            ended: Cell::default(),
            waiting: RefCell::default(),
        }))
    }

    /// The answer to one who wants to watch: the first event follows at once.
    pub(super) fn watch(&self) -> Response {
        let shared = &self.0;
        if shared.ended.get() {
            return refused("the server stops\n");
        }
        if shared.watching.get() >= WATCHERS_MAX {
            return refused("too many watch already\n");
        }
        let now = clock::now();
        if shared.next_event.get() <= now {
            shared.make_event(now);
        }
        shared.watching.set(shared.watching.get() + 1);
        let leaves = Some(now.after(WATCH_MAX));
        let watcher = Watcher { shared: Rc::clone(shared), seen: 0, given: None, leaves };
        let fields = vec![
            (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        ];
        Response::stream(fields, Box::new(watcher))
    }

    /// Time has passed. Without watchers there is nothing to do.
    pub(super) fn tick(&self) {
        let shared = &self.0;
        let now = clock::now();
        let stops = shared.sources.readiness.stops.load(Ordering::Acquire);
        let due = shared.watching.get() > 0 && shared.next_event.get() <= now;
        if shared.ended.get() || !(due || stops) {
            return;
        }
        shared.make_event(now);
        shared.ended.set(stops);
        let waiting = shared.waiting.take();
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl Shared {
    fn make_event(&self, now: Moment) {
        // Numbers and texts: they can always be written.
        if let Ok(json) = serde_json::to_string(&self.sources.snapshot()) {
            self.event.replace(format!("retry: 1000\ndata: {json}\n\n").into());
            self.events.set(self.events.get() + 1);
        }
        self.next_event.set(now.after(INTERVAL));
    }
}

impl Feed for Watcher {
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.poll_at(clock::now(), context)
    }
}

impl Watcher {
    fn poll_at(&mut self, now: Moment, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let slow = self.given.take().is_some_and(|given| now.since(given) > EVENT_TIMEOUT);
        let Some(leaves) = self.leaves.filter(|_| !slow) else { return Poll::Ready(None) };
        if leaves <= now {
            self.leaves = None;
            return Poll::Ready(Some(Bytes::from_static(RENEW.as_bytes())));
        }
        let Shared { events, event, ended, waiting, .. } = &*self.shared;
        if self.seen != events.get() {
            self.seen = events.get();
            self.given = Some(now);
            return Poll::Ready(Some(event.borrow().clone()));
        }
        if ended.get() {
            return Poll::Ready(None);
        }
        waiting.borrow_mut().push(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.watching.set(self.shared.watching.get() - 1);
    }
}

fn refused(reason: &'static str) -> Response {
    let mut fields = render::text_fields();
    fields.push((header::RETRY_AFTER, HeaderValue::from_static("5")));
    Response::new(StatusCode::SERVICE_UNAVAILABLE, fields, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watchers() -> Watchers {
        Watchers::new(Arc::new(Sources {
            readiness: Arc::default(),
            started: std::time::Instant::now(),
            workers: vec![],
            counters: vec![],
            addresses: Arc::default(),
            bundled: None,
            access_log: None,
        }))
    }

    /// One who has not got an event yet.
    fn watcher(watchers: &Watchers) -> Watcher {
        assert!(!watchers.watch().is_error());
        let shared = Rc::clone(&watchers.0);
        shared.watching.set(shared.watching.get() + 1);
        Watcher { shared, seen: 0, given: None, leaves: Some(clock::now().after(WATCH_MAX)) }
    }

    fn poll(watcher: &mut Watcher) -> Poll<Option<Bytes>> {
        watcher.poll_piece(&mut Context::from_waker(Waker::noop()))
    }

    #[track_caller]
    fn check_gets_event(watcher: &mut Watcher) {
        assert!(matches!(poll(watcher), Poll::Ready(Some(_))));
    }

    #[test]
    fn only_so_many_may_watch() {
        let watchers = watchers();
        let mut streams: Vec<_> = (0..WATCHERS_MAX).map(|_| watchers.watch()).collect();
        assert!(streams.iter().all(|response| !response.is_error()));
        assert!(watchers.watch().is_error());
        // One who leaves makes room.
        streams.pop();
        assert!(!watchers.watch().is_error());
        assert_eq!(watchers.0.watching.get(), WATCHERS_MAX - 1);
    }

    #[test]
    fn a_watcher_gets_each_event_once_and_misses_old_ones() {
        let watchers = watchers();
        let mut watcher = watcher(&watchers);
        check_gets_event(&mut watcher);
        assert!(poll(&mut watcher).is_pending());
        (0..5).for_each(|_| watchers.0.make_event(clock::now()));
        check_gets_event(&mut watcher);
        assert!(poll(&mut watcher).is_pending());
    }

    #[test]
    fn a_slow_watcher_is_cut() {
        let watchers = watchers();
        let now = clock::now();
        let mut patient = watcher(&watchers);
        check_gets_event(&mut patient);
        watchers.0.make_event(now);
        check_gets_event(&mut patient);
        watchers.0.make_event(now);
        let mut slow = watcher(&watchers);
        check_gets_event(&mut slow);
        // It has taken the event only now.
        let late = slow.given.unwrap().after(EVENT_TIMEOUT);
        assert!(matches!(
            slow.poll_at(late, &mut Context::from_waker(Waker::noop())),
            Poll::Pending
        ));
        slow.given = Some(now);
        let late = now.after(EVENT_TIMEOUT + INTERVAL);
        let polled = slow.poll_at(late, &mut Context::from_waker(Waker::noop()));
        assert!(matches!(polled, Poll::Ready(None)));
    }

    #[test]
    fn one_who_stays_too_long_is_told_so_and_cut() {
        let watchers = watchers();
        let mut old = watcher(&watchers);
        check_gets_event(&mut old);
        // It has taken that one.
        assert!(poll(&mut old).is_pending());
        let context = &mut Context::from_waker(Waker::noop());
        let leaves = old.leaves.unwrap();
        let Poll::Ready(Some(told)) = old.poll_at(leaves, context) else { panic!("not told") };
        assert_eq!(told, RENEW);
        assert!(matches!(old.poll_at(leaves, context), Poll::Ready(None)));
    }

    #[test]
    fn the_stop_ends_all_streams_after_a_last_event() {
        let watchers = watchers();
        let mut watcher = watcher(&watchers);
        check_gets_event(&mut watcher);
        watchers.0.sources.readiness.stops.store(true, Ordering::Release);
        watchers.tick();
        let Poll::Ready(Some(event)) = poll(&mut watcher) else { panic!("no last event") };
        assert!(event.starts_with(b"retry: 1000\ndata: {") && event.ends_with(b"}\n\n"));
        assert!(String::from_utf8_lossy(&event).contains("\"state\":\"stopping\""));
        assert!(matches!(poll(&mut watcher), Poll::Ready(None)));
        assert!(watchers.watch().is_error());
    }
}
