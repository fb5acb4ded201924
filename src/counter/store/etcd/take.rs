//! How a counter takes its shard, and the values of counters that are gone.
//!
//! A new epoch is one transaction. Then each shard that is gone is fenced, by a fence of this epoch: from then on nobody
//! else writes its values. They are moved to this shard name by name, each in a transaction that leaves all sums as they
//! are, and at last its key is removed. Whoever is interrupted in that leaves a shard that is gone to the next one.

use std::collections::BTreeMap;

use super::{
    super::{
        Mark,
        sharded::{Fence, GONE_AFTER, Taken, Trouble},
    },
    CallError, PAGE, RANGE, Stopped,
    layout::{LEVEL_MAX, Layout, Row, fence_value, nest, parse_fence, pieces, sums},
    read_all,
    session::Session,
    transact, unchanged,
    wire::{Compare, Operation, Range, Transaction},
};

/// The most shards that one start takes: so many comparisons fit into a transaction. The next start takes the others.
const FOLDED_MAX: usize = LEVEL_MAX;

/// The version of the keys.
pub(super) const FORMAT: &str = "1";

/// What stands before a shard is taken.
pub(super) struct Standing {
    /// Of the keys of the format, the epoch, the mark and this shard: the revisions at which they were changed last, 0
    /// where they are not there.
    pub(super) revisions: BTreeMap<String, u64>,
    /// The highest epoch.
    pub(super) epoch: u64,
    /// Why no counter may take one.
    pub(super) mark: Option<Mark>,
    /// A number that only this store has, if somebody has given it one.
    pub(super) id: Option<u64>,
    /// At which it was given, 0 without one.
    pub(super) id_revision: u64,
    /// All there are.
    pub(super) shards: Vec<Shard>,
}

impl Standing {
    /// What must hold for a change of it.
    pub(super) fn unchanged(&self) -> Vec<Compare> {
        self.revisions.iter().map(|(key, revision)| Compare::unchanged(key, *revision)).collect()
    }

    /// Whether no counter has ever used it.
    pub(super) fn is_new(&self, layout: &Layout) -> bool {
        self.revisions.get(&layout.format()).is_none_or(|revision| *revision == 0)
    }

    fn check_unmarked(&self) -> Result<(), Trouble> {
        self.mark.as_ref().map_or(Ok(()), |mark| Err(Trouble::Refused(mark.refusal())))
    }
}

/// A shard.
pub(super) struct Shard {
    pub(super) name: String,
    pub(super) key: String,
    /// At which its key was changed last.
    pub(super) revision: u64,
    /// When its counter was seen.
    pub(super) seen: Option<u64>,
}

/// Checks all that a start needs, and changes nothing.
pub(super) async fn probe(session: &mut Session, layout: &Layout) -> Result<(), Stopped> {
    if let Some(why) = session.alarm {
        return Err(Trouble::Refused(why.to_owned()).into());
    }
    let standing = look(session, layout).await?;
    standing.check_unmarked()?;
    check_free(session, layout, &standing).await?;
    // Rights are checked for the parts that a transaction does not come to, too.
    let put = |key: &str| Operation::put(key.to_owned(), String::new());
    let (format, epoch) = (layout.format(), layout.epoch());
    let value = layout.value("", layout.shard());
    let success = vec![
        put(&format),
        put(&epoch),
        put(layout.own()),
        put(&value),
        Operation::delete(layout.value("removed", layout.shard())),
    ];
    let compare = vec![Compare::never(&epoch)];
    let transaction = Transaction { compare, success, ..Transaction::default() };
    transact(session, &transaction).await.map(drop).map_err(Stopped::read)
}

pub(super) async fn take(session: &mut Session, layout: &Layout) -> Result<Taken, Stopped> {
    let standing = look(session, layout).await?;
    standing.check_unmarked()?;
    check_free(session, layout, &standing).await?;
    let epoch = standing.epoch + 1;
    let own = Fence { epoch, sequence: 0 };
    let success = vec![
        Operation::put(layout.format(), FORMAT.to_owned()),
        Operation::put(layout.epoch(), epoch.to_string()),
        Operation::put(layout.own().to_owned(), fence_value(own, 0, session.now())),
    ];
    let compare = standing.unchanged();
    let transaction = Transaction { compare, success, ..Transaction::default() };
    if !change(session, transaction).await?.0 {
        return Err(met_others().into());
    }
    let now = session.now();
    let is_gone = |shard: &Shard| shard.key != layout.own() && is_gone(shard.seen, now);
    let gone = standing.shards.into_iter().filter(is_gone).collect();
    let gone = fence_all(session, layout, epoch, gone).await?;
    let rows = read_all(session, layout, Some(epoch)).await.map_err(of_take)?;
    let is_gone = |row: &&Row| gone.iter().any(|gone| gone.name == row.shard);
    let (moved, rows): (Vec<_>, Vec<_>) = rows.iter().partition(is_gone);
    let (own, others): (Vec<_>, Vec<_>) =
        rows.into_iter().partition(|row| row.shard == layout.shard());
    let mut taken = Taken { epoch, own: sums(own), others: sums(others) };
    if !gone.is_empty() {
        fold(session, layout, &gone, &moved, &mut taken).await?;
    }
    Ok(taken)
}

