//! Where a counter is and what is sent to it: a URL, parsed once.

use std::{fmt, net::SocketAddr, str::FromStr};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Uri, header};

use super::batching::{Batching, PLACEHOLDER};
use crate::http::render;

/// The `User-Agent` field of every call.
const USER_AGENT: HeaderValue =
    HeaderValue::from_static(concat!("tallyring/", env!("CARGO_PKG_VERSION")));

/// Where to connect: an address, or a name for the system's resolver.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// An IPv4 or IPv6 address and its port.
    Address(SocketAddr),
    /// A name and its port.
    Name(String, u16),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

/// A counter's URL, `http://host[:port]/path[?query]`, perhaps with [`PLACEHOLDER`] in its path or query.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where to connect: routes with the same origin share connections.
    pub origin: Host,
    uri: Uri,
}

/// Why a text is no counter's URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// TLS is not supported yet.
    #[error("https:// is not supported yet; use http://, for example through a local TLS proxy")]
    Https,
    /// Not a URL of that form.
    #[error("it must be a URL like http://127.0.0.1:3001/counter ({0})")]
    Malformed(&'static str),
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        use EndpointError::Malformed;
        check_placeholder(text)?;
        check_no_likeness(text)?;
        let uri = Uri::from_str(text).map_err(|_| Malformed("it is not a URL"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(EndpointError::Https),
            Some(_) => return Err(Malformed("its scheme is not http")),
            None => return Err(Malformed("it has no scheme")),
        }
        let authority = uri.authority().ok_or(Malformed("it has no host"))?;
        if authority.as_str().contains('@') {
            return Err(Malformed("user information is not supported"));
        }
        let host = authority.host();
        // The `http` crate's own `port` takes an empty or invalid port for none.
        let port = match authority.as_str()[host.len()..].strip_prefix(':') {
            Some(digits) => digits
                .parse()
                .ok()
                .filter(|&port| port > 0 && digits.bytes().all(|byte| byte.is_ascii_digit()))
                .ok_or(Malformed("its port is no number from 1 to 65535"))?,
            None => 80,
        };
        let literal = host.trim_start_matches('[').trim_end_matches(']');
        let origin = match literal.parse() {
            Ok(address) => Host::Address(SocketAddr::new(address, port)),
            Err(_) if host.is_empty() || host.starts_with('[') => {
                return Err(Malformed("its host is neither a name nor an address"));
            }
            Err(_) => Host::Name(host.to_ascii_lowercase(), port),
        };
        let uri = with_root(uri).map_err(|_| Malformed("it is not a URL"))?;
        Ok(Self { origin, uri })
    }
}

/// [`PLACEHOLDER`] stands in what is sent of a URL, once.
fn check_placeholder(text: &str) -> Result<(), EndpointError> {
    let (_, rest) = text.split_once("://").unwrap_or(("", text));
    let path = rest.find(['/', '?']).unwrap_or(rest.len());
    let sent = path..rest.find('#').unwrap_or(rest.len()).max(path);
    let mut placeholders = rest.match_indices(PLACEHOLDER).map(|(place, _)| place);
    match (placeholders.next(), placeholders.next()) {
        (None, None) => Ok(()),
        (Some(place), None) if sent.contains(&place) => Ok(()),
        _ => Err(EndpointError::Malformed("{n} may stand in its path or query only, and once")),
    }
}

/// What is nearly [`PLACEHOLDER`] would be sent as it is, and a counter would refuse each visit.
fn check_no_likeness(text: &str) -> Result<(), EndpointError> {
    let mut plain = text.to_ascii_lowercase();
    for (code, letter) in [("%7b", "{"), ("%7d", "}"), ("%6e", "n"), ("%4e", "n"), ("%20", "")] {
        plain = plain.replace(code, letter);
    }
    let counts = [&*plain, text].map(|text| text.matches(PLACEHOLDER).count());
    if counts[0] > counts[1] || plain.contains("{{n}") || plain.contains("{n}}") {
        return Err(EndpointError::Malformed(
            "for the number of visits write {n}, as it stands here: a small letter in one pair of plain braces",
        ));
    }
    Ok(())
}

/// A URL as it is sent: an empty path before a query is `/` (RFC 9112 section 3.2.1).
fn with_root(uri: Uri) -> Result<Uri, http::Error> {
    match uri.path_and_query().filter(|sent| sent.as_str().starts_with('?')) {
        Some(sent) => {
            let sent = format!("/{}", sent.as_str());
            http::uri::Builder::from(uri).path_and_query(sent).build()
        }
        None => Ok(uri),
    }
}

impl Endpoint {
    /// The bundled counter's.
    ///
    /// # Panics
    /// Never: an address is an authority.
    #[allow(clippy::expect_used)]
    pub fn bundled(address: SocketAddr) -> Self {
        let uri = format!("http://{address}/counter").parse().expect("an address is an authority");
        Self { origin: Host::Address(address), uri }
    }

