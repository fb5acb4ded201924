//! What becomes of visits that are registered together, an event at a time and at random.

use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use proptest::prelude::*;

use super::{
    super::{
        Action, ConnectionId,
        tests::{CALL_TIMEOUT, Done, Wakes, address, answer, limits, outcome},
    },
    *,
};
use crate::{
    runtime::clock,
    upstream::{
        DialError, ShortContent, UpstreamLimits, balance::Standing, breaker::Change,
        response_reader::Answer,
    },
};

const CALL: &[u8] = b"POST /?by={n} HTTP/1.1\r\n\r\n";
/// For a counter that says itself that it takes several.
const PLAIN: &[u8] = b"POST / HTTP/1.1\r\n\r\n";
const MILLISECOND: Duration = Duration::from_millis(1);

/// A pool, a batcher and the time.
struct World {
    pool: Pool,
    id: BatcherId,
    call: CallBytes,
    now: Moment,
    wakes: Arc<Wakes>,
    is_offered: bool,
}

/// At most `max` visits in a batch, and `queue_max` that wait.
fn world_of(limits: UpstreamLimits, max: usize) -> World {
    let (now, call) = (clock::now(), CallBytes::new(Bytes::from_static(CALL)));
    let mut pool = Pool::new(limits, vec![address(1)], now);
    let id = pool.add_batcher(&call, Batching::of(CALL, max).unwrap());
    World { pool, id, call, now, wakes: Arc::default(), is_offered: false }
}

/// The same, where batches are only offered.
fn offering_world_of(limits: UpstreamLimits, max: usize) -> World {
    let World { mut pool, now, wakes, .. } = world_of(limits, max);
    let call = CallBytes::new(Bytes::from_static(PLAIN));
    let id = pool.add_batcher(&call, Batching::offered(PLAIN, max).unwrap());
    World { pool, id, call, now, wakes, is_offered: true }
}

fn world(max: usize) -> World {
    world_of(limits(4, 100), max)
}

impl World {
    fn try_join(&mut self, since: Option<Moment>) -> Result<CallId, NotBegun> {
        let call = (&self.call, Content::Kept);
        self.pool.join(self.id, call, since, self.now, Stamp::default())
    }

    /// Visits whose callers wait.
    fn join<const COUNT: usize>(&mut self) -> [CallId; COUNT] {
        [(); COUNT].map(|()| {
            let call = self.try_join(None).unwrap();
            assert_eq!(self.outcome(call), None);
            call
        })
    }

    fn outcome(&mut self, call: CallId) -> Option<Result<u16, CallError>> {
        outcome(&mut self.pool, &self.wakes, call)
    }

    fn outcomes<const COUNT: usize>(
        &mut self,
        calls: [CallId; COUNT],
    ) -> [Option<Result<u16, CallError>>; COUNT] {
        calls.map(|call| self.outcome(call))
    }

    fn number(&mut self, call: CallId) -> Option<u64> {
        let content = self.pool.take_content(call)?;
        str::from_utf8(content.whole().unwrap()).unwrap().parse().ok()
    }

    /// The connection that is dialed, once it is established.
    fn connect(&mut self) -> ConnectionId {
        let dials = self.pool.actions().into_iter().filter_map(|action| match action {
            Done::Dial(id) => Some(id),
            _ => None,
        });
        let [id] = dials.collect::<Vec<_>>()[..] else { panic!("not one connection is dialed") };
        self.pool.connected(id, address(1), self.now);
        id
    }

    /// How many visits the connection registers, if it has a call.
    fn take(&mut self, id: ConnectionId) -> Option<usize> {
        let taken = self.pool.take_request(id, || self.now)?;
        let text = str::from_utf8(&taken.request).unwrap().to_owned();
        let query = match (self.is_offered, taken.batched) {
            (true, 0 | 1) => String::new(),
            (_, batched) => format!("?by={batched}"),
        };
        assert_eq!(text, format!("POST /{query} HTTP/1.1\r\n\r\n"));
        Some(taken.batched)
    }

    #[track_caller]
    fn answer(&mut self, id: ConnectionId, total: u64) {
        let mut content = Box::<ShortContent>::default();
        content.push(total.to_string().as_bytes());
        let answer = Answer { content: Some(content), ..answer(200, true) };
        assert!(self.pool.answered(id, answer, self.now));
    }

    fn after(&mut self, time: Duration) {
        self.now = self.now.after(time);
        self.pool.expire(self.now);
    }

    /// A connection that is idle.
    fn idle(&mut self) -> ConnectionId {
        let [first] = self.join();
        let id = self.connect();
        assert_eq!(self.take(id), Some(1));
        self.answer(id, 1);
        assert_eq!(self.outcome(first), Some(Ok(200)));
        self.pool.dropped(first);
        self.pool.actions();
        id
    }

