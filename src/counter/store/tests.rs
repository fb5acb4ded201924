//! Stores that count, and files that are damaged, foreign, in use, moved or replaced.

use redb::{Database, TableDefinition};

use super::*;

fn add(name: &str, by: u64) -> Operation {
    Operation::Add { name: name.to_owned(), by }
}

fn total(name: &str) -> Operation {
    Operation::Total { name: name.to_owned() }
}

fn path(directory: &tempfile::TempDir) -> PathBuf {
    directory.path().join("made/for/it/counter.redb")
}

/// The same for each store: totals go up in the order of the batch.
#[track_caller]
fn check_counting(store: &mut dyn Store) {
    assert_eq!(store.commit(&[total(""), total("a")]), [Outcome::Total(0), Outcome::Total(0)]);
    let outcomes = store.commit(&[add("", 1), add("a", 5), add("", 1_000_000), total("a")]);
    assert_eq!(outcomes, [1, 5, 1_000_001, 5].map(Outcome::Total));
    let all = store.commit(&[add("b", 1), Operation::All]);
    assert_eq!(all[1], Outcome::All(Bytes::from_static(br#"{"":1000001,"a":5,"b":1}"#)));
    assert_eq!(store.commit(&[]), []);
    assert_eq!(store.counted(), Counted { total: 1_000_001, named: 6 });
}

#[track_caller]
fn check_names(store: &mut dyn Store) {
    let names: Vec<_> = (0..NAMES_MAX).map(|number| add(&format!("n{number}"), 1)).collect();
    assert!(store.commit(&names).iter().all(|outcome| *outcome == Outcome::Total(1)));
    let outcomes = store.commit(&[add("one-more", 1), add("n7", 1), add("", 1)]);
    assert_eq!(outcomes, [Outcome::TooManyNames, Outcome::Total(2), Outcome::Total(1)]);
}

#[test]
fn both_stores_count() {
    let directory = tempfile::tempdir().unwrap();
    check_counting(&mut *open(&Kind::Memory, false).unwrap());
    check_counting(&mut *open(&Kind::Redb(path(&directory)), false).unwrap());
}

#[test]
fn both_stores_bound_their_names() {
    let directory = tempfile::tempdir().unwrap();
    check_names(&mut *open(&Kind::Memory, false).unwrap());
    check_names(&mut *open(&Kind::Redb(path(&directory)), false).unwrap());
}

#[test]
fn totals_outlive_the_store() {
    let directory = tempfile::tempdir().unwrap();
    let kind = Kind::Redb(path(&directory));
    open(&kind, false).unwrap().commit(&[add("", 7), add("a", 2)]);
    assert_eq!(open(&kind, false).unwrap().counted(), Counted { total: 7, named: 2 });
    assert_eq!(open(&kind, false).unwrap().commit(&[add("", 1)]), [Outcome::Total(8)]);
}

#[test]
fn a_second_store_on_the_same_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let kind = Kind::Redb(path(&directory));
    let mut first = open(&kind, false).unwrap();
    assert!(matches!(open(&kind, false), Err(OpenError::InUse(_))));
    assert_eq!(first.commit(&[add("", 1)]), [Outcome::Total(1)]);
}

#[track_caller]
fn check_untouched(bytes: &[u8], expected: fn(&OpenError) -> bool) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("counter.redb");
    std::fs::write(&path, bytes).unwrap();
    let Err(error) = open(&Kind::Redb(path.clone()), false) else {
        panic!("opened {} bytes", bytes.len())
    };
    assert!(expected(&error), "{error}");
    assert!(std::fs::read(&path).unwrap() == bytes, "the file was changed: {error}");
}

#[test]
fn a_foreign_file_is_refused_and_left_as_it_is() {
    check_untouched(b"x", |error| matches!(error, OpenError::Foreign(_)));
    check_untouched(&[7; 100_000], |error| matches!(error, OpenError::Foreign(_)));
}

#[test]
fn another_programs_redb_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("other.redb");
    let database = Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    let table: TableDefinition<'_, &str, u64> = TableDefinition::new("theirs");
    transaction.open_table(table).unwrap().insert("a", 1).unwrap();
    transaction.commit().unwrap();
    drop(database);
    assert!(matches!(open(&Kind::Redb(path), false), Err(OpenError::Foreign(_))));
}

