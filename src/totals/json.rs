//! Totals as JSON, for `counter export` and `import`:
//!
//! ```json
//! { "version": 1, "total": 1234, "names": { "home.page": 56 }, "sum": 1290 }
//! ```
//!
//! `total` is that of the counter without a name, and `sum` that of it and all others. All four must be there, and
//! nothing else.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, MapAccess, Visitor},
};

use crate::{
    counter::{
        self,
        store::{self, TotalsByName},
    },
    plural::grouped,
};

/// The version of the form.
const VERSION: u64 = 1;

/// How each export begins.
pub(super) const BEGIN: &str = "{\n  \"version\": ";

/// The most names of an export. Counters that make new ones in the same instant can go beyond those of a store.
pub(super) const NAMES_MAX: u64 = 2 * store::NAMES_MAX;

/// The most bytes that are read. The most names, each of the greatest length, take 3.2 MB.
pub(super) const BYTES_MAX: u64 = 4 * 1024 * 1024;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Export {
    version: u64,
    total: u64,
    #[serde(deserialize_with = "names")]
    names: TotalsByName,
    sum: u64,
}

/// Read first, so that a later version is told from a mistake.
#[derive(Deserialize)]
struct Version {
    version: u64,
}

/// Totals as JSON, with a line end; `None` where their sum is no number of 64 bits.
pub(super) fn write(totals: &TotalsByName) -> Option<String> {
    let mut names = totals.clone();
    let total = names.remove("").unwrap_or(0);
    let export = Export { version: VERSION, total, sum: sum(totals)?, names };
    // A struct of numbers and a map of them is always JSON.
    Some(serde_json::to_string_pretty(&export).unwrap_or_default() + "\n")
}

/// Reads and checks what [`write()`] has written.
///
/// # Errors
/// What is wrong with it, for a person.
pub(super) fn read(text: &[u8]) -> Result<TotalsByName, String> {
    let invalid = |error: serde_json::Error| format!("it is no export of tallyring: {error}");
    let Version { version } = serde_json::from_slice(text).map_err(invalid)?;
    if version != VERSION {
        return Err(format!(
            "it has version {version}, and this tallyring reads version {VERSION}"
        ));
    }
    let Export { total, names, sum: expected, .. } =
        serde_json::from_slice(text).map_err(invalid)?;
    let mut totals = names;
    totals.insert(String::new(), total);
    match sum(&totals) {
        Some(found) if found == expected => Ok(totals),
        found => Err(format!(
            "it says that its sum is {}, and its totals have {}: it is damaged, or was edited",
            grouped(expected),
            found.map_or_else(|| String::from("a greater one than 64 bits hold"), grouped)
        )),
    }
}

fn sum(totals: &TotalsByName) -> Option<u64> {
    totals.values().try_fold(0_u64, |sum, total| sum.checked_add(*total))
}

/// Totals by names that a counter can have, each once, and no more of them than an export has.
fn names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TotalsByName, D::Error> {
    struct Names;
    impl<'de> Visitor<'de> for Names {
        type Value = TotalsByName;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of totals by name")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TotalsByName, A::Error> {
            let mut names = BTreeMap::new();
            while let Some((name, total)) = map.next_entry::<String, u64>()? {
                if !counter::is_name(&name) {
                    return Err(de::Error::custom(format!("{name:?} is no name of a counter")));
                }
                if names.insert(name.clone(), total).is_some() {
                    return Err(de::Error::custom(format!("{name:?} is there twice")));
                }
                if names.len() as u64 > NAMES_MAX {
                    let most = grouped(NAMES_MAX);
                    return Err(de::Error::custom(format!("it has more than {most} names")));
                }
            }
            Ok(names)
        }
    }
    deserializer.deserialize_map(Names)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<&[(&str, u64)], &str>) {
        match (read(text.as_bytes()), expected) {
            (Ok(found), Ok(totals)) => {
                let totals = totals.iter().map(|(name, total)| ((*name).to_owned(), *total));
                assert_eq!(found, totals.collect());
            }
            (Err(said), Err(words)) => assert!(said.contains(words), "{text}: {said}"),
            (other, _) => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn only_what_is_whole_and_right_is_read() {
        let whole = r#"{"version":1,"total":2,"names":{"a":3},"sum":5}"#;
        check(whole, Ok(&[("", 2), ("a", 3)]));
        check(r#"{"version":1,"total":0,"names":{},"sum":0}"#, Ok(&[("", 0)]));
        for end in 0..whole.len() {
            check(&whole[..end], Err("no export of tallyring"));
        }
        check(&format!("{whole}{whole}"), Err("no export of tallyring"));
        check("{\"\":5}", Err("missing field `version`"));
        for (this, by, words) in [
            ("1,", "2,\"more\":1,", "it has version 2, and this tallyring reads version 1"),
            ("1,", "0,", "it has version 0"),
            ("1,", "\"1\",", "invalid type"),
            ("5}", "6}", "its sum is 6, and its totals have 5: it is damaged"),
            ("5}", "5,\"more\":1}", "unknown field `more`"),
            (",\"sum\":5", "", "missing field `sum`"),
            ("2", "-2", "invalid value"),
            ("2", "2.0", "invalid type"),
            ("2", "18446744073709551616", "invalid type"),
            ("2", "18446744073709551615", "a greater one than 64 bits hold"),
            ("\"a\"", "\"\"", "\"\" is no name of a counter"),
            ("\"a\"", "\"a/b\"", "\"a/b\" is no name of a counter"),
            ("{\"a\":3}", "{\"a\":1,\"a\":2}", "\"a\" is there twice"),
            ("{\"a\":3}", "[3]", "invalid type"),
        ] {
            check(&whole.replacen(this, by, 1), Err(words));
        }
    }

    #[test]
    fn the_most_names_can_be_written_and_read_and_one_more_cannot_be_read() {
        let totals = |count| (0..count).map(|number| (format!("{number:0>128}"), 1)).collect();
        let mut full: TotalsByName = totals(NAMES_MAX);
        let text = write(&full).unwrap();
        full.insert(String::new(), 0);
        assert_eq!(read(text.as_bytes()), Ok(full));
        assert!((text.len() as u64) < BYTES_MAX);
        let more = write(&totals(NAMES_MAX + 1)).unwrap();
        assert!(read(more.as_bytes()).unwrap_err().contains("more than 20,000 names"));
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            total in 0..u64::MAX / 2,
            names in prop::collection::btree_map("[a-zA-Z0-9._-]{1,128}", 0..u64::MAX / 64, 0..32),
        ) {
            let mut totals = names;
            totals.insert(String::new(), total);
            let text = write(&totals).unwrap();
            prop_assert!(text.starts_with(BEGIN));
            prop_assert_eq!(read(text.as_bytes()), Ok(totals));
        }

        /// One changed byte is refused, or changes nothing.
        #[test]
        fn what_was_damaged_is_refused(place in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let totals = TotalsByName::from([(String::new(), 1234), (String::from("ab"), 56)]);
            let mut text = write(&totals).unwrap().into_bytes();
            let place = place.index(text.len());
            text[place] = byte;
            if let Ok(found) = read(&text) {
                // A name may have become another; no number has.
                prop_assert!(found.values().eq(totals.values()));
            }
        }
    }
}
