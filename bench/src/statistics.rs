//! Medians and ranges of few, noisy figures.

/// The median, the range and the deviation of some figures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The smallest.
    pub least: f64,
    /// The median.
    pub median: f64,
    /// The largest.
    pub most: f64,
    /// The median distance from the median.
    pub deviation: f64,
}

impl Spread {
    /// The spread of these figures; all NaN without figures.
    pub fn of(values: Vec<f64>) -> Self {
        let values = sorted(values);
        let median = middle(&values);
        let deviation =
            middle(&sorted(values.iter().map(|value| (value - median).abs()).collect()));
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Self { least: at(0), median, most: at(values.len().wrapping_sub(1)), deviation }
    }
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

fn middle(sorted: &[f64]) -> f64 {
    let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
    let half = sorted.len() / 2;
    match sorted.len() % 2 {
        1 => at(half),
        _ => (at(half.wrapping_sub(1)) + at(half)) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_the_median_and_the_range() {
        let spread = Spread::of(vec![3.0, 1.0, 2.0, 9.0, 2.5]);
        assert_eq!((spread.least, spread.median, spread.most), (1.0, 2.5, 9.0));
        assert!((spread.deviation - 0.5).abs() < f64::EPSILON);
        assert!((Spread::of(vec![4.0, 1.0, 2.0, 3.0]).median - 2.5).abs() < f64::EPSILON);
        assert!(Spread::of(vec![]).median.is_nan());
    }
}
