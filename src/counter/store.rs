//! Where the counters' totals are kept: a redb file, a database that several counters share, or memory for trials.
//!
//! A commit is all or nothing, and is durable before it is reported.

mod disk;
#[cfg(not(simulation))]
mod etcd;
#[cfg(test)]
mod faults;
mod file;
mod finished;
mod health;
mod held;
#[cfg(not(simulation))]
mod postgres;
mod probe;
mod redb_store;
mod sharded;
mod transfer;
mod whole;

#[cfg(not(simulation))]
use std::time::Instant;
use std::{
    collections::BTreeMap,
    fmt, io,
    path::PathBuf,
    str::FromStr,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use bytes::Bytes;
use redb::StorageError;

use self::{disk::Disk, redb_store::RedbStore};
#[cfg(not(simulation))]
use self::{
    etcd::{ClusterUrl, Etcd},
    postgres::{DatabaseUrl, Postgres},
    sharded::{Retry, ShardedStore, Trouble},
};
pub use self::{
    health::Health,
    held::Restore,
    transfer::{read, read_marked, write, write_text},
    whole::{Found, Hold, Mark, QUIET, Seen, Whole, whole},
};
use crate::plural::grouped;

/// The most names in one store, besides the counter without a name.
pub const NAMES_MAX: u64 = 10_000;

/// The most listings of all totals that exist at a time. Each is kept until its slowest client has read it, and takes
/// at most 1.6 MB: that is the most names, each of the greatest length. So all take at most 6.4 MB, and twice that where
/// an import has brought more names.
pub const LISTINGS_MAX: usize = 4;

/// All totals by name; the counter without a name is `""`.
pub type TotalsByName = BTreeMap<String, u64>;

/// What a store has counted and is durable.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// The total of the counter without a name.
    pub total: u64,
    /// The sum of all others.
    pub named: u64,
}

impl Counted {
    /// The sums of these totals.
    pub fn of(totals: &TotalsByName) -> Self {
        let total = totals.get("").copied().unwrap_or(0);
        let sum = totals.values().fold(0, |sum: u64, total| sum.saturating_add(*total));
        Self { total, named: sum.saturating_sub(total) }
    }

    /// Notes that a total, which was `before`, is durable.
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

/// What a client asks of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Add to a counter; the one without a name is `""`.
    Add {
        /// The counter.
        name: String,
        /// How much, 1 to 1,000,000.
        by: u64,
    },
    /// Read a counter's total.
    Total {
        /// The counter.
        name: String,
    },
    /// Read all totals.
    All,
}

/// The result of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The counter's total, its addition included and durable.
    Total(u64),
    /// All totals as a JSON object. At most [`LISTINGS_MAX`] different ones exist.
    All(Bytes),
    /// The store has the most names that it may have; nothing was added.
    TooManyNames,
    /// Too much is under way, or held by slow clients; nothing was added.
    Busy,
    /// The store failed before it wrote; nothing was added.
    Failed,
    /// The store failed while it wrote; the addition may have been kept.
    Unknown,
    /// The store takes too long; the addition may be kept.
    TimedOut,
}

impl Outcome {
    /// Whether the store has failed.
    pub fn is_failure(&self) -> bool {
        matches!(self, Self::Failed | Self::Unknown)
    }
}

/// A store, as `--store` names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A redb file.
    Redb(PathBuf),
    /// Memory: the totals are lost when the process ends.
    Memory,
    /// A shard of a PostgreSQL database.
    #[cfg(not(simulation))]
    Postgres {
        /// The database.
        url: DatabaseUrl,
        /// The name of the shard, which no other running counter has.
        shard: String,
    },
    /// A shard of an etcd cluster.
    #[cfg(not(simulation))]
    Etcd {
        /// The cluster.
        url: ClusterUrl,
        /// The name of the shard, which no other running counter has.
        shard: String,
    },
}

impl Kind {
    /// Names the shard, where the store has some.
    #[cfg(not(simulation))]
    pub fn set_shard(&mut self, name: String) {
        match self {
            Self::Redb(_) | Self::Memory => {}
            Self::Postgres { shard, .. } | Self::Etcd { shard, .. } => *shard = name,
        }
    }

    /// Whether both are databases of one sort.
    pub fn is_like(&self, other: &Self) -> bool {
        self.is_shared() && std::mem::discriminant(self) == std::mem::discriminant(other)
    }

