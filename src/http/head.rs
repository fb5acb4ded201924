//! Where a head ends. Knows line ends and nothing of what the lines say.

use super::Refusal;

/// How far a growing buffer has been searched for the end of its head, so that each byte is looked
/// at once however the peer splits them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeadScan {
    /// Bytes already searched. Heads are far smaller than this can tell, and each client has one.
    searched: u32,
    /// Where the line being searched began.
    line_start: u32,
    /// Whether the first line is whole.
    first_line: bool,
}

impl HeadScan {
    /// Whether the first line is whole.
    pub(super) const fn has_first_line(&self) -> bool {
        self.first_line
    }
}

/// What a search found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Bytes up to and including the empty line.
    End(usize),
    /// The end of the first line, in the search that first saw it; the head is not whole yet.
    FirstLine(usize),
    /// Nothing new.
    Nothing,
}

/// Searches `bytes` for the empty line that ends a head, from where the last search stopped.
///
/// RFC 9112 section 2.2: lines end in CRLF. A recipient may take a lone LF as a line end; it is
/// refused here, because two readers that disagree on it see different messages. A CR that no LF
/// follows is refused by the field parser.
pub(super) fn search(bytes: &[u8], scan: &mut HeadScan) -> Result<Found, Refusal> {
    let mut found = Found::Nothing;
    let mut line_start = scan.line_start as usize;
    let mut searched = scan.searched as usize;
    while let Some(at) = memchr::memchr(b'\n', &bytes[searched..]) {
        let line_feed = searched + at;
        if line_feed == line_start || bytes[line_feed - 1] != b'\r' {
            return Err(Refusal::bad("a line must end in CRLF"));
        }
        searched = line_feed + 1;
        if line_feed == line_start + 1 {
            return Ok(Found::End(line_feed + 1));
        }
        line_start = line_feed + 1;
        if !scan.first_line {
            scan.first_line = true;
            found = Found::FirstLine(line_feed + 1);
        }
    }
    let place =
        |place| u32::try_from(place).map_err(|_| Refusal::new(431, "the head is too large"));
    scan.line_start = place(line_start)?;
    scan.searched = place(bytes.len())?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(bytes: &str, expected: Result<Found, u16>) {
        let found = search(bytes.as_bytes(), &mut HeadScan::default());
        assert_eq!(found.map_err(|refusal| refusal.status), expected, "{bytes:?}");
    }

    #[test]
    fn a_head_ends_at_its_empty_line() {
        check("", Ok(Found::Nothing));
        check("GET / HTTP/1.1", Ok(Found::Nothing));
        check("GET / HTTP/1.1\r", Ok(Found::Nothing));
        check("GET / HTTP/1.1\r\n", Ok(Found::FirstLine(16)));
        check("GET / HTTP/1.1\r\n\r", Ok(Found::FirstLine(16)));
        check("GET / HTTP/1.1\r\n\r\n", Ok(Found::End(18)));
        check("GET / HTTP/1.1\r\nA: b\r\n\r\nrest", Ok(Found::End(24)));
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
            let mut scan = HeadScan::default();
            let first = search(&bytes[..split], &mut scan).unwrap();
            let found =
                if let Found::End(_) = first { first } else { search(bytes, &mut scan).unwrap() };
            assert_eq!(found, Found::End(27), "split at {split}");
        }
    }
}
