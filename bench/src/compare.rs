//! The arms side by side: each in turn, in rotating order, so that what else the machine does meets
//! all of them alike.

use std::{
    fs, io,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use clap::Args;
use serde::Serialize;

use crate::process::{Process, Usage, pause};

const SITE: &str = "127.0.0.1:3100";
const COUNTER: &str = "127.0.0.1:3101";
const ARMS: [&str; 4] = ["floor", "tallyring", "tallyring-epoll", "axum"];
const WARM_UP: Duration = Duration::from_secs(1);
/// A ring is taken down after its process is gone.
const BETWEEN: Duration = Duration::from_millis(700);

/// What to compare, and how long.
#[derive(Debug, Args)]
pub struct CompareArguments {
    /// Arms to run, of floor, tallyring, tallyring-epoll and axum
    #[arg(long, value_delimiter = ',', default_values = ARMS)]
    arms: Vec<String>,
    /// Times that each arm is run
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// Seconds of each run
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Connections of the client
    #[arg(long, default_value_t = 64)]
    connections: u32,
    /// Idle connections whose memory is measured; 0 leaves that out
    #[arg(long, default_value_t = 10_000)]
    idle: u32,
    /// Cores of the server under test
    #[arg(long, default_value = "0")]
    server_cores: String,
    /// Cores of the client and the counter
    #[arg(long, default_value = "1")]
    load_cores: String,
    /// Directory of the programs
    #[arg(long)]
    bin_dir: Option<PathBuf>,
    /// Directory for the raw figures; a new one below bench/runs by default
    #[arg(long)]
    out: Option<PathBuf>,
}

/// One run of one arm.
#[derive(Debug, Clone, Serialize)]
struct Run {
    arm: String,
    repeat: u32,
    visits: u64,
    seconds: f64,
    usage: Usage,
}

#[derive(Debug, Serialize)]
struct IdleMemory {
    arm: String,
    connections: u32,
    resident_before_bytes: u64,
    resident_after_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Record {
    began: String,
    kernel: String,
    processor: String,
    commit: String,
    command: Vec<String>,
    runs: Vec<Run>,
    idle: Vec<IdleMemory>,
}

/// Runs the arms and prints their medians and ratios.
///
/// # Errors
/// When a program is missing or fails.
pub fn compare(arguments: &CompareArguments) -> io::Result<()> {
    if let Some(unknown) = arguments.arms.iter().find(|arm| !ARMS.contains(&arm.as_str())) {
        return Err(io::Error::other(format!("there is no arm {unknown}; there are {ARMS:?}")));
    }
    for tool in ["wrk", "taskset"] {
        if Command::new(tool).arg("-v").output().is_err() {
            return Err(io::Error::other(format!(
                "{tool} is not installed; on Debian: apt-get install {tool}"
            )));
        }
    }
    let programs = match &arguments.bin_dir {
        Some(directory) => directory.clone(),
        None => build()?,
    };
    let bench = Bench { arguments, programs };
    let mut record = Record {
        began: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        processor: processor(),
        commit: said_by("git", &["describe", "--always", "--dirty"]),
        command: std::env::args().skip(1).collect(),
        runs: Vec::new(),
        idle: Vec::new(),
    };
    let mut arms = arguments.arms.clone();
    for repeat in 0..arguments.repeats {
        for arm in &arms {
            let run = bench.run(arm, repeat)?;
            let each = run.usage.cpu_us / run.visits as f64;
            println!("{:>2}/{} {arm:<16} {each:7.2} µs a visit", repeat + 1, arguments.repeats);
            record.runs.push(run);
        }
        arms.rotate_left(1);
    }
    if arguments.idle > 0 {
        for arm in arguments.arms.iter().filter(|arm| *arm != "floor") {
            record.idle.push(bench.idle_memory(arm)?);
        }
    }
    let summary = summarise(&record, &arguments.arms);
    print!("\n{summary}");
    let directory = match &arguments.out {
        Some(directory) => directory.clone(),
        None => unused(&format!("bench/runs/{}-{}", &record.began[..10], slug(&record.processor))),
    };
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("runs.json"), serde_json::to_string_pretty(&record)? + "\n")?;
    fs::write(directory.join("summary.md"), summary)?;
    println!("\nraw figures: {}", directory.join("runs.json").display());
    Ok(())
}

/// The first of `name`, `name-2`, `name-3` and so on that is not there: a run is never overwritten.
fn unused(name: &str) -> PathBuf {
    let mut directory = PathBuf::from(name);
    let mut number = 2;
    while directory.exists() {
        directory = PathBuf::from(format!("{name}-{number}"));
        number += 1;
    }
    directory
}

struct Bench<'a> {
    arguments: &'a CompareArguments,
    programs: PathBuf,
}

