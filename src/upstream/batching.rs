//! Calls that register several visits. Wire format only.
//!
//! Either `{n}` in the counter's URL stands for their number, or the number is its query, for a counter that says that it
//! takes one.

use bytes::Bytes;

/// What stands for the number of visits in a URL.
pub const PLACEHOLDER: &str = "{n}";

/// How a call registers several visits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batching {
    /// Where their number is written in the call's bytes.
    place: usize,
    /// The most visits that one call registers.
    max: usize,
    /// Whether [`PLACEHOLDER`] stands there: who gave the URL says that the counter takes it.
    is_promised: bool,
    /// Whether an answer may say that something else was added.
    is_unchecked: bool,
}

impl Batching {
    /// Of a call with [`PLACEHOLDER`] in it, which registers at most `max` visits, and at least one.
    pub fn of(call: &[u8], max: usize) -> Option<Self> {
        let place = memchr::memmem::find(call, PLACEHOLDER.as_bytes())?;
        Some(Self { place, max: max.max(1), is_promised: true, is_unchecked: false })
    }

    /// Of a call without a query, which registers at most `max` visits where the counter says that it takes `?by=N`.
    pub fn offered(call: &[u8], max: usize) -> Option<Self> {
        let target = call.iter().position(|&byte| byte == b' ')? + 1;
        let place = target + call[target..].iter().position(|&byte| byte == b' ')?;
        let has_query = call[target..place].contains(&b'?');
        let (is_promised, is_unchecked) = (false, false);
        (!has_query).then_some(Self { place, max: max.max(1), is_promised, is_unchecked })
    }

    /// The same where any answer is enough; `None` where only the answer tells that several visits are taken.
    pub fn unchecked(self) -> Option<Self> {
        self.is_promised.then_some(Self { is_unchecked: true, ..self })
    }

    /// Whether an answer may say that something else was added.
    pub(super) fn is_unchecked(self) -> bool {
        self.is_unchecked
    }

    /// Whether the counter is known to take several visits, whatever it says.
    pub(super) fn is_promised(self) -> bool {
        self.is_promised
    }

    /// The most visits that one call registers.
    pub(super) fn max(self) -> usize {
        self.max
    }

    /// The bytes of `call`, which may have got more fields at its end, for `count` visits.
    pub fn render(self, call: &[u8], count: usize) -> Bytes {
        let (before, rest) = call.split_at(self.place);
        let (number, rest) = match (self.is_promised, count) {
            (true, _) => (count.to_string(), &rest[PLACEHOLDER.len()..]),
            (false, 1) => (String::new(), rest),
            (false, _) => (format!("?by={count}"), rest),
        };
        [before, number.as_bytes(), rest].concat().into()
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

    #[test]
    fn a_call_without_a_query_gets_one_for_several_visits() {
        let call = b"POST /a HTTP/1.1\r\nhost: a\r\n\r\n";
        let batching = Batching::offered(call, 1000).unwrap();
        assert_eq!(batching.render(call, 1), &call[..]);
        for count in [2, 12, 1000] {
            let expected = format!("POST /a?by={count} HTTP/1.1\r\nhost: a\r\n\r\n");
            assert_eq!(batching.render(call, count), expected);
        }
        let traced = b"POST /a HTTP/1.1\r\nhost: a\r\ntracestate: a=1 ?\r\n\r\n";
        let expected = "POST /a?by=7 HTTP/1.1\r\nhost: a\r\ntracestate: a=1 ?\r\n\r\n";
        assert_eq!(batching.render(traced, 7), expected);
        assert_eq!(Batching::offered(b"POST /a?b HTTP/1.1\r\n\r\n", 1000), None);
    }
}
