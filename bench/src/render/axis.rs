//! Where a value is on an axis, and the ticks of the axis.

use std::ops::RangeInclusive;

/// The powers of ten on logarithmic axes.
const DECADES: RangeInclusive<i32> = -3..=12;

/// An axis from one value at one place to another at another.
#[derive(Debug, Clone, Copy)]
pub struct Axis {
    values: (f64, f64),
    places: (f64, f64),
    is_log: bool,
}

impl Axis {
    /// A linear axis.
    pub fn linear(values: (f64, f64), places: (f64, f64)) -> Self {
        Self { values, places, is_log: false }
    }

    /// A logarithmic axis.
    pub fn log(values: (f64, f64), places: (f64, f64)) -> Self {
        Self { values, places, is_log: true }
    }

    /// Where a value is.
    pub fn place(&self, value: f64) -> f64 {
        let along = |value: f64| if self.is_log { value.ln() } else { value };
        let (first, last) = (along(self.values.0), along(self.values.1));
        let share = (along(value) - first) / (last - first);
        self.places.0 + share * (self.places.1 - self.places.0)
    }

    /// The values of the ticks: some round ones.
    pub fn ticks(&self) -> Vec<f64> {
        let within = |value: &f64| (self.values.0..=self.values.1).contains(value);
        if self.is_log {
            let decades =
                DECADES.flat_map(|decade| [1.0, 2.0, 5.0].map(|v| v * 10f64.powi(decade)));
            return decades.filter(within).collect();
        }
        let step = step(self.values.1 - self.values.0);
        let first = (self.values.0 / step).ceil();
        (0..=10).map(|tick| (first + f64::from(tick)) * step).filter(within).collect()
    }
}

/// A round step that divides a range into at most six parts.
fn step(range: f64) -> f64 {
    let decade = 10f64.powf((range / 6.0).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|times| times * decade);
    steps.into_iter().find(|step| range / step <= 6.0).unwrap_or(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_ratios_are_equally_far_on_a_log_axis() {
        let axis = Axis::log((1.0, 1000.0), (0.0, 300.0));
        assert!(
            (axis.place(10.0) - 100.0).abs() < 1e-9 && (axis.place(100.0) - 200.0).abs() < 1e-9
        );
        assert_eq!(axis.ticks(), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]);
    }

    #[test]
    fn ticks_are_round() {
        let ticks = |most| Axis::linear((0.0, most), (100.0, 200.0)).ticks();
        assert_eq!(ticks(34.0), [0.0, 10.0, 20.0, 30.0]);
        assert_eq!(ticks(61_000.0), [0.0, 20_000.0, 40_000.0, 60_000.0]);
        assert!((Axis::linear((0.0, 4.0), (100.0, 200.0)).place(1.0) - 125.0).abs() < 1e-9);
    }
}
