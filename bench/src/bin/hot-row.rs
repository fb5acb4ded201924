//! The usual way to count in a database, as a program: each visit is one `UPDATE … SET n = n + 1` of one row.
//! `hot-row DATABASE-URL CONNECTIONS SECONDS`
//!
//! Prints `ready` once its connections are open, starts at a line on standard input, prints its report as JSON, and
//! keeps the connections until standard input ends, so that what the server's processes used can be read meanwhile.

use std::{
    io::{self, BufRead, Write},
    process::ExitCode,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tallyring_bench::{arguments, load::Report};
use tokio::{runtime::Builder, task::JoinSet};
use tokio_postgres::{Client, NoTls, Statement};

/// What a visit does, as a site would write it.
const VISIT: &str = "UPDATE visits SET n = n + 1 WHERE name = 'home' RETURNING n";
const LATENCY_NS_MAX: u64 = 60_000_000_000;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hot-row: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome<()> {
    let [url, connections, seconds] = arguments(["postgres://127.0.0.1/site", "64", "1"]);
    let (connections, seconds) = (connections.parse()?, seconds.parse()?);
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let mut lines = io::stdin().lock();
    // Kept open until the end.
    let clients = runtime.block_on(connect_all(&url, connections))?;
    say("ready")?;
    lines.read_line(&mut String::new())?;
    let report = runtime.block_on(visit_all(&clients, Duration::from_secs_f64(seconds)))?;
    say(&serde_json::to_string(&report)?)?;
    lines.read_line(&mut String::new())?;
    Ok(())
}

fn say(line: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{line}")?;
    output.flush()
}

type Visitor = (std::sync::Arc<Client>, Statement);

async fn connect_all(url: &str, connections: usize) -> Outcome<Vec<Visitor>> {
    let mut clients = Vec::new();
    for _ in 0..connections {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        // It ends with its client.
        tokio::spawn(connection);
        let statement = client.prepare(VISIT).await?;
        clients.push((client.into(), statement));
    }
    Ok(clients)
}

/// Each makes the next visit once the last is committed.
async fn visit_all(visitors: &[Visitor], time: Duration) -> Outcome<Report> {
    let began = Instant::now();
    let mut visits = JoinSet::new();
    for visitor in visitors {
        let (client, statement) = visitor.clone();
        visits.spawn(async move {
            let mut latencies = histogram()?;
            while began.elapsed() < time {
                let asked = Instant::now();
                client.query_one(&statement, &[]).await?;
                latencies.saturating_record(u64::try_from(asked.elapsed().as_nanos())?);
            }
            Outcome::Ok(latencies)
        });
    }
    let mut latencies = histogram()?;
    while let Some(visited) = visits.join_next().await {
        latencies.add(visited??)?;
    }
    let at = |quantile| latencies.value_at_quantile(quantile) as f64 / 1000.0;
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Ok(Report {
        visits: latencies.len(),
        seconds: began.elapsed().as_secs_f64(),
        p50_us: at(0.5),
        p90_us: at(0.9),
        p99_us: at(0.99),
        p999_us: at(0.999),
        max_us: latencies.max() as f64 / 1000.0,
        cpu_us: used.tv_sec as f64 * 1e6 + used.tv_nsec as f64 / 1e3,
        ..Report::default()
    })
}

fn histogram() -> Outcome<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3)?)
}
