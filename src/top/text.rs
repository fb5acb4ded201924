//! Numbers in few characters, and a screen as lines.

use ratatui::buffer::Buffer;

use crate::plural::grouped;

/// What stands for a figure that is not known.
pub const UNKNOWN: &str = "-";

/// A duration in at most six characters: `64us`, `1.25ms`, `5.02s`.
pub fn duration(seconds: Option<f64>) -> String {
    let Some(seconds) = seconds else { return String::from(UNKNOWN) };
    let micros = seconds * 1e6;
    match micros {
        ..999.5 => format!("{micros:.0}us"),
        ..9_995.0 => format!("{:.2}ms", micros / 1e3),
        ..99_950.0 => format!("{:.1}ms", micros / 1e3),
        ..999_500.0 => format!("{:.0}ms", micros / 1e3),
        ..99_950_000.0 => format!("{seconds:.2}s"),
        _ => format!("{seconds:.0}s"),
    }
}

/// A rate: `0`, `0.5`, `1,234`.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub fn rate(per_second: Option<f64>) -> String {
    match per_second {
        None => String::from(UNKNOWN),
        Some(rate) if rate > 0.0 && rate < 9.95 => format!("{rate:.1}"),
        // Never negative.
        Some(rate) => grouped(rate.round() as u64),
    }
}

/// A share as `12%`.
pub fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| String::from(UNKNOWN), |share| format!("{:.0}%", share * 100.0))
}

/// A time in its two largest units: `3d 4h`, `5m 6s`.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub fn uptime(seconds: f64) -> String {
    // Never negative.
    let seconds = seconds as u64;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, ..) => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

/// Bytes as `20 MiB`.
pub fn bytes(bytes: Option<u64>) -> String {
    bytes.map_or_else(
        || String::from(UNKNOWN),
        |bytes| bytesize::ByteSize(bytes).display().iec().to_string(),
    )
}

/// The first lines of a screen, without spaces at their ends.
pub fn of_lines(buffer: &Buffer, lines: u16) -> String {
    let mut text = String::new();
    for y in 0..lines {
        let line: String = (0..buffer.area.width).map(|x| buffer[(x, y)].symbol()).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_three_digits() {
        for (seconds, expected) in [
            (0.0, "0us"),
            (0.000_064, "64us"),
            (0.000_999_4, "999us"),
            (0.000_999_6, "1.00ms"),
            (0.001_25, "1.25ms"),
            (0.012_34, "12.3ms"),
            (0.123_4, "123ms"),
            (0.999_6, "1.00s"),
            (8.388_608, "8.39s"),
            (123.0, "123s"),
        ] {
            let text = duration(Some(seconds));
            assert_eq!(text, expected);
            assert!(text.len() <= 6, "{text}");
        }
        assert_eq!(duration(None), "-");
    }

    #[test]
    fn rates_shares_and_times_are_short() {
        assert_eq!(
            [0.0, 0.52, 9.94, 9.96, 1234.4].map(|r| rate(Some(r))),
            ["0", "0.5", "9.9", "10", "1,234"]
        );
        assert_eq!(rate(None), "-");
        assert_eq!(
            [Some(0.0), Some(0.256), Some(1.5), None].map(percent),
            ["0%", "26%", "150%", "-"]
        );
        assert_eq!(
            [0.4, 59.9, 61.0, 3_661.0, 90_000.0].map(uptime),
            ["0s", "59s", "1m 1s", "1h 1m", "1d 1h"]
        );
        assert_eq!(bytes(Some(20 << 20)), "20.0 MiB");
    }
}
