//! The arms side by side: each in turn, in rotating order, so that what else the machine does meets
//! all of them alike.

use std::{
    fs, io,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use clap::Args;
use tallyring_bench::load::Report;
use tempfile::TempDir;

use crate::{
    arms::{Arm, Setting},
    check, machine,
    machine::Environment,
    process::{Process, free_address, pause},
    record::{FILE, IdleMemory, Record, Run, SceneRecord, SystemCalls},
    render,
    scenes::{Capacity, MAIN, Pace, QUICK, Scene},
    statistics::Spread,
    visitors,
    visitors::OtherSide,
};

const ALL: [Arm; 9] = [
    Arm::Floor,
    Arm::Tallyring,
    Arm::TallyringEpoll,
    Arm::TokioPerCore,
    Arm::Hyper,
    Arm::Axum,
    Arm::Seed,
    Arm::Haproxy,
    Arm::Nginx,
];
const WARM_UP_SECONDS: f64 = 0.5;

/// What to compare, and how long.
#[derive(Debug, Args)]
pub struct CompareArguments {
    /// Arms to run; all that are installed by default
    #[arg(long, value_delimiter = ',')]
    arms: Vec<Arm>,
    /// Scenes to run; all that this machine has the cores for by default
    #[arg(long, value_delimiter = ',')]
    scenes: Vec<String>,
    /// A few scenes and short runs: about five minutes
    #[arg(long)]
    quick: bool,
    /// Times that each arm is run in each scene; 7 by default, 3 with --quick
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: Option<u32>,
    /// Seconds of each run; 1.5 by default, 1 with --quick
    #[arg(long)]
    seconds: Option<f64>,
    /// Cores of the server under test, like 0,1,2; one-core scenes use the first. By default the first
    /// half of all, or all two of two
    #[arg(long, value_delimiter = ',')]
    server_cores: Vec<usize>,
    /// Cores of the visitors and the counter; by default the other half, or the second of two
    #[arg(long, value_delimiter = ',')]
    load_cores: Vec<usize>,
    /// Idle connections whose memory is measured; 0 leaves that out
    #[arg(long, default_value_t = 10_000)]
    idle: u32,
    /// Directory of the programs, for a machine that cannot build them
    #[arg(long)]
    bin_dir: Option<PathBuf>,
    /// Directory for the results; a new one below bench/runs by default
    #[arg(long)]
    out: Option<PathBuf>,
    /// Draw the summary and the charts of a run anew from its raw figures, and run nothing
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "check")]
    render: Option<PathBuf>,
    /// Compare tallyring's ratios to floor and axum with those of a recorded run, and fail if they
    /// have become worse by more than the noise
    #[arg(long, value_name = "DIRECTORY")]
    #[allow(clippy::option_option)]
    check: Option<Option<PathBuf>>,
}

/// Runs the arms, and keeps and prints what they cost.
///
/// # Errors
/// When a program is missing or fails, or a check does.
pub fn compare(arguments: &CompareArguments) -> io::Result<()> {
    if let Some(directory) = &arguments.render {
        return render::write(directory, &Record::read(directory)?);
    }
    let baseline = match &arguments.check {
        Some(directory) => Some(check::baseline(directory.as_deref(), &Environment::slug_here())?),
        None => None,
    };
    let mut bench = Bench::new(arguments, baseline.is_some())?;
    let record = bench.measure()?;
    if let Some(baseline) = baseline {
        return check::check(&record, &baseline);
    }
    let name = format!("{}-{}", record.environment.day(), record.environment.slug());
    let directory = machine::run_directory(arguments.out.as_deref(), &name)?;
    fs::write(directory.join(FILE), serde_json::to_string_pretty(&record)? + "\n")?;
    render::write(&directory, &record)?;
    print!("\n{}", fs::read_to_string(directory.join("summary.md"))?);
    println!("\nkept in {}", directory.display());
    Ok(())
}

