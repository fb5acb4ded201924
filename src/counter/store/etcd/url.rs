//! Where an etcd cluster is: `etcd://user:password@host1,host2:2379/prefix`, or `etcds://` with TLS.

use std::{fmt, path::PathBuf, str::FromStr};

use percent_encoding::percent_decode_str;

/// Members that a URL may have.
const HOSTS_MAX: usize = 16;
/// The port of etcd's clients.
const PORT: u16 = 2379;
/// The longest prefix, in bytes. Each key begins with it.
const PREFIX_BYTES_MAX: usize = 64;
/// The prefix where none is given.
const PREFIX: &str = "/tallyring";

const FORM: &str = "it must be etcd://HOST/PREFIX, where HOST may be several with commas";

/// A cluster. It is shown without its password.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterUrl {
    /// Where its members are.
    pub(super) hosts: Vec<Host>,
    /// How each key begins: `/` and no `/` at the end.
    pub(super) prefix: String,
    pub(super) user: Option<User>,
    pub(super) tls: Option<TlsFiles>,
}

/// A member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    /// A name or an address, the latter without brackets.
    pub(super) name: String,
    pub(super) port: u16,
}

#[derive(Clone, PartialEq, Eq)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) password: String,
}

/// The files of TLS, as `etcdctl` names them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct TlsFiles {
    /// The authority of the members; the system's where it is missing.
    pub(super) cacert: Option<PathBuf>,
    /// The certificate of this client, and its key.
    pub(super) client: Option<(PathBuf, PathBuf)>,
}

impl FromStr for ClusterUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (scheme, rest) = text.split_once("://").ok_or(FORM)?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = match authority.rsplit_once('@') {
            Some((user, hosts)) => (Some(user.parse()?), hosts),
            None => (None, authority),
        };
        let hosts: Vec<Host> = hosts.split(',').map(str::parse).collect::<Result<_, _>>()?;
        if hosts.len() > HOSTS_MAX {
            return Err(format!("it has {} hosts, and may have {HOSTS_MAX}", hosts.len()));
        }
        let tls = match (scheme, query) {
            ("etcds", query) => Some(query.parse()?),
            ("etcd", "") => None,
            ("etcd", _) => return Err(String::from("cacert, cert and key need etcds://")),
            _ => return Err(FORM.to_owned()),
        };
        Ok(Self { hosts, prefix: prefix(path)?, user, tls })
    }
}

fn prefix(path: &str) -> Result<String, String> {
    let path = path.trim_matches('/');
    if path.is_empty() {
        return Ok(PREFIX.to_owned());
    }
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
    if path.len() >= PREFIX_BYTES_MAX || !path.bytes().all(is_plain) || path.contains("//") {
        return Err(format!(
            "its prefix must be at most {PREFIX_BYTES_MAX} letters, digits, dots, dashes, underscores and \
             slashes"
        ));
    }
    Ok(format!("/{path}"))
}

impl FromStr for User {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let decode = |text: &str| {
            let decoded = percent_decode_str(text).decode_utf8();
            decoded.map(String::from).map_err(|_| String::from("its user or password is not UTF-8"))
        };
        match text.split_once(':') {
            Some((name, password)) if !name.is_empty() && !password.is_empty() => {
                Ok(Self { name: decode(name)?, password: decode(password)? })
            }
            _ => Err(String::from(
                "it must have both a user and a password, USER:PASSWORD@, or none",
            )),
        }
    }
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, port)) => {
                address
                    .parse::<std::net::Ipv6Addr>()
                    .map_err(|_| String::from("what it has in brackets is no IPv6 address"))?;
                (address, port)
            }
            None => text.split_at(text.find(':').unwrap_or(text.len())),
        };
        let is_name_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:".contains(&byte);
        if name.is_empty() || !name.bytes().all(is_name_byte) {
            return Err(format!("{FORM}: one of its hosts is no name"));
        }
        let port = match port.strip_prefix(':') {
            Some(port) => port.parse().ok().filter(|port| *port > 0),
            None => Some(PORT).filter(|_| port.is_empty()),
        };
        let port = port.ok_or("its port is no number from 1 to 65535")?;
        Ok(Self { name: name.to_owned(), port })
    }
}

impl FromStr for TlsFiles {
    type Err = String;

