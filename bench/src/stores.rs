//! How many visits 1, 2 and 4 counters count a second on each store, what a visit costs there, and beside them the usual
//! way: one `UPDATE … SET n = n + 1` of one row for each visit.

mod arrangement;
mod engines;
mod hot_row;
mod summary;

use std::{
    io,
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use serde::Serialize;
use tallyring_bench::load::Report;
use tempfile::TempDir;

use self::{arrangement::Started, engines::Engine};
use crate::{
    machine::{Common, Environment, cpu_time},
    process::own_cores,
    record::lines,
    terminal::say,
};

/// What to measure, and how long.
#[derive(Debug, Args)]
pub struct StoresArguments {
    /// The stores
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Kind::ALL)]
    stores: Vec<Kind>,
    /// Counters at a time, each with a tallyring of one worker before it
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4], value_parser = clap::value_parser!(u16).range(1..=16))]
    counters: Vec<u16>,
    /// Visitors of all sites together, each in a closed loop
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    visitors: u16,
    /// Times that each is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// Seconds of each run
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Directory on the disk to measure, in which the stores' files are made [default: that of temporary files]
    #[arg(long, value_name = "DIRECTORY")]
    dir: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

/// A store, or the usual way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
enum Kind {
    /// In memory: what remains is the cost of the exchange.
    Memory,
    /// Each counter has its file.
    Redb,
    /// All share one PostgreSQL, each has its shard.
    Postgres,
    /// All share one member of etcd.
    Etcd,
    /// All share three members of etcd on this machine.
    Etcd3,
    /// One `UPDATE` a visit by a client of PostgreSQL, without tallyring.
    HotRow,
}

impl Kind {
    const ALL: [Self; 6] =
        [Self::Memory, Self::Redb, Self::Postgres, Self::Etcd, Self::Etcd3, Self::HotRow];

    const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Redb => "redb",
            Self::Postgres => "PostgreSQL",
            Self::Etcd => "etcd",
            Self::Etcd3 => "etcd, 3 members",
            Self::HotRow => "one UPDATE a visit",
        }
    }
}

/// A store, and how many counters are on it.
type Arm = (Kind, u16);

/// CPU time, in microseconds.
#[derive(Debug, Clone, Default, Serialize)]
struct Cpu {
    sites: f64,
    counters: f64,
    /// Of PostgreSQL or etcd.
    database: f64,
    visitors: f64,
}

impl Cpu {
    fn sum(&self) -> f64 {
        self.sites + self.counters + self.database + self.visitors
    }
}

#[derive(Debug, Clone, Serialize)]
struct Run {
    store: Kind,
    /// Counters; programs of the usual way.
    counters: u16,
    repeat: u32,
    /// Of all visitors: the sum of the visits, the medians of the quantiles.
    report: Report,
    cpu: Cpu,
    /// The share of the machine's time that these programs used, and that others and the hypervisor did.
    own_busy: f64,
    others_busy: f64,
    /// Visits that were welcomed since the start of the counters, and those that they counted.
    welcomed: u64,
    counted: u64,
    /// Commits for `counted`, by what the counters say at their end.
    commits: Option<u64>,
}

impl Run {
    fn rate(&self) -> f64 {
        self.report.visits as f64 / self.report.seconds
    }

    /// Commits a second. The usual way has one for each visit.
    fn commit_rate(&self) -> f64 {
        self.commits.map_or(f64::NAN, |commits| self.rate() * commits as f64 / self.counted as f64)
    }
}

#[derive(Debug, Serialize)]
struct Record {
    environment: Environment,
    visitors: u16,
    seconds: f64,
    engines: Vec<String>,
    /// Stores that were left out, and why.
    left_out: Vec<String>,
    #[serde(skip)]
    runs: Vec<Run>,
}

/// What runs for all runs.
struct Stage {
    programs: PathBuf,
    cores: Vec<usize>,
    scratch: TempDir,
    postgres: Option<Engine>,
    etcd: Option<Engine>,
    etcd3: Option<Engine>,
}

