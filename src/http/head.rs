//! Where a head ends. Knows line ends and nothing of what the lines say.

use super::Refusal;

/// How far a growing buffer has been searched for the end of its head, so that each byte is looked
/// at once however the peer splits them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EndScan {
    /// Bytes already searched. Heads are far smaller than its maximum.
    searched: u32,
    /// Where the line being searched began.
    line_start: u32,
}

impl EndScan {
    /// Searched up to `searched`, in a line that began at `line_start`.
    pub(super) fn after(searched: usize, line_start: usize) -> Result<Self, Refusal> {
        Ok(Self { searched: place(searched)?, line_start: place(line_start)? })
    }
}

fn place(at: usize) -> Result<u32, Refusal> {
    u32::try_from(at).map_err(|_| Refusal::new(431, "the head is too large"))
}

/// Searches `bytes` for the empty line that ends a head, from where the last search stopped; gives how
/// many bytes there are up to and including it.
///
/// RFC 9112 section 2.2: lines end in CRLF. A recipient may take a lone LF as a line end; it is
/// refused here, because two readers that disagree on it see different messages. A CR that no LF
/// follows is refused by the field parser.
pub(super) fn search(bytes: &[u8], scan: &mut EndScan) -> Result<Option<usize>, Refusal> {
    let mut line_start = scan.line_start as usize;
    let mut searched = scan.searched as usize;
    while let Some(at) = memchr::memchr(b'\n', &bytes[searched..]) {
        let line_feed = searched + at;
        if line_feed == line_start || bytes[line_feed - 1] != b'\r' {
            return Err(Refusal::bad("a line must end in CRLF"));
        }
        searched = line_feed + 1;
        if line_feed == line_start + 1 {
            return Ok(Some(line_feed + 1));
        }
        line_start = line_feed + 1;
    }
    *scan = EndScan::after(bytes.len(), line_start)?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(bytes: &str, expected: Result<Option<usize>, u16>) {
        let found = search(bytes.as_bytes(), &mut EndScan::default());
        assert_eq!(found.map_err(|refusal| refusal.status), expected, "{bytes:?}");
    }

    #[test]
    fn a_head_ends_at_its_empty_line() {
        check("", Ok(None));
        check("GET / HTTP/1.1", Ok(None));
        check("GET / HTTP/1.1\r", Ok(None));
        check("GET / HTTP/1.1\r\n", Ok(None));
        check("GET / HTTP/1.1\r\n\r", Ok(None));
        check("GET / HTTP/1.1\r\n\r\n", Ok(Some(18)));
        check("GET / HTTP/1.1\r\nA: b\r\n\r\nrest", Ok(Some(24)));
    }

    #[test]
    fn a_bare_line_feed_is_refused() {
        check("\n", Err(400));
        check("GET / HTTP/1.1\n", Err(400));
        check("GET / HTTP/1.1\r\nA: b\n", Err(400));
        check("GET / HTTP/1.1\r\n\n", Err(400));
    }

    #[test]
    fn any_split_finds_the_same_end() {
        let bytes = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET";
        for split in 0..bytes.len() {
            let mut scan = EndScan::default();
            let first = search(&bytes[..split], &mut scan).unwrap();
            let found = first.or_else(|| search(bytes, &mut scan).unwrap());
            assert_eq!(found, Some(27), "split at {split}");
        }
    }
}
