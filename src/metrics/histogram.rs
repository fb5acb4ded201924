//! Durations counted in buckets, each a cell that one worker writes.

use super::Count;

/// The buckets double from 64 µs to 8.4 s; the last one takes all that is longer.
const BUCKETS: usize = 19;
/// The first bucket ends at 2 to the power of this, in microseconds.
const FIRST_POWER: u32 = 6;

/// The upper bounds of the buckets in seconds, each of which belongs to its bucket.
pub const BOUNDS: [f64; BUCKETS] = {
    let mut bounds = [f64::INFINITY; BUCKETS];
    let mut bucket = 0;
    while bucket < BUCKETS - 1 {
        bounds[bucket] = (1u64 << (bucket + FIRST_POWER as usize)) as f64 / 1e6;
        bucket += 1;
    }
    bounds
};

/// Durations that one worker counts. It takes a count of leading zeros and two plain stores to add one.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Count; BUCKETS],
    sum_micros: Count,
}

/// What a histogram held at one time, or what was added between two times.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Durations {
    /// How many durations are in each bucket, not in those below it.
    pub buckets: [u64; BUCKETS],
    /// Their sum in microseconds.
    pub sum_micros: u64,
}

impl Histogram {
    /// Adds a duration in microseconds.
    pub fn add(&self, micros: u64) {
        self.buckets[bucket_of(micros)].increment();
        self.sum_micros.add(micros);
    }

    /// What it holds. The sum may be a moment older or newer than the buckets.
    pub fn read(&self) -> Durations {
        Durations {
            buckets: self.buckets.each_ref().map(Count::read),
            sum_micros: self.sum_micros.read(),
        }
    }
}

/// The first bucket whose bound is not below `micros`.
const fn bucket_of(micros: u64) -> usize {
    let power = u64::BITS - micros.saturating_sub(1).leading_zeros();
    let bucket = power.saturating_sub(FIRST_POWER) as usize;
    if bucket < BUCKETS { bucket } else { BUCKETS - 1 }
}

impl Durations {
    /// How many durations there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Their sum in seconds.
    #[allow(clippy::cast_precision_loss)]
    pub fn sum_seconds(&self) -> f64 {
        self.sum_micros as f64 / 1e6
    }

    /// These and others.
    pub fn plus(&self, other: &Self) -> Self {
        let mut buckets = self.buckets;
        for (bucket, other) in buckets.iter_mut().zip(other.buckets) {
            *bucket = bucket.wrapping_add(other);
        }
        Self { buckets, sum_micros: self.sum_micros.wrapping_add(other.sum_micros) }
    }

    /// The duration in seconds that a share of all, from 0 to 1, does not exceed. `None` without durations.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        quantile(&self.buckets, &BOUNDS, share)
    }
}

/// The duration that a share of all, from 0 to 1, does not exceed: interpolated within its bucket. `None` without
/// durations.
#[allow(clippy::cast_precision_loss)]
pub fn quantile(buckets: &[u64], bounds: &[f64], share: f64) -> Option<f64> {
    let rank = share * buckets.iter().sum::<u64>() as f64;
    let (mut below, mut from) = (0.0, 0.0);
    for (&inside, &bound) in buckets.iter().zip(bounds) {
        let inside = inside as f64;
        // Beyond the last bound, that bound is all that is known.
        let to = if bound.is_finite() { bound } else { from };
        if inside > 0.0 && below + inside >= rank {
            return Some(from + (to - from) * (rank - below).max(0.0) / inside);
        }
        below += inside;
        from = to;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(micros: u64, bucket: usize) {
        let histogram = Histogram::default();
        histogram.add(micros);
        let durations = histogram.read();
        assert_eq!(durations.buckets.iter().position(|&count| count == 1), Some(bucket));
        assert_eq!((durations.count(), durations.sum_micros), (1, micros));
    }

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        for micros in [0, 1, 63, 64] {
            check(micros, 0);
        }
        check(65, 1);
        check(128, 1);
        check(129, 2);
        check(1 << 23, 17);
        check((1 << 23) + 1, 18);
        check(u64::MAX, 18);
        assert_eq!((BOUNDS[0], BOUNDS[17], BOUNDS[18]), (0.000_064, 8.388_608, f64::INFINITY));
    }

    #[test]
    fn a_quantile_is_within_its_bucket() {
        let histogram = Histogram::default();
        assert_eq!(histogram.read().quantile(0.5), None);
        (0..99).for_each(|_| histogram.add(100));
        histogram.add(3_000);
        let earlier = histogram.read();
        let median = earlier.quantile(0.5).unwrap();
        assert!((0.000_064..=0.000_128).contains(&median), "{median}");
        let most = earlier.quantile(1.0).unwrap();
        assert!((0.002_048..=0.004_096).contains(&most), "{most}");
        // The longest have no bound.
        let other = Histogram::default();
        other.add(60_000_000);
        let longest = other.read();
        assert_eq!((longest.count(), longest.quantile(0.5)), (1, Some(8.388_608)));
        histogram.add(60_000_000);
        assert_eq!(earlier.plus(&longest), histogram.read());
    }
}
