//! `tallyring counter export`, `import`, `migrate` and `reopen`: the totals of a store that no counter uses, to a file or
//! to another store.
//!
//! A migration looks at both stores first, so that whatever is refused is refused before anything is changed. Then it
//! closes FROM, closes TO, fills it, reads it back, and opens it. What is cut leaves a mark in FROM, and maybe in TO,
//! that keeps counters from both. It is the same totals that are written when it is done again, and they replace what is
//! there, so nothing counts twice.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::{Lower, check_not_lower, describe, json};
use crate::{
    counter::store::{
        self, Counted, Found, Hold, Kind, Mark, OpenError, QUIET, TotalsByName, Whole,
    },
    plural::grouped,
};

/// How long a step is tried again.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two tries, and two looks.
const PAUSE: Duration = Duration::from_millis(250);

/// Why totals were not moved.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// A store or a file fails.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The counter's file is in use.
    #[error("a process uses {}; stop the counter first", .0.display())]
    InUse(PathBuf),
    /// A counter counts in a database.
    #[error(
        "a counter runs in {0} (shard {1}); stop all of its counters first, or give --force: then they \
         end with status 3"
    )]
    Running(String, String),
    /// The store has no totals.
    #[error("nothing is counted in {0}")]
    Nothing(String),
    /// Its totals were not all written.
    #[error("{0} is not to be used: {1}")]
    Marked(String, String),
    /// Its totals were moved to another place than the one that is given.
    #[error("the totals of {0} were moved to {1}; give --force to use it all the same")]
    Moved(String, String),
    /// It has totals.
    #[error("{store} holds {holds} already, and {origin} {new}; give --force to replace them")]
    NotEmpty {
        /// What would be replaced.
        store: String,
        /// Its totals.
        holds: String,
        /// By what.
        origin: String,
        /// The totals of that.
        new: String,
    },
    /// A total would become less.
    #[error(transparent)]
    Lower(Box<Lower>),
    /// Both are one store.
    #[error("{0} and {1} are one store; nothing was moved")]
    Same(String, String),
    /// Another one has closed or opened it.
    #[error("another migration or import has closed {0}, or it was reopened, meanwhile")]
    Changed(String),
    /// The first store was opened, or closed by another one, before all was done.
    #[error(
        "{from} was reopened, or closed by another migration, meanwhile; {to} stays closed to counters: \
         see where they are to count, and do it once more if that is {to}"
    )]
    NotHeld {
        /// The first store.
        from: String,
        /// The other one.
        to: String,
    },
    /// Something else was read than was written.
    #[error(
        "{store} holds {found}, where {expected} were written; it stays closed: do it once more"
    )]
    Differs {
        /// The store.
        store: String,
        /// What it holds.
        found: String,
        /// What was written.
        expected: String,
    },
    /// It failed after the first store was closed.
    #[error(
        "{0}; {1} is closed to counters: do the same once more, or give it to tallyring counter reopen"
    )]
    Unfinished(Box<MoveError>, String),
    /// The file cannot be read.
    #[error("cannot read {0}: {1}")]
    Unreadable(String, io::Error),
    /// The file does not hold totals.
    #[error("{0}: {1}")]
    NotJson(String, String),
    /// Memory is no place to move totals to.
    #[error("memory keeps its totals in the counter's process alone; give redb:PATH or a database")]
    Memory,
    /// The totals are more than can be written.
    #[error("the sum of all totals of {0} is no number of 64 bits")]
    TooMuch(String),
}

/// Writes all totals of a store as JSON to a file. What was done, for a person.
///
/// # Errors
/// When the store cannot be read, or the file not be written; it is as it was then.
pub fn export(store: &Kind, to: &Path, replace: bool) -> Result<String, MoveError> {
    let (totals, json) = exported(store)?;
    store::write_text(to, &json, json::BEGIN, replace).map_err(|error| match error {
        // Not of a counter.
        OpenError::Unsynced(_, error) => OpenError::Write(to.to_owned(), error),
        error => error,
    })?;
    Ok(format!("{}: {}", to.display(), told(&totals)))
}

/// All totals of a store as JSON.
///
/// # Errors
/// When the store cannot be read.
pub fn as_json(store: &Kind) -> Result<String, MoveError> {
    exported(store).map(|(_, json)| json)
}

