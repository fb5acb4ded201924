//! A store as a whole, while no counter uses it: what totals are moved from and to.
//!
//! ```text
//!                 close: no counter counts in it any more, or can start
//!   in use -----------------------------------------------------------------> closed, by a mark
//!     ^                                                                         |      |    ^
//!     |                                                                         |      +----+ fill
//!     +------------------------- open: the mark is removed ---------------------+
//! ```
//!
//! A file that is filled is closed by its lock alone: it is written beside the old one, and takes its place at the end.
//!
//! Whatever is cut leaves the mark, which says what is to be done; each step can be done once more and comes to the same.

use std::{
    fmt,
    path::PathBuf,
    str::FromStr,
    time::{Duration, Instant},
};

use super::{Kind, OpenError, TotalsByName, held::FileStore};
#[cfg(not(simulation))]
use super::{Trouble, database_error, etcd, postgres};

/// A counter that was not seen for so long has ended: it shows itself three times as often.
pub const QUIET: Duration = Duration::from_secs(30);
#[cfg(not(simulation))]
const _: () = assert!(QUIET.as_secs() >= 3 * super::sharded::BEAT.as_secs());

/// When [`SHARD`] was seen, in seconds before it is filled: no counter has it.
#[cfg(not(simulation))]
pub(super) const SEEN_BEFORE: u64 = 2 * QUIET.as_secs();

/// The shard that gets all totals that are moved into a database. No counter has to have its name; one that has takes it
/// over as any other.
#[cfg(not(simulation))]
pub(super) const SHARD: &str = "moved";

/// Why no counter may use a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mark {
    /// Its totals were moved, or are on their way, to this store.
    MovedTo {
        /// As it was named.
        store: String,
        /// By which it is known under another name, if it has one.
        id: Option<u64>,
        /// Whether that one had all of them, and was opened.
        is_done: bool,
    },
    /// It does not hold all of what it is to hold from here.
    FilledFrom(String),
}

const MOVED_TO: &str = "moved to ";
const MOVING_TO: &str = "moving to ";
const FILLED_FROM: &str = "filled from ";

/// As it is kept in a store.
impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MovedTo { store, id, is_done } => {
                write!(f, "{}{store}", if *is_done { MOVED_TO } else { MOVING_TO })?;
                id.map_or(Ok(()), |id| write!(f, "#{id:016x}"))
            }
            Self::FilledFrom(origin) => write!(f, "{FILLED_FROM}{origin}"),
        }
    }
}

impl FromStr for Mark {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let moved = |begin, is_done| {
            let store: &str = text.strip_prefix(begin)?;
            let id = store.rsplit_once('#').filter(|(_, id)| id.len() == 16);
            let id = id.and_then(|(store, id)| Some((store, u64::from_str_radix(id, 16).ok()?)));
            let (store, id) = id.map_or((store, None), |(store, id)| (store, Some(id)));
            Some(Self::MovedTo { store: store.to_owned(), id, is_done })
        };
        let moved = moved(MOVED_TO, true).or_else(|| moved(MOVING_TO, false));
        let filled =
            || text.strip_prefix(FILLED_FROM).map(|from| Self::FilledFrom(from.to_owned()));
        moved.or_else(filled).ok_or("it has a mark that is not of this version of tallyring")
    }
}

impl Mark {
    /// Whether it says that the totals were moved to this store, which is known by its id under any name.
    pub fn leads_to(&self, name: &str, id: Option<u64>) -> bool {
        match self {
            // Two stores may be shown alike, such as two schemas of one database.
            Self::MovedTo { id: Some(known), .. } if id.is_some() => id == Some(*known),
            Self::MovedTo { store, .. } => store == name,
            Self::FilledFrom(_) => false,
        }
    }

    /// What is told to who reads the totals of a store that no counter counts in.
    pub fn warning(&self, name: &str) -> String {
        match self {
            Self::MovedTo { store, is_done: true, .. } => format!(
                "the totals of {name} were moved to {store}; these are from before that: ask there"
            ),
            Self::MovedTo { store, .. } => format!(
                "the totals of {name} were being moved to {store} when that was cut: run that migration \
                 once more; these are from before that"
            ),
            Self::FilledFrom(origin) => format!(
                "{name} was not filled to the end from {origin}, so these are not all: run that migration \
                 or import once more"
            ),
        }
    }

    /// What a counter is told that is to use the store.
    pub fn refusal(&self) -> String {
        match self {
            Self::MovedTo { store, is_done: true, .. } => format!(
                "its totals were moved to {store}: count there; or give this one to tallyring counter \
                 reopen, to count here again"
            ),
            Self::MovedTo { store, .. } => format!(
                "its totals were being moved to {store} when that was cut: run that migration once more; or \
                 give this one to tallyring counter reopen, to count here again"
            ),
            Self::FilledFrom(origin) => format!(
                "it was not filled to the end from {origin}: run that migration or import once more"
            ),
        }
    }
}

/// What is in a store.
#[derive(Debug, Default, Clone)]
pub struct Found {
    /// Of all shards together.
    pub totals: TotalsByName,
    /// Why no counter may use it.
    pub mark: Option<Mark>,
    /// Who holds it by this mark.
    pub hold: Hold,
    /// The shards of counters that may be running.
    pub counters: Vec<Seen>,
    /// Whether no counter has ever used it.
    pub is_new: bool,
    /// A number that only it has, if somebody has given it one.
    pub id: Option<u64>,
}

impl Found {
    /// Whether its mark, or that there is none, is the same one.
    pub fn is_marked_as(&self, mark: Option<&Mark>, hold: Hold) -> bool {
        self.mark.as_ref() == mark && self.hold == hold
    }
}

