//! Totals in a redb file. What was reported as durable is never lost silently: after the file vanishes, is replaced or
//! fails, counting goes on only when it holds at least what was reported.
//!
//! ```text
//!            open, checked, all of it on disk
//!   closed ----------------------------------> open <---+ a commit
//!     ^                                        |  |     |
//!     +------------- an error -----------------+  +-----+
//!     +-- another file has its name, or it is truncated
//! ```
//!
//! While its name leads to nothing, the file stays open and nothing is counted.

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
};

use redb::{
    Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, StorageError,
    TableDefinition, TableError,
};

use super::{
    Counted, Health, Listings, Mark, OpenError, Operation, Outcome, Store, Totals, apply_all,
    disk::Disk,
    file::{CounterFile, Named},
};

const TOTALS: TableDefinition<'_, &str, u64> = TableDefinition::new("tallyring.totals");
/// The version of the format. It also tells our files from those of other programs that use redb.
const FORMAT: TableDefinition<'_, &str, u64> = TableDefinition::new("tallyring.format");
const FORMAT_VERSION: u64 = 1;
/// Why no counter may use the file, under `""`.
const MARK: TableDefinition<'_, &str, &str> = TableDefinition::new("tallyring.mark");

/// A redb file.
pub(super) struct RedbStore {
    disk: Disk,
    path: PathBuf,
    /// `None` after a failure: redb does not use a file again that it could not write to.
    file: Option<CounterFile>,
    /// What was found on disk or reported as durable. No total may be less.
    durable: BTreeMap<String, u64>,
    /// The sums of those.
    counted: Counted,
    health: Health,
    listings: Listings,
}

/// Why a batch was not committed.
struct NotCommitted(Outcome, String);

/// Nothing of the batch was written.
fn before(error: impl fmt::Display) -> NotCommitted {
    NotCommitted(Outcome::Failed, error.to_string())
}

/// Some of it may have been written.
fn after(error: impl fmt::Display) -> NotCommitted {
    NotCommitted(Outcome::Unknown, error.to_string())
}

impl RedbStore {
    /// Opens the file at `path`, or creates it. With `create`, an empty file is replaced by a new one.
    pub(super) fn open(disk: Disk, path: &Path, create: bool) -> Result<Self, OpenError> {
        let file = CounterFile::open_or_create(&disk, path, create)?;
        let durable = read_to_count(path, &file.database)?;
        let (path, file) = (path.to_owned(), Some(file));
        let (counted, health, listings) =
            (Counted::of(&durable), Health::default(), Listings::default());
        Ok(Self { disk, path, file, durable, counted, health, listings })
    }

    /// The file, after a check that its name leads to it and that it holds all that was reported.
    fn file(&mut self) -> Result<&CounterFile, NotCommitted> {
        if let Some(file) = self.file.take() {
            match file.named(&self.disk, &self.path).map_err(before)? {
                Named::Same => return Ok(self.file.insert(file)),
                Named::Nothing => {
                    self.file = Some(file);
                    return Err(before(OpenError::Missing(self.path.clone())));
                }
                Named::Another => drop(file),
                Named::Truncated => file.give_up(),
            }
        }
        let file = CounterFile::open(&self.disk, &self.path).map_err(before)?;
        let found = read_to_count(&self.path, &file.database).map_err(before)?;
        check_not_below(&self.path, &found, &self.durable).map_err(before)?;
        self.counted = Counted::of(&found);
        self.durable = found;
        Ok(self.file.insert(file))
    }

    fn try_commit(&mut self, batch: &[Operation]) -> Result<Vec<Outcome>, NotCommitted> {
        let transaction = self.file()?.database.begin_write().map_err(before)?;
        let outcomes = {
            let mut table = transaction.open_table(TOTALS).map_err(before)?;
            apply_all(&mut table, batch, &self.listings).map_err(before)?
        };
        if !batch.iter().any(|operation| matches!(operation, Operation::Add { .. })) {
            transaction.abort().map_err(before)?;
            return Ok(outcomes);
        }
        transaction.commit().map_err(after)?;
        // The commit is on disk, but if the name no longer leads to the file, it is lost.
        if let Some(file) = &self.file
            && file.named(&self.disk, &self.path).map_err(after)? != Named::Same
        {
            return Err(after("it vanished during a commit"));
        }
        self.remember(batch, &outcomes);
        Ok(outcomes)
    }

    fn remember(&mut self, batch: &[Operation], outcomes: &[Outcome]) {
        for (operation, outcome) in batch.iter().zip(outcomes) {
            if let (Operation::Add { name, .. }, Outcome::Total(total)) = (operation, outcome) {
                let before = match self.durable.get_mut(name) {
                    Some(durable) => std::mem::replace(durable, *total),
                    None => self.durable.insert(name.clone(), *total).unwrap_or(0),
                };
                self.counted.note(name, before, *total);
            }
        }
    }

    /// Logs why it fails.
    fn complain(&self, problem: &str) {
        if self.health.fails(problem) {
            let path = self.path.display();
            tracing::error!("nothing is counted, for the counter's file {path} fails: {problem}");
        }
    }
}

