//! Who holds a port that cannot be listened on: the kernel's own list of TCP sockets (`/proc/net/tcp`, proc_net(5)),
//! read after a start has failed.

use std::{
    fmt,
    fs::File,
    io::{BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// States of a socket, as `include/net/tcp_states.h` numbers them.
const TIME_WAIT: u8 = 6;
const LISTEN: u8 = 10;

/// Who holds a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    /// A socket that listens.
    Listener,
    /// A connection, and no socket that listens.
    Connection(Connection),
    /// A socket that is bound and does nothing, or a holder that is gone by now.
    Other,
}

/// A connection of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    local: SocketAddr,
    peer: SocketAddr,
    has_ended: bool,
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { local, peer, has_ended } = self;
        let state = if *has_ended { " in TIME_WAIT, for a minute at most" } else { "" };
        write!(f, "{local} to {peer}{state}")
    }
}

/// Who prevents listening on `address`; `None` where the system does not tell.
pub(super) fn of(address: SocketAddr) -> Option<Holder> {
    let (mut own, mut other) = (Vec::new(), Vec::new());
    if address.is_ipv4() {
        own.extend(rows("/proc/net/tcp", address)?);
        // A socket of IPv6 may serve IPv4 too. Without IPv6 there is no such list.
        other.extend(rows("/proc/net/tcp6", address).into_iter().flatten());
    } else {
        own.extend(rows("/proc/net/tcp6", address)?);
    }
    Some(judge(&own).or_else(|| judge(&other)).unwrap_or(Holder::Other))
}

fn judge(rows: &[Row]) -> Option<Holder> {
    if rows.iter().any(|row| row.state == LISTEN) {
        return Some(Holder::Listener);
    }
    // One that lasts comes before one that is gone in a minute.
    let Row { local, peer, state } =
        *rows.iter().find(|row| row.state != TIME_WAIT).or(rows.first())?;
    Some(Holder::Connection(Connection { local, peer, has_ended: state == TIME_WAIT }))
}

/// The sockets of a list that conflict with `address`.
fn rows(path: &str, address: SocketAddr) -> Option<impl Iterator<Item = Row>> {
    let lines = BufReader::new(File::open(path).ok()?).lines();
    let rows = lines.map_while(Result::ok).filter_map(|line| Row::parse(&line));
    Some(rows.filter(move |row| row.conflicts_with(address)))
}

/// A socket of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    local: SocketAddr,
    peer: SocketAddr,
    state: u8,
}

impl Row {
    /// `sl local_address rem_address st …`; `None` for the line of headings.
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (local, peer, state) = (fields.next()?, fields.next()?, fields.next()?);
        let state = u8::from_str_radix(state, 16).ok()?;
        Some(Self { local: parse_address(local)?, peer: parse_address(peer)?, state })
    }

    fn conflicts_with(&self, address: SocketAddr) -> bool {
        let (held, wanted) = (self.local.ip(), address.ip());
        let either_is_any = held.is_unspecified() || wanted.is_unspecified();
        let same_family = held.is_ipv4() == wanted.is_ipv4();
        // The wildcard of IPv6 may cover IPv4 too; an address of IPv6 does not.
        let covers = same_family || (wanted.is_ipv4() && held.is_unspecified());
        self.local.port() == address.port() && covers && (either_is_any || held == wanted)
    }
}

/// `0100007F:0BB8`: words of 32 bits as they are in memory, and a port. An IPv4-mapped address of IPv6 is read as
/// IPv4.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let word = |place: usize| {
        let digits = address.get(place * 8..place * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let ip = match address.len() {
        8 => IpAddr::from(Ipv4Addr::from(word(0)?)),
        32 => {
            let bytes: Vec<u8> = [word(0)?, word(1)?, word(2)?, word(3)?].concat();
            IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(local: &str, state: u8) -> Row {
        Row { local: local.parse().unwrap(), peer: "10.0.0.9:80".parse().unwrap(), state }
    }

    /// As the kernel prints it.
    fn print(bytes: &[u8]) -> String {
        let word = |word: &[u8]| u32::from_ne_bytes(word.try_into().unwrap());
        bytes.chunks(4).map(|bytes| format!("{:08X}", word(bytes))).collect()
    }

    #[test]
    fn rows_are_read() {
        let v4 = print(&[127, 0, 0, 1]);
        let line =
            format!("   0: {v4}:0BB8 {}:0000 0A 00000000:00000000 00:00000000", print(&[0; 4]));
        let expected = Row {
            local: "127.0.0.1:3000".parse().unwrap(),
            peer: "0.0.0.0:0".parse().unwrap(),
            state: LISTEN,
        };
        assert_eq!(Row::parse(&line), Some(expected));
        let v6 = print(&"fe80::1:2".parse::<Ipv6Addr>().unwrap().octets());
        assert_eq!(parse_address(&format!("{v6}:0050")), Some("[fe80::1:2]:80".parse().unwrap()));
        let mapped = print(&"::ffff:10.0.0.1".parse::<Ipv6Addr>().unwrap().octets());
        assert_eq!(parse_address(&format!("{mapped}:0050")), Some("10.0.0.1:80".parse().unwrap()));
        for text in ["", "local_address", "00000000", "0100007F:", "0100007:50", "0100007F:10000"] {
            assert_eq!(parse_address(text), None, "{text:?}");
        }
        assert_eq!(Row::parse("  sl  local_address rem_address   st tx_queue rx_queue"), None);
    }

    #[track_caller]
    fn check_conflict(held: &str, wanted: &str, expected: bool) {
        let wanted = wanted.parse().unwrap();
        assert_eq!(row(held, LISTEN).conflicts_with(wanted), expected, "{held}, {wanted}");
    }

    #[test]
    fn an_address_conflicts_with_itself_and_the_wildcard() {
        check_conflict("127.0.0.1:80", "127.0.0.1:80", true);
        check_conflict("127.0.0.1:80", "0.0.0.0:80", true);
        check_conflict("0.0.0.0:80", "127.0.0.1:80", true);
        check_conflict("[::]:80", "127.0.0.1:80", true);
        check_conflict("[::1]:80", "[::]:80", true);
        check_conflict("127.0.0.1:80", "127.0.0.1:81", false);
        check_conflict("127.0.0.1:80", "127.0.0.2:80", false);
        check_conflict("[::1]:80", "0.0.0.0:80", false);
        check_conflict("127.0.0.1:80", "[::]:80", false);
    }

    #[test]
    fn a_listener_is_named_before_its_connections() {
        let (listening, ended) = (row("10.0.0.1:80", LISTEN), row("10.0.0.1:80", TIME_WAIT));
        assert_eq!(judge(&[ended, listening]), Some(Holder::Listener));
        let Some(Holder::Connection(connection)) = judge(&[ended]) else { panic!() };
        let words = "10.0.0.1:80 to 10.0.0.9:80 in TIME_WAIT, for a minute at most";
        assert_eq!(connection.to_string(), words);
        let lasting = row("10.0.0.2:80", 1);
        let Some(Holder::Connection(connection)) = judge(&[ended, lasting]) else { panic!() };
        assert_eq!(connection.to_string(), "10.0.0.2:80 to 10.0.0.9:80");
        assert_eq!(judge(&[]), None);
    }
}
