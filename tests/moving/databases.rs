//! Real PostgreSQL and etcd: moved from and to, cut in the middle, and with counters that run.

use std::{
    io::{BufRead, BufReader, Read},
    path::PathBuf,
    process::{Child, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use crate::{
    Data, check, check_closed, check_held, check_holds,
    common::{
        Client, Server,
        postgres::{self, Database},
        proxy::{Proxy, Way},
        run, tallyring,
    },
    member::{self, Member, single},
    post,
};

/// A counter with a shard of this name.
fn counter(store: &str, shard: &str) -> Server {
    Server::start(&["counter", "--store", store, "--store-shard", shard], &[])
}

/// PostgreSQL and etcd, where both are.
pub fn engines(test: &str) -> Option<(Database, Member)> {
    let (postgres, etcd): (Option<PathBuf>, Option<PathBuf>) =
        (postgres::programs(test), member::program(test));
    Some((Database::start(&postgres?, ""), single(&etcd?, &["--unsafe-no-fsync"])))
}

pub fn etcd_url(member: &Member, prefix: &str) -> String {
    member::url(std::slice::from_ref(member), prefix)
}

/// As if its counters had ended a while ago.
fn age_postgres(database: &Database) {
    database.sql("UPDATE tallyring_shards SET seen = now() - interval '40 seconds'");
}

fn age_etcd(member: &Member, prefix: &str) {
    for (key, value) in member.keys(&format!("{prefix}/shards/")) {
        member.put(&key, &format!("{} 1", value.split(' ').next().unwrap()));
    }
}

#[test]
fn totals_go_from_a_file_to_postgres_to_etcd_and_back() {
    let test = "totals_go_from_a_file_to_postgres_to_etcd_and_back";
    let Some((database, member)) = engines(test) else { return };
    let data = Data::new();
    let first = data.counted("first", 10, &[("a", 1), ("b", 2)]);
    let (postgres, etcd) = (database.url(), etcd_url(&member, "/site"));
    check(&["counter", "migrate", &first, &postgres], 0, "the sum of redb:");
    check_holds("--store", &postgres, 10, &[("a", 1), ("b", 2)]);
    check_closed("--data-dir", &first, "its totals were moved to postgres://me@");
    // Several counters go on from there, each with a shard of its own.
    let servers = ["x", "y", "z"].map(|shard| counter(&postgres, shard));
    assert_eq!(post(&servers[0], "/counter?by=5"), (200, String::from("15\n")));
    assert_eq!(post(&servers[1], "/counter"), (200, String::from("16\n")));
    assert_eq!(post(&servers[2], "/counter/a"), (200, String::from("2\n")));
    assert_eq!(post(&servers[2], "/counter/c?by=7"), (200, String::from("7\n")));
    servers.into_iter().for_each(|mut server| drop(server.stop()));
    age_postgres(&database);
    let words = format!(
        "etcd://{}/site: 16 counted, and 11 under 3 names, sum 27; the sum of postgres://me@{}/site was 27",
        member.address, database.address
    );
    check(&["counter", "migrate", &postgres, &etcd], 0, &words);
    let names = &[("a", 2), ("b", 2), ("c", 7)];
    check_holds("--store", &etcd, 16, names);
    check_held("--store", &postgres, (16, names), "etcd://");
    check_closed("--store", &postgres, "its totals were moved to etcd://");
    let servers = ["x", "y"].map(|shard| counter(&etcd, shard));
    assert_eq!(post(&servers[0], "/counter"), (200, String::from("17\n")));
    assert_eq!(post(&servers[1], "/counter/d"), (200, String::from("1\n")));
    servers.into_iter().for_each(|mut server| drop(server.stop()));
    age_etcd(&member, "/site");
    let last = data.text("last");
    check(&["counter", "migrate", &etcd, &last], 0, "17 counted, and 12 under 4 names, sum 29");
    check_holds("--data-dir", &last, 17, &[("a", 2), ("b", 2), ("c", 7), ("d", 1)]);
    check_closed("--store", &etcd, "its totals were moved to redb:");
    // Counters that begin again where they were closed go on from what is there.
    for store in [&etcd, &postgres] {
        check(&["counter", "reopen", store], 0, "it is open to counters again");
    }
    assert_eq!(post(&counter(&etcd, "x"), "/counter"), (200, String::from("18\n")));
    assert_eq!(post(&counter(&postgres, "new"), "/counter"), (200, String::from("17\n")));
    // What takes the place of several shards is all there is.
    age_postgres(&database);
    age_etcd(&member, "/site");
    let less = data.export("less.json", 3, &[("e", 1)]);
    for store in [&etcd, &postgres] {
        let words = "the total would go back from";
        check(&["counter", "import", &less, "--store", store], 1, words);
        check(&["counter", "import", &less, "--store", store, "--force"], 0, "sum 4");
        check_holds("--store", store, 3, &[("e", 1)]);
    }
}

/// A migration whose connection to TO is cut after each of some bytes, and which is killed then, or goes on. It is done
/// once more, and TO holds what FROM held.
fn check_cuts(proxy: &Proxy, to: &str, mut begin_again: impl FnMut(), from: &str) {
    let spawn = || {
        let mut command = tallyring();
        command.args(["counter", "migrate", from, to]).stdout(Stdio::null());
        command.stderr(Stdio::null()).spawn().unwrap()
    };
    assert!(spawn().wait().unwrap().success());
    let lengths = [Way::ToServer, Way::ToClient].map(|way| (way, proxy.passed(way)));
    const CUTS: usize = 12;
    let mut cuts = 0;
    for (way, length) in lengths {
        for number in 0..CUTS {
            begin_again();
            proxy.cut_after(way, number * length / CUTS);
            let mut child = spawn();
            proxy.wait_for_cut();
            // The others try again by themselves.
            if number % 3 > 0 {
                child.kill().unwrap();
            }
            let status = child.wait().unwrap();
            assert!(number % 3 > 0 || status.success(), "{way:?} {number}");
            cuts += proxy.pass_all();
            let (code, out, error) = run(&["counter", "migrate", from, to]);
            assert_eq!(code, 0, "{way:?} {number}: {out}{error}");
            check_holds("--store", to, 5, &[("a", 7), ("b", 1)]);
        }
    }
    assert!(cuts >= 2 * CUTS, "{cuts}");
}

#[test]
fn a_migration_to_postgres_that_is_cut_is_done_once_more() {
    let test = "a_migration_to_postgres_that_is_cut_is_done_once_more";
    let Some(programs) = postgres::programs(test) else { return };
    let database = Database::start(&programs, "fsync = off");
    let proxy = Proxy::start(database.address);
    let data = Data::new();
    let from = data.counted("from", 5, &[("a", 7), ("b", 1)]);
    let begin_again = || {
        database.sql("DROP TABLE tallyring_meta, tallyring_shards, tallyring_totals");
        check(&["counter", "reopen", &from], 0, "it is open");
    };
    check_cuts(&proxy, &postgres::url(proxy.address), begin_again, &from);
}

#[test]
fn a_migration_from_postgres_to_etcd_that_is_cut_is_done_once_more() {
    let test = "a_migration_from_postgres_to_etcd_that_is_cut_is_done_once_more";
    let Some((database, member)) = engines(test) else { return };
    let proxy = Proxy::start(member.address);
    let data = Data::new();
    let first = data.export("first.json", 5, &[("a", 7), ("b", 1)]);
    let from = database.url();
    check(&["counter", "import", &first, "--store", &from], 0, "sum 13");
    let begin_again = || {
        for (key, _) in member.keys("/site/") {
            member.delete(&key);
        }
        check(&["counter", "reopen", &from], 0, "it is open");
    };
    check_cuts(&proxy, &format!("etcd://{}/site", proxy.address), begin_again, &from);
}

/// A counter that runs is not moved from or to; by force it is, and what it has told is there.
fn check_running(store: &str, age: impl Fn()) {
    let data = Data::new();
    let mut server = counter(store, "a");
    let (told, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let count = || {
        let mut client = Client::connect(server.address);
        while !stop.load(Ordering::Relaxed) {
            client.send("POST /counter HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
            let response = client.response();
            if response.status != 200 {
                break;
            }
            told.store(response.body.trim_end().parse().unwrap(), Ordering::SeqCst);
        }
    };
    let to = data.text("to");
    let file = data.export("less.json", 0, &[]);
    thread::scope(|scope| {
        scope.spawn(count);
        while told.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        let words = "(shard a); stop all of its counters first";
        let (code, out, error) = run(&["counter", "migrate", store, &to]);
        assert!(code == 1 && error.contains(words), "{out}{error}");
        assert!(error.contains("waiting until it is certain"), "{error}");
        // One moment of a store in use.
        let (code, out, _) = run(&["counter", "export", "--store", store]);
        assert!(code == 0 && out.contains("\"sum\""), "{out}");
        let (code, _, error) = run(&["counter", "import", &file, "--store", store]);
        assert!(code == 1 && error.contains("the total would go back"), "{error}");
        // It goes on.
        let before = told.load(Ordering::SeqCst);
        while told.load(Ordering::SeqCst) == before {
            thread::yield_now();
        }
        let (code, out, error) = run(&["counter", "migrate", store, &to, "--force"]);
        assert_eq!((code, &*error), (0, ""), "{out}");
        stop.store(true, Ordering::Relaxed);
    });
    let (status, lines) = server.wait();
    assert_eq!(status.code(), Some(3), "{lines:?}");
    check_holds("--data-dir", &to, told.into_inner(), &[]);
    // A counter that has no visits runs too.
    check(&["counter", "reopen", store], 0, "it is open");
    let idle = counter(store, "b");
    let (code, _, error) = run(&["counter", "migrate", store, &data.text("other")]);
    assert!(code == 1 && error.contains("(shard b); stop all"), "{error}");
    drop(idle);
    age();
    check(&["counter", "migrate", store, &data.text("other")], 0, "closed to counters");
}

#[test]
fn counters_that_run_on_postgres_are_not_moved() {
    let test = "counters_that_run_on_postgres_are_not_moved";
    let Some(programs) = postgres::programs(test) else { return };
    let database = Database::start(&programs, "");
    check_running(&database.url(), || age_postgres(&database));
}

#[test]
fn counters_that_run_on_etcd_are_not_moved() {
    let Some(program) = member::program("counters_that_run_on_etcd_are_not_moved") else { return };
    let member = single(&program, &[]);
    check_running(&etcd_url(&member, "/site"), || age_etcd(&member, "/site"));
}

fn spawn(arguments: &[&str]) -> Child {
    let mut command = tallyring();
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Of several that move the totals of one store at the same time, the first one does it.
fn check_one_of_several(store: &str) {
    let data = Data::new();
    drop(counter(store, "a").stop());
    let file = data.export("more.json", 9, &[]);
    let (to, other) = (data.text("to"), data.text("other"));
    let several =
        [&["counter", "migrate", store, &to][..], &["counter", "import", &file, "--store", store]];
    let several = several.map(|arguments| {
        let mut child = spawn(arguments);
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        errors.read_line(&mut line).unwrap();
        assert!(line.contains("waiting until it is certain"), "{line}");
        (child, errors)
    });
    check(&["counter", "migrate", store, &other, "--force"], 0, "sum 0");
    for (mut child, mut errors) in several {
        let mut said = String::new();
        errors.read_to_string(&mut said).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1), "{said}");
        assert!(said.contains("another migration or import has closed"), "{said}");
    }
    assert!(!data.path("to/counter.redb").exists());
    check_closed("--store", store, "/other/counter.redb: count there");
}

#[test]
fn one_of_several_that_move_the_totals_of_postgres_does_it() {
    let test = "one_of_several_that_move_the_totals_of_postgres_does_it";
    let Some(programs) = postgres::programs(test) else { return };
    check_one_of_several(&Database::start(&programs, "").url());
}

#[test]
fn one_of_several_that_move_the_totals_of_etcd_does_it() {
    let test = "one_of_several_that_move_the_totals_of_etcd_does_it";
    let Some(program) = member::program(test) else { return };
    check_one_of_several(&etcd_url(&single(&program, &[]), "/site"));
}

/// Two stores in schemas of one database, so that a trigger in one can change the other at a certain moment: `first`
/// with 10, and `second`, which is empty.
pub fn schemas(data: &Data, database: &Database) -> [String; 2] {
    let file = data.export("new.json", 10, &[]);
    let nothing = data.export("nothing.json", 0, &[]);
    [("first", file), ("second", nothing)].map(|(schema, file)| {
        database.sql(&format!("CREATE SCHEMA {schema}"));
        let store = of_schema(&database.url(), schema);
        check(&["counter", "import", &file, "--store", &store], 0, "counted, sum");
        store
    })
}

/// The store in a schema of a database.
fn of_schema(url: &str, schema: &str) -> String {
    let (place, more) = url.split_once('?').unwrap_or((url, ""));
    format!("{place}?{more}&options=-csearch_path%3D{schema}").replace("?&", "?")
}

/// Runs statements with each row of a table to which something is done.
pub fn with(database: &Database, what: &str, table: &str, statements: &str) {
    let name = table.replace('.', "_");
    database.sql(&format!(
        "CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS
            $$BEGIN {statements}; RETURN NULL; END$$;
        CREATE TRIGGER hook AFTER {what} ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()"
    ));
}

const REOPEN: &str = "DELETE FROM first.tallyring_meta WHERE key LIKE 'moving to %'";

#[test]
fn a_store_that_is_reopened_while_it_is_moved_is_not_moved() {
    let test = "a_store_that_is_reopened_while_it_is_moved_is_not_moved";
    let Some(programs) = postgres::programs(test) else { return };
    let database = Database::start(&programs, "");
    let data = Data::new();
    let [from, to] = schemas(&data, &database);
    // It counts once more when it is closed, so it is copied again, and is opened by that.
    let more = "UPDATE first.tallyring_totals SET n = n + 1";
    with(&database, "DELETE", "first.tallyring_shards", more);
    with(&database, "INSERT", "second.tallyring_totals", REOPEN);
    let (code, out, said) = run(&["counter", "migrate", &from, &to]);
    assert_eq!((code, &*out), (1, ""));
    assert!(said.contains("was reopened, or closed by another migration, meanwhile;"), "{said}");
    check_closed("--store", &to, "it was not filled to the end from postgres://");
    check_holds("--store", &from, 11, &[]);
    database.sql("DROP TRIGGER hook ON second.tallyring_totals");
    check(&["counter", "migrate", &from, &to], 0, "11 counted, sum 11; the sum of postgres://");
    check_holds("--store", &to, 11, &[]);
}

#[test]
fn a_store_that_is_reopened_when_the_other_is_opened_is_told() {
    let test = "a_store_that_is_reopened_when_the_other_is_opened_is_told";
    let Some(programs) = postgres::programs(test) else { return };
    let database = Database::start(&programs, "");
    let data = Data::new();
    let [from, to] = schemas(&data, &database);
    with(&database, "DELETE", "second.tallyring_meta", REOPEN);
    let (code, out, said) = run(&["counter", "migrate", &from, &to]);
    assert_eq!((code, &*out), (1, ""));
    assert!(said.contains("both may be counted in, each with all that was moved"), "{said}");
    for store in [&from, &to] {
        check_holds("--store", store, 10, &[]);
        check(&["counter", "reopen", store], 0, "it is open to counters; 10 counted");
    }
    // Both have the same, so it can be done once more.
    database.sql("DROP TRIGGER hook ON second.tallyring_meta");
    check(&["counter", "migrate", &from, &to], 0, "it is closed to counters");
}

#[test]
fn a_migration_that_fails_at_its_end_is_done_once_more() {
    let test = "a_migration_that_fails_at_its_end_is_done_once_more";
    let Some(programs) = postgres::programs(test) else { return };
    let database = Database::start(&programs, "");
    let data = Data::new();
    let [from, to] = schemas(&data, &database);
    // Before the first one is closed.
    with(&database, "INSERT", "second.tallyring_totals", "RAISE EXCEPTION 'no room'");
    let words = format!("no room (P0001); nothing was moved, and {} is closed to", shown(&to));
    check(&["counter", "migrate", &from, &to], 1, &words);
    check_closed("--store", &to, "it was not filled to the end from postgres://");
    check(&["counter", "reopen", &from], 0, "it is open to counters; 10 counted");
    database.sql("DROP TRIGGER hook ON second.tallyring_totals");
    // And after that.
    let statements = "IF EXISTS (SELECT FROM second.tallyring_totals WHERE n = 10) THEN RAISE \
         EXCEPTION 'no room'; END IF";
    with(&database, "DELETE", "second.tallyring_meta", statements);
    let (first, second) = (shown(&from), shown(&to));
    let words = format!(
        "no room (P0001); {first} is closed to counters, and {second} may be: do the same once more, or"
    );
    check(&["counter", "migrate", &from, &to], 1, &words);
    check_closed("--store", &from, "its totals were being moved to postgres://");
    database.sql("DROP TRIGGER hook ON second.tallyring_meta");
    check(&["counter", "migrate", &from, &to], 0, "10 counted, sum 10; the sum of");
    check_holds("--store", &to, 10, &[]);
}

/// As the program shows a URL: without its parameters.
pub fn shown(url: &str) -> &str {
    url.split('?').next().unwrap()
}

/// One store by two addresses is not moved to itself, also not by force; and what was moved to it is there by both.
fn check_aliases(data: &Data, one: &str, other: &str) {
    let elsewhere = data.text(&format!("elsewhere-{}", &one[..4]));
    let same = "are one store; nothing was moved";
    for force in [&[][..], &["--force"]] {
        check(&[&["counter", "migrate", one, other][..], force].concat(), 1, same);
        check(&["counter", "reopen", one], 0, "it is open to counters;");
    }
    check(&["counter", "migrate", one, &elsewhere], 0, "it is closed to counters");
    check(&["counter", "migrate", one, other, "--force"], 1, same);
    check_closed("--store", one, "its totals were moved to redb:");
    check_closed("--store", other, "its totals were moved to redb:");
    // Back, by the other name.
    check(&["counter", "migrate", &elsewhere, other], 0, "it is closed to counters");
    check(&["counter", "migrate", &elsewhere, one], 0, "was moved there before");
    check(&["counter", "migrate", &elsewhere, one, "--force"], 0, "was moved there before");
    check(&["counter", "migrate", one, &elsewhere], 0, "it is closed to counters");
    check(&["counter", "reopen", other], 0, "it is open to counters again");
}

#[test]
fn a_store_is_known_by_any_of_its_names() {
    let Some((database, member)) = engines("a_store_is_known_by_any_of_its_names") else { return };
    let data = Data::new();
    let (postgres, etcd) = (database.url(), etcd_url(&member, "/site"));
    let file = data.export("new.json", 9, &[("a", 1)]);
    let ways = [Proxy::start(database.address), Proxy::start(member.address)];
    for (store, other) in [
        (&postgres, postgres::url(ways[0].address)),
        (&etcd, format!("etcd://{}/site", ways[1].address)),
    ] {
        check(&["counter", "import", &file, "--store", store], 0, "sum 10");
        check_aliases(&data, store, &other);
    }
    // A copy is another store.
    database.sql("CREATE SCHEMA copy");
    for table in ["meta", "shards", "totals"] {
        let (copy, original) = (format!("copy.tallyring_{table}"), format!("tallyring_{table}"));
        database.sql(&format!("CREATE TABLE {copy} (LIKE {original} INCLUDING ALL)"));
        database.sql(&format!("INSERT INTO {copy} SELECT * FROM {original}"));
    }
    let copy = of_schema(&postgres, "copy");
    check(&["counter", "migrate", &postgres, &copy], 0, "it is closed to counters");
}

#[test]
fn of_two_migrations_into_one_store_it_holds_what_one_has_moved() {
    let test = "of_two_migrations_into_one_store_it_holds_what_one_has_moved";
    let Some((database, member)) = engines(test) else { return };
    let data = Data::new();
    for (round, to) in [database.url(), etcd_url(&member, "/site")].iter().enumerate() {
        let ways = [5, 7].map(|total| {
            let from = data.counted(&format!("{round}-{total}"), total, &[]);
            let child = spawn(&["counter", "migrate", &from, to, "--force"]);
            (total, from, child)
        });
        let mut moved = Vec::new();
        for (total, from, child) in ways {
            let output = child.wait_with_output().unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            if output.status.success() {
                moved.push(total);
            }
            // Nobody is left with a store that is closed and not moved, without being told what to do.
            let (code, out, _) = run(&["counter", "reopen", &from]);
            let was_closed = out.contains("open to counters again");
            let told = said.contains(": do the same once more, or give redb:");
            assert!(code == 0 && was_closed == (output.status.success() || told), "{out}{said}");
        }
        assert!(!moved.is_empty());
        let (_, out, _) = run(&["counter", "export", "--store", to]);
        assert!(moved.iter().any(|total| out.contains(&format!("\"sum\": {total}\n"))), "{out}");
        check(&["counter", "reopen", to], 0, "it is open to counters;");
    }
}

#[test]
fn a_store_that_was_filled_in_part_is_not_used() {
    let Some((database, member)) = engines("a_store_that_was_filled_in_part_is_not_used") else {
        return;
    };
    let data = Data::new();
    let file = data.export("new.json", 9, &[("a", 1)]);
    let (postgres, etcd) = (database.url(), etcd_url(&member, "/site"));
    for store in [&postgres, &etcd] {
        let old = data.export("old.json", 20, &[]);
        check(&["counter", "import", &old, "--store", store], 0, "sum 20");
    }
    database.sql("INSERT INTO tallyring_meta VALUES ('filled from x.json', 5)");
    member.put("/site/mark", "filled from x.json");
    for store in [&postgres, &etcd] {
        let words =
            "it was not filled to the end from x.json: run that migration or import once more";
        check_closed("--store", store, words);
        check(&["counter", "export", "--store", store], 1, words);
        check(&["counter", "reopen", store], 1, words);
        check(&["counter", "migrate", store, &data.text("to")], 1, words);
        let words =
            "was not filled to the end from x.json: do that once more first, or give --force";
        check(&["counter", "import", &file, "--store", store], 1, words);
        // What there is of it counts for nothing.
        let import = ["counter", "import", &file, "--store", store, "--force"];
        check(&import, 0, "9 counted, and 1 under 1 name");
        check_holds("--store", store, 9, &[("a", 1)]);
        assert_eq!(post(&counter(store, "a"), "/counter"), (200, String::from("10\n")));
    }
}

#[test]
fn what_is_no_store_is_left_as_it_is() {
    let Some((database, member)) = engines("what_is_no_store_is_left_as_it_is") else { return };
    let data = Data::new();
    let to = data.text("to");
    let (postgres, etcd) = (database.url(), etcd_url(&member, "/site"));
    check(&["counter", "export", "--store", &postgres], 1, "it has no tables of tallyring");
    check(&["counter", "migrate", &postgres, &to], 1, "it has no tables of tallyring");
    check(&["counter", "migrate", &etcd, &to], 1, &format!("nothing is counted in {etcd}"));
    assert_eq!(database.sql("SELECT count(*) FROM pg_tables WHERE tablename LIKE 'tally%'"), "0");
    assert!(member.keys("/site/").is_empty());
    // A total that a database cannot hold.
    let most = data.export("most.json", u64::MAX, &[]);
    drop(counter(&postgres, "a"));
    database.sql("DELETE FROM tallyring_totals");
    age_postgres(&database);
    let words = "is more than the 9223372036854775807 that it can hold";
    check(&["counter", "import", &most, "--store", &postgres], 1, words);
    check(&["counter", "import", &most, "--store", &postgres, "--force"], 1, words);
    check(&["counter", "import", &most, "--store", &etcd], 0, "18,446,744,073,709,551,615");
    check(&["counter", "migrate", &etcd, &postgres, "--force"], 1, words);
    // Nothing of that has closed one of them.
    for store in [&postgres, &etcd] {
        check(&["counter", "reopen", store], 0, "it is open to counters;");
    }
}

#[test]
fn ten_thousand_of_the_longest_names_are_moved() {
    let test = "ten_thousand_of_the_longest_names_are_moved";
    let Some((database, member)) = engines(test) else { return };
    let data = Data::new();
    let names: Vec<_> = (0..10_000).map(|number| format!("{number:0>128}")).collect();
    let names: Vec<_> = names.iter().map(|name| (&**name, 3)).collect();
    let file = data.export("totals.json", 2, &names);
    let etcd = etcd_url(&member, &format!("/{}", "p".repeat(63)));
    check(&["counter", "import", &file, "--store", &database.url()], 0, "under 10,000 names");
    check(&["counter", "migrate", &database.url(), &etcd], 0, "sum 30,002");
    check_holds("--store", &etcd, 2, &names);
    let last = data.text("last");
    check(&["counter", "migrate", &etcd, &last], 0, "sum 30,002");
    check_holds("--data-dir", &last, 2, &names);
    // Counters that make new names in the same instant go beyond that.
    let more = |count| {
        format!(
            "INSERT INTO tallyring_totals SELECT 'more-' || n, 'moved', 1
            FROM generate_series(1, {count}) AS n ON CONFLICT DO NOTHING"
        )
    };
    database.sql(&more(10_000));
    let (store, file) = (database.url(), data.text("more.json"));
    check(&["counter", "reopen", &store], 0, "under 20,000 names");
    check(&["counter", "export", &file, "--store", &store], 0, "under 20,000 names");
    let imported = data.text("imported");
    check(&["counter", "import", &file, "--data-dir", &imported], 0, "sum 40,002");
    database.sql(&more(10_001));
    let words =
        "has 20,001 names, and an export has at most 20,000; tallyring counter migrate moves";
    check(&["counter", "export", "--store", &store], 1, words);
    check(&["counter", "migrate", &store, &data.text("all")], 0, "sum 40,003");
}
