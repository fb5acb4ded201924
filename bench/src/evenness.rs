//! How evenly a server's threads are busy: connections that the kernel's hash gives to workers, that workers hand over,
//! or whose visits idle threads steal. Measured, where `balance` simulates.
//!
//! The server has all cores, and so do its visitors and its counter, with a thread for each core and pinned to none: so
//! they take as much from each worker. What a thread did is its CPU time, whoever else used its core meanwhile.

use std::{
    fs,
    io::{self, Error},
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use tallyring_bench::load::Report;
use tempfile::TempDir;

use crate::{
    arms::{Arm, Setting},
    machine::{Common, Environment},
    process::{Process, Usage, free_address, own_cores},
    record::{lines, read_lines},
    statistics::Spread,
    terminal::say,
    visitors::{self, OtherSide},
};

/// The file of the raw figures: a line of JSON about the whole, then one for each run.
const FILE: &str = "evenness.jsonl";
const WARM_UP_SECONDS: &str = "0.2";

/// What to measure, and how long.
#[derive(Debug, Args)]
pub struct EvennessArguments {
    /// Scenes to run; all by default
    #[arg(long, value_delimiter = ',')]
    scenes: Vec<Scene>,
    /// Times that each is measured; the server is started anew each time, so that its connections are placed anew
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    repeats: u32,
    /// Seconds of each run
    #[arg(long, default_value_t = 1.5, value_parser = seconds)]
    seconds: f64,
    /// Write the summary of a run again from its raw figures, and run nothing
    #[arg(long, value_name = "DIRECTORY")]
    render: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.5..=60.0).contains(&seconds) => Ok(seconds),
        _ => Err(String::from("must be a number of seconds from 0.5 to 60")),
    }
}

/// Who comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Scene {
    /// Four connections in a closed loop
    #[value(name = "hot-4")]
    #[serde(rename = "hot-4")]
    Hot4,
    /// Eight
    #[value(name = "hot-8")]
    #[serde(rename = "hot-8")]
    Hot8,
    /// Sixty-four
    #[value(name = "hot-64")]
    #[serde(rename = "hot-64")]
    Hot64,
    /// Four that one worker has at first, where connections have one
    OneWorker,
    /// Sixty-four visitors, each visit on a connection of its own
    Churn,
    /// Sixty-four visitors, and one that asks for a page of megabytes
    HeavyPage,
}

impl Scene {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    fn about(self) -> &'static str {
        match self {
            Self::Hot4 => "4 connections in a closed loop",
            Self::Hot8 => "8",
            Self::Hot64 => "64",
            Self::OneWorker => "4, all of one worker at first",
            Self::Churn => "64 visitors, a connection for each visit",
            Self::HeavyPage => "64, beside one of a page of 4 MiB",
        }
    }

    fn arguments(self, site: &Process) -> Vec<String> {
        let (connections, more) = match self {
            Self::Hot4 => ("4", None),
            Self::Hot8 => ("8", None),
            Self::Hot64 | Self::HeavyPage => ("64", None),
            Self::OneWorker => ("4", Some(("--hot", site.id().to_string()))),
            Self::Churn => ("64", Some(("--visits-per-connection", String::from("1")))),
        };
        let more = more.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
        [String::from("--connections"), connections.to_owned()].into_iter().chain(more).collect()
    }
}

/// Who decides which thread serves a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Way {
    /// `tallyring --balance kernel`
    Kernel,
    /// `tallyring --balance handoff`
    Handoff,
    /// axum on tokio's work-stealing scheduler
    Stealing,
}

impl Way {
    const ALL: [Self; 3] = [Self::Kernel, Self::Handoff, Self::Stealing];

    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Run {
    scene: Scene,
    way: Way,
    repeat: u32,
    report: Report,
    /// What the visitor of the heavy page saw.
    heavy: Option<Report>,
    usage: Usage,
    welcomed: u64,
    counted: u64,
}

impl Run {
    /// The busiest thread's part of the server's CPU time.
    fn busiest(&self) -> f64 {
        self.usage.busiest_thread_us / self.usage.cpu_us.max(1.0)
    }