#[test]
fn a_damaged_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = path(&directory);
    open(&Kind::Redb(path.clone()), false).unwrap().commit(&[add("", 7)]);
    let mut bytes = std::fs::read(&path).unwrap();
    // Both commit slots of the header, behind the magic number.
    bytes[64..320].fill(0xaa);
    std::fs::write(&path, &bytes).unwrap();
    assert!(matches!(open(&Kind::Redb(path), false), Err(OpenError::Damaged(..))));
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let Err(error) = open(&Kind::Redb(file.join("counter.redb")), false) else { panic!("opened") };
    assert!(matches!(error, OpenError::Directory(..)), "{error}");
    let Err(error) = open(&Kind::Redb(directory.path().to_owned()), false) else {
        panic!("opened")
    };
    assert!(matches!(error, OpenError::Io(..)), "{error}");
}

#[test]
fn stores_are_named_by_their_kind() {
    assert_eq!("memory".parse(), Ok(Kind::Memory));
    assert_eq!("redb:/a/b:c".parse(), Ok(Kind::Redb("/a/b:c".into())));
    for text in ["", "redb", "redb:", "memory:", "sqlite:/a", "/a"] {
        assert!(text.parse::<Kind>().is_err(), "{text:?}");
    }
}

#[test]
fn an_empty_file_is_not_taken_for_a_counter() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("counter.redb");
    let kind = Kind::Redb(path.clone());
    check_untouched(b"", |error| matches!(error, OpenError::Empty(_)));
    std::fs::write(&path, "").unwrap();
    assert_eq!(open(&kind, true).unwrap().commit(&[add("", 7)]), [Outcome::Total(7)]);
    // A file that is not empty is not replaced.
    assert_eq!(open(&kind, true).unwrap().commit(&[add("", 1)]), [Outcome::Total(8)]);
}

#[test]
fn a_symbolic_link_leads_to_where_the_file_is_created() {
    let directory = tempfile::tempdir().unwrap();
    let [link, target] = ["link", "made/target"].map(|name| directory.path().join(name));
    std::os::unix::fs::symlink("made/target", &link).unwrap();
    let kind = Kind::Redb(link.clone());
    assert_eq!(open(&kind, false).unwrap().commit(&[add("", 7)]), [Outcome::Total(7)]);
    assert_eq!(open(&kind, false).unwrap().commit(&[add("", 1)]), [Outcome::Total(8)]);
    std::fs::write(&target, "").unwrap();
    assert!(matches!(open(&kind, false), Err(OpenError::Empty(_))));
    assert_eq!(open(&kind, true).unwrap().commit(&[add("", 1)]), [Outcome::Total(1)]);
    assert!(link.is_symlink() && target.is_file());
}

/// A store that has counted 7, and its file.
fn counted(directory: &tempfile::TempDir) -> (Box<dyn Store>, PathBuf) {
    let path = directory.path().join("counter.redb");
    let mut store = open(&Kind::Redb(path.clone()), false).unwrap();
    assert_eq!(store.commit(&[add("", 7)]), [Outcome::Total(7)]);
    (store, path)
}

#[test]
fn a_missing_file_is_not_created_again_and_is_used_when_it_is_back() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, path) = counted(&directory);
    let away = directory.path().join("away");
    std::fs::rename(&path, &away).unwrap();
    for _ in 0..2 {
        assert_eq!(store.commit(&[add("", 1), total("")]), [Outcome::Failed, Outcome::Failed]);
        assert!(!path.exists());
    }
    std::fs::rename(&away, &path).unwrap();
    assert_eq!(store.commit(&[add("", 1)]), [Outcome::Total(8)]);
}

#[test]
fn a_removed_file_may_be_replaced_by_a_backup_that_holds_as_much() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, path) = counted(&directory);
    let old = std::fs::read(&path).unwrap();
    assert_eq!(store.commit(&[add("a", 1)]), [Outcome::Total(1)]);
    let new = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(store.commit(&[add("", 1)]), [Outcome::Failed]);
    // This copy is from before `a` was counted.
    std::fs::write(&path, old).unwrap();
    assert_eq!(store.commit(&[add("", 1)]), [Outcome::Failed]);
    std::fs::write(&path, "").unwrap();
    assert_eq!(store.commit(&[add("", 1)]), [Outcome::Failed]);
    std::fs::write(&path, new).unwrap();
    assert_eq!(store.commit(&[add("", 1), total("a")]), [8, 1].map(Outcome::Total));
}

