//! Shards in etcd, by the JSON gateway that every member has for its clients: HTTP, so that no code for gRPC is needed.
//!
//! A commit is one transaction, whose comparisons are the fence: etcd writes the values only if the shard's epoch is
//! this counter's and its sequence number is below the given one, whenever and by whichever member the commit arrives.
//! Only what etcd takes no transaction for, megabytes of it, is cut into several, which are numbered in turn.
//!
//! A member that fails is left for the next one. What it was asked is not asked again here: that is the store's to do.

mod explain;
mod layout;
mod members;
mod session;
mod take;
mod tls;
mod url;
mod whole;
mod wire;

use std::{fmt, io, time::Duration};

use tokio::{
    runtime::{Builder, Runtime},
    time::Instant,
};

pub use self::url::ClusterUrl;
use self::{
    explain::CallError,
    layout::{Layout, Row, epoch_text, fence_text, fence_value, nest, pieces},
    members::Members,
    session::{Deadlines, Session},
    wire::{Compare, Operation, Range, RangeAnswer, Transaction, TransactionAnswer},
};
use super::{
    TotalsByName,
    sharded::{Engine, Fence, Taken, Trouble, Wanted},
};

/// The most names whose sums are read with a commit; for more, all values are read.
const NAMES_WANTED_MAX: usize = 500;

/// The most values of one read. With the longest names they take 1.4 MB.
const PAGE: usize = 2_000;

/// How long a call may take in which all totals are moved: nobody waits for it, and it may have megabytes.
const WHOLE_PATIENCE: Duration = Duration::from_secs(20);

/// A shard in a cluster.
pub(super) struct Etcd {
    layout: Layout,
    /// How long each call may take at least, once there is a connection.
    patience_min: Duration,
    runtime: Runtime,
    session: Option<Session>,
    members: Members,
}

/// Why something was not done.
#[derive(Debug)]
struct Stopped {
    trouble: Trouble,
    /// Whether the connection can be used again.
    keeps_connection: bool,
}

impl Stopped {
    fn read(error: CallError) -> Self {
        Self { keeps_connection: error.keeps_connection(), trouble: error.of_read() }
    }

    fn write(error: CallError) -> Self {
        Self { keeps_connection: error.keeps_connection(), trouble: error.of_write() }
    }

    /// The same after something was written, by which nothing is certain but that it may be there.
    fn unknown(self) -> Self {
        Self { trouble: Trouble::Unknown(self.trouble.to_string()), ..self }
    }
}

impl From<Trouble> for Stopped {
    fn from(trouble: Trouble) -> Self {
        Self { trouble, keeps_connection: true }
    }
}

impl Etcd {
    /// Connects to nothing yet.
    pub(super) fn new(cluster: &ClusterUrl, shard: &str) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (layout, members) = (Layout::new(&cluster.prefix, shard), Members::new(cluster));
        Ok(Self { layout, patience_min: Duration::ZERO, runtime, session: None, members })
    }

    /// The same, for a cluster that no counter uses.
    pub(super) fn whole(cluster: &ClusterUrl, shard: &str) -> io::Result<Self> {
        Ok(Self { patience_min: WHOLE_PATIENCE, ..Self::new(cluster, shard)? })
    }

    /// Checks all that a start needs, and changes nothing.
    pub(super) fn probe(&mut self, until: std::time::Instant) -> Result<(), Trouble> {
        self.within(until, take::probe)
    }

    /// Does something in the session, which it opens if there is none.
    fn within<T>(
        &mut self,
        until: std::time::Instant,
        act: impl AsyncFnOnce(&mut Session, &Layout) -> Result<T, Stopped>,
    ) -> Result<T, Trouble> {
        let Self { layout, patience_min, runtime, session, members } = self;
        runtime.block_on(async {
            let deadlines = members.deadlines(until);
            let mut open = match session.take() {
                Some(open) if open.is_closed().await => {
                    return Err(Trouble::Disconnected(String::from(
                        "it has closed the connection",
                    )));
                }
                Some(open) => open,
                None => members.connect(deadlines).await?,
            };
            let patience = deadlines.patience.max(*patience_min);
            open.deadlines = Deadlines { patience, ..deadlines };
            let began = Instant::now();
            match act(&mut open, layout).await {
                Ok(done) => {
                    members.note_answer();
                    *session = Some(open);
                    Ok(done)
                }
                Err(Stopped { trouble, keeps_connection: true }) => {
                    *session = Some(open);
                    Err(trouble)
                }
                Err(Stopped { trouble, keeps_connection: false }) => {
                    members.leave(open.place, began.elapsed() >= patience);
                    Err(trouble)
                }
            }
        })
    }
}