    fn rate(&self) -> f64 {
        self.report.visits as f64 / self.report.seconds
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    environment: Environment,
    seconds: f64,
    #[serde(skip)]
    runs: Vec<Run>,
}

/// Runs all in rotating order, prints the table, and keeps the figures.
///
/// # Errors
/// When a program fails, or a visit was not welcomed.
pub fn evenness(arguments: &EvennessArguments) -> io::Result<()> {
    if let Some(directory) = &arguments.render {
        return fs::write(directory.join("summary.md"), Record::read(directory)?.summary());
    }
    let cores = own_cores()?;
    if cores.len() < 2 {
        return Err(Error::other("with one core there is nothing to spread"));
    }
    let stage =
        Stage { programs: arguments.common.programs()?, scratch: tempfile::tempdir()?, cores };
    let scenes = match arguments.scenes.as_slice() {
        [] => Scene::value_variants(),
        given => given,
    };
    let (environment, seconds) = (Environment::look(), arguments.seconds);
    let mut record = Record { environment, seconds, runs: Vec::new() };
    for repeat in 0..arguments.repeats {
        for scene in scenes {
            for turn in 0..Way::ALL.len() {
                let way = Way::ALL[(turn + repeat as usize) % Way::ALL.len()];
                let named =
                    |error| Error::other(format!("{}, {}: {error}", scene.name(), way.name()));
                let run = stage.run(*scene, way, repeat, seconds).map_err(named)?;
                say(&format!(
                    "{:>3} {:<11} {:<9} busiest {:>3.0} %  {:>6.0} visits/s  p99 {:>6.0} µs",
                    repeat + 1,
                    scene.name(),
                    way.name(),
                    run.busiest() * 100.0,
                    run.rate(),
                    run.report.p99_us
                ))?;
                record.runs.push(run);
            }
        }
    }
    let summary = record.summary();
    let name = format!("{}-evenness", record.environment.day());
    let files = [(FILE, lines(&record, &record.runs)?), ("summary.md", summary.clone())];
    let kept = arguments.common.keep(&name, &files)?;
    say(&format!("\n{summary}\n{kept}"))
}

struct Stage {
    programs: PathBuf,
    scratch: TempDir,
    cores: Vec<usize>,
}

impl Stage {
    fn run(&self, scene: Scene, way: Way, repeat: u32, seconds: f64) -> io::Result<Run> {
        let others = OtherSide { programs: &self.programs, cores: &self.cores };
        let (_counter, counter) = others.counter(0)?;
        let setting = Setting {
            programs: &self.programs,
            scratch: self.scratch.path(),
            cores: &self.cores,
            site: free_address()?,
            counter,
        };
        let site = match way {
            Way::Kernel | Way::Handoff => setting.start_balanced(&way.name())?,
            Way::Stealing => setting.start(Arm::Axum)?,
        };
        let visit = |arguments: &[String], seconds: &str| {
            let timed = ["--seconds", seconds].map(String::from);
            let all: Vec<_> = arguments.iter().chain(&timed).map(String::as_str).collect();
            others.send(setting.site, &all)
        };
        let warmed = visitors::report(visit(&[], WARM_UP_SECONDS)?)?;
        let before = site.snapshot()?;
        let seconds = seconds.to_string();
        let heavy = match scene {
            Scene::HeavyPage => {
                let asked = ["--path", "/heavy", "--connections", "1"].map(String::from);
                Some(visit(&asked, &seconds)?)
            }
            _ => None,
        };
        let report = visitors::report(visit(&scene.arguments(&site), &seconds)?)?;
        let heavy = heavy.map(visitors::report).transpose()?;
        let usage = before.until(&site.snapshot()?);
        let welcomed = |report: &Report| report.visits + report.sounding_visits;
        let all = [Some(&warmed), Some(&report), heavy.as_ref()];
        let all: Vec<&Report> = all.into_iter().flatten().collect();
        if all.iter().any(|report| report.refused + report.failed > 0 || report.visits == 0) {
            return Err(Error::other(format!("not every visit was welcomed: {all:?}")));
        }
        let welcomed = all.into_iter().map(welcomed).sum();
        let counted = visitors::total(counter)?;
        Ok(Run { scene, way, repeat, report, heavy, usage, welcomed, counted })
    }
}

impl Record {
    fn read(directory: &Path) -> io::Result<Self> {
        let (record, runs) = read_lines(&directory.join(FILE))?;
        Ok(Self { runs, ..record })
    }