    /// A connection with a batch of one, whose caller is `.1`.
    fn busy(&mut self) -> (ConnectionId, CallId) {
        let id = self.idle();
        let [first] = self.join();
        assert_eq!(self.take(id), Some(1));
        self.pool.actions();
        (id, first)
    }
}

const OK: Option<Result<u16, CallError>> = Some(Ok(200));
const BROKEN: Option<Result<u16, CallError>> = Some(Err(CallError::Broken));
const LATE: Option<Result<u16, CallError>> = Some(Err(CallError::TimedOut));

#[test]
fn a_visit_that_finds_no_call_in_flight_is_sent_at_once_by_itself() {
    let mut world = world(1000);
    let id = world.idle();
    let [visit] = world.join();
    assert_eq!(world.pool.actions(), [Done::Send(id)]);
    assert_eq!(world.take(id), Some(1));
    world.answer(id, 7);
    assert_eq!((world.outcome(visit), world.number(visit)), (OK, Some(7)));
}

#[test]
fn visits_that_arrive_during_a_call_are_registered_by_the_next_one() {
    let mut world = world(1000);
    let (id, first) = world.busy();
    let visits = world.join::<3>();
    assert_eq!(world.pool.actions(), []);
    world.answer(id, 10);
    assert_eq!((world.outcome(first), world.number(first)), (OK, Some(10)));
    assert_eq!(world.outcomes(visits), [None; 3]);
    assert_eq!(world.pool.actions(), [Done::Woken, Done::Send(id)]);
    // They may still be joined.
    let [last] = world.join();
    assert_eq!(world.take(id), Some(4));
    world.answer(id, 15);
    assert_eq!(world.pool.actions(), [Done::Woken; 4]);
    let visits = [visits[0], visits[1], visits[2], last];
    assert_eq!(world.outcomes(visits), [OK; 4]);
    assert_eq!(visits.map(|visit| world.number(visit)), [12, 13, 14, 15].map(Some));
}

#[test]
fn one_that_leaves_before_its_batch_is_sent_is_not_registered() {
    let mut world = world(1000);
    let (id, _) = world.busy();
    let visits = world.join::<3>();
    assert!(world.pool.dropped(visits[1]).is_some());
    world.answer(id, 1);
    assert_eq!(world.take(id), Some(2));
    world.answer(id, 3);
    assert_eq!([visits[0], visits[2]].map(|visit| world.number(visit)), [Some(2), Some(3)]);
    // Of a batch that nobody is left of there is no call.
    world.join::<1>();
    assert_eq!(world.take(id), Some(1));
    let visits = world.join::<2>();
    visits.iter().for_each(|visit| drop(world.pool.dropped(*visit)));
    world.answer(id, 4);
    assert_eq!(world.take(id), None);
    assert_eq!(world.pool.queued_calls(), 0);
}

#[test]
fn one_that_leaves_a_batch_in_the_queue_leaves_no_call_behind() {
    let mut world = world(1000);
    let visits = world.join::<2>();
    visits.iter().for_each(|visit| drop(world.pool.dropped(*visit)));
    let id = world.connect();
    assert_eq!(world.take(id), None);
    world.pool.closed(id, world.now);
    assert!(world.pool.is_empty());
}

#[test]
fn the_last_to_leave_an_assigned_batch_is_registered_unless_another_joins() {
    let mut world = world(1000);
    let id = world.idle();
    for others in [0, 1] {
        let [visit] = world.join();
        assert!(world.pool.dropped(visit).is_some());
        let other = (others == 1).then(|| world.join::<1>());
        assert_eq!(world.take(id), Some(1));
        world.answer(id, 5);
        if let Some([other]) = other {
            assert_eq!((world.outcome(other), world.number(other)), (OK, Some(5)));
            world.pool.dropped(other);
        }
    }
    world.pool.closed(id, world.now);
    assert!(world.pool.is_empty());
}

#[test]
fn one_that_leaves_a_batch_that_was_sent_keeps_its_place() {
    let mut world = world(1000);
    let (id, _) = world.busy();
    let visits = world.join::<3>();
    world.answer(id, 1);
    assert_eq!(world.take(id), Some(3));
    assert!(world.pool.dropped(visits[1]).is_some());
    world.answer(id, 4);
    assert_eq!([visits[0], visits[2]].map(|visit| world.number(visit)), [Some(2), Some(4)]);
}

#[test]
fn a_failure_is_that_of_all() {
    let mut world = world(1000);
    let (id, first) = world.busy();
    let visits = world.join::<3>();
    world.pool.closed(id, world.now);
    // The next batch has nothing to do with it.
    assert_eq!((world.outcome(first), world.outcomes(visits)), (BROKEN, [None; 3]));
    let id = world.connect();
    assert_eq!(world.take(id), Some(3));
    world.pool.closed(id, world.now);
    assert_eq!(world.outcomes(visits), [BROKEN; 3]);
    assert_eq!(world.pool.actions(), [Done::Send(id), Done::Woken, Done::Woken, Done::Woken]);
}

