//! Counters' files, and JSON.

use std::{fs, io::Write, process::Stdio};

use crate::{
    Data, check, check_closed, check_held, check_holds,
    common::{Server, limited, run, tallyring},
    json, post,
};

/// The totals of most tests.
const NAMES: &[(&str, u64)] = &[("a", 7), ("home.page", 1)];

#[test]
fn an_import_is_what_was_exported() {
    let data = Data::new();
    let (one, other) = (data.text("one"), data.text("other"));
    let mut server = Server::start(&["counter", "--data-dir", &one], &[]);
    post(&server, "/counter?by=1234");
    post(&server, "/counter/a?by=7");
    post(&server, "/counter/home.page");
    let file = data.text("totals.json");
    let words = format!("a process uses {one}/counter.redb; stop the counter first");
    check(&["counter", "export", &file, "--data-dir", &one], 1, &words);
    check(&["counter", "import", &data.export("x", 1, &[]), "--data-dir", &one], 1, &words);
    server.stop();
    let told = "1,234 counted, and 8 under 2 names, sum 1,242";
    check(&["counter", "export", &file, "--data-dir", &one], 0, &format!("{file}: {told}"));
    let text = fs::read_to_string(&file).unwrap();
    assert_eq!(
        text,
        "{\n  \"version\": 1,\n  \"total\": 1234,\n  \"names\": {\n    \"a\": 7,\n    \
         \"home.page\": 1\n  },\n  \"sum\": 1242\n}\n"
    );
    check(&["counter", "export", &file, "--data-dir", &one], 1, "give --force to replace it");
    check(&["counter", "export", &file, "--data-dir", &one, "--force"], 0, told);
    let words = format!("redb:{other}/counter.redb: {told}");
    check(&["counter", "import", &file, "--data-dir", &other], 0, &words);
    check_holds("--data-dir", &other, 1234, NAMES);
    // Once more is no more.
    check(&["counter", "import", &file, "--data-dir", &other], 0, told);
    check_holds("--data-dir", &other, 1234, NAMES);
    let names = fs::read_dir(data.path("")).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(names.into_iter().all(|name| !name.to_str().unwrap().contains("unfinished")));
    let server = Server::start(&["counter", "--data-dir", &other], &[]);
    assert_eq!(post(&server, "/counter"), (200, String::from("1235\n")));
    assert_eq!(post(&server, "/counter/a"), (200, String::from("8\n")));
}

#[test]
fn standard_output_goes_to_standard_input() {
    let data = Data::new();
    let (one, other) = (data.counted("one", 3, NAMES), data.text("other"));
    let (_, json, _) = run(&["counter", "export", "-", "--data-dir", &one]);
    let mut import = tallyring();
    import.args(["counter", "import", "-"]).env("TALLYRING_STORE", format!("redb:{other}"));
    let mut import = import.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    import.stdin.take().unwrap().write_all(json.as_bytes()).unwrap();
    let output = import.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said, format!("redb:{other}: 3 counted, and 8 under 2 names, sum 11\n"));
    check_holds("--store", &format!("redb:{other}"), 3, NAMES);
}

