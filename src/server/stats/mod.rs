//! What a running server tells of itself. A [`Snapshot`] is made of what others write when somebody asks, and
//! `/metrics` and `/stats` are two forms of it.
//!
//! It runs on the admin listener's thread. Workers do no more for it than to write their counts.

mod machine;
mod registry;
mod snapshot;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use self::machine::Machine;
pub(super) use self::{registry::registry, snapshot::Snapshot};
use super::admin::Readiness;
use crate::{
    counter::store::Health,
    handoff::Intake,
    metrics::{AccessLogMetrics, CounterMetrics, WorkerMetrics},
    runtime::clock,
};

/// The addresses of the counters, in their order. Written by the threads that look names up.
#[derive(Debug, Default)]
pub(super) struct CounterAddresses(Mutex<Vec<Vec<SocketAddr>>>);

impl CounterAddresses {
    /// The addresses of one counter, as they are now; none before they are known.
    fn of(&self, counter: usize) -> Vec<SocketAddr> {
        self.lock().get(counter).cloned().unwrap_or_default()
    }

    /// One counter has these addresses from now on.
    pub(super) fn set(&self, counter: usize, addresses: Vec<SocketAddr>) {
        let mut all = self.lock();
        if all.len() <= counter {
            all.resize(counter + 1, Vec::new());
        }
        all[counter] = addresses;
    }

    /// A thread that has panicked has left each list whole.
    fn lock(&self) -> MutexGuard<'_, Vec<Vec<SocketAddr>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a snapshot comes from.
#[derive(Debug)]
pub(super) struct Sources {
    pub(super) readiness: Arc<Readiness>,
    pub(super) started: Instant,
    pub(super) workers: Vec<WorkerSource>,
    pub(super) counters: Vec<CounterSource>,
    pub(super) addresses: Arc<CounterAddresses>,
    /// The bundled counter, if it runs.
    pub(super) bundled: Option<BundledSource>,
    /// The access log, if it is written.
    pub(super) access_log: Option<Arc<AccessLogMetrics>>,
}

#[derive(Debug)]
pub(super) struct WorkerSource {
    pub(super) core: usize,
    pub(super) metrics: Arc<WorkerMetrics>,
    /// What other workers hand over to it.
    pub(super) intake: Arc<Intake>,
}

/// The bundled counter.
#[derive(Debug)]
pub(super) struct BundledSource {
    pub(super) metrics: Arc<CounterMetrics>,
    /// Where its totals are, without a password.
    pub(super) store: String,
    pub(super) health: Health,
}

impl BundledSource {
    /// A commit that takes longer is told: visits do not wait for it any more.
    const COMMIT_MAX: Duration = Duration::from_secs(5);

    /// Why nothing can be counted; `None` while the store works.
    fn problem(&self) -> Option<String> {
        let since = self.metrics.committing_since.read();
        let taken = Duration::from_millis(clock::now().millis().saturating_sub(since));
        let hangs = || since > 0 && taken > Self::COMMIT_MAX;
        self.health.problem().or_else(|| hangs().then(|| String::from("a commit does not end")))
    }
}

/// A counter that the workers know.
#[derive(Debug, Clone)]
pub(super) struct CounterSource {
    /// Its host and port.
    pub(super) name: String,
    pub(super) bundled: bool,
    /// Whether it is one of the addresses that the name may have.
    pub(super) is_address: bool,
}

impl Sources {
    /// How everything is now.
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot::take(self, Machine::read())
    }

    /// The counters, each with its place among the workers' and its addresses. A place for an address of a name is one
    /// while it has an address, which names it.
    fn counters(&self) -> Vec<(usize, CounterSource, Vec<String>)> {
        let counters = self.counters.iter().enumerate().filter_map(|(place, source)| {
            let addresses = self.addresses.of(place);
            let addresses: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
            let mut source = source.clone();
            if source.is_address {
                source.name.clone_from(addresses.first()?);
            }
            Some((place, source, addresses))
        });
        counters.collect()
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
