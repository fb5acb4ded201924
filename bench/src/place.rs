//! An arm under test: the server, its counter and its visitors, each on their cores, and what is measured.

use std::{
    fs, io,
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use tallyring_bench::{ask, load::Report, read_page, send_request};
use tempfile::TempDir;

use crate::{
    arms::{Arm, Setting},
    process::{Process, free_address, pause, spawn_on},
    record::{Memory, Run, SystemCalls},
    scenes::{Pace, Scene},
    statistics::Spread,
    visitors,
    visitors::OtherSide,
};

const WARM_UP_SECONDS: f64 = 0.5;
/// How long the counter takes where the memory of visits in flight is measured: less than any arm's time-out of a call.
const IN_FLIGHT_MS: u32 = 3000;

/// Where arms are run.
pub struct Place {
    /// Where the built programs are.
    pub programs: PathBuf,
    /// For files that the programs need.
    pub scratch: TempDir,
    /// The cores of the server under test; one-core scenes use the first.
    pub server_cores: Vec<usize>,
    /// The cores of the visitors and the counter.
    pub load_cores: Vec<usize>,
}

/// A server and its counter.
struct Pair {
    site: Process,
    counter: Process,
    site_address: SocketAddr,
    counter_address: SocketAddr,
}

impl Place {
    /// Exchanges a second of visitors and counter alone. It must be far more than any arm can do; otherwise the load is
    /// measured and not the arm.
    ///
    /// # Errors
    /// When a program fails.
    pub fn load_alone(&self) -> io::Result<f64> {
        let (_counter, address) = self.other_side().counter(0)?;
        let report = self.other_side().visit(address, &["--seconds", "1"])?;
        Ok((report.visits + report.refused) as f64 / report.seconds)
    }

    /// Visits a second of an arm in the main scene.
    ///
    /// # Errors
    /// When a program fails.
    pub fn capacity(&self, arm: Arm) -> io::Result<f64> {
        let pair = self.start(arm, &self.server_cores[..1], 0)?;
        let rate = |_| {
            let report = self.other_side().visit(pair.site_address, &["--seconds", "0.5"])?;
            Ok(report.visits as f64 / report.seconds)
        };
        // A median, since other work may disturb one of them.
        let rates = (0..3).map(rate).collect::<io::Result<_>>()?;
        Ok(Spread::of(rates).median)
    }

    /// The visitors and the counter.
    fn other_side(&self) -> OtherSide<'_> {
        OtherSide { programs: &self.programs, cores: &self.load_cores }
    }

    fn start(&self, arm: Arm, cores: &[usize], counter_ms: u32) -> io::Result<Pair> {
        let (counter, counter_address) = self.other_side().counter(counter_ms)?;
        let site_address = free_address()?;
        let setting = Setting {
            programs: &self.programs,
            scratch: self.scratch.path(),
            cores,
            site: site_address,
            counter: counter_address,
        };
        Ok(Pair { site: setting.start(arm)?, counter, site_address, counter_address })
    }

    /// Runs an arm once in a scene: what it cost, what was welcomed and what was counted.
    ///
    /// # Errors
    /// When a program fails, or a visit was not welcomed.
    pub fn run(
        &self,
        scene: &Scene,
        rate: Option<f64>,
        seconds: f64,
        arm: Arm,
        repeat: u32,
    ) -> io::Result<Run> {
        let cores = &self.server_cores[..scene.cores];
        let pair = self.start(arm, cores, scene.counter_ms)?;
        let visit_for = |seconds: f64| {
            let arguments = load_arguments(scene, rate, pair.site.id(), seconds);
            let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
            self.other_side().visit(pair.site_address, &arguments)
        };
        let warmed = visit_for(WARM_UP_SECONDS)?;
        let (before, counter_before) = (pair.site.snapshot()?, pair.counter.snapshot()?);
        let heavy = match scene.pace {
            Pace::BesideHeavy => {
                let seconds = seconds.to_string();
                let asked = ["--path", "/heavy", "--connections", "2", "--seconds", &seconds];
                Some(self.other_side().send(pair.site_address, &asked)?)
            }
            _ => None,
        };
        let report = visit_for(seconds)?;
        let heavy = heavy.map(visitors::report).transpose()?;
        let usage = before.until(&pair.site.snapshot()?);
        let counter = counter_before.until(&pair.counter.snapshot()?);
        let both = |figure: fn(&Report) -> u64| figure(&report) + heavy.as_ref().map_or(0, figure);
        if both(|report| report.refused + report.failed) > 0 || report.visits == 0 {
            return Err(io::Error::other(format!("not every visit was welcomed: {report:?}")));
        }
        let share = |cpu_us: f64, cores: usize| cpu_us / (report.seconds * 1e6 * cores as f64);
        Ok(Run {
            scene: scene.name.clone(),
            arm,
            repeat,
            server_busy: share(usage.cpu_us, cores.len()),
            load_busy: share(
                counter.cpu_us + report.cpu_us + heavy.as_ref().map_or(0.0, |heavy| heavy.cpu_us),
                self.load_cores.len(),
            ),
            welcomed: warmed.visits
                + warmed.sounding_visits
                + both(|report| report.visits + report.sounding_visits),
            counted: visitors::total(pair.counter_address)?,
            calls: visitors::calls(pair.counter_address)?,
            usage,
            report,
            heavy,
        })
    }

    /// Memory of connections that have made one visit and stay open.
    ///
    /// # Errors
    /// When a program fails, or a visit was not welcomed.
    pub fn idle_memory(&self, arm: Arm, connections: u32) -> io::Result<Memory> {
        let pair = self.start(arm, &self.server_cores[..1], 0)?;
        let visit = || -> io::Result<TcpStream> {
            let stream = TcpStream::connect(pair.site_address)?;
            ask(&stream, "/")?;
            Ok(stream)
        };
        for _ in 0..100 {
            visit()?;
        }
        let settling_time = Duration::from_millis(700);
        pause(settling_time);
        let resident_before_bytes = pair.site.resident_bytes()?;
        let idle = (0..connections).map(|_| visit()).collect::<io::Result<Vec<_>>>()?;
        pause(settling_time);
        let resident_after_bytes = pair.site.resident_bytes()?;
        drop(idle);
        Ok(Memory { arm, connections, resident_before_bytes, resident_after_bytes })
    }

    /// Memory of visits that the counter has got and not answered, each on a connection of its own.
    ///
    /// # Errors
    /// When a program fails, a visit is not welcomed, or one is answered before the last has come to the counter.
    pub fn in_flight_memory(&self, arm: Arm, visits: u32) -> io::Result<Memory> {
        let pair = self.start(arm, &self.server_cores[..1], IN_FLIGHT_MS)?;
        ask(&TcpStream::connect(pair.site_address)?, "/")?;
        let resident_before_bytes = pair.site.resident_bytes()?;
        let first_answer = Instant::now() + Duration::from_millis(IN_FLIGHT_MS.into());
        let asking = |_| -> io::Result<TcpStream> {
            let stream = TcpStream::connect(pair.site_address)?;
            send_request(&stream, "/")?;
            Ok(stream)
        };
        let asked = (0..visits).map(asking).collect::<io::Result<Vec<_>>>()?;
        while visitors::calls(pair.counter_address)? <= u64::from(visits)
            && Instant::now() < first_answer
        {
            pause(Duration::from_millis(10));
        }
        let resident_after_bytes = pair.site.resident_bytes()?;
        if Instant::now() >= first_answer {
            return Err(io::Error::other("the first visit was answered before the last was sent"));
        }
        asked.iter().try_for_each(|stream| read_page(stream, "/").map(drop))?;
        Ok(Memory { arm, connections: visits, resident_before_bytes, resident_after_bytes })
    }

    /// The system calls of an arm, counted by perf(1), which does not slow it down; `None` where perf cannot be run.
    ///
    /// # Errors
    /// When a program fails.
    pub fn system_calls(&self, arm: Arm) -> io::Result<Option<SystemCalls>> {
        let pair = self.start(arm, &self.server_cores[..1], 0)?;
        self.other_side().visit(pair.site_address, &["--seconds", "0.5"])?;
        let ids: Vec<_> = pair.site.ids()?.iter().map(i32::to_string).collect();
        let file = self.scratch.path().join("perf");
        let load = self.other_side().command(pair.site_address, &["--seconds", "1"]);
        let mut counting = Command::new("perf");
        counting
            .args(["stat", "-x", ",", "-e", "raw_syscalls:sys_enter", "-p", &ids.join(",")])
            .arg("-o")
            .arg(&file)
            .arg("--")
            .arg(load.get_program())
            .args(load.get_args())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let Ok(counting) = spawn_on(&self.load_cores, &mut counting) else { return Ok(None) };
        let output = counting.wait_with_output()?;
        let text = fs::read_to_string(&file).unwrap_or_default();
        let calls = text.lines().find(|line| line.contains("sys_enter"));
        let calls = calls.and_then(|line| line.split(',').next()?.parse().ok());
        let report = serde_json::from_slice::<Report>(&output.stdout);
        let (Some(calls), Ok(report)) = (calls, report) else { return Ok(None) };
        let counter = String::from("perf stat -e raw_syscalls:sys_enter");
        Ok(Some(SystemCalls { arm, counter, calls, visits: report.visits }))
    }
}

/// The arguments of the visitors of a scene; `process` is the server's.
fn load_arguments(scene: &Scene, rate: Option<f64>, process: u32, seconds: f64) -> Vec<String> {
    let connections = [String::from("--connections"), scene.connections.to_string()];
    let pace = match scene.pace {
        Pace::Closed | Pace::BesideHeavy => None,
        Pace::Reconnect => Some(("--visits-per-connection", String::from("1"))),
        Pace::Open(..) => Some(("--rate", rate.unwrap_or_default().to_string())),
        Pace::Hot => Some(("--hot", process.to_string())),
    };
    let pace = pace.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
    let seconds = [String::from("--seconds"), seconds.to_string()];
    connections.into_iter().chain(pace).chain(seconds).collect()
}
