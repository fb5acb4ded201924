//! Looks for histories that fail, and for what a failure needs.

use std::{
    collections::BTreeSet,
    rc::Rc,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    history::{self, End},
    plan::{Part, Plan},
};

/// How long a failure is shrunk.
const SHRINK: Duration = Duration::from_secs(20);

/// When a search ends.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    /// After so many histories.
    Histories(u64),
    /// After so long.
    Time(Duration),
}

/// What a search has seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// Histories.
    pub histories: u64,
    /// Answers that were right.
    pub answers: u64,
    /// Connections that were handed over to another worker.
    pub handed_over: u64,
    /// Connections that moved to another worker between two requests.
    pub moved: u64,
    /// What happened in them.
    pub events: u64,
    /// The seed of the first that failed, and what was wrong.
    pub failure: Option<(u64, Vec<String>)>,
}

/// Lives through histories of the seeds from `first` on, with as many threads, until one fails.
pub fn search(first: u64, until: Until, threads: usize) -> Seen {
    let (next, failed) = (AtomicU64::new(first), AtomicBool::new(false));
    let seen = Mutex::new(Seen::default());
    let begun = Instant::now();
    let goes_on = |seed: u64| match until {
        Until::Histories(most) => seed < first + most,
        Until::Time(time) => begun.elapsed() < time,
    };
    let work = || {
        while !failed.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if !goes_on(seed) {
                return;
            }
            let End { violations, answers, handed_over, moved, counts, .. } =
                history::live(&Plan::draw(seed), None);
            let mut seen = seen.lock().expect("nobody panics with it");
            seen.histories += 1;
            seen.answers += answers as u64;
            seen.handed_over += handed_over;
            seen.moved += moved;
            seen.events += counts.events;
            if !violations.is_empty() {
                failed.store(true, Ordering::Relaxed);
                if seen.failure.as_ref().is_none_or(|(known, _)| seed < *known) {
                    seen.failure = Some((seed, violations));
                }
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    seen.into_inner().expect("nobody panics with it")
}

/// Leaves out what the failure of `seed` does not need.
pub fn shrink(seed: u64) -> BTreeSet<Part> {
    let begun = Instant::now();
    let mut left_out = BTreeSet::new();
    let live = |parts: &BTreeSet<Part>| history::live(&Plan::draw(seed).without(parts), None);
    // Not any failure, but this one.
    let kind = live(&left_out).violations.first().map(|violation| kind(violation));
    let fails = |parts: &BTreeSet<Part>| {
        live(parts).violations.first().map(|violation| self::kind(violation)) == kind
    };
    loop {
        let before = left_out.len();
        for part in Plan::draw(seed).without(&left_out).parts() {
            if begun.elapsed() > SHRINK {
                return left_out;
            }
            if left_out.contains(&part) {
                continue;
            }
            left_out.insert(part);
            if !fails(&left_out) {
                left_out.remove(&part);
            }
        }
        if left_out.len() == before {
            // A step of a client that does not come says nothing.
            let comes = |client| !left_out.contains(&Part::Client(client));
            return left_out
                .iter()
                .copied()
                .filter(|part| !matches!(part, Part::Step(client, _) if !comes(*client)))
                .collect();
        }
    }
}

/// What was wrong, without its numbers.
fn kind(violation: &str) -> String {
    let text = violation.split(':').next().unwrap_or_default();
    text.chars().filter(|char| !char.is_ascii_digit()).collect()
}

/// Lives through a history once more and tells all that happens.
pub fn repeat(seed: u64, without: &BTreeSet<Part>, tell: impl Fn(String) + 'static) -> End {
    let plan = Plan::draw(seed).without(without);
    tell(format!("{plan:#?}"));
    history::live(
        &plan,
        Some(Rc::new(move |time, what| tell(format!("{:>11.6} s  {what}", time as f64 / 1e6)))),
    )
}