fn exported(kind: &Kind) -> Result<(TotalsByName, String), MoveError> {
    let totals = match kind {
        // Which takes no lock.
        Kind::Redb(path) => store::read(path).map_err(|error| match error {
            OpenError::InUse(path) => MoveError::InUse(path),
            OpenError::Missing(_) => MoveError::Nothing(kind.to_string()),
            error => error.into(),
        })?,
        _ => Place::new(kind, false)?.look_to_read()?.totals,
    };
    let json = json::write(&totals).ok_or_else(|| MoveError::TooMuch(kind.to_string()))?;
    Ok((totals, json))
}

/// Replaces the totals of a store by those of a file, or of standard input. What was done, for a person.
///
/// # Errors
/// When the file is not right, or the store has totals, without `force`. It is as it was then.
pub fn import(
    from: Option<&Path>,
    store: &Kind,
    force: bool,
    tell: impl Fn(&str),
) -> Result<String, MoveError> {
    let origin = from.map_or_else(|| String::from("standard input"), |p| p.display().to_string());
    let text = read(from).map_err(|error| MoveError::Unreadable(origin.clone(), error))?;
    let totals = json::read(&text).map_err(|why| MoveError::NotJson(origin.clone(), why))?;
    let totals = without_nothing(totals);
    let mut target = Place::new(store, true)?;
    let found = target.look()?;
    target.check_free(&found, (&origin, &totals), force)?;
    target.store.check_fits(&totals)?;
    let found = target.wait_until_quiet(found, force, &tell)?;
    let kept = target.replace(&origin, &totals, &found, force, || Ok(()))?;
    let kept = kept.map_or_else(String::new, |kept| format!("; before, {}", kept.display()));
    Ok(format!("{store}: {}{kept}", told(&totals)))
}

fn read(from: Option<&Path>) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let most = json::BYTES_MAX;
    match from {
        Some(path) => File::open(path)?.take(most + 1).read_to_end(&mut text)?,
        None => io::stdin().take(most + 1).read_to_end(&mut text)?,
    };
    if text.len() as u64 > most {
        let why = format!("it has more than {most} bytes, and is no export of tallyring");
        return Err(io::Error::other(why));
    }
    Ok(text)
}

/// Moves all totals of one store to another. What was done, for a person.
///
/// # Errors
/// When one of them cannot be used, a counter runs, or TO has totals, without `force`. A migration that was cut can be
/// done once more.
pub fn migrate(
    from: &Kind,
    to: &Kind,
    force: bool,
    tell: impl Fn(&str),
) -> Result<String, MoveError> {
    let (mut source, mut target) = (Place::new(from, false)?, Place::new(to, true)?);
    let same = || MoveError::Same(from.to_string(), to.to_string());
    if from == to {
        return Err(same());
    }
    let found = source.look_to_read()?;
    let in_target = target.look()?;
    let moved = Mark::MovedTo(to.to_string());
    if in_target.mark.as_ref() == Some(&moved) {
        return Err(same());
    }
    if let Some(Mark::MovedTo(elsewhere)) = &found.mark
        && found.mark.as_ref() != Some(&moved)
        && !force
    {
        return Err(MoveError::Moved(from.to_string(), elsewhere.clone()));
    }
    let was_moved = found.mark.as_ref() == Some(&moved) && in_target.mark.is_none();
    // It may have counted since then, so not by force either.
    if was_moved && has_all(&in_target.totals, &found.totals) && sum(&in_target.totals) > 0 {
        let (has, had) = (told(&in_target.totals), grouped(sum(&found.totals)));
        return Ok(format!("{to}: {has}; the sum {had} of {from} was moved there before"));
    }
    target.check_free(&in_target, (&from.to_string(), &found.totals), force)?;
    target.store.check_fits(&found.totals)?;
    let in_target = target.wait_until_quiet(in_target, force, &tell)?;
    let found = source.wait_until_quiet(found, force, &tell)?;
    let Found { totals, hold, .. } = source.close(&moved, &found, force)?;
    let unfinished = |error| MoveError::Unfinished(Box::new(error), from.to_string());
    // By another name, it may be the one that has just been closed.
    let in_target = match target.look().map_err(unfinished)? {
        now if now.mark.as_ref() == Some(&moved) => {
            source.open(now.hold)?;
            return Err(same());
        }
        now => Found { totals: now.totals, ..in_target },
    };
    let check_held = || match source.look()? {
        now if now.is_marked_as(Some(&moved), hold) => Ok(()),
        _ => Err(MoveError::NotHeld { from: from.to_string(), to: to.to_string() }),
    };
    let replaced = target
        .check_free(&in_target, (&from.to_string(), &totals), force)
        .and_then(|()| target.replace(&from.to_string(), &totals, &in_target, force, check_held));
    replaced.map_err(|error| match error {
        // It may be open.
        MoveError::NotHeld { .. } => error,
        error => unfinished(error),
    })?;
    let had = grouped(sum(&totals));
    Ok(format!(
        "{to}: {}; the sum of {from} was {had}, and it is closed to counters",
        told(&totals)
    ))
}

