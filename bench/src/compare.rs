//! Compares the arms: each in turn, in rotating order, so that other work on the machine affects all alike.

use std::{io, path::PathBuf, time::Instant};

use clap::Args;

use crate::{
    arms::{ALL, Arm, list},
    check,
    machine::{Common, Environment},
    place::Place,
    process::own_cores,
    record::{FILE, Record, Run, SceneRecord},
    render,
    scenes::{Capacity, MAIN, Pace, QUICK, Scene},
    terminal::say,
};

/// Visits in flight whose memory is measured: those of the scene with the slowest counter.
const IN_FLIGHT_MAX: u32 = 4096;

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
    /// Seconds of each run; 1.5 by default, 0.8 with --quick
    #[arg(long, value_parser = seconds)]
    seconds: Option<f64>,
    /// Cores of the server under test, like 0,1,2; one-core scenes use the first. By default the first
    /// half of all, or all two of two
    #[arg(long, value_delimiter = ',')]
    server_cores: Vec<usize>,
    /// Cores of the visitors and the counter; by default the other half, or the second of two
    #[arg(long, value_delimiter = ',')]
    load_cores: Vec<usize>,
    /// Idle connections whose memory is measured, 10,000 by default, 2,000 with --quick, and of as many visits in
    /// flight, 4,096 at most; 0 leaves that out
    #[arg(long)]
    idle: Option<u32>,
    /// Draw the summary and the charts of a run again from its raw figures, and run nothing
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "check")]
    render: Option<PathBuf>,
    /// Compare tallyring's ratios to floor and axum-tuned, and those of the other floors to floor, with
    /// those of a recorded run, and fail if they have become worse by more than the noise
    #[arg(long, value_name = "DIRECTORY")]
    #[allow(clippy::option_option)]
    check: Option<Option<PathBuf>>,
    #[command(flatten)]
    common: Common,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err(String::from("must be a number of seconds from 0.1 to 3600")),
    }
}

/// Runs the arms, prints what they cost, and keeps the figures.
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
    let mut files = vec![(FILE, record.to_lines()?)];
    files.extend(render::files(&record));
    let name = format!("{}-{}", record.environment.day(), record.environment.slug());
    let kept = arguments.common.keep(&name, &files)?;
    say(&format!("\n{}", render::in_short(&record)))?;
    say(&kept)
}

struct Bench {
    place: Place,
    arms: Vec<Arm>,
    scenes: Vec<Scene>,
    repeats: u32,
    seconds: f64,
    idle: u32,
    /// For runs at a constant rate: visits a second that the arms can do on which the rate depends.
    capacities: Vec<(Arm, f64)>,
}

impl Bench {
    /// Checks the arguments before the programs are built.
    fn new(arguments: &CompareArguments, is_check: bool) -> io::Result<Self> {
        let own = own_cores()?;
        let half = own.len() / 2;
        let first = if own.len() > 2 { &own[..half] } else { &own[..] };
        let server_cores = cores("--server-cores", &arguments.server_cores, first, &own)?;
        let load_cores = cores("--load-cores", &arguments.load_cores, &own[half..], &own)?;
        let mut scenes = chosen(Scene::all(server_cores.len()), arguments, is_check)?;
        let mut arms = match arguments.arms.as_slice() {
            [] if is_check => check::ARMS.to_vec(),
            [] => ALL.to_vec(),
            given => given.to_vec(),
        };
        for arm in arms.extract_if(.., |arm| !arm.is_installed()) {
            say(&format!("{} is not installed, and left out", arm.name()))?;
        }
        for scene in scenes.extract_if(.., |scene| !scene.is_possible(&arms)) {
            say(&format!("{} needs an arm that is not run, and is left out", scene.name))?;
        }
        let programs = arguments.common.programs()?;
        let (repeats, seconds, idle) =
            if arguments.quick { (3, 0.8, 2000) } else { (7, 1.5, 10_000) };
        Ok(Self {
            place: Place { programs, scratch: tempfile::tempdir()?, server_cores, load_cores },
            arms,
            scenes,
            repeats: arguments.repeats.unwrap_or(repeats),
            seconds: arguments.seconds.unwrap_or(seconds),
            idle: if is_check { 0 } else { arguments.idle.unwrap_or(idle) },
            capacities: Vec::new(),
        })
    }

    fn measure(&mut self) -> io::Result<Record> {
        let environment = Environment::look();
        say(environment.describe().trim_end())?;
        say("visitors and counter alone")?;
        let mut record = Record {
            format: 3,
            environment,
            load_alone_per_second: self.place.load_alone()?,
            arms: self.arms.clone(),
            scenes: Vec::new(),
            failures: Vec::new(),
            idle: Vec::new(),
            in_flight: Vec::new(),
            calls: Vec::new(),
            runs: Vec::new(),
        };
        self.capacities = self.capacities()?;
        record.scenes = self.scenes.iter().map(|scene| self.describe(scene)).collect();
        let plan = self.plan();
        let began = Instant::now();
        for (done, (repeat, scene, arm)) in plan.iter().enumerate() {
            let place = format!("{:>4}/{}", done + 1, plan.len());
            match self.place.run(scene, self.rate(scene), self.seconds, *arm, *repeat) {
                Ok(run) => {
                    let each = began.elapsed().as_secs_f64() / (done + 1) as f64;
                    let left = each * (plan.len() - done - 1) as f64;
                    say(&format!("{place} {}", progress(&run, left)))?;
                    record.runs.push(run);
                }
                Err(error) => {
                    let failure = format!("{} in {}: {error}", arm.name(), scene.name);
                    say(&format!("{place} FAILED: {failure}"))?;
                    record.failures.push(failure);
                }
            }
        }
        self.measure_apart(&mut record)?;
        Ok(record)
    }

