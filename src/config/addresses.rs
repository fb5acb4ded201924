//! Conflicts between the addresses that this process listens on. Without this check the system would refuse the second
//! one, as if another program had the port.

use std::net::SocketAddr;

use super::{ConfigError, error::invalid};

/// Checks the addresses of the site, of the admin listener and of the bundled counter against each other.
pub(super) fn check_addresses(
    listen: &[SocketAddr],
    share_port: bool,
    admin: Option<SocketAddr>,
    counter: Option<SocketAddr>,
) -> Result<(), ConfigError> {
    for (index, second) in listen.iter().enumerate() {
        let Some(first) = listen[..index].iter().find(|first| overlap(first, second)) else {
            continue;
        };
        if first == second {
            return Err(invalid("listen", format!("{first} is given twice")));
        }
        // With a shared port the system allows a socket for all addresses beside one for a single address.
        if !share_port {
            return Err(invalid(
                "listen",
                format!("{}; choose another port", conflict(first, second)),
            ));
        }
    }
    for (setting, address) in [("admin", admin), ("counter-listen", counter)] {
        check_apart(setting, address, "listen", listen)?;
    }
    check_apart("counter-listen", counter, "admin", admin.as_slice())
}

/// Checks the address of a setting against those of another setting.
fn check_apart(
    setting: &str,
    address: Option<SocketAddr>,
    other_setting: &str,
    others: &[SocketAddr],
) -> Result<(), ConfigError> {
    let Some(address) = address else { return Ok(()) };
    let Some(other) = others.iter().find(|other| overlap(other, &address)) else { return Ok(()) };
    let remedy = format!("choose another by --{setting}, or --{setting} off");
    let problem = if *other == address {
        format!("--{other_setting} has {address} already; {remedy}")
    } else {
        format!("{}; {remedy}", conflict(other, &address))
    };
    Err(invalid(setting, problem))
}

fn conflict(one: &SocketAddr, other: &SocketAddr) -> String {
    let (all, part) = if one.ip().is_unspecified() { (one, other) } else { (other, one) };
    format!("{one} and {other} conflict: {all} takes the port {} of {} too", all.port(), part.ip())
}

/// Whether the system would refuse to listen on both. IPv4 and IPv6 have separate ports, since our IPv6 sockets serve
/// IPv6 only; port 0 is a different port each time.
fn overlap(one: &SocketAddr, other: &SocketAddr) -> bool {
    let same_scope = match (one, other) {
        (SocketAddr::V4(_), SocketAddr::V4(_)) => true,
        // The same link-local address may be on several interfaces.
        (SocketAddr::V6(one), SocketAddr::V6(other)) => {
            let (one, other) = (one.scope_id(), other.scope_id());
            one == 0 || other == 0 || one == other
        }
        _ => false,
    };
    let (one_ip, other_ip) = (one.ip(), other.ip());
    let either_is_any = one_ip.is_unspecified() || other_ip.is_unspecified();
    one.port() != 0
        && one.port() == other.port()
        && same_scope
        && (either_is_any || one_ip == other_ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(listen: &[&str], share_port: bool, admin: &str, expected: Option<&str>) {
        let listen: Vec<SocketAddr> = listen.iter().map(|text| text.parse().unwrap()).collect();
        let result = check_addresses(&listen, share_port, admin.parse().ok(), None);
        let said = result.err().map(|error| error.to_string());
        match (&said, expected) {
            (None, None) => {}
            (Some(said), Some(words)) if said.contains(words) => {}
            _ => panic!("{listen:?}, admin {admin}: {said:?}, not {expected:?}"),
        }
    }

    #[test]
    fn our_own_addresses_do_not_conflict() {
        for listen in [
            &["0.0.0.0:80", "[::]:80"][..],
            &["0.0.0.0:80", "127.0.0.1:81"],
            &["127.0.0.1:80", "127.0.0.2:80"],
            &["0.0.0.0:0", "127.0.0.1:0", "127.0.0.1:0"],
            &["[fe80::1%1]:80", "[fe80::1%2]:80"],
        ] {
            check(listen, false, "127.0.0.1:9300", None);
        }
        let words = "listen: 0.0.0.0:80 and 127.0.0.1:80 conflict: 0.0.0.0:80 takes the port 80 of 127.0.0.1 too; choose \
                     another port";
        check(&["0.0.0.0:80", "127.0.0.1:80"], false, "off", Some(words));
        let words = "listen: [::1]:80 and [::]:80 conflict: [::]:80 takes the port 80 of ::1 too";
        check(&["[::1]:80", "[::]:80"], false, "off", Some(words));
        check(&["[fe80::1]:80", "[fe80::1%2]:80"], false, "off", Some("conflict"));
        check(&["127.0.0.1:80", "127.0.0.1:80"], false, "off", Some("given twice"));
        check(&["127.0.0.1:80", "127.0.0.1:80"], true, "off", Some("given twice"));
        check(&["0.0.0.0:80", "127.0.0.1:80"], true, "off", None);
    }

    #[test]
    fn the_admin_listener_has_a_port_of_its_own() {
        check(&["127.0.0.1:0"], false, "127.0.0.1:0", None);
        check(&["127.0.0.1:80"], false, "127.0.0.2:80", None);
        check(&["127.0.0.1:80"], false, "off", None);
        check(
            &["127.0.0.1:80"],
            true,
            "127.0.0.1:80",
            Some(
                "admin: --listen has 127.0.0.1:80 already; choose another by --admin, or --admin off",
            ),
        );
        let words = "admin: 0.0.0.0:80 and 127.0.0.1:80 conflict: 0.0.0.0:80 takes the port 80 of 127.0.0.1 too; choose \
                     another by --admin, or --admin off";
        check(&["[::]:80", "0.0.0.0:80"], true, "127.0.0.1:80", Some(words));
        check(&["127.0.0.1:80"], false, "0.0.0.0:80", Some("0.0.0.0:80 takes the port 80 of 127"));
    }

    #[track_caller]
    fn check_counter(counter: &str, expected: Option<&str>) {
        let [listen, admin, counter] = ["0.0.0.0:80", "127.0.0.1:9300", counter]
            .map(|text| text.parse::<SocketAddr>().unwrap());
        let said = check_addresses(&[listen], true, Some(admin), Some(counter)).err();
        assert_eq!(said.map(|error| error.to_string()).as_deref(), expected);
    }

    #[test]
    fn the_bundled_counter_has_a_port_of_its_own() {
        check_counter("127.0.0.1:3001", None);
        check_counter("[::1]:80", None);
        check_counter("127.0.0.2:9300", None);
        check_counter(
            "127.0.0.1:80",
            Some(
                "counter-listen: 0.0.0.0:80 and 127.0.0.1:80 conflict: 0.0.0.0:80 takes \
                 the port 80 of 127.0.0.1 too; choose another by --counter-listen, or --counter-listen off",
            ),
        );
        check_counter(
            "127.0.0.1:9300",
            Some(
                "counter-listen: --admin has 127.0.0.1:9300 already; choose another by --counter-listen, or --counter-listen off",
            ),
        );
        let either = check_addresses(&[], false, None, "0.0.0.0:80".parse().ok());
        assert!(either.is_ok());
    }
}