impl Store for RedbStore {
    fn commit(&mut self, batch: &[Operation]) -> Vec<Outcome> {
        match self.try_commit(batch) {
            Ok(outcomes) => {
                if self.health.works() {
                    tracing::info!("the counter's file {} works again", self.path.display());
                }
                outcomes
            }
            Err(NotCommitted(outcome, problem)) => {
                if let Some(file) = self.file.take() {
                    match file.named(&self.disk, &self.path) {
                        // Kept open with its lock: the totals may be only here.
                        Ok(Named::Nothing) => self.file = Some(file),
                        Ok(Named::Truncated) => file.give_up(),
                        _ => drop(file),
                    }
                }
                self.complain(&problem);
                vec![outcome; batch.len()]
            }
        }
    }

    fn counted(&self) -> Counted {
        self.counted
    }

    fn health(&self) -> Health {
        self.health.clone()
    }
}

impl Totals for redb::Table<'_, &'static str, u64> {
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
        all(self)
    }
}

fn all(
    table: &impl ReadableTable<&'static str, u64>,
) -> Result<BTreeMap<String, u64>, StorageError> {
    let rows = table.iter()?;
    rows.map(|row| row.map(|(name, total)| (name.value().to_owned(), total.value()))).collect()
}

/// Writes the format into a new file.
pub(super) fn mark(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(FORMAT)?.insert("version", FORMAT_VERSION)?;
    transaction.open_table(TOTALS)?;
    transaction.commit()?;
    Ok(())
}

/// Writes totals into a new file, and why no counter may use it.
pub(super) fn fill(
    database: &Database,
    totals: &BTreeMap<String, u64>,
    mark: Option<&Mark>,
) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    if let Some(mark) = mark {
        transaction.open_table(MARK)?.insert("", &*mark.to_string())?;
    }
    {
        let mut table = transaction.open_table(TOTALS)?;
        for (name, total) in totals {
            table.insert(name.as_str(), total)?;
        }
    }
    transaction.commit()?;
    Ok(())
}

/// All totals of a file that a counter may use.
fn read_to_count(path: &Path, database: &Database) -> Result<BTreeMap<String, u64>, OpenError> {
    let totals = read_totals(path, database)?;
    match read_mark(path, database)? {
        None => Ok(totals),
        Some(mark) => Err(OpenError::Marked(path.to_owned(), mark)),
    }
}

/// Why no counter may use a file.
pub(super) fn read_mark(path: &Path, database: &Database) -> Result<Option<Mark>, OpenError> {
    let damaged = |error: &dyn fmt::Display| OpenError::Damaged(path.to_owned(), error.to_string());
    let transaction = database.begin_read().map_err(|error| damaged(&error))?;
    let table = match transaction.open_table(MARK) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        table => table.map_err(|error| damaged(&error))?,
    };
    let mark = table.get("").map_err(|error| damaged(&error))?;
    let mark = mark.map(|mark| mark.value().parse()).transpose();
    mark.map_err(|problem: &str| damaged(&problem))
}

/// All totals of a file, after a check that it is one of ours.
pub(super) fn read_totals(
    path: &Path,
    database: &Database,
) -> Result<BTreeMap<String, u64>, OpenError> {
    let damaged = |error: &dyn fmt::Display| OpenError::Damaged(path.to_owned(), error.to_string());
    let failed = |error: StorageError| match error {
        StorageError::Io(error) => OpenError::Io(path.to_owned(), error),
        error => damaged(&error),
    };
    let transaction = database.begin_read().map_err(|error| damaged(&error))?;
    let format = match transaction.open_table(FORMAT) {
        Ok(table) => table.get("version").map_err(failed)?.map(|version| version.value()),
        Err(TableError::TableDoesNotExist(_) | TableError::TableTypeMismatch { .. }) => None,
        Err(TableError::Storage(error)) => return Err(failed(error)),
        Err(error) => return Err(damaged(&error)),
    };
    match format {
        Some(FORMAT_VERSION) => {}
        Some(later) => return Err(OpenError::Later(path.to_owned(), later)),
        None if transaction.list_tables().map_err(failed)?.next().is_some() => {
            return Err(OpenError::Foreign(path.to_owned()));
        }
        None => {
            // Created by an earlier version that was killed before it wrote the format: nothing was counted.
            drop(transaction);
            mark(database)
                .map_err(|error| OpenError::Io(path.to_owned(), io::Error::other(error)))?;
            return Ok(BTreeMap::new());
        }
    }
    match transaction.open_table(TOTALS) {
        Ok(table) => all(&table).map_err(failed),
        Err(TableError::Storage(error)) => Err(failed(error)),
        Err(error) => Err(damaged(&error)),
    }
}

/// Checks that no total is less than the durable one.
fn check_not_below(
    path: &Path,
    found: &BTreeMap<String, u64>,
    durable: &BTreeMap<String, u64>,
) -> Result<(), String> {
    let below = durable.iter().find_map(|(name, total)| {
        let found = found.get(name).copied().unwrap_or(0);
        (found < *total).then_some((name, found, total))
    });
    match below {
        None => Ok(()),
        Some((name, found, total)) => Err(format!(
            "the counter's file {} holds a total of {found} under the name {name:?}, where {total} \
             was on disk: it is older, or damaged. Put one in its place that holds as much, or \
             restart to go on from this one",
            path.display()
        )),
    }
}
