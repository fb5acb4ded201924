//! Requests with conditions (RFC 9110 section 13) and for a part (section 14), as pure functions: what to send of a
//! representation, given its validators and its length.

use std::{ops::Range, time::UNIX_EPOCH};

use smallvec::SmallVec;

use crate::http::request::{FieldLines, Method};

/// The representation to which the conditions of a request apply.
#[derive(Debug, Clone, Copy)]
pub(super) struct Selected<'a> {
    /// Its entity tag, which is a strong one, with its quotes.
    pub(super) etag: &'a [u8],
    /// When it was last modified, in seconds since the Unix epoch, if that is known.
    pub(super) modified: Option<u64>,
    /// Its length in bytes.
    pub(super) length: usize,
}

/// What to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// 200 with all of it.
    Whole,
    /// 206 with these bytes, of which there is at least one.
    Part(Range<usize>),
    /// 304: the client has it.
    NotModified,
    /// 412: it is not the version that the client expects.
    PreconditionFailed,
    /// 416: it has no such part.
    NotSatisfiable,
}

/// The values of one field: most requests have at most one.
type Values<'a> = SmallVec<[&'a [u8]; 1]>;

/// The fields of a request that make its answer depend on the representation.
#[derive(Debug, Default)]
pub(super) struct Conditions<'a> {
    if_match: Values<'a>,
    if_none_match: Values<'a>,
    if_modified_since: Values<'a>,
    if_unmodified_since: Values<'a>,
    range: Values<'a>,
    if_range: Values<'a>,
}

impl<'a> Conditions<'a> {
    /// Those that these fields state.
    pub(super) fn of(fields: FieldLines<'a>) -> Self {
        let mut conditions = Self::default();
        for (name, value) in fields.iter() {
            let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
            let values = match name.len() {
                5 if is("range") => &mut conditions.range,
                8 if is("if-match") => &mut conditions.if_match,
                8 if is("if-range") => &mut conditions.if_range,
                13 if is("if-none-match") => &mut conditions.if_none_match,
                17 if is("if-modified-since") => &mut conditions.if_modified_since,
                19 if is("if-unmodified-since") => &mut conditions.if_unmodified_since,
                _ => continue,
            };
            values.push(value);
        }
        conditions
    }

    /// RFC 9110 section 13.2.2: the conditions in their order, for a `GET` or `HEAD` of what is selected.
    pub(super) fn judge(&self, method: Method, selected: Selected<'_>) -> Verdict {
        if !self.if_match.is_empty() {
            if !lists(&self.if_match, selected.etag, Comparison::Strong) {
                return Verdict::PreconditionFailed;
            }
        } else if is_newer(selected.modified, &self.if_unmodified_since) == Some(true) {
            return Verdict::PreconditionFailed;
        }
        if !self.if_none_match.is_empty() {
            if lists(&self.if_none_match, selected.etag, Comparison::Weak) {
                return Verdict::NotModified;
            }
        } else if is_newer(selected.modified, &self.if_modified_since) == Some(false) {
            return Verdict::NotModified;
        }
        // RFC 9110 section 14.2: a range is for GET alone.
        match only(&self.range) {
            Some(range) if method == Method::Get && self.range_applies(selected.etag) => {
                part(range, selected.length)
            }
            _ => Verdict::Whole,
        }
    }

    /// RFC 9110 section 13.1.5. A date never applies: only a client without an entity tag may send one, and
    /// everything served here has one.
    fn range_applies(&self, etag: &[u8]) -> bool {
        self.if_range.is_empty() || only(&self.if_range) == Some(etag)
    }
}

/// The value of a field that must not be repeated; one that is repeated is ignored, since it is unclear which value
/// is meant.
fn only<'a>(values: &[&'a [u8]]) -> Option<&'a [u8]> {
    match values {
        [value] => Some(value),
        _ => None,
    }
}