/// Changes something; whether its comparisons held, and at which revision. Where there is no space, it may have been
/// changed all the same, which does no harm: it is done once more by the next start.
pub(super) async fn change(
    session: &mut Session,
    transaction: Transaction,
) -> Result<(bool, u64), Stopped> {
    match transact(session, &transaction).await {
        Ok((held, revision, _)) => Ok((held, revision)),
        Err(CallError::NoSpace(why)) => Err(Trouble::Refused(why).into()),
        Err(error) => Err(Stopped::write(error)),
    }
}

pub(super) fn met_others() -> Trouble {
    Trouble::Conflict(String::from("another counter starts at the same moment"))
}

/// Another one has taken the shard in the meantime: it is taken once more.
fn of_take(stopped: Stopped) -> Stopped {
    match stopped.trouble {
        Trouble::Fenced => met_others().into(),
        _ => stopped,
    }
}

/// Reads what stands, and checks that it was written by tallyring.
pub(super) async fn look(session: &mut Session, layout: &Layout) -> Result<Standing, Stopped> {
    let (format, epoch, mark) = (layout.format(), layout.epoch(), layout.mark());
    let id = layout.id();
    let prefix = layout.shards();
    let success = vec![
        Operation::get(&format),
        Operation::get(&epoch),
        Operation::get(&mark),
        Operation::get(&id),
        Operation::Range(Range::prefix(&prefix)),
    ];
    let transaction = Transaction { success, ..Transaction::default() };
    let (_, _, found) = transact(session, &transaction).await.map_err(Stopped::read)?;
    let mut revisions: BTreeMap<String, u64> =
        [&format, &epoch, &mark, layout.own()].map(|key| (key.to_owned(), 0)).into();
    let (mut highest, mut found_mark, mut shards) = (0, None, Vec::new());
    let (mut found_id, mut id_revision) = (None, 0);
    for found in found.into_iter().flat_map(|range| range.kvs) {
        let (key, value) = (found.key.0, found.value.0);
        let refuse = || {
            Trouble::Refused(format!(
                "{key} holds {value:?}, which tallyring has not written; give another prefix"
            ))
        };
        revisions.entry(key.clone()).and_modify(|revision| *revision = found.mod_revision);
        if key == format {
            check_format(&value)?;
        } else if key == epoch {
            highest = highest.max(value.parse().map_err(|_| refuse())?);
        } else if key == mark {
            found_mark = Some(value.parse().map_err(|_| refuse())?);
        } else if key == id {
            found_id = Some(value.parse().map_err(|_| refuse())?);
            id_revision = found.mod_revision;
        } else {
            let (epoch, seen) = parse_fence(&value).ok_or_else(refuse)?;
            highest = highest.max(epoch);
            let name = key.strip_prefix(&prefix).unwrap_or(&key).to_owned();
            shards.push(Shard { name, key, revision: found.mod_revision, seen });
        }
    }
    Ok(Standing { revisions, epoch: highest, mark: found_mark, id: found_id, id_revision, shards })
}

/// Checks that the keys of a new store would not be among those of another one, nor around those of one, as far as a page
/// of them shows. A store that is there already is used.
pub(super) async fn check_free(
    session: &mut Session,
    layout: &Layout,
    standing: &Standing,
) -> Result<(), Stopped> {
    if standing.is_new(layout) {
        if let Some(around) = layout.around() {
            return Err(Trouble::Refused(format!(
                "its keys would be among those of a store with the prefix {around}; give a prefix in which no \
                 /totals and no /shards follows"
            ))
            .into());
        }
        let page = layout.page(layout.totals(), None, PAGE);
        let found = session.call(RANGE, &page).await.map_err(Stopped::read)?;
        let values = layout.rows(vec![found]);
        values.map_err(|why| Trouble::Refused(format!("{why}, or give another prefix")))?;
    }
    Ok(())
}

fn check_format(value: &str) -> Result<(), Trouble> {
    match value.parse::<u64>() {
        _ if value == FORMAT => Ok(()),
        Ok(later) => Err(Trouble::Refused(format!(
            "its keys are those of a later version of tallyring (format {later})"
        ))),
        Err(_) => Err(Trouble::Refused(String::from(
            "it has a key \"format\" below the prefix that tallyring has not written; give another prefix",
        ))),
    }
}

