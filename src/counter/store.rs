//! Where the counters' totals are kept: a redb file, or memory for trials.
//!
//! A commit is all or nothing, and what it reports was durable before it was reported.

#[cfg(test)]
mod faults;
mod file;
mod redb_store;

use std::{collections::BTreeMap, fmt, io, path::PathBuf, str::FromStr};

use bytes::Bytes;
use redb::StorageError;

use self::{file::Disk, redb_store::RedbStore};

/// Names that one store may hold, beside the one without a name.
const NAMES_MAX: u64 = 10_000;

/// One thing to do in a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Add to a counter; the one without a name is `""`.
    Add {
        /// The counter.
        name: String,
        /// How much, 1 to 1,000,000.
        by: u64,
    },
    /// Tell a counter's total.
    Total {
        /// The counter.
        name: String,
    },
    /// Tell all totals.
    All,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The counter's total, its addition included and durable.
    Total(u64),
    /// All totals as a JSON object, the name without characters as `""`.
    All(Bytes),
    /// There are as many names as a store may hold; nothing was added.
    TooManyNames,
    /// The store failed before it wrote; nothing was added.
    Failed,
    /// The store failed while it wrote; the addition may have been kept.
    Unknown,
}

/// Which store, as `--store` names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A redb file.
    Redb(PathBuf),
    /// Memory: totals end with the process.
    Memory,
}

impl FromStr for Kind {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some(("redb", path)) if !path.is_empty() => Ok(Self::Redb(path.into())),
            None if text == "memory" => Ok(Self::Memory),
            _ => Err("it must be redb:PATH or memory"),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redb(path) => write!(f, "redb:{}", path.display()),
            Self::Memory => f.write_str("memory"),
        }
    }
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error(
        "another process uses the counter's file {0}; stop it, or choose another place by \
         --data-dir or --store"
    )]
    InUse(PathBuf),
    /// Not a file of tallyring's.
    #[error("{0} is not a counter's file of tallyring; it was left as it is")]
    Foreign(PathBuf),
    /// A file without content, which was a counter's once or was to become one.
    #[error(
        "the counter's file {0} is empty: its totals are lost, or it was made by something else. \
         Restore it from a backup; or remove it, or give --create, to begin from zero"
    )]
    Empty(PathBuf),
    /// No file, where none is to be made.
    #[error(
        "{0} was moved or deleted; put it back, or a copy of it, or restart to begin from zero"
    )]
    Missing(PathBuf),
    /// A file of a later version.
    #[error("{0} was written by a later version of tallyring (format {1})")]
    Later(PathBuf, u64),
    /// Its content contradicts itself.
    #[error(
        "the counter's file {0} is damaged: {1}; it was left as it is: restore it from a backup, or \
         move it away to begin from zero"
    )]
    Damaged(PathBuf, String),
    /// The system says no.
    #[error("cannot open the counter's file {0}: {1}")]
    Io(PathBuf, io::Error),
    /// The directory cannot be made.
    #[error(
        "cannot make the directory {0} for the counter's file: {1}; choose another by --data-dir"
    )]
    Directory(PathBuf, io::Error),
}

/// Counters that outlive what is done to them by one batch after another.
pub trait Store: Send {
    /// Does all of `batch` in its order and makes it durable; one outcome for each operation.
    fn commit(&mut self, batch: &[Operation]) -> Vec<Outcome>;
}

/// Opens a store; `create` has an empty file taken for none.
///
/// # Errors
/// When it cannot be opened as it is. Nothing that it holds was changed then.
pub fn open(kind: &Kind, create: bool) -> Result<Box<dyn Store>, OpenError> {
    match kind {
        Kind::Redb(path) => Ok(Box::new(RedbStore::open(Disk::default(), path, create)?)),
        Kind::Memory => Ok(Box::<MemoryStore>::default()),
    }
}

/// Totals by name: what a batch works on.
trait Totals {
    fn total(&self, name: &str) -> Result<Option<u64>, StorageError>;
    fn set(&mut self, name: &str, total: u64) -> Result<(), StorageError>;
    fn names(&self) -> Result<u64, StorageError>;
    fn all(&self) -> Result<BTreeMap<String, u64>, StorageError>;
}

/// Does a batch in its order.
fn apply_all(totals: &mut impl Totals, batch: &[Operation]) -> Result<Vec<Outcome>, StorageError> {
    // Told once and shared, however many ask between two additions.
    let mut all = None;
    batch.iter().map(|operation| apply(totals, operation, &mut all)).collect()
}

fn apply(
    totals: &mut impl Totals,
    operation: &Operation,
    all: &mut Option<Bytes>,
) -> Result<Outcome, StorageError> {
    match operation {
        Operation::Add { name, by } => {
            let total = totals.total(name)?;
            if total.is_none() && !name.is_empty() && totals.names()? >= NAMES_MAX {
                return Ok(Outcome::TooManyNames);
            }
            // At a million a nanosecond this would take centuries to reach.
            let total = total.unwrap_or(0).saturating_add(*by);
            totals.set(name, total)?;
            *all = None;
            Ok(Outcome::Total(total))
        }
        Operation::Total { name } => Ok(Outcome::Total(totals.total(name)?.unwrap_or(0))),
        Operation::All => {
            if all.is_none() {
                // A map of numbers is always JSON.
                *all = Some(serde_json::to_vec(&totals.all()?).unwrap_or_default().into());
            }
            Ok(Outcome::All(all.clone().unwrap_or_default()))
        }
    }
}

#[derive(Default)]
struct MemoryStore(BTreeMap<String, u64>);

impl Totals for BTreeMap<String, u64> {
    fn total(&self, name: &str) -> Result<Option<u64>, StorageError> {
        Ok(self.get(name).copied())
    }

    fn set(&mut self, name: &str, total: u64) -> Result<(), StorageError> {
        match self.get_mut(name) {
            Some(current) => *current = total,
            None => drop(self.insert(name.to_owned(), total)),
        }
        Ok(())
    }

    fn names(&self) -> Result<u64, StorageError> {
        Ok(self.len() as u64 - u64::from(self.contains_key("")))
    }

    fn all(&self) -> Result<BTreeMap<String, u64>, StorageError> {
        Ok(self.clone())
    }
}

impl Store for MemoryStore {
    fn commit(&mut self, batch: &[Operation]) -> Vec<Outcome> {
        // Memory does not fail.
        apply_all(&mut self.0, batch).unwrap_or_else(|_| vec![Outcome::Failed; batch.len()])
    }
}

#[cfg(test)]
mod tests;
