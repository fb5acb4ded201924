//! Many visits over changing connections: does the server end as it began?

use std::{io, net::SocketAddr, time::Duration};

use clap::Args;
use serde::Serialize;
use tallyring_bench::load::Report;

use crate::{
    arms::{Arm, Setting},
    machine::{Common, Environment, stolen_seconds},
    process::{Process, Usage, free_address, own_cores, pause},
    record::lines,
    statistics::Spread,
    terminal::say,
    visitors::{OtherSide, total},
};

/// The number of parts; the server is measured after each.
const PARTS: u64 = 40;
/// How much more the last tenth may need than the first.
const GROWTH_MAX: f64 = 1.10;

/// How long the soak is.
#[derive(Debug, Args)]
pub struct SoakArguments {
    /// Visits altogether
    #[arg(long, default_value_t = 20_000_000, value_parser = clap::value_parser!(u64).range(PARTS..))]
    visits: u64,
    /// Visitors at a time
    #[arg(long, default_value_t = 256)]
    connections: u64,
    /// Visits after which a visitor opens another connection
    #[arg(long, default_value_t = 50)]
    visits_per_connection: u64,
    /// The counter: `stub`, which leaves the visitors more of their core, or tallyring's by its store,
    /// `memory` or `redb:PATH`
    #[arg(long, default_value = "stub")]
    store: String,
    /// What the server waits on
    #[arg(long, default_value = "tallyring", value_parser = ["tallyring", "tallyring-epoll"])]
    arm: String,
    #[command(flatten)]
    common: Common,
}

/// A part of the visits, and the server after it, without connections.
#[derive(Debug, Serialize)]
struct Part {
    report: Report,
    usage: Usage,
    descriptors: usize,
    /// Time that the hypervisor took meanwhile, of one processor.
    stolen_seconds: f64,
}

#[derive(Debug, Serialize)]
struct Record {
    environment: Environment,
    arm: Arm,
    store: String,
    connections: u64,
    visits_per_connection: u64,
    counted: u64,
    #[serde(skip)]
    parts: Vec<Part>,
}

/// Makes the visits, and compares the server at the end with the server at the beginning.
///
/// # Errors
/// When a program fails, or the server does not end as it began.
pub fn soak(arguments: &SoakArguments) -> io::Result<()> {
    let record = run(arguments)?;
    let (summary, faults) = judge(&record);
    let name = format!("{}-soak", record.environment.day());
    let figures = lines(&record, &record.parts)?;
    let files = [("soak.jsonl", figures), ("summary.md", summary.clone())];
    let kept = arguments.common.keep(&name, &files)?;
    say(&format!("\n{summary}\n{kept}"))?;
    match faults.is_empty() {
        true => Ok(()),
        false => Err(io::Error::other(faults.join("; "))),
    }
}

fn run(arguments: &SoakArguments) -> io::Result<Record> {
    let programs = arguments.common.programs()?;
    let scratch = tempfile::tempdir()?;
    let cores = own_cores()?;
    let (first, last) = (cores[0], cores[cores.len() - 1]);
    let other_side = OtherSide { programs: &programs, cores: &[last] };
    let (_counting, counter) = start_counter(&other_side, &arguments.store)?;
    let site = free_address()?;
    let arm = match arguments.arm.as_str() {
        "tallyring" => Arm::Tallyring,
        _ => Arm::TallyringEpoll,
    };
    let setting =
        Setting { programs: &programs, scratch: scratch.path(), cores: &[first], site, counter };
    let before = total(counter)?;
    let server = setting.start(arm)?;
    let mut parts = Vec::new();
    for number in 1..=PARTS {
        let part = make_part(arguments, &other_side, &server, site)?;
        say(&format!("{number:>2}/{PARTS}  {}", part.describe()))?;
        parts.push(part);
    }
    Ok(Record {
        environment: Environment::look(),
        arm,
        store: arguments.store.clone(),
        connections: arguments.connections,
        visits_per_connection: arguments.visits_per_connection,
        counted: total(counter)? - before,
        parts,
    })
}

/// Starts the counter of `--store`.
fn start_counter(other_side: &OtherSide<'_>, store: &str) -> io::Result<(Process, SocketAddr)> {
    if store == "stub" {
        return other_side.counter(0);
    }
    let address = free_address()?;
    let flags = ["counter", "--listen", &address.to_string(), "--store", store];
    let program = other_side.programs.join("tallyring");
    let mut counting = Process::start(other_side.cores, &program, &flags)?;
    counting.wait_for(address)?;
    Ok((counting, address))
}

/// Makes a part of the visits.
fn make_part(
    arguments: &SoakArguments,
    other_side: &OtherSide<'_>,
    server: &Process,
    site: SocketAddr,
) -> io::Result<Part> {
    let visits = [
        "--connections",
        &arguments.connections.to_string(),
        "--visits",
        &(arguments.visits / PARTS).to_string(),
        "--visits-per-connection",
        &arguments.visits_per_connection.to_string(),
    ];
    let (begin, stolen) = (server.snapshot()?, stolen_seconds());
    let report = other_side.visit(site, &visits)?;
    // The last connections are being closed.
    pause(Duration::from_millis(200));
    let (usage, descriptors) = (begin.until(&server.snapshot()?), server.descriptors()?);
    Ok(Part { report, usage, descriptors, stolen_seconds: stolen_seconds() - stolen })
}