#[test]
fn no_visit_of_a_batch_that_no_connection_was_opened_for_was_sent() {
    let mut world = world(1000);
    let visits = world.join::<3>();
    let [Done::Dial(id)] = world.pool.actions()[..] else { panic!("one dial") };
    world.pool.dial_failed(id, DialError::Refused, world.now);
    let refused = Some(Err(CallError::NoConnection(DialError::Refused)));
    assert_eq!(world.outcomes(visits), [refused; 3]);
    // A connection that ends before it has carried anything is the same.
    let visits = world.join::<2>();
    let id = world.connect();
    world.pool.closed(id, world.now);
    let other = Some(Err(CallError::NoConnection(DialError::Other)));
    assert_eq!(world.outcomes(visits), [other; 2]);
}

#[test]
fn to_the_breaker_a_batch_is_one_call() {
    let mut world = world(1000);
    let mut id = world.idle();
    for failures in 1..=10 {
        let visits = world.join::<10>();
        assert_eq!(world.take(id), Some(10));
        world.pool.actions();
        world.pool.closed(id, world.now);
        assert_eq!(world.outcomes(visits), [BROKEN; 10]);
        let opened = world.pool.actions().contains(&Done::Breaker(Change::Opened));
        assert_eq!(opened, failures == 10, "{failures}");
        if !opened {
            // A connection for the next one, which answers nothing: an answer would end the run of failures.
            let [next] = world.join();
            id = world.connect();
            world.pool.dropped(next);
        }
    }
    assert_eq!(world.try_join(None), Err(NotBegun::Failing));
    world.after(Duration::from_secs(1));
    let [probe] = world.join();
    assert_eq!(world.try_join(None), Err(NotBegun::Failing));
    let id = world.connect();
    assert_eq!(world.take(id), Some(1));
    world.answer(id, 1);
    assert_eq!((world.outcome(probe), world.pool.standing(world.now)), (OK, Standing::Open));
}

#[test]
fn a_batch_whose_time_is_over_is_one_failure() {
    let mut world = world_of(limits(20, 100), 1000);
    let idle = world.idle();
    for failures in 1..=10 {
        let [visit] = world.join();
        world.after(HOLD_TIME);
        let id = if failures == 1 { idle } else { world.connect() };
        assert_eq!(world.take(id), Some(1));
        world.after(CALL_TIMEOUT);
        assert_eq!(world.outcome(visit), LATE);
        world.pool.dropped(visit);
        let opened = world.pool.actions().contains(&Done::Breaker(Change::Opened));
        assert_eq!(opened, failures == 10, "{failures}");
        world.pool.closed(id, world.now);
    }
}

#[test]
fn what_a_full_batch_leaves_behind_goes_at_once_where_it_is_full_too() {
    let mut world = world(2);
    let (id, _) = world.busy();
    let visits = world.join::<5>();
    let other = world.connect();
    assert_eq!(world.take(other), Some(2));
    let third = world.connect();
    assert_eq!(world.take(third), Some(2));
    // The last waits for a call in flight.
    let dials = |action: &Done| matches!(action, Done::Dial(_));
    assert!(!world.pool.actions().iter().any(dials));
    world.answer(other, 3);
    world.answer(third, 5);
    world.answer(id, 6);
    assert_eq!(world.outcomes(visits), [OK, OK, OK, OK, None]);
}

#[test]
fn a_call_that_hangs_holds_none_back_for_long() {
    let mut world = world(1000);
    let (_, hangs) = world.busy();
    world.after(HOLD_TIME);
    let [visit] = world.join();
    let other = world.connect();
    assert_eq!(world.take(other), Some(1));
    world.answer(other, 2);
    let [next] = world.join();
    assert_eq!(world.take(other), Some(1));
    world.answer(other, 3);
    assert_eq!((world.outcome(hangs), world.outcomes([visit, next])), (None, [OK; 2]));
}

#[test]
fn a_batch_that_is_full_does_not_wait_for_the_one_in_flight() {
    let mut world = world(2);
    let (id, _) = world.busy();
    let full = world.join::<2>();
    let other = world.connect();
    let [more] = world.join();
    assert_eq!(world.take(other), Some(2));
    world.pool.actions();
    world.answer(other, 3);
    assert_eq!((world.outcomes(full), world.outcome(more)), ([OK; 2], None));
    // The first is still in flight.
    assert_eq!(world.take(other), None);
    world.answer(id, 1);
    assert_eq!(world.take(id), Some(1));
}

