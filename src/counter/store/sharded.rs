//! Totals in a database that several counters share. Each running counter owns a *shard*: one row for each name, which
//! nobody else writes. A total is the sum of all shards, so no two counters contend for a row.
//!
//! ```text
//!                                     +-- committed --+
//!                                     v               |
//!   (start) --take: a new epoch--> settled ---------> commit, with the next sequence number
//!                                     ^               |   |
//!                                     |    conflict,  |   | the answer or the connection is lost:
//!                                committed  again     |   | all values are written again
//!                                     |               |   v
//!                                     +---------- unsettled <--+
//!                                                     |   |    |
//!   any of them --another counter has the shard--> fenced +----+ the time is up: the next commit goes on
//! ```
//!
//! - *Values are absolute.* A commit writes "the shard's value is 17", not "one more", so a commit whose answer was lost
//!   is written once more and counts once. While it is not known whether it was kept, its additions stay in the values
//!   of this process, and the next commit decides.
//! - *Commits are numbered.* Each try has the next sequence number of its epoch, and a database takes none after a
//!   higher one. So a try that was given up, and arrives late, cannot write old values over new ones.
//! - *One writer.* To take a shard gives it a new epoch; a commit with an earlier one is refused. The counter that had
//!   the shard learns it at its next commit or read, and counts and tells nothing from then on.
//! - *A total that is told* is the sum of this shard, with the addition, and of what the others held at one moment of
//!   the call. It contains all that anybody had confirmed before the call began, and nothing that was not kept. Two
//!   counters may tell the same number to two calls that overlap: to exclude that, each commit would have to wait for
//!   those of all other counters.
//! - *Shards of counters that are gone* are folded into the shard of the next one that starts: one transaction gives it
//!   their values and removes their rows, so a counter that was only thought gone is fenced by the missing row. Gone is
//!   who was not seen for [`GONE_AFTER`]; a counter that runs is seen at each commit and each [`BEAT`].
//!
//! Knows no engine: what an engine must keep is said at [`Engine`].

mod engine;
#[cfg(test)]
mod tests;
mod values;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

pub use self::engine::{BEAT, Engine, Fence, GONE_AFTER, Taken, Trouble, Wanted};
use self::values::Values;
use super::{Counted, Health, Listings, NAMES_MAX, Operation, Outcome, Store, TotalsByName};

/// How long a commit is tried again.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// From the first try to the end of the last.
    pub time: Duration,
    /// Between two of them.
    pub pause: Duration,
    /// The most tries.
    pub tries: usize,
}

impl Default for Retry {
    /// Twice the time that a visit waits for its counter, and a third of the time that any call may take.
    fn default() -> Self {
        Self { time: Duration::from_secs(10), pause: Duration::from_millis(100), tries: usize::MAX }
    }
}

/// The tries of one call.
struct Tries {
    retry: Retry,
    end: Instant,
    left: usize,
    hurry: Arc<AtomicBool>,
}

impl Tries {
    fn new(retry: Retry, hurry: &Arc<AtomicBool>) -> Self {
        let end = Instant::now() + retry.time;
        Self { retry, end, left: retry.tries, hurry: Arc::clone(hurry) }
    }

    /// Waits until the next try; whether there is one.
    // The thread of the commits has nothing else to do.
    #[allow(clippy::disallowed_methods)]
    fn again(&mut self) -> bool {
        self.left = self.left.saturating_sub(1);
        let hurry = self.hurry.load(Ordering::Relaxed);
        if hurry || self.left == 0 || Instant::now() + self.retry.pause >= self.end {
            return false;
        }
        thread::sleep(self.retry.pause);
        true
    }
}

/// A shard, and what is known of the others.
pub struct ShardedStore<E> {
    engine: E,
    retry: Retry,
    hurry: Arc<AtomicBool>,
    epoch: u64,
    /// Of the last try.
    sequence: u64,
    /// The values of this shard. Those of names that are not unsettled are durable.
    own: Values,
    /// Names whose value in the database may be another.
    unsettled: BTreeSet<String>,
    /// What the others held when they were read last.
    others: Values,
    /// What was durable at the last commit.
    counted: Counted,
    fenced: bool,
    health: Health,
    listings: Listings,
}

/// Why a batch was not committed.
struct NotCommitted(Outcome, Trouble);