    /// The bundled counter's, for calls that register several visits.
    ///
    /// # Panics
    /// Never: an address is an authority.
    #[allow(clippy::expect_used)]
    pub fn bundled_for_batches(address: SocketAddr) -> Self {
        let uri = format!("http://{address}/counter?by={PLACEHOLDER}").parse();
        let uri = uri.expect("an address is an authority");
        Self { origin: Host::Address(address), uri }
    }

    /// Where the admin listener says whether the server is ready.
    ///
    /// # Panics
    /// Never: an address is an authority.
    #[allow(clippy::expect_used)]
    pub fn readiness(admin: SocketAddr) -> Self {
        let uri = format!("http://{admin}/readyz").parse().expect("an address is an authority");
        Self { origin: Host::Address(admin), uri }
    }

    /// The path, without the query.
    pub fn path(&self) -> &str {
        self.uri.path()
    }

    /// The same server with another path and without a query.
    pub fn with_path(&self, path: &str) -> Self {
        let mut parts = self.uri.clone().into_parts();
        // A path that cannot stand in a URL leaves what was there.
        if let Ok(path) = path.parse() {
            parts.path_and_query = Some(path);
        }
        let uri = Uri::from_parts(parts).unwrap_or_else(|_| self.uri.clone());
        Self { origin: self.origin.clone(), uri }
    }

    /// A request that counts nothing, on a connection of its own.
    pub fn probe(&self) -> Bytes {
        let fields = [(header::CONNECTION, HeaderValue::from_static("close"))];
        self.of_one(self.render(Method::GET, &fields))
    }

    /// The request of one visit, as it goes over the wire.
    #[cfg(test)]
    pub fn request(&self) -> Bytes {
        self.of_one(self.render(Method::POST, &[]))
    }

    /// The call that registers visits, and how it registers several at once, at most `max`: with [`PLACEHOLDER`] in it, or
    /// without a query, where the counter says that it takes one. Else a call registers one.
    pub fn call(&self, max: usize) -> (Bytes, Option<Batching>) {
        let call = self.render(Method::POST, &[]);
        match Batching::of(&call, max) {
            Some(batching) if max > 1 => (call, Some(batching)),
            None if max > 1 => {
                let batching = Batching::offered(&call, max);
                (call, batching)
            }
            _ => (self.of_one(call), None),
        }
    }

    fn of_one(&self, request: Bytes) -> Bytes {
        Batching::of(&request, 1).map_or(request.clone(), |batching| batching.render(&request, 1))
    }

    fn render(&self, method: Method, more: &[(HeaderName, HeaderValue)]) -> Bytes {
        let authority = self.uri.authority().map_or("", http::uri::Authority::as_str);
        // An authority is visible ASCII, which every field value may be.
        let host = HeaderValue::from_str(authority).unwrap_or(HeaderValue::from_static(""));
        let fields = [&[(header::HOST, host), (header::USER_AGENT, USER_AGENT)], more].concat();
        render::request(method, self.uri.clone(), &fields)
    }
}