#[test]
fn a_call_that_hangs_holds_the_next_one_back_for_a_moment() {
    let mut world = world(1000);
    let (_, hangs) = world.busy();
    let visits = world.join::<2>();
    world.after(HOLD_TIME - MILLISECOND);
    assert_eq!(world.pool.actions(), []);
    world.after(MILLISECOND);
    let other = world.connect();
    assert_eq!(world.take(other), Some(2));
    world.answer(other, 3);
    assert_eq!((world.outcome(hangs), world.outcomes(visits)), (None, [OK; 2]));
}

#[test]
fn each_visit_of_a_batch_has_its_own_deadline() {
    let mut world = world(1000);
    let id = world.idle();
    let [oldest] = world.join();
    world.after(10 * MILLISECOND);
    let [middle] = world.join();
    world.after(10 * MILLISECOND);
    let [youngest] = world.join();
    assert_eq!(world.take(id), Some(3));
    world.pool.actions();
    world.after(CALL_TIMEOUT - 20 * MILLISECOND);
    assert_eq!(world.outcomes([oldest, middle, youngest]), [LATE, None, None]);
    assert_eq!(world.pool.actions(), [Done::Woken]);
    // The call goes on for the others.
    world.pool.dropped(youngest);
    world.answer(id, 9);
    assert_eq!((world.outcome(middle), world.number(middle)), (OK, Some(8)));
    assert_eq!((world.outcome(oldest), world.number(oldest)), (LATE, None));
}

#[test]
fn the_last_deadline_of_a_batch_cuts_its_connection() {
    let mut world = world(1000);
    let (id, visit) = world.busy();
    world.after(MILLISECOND);
    let [held] = world.join();
    // It was not sent: there is no room for another connection.
    world.pool.set_limits(limits(1, 10), world.now);
    world.after(CALL_TIMEOUT - MILLISECOND);
    assert_eq!(world.outcomes([visit, held]), [LATE, None]);
    assert_eq!(world.pool.actions(), [Done::Woken, Done::Cut(id)]);
    world.after(MILLISECOND);
    assert_eq!(world.outcome(held), LATE);
    world.pool.closed(id, world.now);
    assert_eq!(world.pool.queued_calls(), 0);
}

#[test]
fn a_batch_of_which_nothing_was_sent_goes_on_another_connection_without_those_who_left() {
    let mut world = world(3);
    let id = world.idle();
    let visits = world.join::<3>();
    assert_eq!(world.take(id), Some(3));
    let [more] = world.join();
    assert!(world.pool.dropped(visits[1]).is_some());
    world.pool.not_sent(id, 1, world.now);
    world.pool.closed(id, world.now);
    let id = world.connect();
    assert_eq!(world.take(id), Some(3));
    world.answer(id, 10);
    let visits = [visits[0], visits[2], more];
    assert_eq!(visits.map(|visit| world.number(visit)), [8, 9, 10].map(Some));
}

#[test]
fn a_batch_that_was_not_taken_goes_nowhere_else_once_all_have_left() {
    for stays in [false, true] {
        let mut world = world(1000);
        let id = world.idle();
        let [visit] = world.join();
        if !stays {
            assert!(world.pool.dropped(visit).is_some());
        }
        // It has carried a call before, so what it has not taken goes elsewhere.
        world.pool.closed(id, world.now);
        assert_eq!(world.pool.queued_calls(), usize::from(stays));
        assert_eq!(world.pool.is_empty(), !stays);
        if stays {
            let id = world.connect();
            assert_eq!(world.take(id), Some(1));
        }
    }
}

#[test]
fn as_many_visits_may_wait_as_without_batches() {
    let mut world = world_of(limits(1, 2), 1000);
    let (id, _) = world.busy();
    // The first that gathers stands for the call.
    world.join::<3>();
    assert_eq!(world.pool.queued_calls(), 2);
    assert_eq!(world.try_join(None), Err(NotBegun::Overloaded));
    world.answer(id, 1);
    assert_eq!(world.take(id), Some(3));
    world.join::<1>();
}

#[test]
fn a_batcher_that_is_closed_goes_with_its_last_batch() {
    let mut world = world(1000);
    let (id, visit) = world.busy();
    world.pool.dropped(visit);
    world.pool.close_batcher(world.id);
    assert_eq!(world.pool.batchers.len(), 1);
    world.answer(id, 1);
    assert_eq!(world.pool.batchers.len(), 0);
    let call = CallBytes::new(Bytes::from_static(CALL));
    let unused = world.pool.add_batcher(&call, Batching::of(CALL, 2).unwrap());
    world.pool.close_batcher(unused);
    assert_eq!(world.pool.batchers.len(), 0);
}

#[test]
#[should_panic(expected = "a batch is taken once")]
fn a_batch_that_is_taken_twice_is_a_bug() {
    let mut world = world(1000);
    let id = world.idle();
    world.join::<2>();
    let batch = world.pool.batchers[world.id].next.unwrap();
    world.take(id);
    world.pool.take_batch(world.id, batch, false, world.now);
}

