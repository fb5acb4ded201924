//! One connection to a PostgreSQL that can be written, with the tables in it.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, timeout_at};
use tokio_postgres::{
    AsyncMessage, Client, Config, SimpleQueryMessage, Statement, error::Severity,
};

use super::{
    super::sharded::Trouble,
    explain::{Failure, explain},
    tls,
    url::{DatabaseUrl, show_host},
    whole::mark_of,
};

/// How long one host may take over the start of a connection.
const HOST_TIMEOUT: Duration = Duration::from_secs(3);

/// The version of the tables.
const FORMAT: i64 = 1;

/// The oldest PostgreSQL that the tests run with.
const VERSION_MIN: i32 = 150_000;

/// Only what CockroachDB, YugabyteDB and Citus have too.
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS tallyring_meta (key text PRIMARY KEY, value bigint NOT NULL);
    CREATE TABLE IF NOT EXISTS tallyring_shards (
        shard text PRIMARY KEY, epoch bigint NOT NULL, sequence bigint NOT NULL,
        seen timestamptz NOT NULL
    );
    CREATE TABLE IF NOT EXISTS tallyring_totals (
        name text, shard text, n bigint NOT NULL, PRIMARY KEY (name, shard)
    );
    INSERT INTO tallyring_meta VALUES ('format', 1), ('epoch', 0) ON CONFLICT (key) DO NOTHING;
";

/// Changes nothing, and fails where a right is missing.
const RIGHTS: &str = "
    UPDATE tallyring_meta SET value = value WHERE false;
    INSERT INTO tallyring_shards SELECT shard, epoch, sequence, seen FROM tallyring_shards WHERE false;
    UPDATE tallyring_shards SET seen = seen WHERE false;
    DELETE FROM tallyring_shards WHERE false;
    INSERT INTO tallyring_totals SELECT name, shard, n FROM tallyring_totals WHERE false;
    UPDATE tallyring_totals SET n = n WHERE false;
    DELETE FROM tallyring_totals WHERE false;
";

/// Each is a wish: not every engine knows all of them. A lock is waited for less long than a try takes, so that what
/// was given up does not pile up behind a commit that hangs. There is no `statement_timeout`: where it meets with a
/// commit that waits for a standby, PostgreSQL reports that as success.
const WISHES: [&str; 5] = [
    "SET lock_timeout = '2s'",
    "SET idle_in_transaction_session_timeout = '10s'",
    "SET client_connection_check_interval = '1s'",
    "SET tcp_keepalives_idle = 10",
    "SET tcp_user_timeout = 15000",
];

/// Commits values if the shard is this counter's: a row with the number of shards (1, or 0 where another has it), then
/// what the other shards hold of some names.
const COMMIT: &str = "
    WITH fence AS (
        UPDATE tallyring_shards SET sequence = $3, seen = now()
        WHERE shard = $1 AND epoch = $2 AND sequence < $3 RETURNING shard
    ), written AS (
        INSERT INTO tallyring_totals (name, shard, n)
        SELECT v.name, fence.shard, v.n FROM fence, unnest($4::text[], $5::bigint[]) AS v (name, n)
        ON CONFLICT (name, shard) DO UPDATE SET n = excluded.n RETURNING 1
    )
    SELECT NULL::text AS name, (SELECT count(*) FROM fence)::bigint AS n
    UNION ALL
    SELECT name, sum(n)::bigint FROM tallyring_totals
    WHERE name = ANY ($6::text[]) AND shard <> $1 GROUP BY name";

/// The same without a change.
const READ: &str = "
    SELECT NULL::text AS name, count(*)::bigint AS n FROM tallyring_shards
    WHERE shard = $1 AND epoch = $2
    UNION ALL
    SELECT name, sum(n)::bigint FROM tallyring_totals
    WHERE name = ANY ($3::text[]) AND shard <> $1 GROUP BY name";

/// The same of all names.
const READ_ALL: &str = "
    SELECT NULL::text AS name, count(*)::bigint AS n FROM tallyring_shards
    WHERE shard = $1 AND epoch = $2
    UNION ALL
    SELECT name, sum(n)::bigint FROM tallyring_totals WHERE shard <> $1 GROUP BY name";

/// A connection.
pub(super) struct Session {
    pub(super) client: Client,
    pub(super) commit: Statement,
    pub(super) read: Statement,
    pub(super) read_all: Statement,
    /// What the server's settings endanger, for a person.
    pub(super) warnings: Vec<String>,
    warned: Arc<AtomicBool>,
}

impl Session {
    /// Connects to the first host that can be written; with `makes_tables`, makes the tables where there are none.
    pub(super) async fn open(
        url: &DatabaseUrl,
        makes_tables: bool,
        until: Instant,
    ) -> Result<Self, Failure> {
        let failed = |error| explain(&error);
        let (client, warned) = connect(url, until).await?;
        let warnings = examine(&client).await?;
        check_tables(&client, makes_tables).await?;
        let [commit, read, read_all] = [
            client.prepare(COMMIT).await.map_err(failed)?,
            client.prepare(READ).await.map_err(failed)?,
            client.prepare(READ_ALL).await.map_err(failed)?,
        ];
        Ok(Self { client, commit, read, read_all, warnings, warned })
    }