/// For people, without the query, which may hold a secret.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&without_secrets(&self.uri.to_string()))
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that may be a URL, for people: `?…` replaces the query, and `…@` the user information, since both may hold
/// tokens and passwords.
pub fn without_secrets(text: &str) -> String {
    let (visible, query) = match text.find(['?', '#']) {
        Some(place) => (&text[..place], if text[place..].contains('?') { "?…" } else { "" }),
        None => (text, ""),
    };
    match (visible.find("//"), visible.rfind('@')) {
        (Some(start), Some(end)) if start < end => {
            format!("{}//…{}{query}", &visible[..start], &visible[end..])
        }
        _ => format!("{visible}{query}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Host) {
        assert_eq!(text.parse::<Endpoint>().map(|target| target.origin), Ok(expected), "{text:?}");
    }

    fn name(host: &str, port: u16) -> Host {
        Host::Name(host.to_owned(), port)
    }

    #[test]
    fn a_url_names_a_host() {
        check("http://counter/counter", name("counter", 80));
        check("http://Counter.Example:3001", name("counter.example", 3001));
        check("http://127.0.0.1:3001/a?b", Host::Address("127.0.0.1:3001".parse().unwrap()));
        check("http://[::1]/", Host::Address("[::1]:80".parse().unwrap()));
    }

    #[test]
    fn what_is_no_counters_url() {
        assert_eq!("https://a/".parse::<Endpoint>(), Err(EndpointError::Https));
        for text in [
            "",
            "a",
            "a:80",
            "/counter",
            "ftp://a/",
            "http://",
            "http:///a",
            "http://u@a/",
            "http://a:/",
            "http://a:x/",
            "http://a:99999/",
            "http://a:0/",
            "http://[::1",
            "http://a b/",
        ] {
            let result = text.parse::<Endpoint>();
            assert!(matches!(result, Err(EndpointError::Malformed(_))), "{text:?}: {result:?}");
        }
    }

    #[track_caller]
    fn check_shown(text: &str, expected: &str) {
        assert_eq!(without_secrets(text), expected);
    }

    #[test]
    fn a_url_is_shown_without_what_may_be_a_secret() {
        check_shown("http://counter:3001/counter", "http://counter:3001/counter");
        check_shown("http://counter/counter?token=s3cret", "http://counter/counter?…");
        check_shown("http://counter?s3cret/a?b", "http://counter?…");
        check_shown("http://user:s3cret@counter/a?s3cret", "http://…@counter/a?…");
        check_shown("http://user:s3cret@s3cret@counter/", "http://…@counter/");
        check_shown("https://counter/a#s3cret?s3cret", "https://counter/a?…");
        check_shown("somebody@counter", "somebody@counter");
        check_shown("2xx", "2xx");
        let target: Endpoint = "http://counter:3001/counter/a?by=1&token=s3cret".parse().unwrap();
        assert_eq!(target.to_string(), "http://counter:3001/counter/a?…");
        assert_eq!(format!("{target:?}"), target.to_string());
        assert!(target.request().starts_with(b"POST /counter/a?by=1&token=s3cret HTTP/1.1\r\n"));
    }

    #[test]
    fn a_server_has_other_paths() {
        let target: Endpoint = "http://counter:3001/counter/a?by=1&token=s3cret".parse().unwrap();
        let listing = target.with_path("/counters");
        assert_eq!(listing.origin, target.origin);
        assert!(listing.probe().starts_with(b"GET /counters HTTP/1.1\r\n"));
        let same = target.with_path(target.path());
        assert!(same.probe().starts_with(b"GET /counter/a HTTP/1.1\r\n"));
        let bare: Endpoint = "http://counter:3001".parse().unwrap();
        assert!(bare.with_path(bare.path()).probe().starts_with(b"GET / HTTP/1.1\r\n"));
    }

    #[test]
    fn an_address_with_a_scope_is_an_authority() {
        let address = "[fe80::1%2]:3001".parse().unwrap();
        assert_eq!(Endpoint::bundled(address).origin, Host::Address(address));
    }

    #[test]
    fn a_visit_is_a_post_without_a_body() {
        let target: Endpoint = "http://counter:3001/counter/home?by=1".parse().unwrap();
        let expected = format!(
            "POST /counter/home?by=1 HTTP/1.1\r\ncontent-length: 0\r\nhost: counter:3001\r\n\
             user-agent: tallyring/{}\r\n\r\n",
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!(target.request(), expected);
        assert_eq!(target.call(1000), (target.request(), None));
    }

    #[test]
    fn a_call_registers_several_visits_where_its_url_says_so() {
        for (url, one) in [
            ("http://counter/counter?by={n}", "/counter?by=1 "),
            ("http://counter/add/{n}/to?a={m}", "/add/1/to?a={m} "),
            ("http://counter?{n}", "/?1 "),
        ] {
            let target: Endpoint = url.parse().unwrap();
            let (call, batching) = target.call(1000);
            assert!(memchr::memmem::find(&call, b"{n}").is_some(), "{url}");
            assert_eq!(batching.unwrap().render(&call, 1), target.request());
            let expected = format!("POST {one}HTTP/1.1\r\n");
            assert!(target.request().starts_with(expected.as_bytes()), "{url}");
            assert_eq!(target.call(1), (target.request(), None));
            let expected = format!("GET {one}HTTP/1.1\r\n");
            assert!(target.probe().starts_with(expected.as_bytes()), "{url}");
        }
        let address = "127.0.0.1:3001".parse().unwrap();
        let bundled = Endpoint::bundled_for_batches(address);
        assert_eq!(bundled.to_string(), "http://127.0.0.1:3001/counter?…");
        assert!(bundled.call(2).1.is_some());
    }

    #[test]
    fn the_number_of_visits_stands_in_a_path_or_query_once() {
        let misplaced = "{n} may stand in its path or query only, and once";
        for text in [
            "http://a/{n}?by={n}",
            "http://a/{n}{n}",
            "http://{n}/",
            "http://{n}?by=1",
            "http://a:{n}/",
            "http://{n}@a/",
            "http://a/#{n}",
        ] {
            assert_eq!(
                text.parse::<Endpoint>(),
                Err(EndpointError::Malformed(misplaced)),
                "{text}"
            );
        }
        assert!("http://a/{}?{m}&{n&n}".parse::<Endpoint>().is_ok());
        for text in [
            "http://a/?by={N}",
            "http://a/?by=%7Bn%7D",
            "http://a/%7bN%7d",
            "http://a/?by=%7B%6e%7D",
            "http://a/?by={%20n%20}",
            "http://a/?by={{n}}",
            "http://a/?by={n}&to={N}",
        ] {
            let problem = text.parse::<Endpoint>().unwrap_err().to_string();
            assert!(problem.contains("write {n}, as it stands here"), "{text}: {problem}");
        }
        for text in ["http://a/?n=%7B%7D", "http://a/?%7Bm%7D", "http://a/n?by=n"] {
            assert!(text.parse::<Endpoint>().is_ok(), "{text}");
        }
    }
}
