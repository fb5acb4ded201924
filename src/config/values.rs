//! The types of values: addresses, numbers, periods, sizes, lists of cores. Flags, variables and the file take the same
//! forms and refuse others with the same words.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use http::StatusCode;
use serde::{Deserialize, Deserializer, de};

use super::scalar::Scalar;
use crate::http::HEAD_FIELDS_CAP;

/// An address to listen on. A port alone, like `3000` or `:3000`, gets the host of `default`.
pub(super) fn address(text: &str, default: SocketAddr) -> Result<SocketAddr, String> {
    let form =
        || format!("it must be an address like {default} or [::]:{0}, or a port", default.port());
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Err(format!("it has no port; write {}", SocketAddr::new(ip, default.port())));
    }
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(form());
    }
    match (port.parse(), ip) {
        (Ok(port), _) if host.is_empty() => Ok(SocketAddr::new(default.ip(), port)),
        (Err(_), ip) if host.is_empty() || ip.is_ok() => {
            Err(format!("port {port} is above {}", u16::MAX))
        }
        (_, Err(_)) => Err(format!("{}, not a name", form())),
        _ => Err(form()),
    }
}

/// A number from `MIN` to `MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Number<const MIN: usize, const MAX: usize>(pub usize);

/// The number of fields that a request head may have.
pub type HeadFields = Number<1, HEAD_FIELDS_CAP>;

/// A number that may be zero.
pub type Amount = Number<0, { usize::MAX }>;

/// The number of visits that one call to a counter may register.
pub type BatchMax = Number<1, 100_000>;

/// The number of calls that one connection to a counter may carry.
pub type PipelineMax = Number<1, 1_000>;

/// A number above zero.
pub type Positive = Number<1, { usize::MAX }>;

impl<const MIN: usize, const MAX: usize> Number<MIN, MAX> {
    fn checked(number: Option<usize>) -> Result<Self, String> {
        match number {
            Some(number) if (MIN..=MAX).contains(&number) => Ok(Self(number)),
            _ if MAX == usize::MAX => Err(format!("it must be a number from {MIN} on")),
            _ => Err(format!("it must be a number from {MIN} to {MAX}")),
        }
    }
}

impl<const MIN: usize, const MAX: usize> FromStr for Number<MIN, MAX> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::checked(text.parse().ok())
    }
}

impl<const MIN: usize, const MAX: usize> fmt::Display for Number<MIN, MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The status of a page: one that allows content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageStatus(pub StatusCode);

impl PageStatus {
    const FORM: &str =
        "it must be a status from 200 to 599, except 204, 205 and 304, which have no page";

    fn checked(code: Option<usize>) -> Result<Self, &'static str> {
        let code = code.and_then(|code| u16::try_from(code).ok()).ok_or(Self::FORM)?;
        match (code, StatusCode::from_u16(code)) {
            (200..=599, Ok(status)) if !matches!(code, 204 | 205 | 304) => Ok(Self(status)),
            _ => Err(Self::FORM),
        }
    }
}

impl FromStr for PageStatus {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::checked(text.parse().ok())
    }
}

impl fmt::Display for PageStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_u16().fmt(f)
    }
}

/// The longest period: more than anyone needs, and far from overflowing a clock.
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

/// How long caches may use a page without revalidation, in whole seconds, like `1h` or `30days`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheTime(pub Duration);

/// A year, which in practice means for ever.
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
            bytes if bytes >= 1 << 20 && bytes.is_multiple_of(1 << 20) => {
                write!(f, "{}MiB", bytes >> 20)
            }
            bytes if bytes >= 1024 && bytes.is_multiple_of(1024) => {
                write!(f, "{}KiB", bytes / 1024)
            }
            bytes => bytes.fmt(f),
        }
    }
}

/// Numbers of cores, like `0,2-5`: each once, in the order given.
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
    /// The cores of some workers, which may share cores.
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

impl<'de, const MIN: usize, const MAX: usize> Deserialize<'de> for Number<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::checked(Scalar::deserialize(deserializer)?.count()).map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for PageStatus {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::checked(Scalar::deserialize(deserializer)?.count()).map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Scalar::deserialize(deserializer)? {
            Scalar::Text(text) => text.parse().map_err(de::Error::custom),
            // The unit is missing; seconds are probably meant.
            Scalar::Number(number @ 1..) => {
                Err(de::Error::custom(format!("write a time like \"{number}s\"")))
            }
            _ => Err(de::Error::custom("write a time like \"2s\"")),
        }
    }
}

impl<'de> Deserialize<'de> for Cores {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Scalar::deserialize(deserializer)?.parse()
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Scalar::deserialize(deserializer)?.parse()
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

    #[track_caller]
    fn check_address(text: &str, expected: Result<&str, &str>) {
        let address = address(text, "0.0.0.0:3000".parse().unwrap());
        let address = address.map(|address| address.to_string());
        assert_eq!(address.as_deref().map_err(String::as_str), expected, "{text:?}");
    }

    #[test]
    fn addresses() {
        const FORM: &str = "it must be an address like 0.0.0.0:3000 or [::]:3000, or a port";
        const NAME: &str =
            "it must be an address like 0.0.0.0:3000 or [::]:3000, or a port, not a name";
        check_address("127.0.0.1:80", Ok("127.0.0.1:80"));
        check_address("[::1]:80", Ok("[::1]:80"));
        check_address("80", Ok("0.0.0.0:80"));
        check_address(":80", Ok("0.0.0.0:80"));
        check_address("0", Ok("0.0.0.0:0"));
        check_address("65535", Ok("0.0.0.0:65535"));
        check_address("65536", Err("port 65536 is above 65535"));
        check_address(":99999", Err("port 99999 is above 65535"));
        check_address("0.0.0.0:99999", Err("port 99999 is above 65535"));
        check_address("[::]:99999", Err("port 99999 is above 65535"));
        check_address("127.0.0.1", Err("it has no port; write 127.0.0.1:3000"));
        check_address("::1", Err("it has no port; write [::1]:3000"));
        check_address("localhost:80", Err(NAME));
        check_address("localhost:99999", Err(NAME));
        for text in ["", ":", "127.0.0.1:", "localhost", "-1", "+80", "127.0.0.1:80:", "80 "] {
            check_address(text, Err(FORM));
        }
    }

    #[track_caller]
    fn check_number(text: &str, expected: Result<usize, &str>) {
        let number = text.parse::<Number<1, 1024>>().map(|Number(number)| number);
        assert_eq!(number.as_ref().map_err(String::as_str), expected.as_ref().map_err(|e| *e));
    }

    #[test]
    fn numbers() {
        check_number("1", Ok(1));
        check_number("1024", Ok(1024));
        for text in ["", "0", "1025", "-1", "two", "1.5", "99999999999999999999"] {
            check_number(text, Err("it must be a number from 1 to 1024"));
        }
        let none = "0".parse::<Positive>();
        assert_eq!(none, Err(String::from("it must be a number from 1 on")));
    }

    #[test]
    fn statuses_of_pages() {
        for code in ["200", "203", "404", "503", "599"] {
            assert_eq!(code.parse::<PageStatus>().unwrap().to_string(), code);
        }
        for code in ["", "199", "204", "205", "304", "600", "65736", "ok"] {
            assert_eq!(code.parse::<PageStatus>(), Err(PageStatus::FORM), "{code:?}");
        }
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
