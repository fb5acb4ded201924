//! The number of a visit, as its counter answered it.

/// The most digits that a number has: as many as 64 bits need.
const DIGITS_MAX: usize = 20;

/// The number that a counter answered for one visit: 1 to 20 digits, as it wrote them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct VisitNumber {
    digits: [u8; DIGITS_MAX],
    length: usize,
}

impl VisitNumber {
    /// Reads the content of a counter's answer: digits, and nothing else but white space around them.
    pub(super) fn parse(content: &[u8]) -> Option<Self> {
        let text = content.trim_ascii();
        if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let (mut digits, length) = ([0; DIGITS_MAX], text.len());
        digits.get_mut(..length)?.copy_from_slice(text);
        Some(Self { digits, length })
    }

    /// The digits.
    pub(super) fn digits(&self) -> &[u8] {
        &self.digits[..self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(content: &str, expected: Option<&str>) {
        let number = VisitNumber::parse(content.as_bytes());
        let digits = number.as_ref().map(|number| str::from_utf8(number.digits()).unwrap());
        assert_eq!(digits, expected, "{content:?}");
    }

    #[test]
    fn a_number_is_digits_and_nothing_else() {
        check("1", Some("1"));
        check("", None);
        check("0042", Some("0042"));
        check("0x42", None);
        check("42\n", Some("42"));
        check("42\0", None);
        check(" \t42\r\n\n", Some("42"));
        check(" \n", None);
        check("4\n2", None);
        check("4 2", None);
        check("99999999999999999999", Some("99999999999999999999"));
        check("100000000000000000000", None);
        for other in ["+1", "-1", "1.0", "1,000", "1e3", "٣", "<b>1</b>", "{\"total\":1}", "\"1\""]
        {
            check(other, None);
        }
    }
}
