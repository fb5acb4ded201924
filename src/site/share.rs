//! A share of many, such as of the traces that are recorded, or of the requests that have a line in the access log.

use std::{fmt, num::NonZeroU32, str::FromStr};

use fastrand::Rng;

/// The smallest share is one of so many, and no share needs more.
const WHOLE_MAX: u32 = 1_000_000;
/// As many digits as that has zeros.
const DECIMALS_MAX: usize = 6;

/// So many of so many: a fraction from 0 to 1 that cannot be reduced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    part: u32,
    whole: NonZeroU32,
}

impl Share {
    /// `None` where it is more than all, or has too many.
    fn new(part: u32, whole: u32) -> Option<Self> {
        let (mut divisor, mut rest) = (whole, part);
        while rest > 0 {
            (divisor, rest) = (rest, divisor % rest);
        }
        let (part, whole) = (part.checked_div(divisor)?, whole / divisor);
        let fits = part <= whole && whole <= WHOLE_MAX;
        NonZeroU32::new(whole).filter(|_| fits).map(|whole| Self { part, whole })
    }

    /// Of how many it is one, if it is.
    pub fn whole_of_one(self) -> Option<NonZeroU32> {
        (self.part == 1).then_some(self.whole)
    }

    /// Whether the next one belongs to it.
    pub(super) fn draw(self, rng: &mut Rng) -> bool {
        rng.u32(..self.whole.get()) < self.part
    }
}

impl FromStr for Share {
    type Err = &'static str;

    /// `1%`, `0.01` and `1/100` are the same.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let share = if let Some((part, whole)) = text.split_once('/') {
            digits(part, 7).zip(digits(whole, 7)).and_then(|(part, whole)| Self::new(part, whole))
        } else if let Some(percent) = text.strip_suffix('%') {
            decimal(percent, DECIMALS_MAX - 2)
        } else {
            decimal(text, DECIMALS_MAX)
        };
        share.ok_or("it must be a share like 1%, 0.01 or 1/100, and at most 100%")
    }
}

/// A decimal number with at most so many decimals, of which the last one is a millionth of the share.
fn decimal(text: &str, decimals_max: usize) -> Option<Share> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    if !(1..=decimals_max).contains(&decimals.len()) {
        return None;
    }
    let whole = digits(whole, 3)?;
    let millionths = digits(&format!("{decimals:0<decimals_max$}"), decimals_max)?;
    let unit = 10_u32.checked_pow(u32::try_from(decimals_max).ok()?)?;
    Share::new(whole.checked_mul(unit)?.checked_add(millionths)?, WHOLE_MAX)
}

/// A number of digits alone, of which there are not too many.
fn digits(text: &str, most: usize) -> Option<u32> {
    let fits = (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| fits)
}

/// In percent, unless that has too many decimals.
impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { part, whole } = self;
        if !WHOLE_MAX.is_multiple_of(whole.get()) {
            return write!(f, "{part}/{whole}");
        }
        let millionths = part * (WHOLE_MAX / whole.get());
        let (percent, decimals) = (millionths / 10_000, millionths % 10_000);
        match format!("{decimals:04}").trim_end_matches('0') {
            "" => write!(f, "{percent}%"),
            decimals => write!(f, "{percent}.{decimals}%"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(texts: &[&str], expected: Option<&str>) {
        for text in texts {
            let share = text.parse::<Share>();
            assert_eq!(share.map(|share| share.to_string()).ok().as_deref(), expected, "{text:?}");
            // What is shown is read as the same.
            assert!(share.is_err() || expected.unwrap().parse() == share, "{text:?}");
        }
    }

    #[test]
    fn a_share_has_three_forms_and_is_shown_in_one() {
        check(&["1%", "01.0%", "0.01", "0.010", "1/100", "10/1000"], Some("1%"));
        check(&["0%", "0", "0.0", "0/7"], Some("0%"));
        check(&["100%", "1", "1.0", "1/1", "7/7"], Some("100%"));
        check(&["50%", "0.5", "1/2"], Some("50%"));
        check(&["0.0001%", "0.000001", "1/1000000"], Some("0.0001%"));
        check(&["12.5%", "0.125", "1/8"], Some("12.5%"));
        // No decimal fraction.
        check(&["1/3", "2/6"], Some("1/3"));
        check(&["2/3"], Some("2/3"));
        check(&["1/700000"], Some("1/700000"));
    }

    #[test]
    fn what_is_no_share_is_refused() {
        check(&["", "%", "-1%", "+1%", "1 %", "1%%", ".5%", "1.%", "1,5%", "1e1%", "١%"], None);
        check(&["0.00001%", "100.0001%", "101%", "1000%"], None);
        check(&["2", "1.000001", "0.0000001", ".5", "0.", "-0.5", "1e-2", "4295"], None);
        check(&["/", "1/", "/2", "1/0", "0/0", "3/2", "1/-2", "1/+2", "1/2/3", "1/1000001"], None);
        check(&["1/2%", "50%/2", "4294967297/4294967298"], None);
    }

    #[test]
    fn only_some_are_one_of_so_many() {
        let whole = |text: &str| text.parse::<Share>().unwrap().whole_of_one().map(NonZeroU32::get);
        assert_eq!(["100%", "1%", "1/3", "0.5"].map(whole), [1, 100, 3, 2].map(Some));
        assert_eq!(["0%", "30%", "2/3", "0.75"].map(whole), [None; 4]);
    }
}
