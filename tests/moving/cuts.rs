//! What is cut or refused in the middle: which store is closed is told, and what is told to be done helps.

use serde_json::json;

use crate::{
    Data, check, check_closed, check_holds,
    common::{postgres, postgres::Database, run},
    databases::{engines, etcd_url, schemas, shown, with},
    member::Member,
};

/// A totals store of one schema cannot be opened while it holds the 10 of a store.
const NO_ROOM: &str = "IF EXISTS (SELECT FROM second.tallyring_totals WHERE n = 10) THEN \
     RAISE EXCEPTION 'no room'; END IF";

#[test]
fn a_store_that_another_one_has_filled_in_part_is_not_taken() {
    let test = "a_store_that_another_one_has_filled_in_part_is_not_taken";
    let Some(programs) = postgres::programs(test) else { return };
    let database = Database::start(&programs, "");
    let data = Data::new();
    let [_, to] = schemas(&data, &database);
    let (first, second) = (data.counted("first", 10, &[]), data.counted("second", 150, &[]));
    with(&database, "DELETE", "second.tallyring_meta", NO_ROOM);
    let words = format!(
        "no room (P0001); redb:{first}/counter.redb is closed to counters, and {} may be: do the same once more, or give redb:",
        shown(&to)
    );
    check(&["counter", "migrate", &first, &to], 1, &words);
    database.sql("DROP TRIGGER hook ON second.tallyring_meta");
    check_closed("--data-dir", &first, "its totals were being moved to postgres://");
    // Whoever comes then does not have its place.
    let words = format!(
        "was not filled to the end from redb:{first}/counter.redb: do that once more first, or give --force to fill"
    );
    check(&["counter", "migrate", &second, &to], 1, &words);
    let file = data.export("new.json", 150, &[]);
    check(&["counter", "import", &file, "--store", &to], 1, &words);
    check(&["counter", "migrate", &second, &to, "--force"], 0, "150 counted, sum 150; the sum");
    // What is there is not taken for what was moved, also not by force.
    for force in [&[][..], &["--force"]] {
        let words =
            "holds 150 counted, sum 150: if counters have counted there since, all is moved";
        check(&[&["counter", "migrate", &first, &to][..], force].concat(), 1, words);
    }
    check_holds("--store", &to, 150, &[]);
    check(&["counter", "reopen", &first], 0, "10 counted, sum 10; it is open to counters again");
    check(&["counter", "migrate", &first, &to], 1, "the total would go back from 150 to 10");
    check(&["counter", "migrate", &first, &to, "--force"], 0, "10 counted, sum 10; the sum");
    check_closed("--data-dir", &first, "its totals were moved to postgres://");
}

#[test]
fn what_was_cut_after_all_was_moved_is_known() {
    let test = "what_was_cut_after_all_was_moved_is_known";
    let Some(programs) = postgres::programs(test) else { return };
    let database = Database::start(&programs, "");
    let data = Data::new();
    let [from, to] = schemas(&data, &database);
    check(&["counter", "migrate", &from, &to], 0, "10 counted, sum 10; the sum of");
    let cut = "UPDATE first.tallyring_meta SET key = replace(key, 'moved to', 'moving to')";
    database.sql(cut);
    check_closed("--store", &from, "its totals were being moved to postgres://");
    check(&["counter", "migrate", &from, &to], 0, "was moved there before");
    // That is noted, so it is known also when counters have counted since.
    check_closed("--store", &from, "its totals were moved to postgres://");
    database.sql("UPDATE second.tallyring_totals SET n = n + 1");
    check(&["counter", "migrate", &from, &to], 0, "was moved there before");
    database.sql(cut);
    check(&["counter", "migrate", &from, &to], 1, "have counted there since, all is moved");
    check_holds("--store", &to, 11, &[]);
}

#[test]
fn a_store_that_cannot_be_closed_leaves_the_other_one_open() {
    let test = "a_store_that_cannot_be_closed_leaves_the_other_one_open";
    let Some((database, member)) = engines(test) else { return };
    let data = Data::new();
    let [from, to] = schemas(&data, &database);
    let held = data.export("held.json", 100, &[]);
    check(&["counter", "import", &held, "--store", &to, "--force"], 0, "sum 100");
    let refused = |from: &str, words: &str| {
        let (code, out, error) = run(&["counter", "migrate", from, &to, "--force"]);
        assert!(code == 1 && error.contains(words), "{out}{error}");
        assert!(!error.contains("closed"), "{error}");
        check(&["counter", "reopen", &to], 0, "it is open to counters; 100 counted");
    };
    let file = data.counted("file", 10, &[]);
    std::fs::create_dir(data.path("file/counter.redb.unfinished")).unwrap();
    refused(&file, "cannot write");
    with(&database, "UPDATE", "first.tallyring_meta", "RAISE EXCEPTION 'no right'");
    refused(&from, "no right (P0001)");
    database.sql("DROP TRIGGER hook ON first.tallyring_meta");
    let etcd = etcd_url(&member, "/site");
    check(&["counter", "import", &held, "--store", &etcd], 0, "sum 100");
    only_reads(&member);
    refused(&etcd.replace("//", "//me:s3cret@"), "grant-permission");
    // And what is refused only by a trigger of its own, in the end.
    check(&["counter", "migrate", &from, &to, "--force"], 0, "10 counted, sum 10; the sum of");
}

