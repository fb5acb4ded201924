//! What the pool decides, an event at a time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Wake,
};

use super::*;
use crate::{config::RESPONSE_HEAD, runtime::clock};

/// Counts how often a caller is woken.
#[derive(Default)]
pub(super) struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Wakes {
    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// An action that can be compared. To collect the actions wakes the callers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    Dial(ConnectionId),
    Send(ConnectionId),
    Cut(ConnectionId),
    Woken,
    Breaker(Change),
}

impl Pool {
    pub(super) fn actions(&mut self) -> Vec<Done> {
        let done = |action| match action {
            Action::Dial(id) => Some(Done::Dial(id)),
            Action::Send(id) => Some(Done::Send(id)),
            Action::Cut(id) => Some(Done::Cut(id)),
            Action::Breaker(change) => Some(Done::Breaker(change)),
            // Only counted.
            Action::Waited(_) => None,
            Action::Wake(waker) => {
                waker.wake();
                Some(Done::Woken)
            }
        };
        std::iter::from_fn(|| self.next_action()).filter_map(done).collect()
    }

    /// What must always hold. Every collection is counted again.
    #[track_caller]
    pub(super) fn check_invariants(&self, calls: &[CallId]) {
        let count = |state: fn(&ConnectionState) -> bool| {
            self.connections.values().filter(|connection| state(&connection.state)).count()
        };
        assert_eq!(count(|state| *state == ConnectionState::Dialing), self.dialing);
        assert_eq!(count(|state| matches!(state, ConnectionState::Idle(_))), self.idle.len());
        let idle = self.idle.iter().map(|id| match self.connections[*id].state {
            ConnectionState::Idle(since) => since,
            state => panic!("{id:?} is idle and {state:?}"),
        });
        assert!(idle.is_sorted(), "the one used last is not the last");
        let state = |call: CallId| self.calls.get(call.0).map(|call| call.state);
        let queue: Vec<_> = self.queue.iter().map(|queued| queued.id).collect();
        for (place, call) in queue.iter().enumerate() {
            assert_eq!(state(*call), Some(CallState::Queued));
            assert!(!queue[..place].contains(call), "{call:?} twice");
        }
        for (id, connection) in &self.connections {
            self.check_calls(id, connection);
            assert_eq!(connection.address.is_none(), connection.state == ConnectionState::Dialing);
        }
        for call in calls {
            match state(*call) {
                Some(CallState::Queued) => assert!(queue.contains(call), "{call:?} is lost"),
                Some(CallState::Assigned(id)) => {
                    let on = self.connections[id].calls.iter().filter(|other| *other == call);
                    assert_eq!(on.count(), 1, "{call:?} is on {id:?}");
                }
                _ => {}
            }
            let ended = matches!(state(*call), None | Some(CallState::Ended(_)));
            assert_eq!(self.calls.queue_of(call.0).is_none(), ended, "{call:?} has a deadline");
        }
    }

    /// What must always hold of a connection and its calls.
    #[track_caller]
    fn check_calls(&self, id: ConnectionId, connection: &PooledConnection) {
        let PooledConnection { state, calls, taken, late, pipelines, .. } = connection;
        let ended = |call: &&CallId| !self.waits_on(**call, id);
        assert_eq!(calls.iter().filter(ended).count(), *late, "{connection:?}");
        assert_eq!(calls.iter().skip(*taken).filter(ended).count(), 0, "{connection:?}");
        assert_eq!(*state == ConnectionState::Busy, !calls.is_empty(), "{connection:?}");
        assert!(
            *taken <= calls.len() && (*pipelines || calls.len() - taken <= 1),
            "{connection:?}"
        );
        assert!(*late < calls.len() || calls.is_empty(), "nobody waits for {connection:?}");
        let most = self.limits.pipeline_max;
        assert_eq!(connection.is_roomy, self.roomy.contains(&id));
        assert!(!connection.is_roomy || connection.has_room(most), "{connection:?}");
    }
}

pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(5);
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) fn limits(connections_max: usize, queue_max: usize) -> UpstreamLimits {
    UpstreamLimits {
        connect_timeout: Duration::from_secs(1),
        call_timeout: CALL_TIMEOUT,
        connections_max,
        pipeline_max: 1,
        queue_max,
        idle_timeout: IDLE_TIMEOUT,
        head: RESPONSE_HEAD,
        drain_bytes_max: 0,
    }
}

