//! What can be computed about the simulation, to check it.

/// A closed network in its steady state.
pub struct Closed {
    /// Visits in a unit of time.
    pub visits: f64,
    /// How long one waits for a core.
    pub wait: f64,
}

/// Connections that think for an exponential time, and cores with one queue that work for an exponential time with the
/// mean 1: the machine repairmen, M/M/k//n.
pub fn closed(cores: usize, connections: usize, think: f64) -> Closed {
    // The probability of each number of visits at the cores, from births and deaths.
    let mut weights = vec![1.0];
    for visits in 0..connections {
        let births = (connections - visits) as f64 / think;
        let deaths = (visits + 1).min(cores) as f64;
        weights.push(weights[visits] * births / deaths);
    }
    let all: f64 = weights.iter().sum();
    let mean = |of: &dyn Fn(usize) -> usize| {
        weights.iter().enumerate().map(|(n, weight)| weight / all * of(n) as f64).sum::<f64>()
    };
    let visits = mean(&|n| n.min(cores));
    // Little's law.
    Closed { visits, wait: mean(&|n| n.saturating_sub(cores)) / visits }
}

/// How long a visit waits in M/M/k: Erlang C.
pub fn erlang_c_wait(cores: usize, load: f64) -> f64 {
    let offered = cores as f64 * load;
    let mut term = 1.0;
    let mut idle = 0.0;
    for busy in 0..cores {
        idle += term;
        term *= offered / (busy + 1) as f64;
    }
    let all_busy = term / (1.0 - load);
    all_busy / (idle + all_busy) / (cores as f64 * (1.0 - load))
}

/// The probability that no core gets more than `most` of the connections that are hashed to cores.
pub fn none_has_more_than(most: usize, cores: usize, connections: usize) -> f64 {
    // The chances that the connections that are left are so many, core by core.
    let mut chances = vec![0.0; connections + 1];
    chances[connections] = 1.0;
    for core in 0..cores {
        let share = 1.0 / (cores - core) as f64;
        let mut next = vec![0.0; connections + 1];
        for (left, chance) in chances.iter().enumerate() {
            for taken in 0..=most.min(left) {
                next[left - taken] += chance * binomial(left, taken, share);
            }
        }
        chances = next;
    }
    chances[0]
}

/// The probability of `hits` of `tries`.
fn binomial(tries: usize, hits: usize, chance: f64) -> f64 {
    let ways = (0..hits).map(|hit| (tries - hit) as f64 / (hit + 1) as f64).product::<f64>();
    let power = |base: f64, times: usize| (0..times).map(|_| base).product::<f64>();
    ways * power(chance, hits) * power(1.0 - chance, tries - hits)
}

mod tests {
    use super::*;

    #[test]
    fn known_values() {
        let check = |figure: f64, expected: f64| assert!((figure - expected).abs() < 1e-9);
        // M/M/1, and the known formula of M/M/2: load² / (1 - load²).
        check(erlang_c_wait(1, 0.7), 0.7 / 0.3);
        check(erlang_c_wait(2, 0.6), 0.36 / 0.64);
        // One connection never waits.
        check(closed(1, 1, 1.0).visits, 0.5);
        check(closed(1, 1, 1.0).wait, 0.0);
        check(1.0 - none_has_more_than(3, 2, 4), 1.0 / 8.0);
        check(none_has_more_than(1, 3, 3), 6.0 / 27.0);
        check(none_has_more_than(1, 2, 3), 0.0);
    }
}
