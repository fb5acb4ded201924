//! Whether a store fails, and why: told by the log, and to whoever asks at any time.
//!
//! The log has one line when it begins to fail, and one when it works again. In between, another reason is told once, and
//! at most one each [`PAUSE`]: a cluster whose members fail in turn has a new reason with each try.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Between two reasons of one failure that are told.
const PAUSE: Duration = Duration::from_secs(10);
/// The most reasons of one failure that are told.
const REASONS_MAX: usize = 8;

/// What others may ask of a store that is in use on its own thread.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<Option<Failure>>>);

/// Since it began to fail.
#[derive(Debug)]
struct Failure {
    /// What was tried last has failed by this.
    problem: String,
    /// All that were told, and when the last one was.
    told: Vec<String>,
    last: Instant,
}

impl Health {
    /// Why nothing can be counted, since what was tried last has failed; `None` while it works.
    pub fn problem(&self) -> Option<String> {
        self.lock().as_ref().map(|failure| failure.problem.clone())
    }

    /// It fails for this reason; whether that is to be told.
    pub fn fails(&self, problem: &str) -> bool {
        self.fails_at(problem, Instant::now(), PAUSE)
    }

    /// It will not work again, for this reason; whether that is to be told.
    pub fn ends(&self, problem: &str) -> bool {
        self.fails_at(problem, Instant::now(), Duration::ZERO)
    }

    fn fails_at(&self, problem: &str, now: Instant, pause: Duration) -> bool {
        let problem = problem.to_owned();
        let mut known = self.lock();
        let Some(failure) = &mut *known else {
            *known = Some(Failure { told: vec![problem.clone()], problem, last: now });
            return true;
        };
        failure.problem = problem;
        let is_new = !failure.told.contains(&failure.problem);
        let is_time = now.saturating_duration_since(failure.last) >= pause;
        if !is_new || !is_time || failure.told.len() == REASONS_MAX {
            return false;
        }
        failure.told.push(failure.problem.clone());
        failure.last = now;
        true
    }

    /// It works; whether that is news.
    pub fn works(&self) -> bool {
        self.lock().take().is_some()
    }

    /// A thread that has panicked has left it whole.
    fn lock(&self) -> MutexGuard<'_, Option<Failure>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_news_until_it_works_again() {
        let health = Health::default();
        let seen = health.clone();
        assert!(!health.works());
        assert!(health.fails("full") && !health.fails("full"));
        assert_eq!(seen.problem().as_deref(), Some("full"));
        assert!(health.works() && !health.works());
        assert_eq!(seen.problem(), None);
        assert!(health.fails("full") && health.works());
        assert!(health.fails("gone"));
    }

    #[test]
    fn of_reasons_that_alternate_each_is_told_once_and_few_in_a_time() {
        let (health, began) = (Health::default(), Instant::now());
        let told = (0..1000).filter(|tenth| {
            let now = began + Duration::from_millis(100) * *tenth;
            health.fails_at(["refused", "no leader", "silent"][*tenth as usize % 3], now, PAUSE)
        });
        assert_eq!(told.collect::<Vec<_>>(), [0, 100, 200]);
        // Who asks is told the last one.
        assert_eq!(health.problem().as_deref(), Some("refused"));
        // Reasons that never come to an end, as with a number in them.
        let later = began + Duration::from_secs(1000);
        let told = (1..1000)
            .filter(|number| health.fails_at(&number.to_string(), later + PAUSE * *number, PAUSE));
        assert_eq!(told.count(), REASONS_MAX - 3);
        assert!(health.works() && health.fails("refused"));
        // The last word is not held back.
        assert!(!health.fails("fenced") && health.ends("fenced") && !health.ends("fenced"));
    }
}