/// Whether a counter that was seen then is gone, by the clock of the database.
fn is_gone(seen: Option<u64>, now: Option<u64>) -> bool {
    match (seen, now) {
        (Some(seen), Some(now)) => now.saturating_sub(seen) > GONE_AFTER.as_secs(),
        _ => false,
    }
}

/// Fences shards that are gone, so that nobody else writes their values; those that another one has not done anything
/// with in the meantime.
async fn fence_all(
    session: &mut Session,
    layout: &Layout,
    epoch: u64,
    gone: Vec<Shard>,
) -> Result<Vec<Shard>, Stopped> {
    let mut fenced = Vec::new();
    for gone in gone.into_iter().take(FOLDED_MAX) {
        let mut compare = vec![Compare::unchanged(&gone.key, gone.revision)];
        compare.extend(layout.has_epoch(epoch));
        // It stays gone, for the case that this one does not come to the end.
        let value = fence_value(Fence { epoch, sequence: 0 }, 0, gone.seen);
        let success = vec![Operation::put(gone.key.clone(), value)];
        let transaction = Transaction { compare, success, ..Transaction::default() };
        if let (true, revision) = change(session, transaction).await? {
            fenced.push(Shard { revision, ..gone });
        }
    }
    Ok(fenced)
}

/// Moves the values of shards that are fenced to this one.
async fn fold(
    session: &mut Session,
    layout: &Layout,
    gone: &[Shard],
    moved: &[&Row],
    taken: &mut Taken,
) -> Result<(), Stopped> {
    let mut by_name: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    moved.iter().for_each(|row| by_name.entry(&row.name).or_default().push(row));
    let mut moves = Vec::new();
    for (name, rows) in by_name {
        let value = rows.iter().map(|row| row.value).fold(0, u64::saturating_add);
        let own = taken.own.entry(name.to_owned()).or_insert(0);
        *own = own.saturating_add(value);
        let key = layout.value(name, layout.shard());
        let removed = rows.iter().map(|row| layout.value(name, &row.shard)).collect::<Vec<_>>();
        let bytes = removed.iter().fold(key.len(), |bytes, key| bytes + key.len() + 16);
        let mut parts = vec![Operation::put(key, own.to_string())];
        parts.extend(removed.into_iter().map(Operation::delete));
        moves.push((bytes, parts));
    }
    let sizes: Vec<_> = moves.iter().map(|(bytes, _)| *bytes).collect();
    let mut moves = moves.into_iter();
    for places in pieces(&sizes) {
        let parts = moves.by_ref().take(places.len()).flat_map(|(_, parts)| parts).collect();
        step(session, layout, gone, taken.epoch, parts).await?;
    }
    let removed = gone.iter().map(|gone| Operation::delete(gone.key.clone())).collect();
    step(session, layout, gone, taken.epoch, removed).await?;
    let shards = gone.iter().map(|gone| &*gone.name).collect::<Vec<_>>().join(", ");
    tracing::info!("took the totals of counters that are gone: shards {shards}");
    Ok(())
}

/// Does a step of a fold, if this one still has its shard and all that are gone.
async fn step(
    session: &mut Session,
    layout: &Layout,
    gone: &[Shard],
    epoch: u64,
    parts: Vec<Operation>,
) -> Result<(), Stopped> {
    let held: Vec<_> = gone.iter().map(|gone| (gone.key.clone(), gone.revision)).collect();
    let mut compare = unchanged(&held);
    compare.extend(layout.has_epoch(epoch));
    let transaction = Transaction { compare, success: nest(parts), ..Transaction::default() };
    match change(session, transaction).await? {
        (true, _) => Ok(()),
        (false, _) => Err(met_others().into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gone_is_who_was_not_seen_for_long() {
        let now = Some(1_764_000_000);
        let ago = |seconds: u64| now.map(|now| now - seconds);
        assert!(is_gone(ago(GONE_AFTER.as_secs() + 1), now));
        assert!(!is_gone(ago(GONE_AFTER.as_secs()), now));
        // Clocks that differ, or are not known.
        assert!(!is_gone(now, ago(10_000)));
        assert!(!is_gone(None, now));
        assert!(!is_gone(ago(10_000), None));
    }

    #[test]
    fn formats_of_others_are_refused() {
        assert_eq!(check_format("1"), Ok(()));
        let problem = |value| check_format(value).unwrap_err().to_string();
        assert!(problem("2").contains("later version"));
        assert!(problem("{}").contains("not written"));
    }
}