#[test]
fn a_replaced_file_is_used_only_if_it_holds_as_much() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, path) = counted(&directory);
    let other = directory.path().join("other");
    for (holds, outcome) in [(6, Outcome::Failed), (9, Outcome::Total(10))] {
        let kind = Kind::Redb(other.clone());
        assert_eq!(open(&kind, false).unwrap().commit(&[add("", holds)]), [Outcome::Total(holds)]);
        std::fs::rename(&other, &path).unwrap();
        assert_eq!(store.commit(&[add("", 1)]), [outcome]);
    }
}

#[test]
fn a_truncated_file_is_not_written_to_until_it_is_restored() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, path) = counted(&directory);
    let bytes = std::fs::read(&path).unwrap();
    for length in [0, 10, 5000] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        assert_eq!(store.commit(&[add("", 1)]), [Outcome::Failed]);
        assert!(std::fs::read(&path).unwrap() == bytes[..length], "it was written to");
    }
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(store.commit(&[add("", 1)]), [Outcome::Total(8)]);
}

#[test]
fn what_a_killed_start_has_left_does_not_matter() {
    let directory = tempfile::tempdir().unwrap();
    let (store, path) = counted(&directory);
    drop(store);
    let unfinished = directory.path().join("counter.redb.unfinished");
    let begun = std::fs::read(&path).unwrap();
    for left in [&b""[..], b"redb", &[7; 10_000], &begun] {
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&unfinished, left).unwrap();
        let mut store = open(&Kind::Redb(path.clone()), false).unwrap();
        assert_eq!(store.commit(&[add("", 1)]), [Outcome::Total(1)]);
        assert!(!unfinished.exists());
    }
    // A file that gets its name by a link may be left with both names.
    std::fs::hard_link(&path, &unfinished).unwrap();
    let away = directory.path().join("away");
    std::fs::rename(&path, &away).unwrap();
    let kind = Kind::Redb(path);
    assert_eq!(open(&kind, false).unwrap().commit(&[add("", 5)]), [Outcome::Total(5)]);
    assert_eq!(open(&Kind::Redb(away), false).unwrap().commit(&[total("")]), [Outcome::Total(1)]);
}

#[test]
fn one_of_several_starts_at_the_same_moment_gets_the_file() {
    const STARTS: usize = 4;
    for _ in 0..20 {
        let directory = tempfile::tempdir().unwrap();
        let path = path(&directory);
        let barrier = std::sync::Barrier::new(STARTS);
        let opened: Vec<_> = std::thread::scope(|scope| {
            let start = || {
                barrier.wait();
                open(&Kind::Redb(path.clone()), true)
            };
            let starts = [(); STARTS].map(|()| scope.spawn(start));
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        let mut stores: Vec<_> = opened
            .into_iter()
            .filter_map(|opened| match opened {
                Err(OpenError::InUse(_)) => None,
                opened => Some(opened.unwrap_or_else(|error| panic!("{error}"))),
            })
            .collect();
        assert_eq!(stores.len(), 1);
        assert_eq!(stores[0].commit(&[add("", 1)]), [Outcome::Total(1)]);
        drop(stores);
        let kind = Kind::Redb(path);
        assert_eq!(open(&kind, false).unwrap().commit(&[total("")]), [Outcome::Total(1)]);
    }
}

#[test]
fn listings_are_shared_and_their_number_is_bounded() {
    let directory = tempfile::tempdir().unwrap();
    for kind in [Kind::Memory, Kind::Redb(path(&directory))] {
        let mut store = open(&kind, false).unwrap();
        let mut list = || store.commit(&[add("", 1), Operation::All, Operation::All]);
        let mut kept: Vec<_> = (0..LISTINGS_MAX).map(|_| list()).collect();
        for outcomes in &kept {
            assert!(matches!(outcomes[1], Outcome::All(_)));
            assert_eq!(outcomes[1], outcomes[2]);
        }
        // Only the listing is refused.
        let refused = list();
        assert_eq!(refused[0], Outcome::Total(5));
        assert_eq!(refused[1..], [Outcome::Busy, Outcome::Busy]);
        // A listing exists until its last owner drops it.
        let first = kept.remove(0);
        let last = first[2].clone();
        drop(first);
        assert_eq!(list()[1], Outcome::Busy);
        drop(last);
        assert!(matches!(list()[1], Outcome::All(_)));
    }
}

#[test]
fn a_listing_has_at_most_the_documented_size() {
    let longest = |number: u64| format!("{number:0>128}");
    let all: BTreeMap<_, _> = (0..=NAMES_MAX).map(|number| (longest(number), u64::MAX)).collect();
    assert!(serde_json::to_vec(&all).unwrap().len() <= 1_600_000);
}
