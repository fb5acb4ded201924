//! The counters of a route, and which of them registers a visit.

use std::{cell::RefCell, rc::Rc};

use fastrand::Rng;
use smallvec::SmallVec;

use super::visit::{Counter, Failures};
use crate::{
    metrics::Failure,
    runtime::clock,
    upstream::{
        NotBegun,
        balance::{self, CANDIDATES_MAX, Candidate, Standing},
    },
};

/// The counters of a route.
pub(super) enum Counters {
    /// The only one.
    One(Rc<Counter>),
    /// Each visit goes to one of these.
    Several(Several),
}

/// Counters among which one is chosen for each visit.
pub(super) struct Several {
    /// At most [`CANDIDATES_MAX`].
    counters: Box<[Rc<Counter>]>,
    random: RefCell<Rng>,
}

/// Places among the counters of a route, a bit for each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Places(u16);

const _: () = assert!(CANDIDATES_MAX <= u16::BITS as usize);

impl Places {
    fn has(self, place: u8) -> bool {
        self.0 & 1 << place != 0
    }

    fn with(self, place: u8) -> Self {
        Self(self.0 | 1 << place)
    }
}

impl Counters {
    pub(super) fn of(counters: Vec<Rc<Counter>>) -> Self {
        match <[_; 1]>::try_from(counters) {
            Ok([only]) => Self::One(only),
            Err(counters) => {
                assert!((2..=CANDIDATES_MAX).contains(&counters.len()), "a route has counters");
                // From the clock, so that a simulated worker draws the same each time.
                let random = RefCell::new(Rng::with_seed(clock::micros()));
                Self::Several(Several { counters: counters.into(), random })
            }
        }
    }

    pub(super) fn get(&self, place: u8) -> &Rc<Counter> {
        match self {
            Self::One(counter) => counter,
            Self::Several(several) => &several.counters[usize::from(place)],
        }
    }

    /// Notes how a visit ended that the counter at `place` had last; returns a report if one is due.
    pub(super) fn note(&self, place: u8, outcome: Result<(), Failure>) -> Option<Failures> {
        let counter = self.get(place);
        let Self::Several(several) = self else { return counter.note(outcome, false) };
        if let Err(Failure::Status(_)) = outcome {
            // Its answers are quick, so that it would get most visits.
            counter.upstream.set_aside();
        }
        let others = outcome.is_err() && several.others_register(place);
        counter.note(outcome, others)
    }
}

impl Several {
    /// Begins a call at a counter that is not in `tried`; `begin` does so at the one that is chosen.
    ///
    /// # Errors
    /// When none of them takes it.
    pub(super) fn begin<T>(
        &self,
        mut tried: Places,
        begin: impl Fn(&Counter, Places, u8) -> Result<T, NotBegun>,
    ) -> Result<T, NotBegun> {
        let mut overloaded = None;
        loop {
            let place = self.choose(tried).map_err(|error| overloaded.unwrap_or(error))?;
            tried = tried.with(place);
            match begin(&self.counters[usize::from(place)], tried, place) {
                Err(NotBegun::Failing) => {}
                Err(error @ NotBegun::Overloaded) => overloaded = Some(error),
                begun => return begun,
            }
        }
    }

    /// The place of the counter that gets a visit which those in `tried` did not get.
    fn choose(&self, tried: Places) -> Result<u8, NotBegun> {
        let untried = self.places().filter(|(place, _)| !tried.has(*place));
        let mut candidates: SmallVec<[Candidate; CANDIDATES_MAX]> =
            untried.map(|(place, counter)| counter.upstream.candidate(place)).collect();
        if tried != Places::default() {
            // A call to an address that does not exist would be of no use.
            candidates.retain(|candidate| candidate.standing != Standing::Absent);
        }
        let mut random = self.random.borrow_mut();
        balance::choose(&candidates, [random.usize(..), random.usize(..)])
    }

    /// Whether one of the counters other than that at `place` registers visits.
    fn others_register(&self, place: u8) -> bool {
        self.places().filter(|(other, _)| *other != place).any(|(other, counter)| {
            let standing = counter.upstream.candidate(other).standing;
            counter.registers() && !matches!(standing, Standing::Failing | Standing::Absent)
        })
    }

    fn places(&self) -> impl Iterator<Item = (u8, &Rc<Counter>)> {
        (0..).zip(&self.counters)
    }
}
