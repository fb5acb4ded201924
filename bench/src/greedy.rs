//! Visitors who take more than their share: what they cost the server and other visitors.

use std::{
    fs, io,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use clap::Args;
use serde::Serialize;
use tallyring_bench::{WELCOME_PAGE, ask, load::Report};

use crate::{
    arms::list,
    machine::{Common, Environment},
    process::{Process, free_address, own_cores, pause},
    record::lines,
    statistics::Spread,
    terminal::say,
    visitors::OtherSide,
};

const SECOND: Duration = Duration::from_secs(1);
/// The beginning of a request head that never ends, sent a byte at a time.
const DRIBBLE: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ";
const PAGE_BYTES: usize = 1024 * 1024;

/// How many visitors of each kind.
#[derive(Debug, Args)]
pub struct GreedyArguments {
    /// Visitors who send a byte of their request each second
    #[arg(long, default_value_t = 10_000)]
    dribblers: usize,
    /// Visitors who ask for pages of a mebibyte and read nothing
    #[arg(long, default_value_t = 200)]
    deaf: usize,
    /// Times that latencies are measured, with and without
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    /// What the server waits on
    #[arg(long, default_value = "io_uring", value_parser = ["io_uring", "epoll"])]
    driver: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Serialize)]
struct Record {
    environment: Environment,
    driver: String,
    dribblers: usize,
    /// Latencies without the dribblers, and with them.
    #[serde(skip)]
    alone: Vec<Report>,
    #[serde(skip)]
    beside: Vec<Report>,
    deaf: usize,
    deaf_resident_bytes: u64,
    /// Descriptors before the deaf came, and after the write time-out.
    deaf_descriptors: (usize, usize),
    /// The share of a core that is used with 40 files and 200 connections.
    crowded_busy: f64,
    /// Visits that were welcomed after these had left, of 100.
    welcomed_after_crowd: usize,
    /// Latencies below the counter's capacity, and above it.
    #[serde(skip)]
    within: Vec<Report>,
    #[serde(skip)]
    overloaded: Vec<Report>,
}

/// What visitors saw in one of the phases of a record.
#[derive(Debug, Serialize)]
struct Phase<'a> {
    phase: &'static str,
    #[serde(flatten)]
    report: &'a Report,
}

impl Record {
    fn to_lines(&self) -> io::Result<String> {
        let phases = [
            ("alone", &self.alone),
            ("beside", &self.beside),
            ("within", &self.within),
            ("overloaded", &self.overloaded),
        ];
        let reports = phases
            .into_iter()
            .flat_map(|(phase, reports)| reports.iter().map(move |report| Phase { phase, report }));
        lines(self, reports)
    }
}

struct Stage<'a> {
    arguments: &'a GreedyArguments,
    programs: PathBuf,
    scratch: tempfile::TempDir,
    server_cores: [usize; 1],
    load_cores: [usize; 1],
}

/// Runs all phases, prints the results, and keeps them.
///
/// # Errors
/// When a program fails.
pub fn greedy(arguments: &GreedyArguments) -> io::Result<()> {
    let programs = arguments.common.programs()?;
    let cores = own_cores()?;
    let (first, last) = (cores[0], cores[cores.len() - 1]);
    let scratch = tempfile::tempdir()?;
    let stage = Stage { arguments, programs, scratch, server_cores: [first], load_cores: [last] };
    let environment = Environment::look();
    let (alone, beside) = stage.dribblers()?;
    let (deaf_resident_bytes, deaf_descriptors) = stage.deaf()?;
    let (crowded_busy, welcomed_after_crowd) = stage.crowd()?;
    let (within, overloaded) = stage.overload()?;
    let record = Record {
        environment,
        driver: arguments.driver.clone(),
        dribblers: arguments.dribblers,
        alone,
        beside,
        deaf: arguments.deaf,
        deaf_resident_bytes,
        deaf_descriptors,
        crowded_busy,
        welcomed_after_crowd,
        within,
        overloaded,
    };
    let summary = summary(&record);
    let name = format!("{}-greedy", record.environment.day());
    let files = [("greedy.jsonl", record.to_lines()?), ("summary.md", summary.clone())];
    let kept = arguments.common.keep(&name, &files)?;
    say(&format!("\n{summary}\n{kept}"))
}