#[test]
fn what_is_wrong_changes_nothing() {
    let data = Data::new();
    let store = data.counted("store", 5, NAMES);
    let import = |text: &str, flags: &[&str], code, words: &str| {
        fs::write(data.path("new.json"), text).unwrap();
        let new = data.text("new.json");
        check(&[&["counter", "import", &new, "--data-dir", &store], flags].concat(), code, words);
    };
    for (text, words) in [
        ("", "it is no export of tallyring: EOF"),
        ("{\"\":5}", "it is no export of tallyring: missing field `version`"),
        (&json(6, NAMES).replace(":1,\"total", ":2,\"total"), "it has version 2"),
        (&json(6, NAMES).replace("\"sum\":14", "\"sum\":15"), "its sum is 15"),
        (&json(6, &[("a/b", 1)]), "\"a/b\" is no name of a counter"),
        (&" ".repeat(5_000_000), "more than 4194304 bytes"),
    ] {
        import(text, &["--force"], 1, words);
    }
    import(&json(4, NAMES), &[], 1, "the total would go back from 5 to 4; give --force");
    import(&json(6, &NAMES[..1]), &[], 1, "the total of home.page would go back from 1 to 0");
    let words = format!(
        "redb:{store}/counter.redb holds 5 counted, and 8 under 2 names already, and {} 6 counted, and 8 \
         under 2 names; give --force to replace them",
        data.text("new.json")
    );
    import(&json(6, NAMES), &[], 1, &words);
    check_holds("--data-dir", &store, 5, NAMES);
    let kept = data.text("store/counter.redb.before-restore");
    import(&json(4, &[("b", 2)]), &["--force"], 0, &kept);
    check_holds("--data-dir", &store, 4, &[("b", 2)]);
    check_holds("--store", &format!("redb:{kept}"), 5, NAMES);
    check(&["counter", "import", "/no/such", "--data-dir", &store], 1, "cannot read /no/such: No");
    check(&["counter", "import", &data.text(""), "--data-dir", &store], 1, "Is a directory");
    let new = data.text("new.json");
    check(&["counter", "import", &new, "--store", "memory"], 1, "memory keeps its totals in");
    check(
        &["counter", "import", &new, "--data-dir", "/proc/x"],
        1,
        "cannot write to the directory",
    );
    fs::write(data.path("diary"), "my diary").unwrap();
    let diary = format!("redb:{}", data.text("diary"));
    check(&["counter", "import", &new, "--store", &diary, "--force"], 1, "is not a counter's file");
    assert_eq!(fs::read(data.path("diary")).unwrap(), b"my diary");
    check(
        &["counter", "export", "--data-dir", &data.text("none")],
        1,
        "nothing is counted in redb:",
    );
}

#[test]
fn an_export_is_whole_or_not_there() {
    let data = Data::new();
    let names: Vec<_> = (0..200).map(|number| format!("{number:0>128}")).collect();
    let names: Vec<_> = names.iter().map(|name| (&**name, 1)).collect();
    let store = data.counted("store", 5, &names);
    let file = data.text("totals.json");
    // In units of 1,024 bytes; the export has more.
    let mut export = limited("-f 16", &["counter", "export", &file, "--data-dir", &store]);
    let output = export.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8(output.stderr).unwrap().contains("cannot write"));
    assert!(!data.path("totals.json").exists() && !data.path("totals.json.unfinished").exists());
    // What a killed one has left is replaced, and what is not ours is not.
    fs::write(data.path("totals.json.unfinished"), "{\n  \"vers").unwrap();
    check(&["counter", "export", &file, "--data-dir", &store], 0, "sum 205");
    fs::write(data.path("diary.unfinished"), "my diary").unwrap();
    let diary = data.text("diary");
    check(&["counter", "export", &diary, "--data-dir", &store], 1, "is in the way");
    check(
        &["counter", "export", "/dev/full", "--data-dir", &store, "--force"],
        1,
        "no regular file",
    );
    // Only another export is replaced by force.
    check(&["counter", "export", &file, "--data-dir", &store], 1, "is there already");
    check(&["counter", "export", &file, "--data-dir", &store, "--force"], 0, "sum 205");
    let own = data.text("store/counter.redb");
    fs::write(data.path("short"), "{").unwrap();
    for other in [&own, &data.text("diary.unfinished"), &data.text("short")] {
        let words = "is there already, and is no export of tallyring; choose another name";
        check(&["counter", "export", other, "--data-dir", &store, "--force"], 1, words);
    }
    check_holds("--data-dir", &store, 5, &names);
}