pub(super) fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// An answer whose content is discarded.
pub(super) const fn answer(status: u16, reusable: bool) -> Answer {
    Answer { status, reusable, pipelines: reusable, content: None, added: None }
}

/// A pool and the time.
struct World {
    pool: Pool,
    now: Moment,
    wakes: Arc<Wakes>,
}

fn world(connections_max: usize, queue_max: usize) -> World {
    let now = clock::now();
    let pool = Pool::new(limits(connections_max, queue_max), vec![address(1)], now);
    World { pool, now, wakes: Arc::default() }
}

/// What a caller is told, who else waits.
pub(super) fn outcome(
    pool: &mut Pool,
    wakes: &Arc<Wakes>,
    call: CallId,
) -> Option<Result<u16, CallError>> {
    let waker = Waker::from(Arc::clone(wakes));
    match pool.poll(call, &mut Context::from_waker(&waker)) {
        Poll::Ready(outcome) => Some(outcome),
        Poll::Pending => None,
    }
}

impl World {
    /// Begins a call whose caller waits for it.
    fn call(&mut self) -> CallId {
        let call = self
            .pool
            .call(&CallBytes::default(), Content::Discarded, self.now, Stamp::default())
            .unwrap();
        assert_eq!(self.outcome(call), None);
        call
    }

    fn outcome(&mut self, call: CallId) -> Option<Result<u16, CallError>> {
        outcome(&mut self.pool, &self.wakes, call)
    }

    #[track_caller]
    fn expect<const COUNT: usize>(&mut self, expected: [Done; COUNT]) {
        assert_eq!(self.pool.actions(), expected);
    }

    /// The connections to dial; there must be no other actions.
    #[track_caller]
    fn dials<const COUNT: usize>(&mut self) -> [ConnectionId; COUNT] {
        let dials = self.pool.actions().into_iter().map(|done| match done {
            Done::Dial(id) => id,
            other => panic!("{other:?}"),
        });
        dials.collect::<Vec<_>>().try_into().unwrap()
    }

    fn connected(&mut self, id: ConnectionId) {
        self.pool.connected(id, address(1), self.now);
    }

    fn take_request(&mut self, id: ConnectionId) -> bool {
        self.pool.take_request(id, clock::now).is_some()
    }

    /// The connection takes its call up and is answered.
    #[track_caller]
    fn exchange(&mut self, id: ConnectionId, reusable: bool) -> bool {
        assert!(self.take_request(id));
        self.pool.answered(id, answer(204, reusable), self.now)
    }

    fn after(&mut self, duration: Duration) {
        self.now = self.now.after(duration);
        self.pool.expire(self.now);
    }

    /// Connections that are idle and have completed a call, the one used last at the end.
    fn idle<const COUNT: usize>(&mut self) -> [ConnectionId; COUNT] {
        let calls = [(); COUNT].map(|()| self.call());
        let ids = self.dials::<COUNT>();
        ids.iter().for_each(|id| self.connected(*id));
        ids.iter().for_each(|id| assert!(self.exchange(*id, true)));
        for call in calls {
            assert!(self.pool.dropped(call).is_none(), "it has ended");
        }
        self.pool.actions();
        ids
    }
}

#[test]
fn a_call_waits_for_a_dial_and_is_answered() {
    let mut world = world(2, 0);
    let call = world.call();
    let [id] = world.dials();
    world.connected(id);
    world.expect([Done::Send(id)]);
    assert!(world.take_request(id) && !world.take_request(id), "it is sent once");
    assert!(world.pool.answered(id, answer(204, true), world.now));
    world.expect([Done::Woken]);
    assert_eq!((world.outcome(call), world.wakes.count()), (Some(Ok(204)), 1));
    world.pool.dropped(call);
    world.pool.closed(id, world.now);
    assert!(world.pool.is_empty());
}

#[test]
fn the_connection_used_last_is_used_first() {
    let mut world = world(3, 0);
    let [a, b, c] = world.idle();
    for id in [c, b, a] {
        world.call();
        world.expect([Done::Send(id)]);
    }
    for id in [b, a] {
        assert!(world.exchange(id, true));
    }
    world.pool.actions();
    world.call();
    world.expect([Done::Send(a)]);
}