impl World {
    /// The counter answers that it has added so much, or says nothing of it.
    fn adds(&mut self, id: ConnectionId, status: u16, added: Option<u32>) {
        assert!(self.pool.answered(id, Answer { added, ..answer(status, true) }, self.now));
    }

    /// A visit that begins as the site's do.
    fn begin(&mut self) -> CallId {
        if self.pool.joins(self.id) {
            let [call] = self.join();
            return call;
        }
        let call = self.pool.call(&self.call, Content::Kept, self.now, Stamp::default()).unwrap();
        self.pool.tells(call, self.id);
        call
    }
}

/// The same, with a connection on which an answer has said how much was added, to the visit that is given too.
fn known_world_of(limits: UpstreamLimits, max: usize) -> (World, ConnectionId, CallId) {
    let mut world = offering_world_of(limits, max);
    let first = world.begin();
    let id = world.connect();
    assert_eq!(world.take(id), Some(0));
    world.adds(id, 200, Some(1));
    (world, id, first)
}

#[test]
fn a_counter_gets_one_visit_in_a_call_until_it_says_that_it_adds_more() {
    let mut world = offering_world_of(limits(4, 100), 1000);
    let visits = [(); 3].map(|()| world.begin());
    let dials: Vec<_> = world.pool.actions();
    let ids =
        dials.into_iter().filter_map(|it| if let Done::Dial(id) = it { Some(id) } else { None });
    let ids: Vec<_> = ids.collect();
    assert_eq!(ids.len(), 3, "each has a connection of its own");
    for &id in &ids {
        world.pool.connected(id, address(1), world.now);
        assert_eq!(world.take(id), Some(0));
    }
    // An answer that is no success says nothing.
    world.adds(ids[0], 503, Some(1));
    assert!(!world.pool.joins(world.id));
    world.adds(ids[1], 200, Some(1));
    assert!(world.pool.joins(world.id));
    assert_eq!(world.outcomes(visits), [Some(Ok(503)), OK, None]);

    // The one that is used is the one that has said so.
    let first = world.begin();
    assert_eq!(world.take(ids[1]), Some(1));
    let more = [(); 3].map(|()| world.begin());
    world.adds(ids[1], 200, Some(1));
    assert_eq!(world.take(ids[1]), Some(3));
    world.adds(ids[1], 200, Some(3));
    assert_eq!((world.outcome(first), world.outcomes(more)), (OK, [OK; 3]));
}

#[test]
fn a_connection_that_has_not_said_that_it_adds_gets_one_visit_in_a_call() {
    let (mut world, id, _) = known_world_of(limits(2, 100), 1000);
    world.begin();
    assert_eq!(world.take(id), Some(1));
    let visits = [(); 3].map(|()| world.begin());
    // The call hangs, so that they go on another connection.
    world.after(HOLD_TIME);
    let fresh = world.connect();
    assert_eq!(world.take(fresh), Some(1));
    // The others wait for what it says.
    assert_eq!(world.take(fresh), None);
    world.adds(fresh, 200, Some(1));
    assert_eq!(world.take(fresh), Some(2));
    world.adds(fresh, 200, Some(2));
    assert_eq!(world.outcomes(visits), [OK; 3]);
}

#[test]
fn a_counter_whose_connections_end_gets_one_visit_in_a_call() {
    let mut world = offering_world_of(limits(4, 100), 1000);
    world.begin();
    let id = world.connect();
    assert_eq!(world.take(id), Some(0));
    let last = Answer { added: Some(1), ..answer(200, false) };
    assert!(!world.pool.answered(id, last.clone(), world.now));
    assert!(!world.pool.joins(world.id));

    // One that ends later, as at a restart, says nothing of the others.
    let (mut world, id, _) = known_world_of(limits(4, 100), 1000);
    let visit = world.begin();
    assert_eq!(world.take(id), Some(1));
    let gathered = [(); 3].map(|()| world.begin());
    assert!(!world.pool.answered(id, last, world.now));
    assert!(world.pool.joins(world.id));
    assert_eq!(world.outcome(visit), OK);
    world.pool.closed(id, world.now);
    let fresh = world.connect();
    assert_eq!(world.take(fresh), Some(1));
    world.adds(fresh, 200, Some(1));
    assert_eq!(world.take(fresh), Some(2));
    world.adds(fresh, 200, Some(2));
    assert_eq!(world.outcomes(gathered), [OK; 3]);
}

#[test]
fn who_has_gathered_goes_before_others_where_batches_end() {
    let (mut world, id, _) = known_world_of(limits(1, 100), 1000);
    let first = world.begin();
    assert_eq!(world.take(id), Some(1));
    let gathered = [(); 3].map(|()| world.begin());
    world.pool.dropped(gathered[1]);
    // The counter is another one by now, behind the same connection.
    world.adds(id, 200, None);
    assert_eq!(world.outcome(first), OK);
    let later = world.begin();
    assert_eq!(world.pool.queued_calls(), 2);
    for visit in [gathered[0], gathered[2], later] {
        assert_eq!(world.outcome(visit), None);
        assert_eq!(world.take(id), Some(0));
        world.adds(id, 200, None);
        assert_eq!(world.outcome(visit), OK);
        world.pool.dropped(visit);
    }
    assert_eq!(world.take(id), None);
}

