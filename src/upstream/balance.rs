//! Which of several counters gets a call. A value without I/O.
//!
//! Two of them are drawn, and the one with fewer calls in flight gets it (the power of two choices): that is nearly as
//! even as to compare all, and workers that share nothing do not all choose the same one.

use super::NotBegun;

/// The most counters among which one is chosen.
pub const CANDIDATES_MAX: usize = 16;

/// Whether a counter takes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It does. So does one that fails or stops, when it is time to probe it.
    Open,
    /// It closes its connections, so it probably stops. It gets calls where no other counter takes them.
    Stopping,
    /// Too many calls wait for it.
    Full,
    /// Its circuit breaker is open.
    Failing,
    /// It has no address.
    Absent,
}

/// A counter that may be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Its place among all.
    pub place: u8,
    /// Whether it takes calls.
    pub standing: Standing,
    /// Calls that were begun and have not ended.
    pub in_flight: usize,
}

/// The place of the counter that gets the next call; `draws` are two random numbers.
///
/// # Errors
/// When none takes one. It is overload where one of them would take it with less to do.
pub fn choose(candidates: &[Candidate], draws: [usize; 2]) -> Result<u8, NotBegun> {
    let of = |standing| candidates.iter().filter(move |one| one.standing == standing);
    for standing in [Standing::Open, Standing::Stopping] {
        let count = of(standing).count();
        if count == 0 {
            continue;
        }
        let first = draws[0] % count;
        let second = match count {
            1 => first,
            // Never the first again.
            _ => (first + 1 + draws[1] % (count - 1)) % count,
        };
        let drawn = [first, second].into_iter().filter_map(|drawn| of(standing).nth(drawn));
        if let Some(chosen) = drawn.min_by_key(|one| one.in_flight) {
            return Ok(chosen.place);
        }
    }
    let mut others = [Standing::Full, Standing::Failing, Standing::Absent].into_iter();
    let found = others.find_map(|standing| of(standing).next());
    match found {
        Some(Candidate { standing: Standing::Full, .. }) => Err(NotBegun::Overloaded),
        // A name without an address: its call fails, says why, and has it looked up again.
        Some(Candidate { standing: Standing::Absent, place, .. }) => Ok(*place),
        _ => Err(NotBegun::Failing),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use Standing::{Absent, Failing, Full, Open, Stopping};

    fn candidates(of: &[(Standing, usize)]) -> Vec<Candidate> {
        let one = |(place, &(standing, in_flight))| Candidate { place, standing, in_flight };
        (0..).zip(of).map(one).collect()
    }

    #[track_caller]
    fn check(of: &[(Standing, usize)], expected: Result<u8, NotBegun>) {
        for first in 0..8 {
            for second in 0..8 {
                assert_eq!(choose(&candidates(of), [first, second]), expected, "{of:?}");
            }
        }
    }

    #[test]
    fn one_that_takes_calls_is_chosen_before_all_others() {
        check(&[(Open, 9)], Ok(0));
        check(&[(Stopping, 0), (Open, 9), (Failing, 0), (Full, 0), (Absent, 0)], Ok(1));
        check(&[(Failing, 0), (Full, 0), (Stopping, 9), (Absent, 0)], Ok(2));
        // Of two, the one with less to do.
        check(&[(Open, 3), (Open, 2)], Ok(1));
        check(&[(Stopping, 2), (Stopping, 3), (Failing, 0)], Ok(0));
    }

    #[test]
    fn where_none_takes_a_call_it_is_told_why() {
        check(&[], Err(NotBegun::Failing));
        check(&[(Failing, 0), (Failing, 1)], Err(NotBegun::Failing));
        check(&[(Failing, 0), (Full, 1), (Absent, 0)], Err(NotBegun::Overloaded));
        check(&[(Absent, 0), (Failing, 0)], Err(NotBegun::Failing));
        check(&[(Absent, 0), (Absent, 0)], Ok(0));
    }

    #[test]
    fn draws_that_are_even_choose_evenly_among_equals() {
        let equals = candidates(&[(Open, 1); 4]);
        let mut chosen = [0; 4];
        // All pairs of draws: 4 for the first, 3 for the second.
        (0..12).for_each(|n| chosen[usize::from(choose(&equals, [n % 4, n / 4]).unwrap())] += 1);
        assert_eq!(chosen, [3; 4]);
    }

    fn some_candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let standing = prop::sample::select(vec![Open, Stopping, Full, Failing, Absent]);
        prop::collection::vec((standing, 0..50usize), 0..=CANDIDATES_MAX)
            .prop_map(|of| candidates(&of))
    }

    proptest! {
        #[test]
        fn the_one_with_more_to_do_of_two_is_never_chosen(
            all in some_candidates(),
            draws in any::<[usize; 2]>(),
        ) {
            let chosen = choose(&all, draws).map(usize::from);
            let of = |standing| all.iter().filter(move |one| one.standing == standing);
            let tier = [Open, Stopping].into_iter().find(|standing| of(*standing).next().is_some());
            match (tier, chosen) {
                (Some(tier), Ok(place)) => {
                    prop_assert_eq!(all[place].standing, tier);
                    let most = of(tier).map(|one| one.in_flight).max();
                    let is_only_most = of(tier).filter(|one| Some(one.in_flight) == most).count() == 1;
                    // Of two or more, the only one with the most to do loses to whichever it is compared with.
                    if of(tier).count() > 1 && is_only_most {
                        prop_assert_ne!(Some(all[place].in_flight), most);
                    }
                }
                (None, Ok(place)) => prop_assert_eq!(all[place].standing, Absent),
                (None, Err(NotBegun::Overloaded)) => prop_assert!(of(Full).next().is_some()),
                (None, Err(NotBegun::Failing)) => prop_assert!(of(Full).next().is_none()),
                (Some(_), Err(error)) => prop_assert!(false, "{}", error),
            }
        }
    }
}
