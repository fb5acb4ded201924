//! Calls that register several visits: `{n}` in a counter's URL stands for their number. Wire format only.

use bytes::Bytes;

/// What stands for the number of visits in a URL.
pub const PLACEHOLDER: &str = "{n}";

/// How a call registers several visits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batching {
    /// Where [`PLACEHOLDER`] begins in the call's bytes.
    place: usize,
    /// The most visits that one call registers.
    max: usize,
}

impl Batching {
    /// Of a call with [`PLACEHOLDER`] in it, which registers at most `max` visits, and at least one.
    pub fn of(call: &[u8], max: usize) -> Option<Self> {
        let place = memchr::memmem::find(call, PLACEHOLDER.as_bytes())?;
        Some(Self { place, max: max.max(1) })
    }

    /// The most visits that one call registers.
    pub(super) fn max(self) -> usize {
        self.max
    }

    /// The bytes of `call`, which may have got more fields at its end, for `count` visits.
    pub fn render(self, call: &[u8], count: usize) -> Bytes {
        let (before, rest) = call.split_at(self.place);
        let count = count.to_string();
        [before, count.as_bytes(), &rest[PLACEHOLDER.len()..]].concat().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_visits_replaces_what_stands_for_it() {
        let call = b"POST /a?by={n}&b HTTP/1.1\r\nhost: a\r\n\r\n";
        let batching = Batching::of(call, 1000).unwrap();
        for count in [1, 12, 1000] {
            let expected = format!("POST /a?by={count}&b HTTP/1.1\r\nhost: a\r\n\r\n");
            assert_eq!(batching.render(call, count), expected);
        }
        let traced = b"POST /a?by={n}&b HTTP/1.1\r\nhost: a\r\ntracestate: a={n}\r\n\r\n";
        let expected = "POST /a?by=7&b HTTP/1.1\r\nhost: a\r\ntracestate: a={n}\r\n\r\n";
        assert_eq!(batching.render(traced, 7), expected);
        assert_eq!(Batching::of(b"POST /a?by=n HTTP/1.1\r\n\r\n", 1000), None);
    }
}
