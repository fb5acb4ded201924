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
}
