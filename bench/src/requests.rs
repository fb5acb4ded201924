//! The requests that a counter gets: their heads, in any pieces, and how many visits each registers.

use memchr::memmem;

const END: &[u8] = b"\r\n\r\n";
/// The most visits of a request, as with the bundled counter.
const VISITS_MAX: u64 = 1_000_000;

/// The requests of a connection, which have no bodies.
#[derive(Default)]
pub struct Requests {
    /// The beginning of a head.
    partial: Vec<u8>,
}

impl Requests {
    /// Takes bytes, and gives each head that is complete.
    pub fn take(&mut self, bytes: &[u8], mut each: impl FnMut(&[u8])) {
        if self.partial.is_empty() {
            let rest = split(bytes, &mut each);
            return self.partial.extend_from_slice(rest);
        }
        self.partial.extend_from_slice(bytes);
        let rest = split(&self.partial, &mut each).len();
        self.partial.drain(..self.partial.len() - rest);
    }
}

/// Gives each complete head; what is left.
fn split<'a>(mut bytes: &'a [u8], each: &mut impl FnMut(&[u8])) -> &'a [u8] {
    while let Some(end) = memmem::find(bytes, END) {
        let (head, rest) = bytes.split_at(end + END.len());
        each(head);
        bytes = rest;
    }
    bytes
}

/// How many visits a call registers: 1, or the number of `by=N` in its target; `None` for another query.
pub fn visits(head: &[u8]) -> Option<u64> {
    let target = head.split(|byte| *byte == b' ').nth(1)?;
    let Some(place) = memchr::memchr(b'?', target) else { return Some(1) };
    let digits = target[place + 1..].strip_prefix(b"by=")?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let visits = str::from_utf8(digits).ok()?.parse().ok()?;
    (1..=VISITS_MAX).contains(&visits).then_some(visits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_may_come_in_any_pieces() {
        let heads =
            b"POST /a HTTP/1.1\r\nx: y\r\n\r\nGET /b HTTP/1.1\r\n\r\nPOST /c HTTP/1.1\r\n\r\n";
        for size in 1..=heads.len() {
            let (mut requests, mut seen) = (Requests::default(), Vec::new());
            for piece in heads.chunks(size) {
                requests.take(piece, |head| seen.push(String::from_utf8_lossy(head).into_owned()));
            }
            assert_eq!(seen.concat().as_bytes(), heads, "in pieces of {size}");
            assert_eq!(seen.len(), 3, "in pieces of {size}");
            assert!(requests.partial.is_empty());
        }
    }

    #[track_caller]
    fn check(target: &str, expected: Option<u64>) {
        assert_eq!(visits(format!("POST {target} HTTP/1.1\r\n\r\n").as_bytes()), expected);
    }

    #[test]
    fn a_call_registers_the_number_in_its_target() {
        check("/counter", Some(1));
        check("/counter?by=1", Some(1));
        check("/counter?by=1000000", Some(1_000_000));
        for wrong in ["", "by", "by=", "by=0", "by=1000001", "by=-1", "by=+1", "by=1&by=2", "x=1"] {
            check(&format!("/counter?{wrong}"), None);
        }
        assert_eq!(visits(b"\r\n\r\n"), None);
    }
}
