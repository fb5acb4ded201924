//! Connections that leave a core which is busier than another one, as the product's `handoff/policy.rs` decides: with the
//! same figures, and all connections as busy.

use fastrand::Rng;

use super::Size;

/// How many windows of a tenth of a second pass.
const WINDOWS: usize = 50;
/// How much busier a core must be, as a part of a core and as a part of itself.
const CLEAR: f64 = 0.125;
/// The least that a core from which connections leave is busy.
const BUSY: f64 = 0.2;
/// For so many windows in a row, and not in so many after.
const LASTING: u8 = 2;
const REST: u8 = 5;
/// Connections that leave at a time.
const LEAVING_MAX: usize = 8;

#[derive(Default, Clone, Copy)]
struct Overload {
    busy: u8,
    rest: u8,
}

/// One or two other cores.
pub fn draw(core: usize, cores: usize, rng: &mut Rng) -> impl Iterator<Item = usize> {
    let others = cores - 1;
    let first = if others > 0 { rng.usize(..others) } else { 0 };
    let second = if others > 1 { (first + rng.usize(1..others)) % others } else { first };
    [first, second].into_iter().take(others.min(2)).map(move |other| (core + 1 + other) % cores)
}

/// Where the connections are after some seconds.
pub fn even_out(mut homes: Vec<usize>, size: Size, load: f64, rng: &mut Rng) -> Vec<usize> {
    let mut of_cores = vec![Vec::new(); size.cores];
    for (connection, core) in homes.iter().enumerate() {
        of_cores[*core].push(connection);
    }
    let each = load * size.usable() / size.connections as f64;
    let mut overloads = vec![Overload::default(); size.cores];
    for _ in 0..WINDOWS {
        let busy: Vec<_> =
            of_cores.iter().map(|those| (those.len() as f64 * each).min(1.0)).collect();
        for core in 0..size.cores {
            let least = draw(core, size.cores, rng)
                .min_by(|one, other| busy[*one].total_cmp(&busy[*other]));
            let Some(least) = least else { continue };
            let more = busy[core] - busy[least];
            let leaving = overloads[core].leaving(busy[core], more, of_cores[core].len());
            for _ in 0..leaving {
                let Some(connection) = of_cores[core].pop() else { break };
                homes[connection] = least;
                of_cores[least].push(connection);
            }
        }
    }
    homes
}

impl Overload {
    /// How many of a core's connections leave.
    fn leaving(&mut self, busy: f64, more: f64, connections: usize) -> usize {
        let is_busier = busy >= BUSY && more >= CLEAR && more * 8.0 >= busy;
        self.busy = if is_busier { self.busy.saturating_add(1) } else { 0 };
        if self.rest > 0 {
            self.rest -= 1;
            return 0;
        }
        if self.busy < LASTING {
            return 0;
        }
        *self = Self { busy: 0, rest: REST };
        let one = busy / connections as f64;
        let first = one <= more * 7.0 / 8.0;
        let all = (1..=LEAVING_MAX).take_while(|some| one * *some as f64 <= more * 5.0 / 8.0);
        if first { all.count().max(1) } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(cores: usize, homes: &[usize], load: f64, expected: &[usize]) {
        let size = Size { cores, connections: homes.len() };
        let homes = even_out(homes.to_vec(), size, load, &mut Rng::with_seed(1));
        let mut counts = vec![0; cores];
        homes.into_iter().for_each(|core| counts[core] += 1);
        counts.sort_unstable();
        assert_eq!(counts, expected);
    }

    #[test]
    fn connections_leave_until_none_is_clearly_busier() {
        check(2, &[0; 4], 0.6, &[2, 2]);
        check(2, &[0, 0, 0, 1], 0.6, &[2, 2]);
        check(2, &[0, 0, 1], 0.6, &[1, 2]);
        check(2, &[0; 64], 0.6, &[32, 32]);
        check(1, &[0; 4], 0.6, &[4]);
        check(4, &[0; 4], 0.6, &[1, 1, 1, 1]);
        // One that nobody would notice stays.
        check(2, &[0; 4], 0.04, &[0, 4]);
    }

    #[test]
    fn others_are_drawn() {
        let mut rng = Rng::with_seed(1);
        for cores in 1..6 {
            for core in 0..cores {
                let drawn: Vec<_> = draw(core, cores, &mut rng).collect();
                assert_eq!(drawn.len(), (cores - 1).min(2));
                assert!(drawn.iter().all(|other| *other != core && *other < cores));
                assert!(drawn.len() < 2 || drawn[0] != drawn[1]);
            }
        }
    }
}
