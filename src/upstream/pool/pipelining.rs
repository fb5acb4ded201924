//! Several calls on one connection, an event at a time.

use super::{
    state::SILENCE,
    tests::{CALL_TIMEOUT, Done, Wakes, address, answer, limits, outcome},
    *,
};
use crate::runtime::clock;
use std::sync::Arc;

/// A pool whose connections carry several calls, and the time.
struct World {
    pool: Pool,
    now: Moment,
    wakes: Arc<Wakes>,
}

fn world(pipeline_max: usize, connections_max: usize) -> World {
    let now = clock::now();
    let limits = UpstreamLimits { pipeline_max, ..limits(connections_max, 100) };
    World { pool: Pool::new(limits, vec![address(1)], now), now, wakes: Arc::default() }
}

impl World {
    fn calls<const COUNT: usize>(&mut self) -> [CallId; COUNT] {
        [(); COUNT].map(|()| {
            let (request, began) = (CallBytes::default(), Stamp::default());
            let call = self.pool.call(&request, Content::Discarded, self.now, began).unwrap();
            assert_eq!(outcome(&mut self.pool, &self.wakes, call), None);
            call
        })
    }

    fn outcomes<const COUNT: usize>(
        &mut self,
        calls: [CallId; COUNT],
    ) -> [Option<Result<u16, CallError>>; COUNT] {
        calls.map(|call| outcome(&mut self.pool, &self.wakes, call))
    }

    /// A connection is dialed and established.
    #[track_caller]
    fn connect(&mut self) -> ConnectionId {
        let dialed = self.pool.actions().into_iter().find_map(|done| match done {
            Done::Dial(id) => Some(id),
            _ => None,
        });
        let id = dialed.expect("a dial");
        self.pool.connected(id, address(1), self.now);
        id
    }

    /// Takes all requests that it can; how many they are.
    fn take(&mut self, id: ConnectionId) -> usize {
        let mut left = None;
        std::iter::from_fn(|| {
            let taken = self.pool.take_request(id, || self.now)?;
            let expected = left.replace(taken.more).unwrap_or(taken.more + 1);
            assert_eq!(expected, taken.more + 1, "more are waiting than it is told");
            Some(())
        })
        .count()
    }

    #[track_caller]
    fn answer(&mut self, id: ConnectionId, status: u16) {
        assert!(self.pool.answered(id, answer(status, true), self.now));
    }

    /// An idle connection that has shown that it stays open.
    fn proven(&mut self) -> ConnectionId {
        let [call] = self.calls();
        let id = self.connect();
        assert_eq!(self.take(id), 1);
        self.answer(id, 200);
        self.pool.dropped(call);
        self.pool.actions();
        id
    }

    fn after(&mut self, time: Duration) {
        self.now = self.now.after(time);
        self.pool.expire(self.now);
    }
}

const OK: Option<Result<u16, CallError>> = Some(Ok(200));
const BROKEN: Option<Result<u16, CallError>> = Some(Err(CallError::Broken));
const TIMED_OUT: Option<Result<u16, CallError>> = Some(Err(CallError::TimedOut));

#[test]
fn a_new_connection_carries_one_call_until_it_has_shown_that_it_stays_open() {
    let mut world = world(3, 1);
    let calls = world.calls::<5>();
    let id = world.connect();
    assert_eq!(world.take(id), 1);
    world.answer(id, 200);
    // Three of the four that wait.
    assert_eq!((world.take(id), world.pool.queued_calls()), (3, 1));
    world.answer(id, 200);
    assert_eq!((world.take(id), world.pool.queued_calls()), (1, 0));
    assert_eq!(world.outcomes(calls), [OK, OK, None, None, None]);
    // HTTP/1.0 with keep-alive, say: those that are in flight are answered, then one at a time.
    let one = Answer { pipelines: false, ..answer(200, true) };
    for _ in 0..3 {
        assert!(world.pool.answered(id, one.clone(), world.now));
    }
    assert_eq!(world.outcomes(calls), [OK; 5]);
    let calls = world.calls::<2>();
    assert_eq!(world.take(id), 1);
    assert!(world.pool.answered(id, one, world.now));
    assert_eq!((world.outcomes(calls), world.take(id)), ([OK, None], 1));
}

#[test]
fn calls_go_over_as_few_connections_as_serve_and_their_task_is_woken_once() {
    let mut world = world(2, 4);
    let first = world.proven();
    world.calls::<2>();
    assert_eq!(world.pool.actions(), [Done::Send(first)]);
    let more = world.calls::<2>();
    let second = world.connect();
    // It is new, so it gets one; the other waits for whichever is free, and has one dialed for it.
    assert_eq!((world.take(first), world.take(second)), (2, 1));
    world.answer(second, 200);
    assert_eq!(world.take(second), 1);
    world.answer(second, 200);
    assert_eq!(world.outcomes(more), [OK; 2]);
    // One that is busy and has room is used before one that is idle.
    world.answer(first, 200);
    world.pool.actions();
    world.calls::<1>();
    assert_eq!(world.pool.actions(), [Done::Send(first)]);
    world.calls::<1>();
    assert_eq!(world.pool.actions(), [Done::Send(second)]);
}

