//! Where the counters' totals are kept: a redb file, or memory for trials.
//!
//! A commit is all or nothing, and what it reports was durable before it was reported.

mod disk;
#[cfg(test)]
mod faults;
mod file;
mod probe;
mod redb_store;
mod transfer;

use std::{collections::BTreeMap, fmt, io, path::PathBuf, str::FromStr, sync::Arc};

use bytes::Bytes;
use redb::StorageError;

pub use self::transfer::{Restore, read, write};
use self::{disk::Disk, redb_store::RedbStore};
use crate::plural::grouped;

/// Names that one store may hold, beside the one without a name.
const NAMES_MAX: u64 = 10_000;

/// Listings of all totals that may exist at a time. Each is held until its slowest client has read it; it
/// takes at most 1.6 MB, with as many names as there may be, each as long as it may be. So all take 6.4 MB.
pub const LISTINGS_MAX: usize = 4;

/// All totals by name; the one without a name is `""`.
pub type TotalsByName = BTreeMap<String, u64>;

/// What a store has counted, as far as it is durable.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// Without a name.
    pub total: u64,
    /// Under all names.
    pub named: u64,
}

impl Counted {
    /// What totals add up to.
    pub fn of(totals: &TotalsByName) -> Self {
        let total = totals.get("").copied().unwrap_or(0);
        let sum = totals.values().fold(0, |sum: u64, total| sum.saturating_add(*total));
        Self { total, named: sum.saturating_sub(total) }
    }

    /// A total, which was `before`, has become durable.
    fn note(&mut self, name: &str, before: u64, total: u64) {
        match name {
            "" => self.total = total,
            _ => self.named = self.named.saturating_add(total.saturating_sub(before)),
        }
    }
}

/// For a person: `1,234 counted`.
impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} counted", grouped(self.total))?;
        match self.named {
            0 => Ok(()),
            named => write!(f, ", and {} under names,", grouped(named)),
        }
    }
}

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
    /// All totals as a JSON object, the name without characters as `""`. At most
    /// [`LISTINGS_MAX`] different ones exist.
    All(Bytes),
    /// There are as many names as a store may hold; nothing was added.
    TooManyNames,
    /// Too much is under way or kept by slow clients; nothing was added.
    Busy,
    /// The store failed before it wrote; nothing was added.
    Failed,
    /// The store failed while it wrote; the addition may have been kept.
    Unknown,
    /// The store takes too long; the addition may be kept.
    TimedOut,
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
    /// A file that is not to be replaced.
    #[error("{0} is there already; choose another name, or give --force to replace it")]
    Exists(PathBuf),
    /// A device, a pipe or a directory where a file is to be replaced.
    #[error("{0} is no regular file; it is left as it is")]
    Special(PathBuf),
    /// A file that tallyring has not made, where it makes one.
    #[error(
        "{0} is in the way, which tallyring has not made; move it away, or choose another name"
    )]
    InTheWay(PathBuf),
    /// The file is larger than a counter's file can be.
    #[error("{0} has {1} bytes, more than the file of a counter can have; it is left as it is")]
    TooLarge(PathBuf, u64),
    /// A file cannot be made, or not brought to disk.
    #[error("cannot write {0}: {1}")]
    Write(PathBuf, io::Error),
    /// A file is to be restored from itself.
    #[error("{0} is the counter's file itself; give its backup")]
    Same(PathBuf),
    /// The file that is replaced cannot be kept.
    #[error(
        "cannot keep {0} as {1}: {2}; nothing was replaced. Move it away, and restore once more"
    )]
    NotKept(PathBuf, PathBuf, io::Error),
    /// The directory cannot be made.
    #[error(
        "cannot make the directory {0} for the counter's file: {1}; choose another by --data-dir"
    )]
    Directory(PathBuf, io::Error),
    /// Nothing can be made in the directory.
    #[error(
        "cannot write to the directory {0}, where the counter's file is to be: {1}; choose another by --data-dir"
    )]
    NotWritable(PathBuf, io::Error),
    /// The directory cannot be synced, so that no file is made in it.
    #[error(
        "cannot make the counter's file in {0}: {1}; the directory must be readable, or choose \
         another by --data-dir or --store"
    )]
    Unsynced(PathBuf, io::Error),
}

/// Looks whether a store could be opened, without a change to what it holds and beside a process that may have it.
///
/// # Errors
/// When it could not; [`OpenError::InUse`] says no more than that it could not now.
pub fn probe(kind: &Kind, create: bool) -> Result<(), OpenError> {
    match kind {
        Kind::Redb(path) => probe::probe(path, create),
        Kind::Memory => Ok(()),
    }
}

/// Counters that outlive what is done to them by one batch after another.
pub trait Store: Send {
    /// Does all of `batch` in its order and makes it durable; one outcome for each operation.
    fn commit(&mut self, batch: &[Operation]) -> Vec<Outcome>;

    /// What is durable.
    fn counted(&self) -> Counted;
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

/// Makes listings of all totals, as many as may exist.
#[derive(Debug, Default)]
struct Listings(Arc<()>);

/// A listing, which counts for as long as it exists.
struct Listing {
    json: Vec<u8>,
    _counted: Arc<()>,
}

impl AsRef<[u8]> for Listing {
    fn as_ref(&self) -> &[u8] {
        &self.json
    }
}

impl Listings {
    /// All totals as JSON, or that there are too many listings already.
    fn list(&self, totals: &impl Totals) -> Result<Outcome, StorageError> {
        // One is our own.
        if Arc::strong_count(&self.0) > LISTINGS_MAX {
            return Ok(Outcome::Busy);
        }
        // A map of numbers is always JSON.
        let json = serde_json::to_vec(&totals.all()?).unwrap_or_default();
        let listing = Listing { json, _counted: Arc::clone(&self.0) };
        Ok(Outcome::All(Bytes::from_owner(listing)))
    }
}

/// Does a batch in its order.
fn apply_all(
    totals: &mut impl Totals,
    batch: &[Operation],
    listings: &Listings,
) -> Result<Vec<Outcome>, StorageError> {
    // Made once and shared, however many ask between two additions.
    let mut listing = None;
    batch.iter().map(|operation| apply(totals, operation, listings, &mut listing)).collect()
}

fn apply(
    totals: &mut impl Totals,
    operation: &Operation,
    listings: &Listings,
    listing: &mut Option<Outcome>,
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
            *listing = None;
            Ok(Outcome::Total(total))
        }
        Operation::Total { name } => Ok(Outcome::Total(totals.total(name)?.unwrap_or(0))),
        Operation::All => match listing {
            Some(listing) => Ok(listing.clone()),
            None => Ok(listing.insert(listings.list(totals)?).clone()),
        },
    }
}

#[derive(Default)]
struct MemoryStore {
    totals: BTreeMap<String, u64>,
    counted: Counted,
    listings: Listings,
}

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
        let outcomes = apply_all(&mut self.totals, batch, &self.listings);
        let outcomes = outcomes.unwrap_or_else(|_| vec![Outcome::Failed; batch.len()]);
        for (operation, outcome) in batch.iter().zip(&outcomes) {
            if let (Operation::Add { name, by }, Outcome::Total(total)) = (operation, outcome) {
                self.counted.note(name, total - by, *total);
            }
        }
        outcomes
    }

    fn counted(&self) -> Counted {
        self.counted
    }
}

#[cfg(test)]
mod tests;