struct Bench {
    programs: PathBuf,
    scratch: TempDir,
    arms: Vec<Arm>,
    scenes: Vec<Scene>,
    repeats: u32,
    seconds: f64,
    idle: u32,
    server_cores: Vec<usize>,
    load_cores: Vec<usize>,
    /// For runs at a constant rate: what the arms that they rest on can do, in visits a second.
    capacities: Vec<(Arm, f64)>,
}

/// A server and its counter.
struct Pair {
    site: Process,
    counter: Process,
    site_address: SocketAddr,
    counter_address: SocketAddr,
}

impl Bench {
    fn new(arguments: &CompareArguments, is_check: bool) -> io::Result<Self> {
        let cores = std::thread::available_parallelism()?.get();
        let half = cores / 2;
        let or = |given: &[usize], default: std::ops::Range<usize>| match given {
            [] => default.collect(),
            given => given.to_vec(),
        };
        let server_cores = or(&arguments.server_cores, 0..if cores > 2 { half } else { cores });
        let load_cores = or(&arguments.load_cores, if cores > 1 { half..cores } else { 0..1 });
        let mut scenes = chosen(Scene::all(server_cores.len()), arguments, is_check)?;
        let mut arms = match arguments.arms.as_slice() {
            [] if is_check => vec![Arm::Floor, Arm::Tallyring, Arm::TallyringEpoll, Arm::Axum],
            [] => ALL.to_vec(),
            given => given.to_vec(),
        };
        arms.retain(|arm| {
            let is_installed = arm.is_installed();
            if !is_installed {
                println!("{} is not installed, and left out", arm.name());
            }
            is_installed
        });
        scenes.retain(|scene| {
            let is_possible = scene.is_possible(&arms);
            if !is_possible {
                println!("{} needs an arm that is not run, and is left out", scene.name);
            }
            is_possible
        });
        let programs = machine::programs(arguments.bin_dir.as_deref())?;
        machine::raise_file_limit()?;
        Ok(Self {
            programs,
            scratch: tempfile::tempdir()?,
            arms,
            scenes,
            repeats: arguments.repeats.unwrap_or(if arguments.quick { 3 } else { 7 }),
            seconds: arguments.seconds.unwrap_or(if arguments.quick { 1.0 } else { 1.5 }),
            idle: if is_check { 0 } else { arguments.idle },
            server_cores,
            load_cores,
            capacities: Vec::new(),
        })
    }

    fn measure(&mut self) -> io::Result<Record> {
        let environment = Environment::look();
        print!("{}", environment.describe());
        let mut record = Record {
            format: 2,
            environment,
            load_alone_per_second: self.load_alone()?,
            arms: self.arms.clone(),
            scenes: Vec::new(),
            runs: Vec::new(),
            failures: Vec::new(),
            idle: Vec::new(),
            calls: Vec::new(),
        };
        self.capacities = self.capacities()?;
        let scenes = self.scenes.clone();
        record.scenes = scenes.iter().map(|scene| self.describe(scene)).collect();
        let plan: Vec<_> = (0..self.repeats)
            .flat_map(|repeat| scenes.iter().map(move |scene| (repeat, scene)))
            .flat_map(|(repeat, scene)| {
                let mut arms = self.arms.clone();
                arms.rotate_left(repeat as usize % self.arms.len().max(1));
                arms.into_iter().map(move |arm| (repeat, scene, arm))
            })
            .filter(|(_, scene, arm)| scene.suits(*arm))
            .collect();
        let began = Instant::now();
        for (done, (repeat, scene, arm)) in plan.iter().enumerate() {
            let run = match self.run(scene, *arm, *repeat) {
                Ok(run) => run,
                Err(error) => {
                    let failure = format!("{} in {}: {error}", arm.name(), scene.name);
                    println!("{:>4}/{} FAILED: {failure}", done + 1, plan.len());
                    record.failures.push(failure);
                    continue;
                }
            };
            let left =
                began.elapsed().as_secs_f64() / (done + 1) as f64 * (plan.len() - done - 1) as f64;
            println!(
                "{:>4}/{} {:<18} {:<16} {:>7.2} µs a visit, p99 {:>8.0} µs; {:.0} min {:02.0} s left",
                done + 1,
                plan.len(),
                scene.name,
                arm.name(),
                run.cpu_us(),
                run.report.p99_us,
                (left / 60.0).floor(),
                (left % 60.0).floor()
            );
            record.runs.push(run);
        }
        if self.idle > 0 {
            println!("memory of idle connections, and system calls");
            for arm in self.arms.clone() {
                if arm != Arm::Floor {
                    record.idle.push(self.idle_memory(arm)?);
                }
                record.calls.extend(self.system_calls(arm)?);
            }
        }
        Ok(record)
    }

