//! The entry of one request, and the ring in which a worker passes its entries to the thread that writes them.

use std::net::{IpAddr, Ipv6Addr};

use crate::metrics::Failure;

/// The most bytes of a request line, a referer or a user agent that an entry holds.
pub(super) const TEXT_BYTES_MAX: usize = 1024;

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome(u8);

impl Outcome {
    /// It was no visit.
    pub const UNCOUNTED: Self = Self(0);
    /// A visit whose outcome is not known: its client has left before.
    pub const ABANDONED: Self = Self(1);
    /// A visit that was registered.
    pub const WELCOMED: Self = Self(2);
    /// A visit that was refused for overload.
    pub const REFUSED: Self = Self(3);
    /// The codes of those that have erred begin here.
    const ERRED: u8 = 8;

    /// The names, by the codes.
    const NAMES: [&str; 4] = ["uncounted", "abandoned", "welcomed", "refused"];

    /// A visit that was not registered.
    #[allow(clippy::cast_possible_truncation)]
    pub const fn erred(failure: Failure) -> Self {
        Self(Self::ERRED + failure.place() as u8)
    }
}

/// What the log says of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<'a> {
    /// When its head was whole, in milliseconds since the Unix epoch.
    pub unix_millis: u64,
    /// From then until its answer was ready; 0 where the head was not served.
    pub duration_micros: u64,
    /// Who has asked.
    pub client: IpAddr,
    /// The request line as it was received; empty where nothing of it was.
    pub line: &'a [u8],
    /// Whether the line is a method, a target and a version.
    pub is_valid: bool,
    /// The `Referer` and `User-Agent` fields; empty where there is none, or the head was not served.
    pub referer: &'a [u8],
    /// See [`referer`](Self::referer).
    pub user_agent: &'a [u8],
    /// The status of the answer.
    pub status: u16,
    /// The bytes of its content.
    pub content_bytes: u64,
    /// Whether its connection had carried another request.
    pub is_reused: bool,
    /// What became of it.
    pub outcome: &'static str,
    /// Why the visit has erred, if it has.
    pub cause: Option<&'static str>,
}

/// The part of an entry that has always the same length; the three texts follow it.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) unix_millis: u64,
    pub(super) duration_micros: u64,
    pub(super) client: IpAddr,
    pub(super) status: u16,
    pub(super) content_bytes: u64,
    pub(super) outcome: Outcome,
    pub(super) is_valid: bool,
    pub(super) is_reused: bool,
    /// The lengths of the line, the referer and the user agent.
    pub(super) texts: [u16; 3],
}

/// Bytes of the length before each entry.
const LENGTH_BYTES: usize = 4;

impl Header {
    /// Its bytes, with the length of the entry before them.
    pub(super) const BYTES: usize = LENGTH_BYTES + 8 + 8 + 16 + 2 + 8 + 1 + 1 + 6;
    const VALID: u8 = 1;
    const REUSED: u8 = 2;

    /// Writes it over the first bytes of `entry`, which is whole but for them.
    pub(super) fn write(&self, entry: &mut [u8]) {
        let client = match self.client {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        let valid = if self.is_valid { Self::VALID } else { 0 };
        let reused = if self.is_reused { Self::REUSED } else { 0 };
        let flags = valid | reused;
        let length = u32::try_from(entry.len() - LENGTH_BYTES).unwrap_or(u32::MAX);
        let [line, referer, user_agent] = self.texts.map(u16::to_le_bytes);
        let parts: [&[u8]; 11] = [
            &length.to_le_bytes(),
            &self.unix_millis.to_le_bytes(),
            &self.duration_micros.to_le_bytes(),
            &client.octets(),
            &self.status.to_le_bytes(),
            &self.content_bytes.to_le_bytes(),
            &[self.outcome.0],
            &[flags],
            &line,
            &referer,
            &user_agent,
        ];
        let mut rest = entry;
        for part in parts {
            let (place, after) = rest.split_at_mut(part.len());
            place.copy_from_slice(part);
            rest = after;
        }
    }
}

/// Takes the front of some bytes.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(front)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }
}

impl<'a> Entry<'a> {
    /// Reads an entry without the length before it; `None` when it is none.
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let unix_millis = u64::from_le_bytes(reader.array()?);
        let duration_micros = u64::from_le_bytes(reader.array()?);
        let client = IpAddr::V6(Ipv6Addr::from(reader.array::<16>()?)).to_canonical();
        let status = u16::from_le_bytes(reader.array()?);
        let content_bytes = u64::from_le_bytes(reader.array()?);
        let [code, flags] = reader.array()?;
        let mut lengths = [0; 3];
        for length in &mut lengths {
            *length = usize::from(u16::from_le_bytes(reader.array()?));
        }
        let cause = code.checked_sub(Outcome::ERRED);
        let cause = cause.and_then(|place| Failure::LABELS.get(usize::from(place)).copied());
        let outcome = match cause {
            Some(_) => "erred",
            None => *Outcome::NAMES.get(usize::from(code))?,
        };
        Some(Self {
            unix_millis,
            duration_micros,
            client,
            line: reader.take(lengths[0])?,
            is_valid: flags & Header::VALID != 0,
            referer: reader.take(lengths[1])?,
            user_agent: reader.take(lengths[2])?,
            status,
            content_bytes,
            is_reused: flags & Header::REUSED != 0,
            outcome,
            cause,
        })
    }
}

