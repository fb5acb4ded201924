//! Where a PostgreSQL database is: `postgres://user:password@host:port,host2/db?sslmode=verify-full`, as libpq has it.

use std::{env, fmt, path::PathBuf, str::FromStr, time::Duration};

use tokio_postgres::{
    Config,
    config::{Host, SslMode, TargetSessionAttrs},
};

/// How long a connect to one address may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection that is silent for so long is probed.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
const KEEPALIVE_RETRIES: u32 = 3;
/// Hosts that a URL may have.
const HOSTS_MAX: usize = 16;

/// A database. It is shown without its password.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl {
    /// One for each host, in order.
    pub(super) hosts: Vec<Config>,
    pub(super) tls: Tls,
    shown: String,
}

/// What `sslmode` and `sslrootcert` ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Tls {
    /// None, or whatever the server has.
    Unverified,
    /// The server's certificate must be for its host, and issued by these authorities: those of a PEM file, or of the
    /// system.
    Verified(Option<PathBuf>),
}

impl FromStr for DatabaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (rest, query) = text.split_once('?').unwrap_or((text, ""));
        let (mut kept, mut mode, mut authorities) = (Vec::new(), None, None);
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            match parameter.split_once('=') {
                Some(("sslmode", "verify-full")) => mode = Some("verify-full"),
                Some(("sslmode", "verify-ca" | "allow")) => {
                    return Err(String::from("sslmode is disable, prefer, require or verify-full"));
                }
                Some(("sslrootcert", path)) => authorities = Some(path),
                Some(("sslcert" | "sslkey" | "passfile" | "service", _)) => {
                    return Err(String::from(
                        "sslcert, sslkey, passfile and service are not supported; a password can be \
                         in the URL or in PGPASSWORD",
                    ));
                }
                _ => kept.push(parameter),
            }
        }
        let tls = match (mode, authorities) {
            (Some(_), None | Some("system")) => Tls::Verified(None),
            (Some(_), Some(path)) => Tls::Verified(Some(path.into())),
            (None, None) => Tls::Unverified,
            (None, Some(_)) => return Err(String::from("sslrootcert needs sslmode=verify-full")),
        };
        let mut config: Config = match kept.is_empty() {
            true => rest.parse(),
            false => format!("{rest}?{}", kept.join("&")).parse(),
        }
        .map_err(|error| format!("it must be {FORM}: {}", cause(&error)))?;
        if mode.is_some() {
            config.ssl_mode(SslMode::Require);
        }
        if config.get_target_session_attrs() == TargetSessionAttrs::ReadOnly {
            return Err(String::from("target_session_attrs must be read-write: a counter writes"));
        }
        let password = env::var("PGPASSWORD").ok().filter(|password| !password.is_empty());
        if let (None, Some(password)) = (config.get_password(), password) {
            config.password(password);
        }
        let hosts = hosts_of(&config)?;
        let shown = show(&config, &hosts);
        Ok(Self { hosts, tls, shown })
    }
}

const FORM: &str = "postgres://HOST/DATABASE";

/// The innermost reason of an error.
fn cause(error: &tokio_postgres::Error) -> String {
    let mut error: &dyn std::error::Error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// The same settings for each host alone: a host that accepts a connection and says nothing must not keep the others
/// from being tried.
fn hosts_of(all: &Config) -> Result<Vec<Config>, String> {
    let (names, addresses, ports) = (all.get_hosts(), all.get_hostaddrs(), all.get_ports());
    let count = names.len().max(addresses.len());
    if count == 0 {
        return Err(format!("it must be {FORM}: it names no host"));
    }
    if count > HOSTS_MAX {
        return Err(format!("it has {count} hosts, and may have {HOSTS_MAX}"));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(format!("it has {count} hosts and {} ports", ports.len()));
    }
    if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
        return Err(String::from("host and hostaddr must be as many"));
    }
    let host = |index: usize| {
        let mut config = Config::new();
        config
            .ssl_mode(all.get_ssl_mode())
            .ssl_negotiation(all.get_ssl_negotiation())
            .channel_binding(all.get_channel_binding())
            .application_name(all.get_application_name().unwrap_or("tallyring"))
            .connect_timeout(*all.get_connect_timeout().unwrap_or(&CONNECT_TIMEOUT))
            .keepalives(all.get_keepalives())
            .keepalives_idle(KEEPALIVE_IDLE)
            .keepalives_interval(all.get_keepalives_interval().unwrap_or(KEEPALIVE_INTERVAL))
            .keepalives_retries(all.get_keepalives_retries().unwrap_or(KEEPALIVE_RETRIES));
        if let Some(time) = all.get_tcp_user_timeout() {
            config.tcp_user_timeout(*time);
        }
        if let Some(user) = all.get_user() {
            config.user(user);
        }
        if let Some(password) = all.get_password() {
            config.password(password);
        }
        if let Some(name) = all.get_dbname() {
            config.dbname(name);
        }
        if let Some(options) = all.get_options() {
            config.options(options);
        }
        match names.get(index) {
            Some(Host::Tcp(name)) => _ = config.host(name),
            Some(Host::Unix(path)) => _ = config.host_path(path),
            None => {}
        }
        if let Some(address) = addresses.get(index) {
            config.hostaddr(*address);
        }
        if let Some(port) = ports.get(index).or(ports.first()) {
            config.port(*port);
        }
        config
    };
    Ok((0..count).map(host).collect())
}