/// The user `me` reads what is below `/site/`, and writes nothing.
fn only_reads(member: &Member) {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let (key, range_end) = (STANDARD.encode("/site/"), STANDARD.encode("/site0"));
    let range = json!({ "permType": "READ", "key": key, "range_end": range_end });
    for (user, role) in [("root", "root"), ("me", "site")] {
        member.ask("/v3/auth/role/add", json!({ "name": role }));
        member.ask("/v3/auth/user/add", json!({ "name": user, "password": "s3cret" }));
        member.ask("/v3/auth/user/grant", json!({ "user": user, "role": role }));
    }
    member.ask("/v3/auth/role/grant", json!({ "name": "site", "perm": range }));
    member.ask("/v3/auth/enable", json!({}));
}

#[test]
fn a_lost_answer_does_not_tell_what_is_closed() {
    let test = "a_lost_answer_does_not_tell_what_is_closed";
    let Some(programs) = postgres::programs(test) else { return };
    let database = Database::start(&programs, "");
    let data = Data::new();
    let [from, to] = schemas(&data, &database);
    // Where the first one is closed.
    let lost = "PERFORM pg_terminate_backend(pg_backend_pid())";
    with(&database, "DELETE", "first.tallyring_shards", lost);
    let words = format!(
        "; {} may be closed to counters, and {} is: do the same once more",
        shown(&from),
        shown(&to)
    );
    check(&["counter", "migrate", &from, &to], 1, &words);
    check(&["counter", "reopen", &from], 0, "it is open to counters; 10 counted");
    check_closed("--store", &to, "it was not filled to the end from postgres://");
    database.sql("DROP TRIGGER hook ON first.tallyring_shards");
    check(&["counter", "migrate", &from, &to], 0, "10 counted, sum 10; the sum of");
}

#[test]
fn an_import_that_fails_tells_what_is_closed() {
    let test = "an_import_that_fails_tells_what_is_closed";
    let Some(programs) = postgres::programs(test) else { return };
    let database = Database::start(&programs, "");
    let data = Data::new();
    let [_, to] = schemas(&data, &database);
    let file = data.export("new.json", 10, &[]);
    let import = ["counter", "import", &file, "--store", &to];
    with(&database, "INSERT", "second.tallyring_totals", "RAISE EXCEPTION 'no room'");
    let closed = format!("; nothing was moved, and {} is closed to counters until", shown(&to));
    check(&import, 1, &closed);
    check_closed("--store", &to, "it was not filled to the end from ");
    database.sql("DROP TRIGGER hook ON second.tallyring_totals");
    with(&database, "DELETE", "second.tallyring_meta", NO_ROOM);
    check(&import, 1, &format!("; {} may be closed to counters until the same", shown(&to)));
    database.sql("DROP TRIGGER hook ON second.tallyring_meta");
    check(&import, 0, "10 counted, sum 10");
    check_holds("--store", &to, 10, &[]);
}

#[test]
fn a_file_that_was_not_filled_is_not_told_to_be_closed() {
    let test = "a_file_that_was_not_filled_is_not_told_to_be_closed";
    let Some(programs) = postgres::programs(test) else { return };
    let database = Database::start(&programs, "");
    let data = Data::new();
    let [from, _] = schemas(&data, &database);
    let reopen = "DELETE FROM first.tallyring_meta WHERE key LIKE 'moving to %'";
    with(&database, "INSERT", "first.tallyring_meta", reopen);
    let to = data.counted("to", 10, &[]);
    let words = format!("meanwhile; redb:{to}/counter.redb is as it was: see where");
    check(&["counter", "migrate", &from, &to], 1, &words);
    check(&["counter", "reopen", &to], 0, "it is open to counters; 10 counted");
}

#[test]
fn a_number_that_another_migration_has_given_stays() {
    let test = "a_number_that_another_migration_has_given_stays";
    let Some(programs) = postgres::programs(test) else { return };
    let database = Database::start(&programs, "");
    let data = Data::new();
    let [from, to] = schemas(&data, &database);
    database.sql(
        "CREATE FUNCTION quicker() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
            IF NEW.key = 'id' AND pg_trigger_depth() = 1 THEN
                INSERT INTO second.tallyring_meta VALUES ('id', 77);
            END IF;
            RETURN NEW;
        END$$;
        CREATE TRIGGER quicker BEFORE INSERT ON second.tallyring_meta
            FOR EACH ROW EXECUTE FUNCTION quicker()",
    );
    check(&["counter", "migrate", &from, &to], 0, "10 counted, sum 10; the sum of");
    let id = "SELECT value FROM second.tallyring_meta WHERE key = 'id'";
    assert_eq!(database.sql(id), "77");
    let mark = "SELECT key FROM first.tallyring_meta WHERE key LIKE 'moved to %'";
    assert!(database.sql(mark).ends_with("#000000000000004d"), "{}", database.sql(mark));
}
