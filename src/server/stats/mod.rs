//! What a running server tells of itself. A [`Snapshot`] is made of what others write when somebody asks, and
//! `/metrics` and `/stats` are two forms of it.
//!
//! It runs on the admin listener's thread. Workers do no more for it than to write their counts.

mod machine;
mod registry;
mod snapshot;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Instant,
};

use self::machine::Machine;
pub(super) use self::{registry::registry, snapshot::Snapshot};
use super::admin::Readiness;
use crate::metrics::{AccessLogMetrics, CounterMetrics, WorkerMetrics};

/// The addresses of the counters, in their order. Written by the threads that look names up.
pub(super) type CounterAddresses = Arc<Mutex<Vec<Vec<SocketAddr>>>>;

/// Where a snapshot comes from.
#[derive(Debug)]
pub(super) struct Sources {
    pub(super) readiness: Arc<Readiness>,
    pub(super) started: Instant,
    pub(super) workers: Vec<WorkerSource>,
    pub(super) counters: Vec<CounterSource>,
    pub(super) addresses: CounterAddresses,
    /// The bundled counter, if it runs.
    pub(super) bundled: Option<Arc<CounterMetrics>>,
    /// The access log, if it is written.
    pub(super) access_log: Option<Arc<AccessLogMetrics>>,
}

#[derive(Debug)]
pub(super) struct WorkerSource {
    pub(super) core: usize,
    pub(super) metrics: Arc<WorkerMetrics>,
}

/// A counter that the workers know.
#[derive(Debug)]
pub(super) struct CounterSource {
    /// Its host and port.
    pub(super) name: String,
    pub(super) bundled: bool,
}

impl Sources {
    /// How everything is now.
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot::take(self, Machine::read())
    }

    fn addresses_of(&self, counter: usize) -> Vec<String> {
        let addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        addresses.get(counter).into_iter().flatten().map(SocketAddr::to_string).collect()
    }

    /// What the server does, and whether it is ready.
    fn state(&self) -> (&'static str, bool) {
        let Readiness { serves, counter_fails, stops } = &*self.readiness;
        let serves = serves.load(Ordering::Acquire);
        let state = match serves {
            true => "serving",
            false if stops.load(Ordering::Acquire) => "stopping",
            false => "starting",
        };
        (state, serves && !counter_fails.load(Ordering::Acquire))
    }
}
