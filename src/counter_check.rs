//! Asks the counters of a site once, without registering a visit, so that a wrong URL is found before the first visit
//! fails.

use std::{
    fmt,
    time::{Duration, Instant},
};

use crate::{
    ask::{self, AskError},
    config::RouteConfig,
    upstream::Endpoint,
};

/// The time for one answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The most counters that are asked; a site may have a thousand.
const ASKED_MAX: usize = 16;

/// What is probably wrong with a counter.
#[derive(Debug)]
pub enum Problem {
    /// There is no answer.
    Silent(AskError),
    /// It answers with this status.
    Status(u16),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent(error) => error.fmt(f),
            Self::Status(status) => write!(f, "it answers {status} to a GET"),
        }
    }
}

/// The counters of these routes that are not bundled, each once.
pub fn counters_of(routes: &[RouteConfig]) -> Vec<Endpoint> {
    let visits = routes.iter().filter_map(RouteConfig::visits);
    let mut counters: Vec<Endpoint> = Vec::new();
    for counter in visits.filter_map(|visits| visits.counter.as_ref()) {
        if counters.len() < ASKED_MAX && !counters.contains(counter) {
            counters.push(counter.clone());
        }
    }
    counters
}

/// Asks a counter by a GET, which is safe (RFC 9110 section 9.2.1): it registers nothing.
///
/// # Errors
/// When visits will probably not be registered there.
pub fn check(counter: &Endpoint) -> Result<(), Problem> {
    let status = ask::status(counter, Instant::now() + TIMEOUT).map_err(Problem::Silent)?;
    // A counter may accept POST only: 405, or 501 if it does not know GET.
    match status {
        200..=299 | 405 | 501 => Ok(()),
        status => Err(Problem::Status(status)),
    }
}