impl fmt::Display for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (shard {})", self.members, self.layout.shard())
    }
}

impl Engine for Etcd {
    fn take(&mut self, until: std::time::Instant) -> Result<Taken, Trouble> {
        self.within(until, take::take)
    }

    fn commit(
        &mut self,
        fence: Fence,
        values: &TotalsByName,
        wanted: Wanted<'_>,
        until: std::time::Instant,
    ) -> Result<TotalsByName, Trouble> {
        self.within(until, async |session, layout| {
            commit(session, layout, fence, values, wanted).await
        })
    }

    fn read(
        &mut self,
        epoch: u64,
        wanted: Wanted<'_>,
        until: std::time::Instant,
    ) -> Result<TotalsByName, Trouble> {
        self.within(until, async |session, layout| read(session, layout, epoch, wanted).await)
    }
}

const TRANSACTION: &str = "/v3/kv/txn";
const RANGE: &str = "/v3/kv/range";

/// Sends a transaction; what its reads have found, and whether its comparisons held.
async fn transact(
    session: &mut Session,
    transaction: &Transaction,
) -> Result<(bool, u64, Vec<RangeAnswer>), CallError> {
    let answer: TransactionAnswer = session.call(TRANSACTION, transaction).await?;
    Ok((answer.succeeded, answer.header.revision, answer.into_ranges()))
}

async fn commit(
    session: &mut Session,
    layout: &Layout,
    fence: Fence,
    values: &TotalsByName,
    wanted: Wanted<'_>,
) -> Result<TotalsByName, Stopped> {
    let puts: Vec<_> = values
        .iter()
        .map(|(name, value)| (layout.value(name, layout.shard()), value.to_string()))
        .collect();
    let sizes: Vec<_> = puts.iter().map(|(key, value)| key.len() + value.len()).collect();
    let pieces = pieces(&sizes);
    let last = pieces.len() - 1;
    let mut puts = puts.into_iter().map(|(key, value)| Operation::put(key, value));
    let mut found = None;
    for (piece, places) in pieces.into_iter().enumerate() {
        let mut parts: Vec<_> = puts.by_ref().take(places.len()).collect();
        if piece == last {
            parts.extend(sums_of(layout, wanted).unwrap_or_default());
        }
        let done = write(session, layout, (fence, piece), parts).await;
        // What was written before it stays.
        found = done.map_err(|stopped| if piece > 0 { stopped.unknown() } else { stopped })?;
    }
    match (found, sums_of(layout, wanted)) {
        (Some(found), Some(_)) => sum(layout, found).map_err(Stopped::unknown),
        // Whatever fails now, it is committed. A counter that has lost its shard after that learns it by the next try.
        _ => read(session, layout, fence.epoch, wanted).await.map_err(Stopped::unknown),
    }
}

/// The reads of the sums of some names; `None` where all values must be read for it.
fn sums_of(layout: &Layout, wanted: Wanted<'_>) -> Option<Vec<Operation>> {
    match wanted {
        Wanted::Names(names) if names.len() <= NAMES_WANTED_MAX => {
            Some(names.iter().map(|name| layout.sum(name)).collect())
        }
        Wanted::Names(_) | Wanted::All => None,
    }
}

fn sum(layout: &Layout, found: Vec<RangeAnswer>) -> Result<TotalsByName, Stopped> {
    let rows = layout.rows(found).map_err(Trouble::Refused)?;
    Ok(layout.sum_of_others(&rows))
}

