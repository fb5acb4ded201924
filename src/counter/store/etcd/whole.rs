//! A cluster as a whole, while no counter uses it. What does not fit into one transaction is done in several, under the
//! mark: no counter starts before the last of them.

use std::{collections::BTreeMap, path::PathBuf, time::Instant};

use super::{
    super::{
        Found, Hold, Mark, OpenError, Seen, TotalsByName, Whole, database_error,
        sharded::{Fence, Trouble},
        whole::{CHANGED, COUNTED, SEEN_BEFORE, SHARD, TAKEN_OVER},
    },
    Etcd, Stopped,
    layout::{LEVEL_MAX, Layout, fence_value, nest, pieces, sums},
    read_all,
    session::Session,
    take::{FORMAT, Standing, change, check_free, look, met_others},
    unchanged,
    wire::{Compare, Operation, Transaction},
};

impl Whole for Etcd {
    fn look(&mut self, until: Instant) -> Result<Found, OpenError> {
        self.step(until, find)
    }

    fn prepare_close(&mut self, _: &Mark, until: Instant) -> Result<(), OpenError> {
        self.step(until, probe_close)
    }

    fn close(
        &mut self,
        mark: &Mark,
        seen: &Found,
        force: bool,
        until: Instant,
    ) -> Result<Found, OpenError> {
        self.step(until, async |session, layout| close(session, layout, mark, seen, force).await)
    }

    fn fill(&mut self, hold: Hold, totals: &TotalsByName, until: Instant) -> Result<(), OpenError> {
        self.step(until, async |session, layout| fill(session, layout, hold, totals).await)
    }

    fn open(&mut self, hold: Hold, until: Instant) -> Result<Option<PathBuf>, OpenError> {
        let opened = self.step(until, async |session, layout| open(session, layout, hold).await);
        opened.map(|()| None)
    }

    fn identify(&mut self, before: Option<u64>, id: u64, until: Instant) -> Result<(), OpenError> {
        self.step(until, async |session, layout| identify(session, layout, before, id).await)
    }
}

impl Etcd {
    fn step<T>(
        &mut self,
        until: Instant,
        act: impl AsyncFnOnce(&mut Session, &Layout) -> Result<T, Stopped>,
    ) -> Result<T, OpenError> {
        let done = self.within(until, act);
        done.map_err(|trouble| database_error(&self.members, &trouble))
    }
}

async fn find(session: &mut Session, layout: &Layout) -> Result<Found, Stopped> {
    let standing = look(session, layout).await?;
    let totals = sums(&read_all(session, layout, None).await?);
    let is_new = standing.is_new(layout);
    let hold = hold_of(&standing, layout);
    let counters = counters(&standing, session.now());
    Ok(Found { totals, mark: standing.mark, hold, counters, is_new, id: standing.id })
}

async fn identify(
    session: &mut Session,
    layout: &Layout,
    before: Option<u64>,
    id: u64,
) -> Result<(), Stopped> {
    let standing = look(session, layout).await?;
    check_free(session, layout, &standing).await?;
    if standing.id != before {
        return Ok(());
    }
    let compare = vec![Compare::unchanged(&layout.id(), standing.id_revision)];
    let success = vec![Operation::put(layout.id(), id.to_string())];
    change(session, Transaction { compare, success, ..Transaction::default() }).await.map(drop)
}

/// Rights are checked for the parts that a transaction does not come to, too.
async fn probe_close(session: &mut Session, layout: &Layout) -> Result<(), Stopped> {
    if let Some(why) = session.alarm {
        return Err(Trouble::Refused(why.to_owned()).into());
    }
    let put = |key| Operation::put(key, String::new());
    let success = vec![
        put(layout.format()),
        put(layout.epoch()),
        put(layout.mark()),
        Operation::delete(layout.own().to_owned()),
    ];
    let compare = vec![Compare::never(&layout.epoch())];
    change(session, Transaction { compare, success, ..Transaction::default() }).await.map(drop)
}

/// Who holds it by its mark.
fn hold_of(standing: &Standing, layout: &Layout) -> Hold {
    Hold(standing.revisions.get(&layout.mark()).copied().unwrap_or(0))
}

fn counters(standing: &Standing, now: Option<u64>) -> Vec<Seen> {
    let ago = |seen: Option<u64>| Some(now?.saturating_sub(seen?));
    let seen = standing.shards.iter().map(|shard| Seen {
        shard: shard.name.clone(),
        commit: shard.revision.to_string(),
        ago: ago(shard.seen),
    });
    seen.collect()
}

