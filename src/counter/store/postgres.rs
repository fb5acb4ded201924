//! Shards in PostgreSQL, and in what speaks its protocol and its SQL.
//!
//! A commit is one statement, and so one message to the server and one answer: the shard's row is the fence, which it
//! locks and changes, and only if that was possible does it write the values. So the row is locked for no longer than
//! the server takes for the commit itself, and no half of a transaction is ever open while this side is silent.

mod explain;
mod session;
mod tls;
mod url;
mod whole;

use std::{fmt, io, time::Duration};

use tokio::{
    runtime::{Builder, Runtime},
    task,
    time::{Instant, timeout_at},
};
use tokio_postgres::Row;

pub use self::url::DatabaseUrl;
use self::{
    explain::{Failure, judge_commit},
    session::Session,
};
use super::{
    TotalsByName,
    sharded::{Engine, Fence, GONE_AFTER, Taken, Trouble, Wanted},
};

/// How long a try may take, its connect not included: then the connection is given up.
const TRY_TIMEOUT: Duration = Duration::from_secs(3);
/// The same where all totals are moved, for which nobody waits.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(60);

/// A shard in a database.
pub(super) struct Postgres {
    url: DatabaseUrl,
    shard: String,
    /// Whether tables are made where there are none.
    makes_tables: bool,
    try_timeout: Duration,
    runtime: Runtime,
    session: Option<Session>,
    /// The warnings about the server that were logged.
    warnings: Vec<String>,
}

impl Postgres {
    /// Connects to nothing yet.
    pub(super) fn new(url: &DatabaseUrl, shard: &str) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (url, shard) = (url.clone(), shard.to_owned());
        let (makes_tables, try_timeout, warnings) = (true, TRY_TIMEOUT, Vec::new());
        Ok(Self { url, shard, makes_tables, try_timeout, runtime, session: None, warnings })
    }

    /// The same, for a database that may have to be left as it is.
    pub(super) fn whole(url: &DatabaseUrl, shard: &str, makes_tables: bool) -> io::Result<Self> {
        Ok(Self { makes_tables, try_timeout: WHOLE_TIMEOUT, ..Self::new(url, shard)? })
    }

    /// Checks all that a start needs, and changes nothing; what the server's settings endanger.
    pub(super) fn probe(&self, until: std::time::Instant) -> Result<Vec<String>, Trouble> {
        let tried = self.runtime.block_on(async {
            let opened = timeout_at(until.into(), Session::try_open(&self.url, until.into())).await;
            opened.unwrap_or_else(|_| Err(Failure::passing(SILENT)))
        });
        Ok(tried?)
    }

    /// Does something in the session, which it opens if there is none.
    fn within<T>(
        &mut self,
        until: std::time::Instant,
        act: impl AsyncFnOnce(&Session, &str, Instant) -> Result<T, (Trouble, bool)>,
    ) -> Result<T, Trouble> {
        let Self { url, shard, makes_tables, try_timeout, runtime, session, warnings } = self;
        runtime.block_on(async {
            let until = Instant::from(until);
            if let Some(open) = session {
                // Lets the connection notice that the server has closed it.
                task::yield_now().await;
                if open.client.is_closed() {
                    *session = None;
                    return Err(Trouble::Disconnected(String::from(
                        "it has closed the connection",
                    )));
                }
            }
            let open = match session.take() {
                Some(open) => open,
                None => {
                    let opened = Session::open(url, *makes_tables, until);
                    let opened = timeout_at(until, opened).await;
                    let opened = opened.unwrap_or_else(|_| Err(Failure::passing(SILENT)))?;
                    warn(warnings, &opened.warnings);
                    opened
                }
            };
            let until = until.min(Instant::now() + *try_timeout);
            match act(&open, shard, until).await {
                Ok(done) => {
                    *session = Some(open);
                    Ok(done)
                }
                Err((trouble, usable)) => {
                    *session = usable.then_some(open);
                    Err(trouble)
                }
            }
        })
    }
}

const SILENT: &str = "it does not answer";

