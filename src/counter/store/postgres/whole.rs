//! A database as a whole, while no counter uses it. Each step is one transaction.

use std::{path::PathBuf, time::Instant};

use tokio::time::timeout_at;
use tokio_postgres::{Client, Error};

use super::{
    super::{
        Found, Hold, Mark, OpenError, Seen, TotalsByName, Whole, database_error,
        sharded::Trouble,
        whole::{CHANGED, COUNTED, SEEN_BEFORE, SHARD, TAKEN_OVER},
    },
    Postgres, SILENT, by_name,
    session::Session,
    signed, unsigned,
};

/// The marks among the rows of `tallyring_meta`.
const IS_MARK: &str =
    "(key LIKE 'moved to %' OR key LIKE 'moving to %' OR key LIKE 'filled from %')";

impl Whole for Postgres {
    fn look(&mut self, until: Instant) -> Result<Found, OpenError> {
        self.step(until, async |session| look(session).await)
    }

    fn check_fits(&self, totals: &TotalsByName) -> Result<(), OpenError> {
        match totals.iter().find(|(_, total)| i64::try_from(**total).is_err()) {
            None => Ok(()),
            Some((name, _)) => {
                let most = i64::MAX;
                let why = match &**name {
                    "" => format!("the total is more than the {most} that it can hold"),
                    _ => format!("the total of {name} is more than the {most} that it can hold"),
                };
                Err(database_error(&self.url, &Trouble::Refused(why)))
            }
        }
    }

    fn prepare_close(&mut self, mark: &Mark, until: Instant) -> Result<(), OpenError> {
        self.step(until, async |session| probe_close(session, mark).await)
    }

    fn close(
        &mut self,
        mark: &Mark,
        seen: &Found,
        force: bool,
        until: Instant,
    ) -> Result<Found, OpenError> {
        self.step(until, async |session| close(session, mark, seen, force).await)
    }

    fn fill(&mut self, hold: Hold, totals: &TotalsByName, until: Instant) -> Result<(), OpenError> {
        self.step(until, async |session| fill(session, hold, totals).await)
    }

    fn open(&mut self, hold: Hold, until: Instant) -> Result<Option<PathBuf>, OpenError> {
        self.step(until, async |session| open(session, hold).await).map(|()| None)
    }

    fn identify(&mut self, before: Option<u64>, id: u64, until: Instant) -> Result<(), OpenError> {
        self.step(until, async |session| identify(session, before, id).await)
    }
}

impl Postgres {
    fn step<T>(
        &mut self,
        until: Instant,
        act: impl AsyncFnOnce(&Session) -> Result<T, Trouble>,
    ) -> Result<T, OpenError> {
        let done = self.within(until, async |session, _, until| {
            // What a warning before it was about does not matter.
            session.take_warning();
            match timeout_at(until, act(session)).await {
                Ok(Ok(_)) if session.take_warning() => {
                    let why = "it warns that the commit may not be on its standby";
                    Err((Trouble::Unknown(why.to_owned()), false))
                }
                Ok(done) => done.map_err(|trouble| (trouble, false)),
                Err(_) => Err((Trouble::Unknown(SILENT.to_owned()), false)),
            }
        });
        done.map_err(|trouble| database_error(&self.url, &trouble))
    }
}

/// Why no counter may use the database, and who says so.
pub(super) async fn mark_of(client: &Client) -> Result<Option<(Mark, Hold)>, Trouble> {
    let marks = format!("SELECT key, value FROM tallyring_meta WHERE {IS_MARK}");
    let Some(row) = client.query_opt(&marks, &[]).await? else { return Ok(None) };
    let mark = row.get::<_, &str>(0).parse();
    let mark = mark.map_err(|problem: &str| Trouble::Refused(problem.to_owned()))?;
    Ok(Some((mark, Hold(unsigned(row.get(1))))))
}

async fn totals_of(client: &Client) -> Result<TotalsByName, Error> {
    let totals = "SELECT name, sum(n)::bigint FROM tallyring_totals GROUP BY name";
    Ok(by_name(&client.query(totals, &[]).await?))
}

async fn look(session: &Session) -> Result<Found, Trouble> {
    let client = &session.client;
    client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let (mark, hold) = mark_of(client).await?.unzip();
    let counters = "SELECT shard, epoch::text || '-' || sequence::text,
        extract(epoch FROM now() - seen)::bigint FROM tallyring_shards ORDER BY shard";
    let counters = client.query(counters, &[]).await?;
    let counters = counters.iter().map(|row| Seen {
        shard: row.get(0),
        commit: row.get(1),
        ago: Some(unsigned(row.get(2))),
    });
    let counters = counters.collect();
    let id = "SELECT value FROM tallyring_meta WHERE key = 'id'";
    let id = client.query_opt(id, &[]).await?.map(|row| unsigned(row.get(0)));
    let totals = totals_of(client).await?;
    client.batch_execute("COMMIT").await?;
    Ok(Found { totals, mark, hold: hold.unwrap_or_default(), counters, is_new: false, id })
}

