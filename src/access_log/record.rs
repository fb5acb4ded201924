//! The record of a request that is being served, and what a worker keeps for all of them.

use std::{
    cell::{Cell, RefCell},
    net::IpAddr,
    num::NonZeroU32,
    rc::Rc,
    sync::Arc,
};

use ipnet::IpNet;
use smallvec::SmallVec;

use super::{
    entry::{Header, Outcome, Producer, TEXT_BYTES_MAX},
    forwarded::{client_address, is_trusted},
};
use crate::{
    http::request::{FieldLines, Request, first_line},
    metrics::WorkerMetrics,
    runtime::clock,
};

/// The status of a request whose client left before its answer, as nginx has it.
const CLIENT_LEFT: u16 = 499;

/// The end of a text that was cut.
const CUT: &[u8] = b"...";

/// What is recorded, and whom the record names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Each worker records its first request, and from then on each one that is this many after the last.
    pub one_in: NonZeroU32,
    /// The proxies that are believed when they name a client.
    pub trusted: Arc<[IpNet]>,
}

/// What is known of a connection when a request comes over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The other side, or the client that a proxy has named for all of the connection.
    pub peer: IpAddr,
    /// Whether a proxy has relayed it for a client that it does not name. Then the peer is the proxy, but the fields of
    /// requests are those of the client, and are not believed.
    pub is_unnamed: bool,
    /// Whether it has carried a request before.
    pub is_reused: bool,
}

/// A worker's side of the access log.
#[derive(Debug)]
pub struct Recorder {
    rules: Rules,
    ring: RefCell<Producer>,
    metrics: Arc<WorkerMetrics>,
    /// Requests until the next one that is recorded.
    to_skip: Cell<u32>,
}

impl Recorder {
    /// Records into `ring`, and counts in `metrics` what finds no room there.
    pub fn new(rules: Rules, ring: Producer, metrics: Arc<WorkerMetrics>) -> Self {
        Self { rules, ring: RefCell::new(ring), metrics, to_skip: Cell::new(0) }
    }

    /// The record of a request that begins, if it is one of those that are recorded.
    pub fn begin(self: &Rc<Self>, origin: Origin, request: &Request<'_>) -> Option<Record> {
        if !self.is_next() {
            return None;
        }
        let mut texts = Texts::of_line(request.fields.request_line(), true);
        let fields = Fields::read(request.fields);
        texts.add(1, fields.referer);
        texts.add(2, fields.user_agent);
        let Origin { peer, is_unnamed, is_reused } = origin;
        let client = match !is_unnamed && is_trusted(peer, &self.rules.trusted) {
            true => client_address(peer, fields.forwarded.into_iter(), &self.rules.trusted),
            false => peer,
        };
        Some(self.record(client, texts, true, is_reused))
    }

    /// Records a request whose head is not served, of which `received` is what came.
    pub fn refuse(
        self: &Rc<Self>,
        origin: Origin,
        received: &[u8],
        (status, content_bytes): (u16, usize),
    ) {
        if self.is_next() {
            let texts = Texts::of_line(first_line(received), false);
            self.record(origin.peer, texts, false, origin.is_reused).answer(status, content_bytes);
        }
    }

    fn is_next(&self) -> bool {
        match self.to_skip.get().checked_sub(1) {
            Some(to_skip) => {
                self.to_skip.set(to_skip);
                false
            }
            None => {
                self.to_skip.set(self.rules.one_in.get() - 1);
                true
            }
        }
    }

    fn record(
        self: &Rc<Self>,
        client: IpAddr,
        texts: Texts,
        is_valid: bool,
        is_reused: bool,
    ) -> Record {
        Record(Box::new(Open {
            recorder: Rc::clone(self),
            header: Header {
                unix_millis: clock::unix_millis(),
                duration_micros: 0,
                client,
                status: CLIENT_LEFT,
                content_bytes: 0,
                outcome: Outcome::UNCOUNTED,
                is_valid,
                is_reused,
                texts: texts.lengths,
            },
            entry: texts.entry,
            began: is_valid.then(clock::micros),
        }))
    }

    fn push(&self, entry: &[u8]) {
        // Never borrowed elsewhere: nothing is called while it is.
        let pushed = self.ring.try_borrow_mut().is_ok_and(|mut ring| ring.push(entry));
        if !pushed {
            self.metrics.access_log_dropped.increment();
        }
    }
}

/// The record of one request. When it is dropped, its entry is put into the ring: of the answer if there was one,
/// else of a client that has left.
#[derive(Debug)]
pub struct Record(Box<Open>);

#[derive(Debug)]
struct Open {
    recorder: Rc<Recorder>,
    header: Header,
    /// Room for the header, and the texts.
    entry: Vec<u8>,
    /// By [`clock::micros`]; `None` where the head is not served.
    began: Option<u64>,
}