    fn summary(&self) -> String {
        let repeats = self.runs.iter().map(|run| run.repeat + 1).max().unwrap_or(0);
        let cores = self.environment.cores;
        let mut text = self.environment.describe();
        text += &format!(
            "\nThe server, its visitors and its counter share all {cores} cores. *Busiest* is the part of the server's CPU \
             time that its busiest thread used (even: {:.0} %), with the range in brackets. Medians of {repeats} runs of \
             {} s in rotating order, each with a server that was started anew.\n\n",
            100.0 / cores.max(1) as f64,
            self.seconds
        );
        text += &table(&self.runs);
        let exact = self.runs.iter().filter(|run| run.welcomed == run.counted).count();
        text += &format!(
            "\nIn {exact} of {} runs the counter counted exactly the visits that were welcomed.\n",
            self.runs.len()
        );
        text
    }
}

/// A row for each scene; a cell for each way to balance.
fn table(runs: &[Run]) -> String {
    let columns = |what: &str| Way::ALL.map(|way| format!("{what}: {} |", way.name())).join(" ");
    let mut text = format!(
        "| visitors | {} {} {} {}\n|{}\n",
        columns("busiest"),
        columns("visits/s"),
        columns("p99 µs"),
        columns("CPU µs a visit"),
        " --- |".repeat(1 + 4 * Way::ALL.len())
    );
    for scene in Scene::value_variants() {
        let of = |way: Way, figure: fn(&Run) -> f64| {
            let those = runs.iter().filter(|run| (run.scene, run.way) == (*scene, way));
            Spread::of(those.map(figure).collect())
        };
        if of(Way::Kernel, Run::rate).median.is_nan() {
            continue;
        }
        let cells =
            |cell: &dyn Fn(Way) -> String| Way::ALL.map(|way| format!("{} |", cell(way))).join(" ");
        let busiest = cells(&|way| {
            let Spread { least, median, most, .. } = of(way, |run| run.busiest() * 100.0);
            format!("{median:.0} % ({least:.0}–{most:.0})")
        });
        let rates = cells(&|way| format!("{:.0}", of(way, Run::rate).median));
        let waits = cells(&|way| format!("{:.0}", of(way, |run| run.report.p99_us).median));
        let costs = cells(&|way| {
            let cost = |run: &Run| {
                let heavy = run.heavy.as_ref().map_or(0, |heavy| heavy.visits);
                run.usage.cpu_us / (run.report.visits + run.report.sounding_visits + heavy) as f64
            };
            format!("{:.1}", of(way, cost).median)
        });
        text += &format!("| {} | {busiest} {rates} {waits} {costs}\n", scene.about());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::model::{Policy, Size, generator, place};

    fn run(way: Way, repeat: u32, busiest: f64) -> Run {
        Run {
            scene: Scene::Hot4,
            way,
            repeat,
            report: Report { visits: 10, seconds: 2.0, p99_us: 70.0, ..Report::default() },
            heavy: None,
            usage: Usage { cpu_us: 100.0, busiest_thread_us: busiest, ..Usage::default() },
            welcomed: 10,
            counted: 10,
        }
    }

    #[test]
    fn a_row_has_medians_and_ranges_of_each_way() {
        let runs = [70.0, 50.0, 95.0].into_iter().zip(0..);
        let mut runs: Vec<_> =
            runs.map(|(busiest, repeat)| run(Way::Kernel, repeat, busiest)).collect();
        runs.push(run(Way::Handoff, 0, 51.0));
        runs.push(run(Way::Stealing, 0, 53.0));
        let text = table(&runs);
        assert_eq!(text.lines().count(), 3, "{text}");
        let row = "| 4 connections in a closed loop | 70 % (50–95) | 51 % (51–51) | 53 % (53–53) | 5 | 5 | 5 | 70 | 70 | 70 | 10.0 |";
        assert!(text.lines().any(|line| line.starts_with(row)), "{text}");
    }

    #[test]
    fn a_run_takes_some_time() {
        assert_eq!(seconds("1.5"), Ok(1.5));
        for wrong in ["0.4", "61", "NaN", "soon"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }

    /// The directories of the runs that are kept.
    fn kept() -> Vec<PathBuf> {
        let runs = Path::new(env!("CARGO_MANIFEST_DIR")).join("runs");
        let all = fs::read_dir(runs).unwrap().map(|entry| entry.unwrap().path());
        all.filter(|path| path.join(FILE).exists()).collect()
    }

    #[test]
    fn committed_summaries_match_their_figures() {
        for directory in kept() {
            let record = Record::read(&directory).unwrap();
            let committed = fs::read_to_string(directory.join("summary.md")).unwrap();
            assert!(committed == record.summary(), "{}", directory.display());
            assert!(record.runs.iter().all(|run| run.welcomed == run.counted));
        }
    }

    #[test]
    fn hand_over_loads_cores_as_is_simulated() {
        const DRAWS: u32 = 200;
        let simulated = |connections: usize| {
            let size = Size { cores: 2, connections };
            let most = |draw| {
                let homes = place(Policy::HandOver, size, 1.0, &mut generator(7, size, draw));
                let first = homes.iter().filter(|core| **core == 0).count();
                first.max(connections - first) as f64 / connections as f64
            };
            (0..DRAWS).map(most).sum::<f64>() / f64::from(DRAWS)
        };
        let mut found = 0;
        for directory in kept() {
            let record = Record::read(&directory).unwrap();
            assert_eq!(record.environment.cores, 2, "the simulation is one of two cores");
            for (scene, connections) in
                [(Scene::Hot4, 4), (Scene::Hot8, 8), (Scene::Hot64, 64), (Scene::OneWorker, 4)]
            {
                let those = |run: &&Run| (run.scene, run.way) == (scene, Way::Handoff);
                let busiest = record.runs.iter().filter(those).map(Run::busiest).collect();
                let (measured, simulated) = (Spread::of(busiest).median, simulated(connections));
                // Of one worker's connections some leave only after some tenths of a second.
                let error = (measured - simulated).abs();
                assert!(error < 0.1, "{scene:?}: {measured:.2}, simulated {simulated:.2}");
                assert!(measured <= 0.6, "{scene:?}: {measured:.2}");
                found += 1;
            }
        }
        assert!(found > 0, "no run is kept");
    }

    #[test]
    fn the_page_about_scaling_has_the_measured_rows() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/scaling.md");
        let page = fs::read_to_string(page).unwrap();
        let rows =
            page.lines().skip_while(|line| !line.starts_with("| visitors | busiest: kernel |"));
        let rows: Vec<_> = rows.take_while(|line| line.starts_with('|')).collect();
        assert!(rows.len() > 2, "the page has no such table");
        let tables: Vec<_> =
            kept().iter().map(|run| Record::read(run).unwrap().summary()).collect();
        // The page leaves the last columns out.
        let has =
            |table: &String| rows.iter().all(|row| table.lines().any(|line| line.starts_with(row)));
        assert!(tables.iter().any(has), "no run has these rows: {rows:#?}");
    }

    #[test]
    fn figures_that_are_not_there_are_named() {
        let said = Record::read(Path::new("/nowhere")).unwrap_err().to_string();
        assert!(said.starts_with("/nowhere/evenness.jsonl"), "{said}");
    }
}
