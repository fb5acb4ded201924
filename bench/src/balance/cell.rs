//! A cell of the table: connections on cores under a policy, over many placements.

use serde::{Deserialize, Serialize};

use super::model::{Outcome, Policy, Setting, Size, generator, histogram, place, wait, watch};

/// What happened over all placements. Times are in visits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Connections and cores.
    #[serde(flatten)]
    pub size: Size,
    /// Who serves a connection.
    pub policy: Policy,
    /// The work of the busiest core, by an even share for each core that can be busy; the mean over all placements.
    pub busiest: f64,
    /// The same in the worst of 20 placements.
    pub busiest_p95: f64,
    /// The same by the mean of all cores, also of those that have no connection.
    pub busiest_of_mean: f64,
    /// The share of its time that the busiest core was busy.
    pub busiest_busy: f64,
    /// How long a visit waits for a core: the mean.
    pub wait_mean: f64,
    /// 99 %.
    pub wait_p99: f64,
    /// Visits, by those that the connections would make if none had to wait.
    pub visits: f64,
    /// The share of visits that were stolen.
    pub stolen: f64,
}

impl Cell {
    /// Simulates all placements.
    pub fn simulate(setting: &Setting, size: Size, policy: Policy) -> Self {
        let mut waits = histogram();
        let mut outcomes = Vec::new();
        let draws = setting.draws(size);
        for draw in 0..draws {
            let mut rng = generator(setting.seed, size, draw);
            let homes = place(policy, size, setting.load, &mut rng);
            outcomes.push(watch(setting, policy, (size, homes), rng, &mut waits));
        }
        let mean = |figure: &dyn Fn(&Outcome) -> f64| {
            outcomes.iter().map(figure).sum::<f64>() / outcomes.len() as f64
        };
        let sum = |figure: fn(&Outcome) -> u64| outcomes.iter().map(figure).sum::<u64>() as f64;
        let visits = sum(|outcome| outcome.visits);
        let unhindered = setting.load * size.usable() * setting.span * f64::from(draws);
        let even = |outcome: &Outcome| busiest(outcome) * size.usable() / total(outcome);
        let mut spread: Vec<_> = outcomes.iter().map(even).collect();
        spread.sort_by(f64::total_cmp);
        let p95 = spread.get((spread.len() * 19).div_ceil(20).saturating_sub(1));
        Self {
            size,
            policy,
            busiest: rounded(mean(&even)),
            busiest_p95: rounded(p95.copied().unwrap_or(f64::NAN)),
            busiest_of_mean: rounded(mean(&even) * size.cores as f64 / size.usable()),
            busiest_busy: rounded(mean(&busiest)),
            wait_mean: rounded(mean(&|outcome| outcome.waited) * f64::from(draws) / visits),
            wait_p99: rounded(wait(waits.value_at_quantile(0.99))),
            visits: rounded(visits / unhindered),
            stolen: rounded(sum(|outcome| outcome.stolen) / visits),
        }
    }
}

/// The share of its time that the busiest core was busy.
fn busiest(outcome: &Outcome) -> f64 {
    outcome.busy.iter().copied().fold(0.0, f64::max)
}

fn total(outcome: &Outcome) -> f64 {
    outcome.busy.iter().sum()
}