#[test]
fn a_promised_batch_need_not_be_confirmed_but_must_not_be_denied() {
    for (added, expected) in [(None, OK), (Some(2), OK), (Some(1), BROKEN)] {
        let mut world = world(1000);
        let (id, _) = world.busy();
        let visits: [CallId; 2] = world.join();
        world.adds(id, 200, None);
        assert_eq!(world.take(id), Some(2));
        world.adds(id, 200, added);
        assert_eq!(world.outcomes(visits), [expected; 2], "{added:?}");
    }
}

/// What becomes of three visits of one call that is answered so, and whether the next visits go together.
#[track_caller]
fn check_added(
    status: u16,
    added: Option<u32>,
    expected: Option<Result<u16, CallError>>,
    joins: bool,
) {
    let (mut world, id, _) = known_world_of(limits(1, 100), 1000);
    world.begin();
    assert_eq!(world.take(id), Some(1));
    let visits = [(); 3].map(|()| world.begin());
    world.adds(id, 200, Some(1));
    assert_eq!(world.take(id), Some(3));
    let waiting = [(); 2].map(|()| world.begin());
    world.adds(id, status, added);
    assert_eq!(world.outcomes(visits), [expected; 3], "{status} {added:?}");
    assert_eq!(world.pool.joins(world.id), joins, "{status} {added:?}");
    // Those that have gathered meanwhile go together only to who has said so.
    let together = if joins { 2 } else { 0 };
    assert_eq!(world.take(id), Some(together), "{status} {added:?}");
    world.adds(id, 204, Some(together.max(1).try_into().unwrap()));
    let told = waiting.map(|visit| world.outcome(visit).is_some());
    assert_eq!(told, [true, joins]);
    // Who has once not confirmed what it had said it takes is not asked again.
    assert_eq!(world.pool.joins(world.id), joins, "{status} {added:?}");
}

#[test]
fn an_offered_batch_is_registered_only_if_the_counter_says_so() {
    check_added(200, Some(3), OK, true);
    for wrong in [0, 1, 2, 4] {
        check_added(200, Some(wrong), BROKEN, false);
    }
    // Somebody else has answered, who has ignored the query.
    check_added(200, None, BROKEN, false);
    // What is no success is told as it is. A query may be what is refused.
    check_added(503, None, Some(Ok(503)), true);
    check_added(404, None, Some(Ok(404)), false);
}

/// The next event. A number chooses among the visits or connections that it can apply to.
#[derive(Debug, Clone)]
enum Event {
    Join,
    JoinFromElsewhere(u64),
    Leaves(usize),
    Connected,
    DialFailed,
    Take(usize),
    /// And whether it is good, and what it says of how much it has added: the truth, nothing, or something else.
    Answered(usize, bool, u8),
    NotSent(usize),
    Closed(usize),
    TimePasses(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let any = any::<usize>;
    prop_oneof![
        10 => Just(Event::Join),
        1 => (0..5000u64).prop_map(Event::JoinFromElsewhere),
        3 => any().prop_map(Event::Leaves),
        5 => Just(Event::Connected),
        1 => Just(Event::DialFailed),
        8 => any().prop_map(Event::Take),
        6 => (any(), prop::bool::weighted(0.8), prop_oneof![4 => Just(0u8), 1 => 1..3u8])
            .prop_map(|(n, good, says)| Event::Answered(n, good, says)),
        1 => any().prop_map(Event::NotSent),
        1 => any().prop_map(Event::Closed),
        2 => (0..3000u64).prop_map(Event::TimePasses),
    ]
}

/// A visit, and what is known of it from outside.
struct Visit {
    call: CallId,
    began: Moment,
    has_caller: bool,
    /// The connection whose batch has it.
    on: Option<ConnectionId>,
    expected: Option<Result<u16, CallError>>,
    number: Option<u64>,
    times_sent: usize,
}

#[derive(Default)]
struct Model {
    visits: Vec<Visit>,
    /// All of them, in the order in which those that wait are sent.
    order: Vec<usize>,
    dialing: Vec<ConnectionId>,
    standing: Vec<ConnectionId>,
    /// Those on which an answer has said how much was added.
    adding: Vec<ConnectionId>,
    /// The visits of the batches that connections have taken, and have not ended.
    sent: Vec<(ConnectionId, Vec<usize>)>,
    total: u64,
}

impl Model {
    /// The visits that wait for a batch, in their order.
    fn gathered(&self) -> Vec<usize> {
        let waits = |place: &usize| {
            let visit = &self.visits[*place];
            visit.on.is_none() && visit.expected.is_none() && visit.has_caller
        };
        self.order.iter().copied().filter(waits).collect()
    }

