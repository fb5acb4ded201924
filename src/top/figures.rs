//! The figures of `/stats` that are shown. Fields that are not here are passed over: newer servers have more.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::TopError;

/// The schema that is read here.
pub const SCHEMA: u64 = 1;

/// An answer.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Figures {
    pub version: String,
    pub state: String,
    pub ready: bool,
    pub uptime_seconds: f64,
    /// The last one is `None` and has no bound.
    pub bucket_bounds_seconds: Vec<Option<f64>>,
    pub totals: Counts,
    pub workers: Vec<Worker>,
    pub counters: Vec<Counter>,
    pub bundled: Option<Bundled>,
    pub process: Option<Process>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Counts {
    pub visits: Visits,
    pub erred_by_cause: BTreeMap<String, u64>,
    pub bad_requests_by_reason: BTreeMap<String, u64>,
    pub connections: Connections,
    pub panics: u64,
    pub durations: Durations,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Visits {
    pub welcomed: u64,
    pub erred: u64,
    pub refused: u64,
    pub abandoned: u64,
    pub in_flight: u64,
}

impl Visits {
    /// All that have ended.
    pub const fn ended(&self) -> u64 {
        self.welcomed + self.erred + self.refused + self.abandoned
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Connections {
    pub open: u64,
    pub accepted: u64,
    pub evicted: u64,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Durations {
    /// How many are in each bucket, without those in the buckets before it.
    pub buckets: Vec<u64>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Worker {
    pub worker: usize,
    pub core: usize,
    pub driver: Option<Driver>,
    pub silent_seconds: Option<f64>,
    pub cpu: Option<Cpu>,
    #[serde(flatten)]
    pub counts: Counts,
    pub upstreams: Vec<Upstream>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Driver {
    pub name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Cpu {
    pub user_seconds: f64,
    pub system_seconds: f64,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Upstream {
    pub connections: u64,
    pub idle: u64,
    pub queued: u64,
    /// For a counter, how many workers find that it fails.
    pub failing: u64,
    pub last_call_seconds: Option<f64>,
    pub durations: Durations,
    pub waits: Durations,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Counter {
    pub counter: String,
    pub bundled: bool,
    #[serde(flatten)]
    pub upstream: Upstream,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Bundled {
    pub counted: u64,
    pub commits: u64,
    /// Why its store fails. Older servers do not tell it.
    #[serde(default)]
    pub store_problem: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Process {
    pub resident_memory_bytes: u64,
}

impl Figures {
    /// Reads an answer.
    ///
    /// # Errors
    /// When it is no such answer, or one with another schema.
    pub fn parse(answer: &[u8]) -> Result<Self, TopError> {
        #[derive(Deserialize)]
        struct Head {
            schema: u64,
        }
        let Head { schema } = serde_json::from_slice(answer).map_err(TopError::NotFigures)?;
        if schema != SCHEMA {
            return Err(TopError::Schema(schema));
        }
        serde_json::from_slice(answer).map_err(TopError::NotFigures)
    }

    /// Whether these are of the same run of the same server as `earlier`, so that the two can be compared.
    pub fn continues(&self, earlier: &Self) -> bool {
        self.uptime_seconds > earlier.uptime_seconds
            && self.workers.len() == earlier.workers.len()
            && self.counters.len() == earlier.counters.len()
            && self.bucket_bounds_seconds == earlier.bucket_bounds_seconds
            && self.totals.visits.ended() >= earlier.totals.visits.ended()
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::metrics::BOUNDS;

    /// Of a server with two workers and one counter, after a minute in which nothing happened.
    pub fn figures() -> Figures {
        let durations = || Durations { buckets: vec![0; BOUNDS.len()] };
        let counts = || Counts {
            visits: Visits { welcomed: 0, erred: 0, refused: 0, abandoned: 0, in_flight: 0 },
            erred_by_cause: BTreeMap::from([(String::from("timeout"), 0)]),
            bad_requests_by_reason: BTreeMap::from([(String::from("malformed"), 0)]),
            connections: Connections { open: 0, accepted: 0, evicted: 0 },
            panics: 0,
            durations: durations(),
        };
        let upstream = || Upstream {
            connections: 0,
            idle: 0,
            queued: 0,
            failing: 0,
            last_call_seconds: None,
            durations: durations(),
            waits: durations(),
        };
        let worker = |worker| Worker {
            worker,
            core: worker + 4,
            driver: Some(Driver { name: String::from("io_uring") }),
            silent_seconds: Some(0.1),
            cpu: Some(Cpu { user_seconds: 1.0, system_seconds: 2.0 }),
            counts: counts(),
            upstreams: vec![upstream()],
        };
        let counter = String::from("10.0.0.5:3001");
        Figures {
            version: String::from("0.1.0"),
            state: String::from("serving"),
            ready: true,
            uptime_seconds: 60.0,
            bucket_bounds_seconds: BOUNDS.map(|bound| bound.is_finite().then_some(bound)).to_vec(),
            totals: counts(),
            workers: vec![worker(0), worker(1)],
            counters: vec![Counter { counter, bundled: false, upstream: upstream() }],
            bundled: None,
            process: Some(Process { resident_memory_bytes: 20 << 20 }),
        }
    }

    #[test]
    fn figures_of_one_run_can_be_compared() {
        let earlier = figures();
        let later = || Figures { uptime_seconds: 61.0, ..figures() };
        assert!(later().continues(&earlier));
        assert!(!earlier.continues(&earlier), "no time has passed");
        let mut other = later();
        other.workers.pop();
        assert!(!other.continues(&earlier));
        // Started again, long enough ago.
        let mut visited = figures();
        visited.totals.visits.erred = 1;
        assert!(!later().continues(&visited));
    }

    #[track_caller]
    fn check_refused(answer: &str, expected: &str) {
        assert!(Figures::parse(answer.as_bytes()).unwrap_err().to_string().contains(expected));
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        check_refused("", "not that of a tallyring server");
        check_refused("[]", "not that of a tallyring server");
        check_refused("{\"schema\": 1}", "missing field `version`");
        check_refused("{\"schema\": 2}", "its figures have schema 2, and this program reads 1");
    }
}
