//! The forms of the lines, as pure functions.
//!
//! What a client has sent is escaped, so that it can neither begin a line of its own nor send a terminal commands: a
//! line is printable ASCII in both forms.

use std::{
    io::Write,
    time::{Duration, SystemTime},
};

use super::Entry;

/// The form of the lines of the access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// The "combined" form of Apache and nginx.
    Combined,
    /// One JSON object a line, which says more.
    Json,
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Combined => "combined",
            Self::Json => "json",
        })
    }
}

impl Format {
    /// Appends the line of an entry of this worker.
    pub fn write(self, entry: &Entry<'_>, worker: usize, line: &mut Vec<u8>) {
        match self {
            Self::Combined => write_combined(entry, line),
            Self::Json => write_json(entry, worker, line),
        }
        line.push(b'\n');
    }
}

fn write_combined(entry: &Entry<'_>, line: &mut Vec<u8>) {
    let Entry { client, status, content_bytes, .. } = entry;
    let time = Time::of(entry.unix_millis);
    write(line, format_args!("{client} - - [{}] \"", time.common()));
    write_quoted(entry.line, line);
    write(line, format_args!("\" {status} {content_bytes} \""));
    write_quoted(entry.referer, line);
    line.extend_from_slice(b"\" \"");
    write_quoted(entry.user_agent, line);
    line.push(b'"');
}

/// A text, or a dash for none, with nginx' escapes: `\xXX` for quotes, backslashes, and all that is not printable
/// ASCII.
fn write_quoted(text: &[u8], line: &mut Vec<u8>) {
    if text.is_empty() {
        line.push(b'-');
    }
    for &byte in text {
        match byte {
            b'"' | b'\\' => write(line, format_args!("\\x{byte:02X}")),
            b' '..=b'~' => line.push(byte),
            _ => write(line, format_args!("\\x{byte:02X}")),
        }
    }
}

fn write_json(entry: &Entry<'_>, worker: usize, line: &mut Vec<u8>) {
    let Entry { client, status, content_bytes, is_reused, outcome, .. } = entry;
    let time = Time::of(entry.unix_millis);
    write(line, format_args!("{{\"time\":\"{}\",\"client\":\"{client}\"", time.0));
    match split(entry) {
        Some(parts) => {
            for (name, part) in ["method", "target", "version"].into_iter().zip(parts) {
                write_member(name, part, line);
            }
        }
        None => write_member("received", entry.line, line),
    }
    write(line, format_args!(",\"status\":{status},\"bytes\":{content_bytes}"));
    write_member("referer", entry.referer, line);
    write_member("user_agent", entry.user_agent, line);
    let (seconds, micros) = (entry.duration_micros / 1_000_000, entry.duration_micros % 1_000_000);
    write(line, format_args!(",\"duration_seconds\":{seconds}.{micros:06},\"worker\":{worker}"));
    write(line, format_args!(",\"reused\":{is_reused},\"outcome\":\"{outcome}\""));
    if let Some(cause) = entry.cause {
        write(line, format_args!(",\"cause\":\"{cause}\""));
    }
    line.push(b'}');
}

/// The method, the target and the version of a request line that is valid.
fn split<'a>(entry: &Entry<'a>) -> Option<[&'a [u8]; 3]> {
    let mut parts = entry.line.split(|&byte| byte == b' ');
    match [parts.next(), parts.next(), parts.next()] {
        [Some(method), Some(target), Some(version)] if entry.is_valid => {
            Some([method, target, version])
        }
        _ => None,
    }
}

/// A member whose value is a text, or null for none.
fn write_member(name: &str, text: &[u8], line: &mut Vec<u8>) {
    write(line, format_args!(",\"{name}\":"));
    if text.is_empty() {
        return line.extend_from_slice(b"null");
    }
    line.push(b'"');
    for chunk in text.utf8_chunks() {
        for character in chunk.valid().chars() {
            write_character(character, line);
        }
        if !chunk.invalid().is_empty() {
            write_character(char::REPLACEMENT_CHARACTER, line);
        }
    }
    line.push(b'"');
}

fn write_character(character: char, line: &mut Vec<u8>) {
    match character {
        '"' | '\\' => write(line, format_args!("\\{character}")),
        ' '..='~' => write(line, format_args!("{character}")),
        _ => {
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                write(line, format_args!("\\u{unit:04x}"));
            }
        }
    }
}

/// A time as in RFC 3339, to the millisecond.
struct Time(String);

impl Time {
    fn of(unix_millis: u64) -> Self {
        // The year 9999: no later one can be written.
        let millis = unix_millis.min(253_402_300_799_999);
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
        Self(humantime::format_rfc3339_millis(time).to_string())
    }

    /// As in the Common Log Format: `28/Nov/2026:02:10:00 +0000`.
    fn common(&self) -> String {
        const MONTHS: [&str; 12] =
            ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
        let Self(time) = self;
        let (year, month, day) = (&time[..4], &time[5..7], &time[8..10]);
        let month = month.parse::<usize>().ok().and_then(|month| MONTHS.get(month - 1));
        format!("{day}/{}/{year}:{} +0000", month.unwrap_or(&"-"), &time[11..19])
    }
}