/// Lets counters use a store again whose totals were moved.
///
/// # Errors
/// When it cannot be used, or is not whole.
pub fn reopen(store: &Kind) -> Result<String, MoveError> {
    let mut place = Place::new(store, false)?;
    let found = place.look_to_read()?;
    let Some(Mark::MovedTo(to)) = &found.mark else {
        return Ok(format!("{store}: it is open to counters; {}", told(&found.totals)));
    };
    place.open(found.hold)?;
    let has = told(&found.totals);
    Ok(format!("{store}: {has}; it is open to counters again, and {to} is as it was"))
}

/// `1,234 counted, and 56 under 1 name, sum 1,290`.
fn told(totals: &TotalsByName) -> String {
    format!("{}, sum {}", describe(totals), grouped(sum(totals)))
}

fn sum(totals: &TotalsByName) -> u64 {
    let Counted { total, named } = Counted::of(totals);
    total.saturating_add(named)
}

/// Whether no total is less than another one's.
fn has_all(these: &TotalsByName, others: &TotalsByName) -> bool {
    others.iter().all(|(name, total)| these.get(name).copied().unwrap_or(0) >= *total)
}

/// A store that is moved from or to, which is tried for some time where it fails.
struct Place {
    name: String,
    store: Box<dyn Whole>,
}

impl Place {
    fn new(kind: &Kind, makes: bool) -> Result<Self, MoveError> {
        let store = store::whole(kind, makes)?.ok_or(MoveError::Memory)?;
        Ok(Self { name: kind.to_string(), store })
    }

    fn look(&mut self) -> Result<Found, MoveError> {
        self.insist(|store, until| store.look(until)).map(plain)
    }

    /// Looks at one that must have totals, all of them.
    fn look_to_read(&mut self) -> Result<Found, MoveError> {
        let found = self.look()?;
        match &found.mark {
            _ if found.is_new => Err(MoveError::Nothing(self.name.clone())),
            Some(mark @ Mark::FilledFrom(_)) => {
                Err(MoveError::Marked(self.name.clone(), mark.refusal()))
            }
            _ => Ok(found),
        }
    }

    /// Checks that these totals may replace what it holds.
    fn check_free(
        &self,
        found: &Found,
        (origin, new): (&str, &TotalsByName),
        force: bool,
    ) -> Result<(), MoveError> {
        let name = || self.name.clone();
        match &found.mark {
            _ if force => return Ok(()),
            // What there is of it is not whole.
            Some(Mark::FilledFrom(_)) => return Ok(()),
            Some(Mark::MovedTo(to)) if to != origin => {
                return Err(MoveError::Moved(name(), to.clone()));
            }
            _ if sum(&found.totals) == 0 || found.totals == *new => return Ok(()),
            _ => {}
        }
        let remedy = "give --force to replace them all the same";
        check_not_lower((origin, new), (&self.name, &found.totals), remedy)
            .map_err(MoveError::Lower)?;
        if matches!(&found.mark, Some(Mark::MovedTo(to)) if to == origin) {
            // They come back from there.
            return Ok(());
        }
        let (holds, new) = (describe(&found.totals), describe(new));
        Err(MoveError::NotEmpty { store: name(), holds, origin: origin.to_owned(), new })
    }

