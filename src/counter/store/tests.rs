//! Stores that are closed, killed, damaged and foreign.

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
    check_counting(&mut *open(&Kind::Memory).unwrap());
    check_counting(&mut *open(&Kind::Redb(path(&directory))).unwrap());
}

#[test]
fn both_stores_bound_their_names() {
    let directory = tempfile::tempdir().unwrap();
    check_names(&mut *open(&Kind::Memory).unwrap());
    check_names(&mut *open(&Kind::Redb(path(&directory))).unwrap());
}

#[test]
fn totals_outlive_the_store() {
    let directory = tempfile::tempdir().unwrap();
    let kind = Kind::Redb(path(&directory));
    open(&kind).unwrap().commit(&[add("", 7)]);
    assert_eq!(open(&kind).unwrap().commit(&[add("", 1)]), [Outcome::Total(8)]);
}

#[test]
fn a_second_store_on_the_same_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let kind = Kind::Redb(path(&directory));
    let mut first = open(&kind).unwrap();
    assert!(matches!(open(&kind), Err(OpenError::InUse(_))));
    assert_eq!(first.commit(&[add("", 1)]), [Outcome::Total(1)]);
}

#[track_caller]
fn check_untouched(bytes: &[u8], expected: fn(&OpenError) -> bool) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("counter.redb");
    std::fs::write(&path, bytes).unwrap();
    let Err(error) = open(&Kind::Redb(path.clone())) else {
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
    assert!(matches!(open(&Kind::Redb(path)), Err(OpenError::Foreign(_))));
}

#[test]
fn a_damaged_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = path(&directory);
    open(&Kind::Redb(path.clone())).unwrap().commit(&[add("", 7)]);
    let mut bytes = std::fs::read(&path).unwrap();
    // Both commit slots of the header, behind the magic number.
    bytes[64..320].fill(0xaa);
    std::fs::write(&path, &bytes).unwrap();
    assert!(matches!(open(&Kind::Redb(path)), Err(OpenError::Damaged(..))));
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let Err(error) = open(&Kind::Redb(file.join("counter.redb"))) else { panic!("opened") };
    assert!(matches!(error, OpenError::Directory(..)), "{error}");
    let Err(error) = open(&Kind::Redb(directory.path().to_owned())) else { panic!("opened") };
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