/// Logs each warning once.
fn warn(logged: &mut Vec<String>, warnings: &[String]) {
    for warning in
        warnings.iter().filter(|warning| !logged.contains(warning)).cloned().collect::<Vec<_>>()
    {
        tracing::warn!("the counter's database: {warning}");
        logged.push(warning);
    }
}

impl fmt::Display for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (shard {})", self.url, self.shard)
    }
}

impl Engine for Postgres {
    fn take(&mut self, until: std::time::Instant) -> Result<Taken, Trouble> {
        self.within(until, async |session, shard, until| {
            match timeout_at(until, take(session, shard)).await {
                Ok(Ok(taken)) => Ok(taken),
                Ok(Err(trouble)) => Err((trouble, false)),
                Err(_) => Err((Trouble::Unknown(SILENT.to_owned()), false)),
            }
        })
    }

    fn commit(
        &mut self,
        fence: Fence,
        values: &TotalsByName,
        wanted: Wanted<'_>,
        until: std::time::Instant,
    ) -> Result<TotalsByName, Trouble> {
        self.within(until, async |session, shard, until| {
            let wanted_names = match wanted {
                Wanted::Names(names) => names.iter().map(String::as_str).collect(),
                Wanted::All => Vec::new(),
            };
            // What a warning before it was about does not matter.
            session.take_warning();
            let committed = commit(session, shard, fence, values, &wanted_names);
            let rows = match timeout_at(until, committed).await {
                Ok(Ok(rows)) => rows,
                Ok(Err(error)) => return Err(judge_commit(&error)),
                Err(_) => return Err((Trouble::Unknown(SILENT.to_owned()), false)),
            };
            let sums = sums(&rows)?;
            if session.take_warning() {
                let why = "it warns that the commit may not be on its standby";
                return Err((Trouble::Unknown(why.to_owned()), false));
            }
            match wanted {
                Wanted::Names(_) => Ok(sums),
                // It is committed, so whatever fails now leaves it unknown.
                Wanted::All => read(session, shard, fence.epoch, wanted, until).await.map_err(
                    |(trouble, usable)| match trouble {
                        Trouble::Fenced => (trouble, usable),
                        other => (Trouble::Unknown(other.to_string()), usable),
                    },
                ),
            }
        })
    }

    fn read(
        &mut self,
        epoch: u64,
        wanted: Wanted<'_>,
        until: std::time::Instant,
    ) -> Result<TotalsByName, Trouble> {
        self.within(until, async |session, shard, until| {
            read(session, shard, epoch, wanted, until).await
        })
    }
}

async fn commit(
    session: &Session,
    shard: &str,
    fence: Fence,
    values: &TotalsByName,
    wanted: &[&str],
) -> Result<Vec<Row>, tokio_postgres::Error> {
    let (epoch, sequence) = (signed(fence.epoch), signed(fence.sequence));
    let names: Vec<_> = values.keys().map(String::as_str).collect();
    let numbers: Vec<_> = values.values().map(|value| signed(*value)).collect();
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 6] =
        [&shard, &epoch, &sequence, &names, &numbers, &wanted];
    session.client.query(&session.commit, &parameters).await
}

async fn read(
    session: &Session,
    shard: &str,
    epoch: u64,
    wanted: Wanted<'_>,
    until: Instant,
) -> Result<TotalsByName, (Trouble, bool)> {
    let epoch = signed(epoch);
    let client = &session.client;
    let asked = async {
        match wanted {
            Wanted::Names(names) => {
                let names: Vec<_> = names.iter().map(String::as_str).collect();
                client.query(&session.read, &[&shard, &epoch, &names]).await
            }
            Wanted::All => client.query(&session.read_all, &[&shard, &epoch]).await,
        }
    };
    match timeout_at(until, asked).await {
        Ok(Ok(rows)) => sums(&rows),
        // Nothing was to be written.
        Ok(Err(error)) => match judge_commit(&error) {
            (Trouble::Unknown(why), usable) => Err((Trouble::Disconnected(why), usable)),
            other => Err(other),
        },
        Err(_) => Err((Trouble::Disconnected(SILENT.to_owned()), false)),
    }
}