#[test]
fn a_file_is_moved_to_another_and_back() {
    let data = Data::new();
    let (from, to) = (data.counted("from", 1234, NAMES), data.text("to"));
    let migrate = ["counter", "migrate", &*from, &*to];
    let told = "1,234 counted, and 8 under 2 names, sum 1,242";
    let words = format!(
        "redb:{to}/counter.redb: {told}; the sum of redb:{from}/counter.redb was 1,242, and it is closed to \
         counters"
    );
    check(&migrate, 0, &words);
    check_holds("--data-dir", &to, 1234, NAMES);
    // It keeps its totals, and no counter counts there, which is told to who reads them.
    let there = format!("redb:{to}/counter.redb; these are from before that: ask there");
    check_held("--data-dir", &from, (1234, NAMES), &there);
    let backup = data.text("of-then");
    for (arguments, said) in [
        (&["total"][..], "1234\n"),
        (&["total", "a"], "7\n"),
        (&["total", "--all"], "{\"\":1234,\"a\":7,\"home.page\":1}\n"),
        (&["backup", &backup], &format!("{backup}: 1,234 counted, and 8 under 2 names\n")),
    ] {
        let settings = ["--counter-listen", "off", "--data-dir", &from];
        let (code, out, error) = run(&[arguments, &settings].concat());
        assert_eq!((code, &*out), (0, said), "{error}");
        let words = format!("the totals of {from}/counter.redb were moved to {there}");
        assert!(error.lines().count() == 1 && error.contains(&words), "{error}");
        let settings = ["--counter-listen", "off", "--data-dir", &to];
        let (code, _, error) =
            run(&[arguments, &settings, &["--force"][..usize::from(arguments[0] == "backup")]]
                .concat());
        assert_eq!((code, &*error), (0, ""));
    }
    let moved = format!("its totals were moved to redb:{to}/counter.redb: count there");
    check_closed("--data-dir", &from, &moved);
    check(&["serve", "--data-dir", &from, "--listen", "127.0.0.1:0"], 1, &moved);
    let mut server = Server::start(&["counter", "--data-dir", &to], &[]);
    assert_eq!(post(&server, "/counter"), (200, String::from("1235\n")));
    check(&migrate, 1, &format!("a process uses {to}/counter.redb"));
    server.stop();
    // Done once more, nothing counts twice and nothing goes back.
    let words = format!("the sum 1,242 of redb:{from}/counter.redb was moved there before");
    check(&migrate, 0, &words);
    check(&[&migrate[..], &["--force"]].concat(), 0, &words);
    check_holds("--data-dir", &to, 1235, NAMES);
    let elsewhere = data.text("elsewhere");
    check(&["counter", "migrate", &from, &elsewhere], 1, "were moved to redb:");
    // Nor is it opened by a restore.
    let backup = data.text("backup/counter.redb");
    fs::create_dir(data.path("backup")).unwrap();
    fs::copy(data.path("to/counter.redb"), &backup).unwrap();
    let restore = ["restore", &backup, "--data-dir", &from, "--force"];
    check(&restore, 1, "or give this one to tallyring counter reopen");
    check_closed("--data-dir", &from, &moved);
    // And back.
    check(&["counter", "migrate", &to, &from], 0, "sum 1,243");
    check_holds("--data-dir", &from, 1235, NAMES);
    check_closed("--data-dir", &to, "its totals were moved to redb:");
    check(&["counter", "reopen", &to], 0, "it is open to counters again");
    let [_to, from] = [&to, &from].map(|data| Server::start(&["counter", "--data-dir", data], &[]));
    assert_eq!(post(&from, "/counter"), (200, String::from("1236\n")));
}

#[test]
fn a_migration_that_may_lose_something_is_refused() {
    let data = Data::new();
    let (from, to) = (data.counted("from", 5, NAMES), data.counted("to", 6, &[]));
    let migrate = |from: &str, to: &str, code, words: &str| {
        check(&["counter", "migrate", from, to], code, words);
    };
    migrate(&from, &to, 1, "the total would go back from 6 to 5; give --force to replace them");
    let more = data.counted("more", 4, &[]);
    migrate(&from, &more, 1, "holds 4 counted already");
    migrate(&from, &from, 1, "are one store; nothing was moved");
    let link = data.text("link");
    std::os::unix::fs::symlink(&from, &link).unwrap();
    migrate(&from, &link, 1, "are one store; nothing was moved");
    migrate(&data.text("none"), &to, 1, "nothing is counted in redb:");
    migrate(&from, "memory", 1, "memory keeps its totals");
    migrate("memory", &to, 1, "memory keeps its totals");
    migrate(&from, "mysql://a/b", 2, "it must be redb:PATH, postgres://");
    migrate(&data.text("counted.json"), &to, 2, "redb:PATH for a file");
    migrate(&from, "/proc/x", 1, "cannot write to the directory");
    let server = Server::start(&["counter", "--data-dir", &from], &[]);
    migrate(&from, &data.text("new"), 1, &format!("a process uses {from}/counter.redb; stop"));
    drop(server);
    // Nothing of that has closed or changed anything.
    for (data, total, names) in [(&from, 5, NAMES), (&to, 6, &[])] {
        check_holds("--data-dir", data, total, names);
        drop(Server::start(&["counter", "--data-dir", data], &[]));
    }
    check(&["counter", "migrate", &from, &to, "--force"], 0, "5 counted, and 8 under 2 names");
    check_holds("--data-dir", &to, 5, NAMES);
}

