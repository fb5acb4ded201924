//! Traces of visits: the fields of W3C Trace Context that a call takes to the counter.
//!
//! A visit that comes with a trace stays a part of it; others begin one, and a share of these is marked to be recorded.
//! Each call then has bytes of its own.

use std::{cell::RefCell, rc::Rc};

use bytes::Bytes;
use fastrand::Rng;

use super::Share;
use crate::{
    http::{
        request::FieldLines,
        trace_context::{self, Incoming, Trace},
    },
    upstream::CallBytes,
};

/// Makes the ids of one worker.
pub struct Tracer {
    rng: RefCell<Rng>,
}

/// The fields of one visit's trace, as they go over the wire.
#[derive(Clone)]
pub(super) struct TraceFields(Rc<Vec<u8>>);

impl Tracer {
    /// Its ids follow from `seed`, which no two workers share.
    pub fn new(seed: u64) -> Self {
        Self { rng: RefCell::new(Rng::with_seed(seed)) }
    }

    /// The trace that the call of a visit takes along whose request has these fields. `sampled` is the share of traces
    /// that are recorded, of those that begin here.
    pub(super) fn trace(&self, fields: FieldLines<'_>, sampled: Share) -> TraceFields {
        let incoming = Incoming::of(fields);
        let mut rng = self.rng.borrow_mut();
        let trace = match &incoming {
            Some(incoming) => incoming.trace,
            None => Trace::new(rng.u128(..), sampled.draw(&mut rng)),
        };
        TraceFields(Rc::new(trace_context::fields(trace, rng.u64(..), incoming.as_ref())))
    }
}

impl TraceFields {
    /// Those that `request` takes along beside what is in `call`, of which it was made by [`add_to`](Self::add_to).
    /// `None` if it is `call` itself.
    pub(super) fn of(request: &Bytes, call: &Bytes) -> Option<Self> {
        let added = request.len().checked_sub(call.len()).filter(|added| *added > 0)?;
        // They are before the empty line at the end.
        let end = request.len().checked_sub(2)?;
        Some(Self(Rc::new(request.get(end - added..end)?.to_vec())))
    }

    /// A call that takes them along; `call` has none of them.
    pub(super) fn add_to(&self, call: &Bytes) -> CallBytes {
        Rc::new(trace_context::add_fields(call, &self.0).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{HeadLimits, request};

    /// The calls of visits that send these fields.
    fn calls(tracer: &Tracer, fields: &str, share: &str, count: usize) -> Vec<String> {
        let limits =
            HeadLimits { head_bytes_max: 4096, head_fields_max: 20, target_bytes_max: 100 };
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n").into_bytes();
        let whole = request::parse(&head, &mut Default::default(), &limits, 0).unwrap().unwrap();
        let call = Bytes::from_static(b"POST / HTTP/1.1\r\nhost: b\r\n\r\n");
        let make = || {
            let trace = tracer.trace(whole.request.fields, share.parse().unwrap());
            let plain = call.clone();
            let call = trace.add_to(&call);
            assert_eq!(TraceFields::of(&call, &plain).map(|fields| fields.0), Some(trace.0));
            assert!(TraceFields::of(&plain, &plain).is_none());
            String::from_utf8(call.to_vec()).unwrap()
        };
        std::iter::repeat_with(make).take(count).collect()
    }

    #[test]
    fn a_visit_with_a_trace_stays_a_part_of_it() {
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        let fields = format!("traceparent: 00-{id}-00f067aa0ba902b7-01\r\ntracestate: a=1\r\n");
        let calls = calls(&Tracer::new(1), &fields, "0%", 100);
        let begin = format!("POST / HTTP/1.1\r\nhost: b\r\ntraceparent: 00-{id}-");
        let mut parents = std::collections::BTreeSet::from([String::from("00f067aa0ba902b7")]);
        for call in calls {
            let (parent, rest) = call.strip_prefix(&begin).unwrap().split_at(16);
            assert_eq!(rest, "-01\r\ntracestate: a=1\r\n\r\n");
            assert!(parents.insert(parent.to_owned()), "each call has an id of its own: {parent}");
        }
    }

    #[test]
    fn a_visit_without_a_trace_begins_one() {
        let mut seen = std::collections::BTreeSet::new();
        let wrong = "traceparent: 00-x\r\ntracestate: a=1\r\n";
        for (share, least, most, seed) in
            [("0%", 0, 0, 1), ("100%", 1000, 1000, 2), ("10%", 60, 140, 3)]
        {
            // Two workers, and the same visits.
            for (worker, fields) in [(0, ""), (1 << 32, wrong)] {
                let calls = calls(&Tracer::new(seed ^ worker), fields, share, 1000);
                let sampled = calls.iter().filter(|call| call.ends_with("-01\r\n\r\n")).count();
                assert!((least..=most).contains(&sampled), "{share}: {sampled}");
                for call in calls {
                    let begin = "POST / HTTP/1.1\r\nhost: b\r\ntraceparent: 00-";
                    let (id, rest) = call.strip_prefix(begin).unwrap().split_at(32);
                    assert!(seen.insert(id.to_owned()), "each visit has a trace of its own: {id}");
                    assert_eq!(rest.len(), "-0000000000000000-00\r\n\r\n".len(), "{call:?}");
                }
            }
        }
    }
}
