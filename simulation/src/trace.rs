//! The traces that visits come with, and whether each call takes its own visit's to the counter.

use std::{cell::RefCell, collections::BTreeMap, fmt::Write as _};

use fastrand::Rng;

use crate::{record::Call, request::VISITS, server};

/// The shares of traces that begin with a visit and are to be recorded.
pub const SHARES: [&str; 3] = ["0%", "50%", "100%"];
/// A request that is part of no trace of its own.
const PARENT: &str = "00f067aa0ba902b7";

/// The fields that a client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fields {
    /// A trace, with these flags, and perhaps what others have noted.
    Valid(u8, bool),
    /// The same, twice.
    Twice,
    /// What is no trace, in one of several ways.
    Wrong(usize),
}

impl Fields {
    /// Draws those of one request.
    pub fn draw(rng: &mut Rng) -> Option<Self> {
        match rng.u8(0..8) {
            0..=2 => Some(Self::Valid(rng.u8(0..=1), rng.bool())),
            3 => Some(Self::Twice),
            4 => Some(Self::Wrong(rng.usize(0..WRONG))),
            _ => None,
        }
    }

    /// The lines of a visit's request.
    pub fn lines(self, visit: usize) -> String {
        let valid = |flags: u8| format!("00-{}-{PARENT}-{flags:02x}", id(visit));
        match self {
            Self::Valid(flags, with_state) => {
                let state = if with_state { state(visit) } else { String::new() };
                let state = format!("Tracestate: {state} ,\r\n");
                let state = if with_state { &*state } else { "" };
                format!("{state}Traceparent: {}\r\n", valid(flags))
            }
            Self::Twice => format!("Traceparent: {}\r\n", valid(1)).repeat(2),
            Self::Wrong(kind) => {
                let wrong: [String; WRONG] = [
                    valid(1).to_uppercase(),
                    valid(1).replacen("00", "ff", 1),
                    valid(1)[1..].to_owned(),
                    valid(1) + "-",
                    format!("00-{}-{PARENT}-01", "0".repeat(32)),
                    valid(1).replace(PARENT, "0000000000000000"),
                    format!("{}\ttracestate: a=b", valid(1)),
                ];
                format!("Traceparent: {}\r\nTracestate: {}\r\n", wrong[kind], state(visit))
            }
        }
    }
}

const WRONG: usize = 7;

/// The trace of a visit, which no other has, and no trace that begins in the server: its last digits are all chance.
fn id(visit: usize) -> String {
    format!("{visit:04x}{:028}", 7)
}

fn state(visit: usize) -> String {
    format!("v{visit}=a b,w=v{visit}")
}

/// What calls must take to the counters.
#[derive(Default)]
pub struct Traces {
    /// The fields of each visit.
    fields: RefCell<BTreeMap<usize, Fields>>,
    /// The visits of the traces that have begun in the server.
    begun: RefCell<BTreeMap<String, usize>>,
}

impl Traces {
    /// The client of a visit sends these fields.
    pub fn expect(&self, visit: usize, fields: Fields) {
        self.fields.borrow_mut().insert(visit, fields);
    }

    /// Judges a whole call, which registers so many of these visits, or has no number. Its trace is that of the first.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn judge(
        &self,
        Call { visit, .. }: Call,
        batch: Option<u64>,
        visits: &[usize],
        call: &[u8],
        traces: Option<&str>,
    ) -> Result<(), String> {
        let wrong =
            || Err(format!("visit {visit} is called by {:?}", String::from_utf8_lossy(call)));
        let plain = server::call(visit, batch);
        let Some(lines) = call.strip_prefix(&plain[..plain.len() - 2]) else { return wrong() };
        let Ok(lines) = std::str::from_utf8(lines) else { return wrong() };
        let Some(share) = traces else {
            return if lines == "\r\n" { Ok(()) } else { wrong() };
        };
        // Version, trace-id, parent-id, flags.
        let parts = lines.strip_prefix("traceparent: 00-").and_then(|rest| rest.split_once('-'));
        let Some((trace, rest)) = parts else { return wrong() };
        let Some((parent, rest)) = rest.split_once('-') else { return wrong() };
        let hex = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if trace.len() != 32
            || parent.len() != 16
            || !hex(trace)
            || !hex(parent)
            || parent == PARENT
        {
            return wrong();
        }
        let mut expected = String::new();
        let fields = self.fields.borrow();
        let has_trace = |visit: &&usize| matches!(fields.get(visit), Some(Fields::Valid(..)));
        let first = match visits {
            [only] => Some(only).filter(has_trace),
            _ => visits.iter().filter(has_trace).find(|visit| trace == id(**visit)),
        };
        match first.map(|visit| (*visit, fields[visit])) {
            Some((visit, Fields::Valid(flags, with_state))) => {
                if trace != id(visit) {
                    return wrong();
                }
                let _ = write!(expected, "{flags:02x}\r\n");
                if with_state {
                    let _ = write!(expected, "tracestate: {}\r\n", state(visit));
                }
            }
            _ => {
                let others = self.begun.borrow_mut().insert(trace.to_owned(), visit);
                if others.is_some_and(|other| other != visit)
                    || (0..VISITS).any(|visit| trace == id(visit))
                {
                    return wrong();
                }
                expected.push_str(match (share, &rest[..2.min(rest.len())]) {
                    ("0%", _) | ("50%", "00") => "00\r\n",
                    _ => "01\r\n",
                });
            }
        }
        expected.push_str("\r\n");
        if rest == expected { Ok(()) } else { wrong() }
    }
}
