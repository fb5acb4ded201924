//! W3C Trace Context: the fields `traceparent` and `tracestate`, which say of which trace a request is a part.
//!
//! Pure. What a client sends is read into values, and only these are written again: ids and flags as numbers, and a
//! state of which each byte was checked. So nothing that a client sends can end a field early, or begin another.

use std::io::Write as _;

use super::request::FieldLines;

/// The length of a `traceparent` of version 00: version, trace-id, parent-id and flags, with a dash between.
const PARENT_BYTES: usize = 55;
/// The most members of a `tracestate`.
const MEMBERS_MAX: usize = 32;
/// What is passed on of a `tracestate`, which is what everybody should pass on at least.
const STATE_BYTES_MAX: usize = 512;
/// Longer members are left out first, if the state is longer than that.
const MEMBER_BYTES_LONG: usize = 128;
/// The longest key, and the longest value.
const WORD_BYTES_MAX: usize = 256;
/// Both fields, with their names and line ends, are never longer.
pub const FIELDS_BYTES_MAX: usize =
    "traceparent: ".len() + PARENT_BYTES + "\r\ntracestate: \r\n".len() + STATE_BYTES_MAX;

/// The flag of a trace that is recorded.
const SAMPLED: u8 = 1;

/// The trace that a request is a part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace {
    /// Not 0.
    id: u128,
    flags: u8,
}

/// The trace of a client's request, and what tracing systems have noted about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming<'a> {
    /// The trace.
    pub trace: Trace,
    /// Valid members, each with no whitespace around it, of [`STATE_BYTES_MAX`] bytes with a comma between.
    state: Vec<&'a [u8]>,
}

impl Trace {
    /// A trace that begins here.
    pub const fn new(id: u128, sampled: bool) -> Self {
        // An id of zeros is forbidden.
        Self { id: if id == 0 { 1 } else { id }, flags: if sampled { SAMPLED } else { 0 } }
    }

    /// The trace of a `traceparent`: `None` if it is not valid.
    fn parse(value: &[u8]) -> Option<Self> {
        let (version, rest) = value.split_at_checked(2)?;
        let version = hex(version)?;
        let (fields, more) = rest.split_at_checked(PARENT_BYTES - 2)?;
        // Version ff is forbidden. A higher one than 00 may have more, behind another dash.
        let has_end = match version {
            0x00 => more.is_empty(),
            0xff => false,
            _ => matches!(more, [] | [b'-', ..]),
        };
        let mut fields = fields.strip_prefix(b"-")?.split(|byte| *byte == b'-');
        let mut field =
            |digits: usize| fields.next().filter(|field| field.len() == digits).and_then(hex);
        let (id, parent, flags) = (field(32)?, field(16)?, field(2)?);
        let flags = u8::try_from(flags).ok()?;
        // Of the flags of a version that is not known, this one is.
        let flags = if version == 0 { flags } else { flags & SAMPLED };
        (has_end && id != 0 && parent != 0).then_some(Self { id, flags })
    }
}

/// A number in lower-case hexadecimal digits, at most 32.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(digit))
    })
}

impl<'a> Incoming<'a> {
    /// The trace of a request with these fields: `None` without one valid `traceparent`. A `tracestate` that is not
    /// valid is left out, and the trace is kept.
    pub fn of(fields: FieldLines<'a>) -> Option<Self> {
        let named = |wanted: &'static str| {
            fields.iter().filter(move |(name, _)| name.eq_ignore_ascii_case(wanted.as_bytes()))
        };
        let mut parents = named("traceparent");
        let trace = Trace::parse(parents.next()?.1)?;
        if parents.next().is_some() {
            return None;
        }
        let state = named("tracestate").flat_map(|(_, value)| super::list_elements(value));
        Some(Self { trace, state: state_of(state).unwrap_or_default() })
    }
}

/// The members of a state, as they are passed on: `None` if one of them is not valid, or there are too many.
fn state_of<'a>(members: impl Iterator<Item = &'a [u8]>) -> Option<Vec<&'a [u8]>> {
    let mut state: Vec<&[u8]> = Vec::new();
    // Empty members are allowed.
    for member in members.filter(|member| !member.is_empty()) {
        if state.len() == MEMBERS_MAX || !is_member(member) {
            return None;
        }
        state.push(member);
    }
    let length = |state: &[&[u8]]| state.iter().map(|member| member.len() + 1).sum::<usize>();
    // With a comma behind each but the last.
    while length(&state) > STATE_BYTES_MAX + 1 {
        let long = state.iter().rposition(|member| member.len() > MEMBER_BYTES_LONG);
        state.remove(long.unwrap_or(state.len() - 1));
    }
    Some(state)
}