#[test]
fn a_connection_is_dialed_for_each_waiting_call_up_to_the_limit() {
    let mut world = world(2, 1);
    let calls = [world.call(), world.call(), world.call()];
    let [a, _] = world.dials();
    assert_eq!(
        world.pool.call(&CallBytes::default(), Content::Discarded, world.now, Stamp::default()),
        Err(NotBegun::Overloaded)
    );
    world.connected(a);
    world.expect([Done::Send(a)]);
    // One is dialed, one waits beside it.
    assert_eq!(
        world.pool.call(&CallBytes::default(), Content::Discarded, world.now, Stamp::default()),
        Err(NotBegun::Overloaded)
    );
    assert!(world.exchange(a, true));
    world.expect([Done::Woken, Done::Send(a)]);
    world.call();
    // A caller that leaves makes room.
    world.pool.dropped(calls[2]);
    world.call();
    assert_eq!(
        world.pool.call(&CallBytes::default(), Content::Discarded, world.now, Stamp::default()),
        Err(NotBegun::Overloaded)
    );
}

#[test]
fn a_failed_dial_fails_a_call_that_no_other_connection_will_take() {
    let mut world = world(2, 0);
    let calls = [world.call(), world.call()];
    let [a, b] = world.dials();
    world.pool.dial_failed(a, DialError::Refused, world.now);
    let refused = Some(Err(CallError::NoConnection(DialError::Refused)));
    assert_eq!(calls.map(|call| world.outcome(call)), [refused, None]);
    world.expect([Done::Woken]);
    world.connected(b);
    world.expect([Done::Send(b)]);
}

#[test]
fn a_failed_dial_beside_an_established_connection_fails_no_call_and_the_next_waits() {
    let mut world = world(3, 3);
    let [a] = world.idle();
    let calls = [world.call(), world.call()];
    let [Done::Send(_), Done::Dial(b)] = world.pool.actions()[..] else { panic!("no dial") };
    world.pool.dial_failed(b, DialError::Refused, world.now);
    world.call();
    world.after(DIAL_PAUSE - Duration::from_millis(1));
    world.expect([]);
    world.after(Duration::from_millis(1));
    let [_, _] = world.dials();
    assert!(world.exchange(a, true));
    world.expect([Done::Woken, Done::Send(a)]);
    assert_eq!(calls.map(|call| world.outcome(call)), [Some(Ok(204)), None]);
    // When no connection is established any more, the pause is over.
    world.take_request(a);
    world.pool.closed(a, world.now);
    assert_eq!(world.outcome(calls[1]), Some(Err(CallError::Broken)));
}

#[test]
fn a_call_that_was_not_sent_gets_another_connection_before_all_others() {
    for taken_up in [false, true] {
        let mut world = world(1, 3);
        let [id] = world.idle();
        let (first, second) = (world.call(), world.call());
        if taken_up {
            assert!(world.take_request(id));
            world.pool.not_sent(id, 1, world.now);
        }
        world.pool.actions();
        world.pool.closed(id, world.now);
        let [id] = world.dials();
        world.connected(id);
        assert!(world.exchange(id, true));
        assert_eq!([first, second].map(|call| world.outcome(call)), [Some(Ok(204)), None]);
    }
}

#[test]
fn a_call_that_found_no_connection_free_tells_once_since_when_it_waited() {
    /// Of the last event, the times since which calls had waited.
    fn waits(pool: &mut Pool) -> Vec<Stamp> {
        let wait = |action| match action {
            Action::Waited(since) => Some(since),
            _ => None,
        };
        std::iter::from_fn(|| pool.next_action()).filter_map(wait).collect()
    }
    let mut world = world(1, 3);
    let [id] = world.idle();
    let began = [10, 11, 12].map(Stamp::new);
    for began in began {
        world.pool.call(&CallBytes::default(), Content::Discarded, world.now, began).unwrap();
    }
    assert_eq!(waits(&mut world.pool), [], "one had a connection at once, two wait");
    for expected in [vec![began[1]], vec![began[2]]] {
        assert!(world.take_request(id) && world.pool.answered(id, answer(204, true), world.now));
        assert_eq!(waits(&mut world.pool), expected);
    }
    // It has had its connection, and gets another one.
    world.pool.closed(id, world.now);
    let [id] = world.dials();
    world.pool.connected(id, address(1), world.now);
    assert_eq!(waits(&mut world.pool), []);
    assert!(world.take_request(id));
}

#[test]
fn a_call_that_was_not_sent_takes_an_idle_connection() {
    let mut world = world(2, 0);
    let [a, b] = world.idle();
    world.call();
    world.expect([Done::Send(b)]);
    world.pool.closed(b, world.now);
    world.expect([Done::Send(a)]);
}

