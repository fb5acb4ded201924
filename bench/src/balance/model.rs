//! Connections on cores, as a simulation of discrete events.
//!
//! Time is in visits: one is the CPU time of a visit. A connection thinks for an exponential time, makes a visit, waits
//! until a core has served it, and thinks again. A core serves one visit at a time, in the order of their arrival.

mod moves;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    iter,
};

use clap::ValueEnum;
use fastrand::Rng;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// The parts of a visit's time that the simulation distinguishes.
const TICKS: f64 = 1e6;
/// From here on there are fewer placements, so that each size takes as long.
const MANY_CORES: usize = 16;
/// Longer waits are taken for this.
const WAIT_TICKS_MAX: u64 = 10_000_000_000_000;

/// Who serves a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// The core that the kernel's hash gives it to
    ReusePort,
    /// That core, or another one that is drawn and has clearly less to do, at accept or later
    HandOver,
    /// The core that served it last, or any core that has nothing to do
    Stealing,
}

/// How long a core works for a visit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Service {
    /// Always as long
    Constant,
    /// Exponentially distributed
    Exponential,
}

/// What all cells of a simulation have in common.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// Of the generator of random numbers.
    pub seed: u64,
    /// How busy the cores that connections can use are, if the load is even and no visit waits.
    pub load: f64,
    /// How long a core works for a visit.
    pub service: Service,
    /// What a stolen visit costs more.
    pub steal_cost: f64,
    /// How often the connections are placed anew, as [`Setting::draws`] says.
    pub draws: u32,
    /// How long each placement is watched, after a quarter of that.
    pub span: f64,
}

impl Setting {
    /// How often the connections are placed anew on so many cores. On many cores placements differ less, and take longer.
    pub fn draws(&self, size: Size) -> u32 {
        let fewer = size.cores.div_ceil(MANY_CORES);
        self.draws / u32::try_from(fewer).unwrap_or(u32::MAX).clamp(1, self.draws.max(1))
    }
}

/// Connections and cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// How many cores.
    pub cores: usize,
    /// How many connections.
    pub connections: usize,
}

impl Size {
    /// The cores that can be busy at a time.
    pub fn usable(self) -> f64 {
        self.cores.min(self.connections) as f64
    }
}

/// One placement, watched.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The time that each core was busy, as a share of the span.
    pub busy: Vec<f64>,
    /// Visits that were begun, and those of them that were stolen.
    pub visits: u64,
    /// Those of them that were stolen.
    pub stolen: u64,
    /// The sum of the times that visits waited for a core.
    pub waited: f64,
}

/// The connections of each core, as they are accepted and as some of them move later: the core of each connection.
pub fn place(policy: Policy, size: Size, load: f64, rng: &mut Rng) -> Vec<usize> {
    let mut connections = vec![0_usize; size.cores];
    let mut accept = || {
        let hashed = rng.usize(..size.cores);
        let core = match policy {
            Policy::HandOver => taker(hashed, &connections, rng),
            _ => hashed,
        };
        connections[core] += 1;
        core
    };
    let homes: Vec<_> = iter::repeat_with(&mut accept).take(size.connections).collect();
    match policy {
        Policy::HandOver => moves::even_out(homes, size, load, rng),
        _ => homes,
    }
}

/// The core that serves a connection which was hashed to a core: that one, or one of two others if it has clearly fewer
/// connections, as in the product where nobody is busy yet.
fn taker(hashed: usize, connections: &[usize], rng: &mut Rng) -> usize {
    let others = moves::draw(hashed, connections.len(), rng);
    let Some(least) = others.min_by_key(|core| connections[*core]) else { return hashed };
    let with_it = connections[hashed] + 1;
    let fewer = with_it.saturating_sub(connections[least]);
    if fewer >= with_it.div_ceil(8).max(2) { least } else { hashed }
}

/// A generator for a placement, which depends on nothing but its arguments.
pub fn generator(seed: u64, size: Size, draw: u32) -> Rng {
    let parts = [size.cores as u64, size.connections as u64, u64::from(draw)];
    parts.into_iter().fold(Rng::with_seed(seed), |mut rng, part| Rng::with_seed(rng.u64(..) ^ part))
}