    fn from_str(query: &str) -> Result<Self, Self::Err> {
        let (mut cacert, mut cert, mut key) = (None, None, None);
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            match parameter.split_once('=') {
                Some(("cacert", path)) => cacert = Some(PathBuf::from(path)),
                Some(("cert", path)) => cert = Some(PathBuf::from(path)),
                Some(("key", path)) => key = Some(PathBuf::from(path)),
                _ => {
                    return Err(String::from(
                        "its parameters are cacert, cert and key, each with =FILE",
                    ));
                }
            }
        }
        let client = match (cert, key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => return Err(String::from("cert and key need each other")),
        };
        Ok(Self { cacert, client })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.contains(':') {
            true => write!(f, "[{}]:{}", self.name, self.port),
            false => write!(f, "{}:{}", self.name, self.port),
        }
    }
}

impl fmt::Display for ClusterUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "etcds" } else { "etcd" };
        let user = self.user.as_ref().map(|user| format!("{}@", user.name)).unwrap_or_default();
        let hosts = self.hosts.iter().map(Host::to_string).collect::<Vec<_>>().join(",");
        write!(f, "{scheme}://{user}{hosts}{}", self.prefix)
    }
}

impl fmt::Debug for ClusterUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<&str, &str>) {
        match (text.parse::<ClusterUrl>(), expected) {
            (Ok(url), Ok(shown)) => {
                assert_eq!(url.to_string(), shown);
                assert_eq!(format!("{url:?}"), shown);
            }
            (Err(problem), Err(words)) => assert!(problem.contains(words), "{problem}"),
            (other, _) => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_url_names_members_and_a_prefix() {
        check("etcd://a", Ok("etcd://a:2379/tallyring"));
        check("etcd://a,b:23790,10.0.0.1/", Ok("etcd://a:2379,b:23790,10.0.0.1:2379/tallyring"));
        check("etcd://[::1]:5,[::2]/my/site/", Ok("etcd://[::1]:5,[::2]:2379/my/site"));
        check("etcd://me:s3cret@a/site", Ok("etcd://me@a:2379/site"));
        check(
            &format!("etcd://{}a", "a,".repeat(15)),
            Ok(&format!("etcd://{}a:2379/tallyring", "a:2379,".repeat(15))),
        );
        check(&format!("etcd://{}a", "a,".repeat(16)), Err("17 hosts"));
        check("etcd:///site", Err("no name"));
        check("etcd://a,/site", Err("no name"));
        check("etcd://a b/site", Err("no name"));
        check("etcd://[::g]", Err("no IPv6 address"));
        for port in ["a:0", "a:", "a:65536", "[::1]5", "[::1]:"] {
            check(&format!("etcd://{port}"), Err("its port"));
        }
        check("etcd://me@a", Err("USER:PASSWORD@"));
        check("etcd://me:@a", Err("USER:PASSWORD@"));
        check("etcd://a/a b", Err("its prefix"));
        check("etcd://a/a//b", Err("its prefix"));
        check(
            &format!("etcd://a/{}", "p".repeat(63)),
            Ok(&format!("etcd://a:2379/{}", "p".repeat(63))),
        );
        check(&format!("etcd://a/{}", "p".repeat(64)), Err("its prefix"));
        check("https://a/site", Err("etcd://HOST"));
        check("etcd:a", Err("etcd://HOST"));
    }

    #[test]
    fn a_user_may_have_any_letters() {
        let url: ClusterUrl = "etcd://a%40b:p%3A%2F@c:d@host/x".parse().unwrap();
        let user = url.user.unwrap();
        assert_eq!((&*user.name, &*user.password), ("a@b", "p:/@c:d"));
        check("etcd://a:%ff@host", Err("not UTF-8"));
    }

    #[test]
    fn tls_has_the_files_of_etcdctl() {
        check("etcds://a/x", Ok("etcds://a:2379/x"));
        let url: ClusterUrl = "etcds://a/x?cacert=/ca&cert=/c&key=/k".parse().unwrap();
        let client = Some((PathBuf::from("/c"), PathBuf::from("/k")));
        assert_eq!(url.tls, Some(TlsFiles { cacert: Some("/ca".into()), client }));
        check("etcds://a/x?cert=/c", Err("need each other"));
        check("etcds://a/x?insecure", Err("its parameters"));
        check("etcd://a/x?cacert=/ca", Err("need etcds://"));
    }
}