impl Bench<'_> {
    fn start(&self, arm: &str) -> io::Result<(Process, Process)> {
        pause(BETWEEN);
        let program = |name: &str| self.programs.join(name);
        let (server, load) = (&self.arguments.server_cores, &self.arguments.load_cores);
        let mut counter = Process::start(load, &program("stub"), &[COUNTER])?;
        counter.wait_for(address(COUNTER))?;
        let url = format!("http://{COUNTER}/counter");
        let driver = if arm == "tallyring-epoll" { "epoll" } else { "io_uring" };
        let tallyring = [
            "--listen",
            SITE,
            "--counter",
            &url,
            "--cores",
            server,
            "--admin",
            "off",
            "--driver",
            driver,
        ];
        let mut site = match arm {
            "floor" => Process::start(server, &program("floor"), &[SITE, COUNTER])?,
            "axum" => Process::start(server, &program("axum"), &[SITE, &url])?,
            _ => Process::start(server, &program("tallyring"), &tallyring)?,
        };
        site.wait_for(address(SITE))
            .map_err(|error| io::Error::other(format!("{arm}: {error}")))?;
        Ok((site, counter))
    }

    fn run(&self, arm: &str, repeat: u32) -> io::Result<Run> {
        let (site, _counter) = self.start(arm)?;
        self.wrk(WARM_UP)?;
        let before = site.usage()?;
        let (visits, seconds) = self.wrk(Duration::from_secs(self.arguments.seconds))?;
        let after = site.usage()?;
        let usage = Usage {
            cpu_us: after.cpu_us - before.cpu_us,
            user_us: after.user_us - before.user_us,
            system_us: after.system_us - before.system_us,
        };
        Ok(Run { arm: arm.to_owned(), repeat, visits, seconds, usage })
    }

    /// Visits that wrk saw answered with 200, and in how many seconds.
    fn wrk(&self, duration: Duration) -> io::Result<(u64, f64)> {
        let connections = self.arguments.connections.to_string();
        let output = Command::new("taskset")
            .args(["-c", &self.arguments.load_cores, "wrk", "-t1", "-c", &connections, "-d"])
            .arg(format!("{}s", duration.as_secs()))
            .arg(format!("http://{SITE}/"))
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        if text.contains("Non-2xx") || text.contains("Socket errors") {
            return Err(io::Error::other(format!("not every visit was welcomed:\n{text}")));
        }
        let line = text.lines().find_map(|line| line.split_once(" requests in "));
        let parsed = line.and_then(|(visits, rest)| {
            let seconds = rest.split_once("s,")?.0;
            Some((visits.trim().parse().ok()?, seconds.parse().ok()?))
        });
        parsed.ok_or_else(|| io::Error::other(format!("wrk says something else:\n{text}")))
    }

    /// What connections cost that made one visit and are kept open.
    fn idle_memory(&self, arm: &str) -> io::Result<IdleMemory> {
        let (site, _counter) = self.start(arm)?;
        let visit = || -> io::Result<TcpStream> {
            let mut stream = TcpStream::connect(SITE)?;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
            let mut answer = [0; 1024];
            let count = stream.read(&mut answer)?;
            match String::from_utf8_lossy(&answer[..count]).contains("200 OK") {
                true => Ok(stream),
                false => Err(io::Error::other("a visit was not welcomed")),
            }
        };
        for _ in 0..100 {
            visit()?;
        }
        let resident_before_bytes = site.resident_bytes()?;
        let idle = (0..self.arguments.idle).map(|_| visit()).collect::<io::Result<Vec<_>>>()?;
        pause(BETWEEN);
        let resident_after_bytes = site.resident_bytes()?;
        drop(idle);
        let connections = self.arguments.idle;
        Ok(IdleMemory {
            arm: arm.to_owned(),
            connections,
            resident_before_bytes,
            resident_after_bytes,
        })
    }
}

fn address(text: &str) -> SocketAddr {
    SocketAddr::from((
        [127, 0, 0, 1],
        text.rsplit(':').next().and_then(|p| p.parse().ok()).unwrap_or(0),
    ))
}

/// Builds all programs with the release profile; their directory.
fn build() -> io::Result<PathBuf> {
    let status =
        Command::new("cargo").args(["build", "--release", "--locked", "--workspace"]).status()?;
    if !status.success() {
        return Err(io::Error::other("the programs could not be built"));
    }
    Ok(std::env::current_exe()?.parent().map(Path::to_owned).unwrap_or_default())
}