    /// Whether other counters can use it at the same time.
    pub fn is_shared(&self) -> bool {
        !matches!(self, Self::Redb(_) | Self::Memory)
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some(("redb", path)) if !path.is_empty() => Ok(Self::Redb(path.into())),
            #[cfg(not(simulation))]
            Some(("postgres" | "postgresql", rest)) if rest.starts_with("//") => {
                Ok(Self::Postgres { url: text.parse()?, shard: String::new() })
            }
            #[cfg(not(simulation))]
            Some(("etcd" | "etcds", rest)) if rest.starts_with("//") => {
                Ok(Self::Etcd { url: text.parse()?, shard: String::new() })
            }
            None if text == "memory" => Ok(Self::Memory),
            _ => Err(String::from(
                "it must be redb:PATH, postgres://USER@HOST/DATABASE, etcd://HOST/PREFIX or memory",
            )),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redb(path) => write!(f, "redb:{}", path.display()),
            Self::Memory => f.write_str("memory"),
            #[cfg(not(simulation))]
            Self::Postgres { url, .. } => url.fmt(f),
            #[cfg(not(simulation))]
            Self::Etcd { url, .. } => url.fmt(f),
        }
    }
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process uses it.
    #[error(
        "another process uses the counter's file {0}; stop it, or choose another place by \
         --data-dir or --store"
    )]
    InUse(PathBuf),
    /// Not a file of tallyring.
    #[error("{0} is not a counter's file of tallyring; it was left as it is")]
    Foreign(PathBuf),
    /// A file without content: its totals may be lost, or it was never a counter's.
    #[error(
        "the counter's file {0} is empty: its totals are lost, or it was made by something else. \
         Restore it from a backup; or remove it, or give --create, to begin from zero"
    )]
    Empty(PathBuf),
    /// There is no file, and none may be created.
    #[error(
        "{0} was moved or deleted; put it back, or a copy of it, or restart to begin from zero"
    )]
    Missing(PathBuf),
    /// A file of a later version.
    #[error("{0} was written by a later version of tallyring (format {1})")]
    Later(PathBuf, u64),
    /// Its content is inconsistent.
    #[error(
        "the counter's file {0} is damaged: {1}; it was left as it is: restore it from a backup, or \
         move it away to begin from zero"
    )]
    Damaged(PathBuf, String),
    /// The system refuses.
    #[error("cannot open the counter's file {0}: {1}")]
    Io(PathBuf, io::Error),
    /// A file that may not be replaced.
    #[error("{0} is there already; choose another name, or give --force to replace it")]
    Exists(PathBuf),
    /// A file that is not what would replace it.
    #[error("{0} is there already, and is no export of tallyring; choose another name")]
    NotOurs(PathBuf),
    /// A device, a pipe or a directory, which is not replaced.
    #[error("{0} is no regular file; it is left as it is")]
    Special(PathBuf),
    /// A file that tallyring has not made has the name of one that it makes.
    #[error(
        "{0} is in the way, which tallyring has not made; move it away, or choose another name"
    )]
    InTheWay(PathBuf),
    /// The file is too large for a counter's.
    #[error("{0} has {1} bytes, more than the file of a counter can have; it is left as it is")]
    TooLarge(PathBuf, u64),
    /// A file cannot be written or synced.
    #[error("cannot write {0}: {1}")]
    Write(PathBuf, io::Error),
    /// The backup is the file that is to be restored.
    #[error("{0} is the counter's file itself; give its backup")]
    Same(PathBuf),
    /// The old file cannot be kept under another name.
    #[error(
        "cannot keep {0} as {1}: {2}; nothing was replaced. Move it away, and restore once more"
    )]
    NotKept(PathBuf, PathBuf, io::Error),
    /// The directory cannot be created.
    #[error(
        "cannot make the directory {0} for the counter's file: {1}; choose another by --data-dir"
    )]
    Directory(PathBuf, io::Error),
    /// No file can be created in the directory.
    #[error(
        "cannot write to the directory {0}, where the counter's file is to be: {1}; choose another by --data-dir"
    )]
    NotWritable(PathBuf, io::Error),
    /// A database cannot be used.
    #[error("cannot use the store {store}: {why}")]
    Database {
        /// Without its password.
        store: String,
        /// What is wrong, and what to do.
        why: String,
        /// Whether it may pass by itself.
        passes: bool,
    },
    /// No counter may use the file.
    #[error("the counter's file {0} is not to be used: {why}", why = .1.refusal())]
    Marked(PathBuf, Mark),
    /// The directory cannot be synced, so no file is created in it.
    #[error(
        "cannot make the counter's file in {0}: {1}; the directory must be readable, or choose \
         another by --data-dir or --store"
    )]
    Unsynced(PathBuf, io::Error),
}

impl OpenError {
    /// Whether it may pass without anybody changing the settings.
    pub fn passes(&self) -> bool {
        matches!(self, Self::InUse(_) | Self::Database { passes: true, .. })
    }
}