#[test]
fn a_connection_that_never_worked_fails_its_call() {
    let mut world = world(2, 0);
    let call = world.call();
    let [id] = world.dials();
    world.connected(id);
    assert!(world.take_request(id));
    world.pool.not_sent(id, 1, world.now);
    world.pool.closed(id, world.now);
    let other = CallError::NoConnection(DialError::Other);
    assert_eq!(world.outcome(call), Some(Err(other)));
    world.expect([Done::Send(id), Done::Woken]);
}

#[test]
fn a_call_that_may_have_been_sent_is_not_sent_again() {
    let mut world = world(2, 0);
    let [id] = world.idle();
    let call = world.call();
    assert!(world.take_request(id));
    world.pool.closed(id, world.now);
    assert_eq!(world.outcome(call), Some(Err(CallError::Broken)));
    world.expect([Done::Send(id), Done::Woken]);
}

#[test]
fn a_call_that_takes_too_long_cuts_its_connection_whose_answer_comes_too_late() {
    let mut world = world(1, 1);
    let [id] = world.idle();
    let (sent, queued) = (world.call(), world.call());
    assert!(world.take_request(id));
    world.after(CALL_TIMEOUT - Duration::from_millis(1));
    world.expect([Done::Send(id)]);
    world.after(Duration::from_millis(1));
    world.expect([Done::Cut(id), Done::Woken, Done::Woken]);
    let late = world.call();
    assert!(!world.pool.answered(id, answer(204, true), world.now));
    assert!(!world.take_request(id));
    let timed_out = Some(Err(CallError::TimedOut));
    let outcomes = [sent, queued, late].map(|call| world.outcome(call));
    assert_eq!(outcomes, [timed_out, timed_out, None]);
}

#[test]
fn a_call_that_was_not_taken_up_in_time_is_not_sent() {
    let mut world = world(1, 0);
    let [id] = world.idle();
    let call = world.call();
    world.after(CALL_TIMEOUT);
    assert_eq!(world.outcome(call), Some(Err(CallError::TimedOut)));
    assert!(!world.take_request(id));
    world.expect([Done::Send(id), Done::Cut(id), Done::Woken]);
}

#[test]
fn an_abandoned_call_keeps_its_connection_until_it_is_answered_or_takes_too_long() {
    for answered in [true, false] {
        let mut world = world(1, 0);
        let [id] = world.idle();
        let call = world.call();
        assert!(world.pool.dropped(call).is_some());
        assert!(world.take_request(id));
        world.expect([Done::Send(id)]);
        if answered {
            assert!(world.pool.answered(id, answer(204, true), world.now));
            world.expect([]);
        } else {
            world.after(CALL_TIMEOUT);
            world.expect([Done::Cut(id)]);
        }
        world.pool.closed(id, world.now);
        assert!(world.pool.is_empty());
    }
}

#[test]
fn an_abandoned_call_that_was_not_sent_is_not_sent_elsewhere() {
    let mut world = world(2, 0);
    let [_, b] = world.idle();
    let call = world.call();
    world.pool.dropped(call);
    world.pool.closed(b, world.now);
    world.expect([Done::Send(b)]);
}

#[test]
fn a_connection_that_is_not_reusable_closes() {
    let mut world = world(1, 1);
    let [id] = world.idle();
    let (_, waiting) = (world.call(), world.call());
    assert!(!world.exchange(id, false));
    world.expect([Done::Send(id), Done::Woken]);
    assert!(!world.take_request(id));
    world.pool.closed(id, world.now);
    let [id] = world.dials();
    world.connected(id);
    assert!(world.exchange(id, true));
    assert_eq!(world.outcome(waiting), Some(Ok(204)));
}

#[test]
fn idle_connections_are_cut_in_time_the_longest_idle_first() {
    let mut world = world(2, 1);
    let [a, b] = world.idle();
    world.after(Duration::from_secs(1));
    world.call();
    assert!(world.exchange(b, true));
    world.pool.actions();
    world.after(IDLE_TIMEOUT - Duration::from_secs(1));
    world.expect([Done::Cut(a)]);
    world.after(Duration::from_secs(1));
    world.expect([Done::Cut(b)]);
    world.call();
    world.pool.closed(a, world.now);
    world.pool.closed(b, world.now);
    let [_] = world.dials();
}

