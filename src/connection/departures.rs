//! Which connections leave their worker between two requests, for another worker.
//!
//! A connection that becomes idle after an answer passes here. The worker samples the passes of each window, and the
//! connections remember how many of the samples were theirs. Where the worker has too much to do, it says how many of
//! the last window's samples shall leave; a connection that passes next, and had no more than that, leaves.
//!
//! Knows samples and windows; nothing of load or of other workers.

use std::cell::Cell;

/// For so many windows a connection that has moved stays where it is.
const STAY_WINDOWS: u8 = 20;
/// The number of the window of a worker whose connections never leave.
const OFF: u8 = 0;
/// About how many passes of a window are samples: so a connection counts them in a byte, and the less busy it is the less
/// likely it has one.
const SAMPLES: u32 = 100;

/// What may leave.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Allowance {
    /// The most samples of the first connection.
    pub first: u32,
    /// The most samples of all together.
    pub all: u32,
    /// The most connections.
    pub connections: u32,
}

/// The samples of a worker, and what may leave of them.
#[derive(Debug, Default)]
pub struct Departures {
    window: Cell<u8>,
    /// Passes and samples in the present window.
    passes: Cell<u32>,
    samples: Cell<u32>,
    /// Passes for each sample, and how many are still to come before the next one.
    each: Cell<u32>,
    skip: Cell<u32>,
    random: Cell<u32>,
    allowance: Cell<Allowance>,
}

/// The samples of one connection. Small: each has one, whether any ever leaves or not.
#[derive(Debug, Clone, Copy, Default)]
pub struct Samples {
    /// The last window with a sample, or up to [`STAY_WINDOWS`] after the present one the first that may have some.
    window: u8,
    count: u8,
}

impl Departures {
    /// Begins the next window; how many samples the last one had. What was allowed to leave and has not stays.
    pub fn next_window(&self) -> u32 {
        let next = self.window.get().wrapping_add(1);
        self.window.set(if next == OFF { 1 } else { next });
        self.each.set((self.passes.take() / SAMPLES).max(1));
        self.allowance.take();
        self.samples.take()
    }

    /// Until the next window, so much may leave.
    pub fn allow(&self, allowance: Allowance) {
        self.allowance.set(allowance);
    }

    /// A connection has become idle after an answer. Whether it leaves.
    pub fn pass(&self, own: &mut Samples) -> bool {
        let window = self.window.get();
        if window == OFF {
            return false;
        }
        let ahead = own.window.wrapping_sub(window);
        if (1..=STAY_WINDOWS).contains(&ahead) {
            return false;
        }
        self.passes.set(self.passes.get().saturating_add(1));
        let before = if window == 1 { u8::MAX } else { window - 1 };
        // One that has more samples than it can count has an unknown part of all.
        if own.window == before && own.count < u8::MAX && self.lets_leave(own.count.into()) {
            return true;
        }
        match self.skip.get() {
            0 => self.sample(own, window),
            skip => self.skip.set(skip - 1),
        }
        false
    }

    /// Skips passes at random: where connections take turns, it would else be always the same one's.
    fn sample(&self, own: &mut Samples, window: u8) {
        let random = self.random.get().wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.random.set(random);
        self.skip.set((random >> 8) % (2 * self.each.get() - 1).max(1));
        self.samples.set(self.samples.get() + 1);
        if own.window != window {
            *own = Samples { window, count: 0 };
        }
        own.count = own.count.saturating_add(1);
    }

    /// Those with hardly any sample would change nothing.
    fn lets_leave(&self, samples: u32) -> bool {
        let Allowance { first, all, connections } = self.allowance.get();
        if connections == 0 || samples == 0 || samples > first {
            return false;
        }
        let all = all.saturating_sub(samples);
        self.allow(Allowance { first: all, all, connections: connections - 1 });
        true
    }