/// What a batch does to the values of the shard.
#[derive(Default)]
struct Plan {
    changed: TotalsByName,
    /// The value of the shard that each operation sees, its own addition included; `None` for one name too many.
    seen: Vec<Option<u64>>,
    /// The names that it is about.
    names: BTreeSet<String>,
    lists_all: bool,
}

impl Plan {
    fn wanted(&self) -> Wanted<'_> {
        if self.lists_all { Wanted::All } else { Wanted::Names(&self.names) }
    }
}

impl<E: Engine> ShardedStore<E> {
    /// Takes the shard.
    ///
    /// # Errors
    /// When that fails for as long as it is tried.
    pub fn open(mut engine: E, retry: Retry) -> Result<Self, Trouble> {
        let hurry = Arc::default();
        let mut tries = Tries::new(retry, &hurry);
        let taken = loop {
            match engine.take(tries.end) {
                Ok(taken) => break taken,
                Err(trouble @ Trouble::Refused(_)) => return Err(trouble),
                Err(trouble) => {
                    if tries.left == retry.tries {
                        tracing::warn!("waiting for the counter's store {engine}: {trouble}");
                    }
                    if !tries.again() {
                        return Err(trouble);
                    }
                }
            }
        };
        let mut store = Self {
            engine,
            retry,
            hurry,
            epoch: taken.epoch,
            sequence: 0,
            own: Values::new(taken.own),
            unsettled: BTreeSet::new(),
            others: Values::new(taken.others),
            counted: Counted::default(),
            fenced: false,
            health: Health::default(),
            listings: Listings::default(),
        };
        store.note_counted();
        Ok(store)
    }

    fn try_commit(&mut self, batch: &[Operation]) -> Result<Vec<Outcome>, NotCommitted> {
        let mut tries = Tries::new(self.retry, &self.hurry);
        if batch.iter().any(|operation| self.is_new(operation)) {
            // The names of all shards together are limited, and others may have some that are not known here.
            let all = Plan { lists_all: true, ..Plan::default() };
            let sums = self.exchange(&all, false, &mut tries)?;
            self.learn(&all, sums);
        }
        let plan = self.plan(batch);
        let sums = self.exchange(&plan, false, &mut tries)?;
        self.learn(&plan, sums);
        if !plan.changed.is_empty() {
            self.note_counted();
        }
        // One for all: no operation of this batch was answered before, so each listing may be that of its end.
        let listing =
            plan.lists_all.then(|| self.listings.list(|| Ok(self.own.plus(&self.others))));
        let listing = listing.and_then(Result::ok).unwrap_or(Outcome::Busy);
        let outcome = |(operation, seen): (&Operation, &Option<u64>)| match (operation, seen) {
            (Operation::All, _) => listing.clone(),
            (_, None) => Outcome::TooManyNames,
            (Operation::Add { name, .. } | Operation::Total { name }, Some(own)) => {
                Outcome::Total(own.saturating_add(self.others.value(name)))
            }
        };
        Ok(batch.iter().zip(&plan.seen).map(outcome).collect())
    }

    /// Whether this adds to a name that no shard is known to have.
    fn is_new(&self, operation: &Operation) -> bool {
        let Operation::Add { name, .. } = operation else { return false };
        !name.is_empty() && !self.own.contains(name) && !self.others.contains(name)
    }

    /// What the operations do, in order.
    fn plan(&self, batch: &[Operation]) -> Plan {
        let mut plan = Plan::default();
        // Counted only when it is needed.
        let mut names = None;
        for operation in batch {
            let (name, by) = match operation {
                Operation::Add { name, by } => (name, *by),
                Operation::Total { name } => (name, 0),
                Operation::All => {
                    plan.lists_all = true;
                    plan.seen.push(Some(0));
                    continue;
                }
            };
            let changed = plan.changed.get(name).copied();
            if changed.is_none() && self.is_new(operation) {
                let names = names.get_or_insert_with(|| self.own.names_with(&self.others));
                if *names >= NAMES_MAX {
                    plan.seen.push(None);
                    continue;
                }
                *names += 1;
            }
            // It does not overflow in practice.
            let after = changed.unwrap_or_else(|| self.own.value(name)).saturating_add(by);
            if by > 0 {
                plan.changed.insert(name.clone(), after);
            }
            plan.names.insert(name.clone());
            plan.seen.push(Some(after));
        }
        plan
    }