impl Record {
    /// What becomes of the request, as far as it is known. Of one that is never told, it was no visit.
    pub fn set_outcome(&mut self, outcome: Outcome) {
        self.0.header.outcome = outcome;
    }

    /// The request was answered; its content has this many bytes as sent.
    pub fn answer(mut self, status: u16, content_bytes: usize) {
        self.0.header.status = status;
        self.0.header.content_bytes = content_bytes as u64;
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(began) = self.began {
            self.header.duration_micros = clock::micros().saturating_sub(began);
        }
        self.header.write(&mut self.entry);
        self.recorder.push(&self.entry);
    }
}

/// The texts of an entry, behind the room for its header.
struct Texts {
    entry: Vec<u8>,
    lengths: [u16; 3],
}

impl Texts {
    /// Begins with a request line. Of a valid one the target is cut, so that it stays one.
    fn of_line(line: &[u8], is_valid: bool) -> Self {
        let mut entry = Vec::with_capacity(Header::BYTES + 256);
        entry.resize(Header::BYTES, 0);
        let mut texts = Self { entry, lengths: [0; 3] };
        let version = line.iter().rposition(|&byte| byte == b' ').filter(|_| is_valid);
        let (line, version) = line.split_at(version.unwrap_or(line.len()));
        texts.add(0, line);
        texts.extend(0, version);
        texts
    }

    /// Adds a text, of which a part too much is cut off.
    fn add(&mut self, place: usize, text: &[u8]) {
        match text.len() {
            ..=TEXT_BYTES_MAX => self.extend(place, text),
            _ => {
                self.extend(place, &text[..TEXT_BYTES_MAX]);
                self.extend(place, CUT);
            }
        }
    }

    fn extend(&mut self, place: usize, bytes: &[u8]) {
        // The longest has the maximum, the mark and a version.
        self.lengths[place] += u16::try_from(bytes.len()).unwrap_or(0);
        self.entry.extend_from_slice(bytes);
    }
}

/// The fields that an entry is made of: the first of those that should come once.
struct Fields<'a> {
    referer: &'a [u8],
    user_agent: &'a [u8],
    forwarded: SmallVec<[&'a [u8]; 2]>,
}

impl<'a> Fields<'a> {
    fn read(lines: FieldLines<'a>) -> Self {
        let (mut referer, mut user_agent) = (None, None);
        let mut forwarded = SmallVec::new();
        for (name, value) in lines.iter() {
            match name.len() {
                7 if name.eq_ignore_ascii_case(b"referer") => {
                    referer.get_or_insert(value);
                }
                10 if name.eq_ignore_ascii_case(b"user-agent") => {
                    user_agent.get_or_insert(value);
                }
                15 if name.eq_ignore_ascii_case(b"x-forwarded-for") => forwarded.push(value),
                _ => {}
            }
        }
        let (referer, user_agent) = (referer.unwrap_or_default(), user_agent.unwrap_or_default());
        Self { referer, user_agent, forwarded }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::entry::{Entries, Entry, ring},
        *,
    };
    use crate::{
        http::{
            HeadLimits,
            request::{HeadScan, parse},
        },
        metrics::Failure,
    };

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const ORIGIN: Origin = Origin { peer: PEER, is_unnamed: false, is_reused: false };
    const LIMITS: HeadLimits =
        HeadLimits { head_bytes_max: 1 << 20, head_fields_max: 100, target_bytes_max: 1 << 19 };

    fn recorder(one_in: u32, ring_bytes: usize) -> (Rc<Recorder>, Entries, Arc<WorkerMetrics>) {
        let trusted = Arc::new(["127.0.0.0/8".parse().unwrap()]);
        let rules = Rules { one_in: one_in.try_into().unwrap(), trusted };
        let (producer, entries) = ring(ring_bytes);
        let metrics = Arc::<WorkerMetrics>::default();
        (Rc::new(Recorder::new(rules, producer, Arc::clone(&metrics))), entries, metrics)
    }

    fn begin(recorder: &Rc<Recorder>, head: &str) -> Option<Record> {
        let whole = parse(head.as_bytes(), &mut HeadScan::default(), &LIMITS, 0).unwrap().unwrap();
        recorder.begin(ORIGIN, &whole.request)
    }