#[test]
fn a_migration_that_has_no_room_leaves_the_first_store_open() {
    let data = Data::new();
    let (from, to) = (data.counted("from", 5, NAMES), data.text("to"));
    // Where the new file would be made.
    fs::create_dir_all(data.path("to/counter.redb.unfinished")).unwrap();
    let failed = |words: &str| {
        let (code, out, error) = run(&["counter", "migrate", &from, &to]);
        assert_eq!(code, 1, "{out}");
        assert!(error.contains(words) && !error.contains("is closed"), "{error}");
        // It is as it was.
        check_holds("--data-dir", &from, 5, NAMES);
        drop(Server::start(&["counter", "--data-dir", &from], &[]));
    };
    failed("cannot write");
    fs::remove_dir(data.path("to/counter.redb.unfinished")).unwrap();
    // Nor is anything moved where the first one cannot be marked.
    fs::create_dir(data.path("from/counter.redb.unfinished")).unwrap();
    failed("cannot write");
    assert!(!data.path("to/counter.redb").exists());
    assert!(!data.path("to/counter.redb.unfinished").exists());
    fs::remove_dir(data.path("from/counter.redb.unfinished")).unwrap();
    check(&["counter", "migrate", &from, &to], 0, "sum 13");
    check_holds("--data-dir", &to, 5, NAMES);
    // Nor does a full disk at the first step change anything.
    check(&["counter", "reopen", &from], 0, "sum 13; it is open to counters again");
    check(&["counter", "reopen", &from], 0, "it is open to counters; 5 counted");
    let new = data.text("new");
    let output = limited("-f 1", &["counter", "migrate", &from, &new]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("cannot write"), "{said}");
    check_holds("--data-dir", &from, 5, NAMES);
    drop(Server::start(&["counter", "--data-dir", &from], &[]));
}

#[test]
fn more_names_than_a_store_takes_are_moved() {
    let data = Data::new();
    let name = |number| format!("{number:0>128}");
    let names: Vec<_> = (0..20_000).map(name).collect();
    let names: Vec<_> = names.iter().map(|name| (&**name, 1)).collect();
    let store = data.counted("store", 2, &names);
    check_holds("--data-dir", &store, 2, &names);
    let server = Server::start(&["counter", "--data-dir", &store], &[]);
    assert_eq!(post(&server, &format!("/counter/{}", name(19_999))), (200, String::from("2\n")));
    assert_eq!(post(&server, "/counter/one-more").0, 507);
    let (backup, listen) = (data.text("backup"), server.address.to_string());
    let words = "2 counted, and 20,001 under 20,000 names";
    check(&["backup", &backup, "--counter-listen", &listen], 0, words);
    drop(server);
    let more = [&names[..], &[("one-more", 1)]].concat();
    let more = data.export("more.json", 2, &more);
    check(&["counter", "import", &more, "--data-dir", &store], 1, "more than 20,000 names");
}

#[test]
fn the_flags_of_a_counter_are_as_before() {
    let data = Data::new();
    let store = format!("redb:{}", data.text("a.redb"));
    let mut server = Server::start(&["counter", "--store", &store, "--store-shard", "a"], &[]);
    assert_eq!(post(&server, "/counter"), (200, String::from("1\n")));
    server.stop();
    for (arguments, words) in [
        (&["counter", "--store", &store, "export"][..], "tallyring --help"),
        (&["counter", "exprt"], "exprt is no command; did you mean import or export?"),
        (&["counter", "migrate", "a"], "<TO>"),
        (&["counter", "export", "--store", "mysql://a"], "--store mysql://a: it must be redb:PATH"),
        (&["counter", "import"], "<FILE>"),
        (&["counter", "export", "--shard", "a"], "--shard is no argument here"),
    ] {
        check(arguments, 2, words);
    }
    let mut command = tallyring();
    command.args(["counter", "export"]).env("TALLYRING_STORE", "mysql://a");
    let said = String::from_utf8(command.output().unwrap().stderr).unwrap();
    assert!(said.contains("TALLYRING_STORE=mysql://a: it must be"), "{said}");
}