    /// Commits what a plan changes and what is unsettled; what the other shards hold of the names that it is about.
    /// Where there is nothing to write it reads only, unless the counter is to be seen.
    fn exchange(
        &mut self,
        plan: &Plan,
        to_be_seen: bool,
        tries: &mut Tries,
    ) -> Result<TotalsByName, NotCommitted> {
        // Whether a try to write these changes may have been, or may still be, successful.
        let mut unknown = false;
        let trouble = loop {
            if self.fenced {
                break Trouble::Fenced;
            }
            let values = self.to_write(plan);
            let writes = to_be_seen || !values.is_empty();
            let tried = if writes {
                self.sequence += 1;
                let fence = Fence { epoch: self.epoch, sequence: self.sequence };
                self.engine.commit(fence, &values, plan.wanted(), tries.end)
            } else {
                self.engine.read(self.epoch, plan.wanted(), tries.end)
            };
            let trouble = match tried {
                Ok(sums) => {
                    values.into_iter().for_each(|(name, value)| self.own.set(&name, Some(value)));
                    self.unsettled.clear();
                    return Ok(sums);
                }
                Err(trouble) => trouble,
            };
            match &trouble {
                Trouble::Fenced => self.fenced = true,
                Trouble::Refused(_) => break trouble,
                Trouble::Conflict(_) => {}
                Trouble::Disconnected(_) | Trouble::Unknown(_) => {
                    unknown |= matches!(trouble, Trouble::Unknown(_));
                    self.unsettled = self.own.names().cloned().collect();
                    self.complain(&trouble);
                }
            }
            if self.fenced || !tries.again() {
                break trouble;
            }
        };
        if !unknown || plan.changed.is_empty() {
            return Err(NotCommitted(Outcome::Failed, trouble));
        }
        // Later values contain these changes, whether they have been written or not.
        for (name, value) in &plan.changed {
            self.own.set(name, Some(*value));
            self.unsettled.insert(name.clone());
        }
        Err(NotCommitted(Outcome::Unknown, trouble))
    }

    /// The values that the next try writes.
    fn to_write(&self, plan: &Plan) -> TotalsByName {
        let unsettled = self.unsettled.iter().map(|name| (name.clone(), self.own.value(name)));
        let mut values: TotalsByName = unsettled.collect();
        values.extend(plan.changed.iter().map(|(name, value)| (name.clone(), *value)));
        values
    }

    /// Notes what the others hold of the names of a plan.
    fn learn(&mut self, plan: &Plan, sums: TotalsByName) {
        match plan.lists_all {
            true => self.others = Values::new(sums),
            false => {
                plan.names.iter().for_each(|name| self.others.set(name, sums.get(name).copied()));
            }
        }
    }

    /// Notes what is durable, when nothing is unsettled.
    fn note_counted(&mut self) {
        self.counted = Counted {
            total: self.own.value("").saturating_add(self.others.value("")),
            named: self.own.named().saturating_add(self.others.named()),
        };
    }

    /// Logs why it fails.
    fn complain(&self, trouble: &Trouble) {
        let problem = trouble.to_string();
        let is_to_be_told = match trouble {
            Trouble::Fenced => self.health.ends(&problem),
            _ => self.health.fails(&problem),
        };
        if is_to_be_told {
            let engine = &self.engine;
            tracing::error!(
                "nothing is counted, for the counter's store {engine} fails: {trouble}"
            );
        }
    }

    /// Notes that it works.
    fn works(&self) {
        if self.health.works() {
            tracing::info!("the counter's store {} works again", self.engine);
        }
    }
}

impl<E: Engine> Store for ShardedStore<E> {
    fn commit(&mut self, batch: &[Operation]) -> Vec<Outcome> {
        if batch.is_empty() {
            return Vec::new();
        }
        match self.try_commit(batch) {
            Ok(outcomes) => {
                self.works();
                outcomes
            }
            Err(NotCommitted(outcome, trouble)) => {
                self.complain(&trouble);
                vec![outcome; batch.len()]
            }
        }
    }

    fn counted(&self) -> Counted {
        self.counted
    }

    fn beat(&mut self) -> Option<Duration> {
        match self.exchange(&Plan::default(), true, &mut Tries::new(self.retry, &self.hurry)) {
            Ok(_) => {
                // It may have settled a commit whose answer was lost.
                self.note_counted();
                self.works();
            }
            Err(NotCommitted(_, trouble)) => self.complain(&trouble),
        }
        Some(BEAT)
    }

    fn hurry(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.hurry)
    }

    fn health(&self) -> Health {
        self.health.clone()
    }

    fn is_fenced(&self) -> bool {
        self.fenced
    }
}