fn summarise(record: &Record, arms: &[String]) -> String {
    let of = |arm: &str, figure: fn(&Run) -> f64| {
        let runs = record.runs.iter().filter(|run| run.arm == arm);
        Spread::of(runs.map(figure).collect())
    };
    let cpu: fn(&Run) -> f64 = |run| run.usage.cpu_us / run.visits as f64;
    let reference = |arm: &str| arms.iter().any(|a| a == arm).then(|| of(arm, cpu).median);
    let (floor, axum) = (reference("floor"), reference("axum"));
    let ratio = |value: f64, to: Option<f64>| {
        to.map_or(String::from("–"), |to| format!("{:.3}", value / to))
    };
    let mut text = format!(
        "{}, Linux {}, commit {}, {}\n\nMedians (and ranges) of {} runs each, interleaved.\n\n",
        record.processor,
        record.kernel,
        record.commit,
        record.began,
        record.runs.len() / arms.len().max(1),
    );
    text += "| arm | CPU µs a visit | of which user | × floor | × axum | visits/s |\n";
    text += "| --- | --- | --- | --- | --- | --- |\n";
    for arm in arms {
        let (each, rate) = (of(arm, cpu), of(arm, |run| run.visits as f64 / run.seconds));
        let user = of(arm, |run| {
            100.0 * run.usage.user_us / (run.usage.user_us + run.usage.system_us).max(1.0)
        });
        text += &format!(
            "| {arm} | {:.2} ({:.2}–{:.2}) | {:.0} % | {} | {} | {:.0} |\n",
            each.median,
            each.least,
            each.most,
            user.median,
            ratio(each.median, floor),
            ratio(each.median, axum),
            rate.median
        );
    }
    if !record.idle.is_empty() {
        text += "\n| arm | resident bytes for each idle keep-alive connection |\n| --- | --- |\n";
        for idle in &record.idle {
            let grown = idle.resident_after_bytes.saturating_sub(idle.resident_before_bytes);
            text += &format!(
                "| {} | {} (of {}) |\n",
                idle.arm,
                grown / u64::from(idle.connections),
                idle.connections
            );
        }
    }
    text
}

struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |place: usize| values.get(place).copied().unwrap_or(f64::NAN);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            at(middle)
        } else {
            (at(middle.wrapping_sub(1)) + at(middle)) / 2.0
        };
        Self { least: at(0), median, most: at(values.len().wrapping_sub(1)) }
    }
}

fn processor() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
    let model =
        model.and_then(|line| line.split_once(':')).map_or("unknown", |(_, name)| name.trim());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{model}, {cores} cores")
}

fn slug(text: &str) -> String {
    let plain =
        text.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' });
    let plain: String = plain.collect();
    plain.split('-').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-")
}

fn said_by(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or(String::from("unknown"), |output| {
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_told_by_its_middle_and_ends() {
        let spread = Spread::of(vec![3.0, 1.0, 2.0]);
        assert_eq!((spread.least, spread.median, spread.most), (1.0, 2.0, 3.0));
        assert!((Spread::of(vec![4.0, 1.0, 2.0, 3.0]).median - 2.5).abs() < f64::EPSILON);
    }

    #[test]
    fn a_run_is_summarised_as_ratios() {
        let run = |arm: &str, cpu_us| Run {
            arm: arm.to_owned(),
            repeat: 0,
            visits: 10,
            seconds: 2.0,
            usage: Usage { cpu_us, user_us: cpu_us / 4.0, system_us: cpu_us * 3.0 / 4.0 },
        };
        let record = Record {
            began: String::from("2000-01-01T00:00:00Z"),
            kernel: String::from("6"),
            processor: String::from("A (R) CPU, 2 cores"),
            commit: String::new(),
            command: vec![],
            runs: vec![run("floor", 100.0), run("tallyring", 110.0), run("axum", 400.0)],
            idle: vec![IdleMemory {
                arm: String::from("axum"),
                connections: 10,
                resident_before_bytes: 100,
                resident_after_bytes: 1100,
            }],
        };
        let arms = ["floor", "tallyring", "axum"].map(String::from);
        let summary = summarise(&record, &arms);
        let row = "| tallyring | 11.00 (11.00–11.00) | 25 % | 1.100 | 0.275 | 5 |";
        assert!(summary.contains(row), "{summary}");
        assert!(summary.contains("| axum | 100 (of 10) |"), "{summary}");
        assert_eq!(slug(&record.processor), "a-r-cpu-2-cores");
    }
}