/// Whether something modified at this time is newer than the date of a field; `None` when the field is missing,
/// repeated or no date, or the time is unknown: the field is ignored then (RFC 9110 sections 13.1.3 and 13.1.4).
fn is_newer(modified: Option<u64>, dates: &[&[u8]]) -> Option<bool> {
    let date = httpdate::parse_http_date(str::from_utf8(only(dates)?).ok()?).ok()?;
    Some(modified? > date.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// RFC 9110 section 8.8.3.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    /// Neither tag is weak.
    Strong,
    /// Either may be.
    Weak,
}

/// Whether a list, which may be split over several fields, has this strong entity tag, or is `*`. The rest of the
/// list after a malformed member is not read.
fn lists(values: &[&[u8]], etag: &[u8], comparison: Comparison) -> bool {
    if only(values) == Some(b"*") {
        return true;
    }
    values.iter().any(|value| {
        let mut rest = *value;
        while let Some((tag, is_weak, tail)) = next_tag(rest) {
            if tag == etag && (!is_weak || comparison == Comparison::Weak) {
                return true;
            }
            rest = tail;
        }
        false
    })
}

/// The first entity tag of a list with its quotes, whether it is weak, and what follows it. A comma may stand
/// between its quotes, so the list cannot be split at them.
fn next_tag(list: &[u8]) -> Option<(&[u8], bool, &[u8])> {
    let start = list.iter().position(|byte| !b" \t,".contains(byte))?;
    let member = &list[start..];
    let (is_weak, tag) = match member.strip_prefix(b"W/") {
        Some(tag) => (true, tag),
        None => (false, member),
    };
    let inside = tag.strip_prefix(b"\"")?;
    let (tag, tail) = tag.split_at(memchr::memchr(b'"', inside)? + 2);
    let is_delimited = tail.trim_ascii_start().first().is_none_or(|&byte| byte == b',');
    is_delimited.then_some((tag, is_weak, tail))
}

/// The part that a `Range` field asks for, of `length` bytes. A field that is malformed, in another unit or
/// asks for several parts is ignored, as RFC 9110 section 14.2 allows.
fn part(field: &[u8], length: usize) -> Verdict {
    let Some(Spec { first, last }) = spec(field) else { return Verdict::Whole };
    match (first, last) {
        // The last so many bytes.
        (None, Some(0)) => Verdict::NotSatisfiable,
        // RFC 9110 section 14.1.2 makes it satisfiable, and a Content-Range cannot say so.
        (None, Some(_)) if length == 0 => Verdict::Whole,
        (None, Some(suffix)) => Verdict::Part(length.saturating_sub(suffix)..length),
        (Some(first), Some(last)) if last < first => Verdict::Whole,
        (Some(first), _) if first >= length => Verdict::NotSatisfiable,
        (Some(first), Some(last)) => Verdict::Part(first..last.saturating_add(1).min(length)),
        (Some(first), None) => Verdict::Part(first..length),
        (None, None) => Verdict::Whole,
    }
}

struct Spec {
    first: Option<usize>,
    last: Option<usize>,
}

/// RFC 9110 section 14.1.1: `bytes=first-last`, `bytes=first-` or `bytes=-suffix`.
fn spec(field: &[u8]) -> Option<Spec> {
    let (unit, range) = field.split_at_checked(b"bytes=".len())?;
    if !unit.eq_ignore_ascii_case(b"bytes=") {
        return None;
    }
    let range = str::from_utf8(range.trim_ascii()).ok()?;
    let (first, last) = range.split_once('-')?;
    Some(Spec { first: number(first)?, last: number(last)? })
}

/// A number that may be missing; one that is too large to represent is beyond every length.
fn number(digits: &str) -> Option<Option<usize>> {
    match digits {
        "" => Some(None),
        _ if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(Some(digits.parse().unwrap_or(usize::MAX)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        config::internal_client_limits,
        http::request::{self, HeadScan},
    };

    const WHOLE: Verdict = Verdict::Whole;
    const NOT_MODIFIED: Verdict = Verdict::NotModified;
    const FAILED: Verdict = Verdict::PreconditionFailed;
    const BEYOND: Verdict = Verdict::NotSatisfiable;

    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const MODIFIED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const AFTER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

    /// What a request with these fields gets of 100 bytes with the tag "a".
    fn judge(method: &str, fields: &str, length: usize) -> Verdict {
        let fields = fields.lines().map(|line| format!("{line}\r\n")).collect::<String>();
        let head = format!("{method} / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        let limits = internal_client_limits(1);
        let mut scan = HeadScan::default();
        let whole = request::parse(head.as_bytes(), &mut scan, &limits.head, 0).unwrap().unwrap();
        let selected = Selected { etag: b"\"a\"", modified: Some(784_111_777), length };
        Conditions::of(whole.request.fields).judge(whole.request.method, selected)
    }

    #[track_caller]
    fn check(fields: &str, expected: Verdict) {
        assert_eq!(judge("GET", fields, 100), expected, "{fields}");
    }

    #[test]
    fn none_match() {
        check("", WHOLE);
        for same in ["\"a\"", "W/\"a\"", "*", "\"b\", \"a\"", "\"x,y\" ,,W/\"a\"", "\"a\"  ,"] {
            check(&format!("If-None-Match: {same}"), NOT_MODIFIED);
            assert_eq!(judge("HEAD", &format!("IF-NONE-MATCH: {same}"), 100), NOT_MODIFIED);
        }
        for other in
            ["\"b\"", "a", "", "\"a", "w/\"a\"", "\"b\" \"a\"", "\"x, \"a\"", "*, *", "\"A\""]
        {
            check(&format!("If-None-Match: {other}"), WHOLE);
        }
        // A list may be split over several fields.
        check("If-None-Match: \"b\"\nIf-None-Match: \"a\"", NOT_MODIFIED);
        check("If-None-Match: \"b\"\nIf-None-Match: \"c\"", WHOLE);
    }

    #[test]
    fn modified_since() {
        check(&format!("If-Modified-Since: {MODIFIED}"), NOT_MODIFIED);
        check(&format!("If-Modified-Since: {AFTER}"), NOT_MODIFIED);
        check(&format!("If-Modified-Since: {BEFORE}"), WHOLE);
        // The two obsolete forms of RFC 9110 section 5.6.7.
        check("If-Modified-Since: Sunday, 06-Nov-94 08:49:37 GMT", NOT_MODIFIED);
        check("If-Modified-Since: Sun Nov  6 08:49:37 1994", NOT_MODIFIED);
        for no_date in ["", "now", "784111777", "Sun, 06 Nov 1994 08:49:37 UTC+1"] {
            check(&format!("If-Modified-Since: {no_date}"), WHOLE);
        }
        check(&format!("If-Modified-Since: {AFTER}\nIf-Modified-Since: {AFTER}"), WHOLE);
        // If-None-Match decides where both are there.
        check(&format!("If-Modified-Since: {AFTER}\nIf-None-Match: \"b\""), WHOLE);
        check(&format!("If-Modified-Since: {BEFORE}\nIf-None-Match: \"a\""), NOT_MODIFIED);
    }

    #[test]
    fn preconditions() {
        for same in ["\"a\"", "*", "\"b\", \"a\""] {
            check(&format!("If-Match: {same}"), WHOLE);
        }
        for other in ["\"b\"", "W/\"a\"", "", "a"] {
            check(&format!("If-Match: {other}"), FAILED);
        }
        check(&format!("If-Unmodified-Since: {MODIFIED}"), WHOLE);
        check(&format!("If-Unmodified-Since: {BEFORE}"), FAILED);
        check("If-Unmodified-Since: once", WHOLE);
        // If-Match decides where both are there, and comes before If-None-Match.
        check(&format!("If-Match: \"a\"\nIf-Unmodified-Since: {BEFORE}"), WHOLE);
        check("If-Match: \"b\"\nIf-None-Match: \"a\"", FAILED);
        check("If-Match: \"a\"\nIf-None-Match: \"a\"", NOT_MODIFIED);
    }

    #[test]
    fn ranges() {
        for (range, part) in [
            ("0-0", 0..1),
            ("0-99", 0..100),
            ("10-19", 10..20),
            ("10-", 10..100),
            ("-10", 90..100),
            ("-1000", 0..100),
            ("99-1000", 99..100),
            ("0-99999999999999999999999", 0..100),
            ("-99999999999999999999999", 0..100),
        ] {
            check(&format!("Range: bytes={range}"), Verdict::Part(part.clone()));
            check(&format!("Range: BYTES= {range}"), Verdict::Part(part));
        }
        for beyond in ["100-", "100-200", "-0", "99999999999999999999999-"] {
            check(&format!("Range: bytes={beyond}"), BEYOND);
        }
        for ignored in
            ["2-1", "", "-", "a-b", "1", "+1-2", "1--2", "0-0,5-9", "0x1-2", " ", "1 - 2", "-0x5"]
        {
            check(&format!("Range: bytes={ignored}"), WHOLE);
        }
        check("Range: lines=0-1", WHOLE);
        check("Range: bytes 0-1", WHOLE);
        check("Range: bytes=0-1\nRange: bytes=0-1", WHOLE);
        assert_eq!(judge("HEAD", "Range: bytes=0-1", 100), WHOLE);
        assert_eq!(judge("GET", "Range: bytes=0-", 0), BEYOND);
        assert_eq!(judge("GET", "Range: bytes=-5", 0), WHOLE);
        // A 304 comes before a part.
        check("Range: bytes=0-1\nIf-None-Match: \"a\"", NOT_MODIFIED);
    }

    #[test]
    fn a_range_may_depend_on_what_the_client_has() {
        check("Range: bytes=0-1\nIf-Range: \"a\"", Verdict::Part(0..2));
        check("Range: bytes=200-\nIf-Range: \"a\"", BEYOND);
        for other in ["\"b\"", "W/\"a\"", MODIFIED, "*", "", "\"a\", \"b\""] {
            check(&format!("Range: bytes=0-1\nIf-Range: {other}"), WHOLE);
            check(&format!("Range: bytes=200-\nIf-Range: {other}"), WHOLE);
        }
        check("If-Range: \"b\"", WHOLE);
    }

    proptest! {
        #[test]
        fn a_part_lies_within_the_whole(field in "bytes=[0-9]{0,3}-[0-9]{0,3}", length in 0usize..300) {
            match part(field.as_bytes(), length) {
                Verdict::Part(part) => prop_assert!(part.start < part.end && part.end <= length),
                verdict => prop_assert!(verdict == WHOLE || verdict == BEYOND),
            }
        }

        #[test]
        fn any_bytes_are_judged(value in proptest::collection::vec(any::<u8>(), 0..40)) {
            lists(&[&value], b"\"a\"", Comparison::Weak);
            is_newer(Some(1), &[&value]);
            part(&value, 10);
        }
    }
}
