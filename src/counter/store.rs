//! Where the counters' totals are kept: a redb file, or memory for trials.
//!
//! A commit is all or nothing, and what it reports was durable before it was reported.

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use bytes::Bytes;
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, ReadableTableMetadata, StorageError,
    TableDefinition, TableError,
};

/// Names that one store may hold, beside the one without a name.
const NAMES_MAX: u64 = 10_000;

const TOTALS: TableDefinition<'_, &str, u64> = TableDefinition::new("tallyring.totals");
/// What the file is, so that another program's redb file is told apart.
const FORMAT: TableDefinition<'_, &str, u64> = TableDefinition::new("tallyring.format");
const FORMAT_VERSION: u64 = 1;

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

/// Opens a store.
///
/// # Errors
/// When it cannot be opened as it is. Nothing of it was changed then.
pub fn open(kind: &Kind) -> Result<Box<dyn Store>, OpenError> {
    match kind {
        Kind::Redb(path) => Ok(Box::new(RedbStore::open(path)?)),
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

/// A redb file, opened anew after it failed: redb does not trust a file again that it could not
/// write to, and repairs it when it is opened.
struct RedbStore {
    path: PathBuf,
    database: Option<Database>,
}

impl<'txn> Totals for redb::Table<'txn, &'static str, u64> {
    fn total(&self, name: &str) -> Result<Option<u64>, StorageError> {
        Ok(self.get(name)?.map(|total| total.value()))
    }

    fn set(&mut self, name: &str, total: u64) -> Result<(), StorageError> {
        self.insert(name, total).map(drop)
    }

    fn names(&self) -> Result<u64, StorageError> {
        Ok(self.len()? - u64::from(self.get("")?.is_some()))
    }

    fn all(&self) -> Result<BTreeMap<String, u64>, StorageError> {
        let rows = self
            .iter()?
            .map(|row| row.map(|(name, total)| (name.value().to_owned(), total.value())));
        rows.collect()
    }
}

impl RedbStore {
    fn open(path: &Path) -> Result<Self, OpenError> {
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(directory) = directory {
            std::fs::create_dir_all(directory)
                .map_err(|error| OpenError::Directory(directory.to_owned(), error))?;
        }
        let database = open_database(path)?;
        Ok(Self { path: path.to_owned(), database: Some(database) })
    }

    /// The outcomes, or at which point the store failed.
    fn try_commit(&mut self, batch: &[Operation]) -> Result<Vec<Outcome>, (Outcome, String)> {
        let before = |error: &dyn fmt::Display| (Outcome::Failed, error.to_string());
        let database = match &self.database {
            Some(database) => database,
            None => {
                let database = open_database(&self.path).map_err(|error| before(&error))?;
                tracing::info!("the counter's file {} is open again", self.path.display());
                self.database.insert(database)
            }
        };
        let transaction = database.begin_write().map_err(|error| before(&error))?;
        let outcomes = {
            let mut table = transaction.open_table(TOTALS).map_err(|error| before(&error))?;
            apply_all(&mut table, batch).map_err(|error| before(&error))?
        };
        let changes = batch.iter().any(|operation| matches!(operation, Operation::Add { .. }));
        if changes {
            transaction.commit().map_err(|error| (Outcome::Unknown, error.to_string()))?;
        } else {
            transaction.abort().map_err(|error| before(&error))?;
        }
        Ok(outcomes)
    }
}

impl Store for RedbStore {
    fn commit(&mut self, batch: &[Operation]) -> Vec<Outcome> {
        self.try_commit(batch).unwrap_or_else(|(outcome, error)| {
            tracing::error!("the counter's file {} failed: {error}", self.path.display());
            self.database = None;
            vec![outcome; batch.len()]
        })
    }
}

/// Opens a file of tallyring's, or makes it where there is none.
fn open_database(path: &Path) -> Result<Database, OpenError> {
    let is_new = std::fs::metadata(path).map_or(true, |metadata| metadata.len() == 0);
    if is_new {
        let database = Database::create(path).map_err(|error| open_error(path, error))?;
        mark(&database).map_err(|error| match error {
            redb::Error::Io(error) => OpenError::Io(path.to_owned(), error),
            error => OpenError::Io(path.to_owned(), io::Error::other(error)),
        })?;
        return Ok(database);
    }
    let database = Database::open(path).map_err(|error| open_error(path, error))?;
    let damaged = |error: &dyn fmt::Display| OpenError::Damaged(path.to_owned(), error.to_string());
    let transaction = database.begin_read().map_err(|error| damaged(&error))?;
    let format = match transaction.open_table(FORMAT) {
        Ok(table) => table.get("version").map_err(|error| damaged(&error))?.map(|v| v.value()),
        Err(TableError::TableDoesNotExist(_) | TableError::TableTypeMismatch { .. }) => None,
        Err(error) => return Err(damaged(&error)),
    };
    match format {
        Some(FORMAT_VERSION) => Ok(database),
        Some(later) => Err(OpenError::Later(path.to_owned(), later)),
        None => {
            if transaction.list_tables().map_err(|error| damaged(&error))?.next().is_some() {
                return Err(OpenError::Foreign(path.to_owned()));
            }
            // Made, and killed before it was marked.
            drop(transaction);
            mark(&database).map_err(|error| damaged(&error))?;
            Ok(database)
        }
    }
}

fn mark(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(FORMAT)?.insert("version", FORMAT_VERSION)?;
    transaction.open_table(TOTALS)?;
    transaction.commit()?;
    Ok(())
}

fn open_error(path: &Path, error: DatabaseError) -> OpenError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::InUse(path),
        // What redb says of a file that does not begin like one of its own.
        DatabaseError::Storage(StorageError::Io(error))
            if error.kind() == io::ErrorKind::InvalidData =>
        {
            OpenError::Foreign(path)
        }
        DatabaseError::Storage(StorageError::Io(error)) => OpenError::Io(path, error),
        DatabaseError::Storage(StorageError::Corrupted(reason)) => OpenError::Damaged(path, reason),
        error => OpenError::Damaged(path, error.to_string()),
    }
}

#[cfg(test)]
mod tests;
