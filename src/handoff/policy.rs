//! Which connections go to which other worker: values and rules, without sockets or clocks.
//!
//! A worker compares itself with two others, drawn at random: nearly as even as to compare all (the power of two
//! choices, after the kernel's own), and workers do not all choose the same one.

use fastrand::Rng;

use crate::connection::Allowance;

/// How many connections fewer another worker must have than this one would, so that one is handed over: with less, both
/// are as even as they can be.
const LEAST: u64 = 2;
/// The same, as a part of those that this one would have: a hand-over costs a few microseconds, and a difference that
/// nobody notices is not worth them.
const PART: u64 = 8;
/// The same where both are about as busy. Connections that carry one request each come and go in numbers that differ by
/// chance, and to hand them over would cost more than it gains.
const PART_BUSY: u64 = 3;
/// Up to here a worker has nearly nothing to do, in thousandths of a core.
const IDLE: u64 = 100;
/// How much busier one worker must be than another one, in thousandths of a core, and as a part of itself.
const CLEAR: u64 = 125;
const CLEAR_PART: u64 = 8;
/// What is busy in so many windows, one after the other, is so for longer.
const LASTING_WINDOWS: u8 = 2;
/// After connections have left, the worker waits for so many windows to see what that did.
const REST_WINDOWS: u8 = 5;
/// How many connections leave at a time.
const LEAVING_MAX: u32 = 8;

/// What a worker has to do, as others see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// The part of the time that it has run or waited for a core of late, in thousandths.
    pub busy: u64,
    /// Its connections, with those that come.
    pub connections: u64,
}

impl Load {
    fn is_clearly_busier(self, other: Self) -> bool {
        let more = self.busy.saturating_sub(other.busy);
        more >= CLEAR && more * CLEAR_PART >= self.busy
    }
}

/// Two other workers that were drawn.
pub type Drawn<T> = [Option<T>; 2];

/// Two of `count`, one where there is only one.
pub fn draw(count: usize, random: &mut Rng) -> Drawn<usize> {
    match count {
        0 => [None, None],
        1 => [Some(0), None],
        _ => {
            let first = random.usize(..count);
            // Never the first again.
            [Some(first), Some((first + random.usize(1..count)) % count)]
        }
    }
}

/// The one with less to do; where that is about the same, the one with fewer connections.
fn lightest(others: Drawn<Load>) -> Option<(usize, Load)> {
    let places = others.into_iter().enumerate().filter_map(|(place, load)| Some((place, load?)));
    places.min_by_key(|(_, load)| (load.busy / CLEAR, load.connections, load.busy))
}

/// Which of two others that have room gets a connection that was accepted by a worker with this load, which may have so
/// many. `chance` is drawn, from 0 to 999.
pub fn choose(own: Load, connections_max: u64, others: Drawn<Load>, chance: u64) -> Option<usize> {
    let (place, other) = lightest(others)?;
    if own.connections >= connections_max {
        // It would close a client for this one.
        return Some(place);
    }
    let with_it = own.connections + 1;
    let fewer =
        |part| with_it.saturating_sub(other.connections) >= LEAST.max(with_it.div_ceil(part));
    let hands_over = if own.busy.max(other.busy) < IDLE {
        fewer(PART)
    } else if own.is_clearly_busier(other) {
        // What was measured is a window old. If all went to the other one meanwhile, that would be too busy next.
        fewer(PART) || chance * 2 * own.busy < 1000 * (own.busy - other.busy)
    } else {
        !other.is_clearly_busier(own) && fewer(PART_BUSY)
    };
    hands_over.then_some(place)
}

/// Whether a worker has had more to do than others for long enough that connections leave it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Overload {
    busy_windows: u8,
    rest_windows: u8,
}

impl Overload {
    /// A window is over, with so many samples of the worker's connections: which of two others gets some of them, and how
    /// many.
    pub fn end_window(
        &mut self,
        own: Load,
        others: Drawn<Load>,
        samples: u32,
    ) -> Option<(usize, Allowance)> {
        let busier = lightest(others)
            .filter(|(_, other)| own.busy >= 2 * IDLE && own.is_clearly_busier(*other));
        self.busy_windows = if busier.is_some() { self.busy_windows.saturating_add(1) } else { 0 };
        if self.rest_windows > 0 {
            self.rest_windows -= 1;
            return None;
        }
        let (place, other) = busier.filter(|_| self.busy_windows >= LASTING_WINDOWS)?;
        *self = Self { busy_windows: 0, rest_windows: REST_WINDOWS };
        Some((place, allowance(own, other, samples)))
    }
}