#[test]
fn a_connection_that_breaks_fails_what_it_may_have_sent_and_the_rest_goes_elsewhere_in_its_order() {
    let mut world = world(10, 1);
    let id = world.proven();
    let calls = world.calls::<6>();
    for _ in 0..3 {
        world.pool.take_request(id, || world.now).unwrap();
    }
    world.answer(id, 200);
    world.pool.closed(id, world.now);
    assert_eq!(world.outcomes(calls), [OK, BROKEN, BROKEN, None, None, None]);
    let id = world.connect();
    for place in 3..6 {
        assert!(world.take(id) > 0 || place > 4);
        world.answer(id, 200);
        let told = world.outcomes(calls).iter().filter(|told| **told == OK).count();
        assert_eq!(told, 1 + place - 2, "the first of them is the next");
    }
}

#[test]
fn of_a_write_that_fails_the_calls_that_have_not_begun_to_leave_go_elsewhere_at_once() {
    let mut world = world(10, 2);
    let id = world.proven();
    let calls = world.calls::<5>();
    for _ in 0..4 {
        world.pool.take_request(id, || world.now).unwrap();
    }
    world.pool.actions();
    world.pool.not_sent(id, 2, world.now);
    let other = world.connect();
    // The answers to what was sent are still read. Then it closes, and gets no call.
    world.answer(id, 200);
    assert!(!world.pool.answered(id, answer(200, true), world.now));
    world.pool.closed(id, world.now);
    assert_eq!(world.outcomes(calls), [OK, OK, None, None, None]);
    for taken in [1, 2, 0] {
        assert_eq!(world.take(other), taken);
        world.answer(other, 200);
    }
    assert_eq!(world.outcomes(calls), [OK; 5]);
}

#[test]
fn a_close_that_is_announced_fails_what_was_sent_behind_it_and_nothing_else() {
    let mut world = world(10, 2);
    let id = world.proven();
    let calls = world.calls::<4>();
    for _ in 0..3 {
        world.pool.take_request(id, || world.now).unwrap();
    }
    assert!(!world.pool.answered(id, answer(200, false), world.now));
    assert_eq!(world.outcomes(calls), [OK, BROKEN, BROKEN, None]);
    assert_eq!(world.take(id), 0);
    world.pool.closed(id, world.now);
    let id = world.connect();
    assert_eq!(world.take(id), 1);
    world.answer(id, 200);
    assert_eq!(world.outcomes(calls), [OK, BROKEN, BROKEN, OK]);
    // It is the breaker's business neither: the counter has answered.
    assert_eq!(world.pool.standing(world.now), Standing::Open);
}

#[test]
fn a_call_that_takes_too_long_ends_alone_and_its_connection_gets_no_other_until_it_is_answered() {
    let mut world = world(10, 2);
    let id = world.proven();
    let [slow] = world.calls();
    assert_eq!(world.take(id), 1);
    world.after(CALL_TIMEOUT - Duration::from_millis(1));
    let [behind] = world.calls();
    assert_eq!(world.take(id), 1);
    let [waits] = world.calls();
    world.pool.actions();
    world.after(Duration::from_millis(1));
    assert_eq!(world.outcomes([slow, behind, waits]), [TIMED_OUT, None, None]);
    // What it has not sent goes elsewhere, and so does what comes.
    let other = world.connect();
    assert_eq!((world.take(id), world.take(other)), (0, 1));
    world.pool.dropped(slow);
    // Its answer, and then that of the one behind it.
    world.answer(id, 200);
    assert_eq!(world.outcomes([behind, waits]), [None, None]);
    let [next] = world.calls();
    assert_eq!(world.take(id), 1, "it is as good as any other again");
    world.answer(id, 201);
    world.answer(id, 202);
    assert_eq!(world.outcomes([behind, next]), [Some(Ok(201)), Some(Ok(202))]);
}

#[test]
fn a_connection_whose_calls_have_all_taken_too_long_is_cut() {
    let mut world = world(10, 1);
    let id = world.proven();
    let first = world.calls::<2>();
    assert_eq!(world.take(id), 2);
    world.after(Duration::from_millis(5));
    let last = world.calls::<1>();
    assert_eq!(world.take(id), 1);
    world.pool.actions();
    world.after(CALL_TIMEOUT - Duration::from_millis(5));
    assert!(!world.pool.actions().contains(&Done::Cut(id)));
    world.after(Duration::from_millis(5));
    assert!(world.pool.actions().contains(&Done::Cut(id)));
    assert_eq!((world.outcomes(first), world.outcomes(last)), ([TIMED_OUT; 2], [TIMED_OUT]));
    assert!(!world.pool.answered(id, answer(200, true), world.now));
}