/// The worker's end of a ring.
#[derive(Debug)]
pub struct Producer(rtrb::Producer<u8>);

/// The other end, where the entries come out in their order.
#[derive(Debug)]
pub struct Entries {
    ring: rtrb::Consumer<u8>,
    entry: Vec<u8>,
}

/// A ring with room for this many bytes of entries.
pub fn ring(bytes: usize) -> (Producer, Entries) {
    let (producer, consumer) = rtrb::RingBuffer::new(bytes);
    (Producer(producer), Entries { ring: consumer, entry: Vec::new() })
}

impl Producer {
    /// Puts an entry in as a whole; false when there is no room for it.
    pub(super) fn push(&mut self, entry: &[u8]) -> bool {
        self.0.push_entire_slice(entry).is_ok()
    }
}

impl Entries {
    /// Takes the next entry, if there is one.
    pub fn next(&mut self) -> Option<Entry<'_>> {
        let mut length = [0; LENGTH_BYTES];
        self.ring.pop_entire_slice(&mut length).ok()?;
        self.entry.resize(usize::try_from(u32::from_le_bytes(length)).ok()?, 0);
        // It was put in together with its length.
        self.ring.pop_entire_slice(&mut self.entry).ok()?;
        Entry::read(&self.entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(header: &Header, texts: &[u8]) -> Vec<u8> {
        let mut entry = vec![0; Header::BYTES];
        entry.extend_from_slice(texts);
        header.write(&mut entry);
        entry
    }

    #[track_caller]
    fn check(client: &str, outcome: Outcome, shown: (&'static str, Option<&'static str>)) {
        let (mut producer, mut entries) = ring(4096);
        let header = Header {
            unix_millis: 1_764_288_000_123,
            duration_micros: u64::MAX,
            client: client.parse().unwrap(),
            status: 431,
            content_bytes: 1 << 40,
            outcome,
            is_valid: true,
            is_reused: false,
            texts: [3, 0, 2],
        };
        for _ in 0..2 {
            assert!(producer.push(&bytes_of(&header, b"GETua")));
        }
        for _ in 0..2 {
            let expected = Entry {
                unix_millis: 1_764_288_000_123,
                duration_micros: u64::MAX,
                client: client.parse().unwrap(),
                line: b"GET",
                is_valid: true,
                referer: b"",
                user_agent: b"ua",
                status: 431,
                content_bytes: 1 << 40,
                is_reused: false,
                outcome: shown.0,
                cause: shown.1,
            };
            assert_eq!(entries.next(), Some(expected));
        }
        assert_eq!(entries.next(), None);
    }

    #[test]
    fn an_entry_comes_out_as_it_was_put_in() {
        check("10.0.0.7", Outcome::UNCOUNTED, ("uncounted", None));
        check("2001:db8::7", Outcome::WELCOMED, ("welcomed", None));
        check("::1", Outcome::REFUSED, ("refused", None));
        check("::", Outcome::ABANDONED, ("abandoned", None));
        check("0.0.0.0", Outcome::erred(Failure::Refused), ("erred", Some("refused")));
        check("1.2.3.4", Outcome::erred(Failure::Status(503)), ("erred", Some("status_5xx")));
        check("1.2.3.4", Outcome::erred(Failure::NotTried), ("erred", Some("not_tried")));
    }

    #[test]
    fn a_ring_takes_whole_entries_only() {
        let header = Header {
            unix_millis: 0,
            duration_micros: 0,
            client: [127, 0, 0, 1].into(),
            status: 200,
            content_bytes: 0,
            outcome: Outcome::WELCOMED,
            is_valid: false,
            is_reused: true,
            texts: [1, 1, 1],
        };
        let entry = bytes_of(&header, b"abc");
        let (mut producer, mut entries) = ring(entry.len() * 2 - 1);
        // Round and round, so that entries lie across the end of the ring.
        for _ in 0..100 {
            assert!(producer.push(&entry));
            assert!(!producer.push(&entry), "there is room for a part of it only");
            assert_eq!(entries.next().map(|entry| entry.user_agent.to_vec()), Some(b"c".to_vec()));
            assert_eq!(entries.next(), None);
        }
        let (mut producer, _) = ring(entry.len() - 1);
        assert!(!producer.push(&entry));
    }
}
