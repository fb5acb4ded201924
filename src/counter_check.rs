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

/// A counter that is asked.
#[derive(Debug)]
pub struct Asked {
    /// Where it is.
    pub counter: Endpoint,
    /// Whether each route that uses it has others.
    has_others: bool,
}

impl Asked {
    /// What happens while it has this problem.
    pub fn meanwhile(&self, problem: &Problem) -> &'static str {
        match (self.has_others, problem) {
            (false, _) => "visitors get the sorry page",
            (true, Problem::Silent(_)) => "other counters get its visits",
            (true, Problem::Status(_)) => "some visitors get the sorry page",
        }
    }
}

/// The counters of these routes that are not bundled, each once.
pub fn counters_of(routes: &[RouteConfig]) -> Vec<Asked> {
    let mut asked: Vec<Asked> = Vec::new();
    for visits in routes.iter().filter_map(RouteConfig::visits) {
        let has_others = visits.counters.len() > 1;
        for counter in &visits.counters {
            if let Some(known) = asked.iter_mut().find(|asked| asked.counter == *counter) {
                known.has_others &= has_others;
            } else if asked.len() < ASKED_MAX {
                asked.push(Asked { counter: counter.clone(), has_others });
            }
        }
    }
    asked
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