/// The mark is made first, so nobody starts from then on. Then the fence of each shard is removed, by which its counter
/// is fenced.
async fn close(
    session: &mut Session,
    layout: &Layout,
    mark: &Mark,
    before: &Found,
    force: bool,
) -> Result<Found, Stopped> {
    let standing = look(session, layout).await?;
    check_free(session, layout, &standing).await?;
    // Nobody changes it from here to the transaction below.
    if !before.is_marked_as(standing.mark.as_ref(), hold_of(&standing, layout)) {
        return Err(Trouble::Refused(CHANGED.to_owned()).into());
    }
    let counters = counters(&standing, None);
    if !force && counters.iter().any(|seen| !seen.is_as_in(&before.counters)) {
        return Err(Trouble::Conflict(COUNTED.to_owned()).into());
    }
    let success = vec![
        Operation::put(layout.format(), FORMAT.to_owned()),
        Operation::put(layout.epoch(), (standing.epoch + 1).to_string()),
        Operation::put(layout.mark(), mark.to_string()),
    ];
    let marked = Transaction { compare: standing.unchanged(), success, ..Transaction::default() };
    let (held, revision) = change(session, marked).await?;
    if !held {
        return Err(met_others().into());
    }
    let hold = Hold(revision);
    for shards in standing.shards.chunks(LEVEL_MAX) {
        let mut compare = vec![holds(layout, hold)];
        if !force {
            let shards: Vec<_> =
                shards.iter().map(|shard| (shard.key.clone(), shard.revision)).collect();
            compare.extend(unchanged(&shards));
        }
        let success = shards.iter().map(|shard| Operation::delete(shard.key.clone())).collect();
        let fences = Transaction { compare, success, ..Transaction::default() };
        if !change(session, fences).await?.0 {
            open(session, layout, hold).await?;
            return Err(Trouble::Conflict(COUNTED.to_owned()).into());
        }
    }
    let totals = sums(&read_all(session, layout, None).await?);
    Ok(Found { totals, mark: Some(mark.clone()), hold, ..Found::default() })
}

/// Whether the store is still held.
fn holds(layout: &Layout, hold: Hold) -> Compare {
    Compare::unchanged(&layout.mark(), hold.0)
}

async fn fill(
    session: &mut Session,
    layout: &Layout,
    hold: Hold,
    totals: &TotalsByName,
) -> Result<(), Stopped> {
    let rows = read_all(session, layout, None).await?;
    let mut parts: BTreeMap<String, Option<String>> =
        rows.into_iter().map(|row| (layout.value(&row.name, &row.shard), None)).collect();
    parts.extend(
        totals.iter().map(|(name, total)| (layout.value(name, SHARD), Some(total.to_string()))),
    );
    let fence = Fence { epoch: look(session, layout).await?.epoch, sequence: 0 };
    let seen = session.now().map(|now| now.saturating_sub(SEEN_BEFORE));
    parts.insert(layout.own().to_owned(), Some(fence_value(fence, 0, seen)));
    let sizes: Vec<_> = parts
        .iter()
        .map(|(key, value)| key.len() + value.as_ref().map_or(0, String::len))
        .collect();
    let mut parts = parts.into_iter().map(|(key, value)| match value {
        Some(value) => Operation::put(key, value),
        None => Operation::delete(key),
    });
    for places in pieces(&sizes) {
        let success = nest(parts.by_ref().take(places.len()).collect());
        let compare = vec![holds(layout, hold)];
        let piece = Transaction { compare, success, ..Transaction::default() };
        if !change(session, piece).await?.0 {
            return Err(Trouble::Refused(TAKEN_OVER.to_owned()).into());
        }
    }
    Ok(())
}

async fn open(session: &mut Session, layout: &Layout, hold: Hold) -> Result<(), Stopped> {
    let compare = vec![holds(layout, hold)];
    let success = vec![Operation::delete(layout.mark())];
    let removed = Transaction { compare, success, ..Transaction::default() };
    // A try before may have done it.
    if !change(session, removed).await?.0 && look(session, layout).await?.mark.is_some() {
        return Err(Trouble::Refused(TAKEN_OVER.to_owned()).into());
    }
    Ok(())
}