/// Watches connections that were placed; adds how long their visits wait to `waits`, as [`wait`] reads them.
pub fn watch(
    setting: &Setting,
    policy: Policy,
    (size, homes): (Size, Vec<usize>),
    rng: Rng,
    waits: &mut Histogram<u64>,
) -> Outcome {
    let from = ticks(setting.span / 4.0);
    let mut world = World {
        setting,
        is_stealing: policy == Policy::Stealing,
        think: size.connections as f64 / (setting.load * size.usable()) - 1.0,
        from,
        until: from + ticks(setting.span),
        rng,
        events: BinaryHeap::new(),
        homes,
        cores: iter::repeat_with(Core::default).take(size.cores).collect(),
        busy: 0,
        waiting: 0,
        outcome: Outcome { busy: Vec::new(), visits: 0, stolen: 0, waited: 0.0 },
        waits,
    };
    world.run();
    let span = setting.span * TICKS;
    world.outcome.busy = world.cores.iter().map(|core| core.busy_ticks as f64 / span).collect();
    world.outcome
}

/// An empty histogram for [`watch`], of three digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, WAIT_TICKS_MAX, 3)
        .unwrap_or_else(|_| unreachable!("the bounds and the digits are within the limits"))
}

/// A time of the histogram of [`watch`], in visits.
pub fn wait(ticks: u64) -> f64 {
    ticks as f64 / TICKS
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A core has served this connection's visit.
    Served { core: usize, connection: usize },
    /// A connection makes a visit.
    Visit { connection: usize },
}

#[derive(Default)]
struct Core {
    is_busy: bool,
    /// Within the time that is watched.
    busy_ticks: u64,
    /// Visits that wait for it: their connections, and when they arrived.
    queue: VecDeque<(u64, usize)>,
}

struct World<'a> {
    setting: &'a Setting,
    is_stealing: bool,
    /// The mean time between an answer and the next visit.
    think: f64,
    /// What is watched.
    from: u64,
    until: u64,
    rng: Rng,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    /// The core of each connection.
    homes: Vec<usize>,
    cores: Vec<Core>,
    /// Cores that are busy.
    busy: usize,
    /// Visits that wait.
    waiting: usize,
    outcome: Outcome,
    waits: &'a mut Histogram<u64>,
}

impl World<'_> {
    fn run(&mut self) {
        for connection in 0..self.homes.len() {
            self.think(0, connection);
        }
        while let Some(Reverse((now, event))) = self.events.pop() {
            match event {
                Event::Visit { connection } => self.arrive(now, connection),
                Event::Served { core, connection } => {
                    self.cores[core].is_busy = false;
                    self.busy -= 1;
                    self.think(now, connection);
                    self.next(now, core);
                }
            }
        }
    }

    /// The connection makes its next visit after a time.
    fn think(&mut self, now: u64, connection: usize) {
        let at = now + ticks(self.think * exponential(&mut self.rng));
        self.push(at, Event::Visit { connection });
    }

    fn push(&mut self, at: u64, event: Event) {
        if at < self.until {
            self.events.push(Reverse((at, event)));
        }
    }

    fn arrive(&mut self, now: u64, connection: usize) {
        let home = self.homes[connection];
        if !self.cores[home].is_busy {
            return self.serve(now, home, (now, connection));
        }
        if self.is_stealing && self.busy < self.cores.len() {
            let first = self.rng.usize(..self.cores.len());
            let mut cores = (first..self.cores.len()).chain(0..first);
            if let Some(idle) = cores.find(|core| !self.cores[*core].is_busy) {
                return self.serve(now, idle, (now, connection));
            }
        }
        self.cores[home].queue.push_back((now, connection));
        self.waiting += 1;
    }

    /// A core that has become free takes its next visit, or steals the one that waits longest.
    fn next(&mut self, now: u64, core: usize) {
        if self.waiting == 0 {
            return;
        }
        let mut from = core;
        if self.is_stealing && self.cores[core].queue.is_empty() {
            let first = |from: usize| self.cores[from].queue.front().map(|visit| (visit.0, from));
            let oldest = (0..self.cores.len()).filter_map(first).min();
            from = oldest.map_or(core, |(_, from)| from);
        }
        if let Some(visit) = self.cores[from].queue.pop_front() {
            self.waiting -= 1;
            self.serve(now, core, visit);
        }
    }

    fn serve(&mut self, now: u64, core: usize, (arrived, connection): (u64, usize)) {
        let is_stolen = self.homes[connection] != core;
        let work = match self.setting.service {
            Service::Constant => 1.0,
            Service::Exponential => exponential(&mut self.rng),
        };
        let cost = if is_stolen { self.setting.steal_cost } else { 0.0 };
        let end = now + ticks(work + cost);
        self.homes[connection] = core;
        self.busy += 1;
        self.cores[core].is_busy = true;
        self.cores[core].busy_ticks += end.min(self.until).saturating_sub(now.max(self.from));
        if arrived >= self.from {
            self.outcome.visits += 1;
            self.outcome.stolen += u64::from(is_stolen);
            self.outcome.waited += wait(now - arrived);
            self.waits.saturating_record(now - arrived);
        }
        self.push(end, Event::Served { core, connection });
    }
}

