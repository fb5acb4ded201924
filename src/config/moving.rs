//! The arguments of `counter export`, `import`, `migrate` and `reopen`: which store, and which file.

use std::{path::PathBuf, str::FromStr};

use clap::{Args, Subcommand};

use super::{data_dir::absolute, totals::FileArguments};
use crate::counter::store;

/// What can be done with the totals of counters that do not run.
#[derive(Debug, Subcommand)]
pub enum MoveCommand {
    /// Write all totals of a store as JSON
    ///
    /// A database may be in use: what is written is what was in it at one moment. The counter of a file must be
    /// stopped; `tallyring backup` takes the totals of one that runs.
    Export(ExportArguments),
    /// Replace all totals of a store by those that `export` has written
    ///
    /// The counters of the store must be stopped. One that has totals already is left as it is, without --force.
    Import(ImportArguments),
    /// Move all totals from one store to another, and verify each of them and their sum
    ///
    /// The counters of both must be stopped. FROM keeps its totals, and counters refuse it from then on. A migration
    /// that was cut can be done once more: nothing counts twice.
    Migrate(MigrateArguments),
    /// Let counters use a store again whose totals were moved
    Reopen(ReopenArguments),
}

/// The arguments of `counter export`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct ExportArguments {
    /// File to make; - is standard output
    #[arg(value_name = "FILE", default_value = "-")]
    pub to: PathBuf,
    /// Replace the file if it is there, and is another export
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub store: FileArguments,
}

/// The arguments of `counter import`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct ImportArguments {
    /// File that `export` has made; - is standard input
    #[arg(value_name = "FILE")]
    pub from: PathBuf,
    /// Replace the totals of a store that has some, and take it over from counters that run
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub store: FileArguments,
}

/// The arguments of `counter migrate`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct MigrateArguments {
    /// Store that has the totals: a data directory, or what --store takes
    #[arg(value_name = "FROM")]
    pub from: StorePlace,
    /// Store that gets them
    #[arg(value_name = "TO")]
    pub to: StorePlace,
    /// Replace the totals of TO if it has some, and take both stores over from counters that run
    #[arg(long)]
    pub force: bool,
}

/// The arguments of `counter reopen`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct ReopenArguments {
    /// The store: a data directory, or what --store takes
    #[arg(value_name = "STORE")]
    pub store: StorePlace,
}

/// A store, or the directory of a counter's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorePlace(pub store::Kind);

/// What stands before the colon where a store is given.
const SCHEMES: &[&str] = &["redb", "postgres", "postgresql", "etcd", "etcds", "memory"];

impl FromStr for StorePlace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // A URL without its slashes is a mistake, and no directory.
        let has_scheme = text.split_once(':').is_some_and(|(scheme, _)| {
            SCHEMES.iter().any(|known| known.eq_ignore_ascii_case(scheme))
        });
        if text == "memory" || has_scheme || text.contains("://") {
            // It may be kept in another store.
            return text.parse().map(|kind| match kind {
                store::Kind::Redb(path) => Self(store::Kind::Redb(absolute(path))),
                kind => Self(kind),
            });
        }
        let directory = absolute(text.into());
        if text.is_empty() || directory.is_file() {
            return Err(String::from(
                "it must be a data directory, redb:PATH for a file, or the URL of a database",
            ));
        }
        Ok(Self(store::Kind::Redb(directory.join("counter.redb"))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_directory_or_a_store() {
        let place =
            |text: &str| text.parse::<StorePlace>().map(|StorePlace(kind)| kind.to_string());
        assert_eq!(place("/var/lib/tallyring").unwrap(), "redb:/var/lib/tallyring/counter.redb");
        assert!(place("data").unwrap().ends_with("/data/counter.redb"));
        assert!(place("redb:a.redb").unwrap().ends_with("/a.redb"));
        assert!(place("redb:a.redb").unwrap().starts_with("redb:/"));
        assert_eq!(place("etcd://a/b").unwrap(), "etcd://a:2379/b");
        assert_eq!(place("postgres://me@a/b").unwrap(), "postgres://me@a/b");
        for wrong in [
            "",
            "/proc/version",
            "mysql://a/b",
            "etcd://a b/c",
            "etcd:a/b",
            "etcds:/a/b",
            "postgres:/me@a/b",
            "PostgreSQL:a",
            "redb:",
            "memory:",
        ] {
            assert!(place(wrong).unwrap_err().starts_with("it must be"), "{wrong}");
        }
    }
}
