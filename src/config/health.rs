//! The settings of `health` and `top`: which server to ask. `--admin` is read from the same sources as by the server, so
//! that a container sets it once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use clap::ArgMatches;

use super::{
    ConfigError, HealthConfig, TopConfig,
    arguments::{AdminAddress, HealthArguments, TopArguments},
    error::invalid,
    file::ConfigFileArguments,
    pick::Pick,
    scalar::Text,
};
use crate::upstream::Endpoint;

/// Settles the settings of `health`.
///
/// # Errors
/// At the first that does not fit, or when there is no server to ask.
pub fn settle_health(
    arguments: HealthArguments,
    matches: &ArgMatches,
) -> Result<HealthConfig, ConfigError> {
    let timeout = arguments.timeout.0;
    let given = Pick::new(matches, None);
    // Both say which server to ask. If both come from the same source, the URL wins: a container may have its
    // server's address and another page as variables.
    match arguments.url {
        Some(target) if given.source("url", false) >= given.source("admin", false) => {
            return Ok(HealthConfig { target, flag: "url", timeout });
        }
        _ => {}
    }
    let admin = admin_address(arguments.admin, arguments.file, matches, "a --url")?;
    Ok(HealthConfig { target: Endpoint::readiness(admin), flag: "admin", timeout })
}

/// Settles the settings of `top`.
///
/// # Errors
/// At the first that does not fit, or when there is no server to ask.
pub fn settle_top(arguments: TopArguments, matches: &ArgMatches) -> Result<TopConfig, ConfigError> {
    let admin = admin_address(arguments.admin, arguments.file, matches, "an --admin")?;
    let target = Endpoint::readiness(admin).with_path("/stats");
    Ok(TopConfig { target, timeout: arguments.timeout.0, once: arguments.once })
}

/// Where the admin listener of the settings is asked; `remedy` can be given in its place.
fn admin_address(
    given: AdminAddress,
    file: ConfigFileArguments,
    matches: &ArgMatches,
    remedy: &str,
) -> Result<SocketAddr, ConfigError> {
    let (file, locations) = file.read()?;
    let mut pick = Pick::new(matches, locations);
    let admin = pick.shown("admin", given, file.admin.map(|Text(admin)| admin)).0;
    let Some(admin) = admin else {
        let problem = format!("it is off, so that nobody can be asked; give {remedy}");
        return Err(pick.locate(invalid("admin", problem)));
    };
    if admin.port() == 0 {
        let problem = format!("{admin} has no port to ask at; give {remedy}");
        return Err(pick.locate(invalid("admin", problem)));
    }
    Ok(reachable(admin))
}

/// The address at which a server is reached from its own machine, also when it listens on all addresses.
pub fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