/// Checks whether a store could be opened. Changes nothing that it holds, and does not disturb a process that uses it.
/// What endangers the totals there, for a person.
///
/// # Errors
/// When it could not; see also [`OpenError::passes`].
pub fn probe(kind: &Kind, create: bool) -> Result<Vec<String>, OpenError> {
    match kind {
        Kind::Redb(path) => probe::probe(path, create).map(|()| Vec::new()),
        Kind::Memory => Ok(Vec::new()),
        #[cfg(not(simulation))]
        Kind::Postgres { url, shard } => {
            let probed = Postgres::new(url, shard)
                .map_err(|error| Trouble::Refused(error.to_string()))
                .and_then(|postgres| postgres.probe(Instant::now() + PROBE_TIMEOUT));
            probed.map_err(|trouble| database_error(url, &trouble))
        }
        #[cfg(not(simulation))]
        Kind::Etcd { url, shard } => {
            let probed = Etcd::new(url, shard)
                .map_err(|error| Trouble::Refused(error.to_string()))
                .and_then(|mut etcd| etcd.probe(Instant::now() + PROBE_TIMEOUT));
            probed.map(|()| Vec::new()).map_err(|trouble| database_error(url, &trouble))
        }
    }
}

/// How long a database may take to show that it can be used.
#[cfg(not(simulation))]
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(not(simulation))]
fn database_error(url: &impl fmt::Display, trouble: &Trouble) -> OpenError {
    let passes = !matches!(trouble, Trouble::Refused(_));
    OpenError::Database { store: url.to_string(), why: trouble.to_string(), passes }
}

/// A store of totals.
pub trait Store: Send {
    /// Does the operations of `batch` in order and makes them durable; one outcome for each.
    fn commit(&mut self, batch: &[Operation]) -> Vec<Outcome>;

    /// What is durable.
    fn counted(&self) -> Counted;

    /// Shows those who share the database that this counter runs, and when to do so again. `None` where nobody has to
    /// know.
    fn beat(&mut self) -> Option<Duration> {
        None
    }

    /// While this is set, what has failed is not tried again: the counter ends.
    fn hurry(&self) -> Arc<AtomicBool> {
        Arc::default()
    }

    /// Whether it fails, also while it is in use.
    fn health(&self) -> Health {
        Health::default()
    }

    /// Whether another counter writes in place of this one, which counts nothing more.
    fn is_fenced(&self) -> bool {
        false
    }
}

/// Opens a store; with `create`, an empty file is replaced by a new one.
///
/// # Errors
/// When it cannot be opened. Its content is unchanged then.
pub fn open(kind: &Kind, create: bool) -> Result<Box<dyn Store>, OpenError> {
    match kind {
        Kind::Redb(path) => Ok(Box::new(RedbStore::open(Disk::default(), path, create)?)),
        Kind::Memory => Ok(Box::<MemoryStore>::default()),
        #[cfg(not(simulation))]
        Kind::Postgres { url, shard } => {
            let opened = Postgres::new(url, shard)
                .map_err(|error| Trouble::Refused(error.to_string()))
                .and_then(|postgres| ShardedStore::open(postgres, Retry::default()));
            Ok(Box::new(opened.map_err(|trouble| database_error(url, &trouble))?))
        }
        #[cfg(not(simulation))]
        Kind::Etcd { url, shard } => {
            let opened = Etcd::new(url, shard)
                .map_err(|error| Trouble::Refused(error.to_string()))
                .and_then(|etcd| ShardedStore::open(etcd, Retry::default()));
            Ok(Box::new(opened.map_err(|trouble| database_error(url, &trouble))?))
        }
    }
}

/// Totals by name, which a batch reads and changes.
trait Totals {
    fn total(&self, name: &str) -> Result<Option<u64>, StorageError>;
    fn set(&mut self, name: &str, total: u64) -> Result<(), StorageError>;
    fn names(&self) -> Result<u64, StorageError>;
    fn all(&self) -> Result<BTreeMap<String, u64>, StorageError>;
}

/// Makes listings of all totals, and bounds how many exist.
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
    /// All totals as JSON, or [`Outcome::Busy`] when there are too many listings.
    fn list(
        &self,
        all: impl FnOnce() -> Result<TotalsByName, StorageError>,
    ) -> Result<Outcome, StorageError> {
        // One reference is our own.
        if Arc::strong_count(&self.0) > LISTINGS_MAX {
            return Ok(Outcome::Busy);
        }
        // A map of numbers is always JSON.
        let json = serde_json::to_vec(&all()?).unwrap_or_default();
        let listing = Listing { json, _counted: Arc::clone(&self.0) };
        Ok(Outcome::All(Bytes::from_owner(listing)))
    }
}

/// Does the operations of a batch in order.
fn apply_all(
    totals: &mut impl Totals,
    batch: &[Operation],
    listings: &Listings,
) -> Result<Vec<Outcome>, StorageError> {
    // Made once and shared by all reads between two additions.
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
            // It does not overflow in practice.
            let total = total.unwrap_or(0).saturating_add(*by);
            totals.set(name, total)?;
            *listing = None;
            Ok(Outcome::Total(total))
        }
        Operation::Total { name } => Ok(Outcome::Total(totals.total(name)?.unwrap_or(0))),
        Operation::All => match listing {
            Some(listing) => Ok(listing.clone()),
            None => Ok(listing.insert(listings.list(|| totals.all())?).clone()),
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
