//! What it costs the server that somebody looks at it: nobody, a scraper each second, or several open pages, and beside
//! them another build of the server at which nobody looks.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use serde::Serialize;
use tallyring_bench::load::Report;

use crate::{
    arms::list,
    machine::{Common, Environment},
    process::{Process, Usage, free_address, own_cores, pause},
    record::lines,
    statistics::Spread,
    terminal::say,
    visitors::OtherSide,
};

const SCRAPE_INTERVAL: Duration = Duration::from_secs(1);
/// How long a read of what the server tells may last, so that the end is noticed.
const READ_TIMEOUT: Duration = Duration::from_millis(50);

/// What to compare, and how long.
#[derive(Debug, Args)]
pub struct WatchedArguments {
    /// Another build of tallyring, for example of the commit before a change, at which nobody looks
    #[arg(long, value_name = "PROGRAM")]
    before: Option<PathBuf>,
    /// Pages that are open at a time
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=16))]
    pages: u32,
    /// Visitors
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Times that each is measured
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// Seconds of each run
    #[arg(long, default_value_t = 2.5)]
    seconds: f64,
    #[command(flatten)]
    common: Common,
}

/// Who looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Look {
    /// Nobody, at the other build.
    Before,
    Nobody,
    Scraper,
    Pages,
}

#[derive(Debug, Serialize)]
struct Run {
    look: Look,
    repeat: u32,
    report: Report,
    usage: Usage,
    /// Bytes that those who looked have read.
    read_bytes: u64,
}

impl Run {
    fn cpu_us(&self) -> f64 {
        self.usage.cpu_us / self.report.visits as f64
    }
}

#[derive(Debug, Serialize)]
struct Record {
    environment: Environment,
    connections: usize,
    pages: u32,
    #[serde(skip)]
    runs: Vec<Run>,
}

/// A server with one worker.
struct Server {
    process: Process,
    site: SocketAddr,
    admin: SocketAddr,
}

/// Runs all in rotating order, prints the ratios, and keeps the figures.
///
/// # Errors
/// When a program fails, or a visit was not welcomed.
pub fn watched(arguments: &WatchedArguments) -> io::Result<()> {
    let programs = arguments.common.programs()?;
    let cores = own_cores()?;
    let (first, last) = (cores[0], cores[cores.len() - 1]);
    let other_side = OtherSide { programs: &programs, cores: &[last] };
    let (_counter, counter) = other_side.counter(0)?;
    let environment = Environment::look();
    let server = Server::start(&programs.join("tallyring"), first, counter)?;
    let before = arguments.before.as_ref();
    let before = before.map(|program| Server::start(program, first, counter)).transpose()?;
    let mut looks = vec![Look::Nobody, Look::Scraper, Look::Pages];
    looks.extend(before.as_ref().map(|_| Look::Before));
    let mut runs = Vec::new();
    for repeat in 0..arguments.repeats {
        let rotated = repeat as usize % looks.len();
        for look in looks[rotated..].iter().chain(&looks[..rotated]).copied() {
            let server = match &before {
                Some(before) if look == Look::Before => before,
                _ => &server,
            };
            let run = server.run(&other_side, arguments, look, repeat)?;
            say(&format!("{:>3} {look:<8?} {:>6.2} µs a visit", repeat + 1, run.cpu_us()))?;
            runs.push(run);
        }
    }
    let (connections, pages) = (arguments.connections, arguments.pages);
    let record = Record { environment, connections, pages, runs };
    let summary = summary(&record);
    let name = format!("{}-watched", record.environment.day());
    let figures = lines(&record, &record.runs)?;
    let files = [("watched.jsonl", figures), ("summary.md", summary.clone())];
    let kept = arguments.common.keep(&name, &files)?;
    say(&format!("\n{summary}\n{kept}"))
}

impl Server {
    fn start(program: &Path, core: usize, counter: SocketAddr) -> io::Result<Self> {
        let site = free_address()?;
        let url = format!("http://{counter}/counter");
        // The address of the one before is taken once the server listens there.
        let admin = loop {
            let admin = free_address()?;
            if admin != site {
                break admin;
            }
        };
        let (listen, look_at, cores) = (site.to_string(), admin.to_string(), list(&[core]));
        let arguments = ["--listen", &listen, "--admin", &look_at, "--counter", &url];
        let rest = ["--cores", &cores, "--driver", "io_uring"];
        let all = [&arguments[..], &rest].concat();
        let mut process = Process::start(&[core], program, &all)?;
        process.wait_for(site)?;
        process.wait_for(admin)?;
        Ok(Self { process, site, admin })
    }