    fn end(&mut self, visits: &[usize], outcome: Result<u16, CallError>) {
        for place in visits {
            self.visits[*place].expected.get_or_insert(outcome);
        }
    }

    fn sent_on(&mut self, id: ConnectionId) -> Option<Vec<usize>> {
        let place = self.sent.iter().position(|(other, _)| *other == id)?;
        Some(self.sent.remove(place).1)
    }
}

/// The pool and the model.
struct Both {
    world: World,
    model: Model,
    max: usize,
}

impl Both {
    fn join(&mut self, earlier: Option<Duration>) {
        let since = earlier.map(|earlier| self.world.now.before(earlier));
        let Ok(call) = self.world.try_join(since) else { return };
        self.model.order.push(self.model.visits.len());
        self.model.visits.push(Visit {
            call,
            began: since.unwrap_or(self.world.now),
            has_caller: true,
            on: None,
            expected: None,
            number: None,
            times_sent: 0,
        });
    }

    fn take(&mut self, id: ConnectionId) {
        if self.model.sent.iter().any(|(other, _)| *other == id) {
            return;
        }
        let Some(batched) = self.world.take(id) else { return };
        let mut visits = self.model.gathered();
        let is_known = !self.world.is_offered || self.model.adding.contains(&id);
        visits.truncate(if is_known { self.max } else { 1 });
        // The last to leave an assigned batch stays in it.
        assert_eq!(batched, visits.len().max(1));
        for place in &visits {
            let visit = &mut self.model.visits[*place];
            visit.on = Some(id);
            visit.times_sent += 1;
            assert_eq!(visit.times_sent, 1, "it is sent twice");
        }
        self.model.sent.push((id, visits));
    }

    fn answered(&mut self, id: ConnectionId, good: bool, says: u8) {
        let Some(visits) = self.model.sent_on(id) else { return };
        let first = self.model.total + 1;
        self.model.total += visits.len() as u64;
        let total = self.model.total.max(1);
        let mut content = Box::<ShortContent>::default();
        content.push(total.to_string().as_bytes());
        // What ends batches is seen by tests of its own.
        let (good, says) = if self.world.is_offered { (true, 0) } else { (good, says) };
        let count = u32::try_from(visits.len().max(1)).unwrap();
        let added = match says {
            0 => Some(count),
            1 => None,
            _ => Some(count + 1),
        };
        let answer = Answer { content: Some(content), added, ..answer(200, good) };
        let stays = self.world.pool.answered(id, answer, self.world.now);
        if added.is_some() && !self.model.adding.contains(&id) {
            self.model.adding.push(id);
        }
        let is_true = count == 1 || says != 2;
        for (number, place) in (first..).zip(&visits) {
            let visit = &mut self.model.visits[*place];
            if visit.expected.is_none() && is_true {
                (visit.expected, visit.number) = (Some(Ok(200)), Some(number));
            }
        }
        if !is_true {
            self.model.end(&visits, Err(CallError::Broken));
        }
        if !stays {
            self.closed(id);
        }
    }

    fn closed(&mut self, id: ConnectionId) {
        self.model.standing.retain(|other| *other != id);
        if let Some(visits) = self.model.sent_on(id) {
            self.model.end(&visits, Err(CallError::Broken));
        }
        self.world.pool.closed(id, self.world.now);
    }

    fn not_sent(&mut self, id: ConnectionId) {
        let Some(visits) = self.model.sent_on(id) else { return };
        self.world.pool.not_sent(id, 1, self.world.now);
        for place in &visits {
            let visit = &mut self.model.visits[*place];
            (visit.on, visit.times_sent) = (None, 0);
        }
        // They are the first again.
        self.model.order.retain(|place| !visits.contains(place));
        self.model.order.splice(0..0, visits);
        self.closed(id);
    }