    /// The samples of a connection that has just moved here.
    pub fn of_moved(&self) -> Samples {
        Samples { window: self.window.get().wrapping_add(STAY_WINDOWS), count: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One connection for each number, which passes so often; how many of them then leave at their next pass.
    fn leave(passes: &[u32], allowance: Allowance) -> Vec<u32> {
        let departures = Departures::default();
        departures.next_window();
        let mut connections = vec![Samples::default(); passes.len()];
        for (connection, passes) in connections.iter_mut().zip(passes) {
            (0..*passes).for_each(|_| assert!(!departures.pass(connection)));
        }
        assert_eq!(departures.next_window(), passes.iter().sum::<u32>());
        departures.allow(allowance);
        let those = connections.iter_mut().zip(passes);
        those.filter_map(|(own, passes)| departures.pass(own).then_some(*passes)).collect()
    }

    #[track_caller]
    fn check(passes: &[u32], (first, all, connections): (u32, u32, u32), expected: &[u32]) {
        let allowance = Allowance { first, all, connections };
        assert_eq!(leave(passes, allowance), expected, "{passes:?} with {allowance:?}");
    }

    #[test]
    fn those_leave_that_are_not_more_than_what_may() {
        check(&[10, 10, 10, 10], (35, 25, 8), &[10, 10]);
        check(&[10, 10, 10, 10], (10, 5, 8), &[10]);
        check(&[10, 10, 10, 10], (9, 5, 8), &[]);
        check(&[50, 3, 2], (20, 20, 8), &[3, 2]);
        check(&[1, 1, 1, 1], (100, 50, 3), &[1, 1, 1]);
        check(&[1, 1, 1, 1], (100, 50, 0), &[]);
        // As many as can be counted.
        check(&[254, 1], (300, 300, 8), &[254, 1]);
        check(&[255, 1], (300, 300, 8), &[1]);
        // Without passes in the last window.
        check(&[0, 0], (100, 50, 8), &[]);
    }

    #[test]
    fn nobody_leaves_before_the_first_window_and_after_the_end_of_one() {
        let departures = Departures::default();
        let allowance = Allowance { first: 100, all: 100, connections: 8 };
        departures.allow(allowance);
        let mut own = Samples::default();
        assert!(!departures.pass(&mut own) && !departures.pass(&mut own));
        departures.next_window();
        assert!(!departures.pass(&mut own));
        departures.allow(allowance);
        assert_eq!(departures.next_window(), 1);
        assert!(!departures.pass(&mut own));
        // Two windows later nothing is known of it.
        departures.next_window();
        departures.next_window();
        departures.allow(allowance);
        assert!(!departures.pass(&mut own));
    }

    #[test]
    fn one_that_has_moved_stays_for_a_while_whatever_its_window_is_called() {
        for begin in [0, 1, 220, u8::MAX - STAY_WINDOWS, u8::MAX - 1] {
            let departures = Departures::default();
            departures.window.set(begin);
            departures.next_window();
            let (mut moved, mut other) = (departures.of_moved(), Samples::default());
            let allowance = Allowance { first: 100, all: 100, connections: 8 };
            let leaves = (0..2 * STAY_WINDOWS).position(|_| {
                departures.next_window();
                departures.allow(allowance);
                departures.pass(&mut other);
                departures.pass(&mut moved)
            });
            // One window is counted before it leaves; the name of none is left out.
            let leaves = leaves.unwrap();
            let least = usize::from(STAY_WINDOWS);
            assert!((least - 1..=least).contains(&leaves), "{begin}: {leaves}");
        }
    }

    #[test]
    fn one_that_was_idle_for_long_stays_no_longer_than_one_that_has_moved() {
        for idle in 1..600 {
            let departures = Departures::default();
            departures.next_window();
            let mut own = Samples::default();
            assert!(!departures.pass(&mut own));
            for _ in 0..idle {
                departures.next_window();
            }
            let stays = (0..2 * STAY_WINDOWS).position(|_| {
                departures.next_window();
                departures.allow(Allowance { first: 100, all: 100, connections: 8 });
                departures.pass(&mut own)
            });
            assert!(stays.unwrap() <= usize::from(STAY_WINDOWS) + 1, "{idle}: {stays:?}");
        }
    }

    #[test]
    fn of_many_passes_some_are_samples_of_who_passes_most_also_where_all_take_turns() {
        let departures = Departures::default();
        departures.next_window();
        let mut connections = [Samples::default(); 5];
        for window in 0..3 {
            // The first one passes twice as often.
            let turns = (0..20_000).flat_map(|_| [0, 1, 2, 0, 3, 4]);
            turns.for_each(|own| assert!(!departures.pass(&mut connections[own])));
            let counts = connections.map(|own| u32::from(own.count));
            let samples = departures.next_window();
            if window > 0 {
                assert!((70..140).contains(&samples), "{samples}");
                assert_eq!(counts.iter().sum::<u32>(), samples);
                assert!(counts[1..].iter().all(|count| (5..33).contains(count)), "{counts:?}");
                assert!(counts[0] > 19, "{counts:?}");
            }
        }
    }
}
