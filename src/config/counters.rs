//! The counters of the visits: one URL or several.

use std::{fmt, str::FromStr};

use clap::ValueEnum;
use serde::{Deserialize, Deserializer, de};

use super::scalar::{Scalar, Scalars};
use crate::upstream::{Endpoint, EndpointError, Host, balance::CANDIDATES_MAX};

/// What gets visits as a counter of its own, where a counter is given by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CounterSpread {
    /// The name: its addresses are tried in turn
    Name,
    /// Each address that it has
    Addresses,
}

impl CounterSpread {
    /// How many counters a host may be.
    pub fn slots(self, host: &Host) -> usize {
        match (self, host) {
            (Self::Addresses, Host::Name(..)) => CANDIDATES_MAX,
            _ => 1,
        }
    }
}

impl fmt::Display for CounterSpread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Name => "name",
            Self::Addresses => "addresses",
        })
    }
}

/// The URLs of one flag, variable or key of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CounterUrls(pub Vec<Endpoint>);

/// URLs with commas between. A comma that something else follows is a part of its URL, as in a query.
impl FromStr for CounterUrls {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let begins_url = |(place, _): &(usize, &str)| {
            let rest = text[place + 1..].trim_ascii_start();
            rest.is_empty() || ["http://", "https://"].iter().any(|it| rest.starts_with(it))
        };
        let mut begin = 0;
        let commas = text.match_indices(',').filter(begins_url).map(|(place, _)| place);
        let urls = commas.chain([text.len()]).map(|end| {
            let url = &text[begin..end];
            begin = end + 1;
            url.trim_ascii().parse()
        });
        urls.collect::<Result<_, _>>().map(Self)
    }
}

impl<'de> Deserialize<'de> for CounterUrls {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let urls: Vec<Scalar> = match Scalars::deserialize(deserializer)? {
            Scalars::Several(urls) if urls.is_empty() => {
                return Err(de::Error::custom("it must have at least one URL"));
            }
            Scalars::Several(urls) => urls,
            Scalars::One(url) => return url.parse(),
        };
        urls.into_iter().map(Scalar::parse).collect::<Result<_, _>>().map(Self)
    }
}

/// What is wrong with counters of which each visit goes to one.
pub(super) fn check_counters(counters: &[Endpoint], spread: CounterSpread) -> Result<(), String> {
    if counters.len() > CANDIDATES_MAX {
        let given = counters.len();
        return Err(format!("there are {given}; at most {CANDIDATES_MAX} are used"));
    }
    for (place, counter) in counters.iter().enumerate() {
        if let Some(other) = counters[..place].iter().find(|one| one.origin == counter.origin) {
            return Err(format!(
                "{other} and {counter} are one counter, on one host and port; give each once"
            ));
        }
    }
    if spread == CounterSpread::Addresses && counters.len() > 1 {
        return Err(String::from(
            "with --counter-spread addresses it takes one URL, whose name has the addresses",
        ));
    }
    Ok(())
}

/// The counters for a person; `none` where the bundled one registers visits.
pub fn show_counters(counters: &[Endpoint], none: &str) -> String {
    match counters {
        [] => none.to_owned(),
        _ => counters.iter().map(Endpoint::to_string).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        let CounterUrls(urls) = text.parse().unwrap();
        let expected: Vec<Endpoint> = expected.iter().map(|url| url.parse().unwrap()).collect();
        assert_eq!(urls, expected, "{text:?}");
    }

    #[test]
    fn a_list_of_urls_has_commas_between() {
        check("http://a/x", &["http://a/x"]);
        check("http://a/x?by=1,2&c=d", &["http://a/x?by=1,2&c=d"]);
        check("http://a/x,http://b/y", &["http://a/x", "http://b/y"]);
        check("http://a/?by=1,2, http://b/", &["http://a/?by=1,2", "http://b/"]);
        for wrong in [
            "",
            ",http://a/",
            "http://a/,",
            "http://a/,https://b/",
            "a,b",
            "http://a/,,http://b/ c",
        ] {
            assert!(wrong.parse::<CounterUrls>().is_err(), "{wrong:?}");
        }
    }

    #[track_caller]
    fn check_wrong(text: &str, spread: CounterSpread, expected: Option<&str>) {
        let CounterUrls(urls) = text.parse().unwrap();
        let said = check_counters(&urls, spread).err();
        assert_eq!(said.as_deref(), expected, "{text:?}");
    }

    #[test]
    fn each_counter_is_another_one() {
        use CounterSpread::{Addresses, Name};
        check_wrong("http://a/", Name, None);
        check_wrong("http://a/", Addresses, None);
        check_wrong("http://a/,http://b/,http://a:81/", Name, None);
        let said =
            "http://a/x?… and http://a:80/y are one counter, on one host and port; give each once";
        check_wrong("http://a/x?s3cret,http://b/,http://a:80/y", Name, Some(said));
        let said = "with --counter-spread addresses it takes one URL, whose name has the addresses";
        check_wrong("http://a/,http://b/", Addresses, Some(said));
        let many = |count| (1..=count).map(|port| format!("http://a:{port}/")).collect::<Vec<_>>();
        check_wrong(&many(16).join(","), Name, None);
        check_wrong(&many(17).join(","), Name, Some("there are 17; at most 16 are used"));
    }
}