    /// Of a request that has this head.
    #[track_caller]
    fn check(head: &str, expected: impl FnOnce(&Entry<'_>)) {
        let (recorder, mut entries, _) = recorder(1, 1 << 16);
        begin(&recorder, head).unwrap().answer(200, 3);
        expected(&entries.next().expect("an entry"));
        assert_eq!(entries.next(), None);
    }

    #[test]
    fn an_entry_tells_of_its_request() {
        check(
            "\r\nGET http://a/b?c HTTP/1.1\r\nHost: a\r\nreferer:  d \r\nUser-Agent: e\r\nUSER-AGENT: f\r\n\r\n",
            |entry| {
                assert_eq!(entry.line, b"GET http://a/b?c HTTP/1.1");
                assert_eq!((entry.referer, entry.user_agent), (&b"d"[..], &b"e"[..]));
                assert_eq!((entry.status, entry.content_bytes, entry.is_valid), (200, 3, true));
                assert_eq!((entry.client, entry.outcome), (PEER, "uncounted"));
                assert!(
                    entry.unix_millis > 1_700_000_000_000 && entry.duration_micros < 60_000_000
                );
            },
        );
        check("GET / HTTP/1.0\r\n\r\n", |entry| {
            assert_eq!((entry.referer, entry.user_agent), (&b""[..], &b""[..]));
        });
        check("GET / HTTP/1.0\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n", |entry| {
            assert_eq!(entry.client.to_string(), "1.2.3.4");
        });
    }

    #[test]
    fn long_texts_are_cut_with_a_mark() {
        let text = |bytes: usize| "x".repeat(bytes);
        let head = |target: usize, field: usize| {
            format!(
                "GET /{} HTTP/1.1\r\nHost: a\r\nReferer: {2}\r\nUser-Agent: {}\r\n\r\n",
                text(target),
                text(field),
                text(field)
            )
        };
        check(&head(TEXT_BYTES_MAX - 5, TEXT_BYTES_MAX), |entry| {
            assert_eq!(
                entry.line,
                format!("GET /{} HTTP/1.1", text(TEXT_BYTES_MAX - 5)).as_bytes()
            );
            assert_eq!(entry.referer, text(TEXT_BYTES_MAX).as_bytes());
        });
        check(&head(TEXT_BYTES_MAX - 4, TEXT_BYTES_MAX + 1), |entry| {
            let expected = format!("GET /{}... HTTP/1.1", text(TEXT_BYTES_MAX - 5));
            assert_eq!(entry.line, expected.as_bytes());
            assert_eq!(entry.referer, (text(TEXT_BYTES_MAX) + "...").as_bytes());
            assert_eq!(entry.user_agent, entry.referer);
        });
    }

    #[test]
    fn a_request_that_is_not_answered_has_an_entry() {
        let (recorder, mut entries, _) = recorder(1, 1 << 16);
        let mut record = begin(&recorder, "GET / HTTP/1.0\r\n\r\n").unwrap();
        record.set_outcome(Outcome::ABANDONED);
        drop(record);
        let entry = entries.next().expect("an entry");
        assert_eq!((entry.status, entry.content_bytes, entry.outcome), (499, 0, "abandoned"));
    }

    #[test]
    fn a_refused_request_has_what_is_known_of_it() {
        let (recorder, mut entries, _) = recorder(1, 1 << 16);
        for (received, line) in [
            (&b"\r\n\r\nGET  / HTTP/1.1\r\nHost: a"[..], &b"GET  / HTTP/1.1"[..]),
            (b"GE", b"GE"),
            (b"\xff\"\x1b[31m\nrest", b"\xff\"\x1b[31m"),
            (b"", b""),
        ] {
            recorder.refuse(Origin { is_reused: true, ..ORIGIN }, received, (400, 7));
            let entry = entries.next().expect("an entry");
            assert_eq!((entry.line, entry.is_valid, entry.is_reused), (line, false, true));
            assert_eq!((entry.status, entry.content_bytes), (400, 7));
            assert_eq!((entry.referer, entry.duration_micros), (&b""[..], 0));
        }
        recorder.refuse(ORIGIN, &[b'x'; 5000], (431, 7));
        let entry = entries.next().expect("an entry");
        assert_eq!(entry.line.len(), TEXT_BYTES_MAX + CUT.len());
    }

    #[test]
    fn one_of_several_is_recorded() {
        for one_in in 1..=4 {
            let (recorder, mut entries, _) = recorder(one_in, 1 << 16);
            let recorded: Vec<bool> = (0..9)
                .map(|number| {
                    match number % 3 {
                        0 => recorder.refuse(ORIGIN, b"x", (400, 0)),
                        _ => drop(begin(&recorder, "GET / HTTP/1.0\r\n\r\n")),
                    }
                    entries.next().is_some()
                })
                .collect();
            let expected: Vec<bool> = (0..9).map(|number| number % one_in == 0).collect();
            assert_eq!(recorded, expected, "one in {one_in}");
        }
    }

    #[test]
    fn what_finds_no_room_is_dropped_and_counted() {
        let (recorder, mut entries, metrics) = recorder(1, 100);
        for _ in 0..3 {
            let mut record = begin(&recorder, "GET / HTTP/1.0\r\n\r\n").unwrap();
            record.set_outcome(Outcome::erred(Failure::TimedOut));
            record.answer(200, 1);
        }
        assert_eq!(metrics.access_log_dropped.read(), 2);
        assert_eq!(entries.next().and_then(|entry| entry.cause), Some("timeout"));
        assert_eq!(entries.next(), None);
    }
}