    /// Checks all that a start needs, and changes nothing; what the server's settings endanger.
    pub(super) async fn try_open(
        url: &DatabaseUrl,
        until: Instant,
    ) -> Result<Vec<String>, Failure> {
        let (client, _) = connect(url, until).await?;
        let warnings = examine(&client).await?;
        client.batch_execute("BEGIN").await.map_err(|error| explain(&error))?;
        check_tables(&client, true).await?;
        if let Some((mark, _)) = mark_of(&client).await.map_err(of_mark)? {
            return Err(Failure::lasting(mark.refusal()));
        }
        client.batch_execute("ROLLBACK").await.map_err(|error| explain(&error))?;
        Ok(warnings)
    }

    /// Whether the server has warned since the last call, as it does when a commit is not on its standby.
    pub(super) fn take_warning(&self) -> bool {
        self.warned.swap(false, Ordering::Relaxed)
    }
}

/// The first host that can be written.
async fn connect(url: &DatabaseUrl, until: Instant) -> Result<(Client, Arc<AtomicBool>), Failure> {
    let mut failures = Vec::new();
    for host in &url.hosts {
        let end = until.min(Instant::now() + HOST_TIMEOUT);
        let failure = match timeout_at(end, connect_host(url, host)).await {
            Ok(Ok(session)) => return Ok(session),
            Ok(Err(failure)) => failure,
            Err(_) => Failure::passing("it accepts the connection, and does not answer"),
        };
        failures.push(failure.at(&show_host(host)));
    }
    Err(Failure::of_all(failures))
}

async fn connect_host(
    url: &DatabaseUrl,
    host: &Config,
) -> Result<(Client, Arc<AtomicBool>), Failure> {
    let connector = tls::connector(&url.tls).map_err(Failure::lasting)?;
    let (client, mut connection) =
        host.connect(connector).await.map_err(|error| explain(&error))?;
    let warned = Arc::<AtomicBool>::default();
    let saw = Arc::clone(&warned);
    // It ends with the client or with the connection.
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notice(notice) = message
                && notice.parsed_severity() == Some(Severity::Warning)
            {
                saw.store(true, Ordering::Relaxed);
            }
        }
    });
    let read_only = client.simple_query("SHOW transaction_read_only").await;
    let read_only = read_only.map_err(|error| explain(&error))?;
    let is_on = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => row.get(0) == Some("on"),
        _ => false,
    };
    if read_only.iter().any(is_on) {
        return Err(Failure::passing(
            "it is read-only, as a standby is; name the primary in the URL too, or promote it",
        ));
    }
    for wish in WISHES {
        match client.batch_execute(wish).await {
            Err(error) if error.as_db_error().is_none() => return Err(explain(&error)),
            _ => {}
        }
    }
    Ok((client, warned))
}

/// Refuses what is too old; what the settings endanger.
async fn examine(client: &Client) -> Result<Vec<String>, Failure> {
    let settings = "SELECT version(), current_setting('server_version_num'),
        current_setting('synchronous_commit', true), current_setting('fsync', true)";
    let row = client.query_one(settings, &[]).await.map_err(|error| explain(&error))?;
    let text = |column| row.try_get::<_, Option<String>>(column).ok().flatten().unwrap_or_default();
    let (version, number) = (text(0), text(1).parse().unwrap_or(0));
    // These say the number of the PostgreSQL that they resemble.
    let is_another = ["CockroachDB", "-YB-"].iter().any(|name| version.contains(name));
    if number < VERSION_MIN && !is_another {
        return Err(Failure::lasting(format!(
            "it is PostgreSQL {}.{}, and {} or newer is needed",
            number / 10_000,
            number % 10_000 / if number < 100_000 { 100 } else { 1 },
            VERSION_MIN / 10_000
        )));
    }
    let mut warnings = Vec::new();
    if text(2) == "off" {
        warnings.push(String::from(
            "synchronous_commit is off: a crash of the server loses visits of the last moments that were \
             welcomed",
        ));
    }
    if text(3) == "off" {
        warnings.push(String::from(
            "fsync is off: a power loss of the server can lose or damage all totals",
        ));
    }
    Ok(warnings)
}

fn of_mark(trouble: Trouble) -> Failure {
    match trouble {
        Trouble::Refused(why) => Failure::lasting(why),
        trouble => Failure::passing(trouble.to_string()),
    }
}

/// Checks that the tables can be used; with `makes`, makes them where there are none.
async fn check_tables(client: &Client, makes: bool) -> Result<(), Failure> {
    let failed = |error| explain(&error);
    let is_there = "SELECT to_regclass('tallyring_meta') IS NOT NULL";
    if !client.query_one(is_there, &[]).await.map_err(failed)?.get::<_, bool>(0) {
        if !makes {
            return Err(Failure::lasting(
                "it has no tables of tallyring, so no counter has counted there; correct the URL",
            ));
        }
        client.batch_execute(SCHEMA).await.map_err(failed)?;
    }
    let format = "SELECT value FROM tallyring_meta WHERE key = 'format'";
    match client.query_opt(format, &[]).await.map_err(failed)?.map(|row| row.get(0)) {
        Some(FORMAT) => {}
        Some(later @ 2..) => {
            return Err(Failure::lasting(format!(
                "its tables are those of a later version of tallyring (format {later})"
            )));
        }
        _ => {
            return Err(Failure::lasting(
                "it has a table tallyring_meta that tallyring has not made; give another database",
            ));
        }
    }
    client.batch_execute(RIGHTS).await.map_err(failed)
}