/// What tells the mark of one from the same mark of another.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Hold(pub(super) u64);

/// A shard, and its counter as it was seen last.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The name.
    pub shard: String,
    /// Its last commit. A counter that runs has another one after a beat.
    pub commit: String,
    /// How many seconds ago, by the clock of the database; `None` where that is not known.
    pub ago: Option<u64>,
}

impl Seen {
    /// Whether a counter was seen in the same state before.
    pub fn is_as_in(&self, before: &[Self]) -> bool {
        before.iter().any(|seen| seen.shard == self.shard && seen.commit == self.commit)
    }
}

/// A store that no counter is to use. All methods end by `until`. What has failed may have been done all the same, and
/// may be tried once more.
pub trait Whole {
    /// Reads it, and changes nothing.
    ///
    /// # Errors
    /// When that is not possible.
    fn look(&mut self, until: Instant) -> Result<Found, OpenError>;

    /// Checks that it can hold these totals, and asks nobody.
    ///
    /// # Errors
    /// When one of them is too large.
    fn check_fits(&self, _: &TotalsByName) -> Result<(), OpenError> {
        Ok(())
    }

    /// Checks that it can be closed by this mark, and makes ready what that needs. It is as it was.
    ///
    /// # Errors
    /// When it cannot.
    fn prepare_close(&mut self, mark: &Mark, until: Instant) -> Result<(), OpenError>;

    /// Keeps all counters from it: those that run are fenced, and none starts. What it holds then, which nobody changes
    /// until it is opened. Its mark must be as it was `seen`, and without `force` all counters too.
    ///
    /// # Errors
    /// When that is not possible, another one has changed its mark, or a counter has counted.
    fn close(
        &mut self,
        mark: &Mark,
        seen: &Found,
        force: bool,
        until: Instant,
    ) -> Result<Found, OpenError>;

    /// Replaces what it holds by these totals. May be done several times before it is opened.
    ///
    /// # Errors
    /// When that is not possible, or another one has closed it meanwhile.
    fn fill(&mut self, hold: Hold, totals: &TotalsByName, until: Instant) -> Result<(), OpenError>;

    /// Lets counters use it; where the totals are kept that it had before it was filled, if they are.
    ///
    /// # Errors
    /// When that is not possible, or another one has closed it meanwhile.
    fn open(&mut self, hold: Hold, until: Instant) -> Result<Option<PathBuf>, OpenError>;

    /// Gives it a number that no other store has, if it still has the number `before`. A file has none: its lock tells
    /// it from others.
    ///
    /// # Errors
    /// When that is not possible. That somebody else was quicker is none: who looks sees the number that it has.
    fn identify(
        &mut self,
        _before: Option<u64>,
        _id: u64,
        _until: Instant,
    ) -> Result<(), OpenError> {
        Ok(())
    }
}

/// A store as a whole; `None` of memory, which has no store. With `makes`, what a database lacks is made in it.
///
/// # Errors
/// When it cannot be used.
pub fn whole(kind: &Kind, makes: bool) -> Result<Option<Box<dyn Whole>>, OpenError> {
    match kind {
        Kind::Redb(path) => Ok(Some(Box::new(FileStore::new(path, makes)))),
        Kind::Memory => Ok(None),
        #[cfg(not(simulation))]
        Kind::Postgres { url, .. } => {
            let store = postgres::Postgres::whole(url, SHARD, makes);
            let store = store.map_err(|error| Trouble::Refused(error.to_string()));
            Ok(Some(Box::new(store.map_err(|trouble| database_error(url, &trouble))?)))
        }
        #[cfg(not(simulation))]
        Kind::Etcd { url, .. } => {
            let store = etcd::Etcd::whole(url, SHARD);
            let store = store.map_err(|error| Trouble::Refused(error.to_string()));
            Ok(Some(Box::new(store.map_err(|trouble| database_error(url, &trouble))?)))
        }
    }
}

/// What is said where a counter counts that was taken for one that has ended.
#[cfg(not(simulation))]
pub(super) const COUNTED: &str = "a counter has counted meanwhile";

/// What is said where the store was closed or opened since it was looked at.
#[cfg(not(simulation))]
pub(super) const CHANGED: &str =
    "another migration or import has closed it, or it was reopened, meanwhile";

/// What is said where another one has closed the store.
#[cfg(not(simulation))]
pub(super) const TAKEN_OVER: &str = "another migration or import has taken it over";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        let moved = |store: &str, id| Mark::MovedTo { store: store.to_owned(), id, is_done: true };
        for mark in [
            Mark::MovedTo { store: "redb:/a".into(), id: None, is_done: false },
            Mark::MovedTo { store: "etcd://a/b".into(), id: Some(5), is_done: false },
            moved("etcd://a/b", None),
            moved("etcd://a/b", Some(5)),
            moved("redb:/a#b", None),
            moved("redb:/a#0123456789abcdeg", None),
            Mark::FilledFrom("moved to ".into()),
        ] {
            assert_eq!(mark.to_string().parse(), Ok(mark));
        }
        let id = 0x0123_4567_89ab_cdef;
        assert_eq!(moved("a", Some(id)).to_string(), "moved to a#0123456789abcdef");
        assert!(
            moved("a", Some(id)).leads_to("a", None)
                && moved("a", Some(id)).leads_to("b", Some(id))
        );
        assert!(moved("a", None).leads_to("a", Some(5)) && !moved("a", None).leads_to("b", None));
        assert!(!moved("a", Some(id)).leads_to("a", Some(5)));
        assert!("moved".parse::<Mark>().is_err() && "".parse::<Mark>().is_err());
    }
}
