//! Whether a store fails, and why: told by the log once for each reason, and to whoever asks at any time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What others may ask of a store that is in use on its own thread.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<Option<String>>>);

impl Health {
    /// Why nothing can be counted, since what was tried last has failed; `None` while it works.
    pub fn problem(&self) -> Option<String> {
        self.lock().clone()
    }

    /// It fails for this reason; whether that is news.
    pub fn fails(&self, problem: &str) -> bool {
        let mut known = self.lock();
        let is_new = known.as_deref() != Some(problem);
        if is_new {
            *known = Some(problem.to_owned());
        }
        is_new
    }

    /// It works; whether that is news.
    pub fn works(&self) -> bool {
        self.lock().take().is_some()
    }

    /// A thread that has panicked has left the text whole.
    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_news_once_until_it_works_again() {
        let health = Health::default();
        let seen = health.clone();
        assert!(!health.works());
        assert!(health.fails("full") && !health.fails("full"));
        assert_eq!(seen.problem().as_deref(), Some("full"));
        assert!(health.fails("gone") && health.works() && !health.works());
        assert_eq!(seen.problem(), None);
        assert!(health.fails("gone"));
    }
}