impl Part {
    fn describe(&self) -> String {
        format!(
            "{:>6.0} visits/s  p50 {:>6.0} µs  p99 {:>6.0} µs  {:>6} KiB  {} descriptors",
            self.report.visits as f64 / self.report.seconds,
            self.report.p50_us,
            self.report.p99_us,
            self.usage.resident_bytes / 1024,
            self.descriptors
        )
    }
}

/// The columns of the table that are medians.
const MEDIANS: [fn(&Part) -> f64; 7] = [
    |part| part.report.visits as f64 / part.report.seconds,
    |part| part.report.p50_us,
    |part| part.report.p99_us,
    |part| part.report.p999_us,
    |part| part.usage.cpu_us / part.report.visits as f64,
    |part| (part.usage.resident_bytes / 1024) as f64,
    |part| part.descriptors as f64,
];

fn median(parts: &[Part], figure: fn(&Part) -> f64) -> f64 {
    Spread::of(parts.iter().map(figure).collect()).median
}

/// The parts in tenths.
fn tenths(parts: &[Part]) -> impl DoubleEndedIterator<Item = &[Part]> {
    parts.chunks(parts.len().div_ceil(10).max(1))
}

/// The summary, and what is wrong.
fn judge(record: &Record) -> (String, Vec<String>) {
    let parts = &record.parts;
    let sum = |figure: fn(&Report) -> u64| parts.iter().map(|p| figure(&p.report)).sum::<u64>();
    let (visits, refused, failed) = (sum(|r| r.visits), sum(|r| r.refused), sum(|r| r.failed));
    let mut faults = Vec::new();
    if refused + failed > 0 || record.counted != visits {
        faults.push(format!("{visits} welcomed, {} counted", record.counted));
    }
    if let (Some(first), Some(last)) = (tenths(parts).next(), tenths(parts).next_back()) {
        for (name, column) in [("latency", 1), ("memory", 5), ("descriptors", 6)] {
            let (then, now) = (median(first, MEDIANS[column]), median(last, MEDIANS[column]));
            if now > then * GROWTH_MAX {
                faults.push(format!("{name} grew from {then:.0} to {now:.0}"));
            }
        }
    }
    let mut text = record.environment.describe();
    text += &format!(
        "\n{visits} visits by {} visitors of {}, each of whom came anew after {} visits; the counter \
         was `{}`.\n{refused} were refused, {failed} were not answered, and the counter counted {}.\n\n",
        record.connections,
        record.arm.name(),
        record.visits_per_connection,
        record.store,
        record.counted
    );
    text += &table(parts);
    text += &match faults.is_empty() {
        true => String::from("\nIt ended as it began.\n"),
        false => format!("\nIt did not end as it began: {}.\n", faults.join("; ")),
    };
    (text, faults)
}

/// A row for each tenth.
fn table(parts: &[Part]) -> String {
    let mut text = String::from(
        "| tenth | visits/s | p50 µs | p99 µs | p99.9 µs | max µs | CPU µs a visit | resident KiB | descriptors | stolen s |\n",
    );
    text += "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n";
    for (number, tenth) in tenths(parts).enumerate() {
        let [rate, p50, p99, p999, cpu, resident, descriptors] =
            MEDIANS.map(|figure| median(tenth, figure));
        // Not medians: a single standstill of the machine explains failures.
        let longest = tenth.iter().map(|part| part.report.max_us).fold(0.0, f64::max);
        let stolen: f64 = tenth.iter().map(|part| part.stolen_seconds).sum();
        text += &format!(
            "| {} | {rate:.0} | {p50:.0} | {p99:.0} | {p999:.0} | {longest:.0} | {cpu:.2} | {resident:.0} | {descriptors:.0} | {stolen:.1} |\n",
            number + 1
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(p50_us: f64, resident_kib: u64, descriptors: usize) -> Part {
        let report = Report { visits: 100, seconds: 2.0, p50_us, ..Report::default() };
        let usage =
            Usage { cpu_us: 1000.0, resident_bytes: resident_kib * 1024, ..Usage::default() };
        Part { report, usage, descriptors, stolen_seconds: 0.0 }
    }

    #[track_caller]
    fn check(last: Part, counted: u64, faults: &[&str]) {
        let mut parts: Vec<_> = (0..19).map(|_| part(50.0, 8000, 20)).collect();
        parts.push(last);
        let record = Record {
            environment: Environment::default(),
            arm: Arm::Tallyring,
            store: String::from("memory"),
            connections: 1,
            visits_per_connection: 1,
            counted,
            parts,
        };
        let (summary, found) = judge(&record);
        assert_eq!(found, faults);
        assert_eq!(summary.contains("It ended as it began"), faults.is_empty());
    }

    #[test]
    fn what_grows_or_is_lost_is_found() {
        check(part(50.0, 8000, 20), 2000, &[]);
        check(part(50.0, 8000, 20), 1999, &["2000 welcomed, 1999 counted"]);
        // Each tenth has two parts: the median of the last is between them.
        check(part(50.0, 10_000, 20), 2000, &["memory grew from 8000 to 9000"]);
        check(part(50.0, 8000, 26), 2000, &["descriptors grew from 20 to 23"]);
        check(part(90.0, 8000, 20), 2000, &["latency grew from 50 to 70"]);
    }
}