#[test]
fn connections_to_an_address_that_is_no_longer_the_counters_close() {
    let mut world = world(2, 0);
    let [idle, busy] = world.idle();
    world.call();
    assert!(world.take_request(busy));
    world.pool.actions();
    world.pool.set_addresses(vec![address(2), address(1)], world.now);
    world.expect([]);
    world.pool.set_addresses(vec![address(2)], world.now);
    world.expect([Done::Cut(idle)]);
    assert!(!world.pool.answered(busy, answer(204, true), world.now));
    world.expect([Done::Woken]);
}

#[test]
fn new_time_outs_apply_to_existing_calls_and_connections() {
    let mut world = world(2, 0);
    let [idle, busy] = world.idle();
    let call = world.call();
    assert!(world.take_request(busy));
    world.pool.actions();
    world.after(Duration::from_secs(1));
    let second = Duration::from_secs(1);
    let shorter = UpstreamLimits { call_timeout: second, ..limits(2, 0) };
    world.pool.set_limits(shorter, world.now);
    world.expect([Done::Cut(busy), Done::Woken]);
    assert_eq!(world.outcome(call), Some(Err(CallError::TimedOut)));
    world.pool.set_limits(UpstreamLimits { idle_timeout: second, ..shorter }, world.now);
    world.expect([Done::Cut(idle)]);
}

#[test]
fn a_new_maximum_of_connections_applies_as_calls_end() {
    let mut world = world(1, 3);
    let calls = [world.call(), world.call(), world.call()];
    let [a] = world.dials();
    world.connected(a);
    world.pool.actions();
    world.pool.set_limits(limits(3, 3), world.now);
    let [b, c] = world.dials();
    world.connected(b);
    world.connected(c);
    world.pool.actions();
    world.pool.set_limits(limits(2, 3), world.now);
    world.expect([]);
    assert!(!world.exchange(a, true));
    world.pool.closed(a, world.now);
    assert!(world.exchange(b, true));
    assert!(world.exchange(c, true));
    assert_eq!(calls.map(|call| world.outcome(call)), [Some(Ok(204)); 3]);
}

#[test]
fn calls_fail_at_once_after_a_run_of_failures() {
    let mut world = world(1, 0);
    let mut failures = 0;
    let opened = loop {
        world.call();
        let [id] = world.dials();
        world.pool.dial_failed(id, DialError::Refused, world.now);
        failures += 1;
        match world.pool.actions()[..] {
            [Done::Woken] => {}
            [Done::Woken, Done::Breaker(change)] => break change,
            ref other => panic!("{other:?}"),
        }
    };
    assert_eq!((opened, failures), (Change::Opened, 10));
    assert_eq!(world.pool.standing(world.now), Standing::Failing);
    assert_eq!(
        world.pool.call(&CallBytes::default(), Content::Discarded, world.now, Stamp::default()),
        Err(NotBegun::Failing)
    );
    world.after(Duration::from_secs(1));
    assert_eq!(world.pool.standing(world.now), Standing::Open);
    world.call();
    assert_eq!(world.pool.standing(world.now), Standing::Failing);
    let [id] = world.dials();
    world.connected(id);
    assert!(world.exchange(id, true));
    world.expect([Done::Send(id), Done::Woken, Done::Breaker(Change::Closed)]);
}

#[test]
fn a_call_from_another_counter_keeps_its_deadline() {
    let mut world = world(1, 10);
    let here = world.call();
    let since = world.now.before(CALL_TIMEOUT - Duration::from_millis(5));
    let moved = world
        .pool
        .call_since(&CallBytes::default(), Content::Discarded, since, world.now, Stamp::default())
        .unwrap();
    assert_eq!(world.outcome(moved), None);
    world.dials::<1>();
    world.after(Duration::from_millis(4));
    assert_eq!(world.outcome(moved), None);
    world.after(Duration::from_millis(1));
    assert_eq!(world.outcome(moved), Some(Err(CallError::TimedOut)));
    assert_eq!(world.outcome(here), None);
}

