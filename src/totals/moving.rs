//! `tallyring counter export`, `import`, `migrate` and `reopen`: the totals of a store that no counter uses, to a file or
//! to another store.
//!
//! A migration looks at both stores first, so that whatever is refused is refused before anything is changed. Then:
//!
//! ```text
//!   FROM in use               close TO, fill it      whatever fails here (no space, say) leaves FROM in use
//!   FROM closed               close FROM             TO is filled again if FROM has counted since
//!   TO in use, FROM closed    read TO back, open it
//! ```
//!
//! What is cut leaves a mark in TO, and maybe in FROM, that keeps counters from it. It is the same totals that are written
//! when it is done again, and they replace what is there, so nothing counts twice.

mod place;

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use self::place::{Place, without_nothing};
use super::{Lower, describe, is_same as is_same_file, json};
use crate::{
    counter::store::{self, Counted, Found, Hold, Kind, Mark, OpenError, TotalsByName},
    plural::grouped,
};

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
    /// It failed before the first store was closed, and after the other one was.
    #[error(
        "{0}; nothing was moved, and {1} is closed to counters until the same is done once more"
    )]
    NotMoved(Box<MoveError>, String),
    /// The first store was opened, or closed by another one, at the very end.
    #[error(
        "{from} was reopened, or closed by another migration, at the moment when {to} was opened: both may be \
         counted in, each with all that was moved; stop the counters of one, and see where they are to count"
    )]
    BothOpen {
        /// The first store.
        from: String,
        /// The other one.
        to: String,
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
    /// A store with more names than an import takes.
    #[error(
        "{store} has {} names, and an export has at most {}; tallyring counter migrate moves them all",
        grouped(*.names), grouped(json::NAMES_MAX)
    )]
    TooManyNames {
        /// The store.
        store: String,
        /// How many it has.
        names: u64,
    },
    /// The totals are more than can be written.
    #[error("the sum of all totals of {0} is no number of 64 bits")]
    TooMuch(String),
}

