//! `tallyring counter export`, `import`, `migrate` and `reopen`: the totals of a store that no counter uses, to a file or
//! to another store.
//!
//! A migration looks at both stores first, and at whether FROM can be closed, so that whatever is refused is refused before
//! anything is changed but the numbers by which databases are known. Then:
//!
//! ```text
//!   FROM in use               close TO, fill it      whatever fails here (no space, say) leaves FROM in use
//!   FROM closed               close FROM             TO is filled again if FROM has counted since
//!   TO in use, FROM closed    read TO back, open it
//!   the same                  note in FROM that all is done
//! ```
//!
//! What is cut leaves a mark in TO, and maybe in FROM, that keeps counters from it. It is the same totals that are written
//! when it is done again, and they replace what is there, so nothing counts twice.

mod error;
mod place;

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

pub use self::error::MoveError;
use self::place::{Place, without_nothing};
use super::{describe, is_same as is_same_file, json};
use crate::{
    counter::store::{self, Counted, Found, Hold, Kind, Mark, OpenError, TotalsByName},
    plural::grouped,
};

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
    let hold = close_to_fill(&mut target, &Mark::FilledFrom(origin), &found, force)?;
    let filled = target.fill(hold, &totals).and_then(|()| target.read_back(&totals));
    filled.map_err(|error| not_moved(error, &target, hold))?;
    let kept = target.open(hold).map_err(|error| match hold == Hold::default() {
        true => error,
        // The answer may be lost.
        false => MoveError::MaybeNotMoved(Box::new(error), target.name.clone()),
    })?;
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
        note_done(&mut source, &found, force, &tell);
        let (has, had) = (told(&in_target.totals), grouped(sum(&found.totals)));
        return Ok(format!("{to}: {has}; the sum {had} of {from} was moved there before"));
    }
    target.check_free(&in_target, (&source.name, found.id, &found.totals), force)?;
    target.store.check_fits(&found.totals)?;
    in_target = target.wait_until_quiet(in_target, force, &tell)?;
    let found = source.wait_until_quiet(found, force, &tell)?;
    let id = target.identify(&in_target)?;
    let moving = Mark::MovedTo { store: to.to_string(), id, is_done: false };
    source.prepare_close(&moving)?;
    let filled_from = Mark::FilledFrom(from.to_string());
    let hold = close_to_fill(&mut target, &filled_from, &in_target, force)?;
    target.fill(hold, &found.totals).map_err(|error| not_moved(error, &target, hold))?;
    let closed_target = (hold != Hold::default()).then(|| to.to_string());
    let closed = source.close(&moving, &found, force).map_err(|error| {
        if !source.may_be_closed(&moving, &error) {
            return not_moved(error, &target, hold);
        }
        let (from, to) = (from.to_string(), closed_target.clone());
        MoveError::MaybeClosed { error: Box::new(error), from, to }
    })?;
    let finished = finish((&mut source, &closed), (&mut target, hold), &found);
    finished.map_err(|error| match error {
        // It may be open.
        MoveError::NotHeld { .. } | MoveError::BothOpen { .. } => error,
        error => {
            let (from, to) = (from.to_string(), closed_target);
            MoveError::Unfinished { error: Box::new(error), from, to }
        }
    })?;
    note_done(&mut source, &closed, force, &tell);
    let had = grouped(sum(&closed.totals));
    Ok(format!(
        "{to}: {}; the sum of {from} was {had}, and it is closed to counters",
        told(&closed.totals)
    ))
}

/// Closes a store that is to be filled.
fn close_to_fill(
    target: &mut Place,
    mark: &Mark,
    quiet: &Found,
    force: bool,
) -> Result<Hold, MoveError> {
    match target.close(mark, quiet, force) {
        Ok(closed) => Ok(closed.hold),
        Err(error) if target.may_be_closed(mark, &error) => {
            Err(MoveError::MaybeNotMoved(Box::new(error), target.name.clone()))
        }
        Err(error) => Err(error),
    }
}

/// What failed after a store was closed to be filled, and before any other was.
fn not_moved(error: MoveError, target: &Place, hold: Hold) -> MoveError {
    match hold == Hold::default() {
        // A file that is filled has not its name yet.
        true => error,
        false => MoveError::NotMoved(Box::new(error), target.name.clone()),
    }
}

/// Notes in a store that is closed that all of its totals are in the other one, which is open. Without that they are
/// there too: it is only not certain to who does it once more.
fn note_done(source: &mut Place, closed: &Found, force: bool, tell: impl Fn(&str)) {
    let Some(Mark::MovedTo { store, id, is_done: false }) = &closed.mark else { return };
    let done = Mark::MovedTo { store: store.clone(), id: *id, is_done: true };
    if let Err(error) = source.close(&done, closed, force) {
        tell(&format!(
            "all totals of {} are in {store}, but that could not be noted there: {error}",
            source.name
        ));
    }
}

/// Whether the totals of a store were moved to this one before, and are all there.
fn was_moved(
    source: &Place,
    found: &Found,
    (target, in_target): (&Place, &Found),
    force: bool,
) -> Result<bool, MoveError> {
    let Some(mark @ Mark::MovedTo { store: elsewhere, is_done, .. }) = &found.mark else {
        return Ok(false);
    };
    match mark.leads_to(&target.name, in_target.id) {
        // It may have counted since then, so not by force either.
        true if in_target.mark.is_none()
            && has_all(&in_target.totals, &found.totals)
            && sum(&in_target.totals) > 0 =>
        {
            // What was cut may have opened it or not, and then it has another one's.
            if *is_done || in_target.totals == found.totals {
                return Ok(true);
            }
            Err(MoveError::Uncertain {
                from: source.name.clone(),
                had: told(&found.totals),
                to: target.name.clone(),
                has: told(&in_target.totals),
            })
        }
        true => Ok(false),
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
        return Err(MoveError::NotHeld { from, to, is_closed: hold != Hold::default() });
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
