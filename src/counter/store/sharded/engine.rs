//! What a database must keep, so that counters can share it.

use std::{
    collections::BTreeSet,
    fmt,
    time::{Duration, Instant},
};

use super::super::TotalsByName;

/// How often a counter shows that it runs while it has nothing to commit.
pub const BEAT: Duration = Duration::from_secs(10);

/// A counter that was not seen for so long is gone, by the clock of the database.
pub const GONE_AFTER: Duration = Duration::from_secs(3600);
const _: () = assert!(GONE_AFTER.as_secs() >= 60 * BEAT.as_secs());

/// One shard in a database. All methods end by `until`, and each call is one transaction, or as good as one.
///
/// An engine must keep:
/// - Epochs are never used twice, by no shard of the database, also not after a shard was removed.
/// - A commit takes effect only if the shard's epoch is the given one and its sequence number is below the given one,
///   which it then has. This holds for tries that were given up, however late they arrive.
/// - A commit is durable when it returns. What [`take`](Self::take) reads contains all commits of earlier epochs that
///   have taken effect, and no other can any more.
/// - It does not connect again within a call that has failed, nor hide that a connection was lost: the values are
///   written again after that, in case that another copy of the database lacks some.
pub trait Engine: Send + fmt::Display {
    /// Takes the shard, and folds those of counters that are gone into it.
    ///
    /// # Errors
    /// Never [`Trouble::Fenced`].
    fn take(&mut self, until: Instant) -> Result<Taken, Trouble>;

    /// Writes values of the shard, which may be none: then it only shows that this counter runs. What the other shards
    /// hold of `wanted`, read at any moment of the call; a name that they lack is left out.
    ///
    /// # Errors
    /// See [`Trouble`].
    fn commit(
        &mut self,
        fence: Fence,
        values: &TotalsByName,
        wanted: Wanted<'_>,
        until: Instant,
    ) -> Result<TotalsByName, Trouble>;

    /// What the other shards hold of `wanted`, read at a moment when the shard still had this epoch.
    ///
    /// # Errors
    /// See [`Trouble`].
    fn read(
        &mut self,
        epoch: u64,
        wanted: Wanted<'_>,
        until: Instant,
    ) -> Result<TotalsByName, Trouble>;
}

/// A shard that was taken.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Higher than all before.
    pub epoch: u64,
    /// What the shard holds, with what was folded into it.
    pub own: TotalsByName,
    /// What the other shards hold together.
    pub others: TotalsByName,
}

/// What makes a commit the last of its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fence {
    /// The epoch of the shard's owner.
    pub epoch: u64,
    /// The number of the try, from 1.
    pub sequence: u64,
}

/// Names whose sums are wanted.
#[derive(Debug, Clone, Copy)]
pub enum Wanted<'a> {
    /// These.
    Names(&'a BTreeSet<String>),
    /// All that there are.
    All,
}

/// Why an engine did not do it. With all but [`Unknown`](Self::Unknown) nothing was written, and nothing will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// Another counter has the shard.
    Fenced,
    /// Another try is useless: somebody has to change something first.
    Refused(String),
    /// It met with others, and may succeed at once: a serialization failure.
    Conflict(String),
    /// There is no connection, or it was lost before the commit.
    Disconnected(String),
    /// The answer was lost: it may have been written, or may still be.
    Unknown(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fenced => f.write_str("another counter has taken over the shard"),
            Self::Refused(why)
            | Self::Conflict(why)
            | Self::Disconnected(why)
            | Self::Unknown(why) => f.write_str(why),
        }
    }
}