impl Stage<'_> {
    /// A server with one worker, on the first core.
    fn serve(
        &self,
        counter: SocketAddr,
        before: &[&str],
        flags: &[&str],
    ) -> io::Result<(Process, SocketAddr)> {
        let (address, url) = (free_address()?, format!("http://{counter}/counter"));
        let (listen, program) = (address.to_string(), self.programs.join("tallyring"));
        let program = program.to_string_lossy();
        let driver = self.arguments.driver.as_str();
        let core = list(&self.server_cores);
        let own = [
            "--listen",
            &listen,
            "--counter",
            &url,
            "--admin",
            "off",
            "--cores",
            &core,
            "--skip-counter-check",
        ];
        let all = [before, &[&*program], &own, &["--driver", driver], flags].concat();
        let mut server = Process::start(&self.server_cores, Path::new(all[0]), &all[1..])?;
        server.wait_for(address)?;
        Ok((server, address))
    }

    fn other_side(&self) -> OtherSide<'_> {
        OtherSide { programs: &self.programs, cores: &self.load_cores }
    }

    /// Latencies of visits at a constant rate, without and with clients that send a byte a second.
    fn dribblers(&self) -> io::Result<(Vec<Report>, Vec<Report>)> {
        let (_counter, counter) = self.other_side().counter(0)?;
        let (_server, site) = self.serve(counter, &[], &[])?;
        let visits = ["--rate", "2000", "--seconds", "3"];
        let (mut alone, mut beside) = (Vec::new(), Vec::new());
        for repeat in 0..self.arguments.repeats {
            say(&format!("dribblers, {} of {}", repeat + 1, self.arguments.repeats))?;
            alone.push(self.other_side().visit(site, &visits)?);
            let over = AtomicBool::new(false);
            let report = thread::scope(|scope| {
                let dribbling = scope.spawn(|| dribble(site, self.arguments.dribblers, &over));
                // Until all are connected and have sent a byte or two.
                pause(SECOND * 3);
                let report = self.other_side().visit(site, &visits);
                over.store(true, Ordering::Relaxed);
                dribbling.join().unwrap_or(Ok(()))?;
                report
            })?;
            beside.push(report);
            pause(SECOND);
        }
        Ok((alone, beside))
    }

    /// Memory of clients that never read, and descriptors before them and after the write time-out.
    fn deaf(&self) -> io::Result<(u64, (usize, usize))> {
        say("visitors who do not read")?;
        let (_counter, counter) = self.other_side().counter(0)?;
        let page = self.scratch.path().join("page.txt");
        fs::write(&page, vec![b'x'; PAGE_BYTES])?;
        let page = page.to_string_lossy();
        let (server, site) = self.serve(
            counter,
            &[],
            &["--welcome", &page, "--write-timeout", "3s", "--counter-connections-max", "64"],
        )?;
        // Opens all connections to the counter, so that they are not counted below.
        self.other_side().visit(site, &["--visits", "2000"])?;
        pause(SECOND);
        let (before, descriptors) = (server.resident_bytes()?, server.descriptors()?);
        let mut deaf = Vec::new();
        for _ in 0..self.arguments.deaf {
            let mut stream = TcpStream::connect(site)?;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(5).as_slice())?;
            deaf.push(stream);
        }
        pause(SECOND);
        let resident = server.resident_bytes()?.saturating_sub(before);
        pause(SECOND * 6);
        Ok((resident, (descriptors, server.descriptors()?)))
    }

    /// The share of a core that a server with 40 files uses for 200 connections, and how many of 100 visits it welcomes
    /// once they have left.
    fn crowd(&self) -> io::Result<(f64, usize)> {
        say("more visitors than files")?;
        let (_counter, counter) = self.other_side().counter(0)?;
        let (server, site) = self.serve(counter, &["prlimit", "--nofile=40"], &[])?;
        let crowd = (0..200).map(|_| TcpStream::connect(site)).collect::<io::Result<Vec<_>>>()?;
        pause(SECOND);
        let before = server.snapshot()?;
        pause(SECOND * 3);
        let busy = before.until(&server.snapshot()?).cpu_us / 3e6;
        drop(crowd);
        let welcomed = (0..100).filter(|_| is_welcomed(site)).count();
        Ok((busy, welcomed))
    }

    /// Latencies with a counter that can take 8,000 visits a second: at 3,000 and at 18,000.
    fn overload(&self) -> io::Result<(Vec<Report>, Vec<Report>)> {
        let (_counter, counter) = self.other_side().counter(2)?;
        let limits = ["--counter-connections-max", "16", "--counter-queue-max", "16"];
        let (_server, site) = self.serve(counter, &[], &limits)?;
        let (mut within, mut over) = (Vec::new(), Vec::new());
        for repeat in 0..self.arguments.repeats {
            say(&format!("overload, {} of {}", repeat + 1, self.arguments.repeats))?;
            for (rate, reports) in [("3000", &mut within), ("18000", &mut over)] {
                let visits = ["--rate", rate, "--connections", "256", "--seconds", "2"];
                reports.push(self.other_side().visit(site, &visits)?);
            }
        }
        Ok((within, over))
    }
}