impl Stage {
    fn engine(&self, store: Kind) -> Option<&Engine> {
        match store {
            Kind::Postgres | Kind::HotRow => self.postgres.as_ref(),
            Kind::Etcd => self.etcd.as_ref(),
            Kind::Etcd3 => self.etcd3.as_ref(),
            Kind::Memory | Kind::Redb => None,
        }
    }
}

/// Runs all in rotating order, prints the rates, and keeps the figures.
///
/// # Errors
/// When a program fails, or the counters have not counted exactly the visits that were welcomed.
pub fn stores(arguments: &StoresArguments) -> io::Result<()> {
    let programs = arguments.common.programs()?;
    let cores = own_cores()?;
    let directory = arguments.dir.as_deref();
    let has = |kinds: &[Kind]| arguments.stores.iter().any(|store| kinds.contains(store));
    let mut environment = Environment::look();
    let stage = Stage {
        scratch: engines::directory(directory)?,
        postgres: has(&[Kind::Postgres, Kind::HotRow])
            .then(|| engines::postgres(&cores, directory))
            .transpose()?,
        etcd: has(&[Kind::Etcd]).then(|| engines::etcd(&cores, directory, 1)).transpose()?,
        etcd3: has(&[Kind::Etcd3]).then(|| engines::etcd(&cores, directory, 3)).transpose()?,
        programs,
        cores,
    };
    if engines::is_in_memory(stage.scratch.path()) {
        let doubt =
            "the files are in memory (tmpfs), where fsync does nothing: give a directory by --dir";
        environment.warnings.push(doubt.to_owned());
    }
    if is_preferred()? {
        let doubt = "all programs of the run had real-time priority, before others of the machine";
        environment.warnings.push(doubt.to_owned());
    }
    let engines = [&stage.postgres, &stage.etcd, &stage.etcd3].into_iter().flatten();
    let engines = engines.map(|engine| engine.version.clone()).collect();
    let (arms, left_out) = arms(arguments, &stage)?;
    let runs = run_all(arguments, &stage, &arms)?;
    let (visitors, seconds) = (arguments.visitors, arguments.seconds);
    let record = Record { environment, visitors, seconds, engines, left_out, runs };
    let (summary, faults) = summary::judge(&record);
    let name = format!("{}-stores", record.environment.day());
    let figures = lines(&record, &record.runs)?;
    let files = [("stores.jsonl", figures), ("summary.md", summary.clone())];
    let kept = arguments.common.keep(&name, &files)?;
    say(&format!("\n{summary}\n{kept}"))?;
    match faults.is_empty() {
        true => Ok(()),
        false => Err(io::Error::other(faults.join("; "))),
    }
}

/// Whether this process, and so those that it starts, has real-time priority, as by `chrt`.
fn is_preferred() -> io::Result<bool> {
    let own = procfs::process::Process::myself().and_then(|own| own.stat());
    Ok(own.map_err(io::Error::other)?.policy.unwrap_or(0) != 0)
}

/// What is measured: stores with numbers of counters; and what is not, for this program does not know the store.
fn arms(arguments: &StoresArguments, stage: &Stage) -> io::Result<(Vec<Arm>, Vec<String>)> {
    let (mut arms, mut left_out) = (Vec::new(), Vec::new());
    for store in &arguments.stores {
        if *store != Kind::HotRow
            && let Some(why) = Started::is_unknown(stage, *store)?
        {
            let line = format!(
                "{}: left out, since this tallyring does not know it ({why})",
                store.name()
            );
            say(&line)?;
            left_out.push(line);
            continue;
        }
        arms.extend(arguments.counters.iter().map(|counters| (*store, *counters)));
    }
    Ok((arms, left_out))
}

