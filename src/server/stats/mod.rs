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
use crate::metrics::{CounterMetrics, WorkerMetrics};

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
}

#[derive(Debug)]
pub(super) struct WorkerSource {
    pub(super) core: usize,
    pub(super) metrics: Arc<WorkerMetrics>,
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
        let addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let counters = self.counters.iter().enumerate().filter_map(|(place, source)| {
            let addresses = addresses.get(place).into_iter().flatten();
            let addresses: Vec<String> = addresses.map(SocketAddr::to_string).collect();
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
