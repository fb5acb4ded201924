//! Which keys there are, what is in them, and how much fits into one transaction.
//!
//! ```text
//!   PREFIX/format               1
//!   PREFIX/epoch                the last epoch that a counter took
//!   PREFIX/mark                 why no counter may use it, if so
//!   PREFIX/id                   a number that no other store has, where totals were moved
//!   PREFIX/shards/SHARD         EPOCH-SEQUENCE-PIECE SEEN
//!   PREFIX/totals/NAME/SHARD    the value of this name in this shard
//! ```
//!
//! The numbers of a fence have a fixed width, so that etcd, which compares values byte by byte, can tell whether a
//! commit is the shard's next. So the fence holds for a commit however late it arrives, and by whichever member.

use std::ops::Range as Indices;

use super::{
    super::{TotalsByName, sharded::Fence},
    wire::{Compare, Operation, Range, RangeAnswer, Text, Transaction, end_of},
};

/// The most parts in one level of a transaction. etcd adds up those of nested ones, one a level, and takes 128 by
/// default (`--max-txn-ops`): three levels have room for 64,000, and two parts more in the first.
pub(super) const LEVEL_MAX: usize = 40;
const _: () = assert!(2 + 3 * LEVEL_MAX <= 128);

/// The most bytes of keys and values that one transaction writes. etcd takes 1.5 MiB (`--max-request-bytes`), so what
/// is written at once for 10,000 names may need three.
const PIECE_BYTES_MAX: usize = 1_000_000;
/// What a part has beside its key and its value.
const PART_BYTES: usize = 16;

/// What is said of a key where only values are to be.
const FOREIGN: &str = "no value that tallyring has written here; remove it, or, if it is of a store with a longer prefix, \
     move that one by tallyring counter migrate, and then remove its keys by etcdctl del --prefix LONGER/";

/// The keys of a shard.
#[derive(Debug)]
pub(super) struct Layout {
    prefix: String,
    shard: String,
    own: String,
}

/// A value that a shard has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) shard: String,
    pub(super) value: u64,
}

impl Layout {
    pub(super) fn new(prefix: &str, shard: &str) -> Self {
        let (prefix, shard) = (prefix.to_owned(), shard.to_owned());
        let own = format!("{prefix}/shards/{shard}");
        Self { prefix, shard, own }
    }

    pub(super) fn shard(&self) -> &str {
        &self.shard
    }

    /// The key of this shard's fence.
    pub(super) fn own(&self) -> &str {
        &self.own
    }

    pub(super) fn format(&self) -> String {
        format!("{}/format", self.prefix)
    }

    pub(super) fn epoch(&self) -> String {
        format!("{}/epoch", self.prefix)
    }

    pub(super) fn mark(&self) -> String {
        format!("{}/mark", self.prefix)
    }

    pub(super) fn id(&self) -> String {
        format!("{}/id", self.prefix)
    }

    /// How the keys of all fences begin.
    pub(super) fn shards(&self) -> String {
        format!("{}/shards/", self.prefix)
    }

    /// How the keys of all values begin.
    pub(super) fn totals(&self) -> String {
        format!("{}/totals/", self.prefix)
    }

    /// The prefix of the store among whose keys these would be, if there were such a one.
    pub(super) fn around(&self) -> Option<&str> {
        let whole = format!("{}/", self.prefix);
        // After the `/` at its beginning.
        let places = ["/shards/", "/totals/"].map(|part| whole[1..].find(part));
        let place = places.into_iter().flatten().min()?;
        Some(&self.prefix[..=place])
    }

    /// The key of a value.
    pub(super) fn value(&self, name: &str, shard: &str) -> String {
        format!("{}/totals/{name}/{shard}", self.prefix)
    }

    /// A read of what all shards hold of a name.
    pub(super) fn sum(&self, name: &str) -> Operation {
        Operation::Range(Range::prefix(&format!("{}/totals/{name}/", self.prefix)))
    }

    /// A read of all values from this key on, at this revision, at most `limit` of them.
    pub(super) fn page(&self, from: String, revision: Option<u64>, limit: usize) -> Range {
        let (key, end) = (Text(from), Some(Text(end_of(&self.totals()))));
        let (limit, revision) =
            (Some(limit.to_string()), revision.map(|number| number.to_string()));
        Range { key, end, limit, revision }
    }

    /// Whether this shard has this epoch.
    pub(super) fn has_epoch(&self, epoch: u64) -> [Compare; 2] {
        let next = Compare::below(&self.own, epoch_text(epoch.saturating_add(1)));
        [Compare::above(&self.own, epoch_text(epoch)), next]
    }

    /// Whether this is the next commit of this shard, or the next piece of one.
    pub(super) fn is_next(&self, fence: Fence, piece: usize) -> [Compare; 2] {
        let next = Compare::below(&self.own, fence_text(fence, piece));
        [Compare::above(&self.own, epoch_text(fence.epoch)), next]
    }