fn run_all(arguments: &StoresArguments, stage: &Stage, arms: &[Arm]) -> io::Result<Vec<Run>> {
    let mut runs = Vec::new();
    for repeat in 0..arguments.repeats {
        let rotated = repeat as usize % arms.len().max(1);
        for (store, counters) in arms[rotated..].iter().chain(&arms[..rotated]).copied() {
            let run = match store {
                Kind::HotRow => hot_row::run(arguments, stage, counters, repeat),
                _ => arrangement::run(arguments, stage, store, counters, repeat),
            };
            let named = |error| io::Error::other(format!("{}, {counters}: {error}", store.name()));
            let run = run.map_err(named)?;
            say(&run.describe())?;
            runs.push(run);
        }
    }
    Ok(runs)
}

impl Run {
    fn describe(&self) -> String {
        format!(
            "{:>3} {:<18} {}  {:>6.0} visits/s  {:>5.0} commits/s  p99 {:>7.0} µs  {:>5.1} µs CPU a visit  \
             busy: own {:>3.0} %, others {:>3.0} %",
            self.repeat + 1,
            self.store.name(),
            self.counters,
            self.rate(),
            self.commit_rate(),
            self.report.p99_us,
            self.cpu.sum() / self.report.visits as f64,
            self.own_busy * 100.0,
            self.others_busy * 100.0,
        )
    }
}

/// Watches who uses the machine during a run.
struct Machine {
    before: (f64, f64),
}

impl Machine {
    fn watch() -> Self {
        Self { before: cpu_time() }
    }

    /// The shares of the machine's time that programs with this CPU time used, and others.
    fn shares(&self, own_us: f64, cores: usize, seconds: f64) -> (f64, f64) {
        let (busy, all) = cpu_time();
        let busy = (busy - self.before.0) / (all - self.before.1).max(1.0);
        let own = own_us / (seconds * 1e6 * cores as f64);
        (own, (busy - own).max(0.0))
    }
}

/// The parts of a number that are as equal as can be.
fn share(whole: u16, parts: u16, index: u16) -> u16 {
    whole / parts + u16::from(index < whole % parts)
}

/// One report of several groups of visitors.
fn together(reports: &[Report]) -> Report {
    let median = |figure: fn(&Report) -> f64| {
        crate::statistics::Spread::of(reports.iter().map(figure).collect()).median
    };
    let sum = |figure: fn(&Report) -> u64| reports.iter().map(figure).sum();
    let most = |figure: fn(&Report) -> f64| reports.iter().map(figure).fold(0.0, f64::max);
    Report {
        visits: sum(|report| report.visits),
        refused: sum(|report| report.refused),
        failed: sum(|report| report.failed),
        seconds: most(|report| report.seconds),
        p50_us: median(|report| report.p50_us),
        p90_us: median(|report| report.p90_us),
        p99_us: median(|report| report.p99_us),
        p999_us: median(|report| report.p999_us),
        max_us: most(|report| report.max_us),
        cpu_us: reports.iter().map(|report| report.cpu_us).sum(),
        ..Report::default()
    }
}

/// Where a program's log is written.
fn log_path(stage: &Stage, name: &str) -> PathBuf {
    Path::join(stage.scratch.path(), format!("{name}.log"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visitors_are_shared_out() {
        assert_eq!([0, 1, 2].map(|index| share(64, 3, index)), [22, 21, 21]);
        assert_eq!([0, 1].map(|index| share(1, 2, index)), [1, 0]);
    }

    #[test]
    fn reports_are_put_together() {
        let report = |visits, p50_us, seconds, max_us| Report {
            visits,
            p50_us,
            seconds,
            max_us,
            cpu_us: 1.0,
            ..Report::default()
        };
        let both = together(&[report(3, 10.0, 1.0, 50.0), report(4, 20.0, 1.5, 40.0)]);
        assert_eq!(both, Report { cpu_us: 2.0, ..report(7, 15.0, 1.5, 50.0) });
    }
}
