//! Who has asked: the peer, or behind trusted proxies the client that they name.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

/// The address of the client of a request that came from `peer`, by its `X-Forwarded-For` fields in their order: the
/// last address that is not that of a trusted proxy, since only trusted ones are believed. At a value that is no
/// address, the one before it counts; if all are trusted, the first.
pub(super) fn client_address<'a>(
    peer: IpAddr,
    forwarded: impl DoubleEndedIterator<Item = &'a [u8]>,
    trusted: &[IpNet],
) -> IpAddr {
    let mut client = peer;
    for field in forwarded.rev() {
        for value in field.rsplit(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
            if !is_trusted(client, trusted) {
                return client;
            }
            if value.is_empty() {
                continue;
            }
            let Some(address) = address(value) else { return client };
            client = address;
        }
    }
    client
}

/// Whether an address is one of a trusted proxy.
pub fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|network| network.contains(&address))
}

/// An address as proxies write it: some add the port, and those of IPv6 may be in brackets.
fn address(value: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(value).ok()?;
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let with_port = || text.parse().ok().map(|address: SocketAddr| address.ip());
    bare.parse().ok().or_else(with_port).map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(peer: &str, fields: &[&str], expected: &str) {
        let trusted: Vec<IpNet> = ["10.0.0.0/8", "192.0.2.1/32", "fd00::/8", "::1/128"]
            .iter()
            .map(|network| network.parse().unwrap())
            .collect();
        let forwarded = fields.iter().map(|field| field.as_bytes());
        let client = client_address(peer.parse().unwrap(), forwarded, &trusted);
        assert_eq!(client.to_string(), expected, "{peer} {fields:?}");
    }

    #[test]
    fn trusted_proxies_name_the_client() {
        check("10.0.0.1", &["203.0.113.9"], "203.0.113.9");
        check("10.0.0.1", &["203.0.113.9, 10.0.0.2"], "203.0.113.9");
        check("fd00::1", &["2001:db8::9,fd00::2 ,\t192.0.2.1"], "2001:db8::9");
        // Over several fields.
        check("10.0.0.1", &["203.0.113.9", "10.0.0.3, 10.0.0.2"], "203.0.113.9");
        check("10.0.0.1", &["203.0.113.9, 10.0.0.3", "", "10.0.0.2"], "203.0.113.9");
        // As other proxies write them.
        check("10.0.0.1", &["203.0.113.9:41000"], "203.0.113.9");
        check("10.0.0.1", &["[2001:db8::9]:41000"], "2001:db8::9");
        check("10.0.0.1", &["[2001:db8::9]"], "2001:db8::9");
        check("10.0.0.1", &["::ffff:203.0.113.9"], "203.0.113.9");
        check("10.0.0.1", &["203.0.113.9, ::ffff:10.0.0.2"], "203.0.113.9");
        check("10.0.0.1", &[",203.0.113.9,,10.0.0.2,"], "203.0.113.9");
    }

    #[test]
    fn nobody_else_does() {
        check("203.0.113.5", &["198.51.100.1"], "203.0.113.5");
        check("10.0.0.1", &[], "10.0.0.1");
        check("10.0.0.1", &["", " , "], "10.0.0.1");
        // What an untrusted one has written before it.
        check("10.0.0.1", &["198.51.100.1, 203.0.113.9"], "203.0.113.9");
        check("10.0.0.1", &["198.51.100.1", "203.0.113.9, 10.0.0.2"], "203.0.113.9");
        check("192.0.2.2", &["203.0.113.9"], "192.0.2.2");
    }

    #[test]
    fn a_wrong_value_ends_the_search() {
        for wrong in ["unknown", "_hidden", "203.0.113.999", "\"203.0.113.9\"", "203.0.113.9 x"] {
            check("10.0.0.1", &[wrong], "10.0.0.1");
            check("10.0.0.1", &[&format!("203.0.113.9, {wrong}, 10.0.0.2")], "10.0.0.2");
            check("10.0.0.1", &["203.0.113.9", wrong, "10.0.0.2"], "10.0.0.2");
        }
        check("10.0.0.1", &["203.0.113.9:99999"], "10.0.0.1");
        check("10.0.0.1", &["[203.0.113.9"], "10.0.0.1");
    }

    #[test]
    fn if_all_are_trusted_it_is_the_first() {
        check("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3");
    }
}