#[test]
fn a_call_from_another_counter_that_ends_too_late_opens_no_breaker() {
    let mut world = world(1, 30);
    let since = world.now.before(CALL_TIMEOUT);
    for _ in 0..20 {
        let (call, content) = (CallBytes::default(), Content::Discarded);
        let moved = world.pool.call_since(&call, content, since, world.now, Stamp::default());
        world.after(Duration::ZERO);
        assert_eq!(world.outcome(moved.unwrap()), Some(Err(CallError::TimedOut)));
    }
    assert_eq!(world.pool.standing(world.now), Standing::Open);
    // Twenty that begin here do.
    for _ in 0..20 {
        world.call();
    }
    world.after(CALL_TIMEOUT);
    assert_eq!(world.pool.standing(world.now), Standing::Failing);
}

#[test]
fn it_is_told_whether_a_call_would_be_taken() {
    let mut world = world(1, 1);
    let told = |world: &World| (world.pool.standing(world.now), world.pool.calls_in_flight());
    assert_eq!(told(&world), (Standing::Open, 0));
    let first = world.call();
    assert_eq!(told(&world), (Standing::Open, 1));
    world.call();
    assert_eq!(told(&world), (Standing::Full, 2));
    let call = CallBytes::default();
    let begun = world.pool.call(&call, Content::Discarded, world.now, Stamp::default());
    assert!(begun.is_err());
    drop(world.pool.dropped(first));
    assert_eq!(told(&world), (Standing::Open, 1));
    world.pool.set_addresses(vec![], world.now);
    assert_eq!(told(&world), (Standing::Absent, 1));
}

#[test]
fn a_counter_that_ends_its_connections_is_probed_now_and_then() {
    let mut world = world(2, 10);
    let [first, second] = world.idle();
    world.call();
    assert!(!world.exchange(second, false));
    assert_eq!(world.pool.standing(world.now), Standing::Stopping);
    world.after(PROBE_INTERVAL);
    assert_eq!(world.pool.standing(world.now), Standing::Open);
    // This is the probe.
    world.call();
    assert_eq!(world.pool.standing(world.now), Standing::Stopping);
    // An answer that leaves its connection open.
    assert!(world.exchange(first, true));
    assert_eq!(world.pool.standing(world.now), Standing::Open);
    world.pool.set_aside(world.now);
    assert_eq!(world.pool.standing(world.now), Standing::Stopping);
}

#[test]
#[should_panic(expected = "has not taken")]
fn an_answer_to_nothing_is_a_bug() {
    let mut world = world(1, 0);
    let [id] = world.idle();
    let _ = world.pool.answered(id, answer(204, true), world.now);
}

#[test]
fn the_content_of_an_answer_is_the_callers_of_its_own_call_once() {
    let mut world = world(1, 2);
    let kept = |text: &str| {
        let mut content = Box::<ShortContent>::default();
        content.push(text.as_bytes());
        Some(content)
    };
    let contents = [Content::Kept, Content::Discarded, Content::Kept];
    let calls = contents.map(|content| {
        let call =
            world.pool.call(&CallBytes::default(), content, world.now, Stamp::default()).unwrap();
        assert_eq!(world.outcome(call), None);
        call
    });
    let [id] = world.dials();
    world.connected(id);
    for (call, (content, text)) in contents.into_iter().zip(["1", "", "3"]).enumerate() {
        assert_eq!(
            world.pool.take_request(id, clock::now).map(|taken| taken.content),
            Some(content)
        );
        let answered = match content {
            Content::Kept => Answer { content: kept(text), ..answer(200, true) },
            Content::Discarded => answer(200, true),
        };
        assert!(world.pool.answered(id, answered, world.now));
        // The calls behind it have none.
        assert!(calls[call + 1..].iter().all(|call| world.pool.take_content(*call).is_none()));
    }
    let taken = calls.map(|call| world.pool.take_content(call));
    assert_eq!(taken, [kept("1"), None, kept("3")]);
    assert!(calls.iter().all(|call| world.pool.take_content(*call).is_none()));
}

#[test]
fn the_content_for_a_caller_that_has_left_goes_to_nobody() {
    let mut world = world(1, 2);
    let [id] = world.idle();
    let gone =
        world.pool.call(&CallBytes::default(), Content::Kept, world.now, Stamp::default()).unwrap();
    assert!(world.take_request(id));
    world.pool.dropped(gone);
    let next =
        world.pool.call(&CallBytes::default(), Content::Kept, world.now, Stamp::default()).unwrap();
    let answered = Answer { content: Some(Box::default()), ..answer(200, true) };
    assert!(world.pool.answered(id, answered, world.now));
    assert!(world.exchange(id, true));
    assert_eq!((world.outcome(next), world.pool.take_content(next)), (Some(Ok(204)), None));
}