    fn describe(&self, scene: &Scene) -> SceneRecord {
        SceneRecord {
            name: scene.name.clone(),
            about: scene.about.clone(),
            connections: scene.connections,
            rate: self.rate(scene),
            server_cores: self.server_cores[..scene.cores].to_vec(),
            load_cores: self.load_cores.clone(),
        }
    }

    fn rate(&self, scene: &Scene) -> Option<f64> {
        match scene.pace {
            Pace::Open(share, capacity) => Some((self.capacity(capacity) * share).round()),
            _ => None,
        }
    }

    fn capacity(&self, whose: Capacity) -> f64 {
        let those = self.capacities.iter().filter(|(arm, _)| whose.rests_on(*arm));
        those.map(|(_, capacity)| *capacity).fold(f64::INFINITY, f64::min)
    }

    /// Exchanges a second when the visitors talk to the counter itself: far more than any arm's, or
    /// the load is what is measured.
    fn load_alone(&self) -> io::Result<f64> {
        let (_counter, address) = self.other_side().counter(0)?;
        let report = self.other_side().visit(address, &["--seconds", "1"])?;
        Ok((report.visits + report.refused) as f64 / report.seconds)
    }

    /// Visits a second in the main scene, of each arm that the rate of a scene rests on.
    fn capacities(&self) -> io::Result<Vec<(Arm, f64)>> {
        let is_asked = |arm: Arm| {
            self.scenes.iter().any(
                |scene| matches!(scene.pace, Pace::Open(_, capacity) if capacity.rests_on(arm)),
            )
        };
        let measure = |arm: Arm| {
            let pair = self.start(arm, &self.server_cores[..1], 0)?;
            let rate = |_| {
                let report = self.other_side().visit(pair.site_address, &["--seconds", "1"])?;
                Ok(report.visits as f64 / report.seconds)
            };
            // One second may be one in which the machine did something else.
            let rates = (0..3).map(rate).collect::<io::Result<_>>()?;
            Ok((arm, Spread::of(rates).median))
        };
        self.arms.iter().copied().filter(|arm| is_asked(*arm)).map(measure).collect()
    }

