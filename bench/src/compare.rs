//! The arms side by side: each in turn, in rotating order, so that what else the machine does meets
//! all of them alike.

use std::{fs, io, path::PathBuf, time::Instant};

use clap::Args;

use crate::{
    arms::Arm,
    check, machine,
    machine::Environment,
    place::Place,
    record::{FILE, Record, SceneRecord},
    render,
    scenes::{Capacity, MAIN, Pace, QUICK, Scene},
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
    place: Place,
    arms: Vec<Arm>,
    scenes: Vec<Scene>,
    repeats: u32,
    seconds: f64,
    idle: u32,
    /// For runs at a constant rate: what the arms that they rest on can do, in visits a second.
    capacities: Vec<(Arm, f64)>,
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
            place: Place { programs, scratch: tempfile::tempdir()?, server_cores, load_cores },
            arms,
            scenes,
            repeats: arguments.repeats.unwrap_or(if arguments.quick { 3 } else { 7 }),
            seconds: arguments.seconds.unwrap_or(if arguments.quick { 1.0 } else { 1.5 }),
            idle: if is_check { 0 } else { arguments.idle },
            capacities: Vec::new(),
        })
    }

    fn measure(&mut self) -> io::Result<Record> {
        let environment = Environment::look();
        print!("{}", environment.describe());
        let mut record = Record {
            format: 2,
            environment,
            load_alone_per_second: self.place.load_alone()?,
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
            let run = match self.place.run(scene, self.rate(scene), self.seconds, *arm, *repeat) {
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
                    record.idle.push(self.place.idle_memory(arm, self.idle)?);
                }
                record.calls.extend(self.place.system_calls(arm)?);
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
            server_cores: self.place.server_cores[..scene.cores].to_vec(),
            load_cores: self.place.load_cores.clone(),
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

    /// Visits a second in the main scene, of each arm that the rate of a scene rests on.
    fn capacities(&self) -> io::Result<Vec<(Arm, f64)>> {
        let is_asked = |arm: Arm| {
            self.scenes.iter().any(
                |scene| matches!(scene.pace, Pace::Open(_, capacity) if capacity.rests_on(arm)),
            )
        };
        let measure = |arm: Arm| Ok((arm, self.place.capacity(arm)?));
        self.arms.iter().copied().filter(|arm| is_asked(*arm)).map(measure).collect()
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