/// Appends to a line, which cannot fail.
fn write(line: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    let _ = line.write_fmt(text);
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn entry() -> Entry<'static> {
        Entry {
            unix_millis: 1_795_831_805_042,
            duration_micros: 1_000_023,
            client: IpAddr::from([203, 0, 113, 9]),
            line: b"GET /a?b HTTP/1.1",
            is_valid: true,
            referer: b"http://a/",
            user_agent: b"curl/8.0",
            status: 200,
            content_bytes: 20,
            is_reused: false,
            outcome: "welcomed",
            cause: None,
        }
    }

    #[track_caller]
    fn check(format: Format, entry: &Entry<'_>, expected: &str) {
        let mut line = b"before".to_vec();
        format.write(entry, 3, &mut line);
        assert_eq!(String::from_utf8(line).unwrap(), format!("before{expected}\n"));
    }

    #[test]
    fn a_combined_line() {
        let line = "203.0.113.9 - - [28/Nov/2026:02:10:05 +0000] \"GET /a?b HTTP/1.1\" 200 20 \
                    \"http://a/\" \"curl/8.0\"";
        check(Format::Combined, &entry(), line);
        let client = "2001:db8::1".parse().unwrap();
        let other = Entry { client, referer: b"", user_agent: b"", ..entry() };
        let line =
            "2001:db8::1 - - [28/Nov/2026:02:10:05 +0000] \"GET /a?b HTTP/1.1\" 200 20 \"-\" \"-\"";
        check(Format::Combined, &other, line);
        let nothing = Entry { line: b"", unix_millis: 0, status: 408, is_valid: false, ..other };
        let line = "2001:db8::1 - - [01/Jan/1970:00:00:00 +0000] \"-\" 408 20 \"-\" \"-\"";
        check(Format::Combined, &nothing, line);
    }

    #[test]
    fn a_json_line() {
        let line = "{\"time\":\"2026-11-28T02:10:05.042Z\",\"client\":\"203.0.113.9\",\"method\":\"GET\",\
                    \"target\":\"/a?b\",\"version\":\"HTTP/1.1\",\"status\":200,\"bytes\":20,\
                    \"referer\":\"http://a/\",\"user_agent\":\"curl/8.0\",\"duration_seconds\":1.000023,\
                    \"worker\":3,\"reused\":false,\"outcome\":\"welcomed\"}";
        check(Format::Json, &entry(), line);
        let erred = Entry {
            line: b"GE",
            is_valid: false,
            referer: b"",
            user_agent: b"",
            duration_micros: 0,
            is_reused: true,
            outcome: "erred",
            cause: Some("timeout"),
            ..entry()
        };
        let line = "{\"time\":\"2026-11-28T02:10:05.042Z\",\"client\":\"203.0.113.9\",\"received\":\"GE\",\
                    \"status\":200,\"bytes\":20,\"referer\":null,\"user_agent\":null,\
                    \"duration_seconds\":0.000000,\"worker\":3,\"reused\":true,\"outcome\":\"erred\",\
                    \"cause\":\"timeout\"}";
        check(Format::Json, &erred, line);
    }

    #[track_caller]
    fn check_escapes(text: &[u8], combined: &str, json: &str) {
        let entry = Entry { user_agent: text, ..entry() };
        let mut line = Vec::new();
        Format::Combined.write(&entry, 0, &mut line);
        let line = String::from_utf8(line).unwrap();
        assert!(line.ends_with(&format!("\"http://a/\" \"{combined}\"\n")), "{line}");
        let mut line = Vec::new();
        Format::Json.write(&entry, 0, &mut line);
        let line = String::from_utf8(line).unwrap();
        assert!(line.contains(&format!("\"user_agent\":\"{json}\",\"dur")), "{line}");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["user_agent"], String::from_utf8_lossy(text).into_owned());
    }

    #[test]
    fn what_a_client_has_sent_is_escaped() {
        check_escapes(b"a b~!", "a b~!", "a b~!");
        check_escapes(b"a\" 200 \"", "a\\x22 200 \\x22", "a\\\" 200 \\\"");
        check_escapes(b"\\x22", "\\x5Cx22", "\\\\x22");
        check_escapes(b"\r\n10.0.0.1", "\\x0D\\x0A10.0.0.1", "\\u000d\\u000a10.0.0.1");
        check_escapes(
            b"\x1b[31m\x7f\0\t",
            "\\x1B[31m\\x7F\\x00\\x09",
            "\\u001b[31m\\u007f\\u0000\\u0009",
        );
        // The control characters above ASCII, a line separator, and beyond the first 65,536.
        check_escapes("\u{9b}1m".as_bytes(), "\\xC2\\x9B1m", "\\u009b1m");
        check_escapes("\u{2028}é".as_bytes(), "\\xE2\\x80\\xA8\\xC3\\xA9", "\\u2028\\u00e9");
        check_escapes("😀".as_bytes(), "\\xF0\\x9F\\x98\\x80", "\\ud83d\\ude00");
        check_escapes(b"\xff\xfea", "\\xFF\\xFEa", "\\ufffd\\ufffda");
    }

    #[test]
    fn every_byte_leaves_a_line_of_printable_ascii() {
        let all: Vec<u8> = (0..=255).collect();
        let entry =
            Entry { line: &all, is_valid: false, referer: &all, user_agent: &all, ..entry() };
        for format in [Format::Combined, Format::Json] {
            let mut line = Vec::new();
            format.write(&entry, 0, &mut line);
            let (end, rest) = line.split_last().unwrap();
            assert_eq!(*end, b'\n');
            assert!(rest.iter().all(|byte| matches!(byte, b' '..=b'~')));
        }
    }

    #[test]
    fn the_longest_time_is_written() {
        let late = Entry { unix_millis: u64::MAX, ..entry() };
        let mut line = Vec::new();
        Format::Combined.write(&late, 0, &mut line);
        assert!(String::from_utf8(line).unwrap().contains("[31/Dec/9999:23:59:59 +0000]"));
    }
}