/// Takes an epoch, and keeps all others from it to the end of the transaction.
const NEXT_EPOCH: &str =
    "UPDATE tallyring_meta SET value = value + 1 WHERE key = 'epoch' RETURNING value";

/// Takes the shard, in one transaction. The row of the epochs is locked first, so all that start do this one after
/// another.
async fn take(session: &Session, shard: &str) -> Result<Taken, Trouble> {
    let client = &session.client;
    client.batch_execute("BEGIN").await?;
    let epoch: i64 = client.query_one(NEXT_EPOCH, &[]).await?.try_get(0)?;
    if let Some((mark, _)) = whole::mark_of(client).await? {
        return Err(Trouble::Refused(mark.refusal()));
    }
    let gone = format!(
        "DELETE FROM tallyring_shards WHERE shard <> $1 AND seen < now() - interval '{} seconds'
         RETURNING shard",
        GONE_AFTER.as_secs()
    );
    let gone = client.query(&gone, &[&shard]).await?;
    let gone: Vec<String> = gone.iter().map(|row| row.get(0)).collect();
    let own = "INSERT INTO tallyring_shards (shard, epoch, sequence, seen) VALUES ($1, $2, 0, now())
         ON CONFLICT (shard) DO UPDATE SET epoch = excluded.epoch, sequence = 0, seen = excluded.seen";
    client.execute(own, &[&shard, &epoch]).await?;
    if !gone.is_empty() {
        fold(session, shard, &gone).await?;
    }
    let own = "SELECT name, n FROM tallyring_totals WHERE shard = $1";
    let own = client.query(own, &[&shard]).await?;
    let others =
        "SELECT name, sum(n)::bigint FROM tallyring_totals WHERE shard <> $1 GROUP BY name";
    let others = client.query(others, &[&shard]).await?;
    client.batch_execute("COMMIT").await?;
    if !gone.is_empty() {
        tracing::info!("took the totals of counters that are gone: shards {}", gone.join(", "));
    }
    Ok(Taken { epoch: unsigned(epoch), own: by_name(&own), others: by_name(&others) })
}

/// Adds the values of shards that are gone to this one.
async fn fold(
    session: &Session,
    shard: &str,
    gone: &[String],
) -> Result<(), tokio_postgres::Error> {
    let client = &session.client;
    let sums =
        "SELECT name, sum(n)::bigint FROM tallyring_totals WHERE shard = ANY ($1) GROUP BY name";
    let sums = by_name(&client.query(sums, &[&gone]).await?);
    let remove = "DELETE FROM tallyring_totals WHERE shard = ANY ($1)";
    client.execute(remove, &[&gone]).await?;
    let names: Vec<_> = sums.keys().map(String::as_str).collect();
    let numbers: Vec<_> = sums.values().map(|value| signed(*value)).collect();
    let add = "INSERT INTO tallyring_totals (name, shard, n)
         SELECT v.name, $1, v.n FROM unnest($2::text[], $3::bigint[]) AS v (name, n)
         ON CONFLICT (name, shard) DO UPDATE SET n = tallyring_totals.n + excluded.n";
    client.execute(add, &[&shard, &names, &numbers]).await?;
    Ok(())
}

/// What the other shards hold, unless another counter has this one.
fn sums(rows: &[Row]) -> Result<TotalsByName, (Trouble, bool)> {
    let is_own = |row: &Row| row.get::<_, Option<&str>>(0).is_none() && row.get::<_, i64>(1) == 1;
    if !rows.iter().any(is_own) {
        return Err((Trouble::Fenced, true));
    }
    let named = rows.iter().filter(|row| row.get::<_, Option<&str>>(0).is_some());
    Ok(named.map(|row| (row.get(0), unsigned(row.get(1)))).collect())
}

fn by_name(rows: &[Row]) -> TotalsByName {
    rows.iter().map(|row| (row.get(0), unsigned(row.get(1)))).collect()
}

/// A total does not reach the limit of the type in practice.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