    /// Each arm in each scene, once in each repeat, in rotating order.
    fn plan(&self) -> Vec<(u32, &Scene, Arm)> {
        let mut plan = Vec::new();
        for repeat in 0..self.repeats {
            for scene in &self.scenes {
                let mut arms = self.arms.clone();
                arms.rotate_left(repeat as usize % self.arms.len().max(1));
                let suited = arms.into_iter().filter(|arm| scene.suits(*arm));
                plan.extend(suited.map(|arm| (repeat, scene, arm)));
            }
        }
        plan
    }

    /// Memory of idle connections and of visits in flight, and system calls, in separate runs.
    fn measure_apart(&self, record: &mut Record) -> io::Result<()> {
        if self.idle == 0 {
            return Ok(());
        }
        for arm in &self.arms {
            say(&format!(
                "memory of {} idle connections and of visits in flight, and system calls: {}",
                self.idle,
                arm.name()
            ))?;
            // The floors have no buffers for each connection, only those of the ring.
            if !arm.is_floor() {
                record.idle.push(self.place.idle_memory(*arm, self.idle)?);
            }
            if arm.has_call_for_each_visit() && !arm.is_floor() {
                let visits = self.idle.min(IN_FLIGHT_MAX);
                match self.place.in_flight_memory(*arm, visits) {
                    Ok(memory) => record.in_flight.push(memory),
                    Err(error) => record.failures.push(format!(
                        "memory of {visits} visits in flight of {}: {error}",
                        arm.name()
                    )),
                }
            }
            record.calls.extend(self.place.system_calls(*arm)?);
        }
        Ok(())
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

    fn capacity(&self, of: Capacity) -> f64 {
        let those = self.capacities.iter().filter(|(arm, _)| of.depends_on(*arm));
        those.map(|(_, capacity)| *capacity).fold(f64::INFINITY, f64::min)
    }

    /// Visits a second in the main scene, for each arm that the rate of a scene depends on.
    fn capacities(&self) -> io::Result<Vec<(Arm, f64)>> {
        let is_needed = |arm: Arm| {
            self.scenes.iter().any(
                |scene| matches!(scene.pace, Pace::Open(_, capacity) if capacity.depends_on(arm)),
            )
        };
        let measure = |arm: Arm| {
            let capacity = self.place.capacity(arm)?;
            say(&format!("{:<16} can do {capacity:>7.0} visits a second", arm.name()))?;
            Ok((arm, capacity))
        };
        self.arms.iter().copied().filter(|arm| is_needed(*arm)).map(measure).collect()
    }
}

/// The result of a run, and how long the rest takes.
fn progress(run: &Run, left_seconds: f64) -> String {
    format!(
        "{:<18} {:<16} {:>7.2} µs a visit, p99 {:>8.0} µs; {:.0} min {:02.0} s left",
        run.scene,
        run.arm.name(),
        run.cpu_us(),
        run.report.p99_us,
        (left_seconds / 60.0).floor(),
        (left_seconds % 60.0).floor()
    )
}

/// The given cores, or the default; each must be one of `own`, and none may be there twice.
fn cores(flag: &str, given: &[usize], default: &[usize], own: &[usize]) -> io::Result<Vec<usize>> {
    let cores = if given.is_empty() { default } else { given };
    for (index, core) in cores.iter().enumerate() {
        let problem = match own.contains(core) {
            false => format!("there is no core {core} here; there are {}", list(own)),
            true if cores[..index].contains(core) => format!("core {core} is named twice"),
            true => continue,
        };
        return Err(io::Error::other(format!("{flag} {}: {problem}", list(cores))));
    }
    Ok(cores.to_vec())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(given: &[usize], expected: Result<&[usize], &str>) {
        let cores = cores("--server-cores", given, &[0, 1], &[0, 1, 4]);
        let cores = cores.map_err(|error| error.to_string());
        assert_eq!(cores.as_deref().map_err(String::as_str), expected);
    }

    #[test]
    fn cores_are_those_of_this_machine() {
        check(&[], Ok(&[0, 1]));
        check(&[4, 0], Ok(&[4, 0]));
        check(&[2], Err("--server-cores 2: there is no core 2 here; there are 0,1,4"));
        check(
            &[0, 70_000],
            Err("--server-cores 0,70000: there is no core 70000 here; there are 0,1,4"),
        );
        check(&[4, 4], Err("--server-cores 4,4: core 4 is named twice"));
    }

    #[test]
    fn a_run_takes_some_time() {
        assert_eq!(seconds("0.5"), Ok(0.5));
        for wrong in ["0", "-1", "NaN", "inf", "soon"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