fn show(all: &Config, hosts: &[Config]) -> String {
    let user = all.get_user().map(|user| format!("{user}@")).unwrap_or_default();
    let hosts = hosts.iter().map(show_host).collect::<Vec<_>>().join(",");
    format!("postgres://{user}{hosts}/{}", all.get_dbname().unwrap_or_default())
}

/// The host of settings that have one.
pub(super) fn show_host(config: &Config) -> String {
    let port = config.get_ports().first().filter(|port| **port != 5432);
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    match (config.get_hosts().first(), config.get_hostaddrs().first()) {
        (Some(Host::Tcp(name)), _) => format!("{name}{port}"),
        (Some(Host::Unix(path)), _) => format!("{}{port}", path.display()),
        (None, Some(address)) => format!("{address}{port}"),
        (None, None) => port,
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<&str, &str>) {
        match (text.parse::<DatabaseUrl>(), expected) {
            (Ok(url), Ok(shown)) => {
                assert_eq!(url.to_string(), shown);
                assert_eq!(format!("{url:?}"), shown);
            }
            (Err(problem), Err(words)) => assert!(problem.contains(words), "{problem}"),
            (other, _) => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_url_is_as_libpq_has_it() {
        check("postgres://me@db/site", Ok("postgres://me@db/site"));
        check("postgresql://me:s3cret@db:5433/site", Ok("postgres://me@db:5433/site"));
        check("postgres://me@a,b:5433/site", Ok("postgres://me@a,b:5433/site"));
        check("postgres://me@%2Frun%2Fpg/site", Ok("postgres://me@/run/pg/site"));
        check("postgres://me@/site?host=/run/pg", Ok("postgres://me@/run/pg/site"));
        check(
            "postgres://me@a,b/site?sslmode=require&target_session_attrs=read-write",
            Ok("postgres://me@a,b/site"),
        );
        check("postgres://me@a/site?target_session_attrs=read-only", Err("must be read-write"));
        check("postgres:///site", Err("names no host"));
        check("postgres://me@a,b/site?port=1,2,3", Err("2 hosts and"));
        check("postgres://me@a/site?nonsense=1", Err("unknown option `nonsense`"));
        check("postgres://me@a:port/site", Err("port"));
        check(&format!("postgres://me@{}a/site", "a,".repeat(16)), Err("17 hosts"));
    }

    #[test]
    fn tls_is_off_unverified_or_verified() {
        let tls = |query: &str| {
            let url: DatabaseUrl = format!("postgres://me@a/site?{query}").parse().unwrap();
            (url.hosts[0].get_ssl_mode(), url.tls)
        };
        assert_eq!(tls(""), (SslMode::Prefer, Tls::Unverified));
        assert_eq!(tls("sslmode=disable"), (SslMode::Disable, Tls::Unverified));
        assert_eq!(tls("sslmode=require"), (SslMode::Require, Tls::Unverified));
        assert_eq!(tls("sslmode=verify-full"), (SslMode::Require, Tls::Verified(None)));
        let file = Tls::Verified(Some("/a.pem".into()));
        assert_eq!(tls("sslmode=verify-full&sslrootcert=/a.pem"), (SslMode::Require, file));
        check("postgres://me@a/site?sslmode=verify-ca", Err("require or verify-full"));
        check("postgres://me@a/site?sslmode=none", Err("sslmode"));
        check("postgres://me@a/site?sslrootcert=/a.pem", Err("needs sslmode=verify-full"));
        check("postgres://me@a/site?sslcert=/a.pem", Err("not supported"));
    }
}
