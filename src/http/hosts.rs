//! The hosts that a private server answers to: the admin listener, the counter.
//!
//! A web page can have its own name point to 127.0.0.1 and then talk, as its own origin, to whatever listens there
//! (DNS rebinding). Its requests still carry the name that it was loaded by. So the page cannot reach a server that
//! answers only to addresses and to names that nobody else can own.

use std::{fmt, net::IpAddr, str::FromStr};

/// Hosts that a setting names, without ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostList(Vec<Host>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    Address(IpAddr),
    /// Without a dot at the end.
    Name(String),
}

impl FromStr for HostList {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str =
            "it must be a list of names or addresses without ports, like counter,10.0.0.5";
        let is_name_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        let host = |text: &str| {
            let text = text.trim_ascii();
            let name = without_dot(text.as_bytes());
            match address(text.as_bytes()) {
                Some(address) => Ok(Host::Address(address)),
                None if !name.is_empty() && text.bytes().all(is_name_byte) => {
                    Ok(Host::Name(text[..name.len()].to_owned()))
                }
                None => Err(FORM),
            }
        };
        text.split(',').map(host).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for HostList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for host in &self.0 {
            match host {
                Host::Address(address) => write!(f, "{separator}{address}")?,
                Host::Name(name) => write!(f, "{separator}{name}")?,
            }
            separator = ",";
        }
        Ok(())
    }
}

/// The hosts that a server answers to.
#[derive(Debug, Clone)]
pub struct Hosts {
    own: IpAddr,
    more: HostList,
}

impl Hosts {
    /// Those of a server that listens on `own`: loopback by its names and addresses, `own`, and `more`.
    /// A server that listens on all addresses answers to any address.
    pub fn new(own: IpAddr, more: HostList) -> Self {
        Self { own: own.to_canonical(), more }
    }

    /// Whether a request for `host`, as [`Request`](super::request::Request) has it, is to be answered. One without a
    /// host is: browsers always send it.
    pub fn allow(&self, host: Option<&[u8]>) -> bool {
        let Some(host) = host.map(without_port) else { return true };
        match address(host) {
            Some(address) => {
                address.is_loopback()
                    || self.own.is_unspecified()
                    || address == self.own
                    || self.more.0.contains(&Host::Address(address))
            }
            None => {
                let host = without_dot(host);
                let is_host = |more: &Host| match more {
                    Host::Name(name) => name.as_bytes().eq_ignore_ascii_case(host),
                    Host::Address(_) => false,
                };
                is_localhost(host) || self.more.0.iter().any(is_host)
            }
        }
    }
}

/// RFC 6761 section 6.3: `localhost` and the names below it are always loopback.
fn is_localhost(name: &[u8]) -> bool {
    const LOCALHOST: &[u8] = b"localhost";
    let above = name.len().checked_sub(LOCALHOST.len());
    above.is_some_and(|above| {
        name[above..].eq_ignore_ascii_case(LOCALHOST) && (above == 0 || name[above - 1] == b'.')
    })
}

/// RFC 3986 section 3.2.2: an address, of IPv6 in brackets. An IPv4-mapped address of IPv6 is read as IPv4.
fn address(host: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(host).ok()?;
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

/// The host of a valid `Host` field: what is before the last colon that is not within brackets.
fn without_port(host: &[u8]) -> &[u8] {
    match host.iter().rposition(|&byte| byte == b':' || byte == b']') {
        Some(place) if host[place] == b':' => &host[..place],
        _ => host,
    }
}

/// RFC 9499 section 2: a dot at the end of a name makes it fully qualified.
fn without_dot(name: &[u8]) -> &[u8] {
    name.strip_suffix(b".").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(own: &str, host: &str, expected: bool) {
        let hosts =
            Hosts::new(own.parse().unwrap(), "counter,Site.Example.,10.0.0.7".parse().unwrap());
        for host in [host.to_owned(), format!("{host}:3001"), format!("{host}:")] {
            assert_eq!(hosts.allow(Some(host.as_bytes())), expected, "{own}: {host}");
        }
    }

    #[test]
    fn a_host_is_loopback_or_the_servers_own_or_named() {
        for own in ["127.0.0.1", "::1", "10.0.0.5", "0.0.0.0", "::"] {
            for host in ["localhost", "LocalHost", "localhost.", "a.b.localhost", "a.LOCALHOST."] {
                check(own, host, true);
            }
            for host in ["127.0.0.1", "127.9.9.9", "[::1]", "[::ffff:127.0.0.1]"] {
                check(own, host, true);
            }
            for host in ["counter", "COUNTER", "counter.", "site.example", "10.0.0.7"] {
                check(own, host, true);
            }
            for host in [
                "evil.example",
                "notlocalhost",
                "localhost.evil.example",
                "localhost..",
                "2130706433",
            ] {
                check(own, host, false);
            }
            for host in ["a.counter", "counter.a", "counters", "127.0.0.1.evil.example", "127.1"] {
                check(own, host, false);
            }
        }
        check("10.0.0.5", "10.0.0.5", true);
        check("10.0.0.5", "10.0.0.6", false);
        check("10.0.0.5", "0.0.0.0", false);
        check("fe80::5", "[fe80::5]", true);
        check("fe80::5", "[fe80::6]", false);
    }

    #[test]
    fn on_all_addresses_any_address_is_its_own() {
        for own in ["0.0.0.0", "::"] {
            check(own, "203.0.113.9", true);
            check(own, "[2001:db8::1]", true);
        }
    }

    #[test]
    fn a_request_without_a_host_is_answered() {
        let hosts = Hosts::new("127.0.0.1".parse().unwrap(), HostList::default());
        assert!(hosts.allow(None));
    }

    #[test]
    fn a_list_has_names_and_addresses() {
        let shown = |text: &str| text.parse::<HostList>().map(|list| list.to_string()).ok();
        assert_eq!(shown("a").as_deref(), Some("a"));
        assert_eq!(
            shown("a, b.example.,[::1],127.0.0.1").as_deref(),
            Some("a,b.example,::1,127.0.0.1")
        );
        for text in ["", ",", "a,", "a:80", "http://a", "a b", ".", "[::1]:80", "*", "a/b", "é"] {
            assert_eq!(shown(text), None, "{text:?}");
        }
    }
}