/// Writes a piece of a commit; what its reads have found, unless it was written and the answer does not have that.
async fn write(
    session: &mut Session,
    layout: &Layout,
    (fence, piece): (Fence, usize),
    parts: Vec<Operation>,
) -> Result<Option<Vec<RangeAnswer>>, Stopped> {
    let own = fence_value(fence, piece, session.now());
    let mut success = vec![Operation::put(layout.own().to_owned(), own)];
    success.extend(nest(parts));
    let compare = layout.is_next(fence, piece).into();
    let failure = vec![Operation::get(layout.own())];
    let transaction = Transaction { compare, success, failure };
    match transact(session, &transaction).await {
        Ok((true, _, found)) => Ok(Some(found)),
        Ok((false, _, found)) => match standing(found) {
            // Something between here and etcd has sent it twice.
            Some(stands) if stands.starts_with(&epoch_text(fence.epoch)) => {
                Err(Trouble::Unknown(String::from("it has this commit already")).into())
            }
            _ => Err(Trouble::Fenced.into()),
        },
        Err(CallError::NoSpace(why)) => {
            // etcd says so before a commit, and after one that it has written. It has been decided, so a read tells.
            let look = Transaction {
                success: vec![Operation::get(layout.own())],
                ..Transaction::default()
            };
            let looked = transact(session, &look).await;
            let (_, _, found) = looked.map_err(|error| Stopped::read(error).unknown())?;
            match standing(found) {
                Some(stands) if stands.starts_with(&fence_text(fence, piece)) => Ok(None),
                Some(stands) if stands.starts_with(&epoch_text(fence.epoch)) => {
                    Err(Trouble::Refused(why).into())
                }
                _ => Err(Trouble::Fenced.into()),
            }
        }
        Err(error) => Err(Stopped::write(error)),
    }
}

/// The value of the only key that was read.
fn standing(found: Vec<RangeAnswer>) -> Option<String> {
    found.into_iter().flat_map(|range| range.kvs).next().map(|found| found.value.0)
}

async fn read(
    session: &mut Session,
    layout: &Layout,
    epoch: u64,
    wanted: Wanted<'_>,
) -> Result<TotalsByName, Stopped> {
    if let Some(sums) = sums_of(layout, wanted) {
        let (found, _) = read_fenced(session, layout, Some(epoch), sums).await?;
        return sum(layout, found);
    }
    let rows = read_all(session, layout, Some(epoch)).await?;
    let mut sums = layout.sum_of_others(&rows);
    if let Wanted::Names(names) = wanted {
        sums.retain(|name, _| names.contains(name));
    }
    Ok(sums)
}

/// Reads at a moment when the shard has this epoch, if one is given, and which revision that was.
async fn read_fenced(
    session: &mut Session,
    layout: &Layout,
    epoch: Option<u64>,
    parts: Vec<Operation>,
) -> Result<(Vec<RangeAnswer>, u64), Stopped> {
    // A transaction without a read may be answered by a member that lags behind.
    let mut success = vec![Operation::get(layout.own())];
    success.extend(nest(parts));
    let failure = vec![Operation::get(layout.own())];
    let compare = epoch.map_or_else(Vec::new, |epoch| layout.has_epoch(epoch).into());
    let transaction = Transaction { compare, success, failure };
    match transact(session, &transaction).await.map_err(Stopped::read)? {
        (true, revision, mut found) => {
            found.remove(0);
            Ok((found, revision))
        }
        (false, ..) => Err(Trouble::Fenced.into()),
    }
}

/// All values of all shards, at one moment; if an epoch is given, when the shard has it.
async fn read_all(
    session: &mut Session,
    layout: &Layout,
    epoch: Option<u64>,
) -> Result<Vec<Row>, Stopped> {
    let first = Operation::Range(layout.page(layout.totals(), None, PAGE));
    let (mut found, revision) = read_fenced(session, layout, epoch, vec![first]).await?;
    let mut rows = Vec::new();
    while let Some(page) = found.pop() {
        // The first key after the last one.
        let next = page.kvs.last().filter(|_| page.more).map(|last| format!("{}\0", last.key.0));
        rows.extend(layout.rows(vec![page]).map_err(Trouble::Refused)?);
        if let Some(next) = next {
            let ask: Range = layout.page(next, Some(revision), PAGE);
            found.push(session.call(RANGE, &ask).await.map_err(Stopped::read)?);
        }
    }
    Ok(rows)
}

/// What must hold while a shard is taken.
fn unchanged(keys: &[(String, u64)]) -> Vec<Compare> {
    keys.iter().map(|(key, revision)| Compare::unchanged(key, *revision)).collect()
}
