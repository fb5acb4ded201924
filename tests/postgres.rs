//! Counters on a real PostgreSQL, which the test starts, kills and promotes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{
    fs::{self, Permissions},
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use common::{
    Books, Client, SORRY, Server, Signal, WELCOME,
    postgres::{Database, programs, url},
    proxy::{Proxy, Way},
    run, serve,
};

/// A counter with a shard of this name.
fn counter(url: &str, shard: &str) -> Server {
    Server::start(&["counter", "--store", url, "--store-shard", shard], &[])
}

fn post(client: &mut Client, path: &str) -> (u16, String) {
    client.send(format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"));
    let response = client.response();
    (response.status, response.body)
}

fn total(number: u64) -> (u16, String) {
    (200, format!("{number}\n"))
}

#[test]
fn it_counts_under_names_and_outlives_its_process() {
    let Some(programs) = programs("it_counts_under_names_and_outlives_its_process") else { return };
    let database = Database::start(&programs, "");
    let mut server = counter(&database.url(), "a");
    assert!(server.line.contains(&format!("0 counted in {}", database.url())), "{}", server.line);
    let mut client = server.client();
    assert_eq!(post(&mut client, "/counter"), total(1));
    assert_eq!(post(&mut client, "/counter?by=1000000"), total(1_000_001));
    assert_eq!(post(&mut client, "/counter/home.page?by=5"), total(5));
    assert_eq!(client.get("/counter/other").body, "0\n");
    assert_eq!(client.get("/counters").body, r#"{"":1000001,"home.page":5}"#);
    assert_eq!(database.total(), 1_000_001);
    // As a power loss of its machine: the shard is taken back at once.
    server.signal(Signal::KILL);
    server.wait();
    let mut server = counter(&database.url(), "a");
    assert_eq!(post(&mut server.client(), "/counter"), total(1_000_002));
    let shards = "SELECT shard, epoch FROM tallyring_shards";
    assert_eq!(database.sql(shards), "a|2");
    assert!(server.stop().contains("1,000,002 counted, and 5 under names, in postgres://me@"));
}

#[test]
fn a_total_is_the_sum_of_the_shards_of_all_counters() {
    let Some(programs) = programs("a_total_is_the_sum_of_the_shards_of_all_counters") else {
        return;
    };
    let database = Database::start(&programs, "");
    let servers = ["a", "b"].map(|shard| counter(&database.url(), shard));
    let [mut a, mut b] = servers.each_ref().map(Server::client);
    assert_eq!(post(&mut a, "/counter"), total(1));
    assert_eq!(post(&mut b, "/counter?by=10"), total(11));
    assert_eq!(post(&mut a, "/counter/x"), total(1));
    assert_eq!(a.get("/counter").body, "11\n");
    assert_eq!(b.get("/counters").body, r#"{"":11,"x":1}"#);
    // Both at once: nothing is lost, and no row is waited for.
    thread::scope(|scope| {
        for address in servers.each_ref().map(|server| server.address) {
            for _ in 0..4 {
                scope.spawn(move || {
                    let mut client = Client::connect(address);
                    (0..50).for_each(|_| assert_eq!(post(&mut client, "/counter").0, 200));
                });
            }
        }
    });
    assert_eq!((database.total(), a.get("/counter").body.as_str()), (411, "411\n"));
}

#[test]
fn a_counter_whose_shard_was_taken_over_ends() {
    let Some(programs) = programs("a_counter_whose_shard_was_taken_over_ends") else { return };
    let database = Database::start(&programs, "");
    let mut old = counter(&database.url(), "a");
    let mut client = old.client();
    assert_eq!(post(&mut client, "/counter"), total(1));
    let new = counter(&database.url(), "a");
    // A total of its own would lack what the new one counts.
    assert_eq!(post(&mut new.client(), "/counter"), total(2));
    let response = client.get("/counter");
    assert_eq!(
        (response.status, response.body.as_str()),
        (503, "the store failed; nothing was counted\n")
    );
    let (status, lines) = old.wait();
    assert_eq!(status.code(), Some(3), "{lines:?}");
    let told =
        lines.iter().any(|line| line.contains("give each") || line.contains("--store-shard"));
    assert!(told, "{lines:?}");
    assert_eq!(post(&mut new.client(), "/counter"), total(3));
}

#[test]
fn a_site_whose_shard_was_taken_over_ends_with_its_visitors_served() {
    let Some(programs) =
        programs("a_site_whose_shard_was_taken_over_ends_with_its_visitors_served")
    else {
        return;
    };
    let database = Database::start(&programs, "");
    let mut site = serve(&["--store", &database.url(), "--store-shard", "a"]);
    assert_eq!(site.visit(), WELCOME);
    let new = counter(&database.url(), "a");
    assert_eq!(site.visit(), SORRY);
    let (status, lines) = site.wait();
    assert_eq!(status.code(), Some(3), "{lines:?}");
    assert_eq!(
        Books::read(lines.last().unwrap()),
        Books { welcomed: 1, erred: 1, refused: 0, abandoned: 0 }
    );
    assert_eq!(post(&mut new.client(), "/counter"), total(2));
}

#[test]
fn shards_of_counters_that_are_gone_are_folded() {
    let Some(programs) = programs("shards_of_counters_that_are_gone_are_folded") else { return };
    let database = Database::start(&programs, "");
    let [mut late, gone] = ["late", "gone"].map(|shard| counter(&database.url(), shard));
    let mut client = late.client();
    post(&mut client, "/counter?by=2");
    post(&mut gone.client(), "/counter?by=3");
    post(&mut gone.client(), "/counter/x?by=4");
    drop(gone);
    // Both were not seen for long; one of them runs.
    database.sql("UPDATE tallyring_shards SET seen = now() - interval '3601 seconds'");
    let new = counter(&database.url(), "new");
    new.check_said("took the totals of counters that are gone: shards ");
    assert_eq!(database.sql("SELECT shard FROM tallyring_shards"), "new");
    assert_eq!(post(&mut new.client(), "/counter"), total(6));
    assert_eq!(post(&mut new.client(), "/counter/x"), total(5));
    let rows = "SELECT count(*) FROM tallyring_totals WHERE shard <> 'new'";
    assert_eq!(database.sql(rows), "0");
    assert_eq!(post(&mut client, "/counter").0, 503);
    assert_eq!(late.wait().0.code(), Some(3));
    // Its name can be used again, and it was seen long enough ago not to be folded: nobody is.
    let again = counter(&database.url(), "late");
    assert_eq!(post(&mut again.client(), "/counter"), total(7));
    assert_eq!(post(&mut new.client(), "/counter"), total(8));
}

/// Visitors of a site, until they are told to stop.
struct Visitors {
    site: SocketAddr,
    welcomed: AtomicU64,
    stop: AtomicBool,
}

impl Visitors {
    fn of(site: &Server) -> Self {
        Self { site: site.address, welcomed: AtomicU64::new(0), stop: AtomicBool::new(false) }
    }

    fn visit(&self) {
        let mut client = Client::connect(self.site);
        while !self.stop.load(Ordering::Relaxed) {
            if client.get("/").body == WELCOME {
                self.welcomed.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    /// Waits until so many more are welcomed.
    fn wait_for(&self, more: u64) {
        let wanted = self.welcomed.load(Ordering::SeqCst) + more;
        while self.welcomed.load(Ordering::SeqCst) < wanted {
            thread::yield_now();
        }
    }

    /// Lets eight of them visit while `act` goes on.
    fn while_they_visit(&self, act: impl FnOnce()) {
        thread::scope(|scope| {
            (0..8).for_each(|_| drop(scope.spawn(|| self.visit())));
            act();
            self.stop.store(true, Ordering::Relaxed);
        });
    }
}

#[test]
fn a_database_that_is_killed_loses_no_visit_and_counts_none_twice() {
    let Some(programs) = programs("a_database_that_is_killed_loses_no_visit_and_counts_none_twice")
    else {
        return;
    };
    let mut database = Database::start(&programs, "");
    let mut site = serve(&["--store", &database.url(), "--store-shard", "a"]);
    let visitors = Visitors::of(&site);
    visitors.while_they_visit(|| {
        for _ in 0..4 {
            visitors.wait_for(200);
            database.kill();
            database.restart();
        }
        visitors.wait_for(200);
    });
    let welcomed = visitors.welcomed.into_inner();
    let books = site.stop_with_books();
    assert_eq!(books.welcomed, welcomed);
    books.check(database.total());
}

#[test]
fn the_loss_of_a_primary_with_a_synchronous_standby_loses_nothing() {
    let Some(programs) = programs("the_loss_of_a_primary_with_a_synchronous_standby_loses_nothing")
    else {
        return;
    };
    let mut primary = Database::start(&programs, "");
    let standby = Database::follow(&primary, "standby");
    let (first, second) = (primary.address, standby.address);
    // A standby alone cannot count.
    let alone = run(&["counter", "--store", &standby.url(), "--listen", "127.0.0.1:0"]);
    assert_eq!(alone.0, 1);
    assert!(alone.2.contains("it is read-only, as a standby is; name the primary"), "{}", alone.2);
    primary.sql("ALTER SYSTEM SET synchronous_standby_names = 'standby'");
    primary.sql("SELECT pg_reload_conf()");
    while primary.sql("SELECT sync_state FROM pg_stat_replication") != "sync" {
        thread::yield_now();
    }
    // The standby is named first: it is passed over for as long as it is one.
    let url = format!("postgres://me@{second},{first}/site?target_session_attrs=read-write");
    let mut site = serve(&["--store", &url, "--store-shard", "a"]);
    let visitors = Visitors::of(&site);
    visitors.while_they_visit(|| {
        visitors.wait_for(300);
        primary.kill();
        standby.promote();
        visitors.wait_for(300);
    });
    let books = site.stop_with_books();
    assert_eq!(books.welcomed, visitors.welcomed.into_inner());
    books.check(standby.total());
}

#[test]
fn a_commit_that_was_not_waited_for_is_not_told() {
    let Some(programs) = programs("a_commit_that_was_not_waited_for_is_not_told") else { return };
    let primary = Database::start(&programs, "");
    let mut standby = Database::follow(&primary, "standby");
    let server = counter(&primary.url(), "a");
    assert_eq!(post(&mut server.client(), "/counter"), total(1));
    primary.sql("ALTER SYSTEM SET synchronous_standby_names = 'standby'");
    primary.sql("SELECT pg_reload_conf()");
    while primary.sql("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") != "1" {
        thread::yield_now();
    }
    standby.kill();
    let address = server.address;
    thread::scope(|scope| {
        let asked = scope.spawn(move || post(&mut Client::connect(address), "/counter"));
        // An administrator cancels the wait: PostgreSQL then reports success, with a warning.
        let cancel = "SET synchronous_commit = local; SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity
            WHERE wait_event = 'SyncRep' AND application_name = 'tallyring'";
        while primary.sql(cancel) == "0" {
            thread::yield_now();
        }
        // What is told at last is on the standby.
        standby.restart();
        assert_eq!(asked.join().unwrap(), total(2));
    });
    assert_eq!(standby.total(), 2);
}

#[test]
fn serialization_failures_are_tried_again() {
    let Some(programs) = programs("serialization_failures_are_tried_again") else { return };
    let database = Database::start(&programs, "default_transaction_isolation = 'serializable'");
    database.sql("CREATE ROLE app LOGIN; GRANT CREATE ON SCHEMA public TO app");
    let server = counter(&database.url().replace("//me@", "//app@"), "a");
    let mut client = server.client();
    // Each third try succeeds.
    database.sql(
        "CREATE SEQUENCE tries; GRANT ALL ON SEQUENCE tries TO app; CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
         IF nextval('tries') % 3 <> 0 THEN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END IF;
         RETURN NEW; END $$;
         CREATE TRIGGER fail BEFORE UPDATE ON tallyring_shards FOR EACH ROW EXECUTE FUNCTION fail()",
    );
    for number in 1..=3 {
        assert_eq!(post(&mut client, "/counter"), total(number));
    }
    assert_eq!(database.sql("SELECT last_value FROM tries"), "9");
    assert_eq!(database.total(), 3);
    // What no try can mend is told at once, and nothing of it is kept.
    database.sql("DROP TRIGGER fail ON tallyring_shards; ALTER TABLE tallyring_totals OWNER TO me");
    let refused = post(&mut client, "/counter");
    assert_eq!(refused, (503, String::from("the store failed; nothing was counted\n")));
    server.wait_for_line("permission denied for table tallyring_totals (42501); ");
    database.sql("GRANT ALL ON tallyring_totals TO app");
    assert_eq!(post(&mut client, "/counter"), total(4));
}

/// Cuts the connection at each byte of a commit that goes one way, one after another; where this ends.
fn cut_at_each_byte(
    database: &Database,
    shard: &str,
    way: Way,
    first: usize,
    step: usize,
) -> usize {
    let proxy = Proxy::start(database.address);
    let server = counter(&url(proxy.address), shard);
    let mut client = server.client();
    let path = format!("/counter/{shard}");
    let mut counted = 0;
    let mut byte = first;
    loop {
        proxy.cut_after(way, byte);
        counted += 1;
        assert_eq!(post(&mut client, &path), total(counted), "{way:?} cut at {byte}");
        if proxy.pass_all() == 0 {
            return byte;
        }
        byte += step;
    }
}

#[test]
fn a_commit_whose_connection_is_cut_at_any_byte_counts_once() {
    let Some(programs) = programs("a_commit_whose_connection_is_cut_at_any_byte_counts_once")
    else {
        return;
    };
    let database = Database::start(&programs, "fsync = off");
    let database = &database;
    const STEP: usize = 8;
    thread::scope(|scope| {
        let cut = |way: Way, first: usize| {
            let shard = format!("{way:?}-{first}");
            cut_at_each_byte(database, &shard, way, first, STEP)
        };
        let each = [Way::ToServer, Way::ToClient].map(|way| {
            (0..STEP).map(|first| scope.spawn(move || cut(way, first))).collect::<Vec<_>>()
        });
        for ends in each {
            let ends: Vec<_> = ends.into_iter().map(|end| end.join().unwrap()).collect();
            // A message with the names, and an answer with a row at least.
            assert!(ends.iter().all(|end| *end > 40), "{ends:?}");
        }
    });
}

/// What `counter` says when it cannot start; `check` and `doctor` say the same before.
#[track_caller]
fn check_refused(url: &str, words: &str) {
    let directory = tempfile::tempdir().unwrap();
    let start = ["--store", url, "--listen", "127.0.0.1:0", "--data-dir"];
    let start: Vec<_> = start.iter().copied().chain(directory.path().to_str()).collect();
    let of = |command: &str| {
        let mut arguments = vec![command];
        arguments.extend(&start);
        run(&arguments)
    };
    let (code, _, said) = of("counter");
    assert_eq!((code, said.lines().count()), (1, 1), "{said}");
    assert!(said.starts_with("tallyring: cannot use the store postgres://"), "{said}");
    assert!(said.contains(words), "{said}");
    let (code, _, check) = of("check");
    assert_eq!((code, &check), (1, &said));
    let (_, doctor, _) = of("doctor");
    assert!(doctor.contains(words), "{doctor}");
    for text in [said, check, doctor] {
        assert!(!text.contains("s3cret"), "{text}");
    }
}

#[test]
fn what_cannot_work_is_refused_with_the_remedy() {
    let Some(programs) = programs("what_cannot_work_is_refused_with_the_remedy") else { return };
    let mut database = Database::start(&programs, "password_encryption = 'scram-sha-256'");
    let address = database.address;
    database.sql("CREATE ROLE guest LOGIN; CREATE ROLE locked LOGIN PASSWORD 'right s3cret'");
    // The first line that fits counts.
    let rules = fs::read_to_string(format!("{}/pg_hba.conf", database.data())).unwrap();
    let rules = format!("host all locked 127.0.0.1/32 scram-sha-256\n{rules}");
    fs::write(format!("{}/pg_hba.conf", database.data()), rules).unwrap();
    database.sql("SELECT pg_reload_conf()");
    check_refused(
        &format!("postgres://locked:wrong-s3cret@{address}/site"),
        "password authentication failed for user \"locked\" (28P01); correct the user and the password",
    );
    check_refused(
        &format!("postgres://locked@{address}/site"),
        "it asks for a password; give one in the URL or in PGPASSWORD",
    );
    check_refused(
        &format!("postgres://me:s3cret@{address}/nowhere"),
        "database \"nowhere\" does not exist (3D000); correct the URL, or make the database by createdb",
    );
    check_refused(
        &format!("postgres://guest:s3cret@{address}/site"),
        "permission denied for schema public (42501); the tables are not there, and its user cannot make them: GRANT USAGE, CREATE ON SCHEMA … TO its user",
    );
    check_refused(
        &format!("postgres://me:s3cret@{address}/site?sslmode=require"),
        "it has no TLS; give sslmode=disable",
    );
    let old = Proxy::start(address);
    let number = database.sql("SHOW server_version_num");
    old.replace(&number, "140012");
    check_refused(&url(old.address), "it is PostgreSQL 14.12, and 15 or newer is needed");
    old.replace(&number, "090624");
    check_refused(&url(old.address), "it is PostgreSQL 9.6, and 15 or newer is needed");
    // Tables of somebody who does not give them.
    drop(counter(&database.url(), "a"));
    check_refused(
        &format!("postgres://guest:s3cret@{address}/site"),
        "permission denied for table tallyring_meta (42501); the tables are those of another user, who can give them: GRANT ALL ON tallyring_meta, tallyring_shards, tallyring_totals TO its user",
    );
    database.sql("UPDATE tallyring_meta SET value = 2 WHERE key = 'format'");
    check_refused(
        &database.url(),
        "its tables are those of a later version of tallyring (format 2)",
    );
    database.kill();
}

#[test]
fn a_check_changes_nothing() {
    let Some(programs) = programs("a_check_changes_nothing") else { return };
    let database = Database::start(&programs, "synchronous_commit = off");
    let url = database.url();
    let (code, said, _) =
        run(&["check", "--store", &url, "--store-shard", "a", "--listen", "127.0.0.1:0"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains(&format!("{url}  (flag --store)")), "{said}");
    assert!(said.contains("note: store: synchronous_commit is off: "), "{said}");
    assert_eq!(
        database.sql("SELECT count(*) FROM pg_tables WHERE tablename LIKE 'tallyring%'"),
        "0"
    );
    // Nor does it disturb a counter that has the shard.
    let server = counter(&url, "a");
    server.check_said("synchronous_commit is off: ");
    assert_eq!(
        run(&["check", "--store", &url, "--store-shard", "a", "--listen", "127.0.0.1:0"]).0,
        0
    );
    assert_eq!(post(&mut server.client(), "/counter"), total(1));
    // Nobody answers: a start may succeed later.
    drop(database);
    let (code, said, _) = run(&["check", "--store", &url, "--listen", "127.0.0.1:0"]);
    assert_eq!(code, 0, "{said}");
    assert!(
        said.contains("note: a start would fail now: cannot use the store postgres://"),
        "{said}"
    );
    assert!(said.contains("Connection refused"), "{said}");
}

/// Makes an authority in `directory`, and a certificate by it for `name`.
fn certify(directory: &Path, name: &str) {
    let openssl = |arguments: &str| {
        let arguments = arguments.split(' ');
        let output = Command::new("openssl").args(arguments).current_dir(directory).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=authority"));
    openssl(&format!("req {key} -keyout server.key -out server.csr -subj /CN={name}"));
    fs::write(directory.join("names"), format!("subjectAltName=DNS:{name}")).unwrap();
    openssl(
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out server.crt",
    );
}

#[test]
fn tls_is_spoken_and_certificates_are_verified() {
    let Some(programs) = programs("tls_is_spoken_and_certificates_are_verified") else { return };
    let mut database = Database::start(&programs, "");
    let directory = tempfile::tempdir().unwrap();
    certify(directory.path(), "localhost");
    // Whatever its owner, it may read them so.
    for file in ["server.key", "server.crt"] {
        let data = Path::new(&database.data()).join(file);
        fs::copy(directory.path().join(file), &data).unwrap();
        let mut owner = Command::new("chown");
        assert!(
            owner.arg("--reference").arg(database.data()).arg(&data).status().unwrap().success()
        );
        fs::set_permissions(&data, Permissions::from_mode(0o600)).unwrap();
    }
    database.kill();
    database.set("ssl = on");
    database.restart();
    let port = database.address.port();
    let authority = directory.path().join("ca.pem");
    let authority = authority.display();
    let encrypted = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
        WHERE application_name = 'tallyring'";
    for (host, query, expected) in [
        ("localhost", format!("sslmode=verify-full&sslrootcert={authority}"), "t"),
        ("127.0.0.1", String::from("sslmode=require"), "t"),
        ("127.0.0.1", String::from("sslmode=prefer"), "t"),
        ("127.0.0.1", String::from("sslmode=disable"), "f"),
    ] {
        let server = counter(&format!("postgres://me@{host}:{port}/site?{query}"), "a");
        assert_eq!(post(&mut server.client(), "/counter").0, 200, "{query}");
        assert_eq!(database.sql(encrypted), expected, "{query}");
    }
    let wrong_name =
        format!("postgres://me@127.0.0.1:{port}/site?sslmode=verify-full&sslrootcert={authority}");
    check_refused(&wrong_name, "not valid for name");
    check_refused(
        &format!("postgres://me@localhost:{port}/site?sslmode=verify-full"),
        "; name it as its certificate does, and give the authority by sslrootcert=FILE",
    );
    check_refused(
        &format!(
            "postgres://me@localhost:{port}/site?sslmode=verify-full&sslrootcert=/nowhere.pem"
        ),
        "cannot read sslrootcert /nowhere.pem: No such file or directory",
    );
}
