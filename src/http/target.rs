//! The target of a request, and its host.

use super::{Refusal, request::Method};

pub(super) const NO_URI: Refusal = Refusal::bad("the request target is not a URI");

/// RFC 9110 section 7.2: `Host = uri-host [ ":" port ]`. User information, a path, a list and an
/// empty host are refused.
pub(super) fn is_host(value: &[u8]) -> bool {
    let is_name_byte = |byte: &u8| NAME_BYTES[usize::from(*byte)];
    let end = value.iter().position(|byte| !is_name_byte(byte)).unwrap_or(value.len());
    match value.split_at(end) {
        ([], [b'[', rest @ ..]) => is_ipv6_host(rest),
        ([], _) => false,
        (_, rest) => is_port_part(rest),
    }
}

/// What follows the `[` of an address of IPv6.
fn is_ipv6_host(rest: &[u8]) -> bool {
    let Some(end) = rest.iter().position(|&byte| byte == b']') else { return false };
    let (address, tail) = (&rest[..end], &rest[end + 1..]);
    let is_address =
        str::from_utf8(address).is_ok_and(|text| text.parse::<std::net::Ipv6Addr>().is_ok());
    is_address && is_port_part(tail)
}

/// `[ ":" port ]`, of which the port may be empty (RFC 3986 section 3.2.3).
fn is_port_part(tail: &[u8]) -> bool {
    match tail {
        [] => true,
        [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    }
}

/// RFC 3986 section 3.2.2: `reg-name = *( unreserved / pct-encoded / sub-delims )`, of which the comma is left out:
/// some readers take a Host that looks like a list for two hosts.
static NAME_BYTES: [bool; 256] = {
    let others = b"-._~%!$&'()*+;=";
    let mut is_name_byte = [false; 256];
    let mut byte: u8 = 0;
    while byte < 128 {
        is_name_byte[byte as usize] = byte.is_ascii_alphanumeric();
        byte += 1;
    }
    let mut place = 0;
    while place < others.len() {
        is_name_byte[others[place] as usize] = true;
        place += 1;
    }
    is_name_byte
};

/// What a byte of a target may be besides itself.
const NOT_ALLOWED: u8 = 1;
const FRAGMENT: u8 = 1 << 1;
const QUERY: u8 = 1 << 2;
/// A percent sign, a backslash or a backtick: see [`is_path`].
const ODD_IN_PATH: u8 = 1 << 3;

/// What each byte of a target is, so that one look at each tells which of them need another.
static TARGET_BYTES: [u8; 256] = {
    let mut kinds = [NOT_ALLOWED; 256];
    let mut byte = b'!';
    while byte <= b'~' {
        kinds[byte as usize] = match byte {
            b'"' | b'<' | b'>' => NOT_ALLOWED,
            b'#' => FRAGMENT,
            b'?' => QUERY,
            b'%' | b'\\' | b'`' => ODD_IN_PATH,
            _ => 0,
        };
        byte += 1;
    }
    kinds
};

/// RFC 3986 section 2: a URI is made of visible ASCII characters, without those that delimit it. (Browsers send some
/// others that it excludes.)
pub(super) fn is_target_byte(byte: u8) -> bool {
    TARGET_BYTES[usize::from(byte)] != NOT_ALLOWED
}

/// A request target, in one of the forms of RFC 9112 section 3.2.
pub(super) struct Target<'a> {
    pub(super) authority: Option<&'a [u8]>,
    pub(super) path: &'a str,
    pub(super) query: Option<&'a str>,
}

impl<'a> Target<'a> {
    pub(super) fn parse(target: &'a str, method: Method) -> Result<Self, Refusal> {
        let kinds = target.bytes().fold(0, |kinds, byte| kinds | TARGET_BYTES[usize::from(byte)]);
        if kinds & NOT_ALLOWED != 0 {
            return Err(NO_URI);
        }
        if target == "*" {
            // RFC 9112 section 3.2.4: the asterisk form is for OPTIONS alone.
            return match method {
                Method::Options => Ok(Self { authority: None, path: "*", query: None }),
                _ => Err(Refusal::bad("the target * is for OPTIONS only")),
            };
        }
        if kinds & FRAGMENT != 0 {
            return Err(Refusal::bad("a request target has no fragment"));
        }
        let (authority, rest) = match absolute(target) {
            Some((authority, rest)) => {
                if !is_host(authority.as_bytes()) {
                    return Err(Refusal::bad("the request target's host is malformed"));
                }
                (Some(authority.as_bytes()), rest)
            }
            None => (None, target),
        };
        let query = if kinds & QUERY == 0 { None } else { rest.split_once('?') };
        let (path, query) = query.map_or((rest, None), |(path, query)| (path, Some(query)));
        // RFC 9110 section 4.2.3: an empty path is the same as "/" in an absolute http URI.
        let path = if authority.is_some() && path.is_empty() { "/" } else { path };
        if !path.starts_with('/') {
            return Err(Refusal::bad("the request target is neither a path nor a URI"));
        }
        if kinds & ODD_IN_PATH != 0 && !is_path(path.as_bytes()) {
            return Err(Refusal::bad("the request target's path is malformed"));
        }
        Ok(Self { authority, path, query })
    }
}

/// RFC 9112 section 3.2.2: the absolute form, split into its authority and what follows.
fn absolute(target: &str) -> Option<(&str, &str)> {
    if target.starts_with('/') {
        return None;
    }
    let (scheme, rest) = target.split_once("://")?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return None;
    }
    Some(rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len())))
}

/// RFC 3986 section 3.3, as far as readers could disagree: a percent sign must begin an escape, no control character
/// may be escaped, and a backslash, which some take for a slash, and a backtick, which clients escape, are refused.
fn is_path(path: &[u8]) -> bool {
    let mut rest = path;
    loop {
        rest = match rest {
            [] => return true,
            [b'\\' | b'`', ..] => return false,
            [b'%', high, low, tail @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                if matches!(high, b'0' | b'1') || (*high == b'7' && matches!(low, b'f' | b'F')) {
                    return false;
                }
                tail
            }
            [b'%', ..] => return false,
            [_, tail @ ..] => tail,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_host_are_those_of_a_registered_name() {
        for byte in 0..=u8::MAX {
            let expected = byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=".contains(&byte);
            assert_eq!(NAME_BYTES[usize::from(byte)], expected, "{byte:#x}");
            // A colon begins the port, and the rest of the name is as it was.
            assert_eq!(is_host(&[b'a', byte]), expected || byte == b':', "{byte:#x}");
        }
    }
}