/// Writes all totals of a store as JSON to a file. What was done, for a person.
///
/// # Errors
/// When the store cannot be read, or the file not be written; it is as it was then.
pub fn export(
    store: &Kind,
    to: &Path,
    replace: bool,
    warn: impl Fn(&str),
) -> Result<String, MoveError> {
    let (totals, json) = exported(store, warn)?;
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
pub fn as_json(store: &Kind, warn: impl Fn(&str)) -> Result<String, MoveError> {
    exported(store, warn).map(|(_, json)| json)
}

fn exported(kind: &Kind, warn: impl Fn(&str)) -> Result<(TotalsByName, String), MoveError> {
    let (totals, mark) = match kind {
        // Which takes no lock.
        Kind::Redb(path) => store::read_marked(path).map_err(|error| match error {
            OpenError::InUse(path) => MoveError::InUse(path),
            OpenError::Missing(_) => MoveError::Nothing(kind.to_string()),
            error => error.into(),
        })?,
        _ => {
            let Found { totals, mark, .. } = Place::new(kind, false)?.look_to_read()?;
            (totals, mark)
        }
    };
    let names = totals.keys().filter(|name| !name.is_empty()).count() as u64;
    if names > json::NAMES_MAX {
        return Err(MoveError::TooManyNames { store: kind.to_string(), names });
    }
    if let Some(mark) = mark {
        warn(&mark.warning(&kind.to_string()));
    }
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
    target.check_free(&found, (&origin, None, &totals), force)?;
    target.store.check_fits(&totals)?;
    let found = target.wait_until_quiet(found, force, &tell)?;
    let hold = target.close(&Mark::FilledFrom(origin), &found, force)?.hold;
    target.fill(hold, &totals)?;
    target.read_back(&totals)?;
    let kept = target.open(hold)?;
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
    if is_named_alike(from, to) {
        return Err(same());
    }
    let found = source.look_to_read()?;
    let mut in_target = target.look()?;
    if from.is_like(to) && source.is_same(&found, &mut target, &in_target)? {
        return Err(same());
    }
    if was_moved(&source, &found, (&target, &in_target), force)? {
        let (has, had) = (told(&in_target.totals), grouped(sum(&found.totals)));
        return Ok(format!("{to}: {has}; the sum {had} of {from} was moved there before"));
    }
    target.check_free(&in_target, (&source.name, found.id, &found.totals), force)?;
    target.store.check_fits(&found.totals)?;
    in_target = target.wait_until_quiet(in_target, force, &tell)?;
    let found = source.wait_until_quiet(found, force, &tell)?;
    let id = target.identify(&in_target)?;
    let hold = target.close(&Mark::FilledFrom(from.to_string()), &in_target, force)?.hold;
    let not_moved = |error| match hold == Hold::default() {
        // A file that is filled has not its name yet.
        true => error,
        false => MoveError::NotMoved(Box::new(error), to.to_string()),
    };
    target.fill(hold, &found.totals).map_err(not_moved)?;
    let moved = Mark::MovedTo { store: to.to_string(), id };
    let unfinished = |error| MoveError::Unfinished(Box::new(error), from.to_string());
    let closed = source.close(&moved, &found, force).map_err(|error| match error {
        // The answer was lost.
        MoveError::Store(why) if why.passes() => unfinished(MoveError::Store(why)),
        error => not_moved(error),
    })?;
    let finished = finish((&mut source, &closed), (&mut target, hold), &found);
    finished.map_err(|error| match error {
        // It may be open.
        MoveError::NotHeld { .. } | MoveError::BothOpen { .. } => error,
        error => unfinished(error),
    })?;
    let had = grouped(sum(&closed.totals));
    Ok(format!(
        "{to}: {}; the sum of {from} was {had}, and it is closed to counters",
        told(&closed.totals)
    ))
}

/// Whether the totals of a store were moved to this one before, and are all there.
fn was_moved(
    source: &Place,
    found: &Found,
    (target, in_target): (&Place, &Found),
    force: bool,
) -> Result<bool, MoveError> {
    let Some(mark @ Mark::MovedTo { store: elsewhere, .. }) = &found.mark else {
        return Ok(false);
    };
    match mark.leads_to(&target.name, in_target.id) {
        // It may have counted since then, so not by force either.
        true => Ok(in_target.mark.is_none()
            && has_all(&in_target.totals, &found.totals)
            && sum(&in_target.totals) > 0),
        false if force => Ok(false),
        false => Err(MoveError::Moved(source.name.clone(), elsewhere.clone())),
    }
}

/// Opens the store that was filled with what was found in the first one, which is closed now.
fn finish(
    (source, closed): (&mut Place, &Found),
    (target, hold): (&mut Place, Hold),
    found: &Found,
) -> Result<(), MoveError> {
    // Counters were not certain to have ended, by force.
    if closed.totals != found.totals {
        target.store.check_fits(&closed.totals)?;
        target.fill(hold, &closed.totals)?;
    }
    target.read_back(&closed.totals)?;
    let (from, to) = (source.name.clone(), target.name.clone());
    let mut is_closed =
        || source.look().map(|now| now.is_marked_as(closed.mark.as_ref(), closed.hold));
    if !is_closed()? {
        return Err(MoveError::NotHeld { from, to });
    }
    target.open(hold)?;
    // Nothing is done to both stores at once.
    if is_closed()? { Ok(()) } else { Err(MoveError::BothOpen { from, to }) }
}

/// Whether both are named as one, or are one file.
fn is_named_alike(one: &Kind, other: &Kind) -> bool {
    match (one, other) {
        (Kind::Redb(one), Kind::Redb(other)) => one == other || is_same_file(one, other),
        _ => one == other,
    }
}

/// Lets counters use a store again whose totals were moved.
///
/// # Errors
/// When it cannot be used, or is not whole.
pub fn reopen(store: &Kind) -> Result<String, MoveError> {
    let mut place = Place::new(store, false)?;
    let found = place.look_to_read()?;
    let Some(Mark::MovedTo { store: to, .. }) = &found.mark else {
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