    fn apply(&mut self, event: &Event) {
        let choose = |n: usize, of: &[ConnectionId]| Some(of[n.checked_rem(of.len())?]);
        let standing = |n, model: &Model| choose(n, &model.standing);
        match *event {
            Event::Join => self.join(None),
            Event::JoinFromElsewhere(earlier) => self.join(Some(Duration::from_millis(earlier))),
            Event::Leaves(n) => {
                let stay = |place: &usize| self.model.visits[*place].has_caller;
                let callers: Vec<_> = (0..self.model.visits.len()).filter(stay).collect();
                let Some(place) = n.checked_rem(callers.len()) else { return };
                let visit = &mut self.model.visits[callers[place]];
                visit.has_caller = false;
                self.world.pool.dropped(visit.call);
            }
            Event::Connected => {
                let Some(id) = self.model.dialing.pop() else { return };
                self.model.standing.push(id);
                self.world.pool.connected(id, address(1), self.world.now);
            }
            Event::DialFailed => {
                let Some(id) = self.model.dialing.pop() else { return };
                self.world.pool.dial_failed(id, DialError::Refused, self.world.now);
            }
            Event::Take(n) => standing(n, &self.model).into_iter().for_each(|id| self.take(id)),
            Event::Answered(n, good, says) => {
                standing(n, &self.model).into_iter().for_each(|id| self.answered(id, good, says));
            }
            Event::NotSent(n) => {
                standing(n, &self.model).into_iter().for_each(|id| self.not_sent(id));
            }
            Event::Closed(n) => {
                standing(n, &self.model).into_iter().for_each(|id| self.closed(id));
            }
            Event::TimePasses(milliseconds) => {
                self.world.after(Duration::from_millis(milliseconds));
            }
        }
    }

    /// Compares what all callers were told.
    fn check(&mut self) {
        while let Some(action) = self.world.pool.next_action() {
            match action {
                Action::Dial(id) => self.model.dialing.push(id),
                Action::Cut(id) if self.model.standing.contains(&id) => {
                    // Its deadline, or it was idle for too long.
                    drop(self.model.sent_on(id));
                    self.model.standing.retain(|other| *other != id);
                    self.world.pool.closed(id, self.world.now);
                }
                _ => {}
            }
        }
        for visit in self.model.visits.iter_mut().filter(|visit| visit.has_caller) {
            let waker = Waker::from(Arc::clone(&self.world.wakes));
            let told = self.world.pool.poll(visit.call, &mut Context::from_waker(&waker));
            let is_late = visit.began.after(CALL_TIMEOUT) <= self.world.now;
            match told {
                Poll::Pending => {
                    assert_eq!(visit.expected, None, "it is not told");
                    assert!(!is_late, "it waits beyond its deadline");
                }
                Poll::Ready(outcome) => {
                    // What was not sent may fail by itself: that was seen by its own tests.
                    let by_itself = match outcome {
                        Err(CallError::TimedOut) => is_late,
                        Err(CallError::NoConnection(_)) => visit.times_sent == 0,
                        _ => false,
                    };
                    let expected = visit.expected.get_or_insert(outcome);
                    assert_eq!(*expected, outcome);
                    assert!(by_itself || visit.times_sent == 1, "{outcome:?} of one not sent");
                    if outcome.is_ok()
                        && let Some(number) = visit.number.take()
                    {
                        let content = self.world.pool.take_content(visit.call).unwrap();
                        assert_eq!(content.whole(), Some(number.to_string().as_bytes()));
                    }
                }
            }
        }
        self.check_invariants();
    }

    fn check_invariants(&self) {
        let pool = &self.world.pool;
        let batcher = &pool.batchers[self.world.id];
        assert_eq!(batcher.next.is_some(), !batcher.gathered.is_empty());
        assert_eq!(pool.gathered, batcher.gathered.len());
        assert_eq!(pool.gathering, usize::from(batcher.next.is_some()));
        assert!(pool.due.is_empty());
        if let Some(next) = batcher.next {
            let state = pool.calls.get(next.0).unwrap().state;
            let held = state == CallState::Held;
            let since = batcher.held_since(self.world.now);
            assert!(!held || since.is_some(), "a batch is held back by nothing");
            let queued = pool.queue.iter().filter(|queued| queued.id == next).count();
            assert_eq!(queued, usize::from(state == CallState::Queued));
        }
        for member in &batcher.gathered {
            assert_eq!(pool.calls.get(member.call.0).unwrap().state, CallState::Gathered);
        }
    }

    fn everybody_leaves(&mut self) {
        while self.model.visits.iter().any(|visit| visit.has_caller) {
            self.apply(&Event::Leaves(0));
            self.check();
        }
        while !(self.model.dialing.is_empty() && self.model.standing.is_empty()) {
            self.apply(&Event::DialFailed);
            self.apply(&Event::Closed(0));
            self.check();
        }
    }
}

proptest! {
    #[test]
    fn each_visit_is_sent_once_and_told_what_its_own_batch_was(
        max in 1..5usize,
        connections_max in 1..4usize,
        queue_max in 0..8usize,
        is_offered: bool,
        events in prop::collection::vec(event(), 0..300),
    ) {
        let (limits, mut model) = (limits(connections_max, queue_max), Model::default());
        let world = if is_offered {
            let (mut world, id, first) = known_world_of(limits, max);
            world.pool.dropped(first);
            model.standing.push(id);
            model.adding.push(id);
            world
        } else {
            world_of(limits, max)
        };
        let mut both = Both { world, model, max };
        for event in &events {
            both.apply(event);
            both.check();
        }
        both.everybody_leaves();
        prop_assert!(both.world.pool.is_empty());
    }
}