/// Whether this is a key and a value, with `=` between.
fn is_member(member: &[u8]) -> bool {
    let Some(place) = member.iter().position(|byte| *byte == b'=') else { return false };
    let (key, value) = (&member[..place], &member[place + 1..]);
    let sized = |word: &[u8]| (1..=WORD_BYTES_MAX).contains(&word.len());
    let begins = key.first().is_some_and(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9'));
    let key_bytes = key
        .iter()
        .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/' | b'@'));
    // The last byte is no space: whitespace around a member is not a part of it.
    let value_bytes = value.iter().all(|byte| matches!(byte, b' '..=b'~') && *byte != b'=');
    sized(key) && sized(value) && begins && key_bytes && value_bytes
}

/// Adds the fields to a request without a body, whose head is `request`: `trace` with `parent` as the id of the request
/// that is made, and the state of the request that it is made for.
///
/// # Panics
/// When `request` does not end in an empty line.
pub fn add_fields(
    request: &[u8],
    trace: Trace,
    parent: u64,
    incoming: Option<&Incoming<'_>>,
) -> Vec<u8> {
    let end = request.len().checked_sub(2).filter(|_| request.ends_with(b"\r\n\r\n"));
    let Some(end) = end else { unreachable!("a head ends in an empty line") };
    let mut bytes = Vec::with_capacity(request.len() + FIELDS_BYTES_MAX);
    bytes.extend_from_slice(&request[..end]);
    let Trace { id, flags } = trace;
    // An id of zeros is forbidden. Writing to a vector does not fail.
    let _ = write!(bytes, "traceparent: 00-{id:032x}-{:016x}-{flags:02x}\r\n", parent.max(1));
    if let Some(Incoming { state, .. }) = incoming
        && let Some((first, rest)) = state.split_first()
    {
        bytes.extend_from_slice(b"tracestate: ");
        bytes.extend_from_slice(first);
        for member in rest {
            bytes.push(b',');
            bytes.extend_from_slice(member);
        }
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    debug_assert!(bytes.len() <= request.len() + FIELDS_BYTES_MAX);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{HeadLimits, request};

    const ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const PARENT: &str = "00f067aa0ba902b7";

    fn head(fields: &[(&str, &str)]) -> Vec<u8> {
        let lines = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
        format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", lines.collect::<String>()).into_bytes()
    }

    fn fields_of(head: &[u8]) -> FieldLines<'_> {
        let limits =
            HeadLimits { head_bytes_max: 16 * 1024, head_fields_max: 20, target_bytes_max: 100 };
        request::parse(head, &mut Default::default(), &limits, 0).unwrap().unwrap().request.fields
    }

    /// What goes on of a request with these fields: the fields of the request that is made.
    fn passed_on(fields: &[(&str, &str)]) -> Option<String> {
        let head = head(fields);
        let incoming = Incoming::of(fields_of(&head))?;
        let request = add_fields(b"POST / HTTP/1.1\r\n\r\n", incoming.trace, 7, Some(&incoming));
        let text = String::from_utf8(request).unwrap();
        let fields = text.strip_prefix("POST / HTTP/1.1\r\n").unwrap();
        Some(fields.strip_suffix("\r\n\r\n").unwrap().replace("\r\n", "; "))
    }

    /// What goes on of this `traceparent`: the flags.
    #[track_caller]
    fn check(value: &str, expected: Option<&str>) {
        let expected =
            expected.map(|flags| format!("traceparent: 00-{ID}-0000000000000007-{flags}"));
        assert_eq!(passed_on(&[("traceparent", value)]), expected, "{value:?}");
    }

    #[test]
    fn a_trace_goes_on_with_its_id_and_flags() {
        let valid = format!("00-{ID}-{PARENT}-01");
        check(&valid, Some("01"));
        check(&format!("00-{ID}-{PARENT}-00"), Some("00"));
        check(&format!("00-{ID}-{PARENT}-ff"), Some("ff"));
        assert!(passed_on(&[("TraceParent", &valid)]).is_some());
        for wrong in [
            String::new(),
            // Too long, too short, and of other pieces.
            format!("{valid}-"),
            format!("{valid}-00"),
            format!("{valid}0"),
            valid[..54].to_owned(),
            valid[1..].to_owned(),
            format!("00-{ID}{PARENT}--01"),
            format!("00-{ID}-{PARENT}01-"),
            format!("00{ID}--{PARENT}-01"),
            format!("000-{}-{PARENT}-01", &ID[1..]),
            format!("00_{ID}_{PARENT}_01"),
            // Not in lower-case hexadecimal digits.
            valid.to_uppercase(),
            valid.replace('4', "g"),
            valid.replace("-01", "-0A"),
            valid.replace("-01", "-0 "),
            valid.replace("-01", "- 1"),
            format!("0x-{ID}-{PARENT}-01"),
            // What is forbidden.
            format!("ff-{ID}-{PARENT}-01"),
            format!("00-{}-{PARENT}-01", "0".repeat(32)),
            format!("00-{ID}-{}-01", "0".repeat(16)),
        ] {
            check(&wrong, None);
        }
        for id in [1, 15] {
            let edge = format!("00-{id:032x}-{PARENT}-01");
            assert!(passed_on(&[("traceparent", &edge)]).is_some(), "{edge}");
        }
        // Which of two is right?
        assert_eq!(passed_on(&[("traceparent", &valid), ("traceparent", &valid)]), None);
        assert_eq!(passed_on(&[("traceparent", &valid), ("Traceparent", "x")]), None);
        assert_eq!(passed_on(&[("traceparents", &valid)]), None);
    }

    /// The specification's rules for versions that are higher than its own.
    #[test]
    fn a_higher_version_is_read_as_far_as_it_is_known() {
        for version in ["01", "0a", "cc", "fe"] {
            let known = format!("{version}-{ID}-{PARENT}-01");
            check(&known, Some("01"));
            check(&format!("{version}-{ID}-{PARENT}-08"), Some("00"));
            check(&format!("{version}-{ID}-{PARENT}-09"), Some("01"));
            check(&format!("{known}-what-the-future-will-be-like"), Some("01"));
            check(&format!("{known}-"), Some("01"));
            check(&format!("{known}."), None);
            check(&format!("{known}0"), None);
            check(&known[..54], None);
            check(&format!("{version}-{ID}-{}-01", "0".repeat(16)), None);
        }
    }

    /// What goes on of these `tracestate` fields.
    #[track_caller]
    fn check_state(values: &[&str], expected: &str) {
        let parent = format!("00-{ID}-{PARENT}-01");
        let fields = values.iter().map(|value| ("tracestate", *value));
        let fields: Vec<_> = fields.chain([("traceparent", &*parent)]).collect();
        let passed = passed_on(&fields).expect("the trace goes on in any case");
        let state = passed.split_once("; tracestate: ").map_or("", |(_, state)| state);
        assert_eq!(state, expected, "{values:?}");
    }

    #[test]
    fn a_state_goes_on_if_it_is_valid() {
        check_state(&[], "");
        check_state(&[""], "");
        check_state(&[" ,\t,"], "");
        check_state(
            &["rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"],
            "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
        );
        check_state(&["a=1 , \tb= 2 ,,c=3"], "a=1,b= 2,c=3");
        check_state(&["a=1", "", "b=2,c=3"], "a=1,b=2,c=3");
        check_state(&["a=1,a=2"], "a=1,a=2");
        check_state(
            &["0a_-*/@z=!\"#$%&'()*+-./:;<>?@[\\]^_`{|}~"],
            "0a_-*/@z=!\"#$%&'()*+-./:;<>?@[\\]^_`{|}~",
        );
        for wrong in
            ["a", "a=", "=1", "A=1", "a b=1", "_a=1", "a=1=2", "a=\u{e4}", "a=1\tb", "ä=1", "a:b=1"]
        {
            check_state(&[wrong], "");
            check_state(&["b=2", wrong], "");
        }
        let word = "x".repeat(256);
        check_state(&[&format!("{}=1", &word[..200])], &format!("{}=1", &word[..200]));
        check_state(&[&format!("{word}=1")], &format!("{word}=1"));
        check_state(&[&format!("{word}x=1,a=1")], "");
        check_state(&[&format!("a={}", &word[..255])], &format!("a={}", &word[..255]));
        check_state(&[&format!("a={word}x,b=1")], "");
        let many = |count: usize| vec!["a=1"; count].join(",");
        check_state(&[&many(32)], &many(32));
        check_state(&[&many(33)], "");
        check_state(&[&many(16), &many(16)], &many(32));
        check_state(&[&many(16), &many(17)], "");
    }

    #[test]
    fn a_state_that_is_too_long_loses_members() {
        let member =
            |key: &str, bytes: usize| format!("{key}={}", "x".repeat(bytes - key.len() - 1));
        let (long, short) = (member("long", 200), member("short", 128));
        // 512 bytes with their commas, and one more.
        let fits = [member("a", 128), short.clone(), short.clone(), member("b", 125)].join(",");
        check_state(&[&fits], &fits);
        let above = [member("a", 128), short.clone(), short.clone(), member("b", 126)].join(",");
        check_state(&[&above], &above[..above.len() - 127]);
        // The long ones go first, whatever their place, and no more than must.
        let mixed = [&long, &short, &long, &short, "z=1"].map(str::to_owned).join(",");
        check_state(&[&mixed], &[&long, &short, &short, "z=1"].map(str::to_owned).join(","));
    }

    #[test]
    fn no_field_is_written_beyond_its_size() {
        let state = "y".repeat(255);
        let fields = [
            ("traceparent", format!("00-{ID}-{PARENT}-01")),
            ("tracestate", format!("a={state},b={}", &state[..252])),
        ];
        let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let head = head(&fields);
        let incoming = Incoming::of(fields_of(&head)).unwrap();
        let request = b"POST / HTTP/1.1\r\n\r\n";
        let bytes = add_fields(request, incoming.trace, u64::MAX, Some(&incoming));
        assert_eq!(bytes.len(), request.len() + FIELDS_BYTES_MAX);
        // No zeros, and nothing but its own field without a state.
        let begun = add_fields(request, Trace::new(0, true), 0, None);
        let expected =
            format!("POST / HTTP/1.1\r\ntraceparent: 00-{:032x}-{:016x}-01\r\n\r\n", 1, 1);
        assert_eq!(String::from_utf8(begun).unwrap(), expected);
    }
}
