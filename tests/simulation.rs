//! The code of the workers in simulated worlds, each drawn from a seed: see `simulation/`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;

use tallyring_simulation::{
    history,
    plan::Plan,
    search::{self, Until},
};

/// Histories of seeds that are always the same, so that a failure is one of the code.
const HISTORIES: u64 = 4_000;
/// Which seeds.
const FIRST: u64 = 1;

#[test]
fn nothing_is_wrong_in_thousands_of_histories() {
    let seen = search::search(FIRST, Until::Histories(HISTORIES), 2);
    if let Some((seed, violations)) = seen.failure {
        panic!(
            "seed {seed}: {violations:#?}\nto see it happen: \
             cargo run --release -p tallyring-simulation -- --seed {seed}"
        );
    }
    assert_eq!(seen.histories, HISTORIES);
    // They are not empty: most clients were answered.
    assert!(seen.answers > HISTORIES && seen.events > 100 * HISTORIES, "{seen:?}");
    assert!(seen.handed_over > HISTORIES / 10 && seen.moved > HISTORIES / 40, "{seen:?}");
}

#[test]
fn a_seed_is_all_that_it_takes_to_repeat_a_history() {
    for seed in [7, 8, 9] {
        let lives = [(); 2].map(|()| {
            let told = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
            let tell = std::rc::Rc::clone(&told);
            search::repeat(seed, &BTreeSet::new(), move |line| tell.borrow_mut().push(line));
            told.take()
        });
        assert!(lives[0].len() > 20, "seed {seed}: {lives:?}");
        assert_eq!(lives[0], lives[1], "seed {seed}");
    }
}

/// Histories that failed once, before what they showed was mended.
#[test]
fn what_was_found_stays_mended() {
    for (seed, what) in [
        (196, "a call of which the ring took a part only was not sent on"),
        (2412, "a client was reset before it had read its last answer"),
    ] {
        let end = history::live(&Plan::draw(seed), None);
        assert!(end.violations.is_empty(), "seed {seed}, {what}: {:?}", end.violations);
    }
}