    /// Waits until it is certain that no counter runs in it, and looks at it then.
    fn wait_until_quiet(
        &mut self,
        first: Found,
        force: bool,
        tell: impl Fn(&str),
    ) -> Result<Found, MoveError> {
        let began = Instant::now();
        let mut now = first.clone();
        let mut waits = false;
        loop {
            if !now.is_marked_as(first.mark.as_ref(), first.hold) {
                return Err(MoveError::Changed(self.name.clone()));
            }
            self.check_not_running(&now, &first)?;
            let is_quiet = |ago: Option<u64>| ago.is_some_and(|ago| ago >= QUIET.as_secs());
            let recent = now.counters.iter().find(|seen| !is_quiet(seen.ago));
            let Some(recent) = recent.filter(|_| !force && began.elapsed() < QUIET) else {
                return Ok(now);
            };
            if !waits {
                let seen = recent.ago.map_or_else(String::new, |ago| format!(" {ago} s ago"));
                let (shard, most) = (&recent.shard, QUIET.as_secs());
                tell(&format!(
                    "the counter of shard {shard} was seen{seen} in {}; waiting until it is certain that it \
                     has ended, at most {most} s",
                    self.name
                ));
                waits = true;
            }
            pause();
            now = self.look()?;
        }
    }

    /// Checks that no counter has done anything since the first look.
    fn check_not_running(&self, now: &Found, first: &Found) -> Result<(), MoveError> {
        match now.counters.iter().find(|seen| !seen.is_as_in(&first.counters)) {
            None => Ok(()),
            Some(seen) => Err(MoveError::Running(self.name.clone(), seen.shard.clone())),
        }
    }

    /// Closes it, unless its mark is another one, or a counter has done anything, since it was quiet.
    fn close(&mut self, mark: &Mark, quiet: &Found, force: bool) -> Result<Found, MoveError> {
        let end = Instant::now() + STEP_TIMEOUT;
        let mut seen = quiet.clone();
        loop {
            match self.store.close(mark, &seen, force, end) {
                Ok(found) => return Ok(plain(found)),
                Err(error) if error.passes() && Instant::now() + PAUSE < end => {
                    pause();
                    let now = self.look()?;
                    if !force {
                        self.check_not_running(&now, quiet)?;
                    }
                    // The try that failed may have done it.
                    if now.mark.as_ref() == Some(mark) {
                        (seen.mark, seen.hold) = (now.mark, now.hold);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Replaces all that it holds, reads that back, and opens it if `check` says so; where the totals before are kept,
    /// if they are.
    fn replace(
        &mut self,
        origin: &str,
        totals: &TotalsByName,
        quiet: &Found,
        force: bool,
        check: impl FnOnce() -> Result<(), MoveError>,
    ) -> Result<Option<PathBuf>, MoveError> {
        // Counters may have counted since the first look.
        self.store.check_fits(totals)?;
        let mark = Mark::FilledFrom(origin.to_owned());
        let Found { hold, .. } = self.close(&mark, quiet, force)?;
        let kept = self.insist(|store, until| store.fill(hold, totals, until))?;
        let found = self.look()?.totals;
        if found != *totals {
            let (found, expected) = (told(&found), told(totals));
            return Err(MoveError::Differs { store: self.name.clone(), found, expected });
        }
        check()?;
        self.open(hold)?;
        Ok(kept)
    }

    fn open(&mut self, hold: Hold) -> Result<(), MoveError> {
        self.insist(|store, until| store.open(hold, until))
    }

    /// Does a step, and does it once more while it fails by what may pass.
    fn insist<T>(
        &mut self,
        mut step: impl FnMut(&mut dyn Whole, Instant) -> Result<T, OpenError>,
    ) -> Result<T, MoveError> {
        let end = Instant::now() + STEP_TIMEOUT;
        loop {
            match step(&mut *self.store, end) {
                Ok(done) => return Ok(done),
                // Another process has locked it.
                Err(OpenError::InUse(path)) => return Err(MoveError::InUse(path)),
                Err(error) if error.passes() && Instant::now() + PAUSE < end => pause(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

// No worker runs in this process, so it may sleep.
#[allow(clippy::disallowed_methods)]
fn pause() {
    thread::sleep(PAUSE);
}

/// The counter without a name has no total in some stores, and 0 in others.
fn plain(found: Found) -> Found {
    Found { totals: without_nothing(found.totals), ..found }
}

fn without_nothing(mut totals: TotalsByName) -> TotalsByName {
    totals.retain(|name, total| !name.is_empty() || *total > 0);
    totals
}