/// A sample counts as the same work as any other one of its worker. The first connection must make the busier of the two
/// less busy, and all together must not make the other one clearly busier: so none goes back and forth, where requests
/// cost about the same. One with few but costly requests may, each time after the two seconds that it stays.
fn allowance(own: Load, other: Load, samples: u32) -> Allowance {
    let more = own.busy.saturating_sub(other.busy);
    let part = |eighths: u64| {
        let part = u64::from(samples) * more * eighths / (8 * own.busy.max(1));
        u32::try_from(part).unwrap_or(u32::MAX)
    };
    Allowance { first: part(7), all: part(5), connections: LEAVING_MAX }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;
    use proptest::prelude::*;

    use super::*;

    fn load((busy, connections): (u64, u64)) -> Load {
        Load { busy, connections }
    }

    #[track_caller]
    fn check(
        own: (u64, u64),
        others: [Option<(u64, u64)>; 2],
        chance: u64,
        expected: Option<usize>,
    ) {
        let chosen = choose(load(own), u64::MAX, others.map(|other| other.map(load)), chance);
        assert_eq!(chosen, expected, "{own:?} of {others:?}, {chance}");
    }

    #[test]
    fn where_nobody_is_busy_the_one_with_clearly_fewer_gets_it() {
        check((0, 0), [Some((0, 0)), None], 0, None);
        check((0, 1), [Some((0, 0)), None], 999, Some(0));
        check((0, 1), [Some((0, 1)), Some((0, 0))], 999, Some(1));
        check((99, 1), [None, Some((99, 0))], 999, Some(1));
        check((0, 2), [Some((0, 1)), Some((0, 1))], 999, Some(0));
        check((0, 5), [None, None], 0, None);
        // An eighth of 100 is 13.
        check((0, 99), [Some((0, 87)), None], 999, Some(0));
        check((0, 99), [Some((0, 88)), None], 0, None);
    }

    #[test]
    fn one_that_is_clearly_less_busy_gets_some_and_with_fewer_connections_all() {
        check((900, 10), [Some((300, 8)), None], 999, Some(0));
        // (900 - 300) / (2 * 900) is a third.
        check((900, 10), [Some((300, 10)), None], 333, Some(0));
        check((900, 10), [Some((300, 10)), None], 334, None);
        check((900, 10), [Some((300, 90)), None], 333, Some(0));
        check((900, 10), [Some((800, 1)), Some((300, 10))], 333, Some(1));
        // No eighth of a core less, or of its own load.
        check((300, 10), [Some((176, 10)), None], 0, None);
        check((1000, 10), [Some((876, 10)), None], 0, None);
    }

    #[test]
    fn as_busy_ones_get_it_with_a_third_fewer_connections_and_busier_ones_never() {
        check((600, 29), [Some((600, 20)), None], 0, Some(0));
        check((600, 29), [Some((600, 21)), None], 0, None);
        check((600, 1), [Some((600, 0)), None], 0, Some(0));
        check((600, 0), [Some((600, 0)), None], 0, None);
        check((400, 100), [Some((600, 0)), None], 0, None);
    }

    #[test]
    fn a_worker_at_its_limit_hands_over_to_whoever_has_room() {
        let (busy, idle) = (Some(load((900, 7))), Some(load((0, 7))));
        let own = load((0, 8));
        assert_eq!(choose(own, 8, [busy, idle], 999), Some(1));
        assert_eq!(choose(own, 8, [busy, None], 999), Some(0));
        assert_eq!(choose(own, 8, [None, None], 999), None);
        assert_eq!(choose(own, 9, [busy, None], 0), None);
    }

    fn loads() -> impl Strategy<Value = Load> {
        (0..1_100_u64, 0..5_000_u64).prop_map(load)
    }

    proptest! {
        #[test]
        fn never_one_that_is_busier_and_has_as_many(
            own in loads(), others: [Option<(u16, u16)>; 2], chance in 0..1000_u64
        ) {
            let others = others.map(|other| {
                other.map(|(busy, connections)| load((u64::from(busy % 1_100), connections.into())))
            });
            if let Some(place) = choose(own, u64::MAX, others, chance) {
                let other = others[place].unwrap();
                prop_assert!(!other.is_clearly_busier(own), "{other:?}");
                prop_assert!(other.connections < own.connections || own.is_clearly_busier(other));
            }
        }

        #[test]
        fn connections_that_come_to_one_are_spread_over_all(workers in 2..9_usize, count in 0..400_u64) {
            let mut random = Rng::with_seed(count);
            let mut loads = vec![0; workers];
            for _ in 0..count {
                // All of them to the first one.
                let drawn = draw(workers - 1, &mut random);
                let others = drawn.map(|drawn| Some(load((0, loads[drawn? + 1]))));
                let place = choose(load((0, loads[0])), u64::MAX, others, 0).and_then(|place| drawn[place]);
                loads[place.map_or(0, |place| place + 1)] += 1;
            }
            let most = loads.iter().max().unwrap();
            let even = count.div_ceil(workers as u64);
            prop_assert!(*most <= even + 2 + even / 2, "{loads:?}");
        }

        /// Where work moves with its connections, the busier of the two becomes less busy, and the other one does not
        /// give anything back.
        #[test]
        fn what_leaves_makes_two_workers_more_even(own in loads(), other in loads(), samples in 1..100_000_u32) {
            let mut overload = Overload::default();
            let others = [Some(other), None];
            prop_assert_eq!(overload.end_window(own, others, samples), None);
            let Some((place, allowed)) = overload.end_window(own, others, samples) else {
                prop_assert!(!own.is_clearly_busier(other) || own.busy < 2 * IDLE);
                return Ok(());
            };
            prop_assert_eq!(place, 0);
            for leave in [allowed.first, allowed.all] {
                let work = own.busy * u64::from(leave) / u64::from(samples);
                let (own, other) = (own.busy - work, other.busy + work);
                prop_assert!(own.max(other) < own + work, "{leave}");
                let back = Overload { busy_windows: LASTING_WINDOWS, rest_windows: 0 }.end_window(
                    load((other, 0)), [Some(load((own, 0))), None], samples
                );
                let back = back.map_or(0, |(_, back)| back.first.min(back.all));
                prop_assert!(back < leave.max(1), "{back} of {leave} go back");
            }
        }
    }

    #[test]
    fn connections_leave_after_two_busy_windows_and_not_again_for_five() {
        let mut overload = Overload::default();
        let (own, others) = (load((900, 4)), [Some(load((100, 0))), None]);
        let mut leave = || overload.end_window(own, others, 1_000).is_some();
        let windows: Vec<_> = (0..9).map(|_| leave()).collect();
        assert_eq!(windows, [false, true, false, false, false, false, false, true, false]);
        // One window that is even begins it anew.
        let mut overload = Overload::default();
        for busy in [100, 800, 100, 800] {
            let others = [Some(load((busy, 0))), None];
            assert_eq!(overload.end_window(own, others, 1_000), None);
        }
    }

    #[test]
    fn an_eighth_of_the_difference_is_kept_by_the_first() {
        let allowed = |own, other, samples| {
            let Allowance { first, all, .. } = allowance(load(own), load(other), samples);
            (first, all)
        };
        assert_eq!(allowed((800, 4), (0, 0), 800), (700, 500));
        assert_eq!(allowed((900, 3), (550, 1), 900), (306, 218));
        assert_eq!(allowed((800, 1), (0, 0), 1), (0, 0));
        assert_eq!(allowed((0, 1), (0, 0), 10), (0, 0));
    }

    #[test]
    fn two_are_drawn_that_differ() {
        let mut random = Rng::with_seed(1);
        for count in 0..6 {
            for _ in 0..100 {
                let drawn: Vec<_> = draw(count, &mut random).into_iter().flatten().collect();
                assert_eq!(drawn.len(), count.min(2));
                assert!(drawn.iter().all(|place| *place < count));
                assert!(count < 2 || drawn[0] != drawn[1]);
            }
        }
    }
}
