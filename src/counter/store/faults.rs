//! System calls that fail, and what a disk holds after a power failure at any moment.

use std::{
    collections::BTreeMap,
    fs, io, mem,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use rustix::io::Errno;

use super::{
    OpenError, Operation, Outcome, Store,
    disk::{Call, Disk},
    redb_store::RedbStore,
};

/// Counts the calls, makes some of them fail, and records what is done to the counter's file.
#[derive(Debug, Default)]
pub(super) struct Faults(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    calls: usize,
    /// The first call to fail, how many fail, and the error.
    plan: Option<(usize, usize, Errno)>,
    /// A call that always fails, and its error.
    missing: Option<(Call<'static>, Errno)>,
    failed: usize,
    journal: Vec<Entry>,
}

/// What was done to the file.
#[derive(Debug, Clone)]
enum Entry {
    Write(u64, Vec<u8>),
    SetLength(u64),
    Synced,
    /// The sync has failed. The kernel marks its pages as clean all the same and never writes them again.
    NotSynced,
    Renamed,
    /// Additions that may be on disk from now on.
    Begun(u64),
    /// Additions that must be on disk from now on.
    Told(u64),
}

impl Faults {
    pub(super) fn before(&self, call: Call<'_>) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        let number = state.calls;
        state.calls += 1;
        if let Some((missing, error)) = state.missing
            && call == missing
        {
            return Err(error.into());
        }
        let fault = state
            .plan
            .filter(|(first, count, _)| (*first..first.saturating_add(*count)).contains(&number));
        if let Some((_, _, error)) = fault {
            state.failed += 1;
            if call == Call::Sync {
                state.journal.push(Entry::NotSynced);
            }
            return Err(error.into());
        }
        let entry = match call {
            Call::Write(offset, bytes) => Entry::Write(offset, bytes.to_vec()),
            Call::SetLength(length) => Entry::SetLength(length),
            Call::Sync => Entry::Synced,
            Call::Rename => Entry::Renamed,
            _ => return Ok(()),
        };
        state.journal.push(entry);
        Ok(())
    }

    fn note(&self, entry: Entry) {
        self.0.lock().unwrap().journal.push(entry);
    }

    /// Makes `count` calls fail from now on, after `wait` others.
    pub(super) fn fail(&self, wait: usize, count: usize, error: Errno) {
        let mut state = self.0.lock().unwrap();
        state.plan = Some((state.calls + wait, count, error));
    }

    /// On a disk without this call.
    fn without(call: Call<'static>, error: Errno) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { missing: Some((call, error)), ..State::default() })))
    }

    fn has_written(&self) -> bool {
        let is_write = |entry: &Entry| matches!(entry, Entry::Write(..) | Entry::SetLength(_));
        self.0.lock().unwrap().journal.iter().any(is_write)
    }

    pub(super) fn end(&self) -> usize {
        let mut state = self.0.lock().unwrap();
        state.plan = None;
        mem::take(&mut state.failed)
    }
}

/// A store on a disk with faults, and what its totals must be.
struct Trial {
    faults: Arc<Faults>,
    path: PathBuf,
    store: Option<RedbStore>,
    /// Additions that were reported as durable, by name.
    told: BTreeMap<String, u64>,
    /// The same, with those that may be durable.
    possible: BTreeMap<String, u64>,
    batches: usize,
}

const NAMES: [&str; 3] = ["", "a", "b"];

impl Trial {
    fn new(directory: &Path) -> Self {
        Self {
            faults: Arc::default(),
            path: directory.join("made/counter.redb"),
            store: None,
            told: BTreeMap::new(),
            possible: BTreeMap::new(),
            batches: 0,
        }
    }

    /// Opens the store as a start does; false when that fails.
    fn start(&mut self) -> bool {
        let disk = Disk { faults: Some(Arc::clone(&self.faults)) };
        // The store before must give up its lock first.
        self.store = None;
        self.store = RedbStore::open(disk, &self.path, false).ok();
        self.store.is_some()
    }

    /// Commits a batch; whether it was counted.
    fn commit(&mut self) -> bool {
        let Some(store) = &mut self.store else { return false };
        self.batches += 1;
        // A new name makes the file grow.
        let own = format!("{:0>100}", self.batches);
        let names = NAMES.iter().map(|name| (*name).to_owned()).chain([own]);
        let batch: Vec<_> = names.map(|name| Operation::Add { name, by: 1 }).collect();
        self.faults.note(Entry::Begun(1));
        let outcomes = store.commit(&batch);
        for (operation, outcome) in batch.iter().zip(&outcomes) {
            let Operation::Add { name, by } = operation else { unreachable!() };
            let told = self.told.entry(name.clone()).or_default();
            let possible = self.possible.entry(name.clone()).or_default();
            match outcome {
                Outcome::Total(total) => {
                    *told += by;
                    *possible += by;
                    assert!((*told..=*possible).contains(total), "{told} <= {total} <= {possible}");
                    // From now on the total is known.
                    (*told, *possible) = (*total, *total);
                }
                Outcome::Unknown => *possible += by,
                Outcome::Failed => {}
                other => panic!("{other:?}"),
            }
        }
        let counted = matches!(outcomes[0], Outcome::Total(_));
        if counted {
            self.faults.note(Entry::Told(self.told[""]));
        }
        counted
    }

    /// Checks that all totals are between what was reported and what is possible.
    fn check(&mut self) {
        let names: Vec<_> = self.told.keys().cloned().collect();
        let batch: Vec<_> =
            names.iter().map(|name| Operation::Total { name: name.clone() }).collect();
        let outcomes = self.store.as_mut().unwrap().commit(&batch);
        for (name, outcome) in names.iter().zip(outcomes) {
            let Outcome::Total(total) = outcome else { panic!("{name:?}: {outcome:?}") };
            let (told, possible) = (self.told[name], self.possible[name]);
            assert!(
                (told..=possible).contains(&total),
                "{name:?}: {told} <= {total} <= {possible}"
            );
        }
    }

    /// A start, commits, and another start.
    fn run(&mut self) {
        self.start();
        (0..3).for_each(|_| _ = self.commit());
        self.start();
        (0..2).for_each(|_| _ = self.commit());
    }
}

/// Makes `count` calls fail from call `number` on. False when there is no such call.
#[track_caller]
fn check_fault(number: usize, count: usize) -> bool {
    let directory = tempfile::tempdir().unwrap();
    let mut trial = Trial::new(directory.path());
    let error = [Errno::NOSPC, Errno::IO, Errno::ROFS][(number + count) % 3];
    trial.faults.fail(number, count, error);
    trial.run();
    let failed = trial.faults.end();
    // It recovers by itself after the fault.
    if trial.store.is_some() {
        assert!(trial.commit(), "call {number} failed {count} times: it does not recover");
        trial.check();
    }
    // And a start does not need --create.
    assert!(trial.start(), "call {number} failed {count} times: it does not start");
    trial.check();
    assert!(trial.commit());
    failed > 0
}

#[test]
fn each_call_to_the_system_may_fail_and_nothing_is_lost_or_counted_twice() {
    for count in [1, 7] {
        let calls = (0..).take_while(|&number| check_fault(number, count)).count();
        assert!(calls > 50, "{calls} calls");
    }
}

/// What a disk may hold after a power failure: what was synced, and any part of the rest.
#[derive(Default, Clone)]
struct Image {
    bytes: Vec<u8>,
    renamed: bool,
    /// Additions that must be there, and those that may be there.
    told: u64,
    begun: u64,
}

impl Image {
    fn apply(&mut self, entry: &Entry) {
        match entry {
            Entry::Write(offset, bytes) => {
                let offset = usize::try_from(*offset).unwrap();
                let end = offset + bytes.len();
                self.bytes.resize(self.bytes.len().max(end), 0);
                self.bytes[offset..end].copy_from_slice(bytes);
            }
            Entry::SetLength(length) => self.bytes.resize(usize::try_from(*length).unwrap(), 0),
            Entry::Renamed => self.renamed = true,
            Entry::Told(total) => self.told = *total,
            Entry::Begun(more) => self.begun += more,
            Entry::Synced | Entry::NotSynced => {}
        }
    }

    /// Checks that a start on this disk finds all that was reported.
    #[track_caller]
    fn check(&self, what: &str) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("counter.redb");
        let name = if self.renamed { "counter.redb" } else { "counter.redb.unfinished" };
        fs::write(directory.path().join(name), &self.bytes).unwrap();
        let opened = RedbStore::open(Disk::default(), &path, false);
        let mut store = opened.unwrap_or_else(|error| panic!("{what}: {error}"));
        let name = String::new();
        let outcomes = store.commit(&[Operation::Total { name }]);
        let [Outcome::Total(total)] = outcomes[..] else { panic!("{what}: {outcomes:?}") };
        let (told, begun) = (self.told, self.begun);
        assert!((told..=begun).contains(&total), "{what}: {told} <= {total} <= {begun}");
    }
}

/// Whether a write that was not synced reaches the disk, by its index among those, and their number.
type Keeps = fn(usize, usize) -> bool;

/// Which writes that were not synced reach the disk.
const KEPT: [(&str, Keeps); 5] = [
    ("none", |_, _| false),
    ("all", |_, _| true),
    ("the last", |index, count| index + 1 == count),
    ("all but the last", |index, count| index + 1 < count),
    ("every second", |index, _| index % 2 == 0),
];

/// Lets the power fail after each entry of a journal from entry `from` on.
#[track_caller]
fn check_power_failures(journal: &[Entry], from: usize, patterns: &[(&str, Keeps)]) {
    let mut disk = Image::default();
    let mut pending: Vec<&Entry> = Vec::new();
    for (number, entry) in journal.iter().enumerate() {
        match entry {
            Entry::Write(..) | Entry::SetLength(_) => pending.push(entry),
            Entry::Synced => pending.drain(..).for_each(|entry| disk.apply(entry)),
            Entry::NotSynced => pending.clear(),
            other => disk.apply(other),
        }
        for (kept, keeps) in patterns {
            if number < from || (pending.is_empty() && *kept != "none") {
                continue;
            }
            let mut image = disk.clone();
            for (index, entry) in pending.iter().enumerate() {
                if keeps(index, pending.len()) {
                    image.apply(entry);
                }
            }
            image.check(&format!("entry {number}, {kept} of {} kept", pending.len()));
        }
    }
}

#[test]
fn the_power_may_fail_at_any_moment() {
    let directory = tempfile::tempdir().unwrap();
    let mut trial = Trial::new(directory.path());
    trial.run();
    check_power_failures(&trial.faults.0.lock().unwrap().journal, 0, &KEPT);
}

/// Makes call `number` after the first commit fail, and if it is a sync, lets the power fail later. False when there is
/// no such call.
#[track_caller]
fn check_failed_sync(number: usize) -> bool {
    let directory = tempfile::tempdir().unwrap();
    let mut trial = Trial::new(directory.path());
    assert!(trial.start() && trial.commit());
    trial.faults.fail(number, 1, Errno::IO);
    (0..2).for_each(|_| _ = trial.commit());
    trial.start();
    let failed = trial.faults.end() > 0;
    assert!(trial.start() && trial.commit() && trial.commit());
    let journal = &trial.faults.0.lock().unwrap().journal;
    if let Some(place) = journal.iter().position(|entry| matches!(entry, Entry::NotSynced)) {
        check_power_failures(journal, place, &KEPT[..2]);
    }
    failed
}

#[test]
fn the_power_may_fail_after_a_sync_has_failed() {
    let calls = (0..).take_while(|&number| check_failed_sync(number)).count();
    assert!(calls > 20, "{calls} calls");
}

fn open_on(faults: &Arc<Faults>, path: &Path) -> Result<RedbStore, OpenError> {
    RedbStore::open(Disk { faults: Some(Arc::clone(faults)) }, path, false)
}

#[test]
fn a_file_in_use_is_not_written_to_where_flock_is_not_supported() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("counter.redb");
    let first = open_on(&Faults::without(Call::Lock, Errno::NOSYS), &path).unwrap();
    let faults = Faults::without(Call::Lock, Errno::NOSYS);
    let second = open_on(&faults, &path);
    assert!(matches!(second, Err(OpenError::InUse(_))), "{:?}", second.err());
    assert!(!faults.has_written());
    // The lock ends with its holder.
    drop(first);
    open_on(&faults, &path).unwrap();
}