/// To four digits after the point, which is more than the simulation knows.
fn rounded(figure: f64) -> f64 {
    (figure * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use super::{super::exact, *};
    use crate::balance::model::Service;

    fn setting(load: f64, service: Service) -> Setting {
        Setting { seed: 7, load, service, steal_cost: 0.0, draws: 1, span: 200_000.0 }
    }

    #[track_caller]
    fn check(figure: f64, expected: f64, tolerance: f64) {
        let error = figure / expected - 1.0;
        assert!(error.abs() < tolerance, "{figure}, not {expected}: {:.1} %", error * 100.0);
    }

    /// A crowd of connections is as good as an endless one.
    const CROWD: usize = 20_000;

    #[test]
    fn visits_of_a_crowd_wait_for_one_core_as_in_m_m_1_and_m_d_1() {
        let size = Size { cores: 1, connections: CROWD };
        let load = 0.7;
        let cell = |service| Cell::simulate(&setting(load, service), size, Policy::ReusePort);
        let markov = cell(Service::Exponential);
        check(markov.busiest_busy, load, 0.02);
        check(markov.wait_mean, load / (1.0 - load), 0.04);
        check(markov.wait_p99, (load / 0.01).ln() / (1.0 - load), 0.04);
        // Pollaczek and Khinchine: half of that.
        check(cell(Service::Constant).wait_mean, load / (2.0 * (1.0 - load)), 0.04);
    }

    #[test]
    fn without_a_cost_cores_that_steal_are_one_queue() {
        for (cores, load) in [(2, 0.6), (4, 0.8), (8, 0.8)] {
            let size = Size { cores, connections: CROWD };
            let setting =
                Setting { span: 400_000.0 / cores as f64, ..setting(load, Service::Exponential) };
            let cell = Cell::simulate(&setting, size, Policy::Stealing);
            check(cell.wait_mean, exact::erlang_c_wait(cores, load), 0.06);
        }
        // What is stolen takes cores more time.
        let size = Size { cores: 4, connections: CROWD };
        let costly = Setting { steal_cost: 0.2, ..setting(0.6, Service::Exponential) };
        let cell = Cell::simulate(&costly, size, Policy::Stealing);
        check(cell.busiest_busy, 0.6 * (1.0 + 0.2 * cell.stolen), 0.03);
        assert!(cell.stolen > 0.3, "{cell:?}");
    }

    #[test]
    fn few_connections_are_a_closed_network() {
        for (cores, connections) in [(1, 3), (2, 4), (4, 8)] {
            let size = Size { cores, connections };
            let setting = setting(0.6, Service::Exponential);
            let think = connections as f64 / (0.6 * size.usable()) - 1.0;
            let cell = Cell::simulate(&setting, size, Policy::Stealing);
            let exact = exact::closed(cores, connections, think);
            check(cell.wait_mean, exact.wait, 0.03);
            check(cell.visits, exact.visits / (0.6 * size.usable()), 0.02);
        }
    }

    #[test]
    fn the_spread_under_a_hash_is_that_of_all_ways_to_place_the_connections() {
        let size = Size { cores: 2, connections: 4 };
        let setting = Setting { draws: 1500, span: 400.0, ..setting(0.6, Service::Exponential) };
        let cell = Cell::simulate(&setting, size, Policy::ReusePort);
        let think = 4.0 / 1.2 - 1.0;
        let busy = |connections| exact::closed(1, connections, think).visits;
        let spread = |one: usize| {
            let both = [busy(one), busy(4 - one)];
            both[0].max(both[1]) * 2.0 / (both[0] + both[1])
        };
        // 16 ways: 1, 4, 6, 4 and 1 of them put 0 to 4 connections on the first core.
        let ways = [(0, 1.0), (1, 4.0), (2, 6.0), (3, 4.0), (4, 1.0)];
        let mean = ways.into_iter().map(|(one, ways)| ways / 16.0 * spread(one)).sum::<f64>();
        // In a finite span one of two equal cores is a little busier.
        check(cell.busiest, mean, 0.04);
        assert!((cell.busiest_p95 - 2.0).abs() < 1e-9, "an eighth is on one core: {cell:?}");
        let fair = Cell::simulate(&setting, size, Policy::HandOver);
        assert!(fair.busiest < 1.1 && fair.busiest_p95 < 1.2, "{fair:?}");
        // The mean of all cores is another measure where some cannot be busy.
        let many = Size { cores: 8, connections: 4 };
        let cell = Cell::simulate(&Setting { draws: 10, ..setting }, many, Policy::ReusePort);
        check(cell.busiest_of_mean, cell.busiest * 2.0, 0.001);
    }

    #[test]
    fn a_seed_gives_one_cell() {
        let size = Size { cores: 4, connections: 8 };
        let setting = Setting { draws: 3, span: 100.0, ..setting(0.6, Service::Constant) };
        for policy in [Policy::ReusePort, Policy::HandOver, Policy::Stealing] {
            let cell = |seed| Cell::simulate(&Setting { seed, ..setting.clone() }, size, policy);
            assert_eq!(cell(1), cell(1));
            assert_ne!(cell(1), cell(2));
        }
    }
}
