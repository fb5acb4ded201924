//! The forms of values: periods, sizes, lists of cores.

use std::{collections::BTreeSet, fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, de};

use crate::upstream::without_secrets;

/// The longest period: far beyond any use, and far from overflowing a clock.
const PERIOD_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// A span of time above zero, like `5s`, `250ms` or `1m 30s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Period(pub Duration);

impl FromStr for Period {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "it must be a time like 250ms, 5s or 1m";
        let duration = humantime::parse_duration(text).map_err(|_| FORM)?;
        if duration < Duration::from_millis(1) || duration > PERIOD_MAX {
            return Err("it must be a time from 1ms to 7days");
        }
        Ok(Self(duration))
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

/// How long caches may use a content without asking again, in whole seconds, like `1h` or `30days`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheTime(pub Duration);

/// A year: who means for ever says so.
const CACHE_TIME_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

impl FromStr for CacheTime {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let duration = humantime::parse_duration(text);
        let duration = duration.map_err(|_| "it must be a time like 0s, 10m, 1h or 30days")?;
        if duration.subsec_nanos() != 0 || duration > CACHE_TIME_MAX {
            return Err("it must be whole seconds, at most 366days");
        }
        Ok(Self(duration))
    }
}

/// A number of bytes, like `65536`, `64KiB` or `1MB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub usize);

impl FromStr for Size {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "it must be a size like 65536, 64KiB or 1MB";
        let size: bytesize::ByteSize = text.parse().map_err(|_| FORM)?;
        usize::try_from(size.as_u64()).map(Self).map_err(|_| FORM)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes >= 1024 && bytes.is_multiple_of(1024) => {
                write!(f, "{}KiB", bytes / 1024)
            }
            bytes => bytes.fmt(f),
        }
    }
}

/// Cores by their numbers, like `0,2-5`: each once, in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cores(pub Vec<usize>);

/// Cores that a list may name.
const CORES_MAX: usize = 4096;

impl FromStr for Cores {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "it must be a list of core numbers like 0,2-5";
        let number = |text: &str| -> Result<usize, Self::Err> {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|&core| digits && core < CORES_MAX).ok_or(FORM)
        };
        let mut cores = Vec::new();
        for part in text.split(',') {
            let (first, last) = match part.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None => (number(part)?, number(part)?),
            };
            if last < first {
                return Err(FORM);
            }
            for core in first..=last {
                if cores.contains(&core) {
                    return Err("it names a core twice");
                }
                cores.push(core);
            }
        }
        Ok(Self(cores))
    }
}

impl Cores {
    /// The cores of some workers, of which several may share one.
    pub fn of(workers: &[usize]) -> Self {
        let mut seen = BTreeSet::new();
        Self(workers.iter().copied().filter(|core| seen.insert(*core)).collect())
    }
}

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.as_slice();
        let mut separator = "";
        while let [first, ..] = *rest {
            let run = rest.iter().zip(first..).take_while(|(core, next)| *core == next).count();
            match run {
                1 => write!(f, "{separator}{first}")?,
                _ => write!(f, "{separator}{first}-{}", first + run - 1)?,
            }
            rest = &rest[run..];
            separator = ",";
        }
        Ok(())
    }
}

/// A file may give a value as the text that a flag takes.
pub(super) fn from_text<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    parse(&String::deserialize(deserializer)?)
}

fn parse<T: FromStr<Err: fmt::Display>, E: de::Error>(text: &str) -> Result<T, E> {
    text.parse().map_err(|reason| E::custom(format!("{:?}: {reason}", without_secrets(text))))
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer)
    }
}

impl<'de> Deserialize<'de> for Cores {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a size like 65536 or \"64KiB\"")]
        enum Form {
            Number(usize),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Number(bytes) => Ok(Self(bytes)),
            Form::Text(text) => parse(&text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check<T: FromStr<Err = &'static str> + fmt::Display>(text: &str, expected: Option<&str>) {
        let parsed = text.parse::<T>().ok().map(|value| value.to_string());
        assert_eq!(parsed.as_deref(), expected, "{text:?}");
    }

    #[test]
    fn periods() {
        check::<Period>("5s", Some("5s"));
        check::<Period>("250ms", Some("250ms"));
        check::<Period>("90s", Some("1m 30s"));
        for text in ["", "0s", "5", "-5s", "1us", "8days", "soon"] {
            check::<Period>(text, None);
        }
    }

    #[test]
    fn cache_times() {
        for (text, seconds) in [("0s", 0), ("1h", 3600), ("1year", 31_557_600), ("1h 1s", 3601)] {
            assert_eq!(text.parse(), Ok(CacheTime(Duration::from_secs(seconds))), "{text:?}");
        }
        for text in ["", "5", "-1s", "500ms", "2years", "for ever"] {
            assert!(text.parse::<CacheTime>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn sizes() {
        check::<Size>("65536", Some("64KiB"));
        check::<Size>("64KiB", Some("64KiB"));
        check::<Size>("1MB", Some("1000000"));
        check::<Size>("0", Some("0"));
        for text in ["", "-1", "large", "64 bananas"] {
            check::<Size>(text, None);
        }
    }

    #[test]
    fn cores() {
        check::<Cores>("0", Some("0"));
        check::<Cores>("0,2-5", Some("0,2-5"));
        check::<Cores>("3,1,2", Some("3,1-2"));
        assert_eq!(Cores::of(&[0, 1, 0, 1, 0]).to_string(), "0-1");
        assert_eq!(Cores::of(&[4]).to_string(), "4");
        for text in ["", ",", "a", "1-", "-1", "5-2", "1,1", "0-3,2", "+1", "0-99999999"] {
            check::<Cores>(text, None);
        }
    }
}