    fn other_side(&self) -> OtherSide<'_> {
        OtherSide { programs: &self.programs, cores: &self.load_cores }
    }

    fn start(&self, arm: Arm, cores: &[usize], counter_ms: u32) -> io::Result<Pair> {
        let site_address = free_address()?;
        let (counter, counter_address) = self.other_side().counter(counter_ms)?;
        let setting = Setting {
            programs: &self.programs,
            scratch: self.scratch.path(),
            cores,
            site: site_address,
            counter: counter_address,
        };
        Ok(Pair { site: setting.start(arm)?, counter, site_address, counter_address })
    }

    fn run(&self, scene: &Scene, arm: Arm, repeat: u32) -> io::Result<Run> {
        let cores = &self.server_cores[..scene.cores];
        let pair = self.start(arm, cores, scene.counter_ms)?;
        let (connections, process) = (scene.connections.to_string(), pair.site.id().to_string());
        let mut arguments = vec!["--connections", &connections];
        let rate = self.rate(scene).unwrap_or_default().to_string();
        match scene.pace {
            Pace::Closed | Pace::BesideHeavy => {}
            Pace::Reconnect => arguments.extend(["--visits-per-connection", "1"]),
            Pace::Open(..) => arguments.extend(["--rate", &rate]),
            Pace::Hot => arguments.extend(["--hot", &process]),
        }
        let warm_up = WARM_UP_SECONDS.to_string();
        let warmed = self
            .other_side()
            .visit(pair.site_address, &[&arguments[..], &["--seconds", &warm_up]].concat())?;
        let (before, counter_before) = (pair.site.snapshot()?, pair.counter.snapshot()?);
        let seconds = self.seconds.to_string();
        arguments.extend(["--seconds", &seconds]);
        let heavy = match scene.pace {
            Pace::BesideHeavy => {
                let asked = ["--path", "/heavy", "--connections", "2", "--seconds", &seconds];
                Some(self.other_side().command(pair.site_address, &asked).spawn()?)
            }
            _ => None,
        };
        let report = self.other_side().visit(pair.site_address, &arguments)?;
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
            usage,
            report,
            heavy,
        })
    }

    /// What connections cost that made one visit and are kept open.
    fn idle_memory(&self, arm: Arm) -> io::Result<IdleMemory> {
        let pair = self.start(arm, &self.server_cores[..1], 0)?;
        let visit = || -> io::Result<TcpStream> {
            let mut stream = TcpStream::connect(pair.site_address)?;
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
        let rest = Duration::from_millis(700);
        pause(rest);
        let resident_before_bytes = pair.site.resident_bytes()?;
        let idle = (0..self.idle).map(|_| visit()).collect::<io::Result<Vec<_>>>()?;
        pause(rest);
        let resident_after_bytes = pair.site.resident_bytes()?;
        drop(idle);
        Ok(IdleMemory { arm, connections: self.idle, resident_before_bytes, resident_after_bytes })
    }

    /// Counted by perf(1), which slows nothing down; `None` where it cannot be run.
    fn system_calls(&self, arm: Arm) -> io::Result<Option<SystemCalls>> {
        let pair = self.start(arm, &self.server_cores[..1], 0)?;
        self.other_side().visit(pair.site_address, &["--seconds", "0.5"])?;
        let ids: Vec<_> = pair.site.ids().iter().map(u32::to_string).collect();
        let file = self.scratch.path().join("perf");
        let load = self.other_side().command(pair.site_address, &["--seconds", "1"]);
        let counted = Command::new("perf")
            .args(["stat", "-x", ",", "-e", "raw_syscalls:sys_enter", "-p", &ids.join(",")])
            .arg("-o")
            .arg(&file)
            .arg("--")
            .arg(load.get_program())
            .args(load.get_args())
            .stdin(Stdio::null())
            .output();
        let Ok(output) = counted else { return Ok(None) };
        let text = fs::read_to_string(&file).unwrap_or_default();
        let calls = text.lines().find(|line| line.contains("sys_enter"));
        let calls = calls.and_then(|line| line.split(',').next()?.parse().ok());
        let report = serde_json::from_slice::<Report>(&output.stdout);
        let (Some(calls), Ok(report)) = (calls, report) else { return Ok(None) };
        let counter = String::from("perf stat -e raw_syscalls:sys_enter");
        Ok(Some(SystemCalls { arm, counter, calls, visits: report.visits }))
    }
}

fn chosen(all: Vec<Scene>, arguments: &CompareArguments, is_check: bool) -> io::Result<Vec<Scene>> {
    let names: Vec<_> = all.iter().map(|scene| scene.name.clone()).collect();
    if let Some(unknown) = arguments.scenes.iter().find(|name| !names.contains(name)) {
        let names = names.join(", ");
        return Err(io::Error::other(format!(
            "there is no scene {unknown} here; there are {names}"
        )));
    }
    let is_chosen = |scene: &Scene| match arguments.scenes.as_slice() {
        [] if is_check => scene.name == MAIN,
        [] if arguments.quick => QUICK.contains(&scene.name.as_str()),
        [] => true,
        given => given.contains(&scene.name),
    };
    Ok(all.into_iter().filter(is_chosen).collect())
}
