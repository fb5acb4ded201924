//! The field lines of a head that obeys every rule, read again when a field is needed that few requests have. Other
//! requests pay nothing for it.

use std::fmt;

/// The fields of a request, as they were sent.
#[derive(Clone, Copy)]
pub struct FieldLines<'a> {
    /// The whole head, with empty lines before it.
    head: &'a [u8],
}

impl<'a> FieldLines<'a> {
    /// Those of a head that was checked: it has a request line, and each line ends in CRLF.
    pub(super) const fn of(head: &'a [u8]) -> Self {
        Self { head }
    }

    /// The line before them, as it was sent.
    pub fn request_line(self) -> &'a [u8] {
        first_line(self.head)
    }

    /// Each line's name and value, in their order, the value without the whitespace around it.
    pub fn iter(self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let lines = self.head.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii_end);
        // The first line that is not empty is the request line.
        lines.filter(|line| !line.is_empty()).skip(1).filter_map(|line| {
            let colon = memchr::memchr(b':', line)?;
            Some((&line[..colon], line[colon + 1..].trim_ascii()))
        })
    }
}

/// The first line that is not empty of what may be no valid head, without its end.
pub fn first_line(head: &[u8]) -> &[u8] {
    let is_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
    let begin = head.iter().position(|byte| !is_end(byte)).unwrap_or(head.len());
    let line = &head[begin..];
    &line[..line.iter().position(is_end).unwrap_or(line.len())]
}

impl PartialEq for FieldLines<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for FieldLines<'_> {}

impl fmt::Debug for FieldLines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = String::from_utf8_lossy;
        f.debug_map().entries(self.iter().map(|(name, value)| (text(name), text(value)))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(head: &str, expected: &[(&str, &str)]) {
        let fields = FieldLines::of(head.as_bytes()).iter();
        let fields: Vec<_> = fields
            .map(|(name, value)| (str::from_utf8(name).unwrap(), str::from_utf8(value).unwrap()))
            .collect();
        assert_eq!(fields, expected, "{head:?}");
    }

    #[test]
    fn the_first_line_is_found_in_anything() {
        for (head, line) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.1"),
            ("\r\n\r\nGET /\nb", "GET /"),
            ("\n\rGE", "GE"),
            ("a\rb", "a"),
            ("\r\n", ""),
            ("", ""),
        ] {
            assert_eq!(first_line(head.as_bytes()), line.as_bytes(), "{head:?}");
        }
    }

    #[test]
    fn each_line_is_a_name_and_a_value() {
        check("GET / HTTP/1.1\r\n\r\n", &[]);
        check("GET http://a:80/ HTTP/1.1\r\nA:b\r\n\r\n", &[("A", "b")]);
        check(
            "\r\n\r\nGET /?a:b HTTP/1.1\r\nHost: a:80\r\nEmpty:\r\nX: \t b c \t\r\nX: d\r\n\r\n",
            &[("Host", "a:80"), ("Empty", ""), ("X", "b c"), ("X", "d")],
        );
    }
}