/// Clients that send a byte of their request each second, and connect again when they are refused.
fn dribble(site: SocketAddr, clients: usize, over: &AtomicBool) -> io::Result<()> {
    let connect = || -> io::Result<(TcpStream, usize)> {
        let stream = TcpStream::connect(site)?;
        stream.set_nonblocking(true)?;
        Ok((stream, 0))
    };
    let mut streams = (0..clients).map(|_| connect()).collect::<io::Result<Vec<_>>>()?;
    while !over.load(Ordering::Relaxed) {
        // Spread over the second, so that they are not one burst.
        for some in streams.chunks_mut(clients.div_ceil(100).max(1)) {
            for (stream, sent) in some {
                let byte = DRIBBLE.get(*sent).unwrap_or(&b'x');
                *sent += 1;
                let is_refused = stream.read(&mut [0; 512]).is_ok();
                if is_refused || stream.write_all(&[*byte]).is_err() {
                    (*stream, *sent) = connect()?;
                }
            }
            pause(SECOND / 100);
        }
    }
    Ok(())
}

fn is_welcomed(site: SocketAddr) -> bool {
    let page = TcpStream::connect(site).and_then(|stream| ask(&stream, "/"));
    page.is_ok_and(|page| page == WELCOME_PAGE)
}

fn summary(record: &Record) -> String {
    let median = |reports: &[Report], figure: fn(&Report) -> f64| {
        Spread::of(reports.iter().map(figure).collect()).median
    };
    let latency = |reports: &[Report]| {
        let (p50, p99) = (median(reports, |r| r.p50_us), median(reports, |r| r.p99_us));
        format!("p50 {p50:.0} µs, p99 {p99:.0} µs")
    };
    let refused = |reports: &[Report]| {
        median(reports, |r| 100.0 * r.refused as f64 / (r.visits + r.refused) as f64)
    };
    let mut text = record.environment.describe();
    text += &format!(
        "\nOne worker on {}; medians of {} runs, in turn.\n\n",
        record.driver,
        record.alone.len()
    );
    text += "| what | seen |\n| --- | --- |\n";
    text += &format!("| 2,000 visits a second, alone | {} |\n", latency(&record.alone));
    text += &format!(
        "| the same beside {} clients that send a byte a second | {} |\n",
        record.dribblers,
        latency(&record.beside)
    );
    text += &format!(
        "| {} clients that never read their answers, of 1 MiB | {} resident bytes each; descriptors \
         {} before, {} after the write time-out |\n",
        record.deaf,
        record.deaf_resident_bytes / record.deaf.max(1) as u64,
        record.deaf_descriptors.0,
        record.deaf_descriptors.1
    );
    text += &format!(
        "| 40 files and 200 connections | {:.1} % of a core; then {} of 100 visits welcomed |\n",
        100.0 * record.crowded_busy,
        record.welcomed_after_crowd
    );
    text += &format!(
        "| 3,000 visits a second to a counter that takes at most 8,000 | {}; {:.1} % refused |\n",
        latency(&record.within),
        refused(&record.within)
    );
    text += &format!(
        "| 18,000 visits a second to the same | accepted: {}; {:.1} % refused, p99 {:.0} µs |\n",
        latency(&record.overloaded),
        refused(&record.overloaded),
        median(&record.overloaded, |r| r.refused_p99_us)
    );
    text
}
