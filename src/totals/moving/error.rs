//! Why totals were not moved, which store is closed then, and what to do.

use std::{io, path::PathBuf};

use super::super::{Lower, json};
use crate::{counter::store::OpenError, plural::grouped};

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
    /// Another migration or import to it was cut.
    #[error(
        "{store} was not filled to the end from {by}: do that once more first, or give --force to fill it \
         from {origin}"
    )]
    HalfFilled {
        /// The store.
        store: String,
        /// From where it was filled.
        by: String,
        /// From where it is to be filled.
        origin: String,
    },
    /// It is not known whether all was moved before.
    #[error(
        "{from} was closed with {had} when a migration to {to} was cut, and {to} holds {has}: if counters have \
         counted there since, all is moved, and nothing is to be done; if it was filled with something else, \
         give {from} to tallyring counter reopen, and move it once more, by --force if that is to be replaced"
    )]
    Uncertain {
        /// The first store.
        from: String,
        /// What it holds.
        had: String,
        /// The other one.
        to: String,
        /// What it holds.
        has: String,
    },
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
        "{from} was reopened, or closed by another migration, meanwhile; {to} {}: \
         see where they are to count, and do it once more if that is {to}",
        if *.is_closed { "stays closed to counters" } else { "is as it was" }
    )]
    NotHeld {
        /// The first store.
        from: String,
        /// The other one.
        to: String,
        /// Whether that one is closed.
        is_closed: bool,
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
    /// It failed when the store that is filled was to be closed or opened.
    #[error("{0}; {1} may be closed to counters until the same is done once more")]
    MaybeNotMoved(Box<MoveError>, String),
    /// It failed when the first store was to be closed.
    #[error(
        "{error}; {from} may be closed to counters{}: do the same once more",
        .to.as_ref().map_or_else(String::new, |to| format!(", and {to} is"))
    )]
    MaybeClosed {
        /// Why.
        error: Box<MoveError>,
        /// The first store.
        from: String,
        /// The other one, if it is closed.
        to: Option<String>,
    },
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
        "{error}; {from} is closed to counters{}: do the same once more, or give {from} to tallyring counter \
         reopen",
        .to.as_ref().map_or_else(String::new, |to| format!(", and {to} may be"))
    )]
    Unfinished {
        /// Why.
        error: Box<MoveError>,
        /// The first store.
        from: String,
        /// The other one, if it may be closed.
        to: Option<String>,
    },
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
