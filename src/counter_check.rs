//! Asks the counters of a site once, without registering a visit, so that a wrong URL is found before the first visit
//! fails.

use std::{
    fmt, thread,
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

/// A counter that was asked.
#[derive(Debug)]
pub struct Asked {
    /// Where it is.
    pub counter: Endpoint,
    /// What is probably wrong with it, and what happens meanwhile.
    pub problem: Option<(Problem, &'static str)>,
}

/// Asks the counters of these routes that are not bundled, all at the same time and each once.
pub fn check_all(routes: &[RouteConfig]) -> Vec<Asked> {
    let by_route: Vec<&[Endpoint]> = routes
        .iter()
        .filter_map(|route| route.visits().map(|visits| visits.counters.as_slice()))
        .collect();
    let mut counters: Vec<&Endpoint> = Vec::new();
    for counter in by_route.iter().copied().flatten() {
        if counters.len() < ASKED_MAX && !counters.contains(&counter) {
            counters.push(counter);
        }
    }
    let problems = ask_each(&counters);
    let failed: Vec<bool> = problems.iter().map(Option::is_some).collect();
    let fails = |counter: &Endpoint| {
        counters.iter().position(|asked| *asked == counter).is_some_and(|place| failed[place])
    };
    let asked = counters.iter().zip(problems).map(|(&counter, problem)| {
        let problem = problem.map(|problem| {
            // Each route that uses it has another one that works.
            let others_work = by_route
                .iter()
                .filter(|route| route.contains(counter))
                .all(|route| route.iter().any(|other| other != counter && !fails(other)));
            let meanwhile = meanwhile(&problem, others_work);
            (problem, meanwhile)
        });
        Asked { counter: counter.clone(), problem }
    });
    asked.collect()
}

/// The problems of these counters, in their order.
fn ask_each(counters: &[&Endpoint]) -> Vec<Option<Problem>> {
    thread::scope(|scope| {
        let asking: Vec<_> = counters
            .iter()
            .map(|&counter| {
                let thread = thread::Builder::new().name(String::from("counter-check"));
                (counter, thread.spawn_scoped(scope, move || check(counter).err()))
            })
            .collect();
        let answers = asking.into_iter().map(|(counter, thread)| match thread {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            // Without a thread it is asked here.
            Err(_) => check(counter).err(),
        });
        answers.collect()
    })
}

/// What happens to the visits of a counter while it has this problem.
fn meanwhile(problem: &Problem, others_work: bool) -> &'static str {
    match (others_work, problem) {
        (false, _) => "visitors get the sorry page",
        (true, Problem::Silent(_)) => "other counters get its visits",
        (true, Problem::Status(_)) => "some visitors get the sorry page",
    }
}

/// Asks a counter by a GET, which is safe (RFC 9110 section 9.2.1): it registers nothing.
fn check(counter: &Endpoint) -> Result<(), Problem> {
    let status = ask::status(counter, Instant::now() + TIMEOUT).map_err(Problem::Silent)?;
    // A counter may accept POST only: 405, or 501 if it does not know GET.
    match status {
        200..=299 | 405 | 501 => Ok(()),
        status => Err(Problem::Status(status)),
    }
}