    fn run(
        &self,
        other_side: &OtherSide<'_>,
        arguments: &WatchedArguments,
        look: Look,
        repeat: u32,
    ) -> io::Result<Run> {
        let connections = arguments.connections.to_string();
        let visit = |seconds: f64| {
            let seconds = seconds.to_string();
            let visits = ["--connections", &connections, "--seconds", &seconds];
            other_side.visit(self.site, &visits)
        };
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let looking = match look {
                Look::Before | Look::Nobody => vec![],
                Look::Scraper => vec![scope.spawn(|| scrape(self.admin, &over))],
                Look::Pages => {
                    (0..arguments.pages).map(|_| scope.spawn(|| watch(self.admin, &over))).collect()
                }
            };
            let measured = visit(0.3).and_then(|_| {
                let before = self.process.snapshot()?;
                let report = visit(arguments.seconds)?;
                Ok((report, before.until(&self.process.snapshot()?)))
            });
            over.store(true, Ordering::Relaxed);
            let mut read_bytes = 0;
            for looking in looking {
                let read = looking.join().map_err(|_| io::Error::other("a reader panicked"))?;
                read_bytes += read?;
            }
            let (report, usage) = measured?;
            if report.refused + report.failed > 0 || report.visits == 0 {
                return Err(io::Error::other(format!("not every visit was welcomed: {report:?}")));
            }
            Ok(Run { look, repeat, report, usage, read_bytes })
        })
    }
}

/// Reads the metrics each second; how many bytes that were.
fn scrape(admin: SocketAddr, over: &AtomicBool) -> io::Result<u64> {
    let mut read_bytes = 0;
    while !over.load(Ordering::Relaxed) {
        let began = Instant::now();
        let mut stream = TcpStream::connect(admin)?;
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        read_bytes += stream.read_to_end(&mut Vec::new())? as u64;
        while began.elapsed() < SCRAPE_INTERVAL && !over.load(Ordering::Relaxed) {
            pause(READ_TIMEOUT);
        }
    }
    Ok(read_bytes)
}

/// Reads the events that a page reads; how many bytes those were.
fn watch(admin: SocketAddr, over: &AtomicBool) -> io::Result<u64> {
    let mut stream = TcpStream::connect(admin)?;
    stream.set_read_timeout(Some(READ_TIMEOUT))?;
    stream.write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let (mut read_bytes, mut piece) = (0, vec![0; 64 * 1024]);
    while !over.load(Ordering::Relaxed) {
        match stream.read(&mut piece) {
            Ok(0) => return Err(io::Error::other("the server has ended the events")),
            Ok(read) => read_bytes += read as u64,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read_bytes)
}

fn summary(record: &Record) -> String {
    let runs = |look: Look| record.runs.iter().filter(move |run| run.look == look);
    let has_before = runs(Look::Before).next().is_some();
    let base = if has_before { Look::Before } else { Look::Nobody };
    let ratios = |look: Look| {
        let ratio = |run: &Run| {
            let same = runs(base).find(|other| other.repeat == run.repeat)?;
            Some(run.cpu_us() / same.cpu_us())
        };
        Spread::of(runs(look).filter_map(ratio).collect())
    };
    let mut text = record.environment.describe();
    text += &format!(
        "\nOne worker, {} visitors in a closed loop; CPU time of all the server's threads for each visit. Medians of {} \
         runs, in rotating order; ratios within a repeat.\n\n",
        record.connections,
        runs(Look::Nobody).count()
    );
    text += "| who looks | µs a visit | ratio | least to most | KB a second |\n| --- | --- | --- | --- | --- |\n";
    for (look, who) in [
        (Look::Before, "nobody, the other build"),
        (Look::Nobody, "nobody"),
        (Look::Scraper, "a scraper, each second"),
        (Look::Pages, "open pages"),
    ] {
        if runs(look).next().is_none() {
            continue;
        }
        let who = match look {
            Look::Pages => format!("{} {who}", record.pages),
            _ => who.to_owned(),
        };
        let cost = Spread::of(runs(look).map(Run::cpu_us).collect()).median;
        let rate = |run: &Run| run.read_bytes as f64 / 1e3 / run.report.seconds;
        let read = Spread::of(runs(look).map(rate).collect()).median;
        let Spread { least, median, most, .. } = ratios(look);
        text +=
            &format!("| {who} | {cost:.2} | {median:.3} | {least:.3} to {most:.3} | {read:.0} |\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(look: Look, repeat: u32, cpu_us: f64) -> Run {
        Run {
            look,
            repeat,
            report: Report { visits: 10, seconds: 2.0, ..Report::default() },
            usage: Usage { cpu_us, ..Usage::default() },
            read_bytes: 4000,
        }
    }

    fn record(runs: Vec<Run>) -> Record {
        Record { environment: Environment::default(), connections: 64, pages: 5, runs }
    }

    #[test]
    fn ratios_are_within_a_repeat_and_to_the_other_build_if_there_is_one() {
        let alone = [(Look::Nobody, 0, 100.0), (Look::Scraper, 0, 110.0), (Look::Nobody, 1, 200.0)];
        let mut runs: Vec<_> = alone.map(|(look, repeat, us)| run(look, repeat, us)).into();
        runs.push(run(Look::Scraper, 1, 180.0));
        let text = summary(&record(runs));
        assert!(text.contains("| nobody | 15.00 | 1.000 | 1.000 to 1.000 | 2 |"), "{text}");
        assert!(text.contains("| a scraper, each second | 14.50 | 1.000 | 0.900 to 1.100 | 2 |"));
        assert!(!text.contains("open pages") && !text.contains("other build"), "{text}");
        let runs = vec![run(Look::Before, 0, 50.0), run(Look::Pages, 0, 100.0)];
        let text = summary(&record(runs));
        assert!(text.contains("| 5 open pages | 10.00 | 2.000 | 2.000 to 2.000 | 2 |"), "{text}");
    }
}