/// An exponentially distributed number with the mean 1.
fn exponential(rng: &mut Rng) -> f64 {
    -(1.0 - rng.f64()).ln()
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn ticks(time: f64) -> u64 {
    (time * TICKS).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        arms::Arm,
        balance::exact,
        record::{Record, Run},
    };

    const DRAWS: u32 = 20_000;

    /// The connections of the core that has most, in each of many placements.
    fn most(policy: Policy, size: Size) -> Vec<usize> {
        let most = |draw| {
            let mut connections = vec![0; size.cores];
            for core in place(policy, size, 0.6, &mut generator(7, size, draw)) {
                connections[core] += 1;
            }
            assert_eq!(connections.iter().sum::<usize>(), size.connections);
            connections.into_iter().max().unwrap_or_default()
        };
        (0..DRAWS).map(most).collect()
    }

    #[test]
    fn a_hash_puts_balls_into_bins() {
        for (cores, connections) in [(1, 4), (2, 4), (4, 4), (8, 8), (16, 64), (128, 64)] {
            let most = most(Policy::ReusePort, Size { cores, connections });
            for limit in 1..=connections {
                let within = most.iter().filter(|most| **most <= limit).count() as f64;
                let expected = exact::none_has_more_than(limit, cores, connections);
                let variance = expected * (1.0 - expected) * f64::from(DRAWS);
                let error = (within - expected * f64::from(DRAWS)).abs();
                assert!(
                    error <= 4.0 * variance.max(0.0).sqrt() + 3.0,
                    "{connections} on {cores}, at most {limit}: {within} of {DRAWS}, not {expected}"
                );
            }
        }
        // All four connections on one of two cores.
        assert!((exact::none_has_more_than(3, 2, 4) - 7.0 / 8.0).abs() < 1e-12);
    }

    #[test]
    fn a_core_with_clearly_less_to_do_is_chosen() {
        // With two cores that is always the one with fewer, if it has two and an eighth less.
        for connections in [1, 4, 7, 64] {
            let most = most(Policy::HandOver, Size { cores: 2, connections });
            let limit = connections.div_ceil(2) + connections / 16 + usize::from(connections > 4);
            assert!(most.iter().all(|most| *most <= limit), "{connections}");
        }
        let mean = |policy| {
            let most = most(policy, Size { cores: 64, connections: 64 });
            most.iter().sum::<usize>() as f64 / most.len() as f64
        };
        // ln n / ln ln n, beside ln ln n / ln 2 and a little more.
        let means = [Policy::ReusePort, Policy::HandOver].map(mean);
        assert!(means[0] > 3.8 && means[1] < 2.6, "{means:?}");
    }

    #[test]
    fn four_connections_that_one_worker_has_load_cores_as_was_measured() {
        let size = Size { cores: 2, connections: 4 };
        let setting = Setting {
            seed: 7,
            load: 1.0,
            service: Service::Constant,
            steal_cost: 0.2,
            draws: 1,
            span: 2000.0,
        };
        let share = |policy| {
            let mut waits = histogram();
            let placed = (size, vec![0; 4]);
            let busy = watch(&setting, policy, placed, generator(7, size, 0), &mut waits).busy;
            busy.iter().copied().fold(0.0, f64::max) / busy.iter().sum::<f64>()
        };
        let mut found = 0;
        for run in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/runs")).unwrap() {
            let Ok(record) = Record::read(&run.unwrap().path()) else { continue };
            for (arm, policy) in
                [(Arm::Tallyring, Policy::ReusePort), (Arm::Hyper, Policy::Stealing)]
            {
                let busiest = |run: &Run| run.usage.busiest_thread_us / run.usage.cpu_us;
                let Some(measured) = record.spread("hot-connections", arm, busiest) else {
                    continue;
                };
                let error = (share(policy) - measured.median).abs();
                assert!(error < 0.1, "{arm:?}: {}, measured {measured:?}", share(policy));
                found += 1;
            }
        }
        assert!(found >= 2, "no run of hot-connections is recorded");
    }
}