#[test]
fn a_file_that_another_makes_is_not_written_to_where_flock_is_not_supported() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("counter.redb");
    // The state of another process that creates the file, just before it gets its name.
    let maker = Disk { faults: Some(Faults::without(Call::Lock, Errno::NOSYS)) };
    let unfinished = fs::File::create_new(directory.path().join("counter.redb.unfinished"));
    let unfinished = unfinished.unwrap();
    assert!(maker.lock(&unfinished).unwrap());
    let faults = Faults::without(Call::Lock, Errno::NOSYS);
    assert!(matches!(open_on(&faults, &path), Err(OpenError::InUse(_))));
    assert!(!faults.has_written());
    drop(unfinished);
    open_on(&faults, &path).unwrap();
}

#[test]
fn a_directory_that_cannot_be_listed_keeps_nobody_from_a_file_that_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("counter.redb");
    let faults = Faults::without(Call::SyncDirectory, Errno::ACCESS);
    // No file is created there: its name might be lost in a power failure.
    let error = open_on(&faults, &path).err().expect("a file was made").to_string();
    assert!(error.contains(&format!("{}:", directory.path().display())), "{error}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    drop(RedbStore::open(Disk::default(), &path, false).unwrap());
    open_on(&faults, &path).unwrap();
    // After other failures the name may not be on disk.
    assert!(open_on(&Faults::without(Call::SyncDirectory, Errno::IO), &path).is_err());
}