#[test]
fn a_connection_with_nothing_left_but_late_calls_is_closed() {
    let mut world = world(10, 1);
    let id = world.proven();
    let [first] = world.calls();
    // Another counter has taken a part of its time, so it ends before the one in front of it.
    let since = world.now.before(CALL_TIMEOUT - Duration::from_millis(1));
    let (request, now) = (CallBytes::default(), world.now);
    let moved = world.pool.call_since(&request, Content::Discarded, since, now, Stamp::default());
    assert_eq!(world.take(id), 2);
    world.after(Duration::from_millis(1));
    assert_eq!(world.outcomes([first, moved.unwrap()]), [None, TIMED_OUT]);
    assert!(!world.pool.answered(id, answer(200, true), world.now), "it has no deadline any more");
    assert_eq!(world.outcomes([first]), [OK]);
}

#[test]
fn the_answer_of_a_caller_that_has_left_is_nobodys() {
    let mut world = world(10, 1);
    let id = world.proven();
    let [gone, other] = world.calls();
    assert_eq!(world.take(id), 2);
    world.pool.dropped(gone);
    world.answer(id, 201);
    assert_eq!(world.outcomes([other]), [None]);
    world.answer(id, 202);
    assert_eq!(world.outcomes([other]), [Some(Ok(202))]);
}

#[test]
fn to_the_breaker_a_connection_that_fails_is_one_call() {
    for times_out in [false, true] {
        let mut world = world(100, 1);
        let id = world.proven();
        let calls = world.calls::<20>();
        assert_eq!(world.take(id), 20);
        match times_out {
            true => world.after(CALL_TIMEOUT),
            false => world.pool.closed(id, world.now),
        }
        let told = if times_out { TIMED_OUT } else { BROKEN };
        assert_eq!(world.outcomes(calls), [told; 20]);
        assert_eq!(world.pool.standing(world.now), Standing::Open);
    }
}

#[test]
fn other_limits_hold_for_connections_that_are_busy() {
    let mut world = world(1, 1);
    let id = world.proven();
    let calls = world.calls::<6>();
    assert_eq!(world.take(id), 1);
    let with = |pipeline_max| UpstreamLimits { pipeline_max, ..limits(1, 100) };
    world.pool.set_limits(with(4), world.now);
    assert_eq!((world.take(id), world.pool.queued_calls()), (3, 2));
    world.pool.set_limits(with(2), world.now);
    for (waiting, left) in [(2, 0), (2, 0), (1, 1), (0, 1)] {
        world.answer(id, 200);
        assert_eq!((world.pool.queued_calls(), world.take(id)), (waiting, left));
    }
    world.answer(id, 200);
    world.answer(id, 200);
    assert_eq!(world.outcomes(calls), [OK; 6]);
}

#[test]
fn a_connection_to_an_address_that_has_gone_ends_with_its_last_answer() {
    let mut world = world(10, 2);
    let id = world.proven();
    let calls = world.calls::<2>();
    assert_eq!(world.take(id), 2);
    world.pool.set_addresses(vec![address(2)], world.now);
    let [next] = world.calls();
    assert_eq!(world.take(id), 0);
    world.answer(id, 200);
    assert_eq!(world.take(id), 0);
    assert!(!world.pool.answered(id, answer(200, true), world.now));
    assert_eq!((world.outcomes(calls), world.outcomes([next])), ([OK; 2], [None]));
}

#[test]
fn a_busy_connection_that_is_silent_comes_behind_an_idle_one() {
    let mut world = world(4, 4);
    let idle = world.proven();
    // Both carry calls, and one becomes idle again.
    let begun = world.calls::<5>();
    let hangs = world.connect();
    assert_eq!((world.take(idle), world.take(hangs)), (4, 1));
    world.answer(hangs, 200);
    (0..4).for_each(|_| world.answer(idle, 200));
    assert_eq!(world.outcomes(begun), [OK; 5]);
    world.pool.actions();
    // The one used last.
    let [_hung] = world.calls();
    assert_eq!(world.pool.actions(), [Done::Send(idle)]);
    let (hangs, idle) = (idle, hangs);
    assert_eq!(world.take(hangs), 1);
    world.after(SILENCE - Duration::from_millis(1));
    world.calls::<1>();
    assert_eq!((world.take(hangs), world.take(idle)), (1, 0));
    world.after(Duration::from_millis(1));
    world.calls::<2>();
    assert_eq!((world.take(hangs), world.take(idle)), (0, 2));
    // None is idle.
    world.after(SILENCE);
    world.calls::<1>();
    assert_eq!(world.take(hangs) + world.take(idle), 1);
}
