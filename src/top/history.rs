//! Two minutes of a few figures, for small charts.

use std::collections::VecDeque;

use super::{INTERVAL, rates::View};

/// How long a chart goes back.
pub const SECONDS: usize = 120;
/// One for each answer of that time.
const SAMPLES: usize = SECONDS * 1000 / INTERVAL.as_millis() as usize;

/// One chart's values, the newest last. `None` is a time without an answer.
pub type Series = VecDeque<Option<f64>>;

/// All charts.
#[derive(Debug, Default)]
pub struct History {
    /// Visits a second.
    pub visits: Series,
    /// Visits a second that were not welcomed.
    pub failed: Series,
    /// In seconds.
    pub p99: Series,
    /// Shares of a core.
    pub cpu: Series,
}

impl History {
    /// Adds an answer, or that there was none.
    pub fn add(&mut self, view: Option<&View>) {
        let total = view.map(|view| &view.total);
        let load = total.and_then(|total| total.load);
        for (series, value) in [
            (&mut self.visits, total.and_then(|total| total.visits_per_second)),
            (&mut self.failed, total.and_then(|total| total.failed_per_second)),
            (&mut self.p99, total.and_then(|total| total.latency.p99)),
            (&mut self.cpu, load.map(|load| load.user + load.system)),
        ] {
            series.push_back(value);
            if series.len() > SAMPLES {
                series.pop_front();
            }
        }
    }
}

/// A series as columns of a chart, which is all of the time wide, the newest first: the highest value of each column's
/// time. A column before the first value is left out.
pub fn columns(series: &Series, width: usize) -> Vec<Option<f64>> {
    let newest_first: Vec<_> = series.iter().rev().copied().collect();
    let of_column = |column: usize| {
        let from = column * SAMPLES / width;
        let to = ((column + 1) * SAMPLES / width).max(from + 1).min(newest_first.len());
        let samples = newest_first.get(from..to).filter(|samples| !samples.is_empty())?;
        Some(samples.iter().flatten().copied().reduce(f64::max))
    };
    (0..width).map_while(of_column).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(series: &[Option<f64>], width: usize, expected: &[Option<f64>]) {
        assert_eq!(columns(&series.iter().copied().collect(), width), expected);
    }

    #[test]
    fn a_column_has_the_highest_value_of_its_time() {
        check(&[], 10, &[]);
        check(&[Some(1.0)], 0, &[]);
        // A column for each sample.
        check(&[Some(1.0), None, Some(3.0)], SAMPLES, &[Some(3.0), None, Some(1.0)]);
        // A column for two of them.
        let series = [Some(1.0), Some(2.0), None, None, Some(5.0), Some(4.0)];
        check(&series, SAMPLES / 2, &[Some(5.0), None, Some(2.0)]);
        check(&series[1..], SAMPLES / 2, &[Some(5.0), None, Some(2.0)]);
        // Wider than there are samples: each is shown more than once.
        check(&[Some(7.0)], SAMPLES * 2, &[Some(7.0), Some(7.0)]);
    }

    #[test]
    fn the_oldest_values_leave() {
        let mut history = History::default();
        (0..SAMPLES + 10).for_each(|_| history.add(None));
        assert_eq!((history.visits.len(), history.cpu.len()), (SAMPLES, SAMPLES));
        assert_eq!(columns(&history.visits, 40), vec![None; 40]);
    }
}