async fn identify(session: &Session, before: Option<u64>, id: u64) -> Result<(), Trouble> {
    let client = &session.client;
    match before {
        None => {
            let insert = "INSERT INTO tallyring_meta (key, value) VALUES ('id', $1)
                ON CONFLICT (key) DO NOTHING";
            client.execute(insert, &[&signed(id)]).await?
        }
        Some(before) => {
            let update = "UPDATE tallyring_meta SET value = $1 WHERE key = 'id' AND value = $2";
            client.execute(update, &[&signed(id), &signed(before)]).await?
        }
    };
    Ok(())
}

/// Does what [`close`] does, to no shard, and takes it back.
async fn probe_close(session: &Session, mark: &Mark) -> Result<(), Trouble> {
    let client = &session.client;
    client.batch_execute("BEGIN").await?;
    client.query_one(super::NEXT_EPOCH, &[]).await?;
    client.query("SELECT 1 FROM tallyring_shards WHERE false FOR UPDATE", &[]).await?;
    client.execute("DELETE FROM tallyring_shards WHERE false", &[]).await?;
    client.execute(&format!("DELETE FROM tallyring_meta WHERE {IS_MARK}"), &[]).await?;
    let insert = "INSERT INTO tallyring_meta (key, value) VALUES ($1, 0)";
    client.execute(insert, &[&mark.to_string()]).await?;
    Ok(client.batch_execute("ROLLBACK").await?)
}

/// The row of the epochs is locked first, so nobody starts meanwhile. Then a commit that is under way is waited for, and
/// any later one finds no row of its shard: its counter is fenced.
async fn close(
    session: &Session,
    mark: &Mark,
    before: &Found,
    force: bool,
) -> Result<Found, Trouble> {
    let client = &session.client;
    client.batch_execute("BEGIN").await?;
    let hold: i64 = client.query_one(super::NEXT_EPOCH, &[]).await?.try_get(0)?;
    // Whoever marks it locks that row too.
    let (marked, held) = mark_of(client).await?.unzip();
    if !before.is_marked_as(marked.as_ref(), held.unwrap_or_default()) {
        return Err(Trouble::Refused(CHANGED.to_owned()));
    }
    let shards = "SELECT shard, epoch::text || '-' || sequence::text FROM tallyring_shards
        ORDER BY shard FOR UPDATE";
    let shards = client.query(shards, &[]).await?;
    let seen =
        |row: &tokio_postgres::Row| Seen { shard: row.get(0), commit: row.get(1), ago: None };
    if !force && shards.iter().any(|row| !seen(row).is_as_in(&before.counters)) {
        return Err(Trouble::Conflict(COUNTED.to_owned()));
    }
    client.execute("DELETE FROM tallyring_shards", &[]).await?;
    client.execute(&format!("DELETE FROM tallyring_meta WHERE {IS_MARK}"), &[]).await?;
    let insert = "INSERT INTO tallyring_meta (key, value) VALUES ($1, $2)";
    client.execute(insert, &[&mark.to_string(), &hold]).await?;
    let totals = totals_of(client).await?;
    client.batch_execute("COMMIT").await?;
    let (mark, hold) = (Some(mark.clone()), Hold(unsigned(hold)));
    Ok(Found { totals, mark, hold, ..Found::default() })
}

async fn fill(session: &Session, hold: Hold, totals: &TotalsByName) -> Result<(), Trouble> {
    let client = &session.client;
    let hold = signed(hold.0);
    client.batch_execute("BEGIN").await?;
    let held = format!("SELECT 1 FROM tallyring_meta WHERE {IS_MARK} AND value = $1 FOR UPDATE");
    if client.query_opt(&held, &[&hold]).await?.is_none() {
        return Err(Trouble::Refused(TAKEN_OVER.to_owned()));
    }
    client.batch_execute("DELETE FROM tallyring_totals; DELETE FROM tallyring_shards").await?;
    let shard = format!(
        "INSERT INTO tallyring_shards (shard, epoch, sequence, seen)
        VALUES ($1, $2, 0, now() - interval '{SEEN_BEFORE} seconds')"
    );
    client.execute(&shard, &[&SHARD, &hold]).await?;
    let names: Vec<_> = totals.keys().map(String::as_str).collect();
    let numbers: Vec<_> = totals.values().map(|total| signed(*total)).collect();
    let insert = "INSERT INTO tallyring_totals (name, shard, n)
        SELECT v.name, $1, v.n FROM unnest($2::text[], $3::bigint[]) AS v (name, n)";
    client.execute(insert, &[&SHARD, &names, &numbers]).await?;
    Ok(client.batch_execute("COMMIT").await?)
}

async fn open(session: &Session, hold: Hold) -> Result<(), Trouble> {
    let client = &session.client;
    let remove = format!("DELETE FROM tallyring_meta WHERE {IS_MARK} AND value = $1");
    let removed = client.execute(&remove, &[&signed(hold.0)]).await?;
    // A try before may have done it.
    if removed == 0 && mark_of(client).await?.is_some() {
        return Err(Trouble::Refused(TAKEN_OVER.to_owned()));
    }
    Ok(())
}
