//! The content of an answer, kept where it was asked for and is short. A value without I/O.

/// The longest content that is kept, in bytes.
const BYTES_MAX: usize = 32;

/// What becomes of the content of a call's answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Content {
    /// It is read and discarded.
    #[default]
    Discarded,
    /// It is kept if it is short.
    Kept,
}

/// The content of one answer: all of it, or nothing once it is too long.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShortContent {
    bytes: [u8; BYTES_MAX],
    /// More than [`BYTES_MAX`] when it is too long, and then it stays so: the end of a long content is not taken for
    /// a whole one.
    length: usize,
}

impl ShortContent {
    /// Adds what follows.
    pub(super) fn push(&mut self, piece: &[u8]) {
        let end = self.length.saturating_add(piece.len());
        match self.bytes.get_mut(self.length..end) {
            Some(room) => {
                room.copy_from_slice(piece);
                self.length = end;
            }
            None => self.length = BYTES_MAX + 1,
        }
    }

    /// The number of one of `count` visits that one call has registered, whose answer this is: the total after them. The
    /// first has the lowest; `place` counts from 0. `None` where this is no such total.
    pub(super) fn share(&self, place: usize, count: usize) -> Option<Self> {
        let text = str::from_utf8(self.whole()?.trim_ascii()).ok()?;
        // A sign is no part of a total.
        let total: u128 =
            text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))?;
        let number = total.checked_sub(count as u128)? + 1 + place as u128;
        let mut share = Self::default();
        share.push(number.to_string().as_bytes());
        Some(share)
    }

    /// All of it, unless it is too long.
    pub fn whole(&self) -> Option<&[u8]> {
        self.bytes.get(..self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pushes `text` in pieces of each size.
    #[track_caller]
    fn check(text: &str, expected: Option<&str>) {
        for size in 1..=text.len().max(1) {
            let mut content = ShortContent::default();
            text.as_bytes().chunks(size).for_each(|piece| content.push(piece));
            assert_eq!(content.whole(), expected.map(str::as_bytes), "{text:?} by {size}");
            content.push(b"");
            assert_eq!(content.whole(), expected.map(str::as_bytes), "{text:?} and nothing");
        }
    }

    #[test]
    fn a_content_is_whole_or_nothing() {
        check("", Some(""));
        check("42\n", Some("42\n"));
        let most = "0123456789abcdefghijklmnopqrstuv";
        check(most, Some(most));
        check(&format!("{most}w"), None);
        check(&most.repeat(3), None);
    }

    #[track_caller]
    fn check_shares(total: &str, expected: &[&str]) {
        let mut content = ShortContent::default();
        content.push(total.as_bytes());
        let count = expected.len();
        let shares: Vec<_> = (0..count).filter_map(|place| content.share(place, count)).collect();
        let texts = shares.iter().map(|share| str::from_utf8(share.whole().unwrap()).unwrap());
        let expected: Vec<&str> =
            expected.iter().copied().filter(|number| !number.is_empty()).collect();
        assert_eq!(texts.collect::<Vec<_>>(), expected, "{total:?}");
    }

    #[test]
    fn each_visit_of_a_batch_has_its_own_number() {
        check_shares("7\n", &["7"]);
        check_shares("7\n", &["5", "6", "7"]);
        check_shares("3", &["1", "2", "3"]);
        check_shares("0010", &["9", "10"]);
        check_shares("99999999999999999999", &["99999999999999999998", "99999999999999999999"]);
        // Fewer than were registered, or no number.
        check_shares("2", &["", "", ""]);
        for wrong in ["", "-7", "+7", "7 8", "0x9", "total", "7.0", &"7".repeat(33)] {
            check_shares(wrong, &["", ""]);
        }
    }
}