    /// What reads have found. A key that is no value's is an error, which says so.
    pub(super) fn rows(&self, ranges: Vec<RangeAnswer>) -> Result<Vec<Row>, String> {
        let totals = self.totals();
        let row = |key: String, value: String| {
            let (name, shard) = key.strip_prefix(&totals)?.split_once('/')?;
            let (name, shard) = (name.to_owned(), shard.to_owned());
            Some(Row { name, shard, value: value.parse().ok()? })
        };
        let found = ranges.into_iter().flat_map(|range| range.kvs);
        let row = |found: super::wire::KeyValue| {
            let key = found.key.0.clone();
            row(found.key.0, found.value.0).ok_or_else(|| format!("{key} is {FOREIGN}"))
        };
        found.map(row).collect()
    }

    /// What the other shards hold together.
    pub(super) fn sum_of_others(&self, rows: &[Row]) -> TotalsByName {
        sums(rows.iter().filter(|row| row.shard != self.shard))
    }
}

/// The sums by name.
pub(super) fn sums<'a>(rows: impl IntoIterator<Item = &'a Row>) -> TotalsByName {
    let mut sums = TotalsByName::new();
    for row in rows {
        let sum = sums.entry(row.name.clone()).or_insert(0);
        *sum = sum.saturating_add(row.value);
    }
    sums
}

/// How the fence of this epoch begins: below all that it may be, and above all of earlier epochs.
pub(super) fn epoch_text(epoch: u64) -> String {
    format!("{epoch:020}-")
}

/// A fence: above all earlier ones of its epoch, and below what follows it in the key, which has the time too.
pub(super) fn fence_text(fence: Fence, piece: usize) -> String {
    format!("{:020}-{:020}-{piece:06}", fence.epoch, fence.sequence)
}

/// The content of a fence's key; `seen` is in seconds since 1970.
pub(super) fn fence_value(fence: Fence, piece: usize, seen: Option<u64>) -> String {
    format!("{} {}", fence_text(fence, piece), seen.unwrap_or(0))
}

/// The epoch of a fence, and when its counter was seen, if that is known.
pub(super) fn parse_fence(value: &str) -> Option<(u64, Option<u64>)> {
    let (fence, seen) = value.split_once(' ')?;
    let mut numbers = fence.splitn(3, '-').map(str::parse::<u64>);
    let (Some(Ok(epoch)), Some(Ok(_)), Some(Ok(_))) =
        (numbers.next(), numbers.next(), numbers.next())
    else {
        return None;
    };
    Some((epoch, seen.parse().ok().filter(|seen| *seen > 0)))
}

/// Parts of one transaction, in as many levels as they need.
pub(super) fn nest(mut parts: Vec<Operation>) -> Vec<Operation> {
    while parts.len() > LEVEL_MAX {
        let mut groups = Vec::new();
        let mut left = parts.into_iter();
        loop {
            let success: Vec<_> = left.by_ref().take(LEVEL_MAX).collect();
            if success.is_empty() {
                break;
            }
            groups.push(Operation::Nested(Transaction { success, ..Transaction::default() }));
        }
        parts = groups;
    }
    parts
}

/// The fewest runs of parts, of these sizes, that fit into one transaction each. There is always one, which may be
/// empty.
pub(super) fn pieces(sizes: &[usize]) -> Vec<Indices<usize>> {
    let mut pieces = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, size) in sizes.iter().enumerate() {
        let size = size + PART_BYTES;
        if bytes + size > PIECE_BYTES_MAX && index > start {
            pieces.push(start..index);
            (start, bytes) = (index, 0);
        }
        bytes += size;
    }
    pieces.push(start..sizes.len());
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fence(epoch: u64, sequence: u64) -> Fence {
        Fence { epoch, sequence }
    }

    /// Whether etcd takes a commit where the key has this value, by the comparisons that it is sent.
    fn takes(stored: &str, next: Fence, piece: usize) -> bool {
        stored > &*epoch_text(next.epoch) && stored < &*fence_text(next, piece)
    }

    #[test]
    fn a_fence_takes_the_next_commit_of_its_epoch_only() {
        let stored = fence_value(fence(9, 99), 1, Some(1_764_000_000));
        for (next, piece, expected) in [
            (fence(9, 100), 0, true),
            (fence(9, u64::MAX), 0, true),
            (fence(9, 99), 2, true),
            (fence(9, 99), 10, true),
            (fence(9, 99), 1, false),
            (fence(9, 99), 0, false),
            (fence(9, 98), 5, false),
            (fence(8, 100), 0, false),
            (fence(10, 100), 0, false),
            (fence(90, 100), 0, false),
        ] {
            assert_eq!(takes(&stored, next, piece), expected, "{next:?} {piece}");
        }
        assert!(takes(&fence_value(fence(9, 0), 0, None), fence(9, 1), 0));
        // Reads compare with the next epoch.
        assert!(stored > epoch_text(9) && stored < epoch_text(10));
        assert!(stored < epoch_text(10) && stored > epoch_text(8) && stored >= epoch_text(9));
        assert_eq!(parse_fence(&stored), Some((9, Some(1_764_000_000))));
        assert_eq!(parse_fence(&fence_value(fence(9, 1), 0, None)), Some((9, None)));
        for foreign in ["", "9", "9-1 5", "a-1-1 5", "9-1-1-1 5"] {
            assert_eq!(parse_fence(foreign), None, "{foreign}");
        }
    }

    #[track_caller]
    fn check_nested(count: usize, levels: usize) {
        let parts = (0..count).map(|number| Operation::get(&format!("{number:06}"))).collect();
        let (mut found, mut deepest) = (Vec::new(), 0);
        walk(&nest(parts), 1, &mut found, &mut deepest);
        assert_eq!(found.len(), count);
        assert!(found.is_sorted());
        assert_eq!(deepest, levels);
    }

    fn walk(parts: &[Operation], level: usize, found: &mut Vec<String>, deepest: &mut usize) {
        assert!(parts.len() <= LEVEL_MAX);
        *deepest = level.max(*deepest);
        for part in parts {
            match part {
                Operation::Nested(inner) => walk(&inner.success, level + 1, found, deepest),
                Operation::Range(range) => found.push(range.key.0.clone()),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn many_parts_are_nested() {
        check_nested(0, 1);
        check_nested(LEVEL_MAX, 1);
        check_nested(LEVEL_MAX + 1, 2);
        check_nested(LEVEL_MAX * LEVEL_MAX, 2);
        check_nested(LEVEL_MAX * LEVEL_MAX + 1, 3);
        check_nested(20_000, 3);
    }

    #[test]
    // Several ranges, of which there may be one.
    #[allow(clippy::single_range_in_vec_init)]
    fn what_does_not_fit_is_cut() {
        assert_eq!(pieces(&[]), [0..0]);
        assert_eq!(pieces(&[PIECE_BYTES_MAX]), [0..1]);
        let half = PIECE_BYTES_MAX / 2 - PART_BYTES;
        assert_eq!(pieces(&[half, half]), [0..2]);
        assert_eq!(pieces(&[half, half + 1, half]), [0..1, 1..2, 2..3]);
        assert_eq!(pieces(&[half, half, 1]), [0..2, 2..3]);
        // The most names, each of the greatest length, of the longest shard below the longest prefix.
        let longest = 64 + "/totals/".len() + 128 + 1 + 128 + 20;
        let all = pieces(&[longest; 10_000]);
        assert!(all.len() <= 4 && all.iter().all(|piece| piece.len() <= 20_000), "{all:?}");
    }

    #[test]
    fn a_store_is_not_among_the_keys_of_another() {
        for (prefix, around) in [
            ("/n", None),
            ("/totals", None),
            ("/shards", None),
            ("/n/totalsx", None),
            ("/n/xtotals", None),
            ("/n/format", None),
            ("/n/totals", Some("/n")),
            ("/n/shards", Some("/n")),
            ("/n/m/totals/a/b", Some("/n/m")),
            ("/n/totals/m/shards", Some("/n")),
            ("/totals/totals", Some("/totals")),
            ("/totals/shards/totals", Some("/totals")),
        ] {
            assert_eq!(Layout::new(prefix, "a").around(), around, "{prefix}");
        }
    }

    #[test]
    fn keys_tell_name_and_shard() {
        let layout = Layout::new("/site", "a");
        let key = |name, shard| Text(layout.value(name, shard));
        let found = |key, value: &str| super::super::wire::KeyValue {
            key,
            value: Text(value.to_owned()),
            mod_revision: 1,
        };
        let kvs =
            vec![found(key("", "a"), "5"), found(key("", "b"), "3"), found(key("x", "b"), "2")];
        let rows = layout.rows(vec![RangeAnswer { kvs, ..RangeAnswer::default() }]).unwrap();
        let expected = TotalsByName::from([(String::new(), 3), (String::from("x"), 2)]);
        assert_eq!(layout.sum_of_others(&rows), expected);
        assert_eq!(rows[0], Row { name: String::new(), shard: String::from("a"), value: 5 });
        for (key, value) in
            [("/site/totals/x", "5"), ("/else/totals/x/a", "5"), ("/site/totals/x/a", "five")]
        {
            let kvs = vec![found(Text(key.to_owned()), value)];
            let problem = layout.rows(vec![RangeAnswer { kvs, ..RangeAnswer::default() }]);
            assert!(problem.unwrap_err().contains(key));
        }
    }
}
