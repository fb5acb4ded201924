//! The record of a comparison: every figure of every run.

use std::{fs, io, path::Path};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tallyring_bench::load::Report;

use crate::{arms::Arm, machine::Environment, process::Usage, statistics::Spread};

/// The file of the raw figures: a line of JSON about the whole, then one for each run.
pub const FILE: &str = "figures.jsonl";
/// The share of its cores' time from which on a side limits the rate.
pub const SATURATED: f64 = 0.95;

/// One run of one arm in one scene.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    /// The scene's name.
    pub scene: String,
    /// The arm.
    pub arm: Arm,
    /// Which of the repeats, from 0.
    pub repeat: u32,
    /// What the visitors saw.
    pub report: Report,
    /// What the visitors of the heavy page saw.
    pub heavy: Option<Report>,
    /// What the server used.
    pub usage: Usage,
    /// The share of its cores' time that the server used.
    pub server_busy: f64,
    /// The share of their cores' time that the visitors and the counter used.
    pub load_busy: f64,
    /// Visits answered with 200 since the counter's start.
    pub welcomed: u64,
    /// What the counter had counted.
    pub counted: u64,
    /// The calls that the counter had got; 0 in older records.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub calls: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(figure: &u64) -> bool {
    *figure == 0
}

impl Run {
    /// CPU time of the server for each visit, in microseconds.
    pub fn cpu_us(&self) -> f64 {
        let heavy = self.heavy.as_ref().map_or(0, |report| report.visits);
        let visits = self.report.visits + self.report.sounding_visits + heavy;
        self.usage.cpu_us / visits as f64
    }

    /// Visits a second.
    pub fn rate(&self) -> f64 {
        self.report.visits as f64 / self.report.seconds
    }
}

/// Memory of connections: idle ones, or each with a visit that its counter has not answered.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Memory {
    /// The arm.
    pub arm: Arm,
    /// How many connections of visitors.
    pub connections: u32,
    /// Resident memory before them.
    pub resident_before_bytes: u64,
    /// Resident memory with them.
    pub resident_after_bytes: u64,
}

impl Memory {
    /// For each connection.
    pub fn bytes(&self) -> u64 {
        self.resident_after_bytes.saturating_sub(self.resident_before_bytes)
            / u64::from(self.connections.max(1))
    }
}

/// System calls of an arm in the main scene, counted in a separate run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SystemCalls {
    /// The arm.
    pub arm: Arm,
    /// The tool that counted them.
    pub counter: String,
    /// How many calls.
    pub calls: u64,
    /// In how many visits.
    pub visits: u64,
}

/// A scene as it was run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SceneRecord {
    /// Its name.
    pub name: String,
    /// What it shows.
    pub about: String,
    /// How many visitors.
    pub connections: usize,
    /// Visits a second, at a constant rate.
    pub rate: Option<f64>,
    /// Cores of the server.
    pub server_cores: Vec<usize>,
    /// Cores of the visitors and the counter.
    pub load_cores: Vec<usize>,
}

/// A whole comparison.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// The version of the format.
    pub format: u32,
    /// The machine and the software.
    pub environment: Environment,
    /// Exchanges a second of visitors and counter alone, without a server between them.
    pub load_alone_per_second: f64,
    /// The arms, in the order of the tables.
    pub arms: Vec<Arm>,
    /// The scenes, likewise.
    pub scenes: Vec<SceneRecord>,
    /// The errors of runs that failed.
    #[serde(default)]
    pub failures: Vec<String>,
    /// Memory of idle connections.
    pub idle: Vec<Memory>,
    /// Memory of visits in flight, with the connections to the counter; none in older records.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub in_flight: Vec<Memory>,
    /// System calls.
    pub calls: Vec<SystemCalls>,
    /// All runs, in order.
    #[serde(skip)]
    pub runs: Vec<Run>,
}

/// A line of JSON for `head`, and one for each of `rest`.
///
/// # Errors
/// When one cannot be written as JSON.
pub fn lines<T: Serialize>(
    head: &impl Serialize,
    rest: impl IntoIterator<Item = T>,
) -> io::Result<String> {
    let mut text = serde_json::to_string(head)? + "\n";
    for line in rest {
        text += &(serde_json::to_string(&line)? + "\n");
    }
    Ok(text)
}

/// What [`lines`] has written: the head, and the rest.
///
/// # Errors
/// When there is no such file, or it has another format. It is named.
pub fn read_lines<H: DeserializeOwned, T: DeserializeOwned>(
    path: &Path,
) -> io::Result<(H, Vec<T>)> {
    let fail = |error: String| io::Error::other(format!("{}: {error}", path.display()));
    let text = fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
    let mut lines = text.lines();
    let head = serde_json::from_str(lines.next().unwrap_or_default());
    let rest: Result<_, _> = lines.map(serde_json::from_str).collect();
    let read = head.and_then(|head| Ok((head, rest?)));
    read.map_err(|error| fail(error.to_string()))
}

impl Record {
    /// Reads the record of a run.
    ///
    /// # Errors
    /// When there is none, or it has another format.
    pub fn read(directory: &Path) -> io::Result<Self> {
        let (record, runs) = read_lines(&directory.join(FILE))?;
        Ok(Self { runs, ..record })
    }

    /// What [`Record::read`] reads.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn to_lines(&self) -> io::Result<String> {
        lines(self, &self.runs)
    }

    /// The usual program, which the others are compared with: the tuned one, if it was run.
    pub fn usual(&self) -> Arm {
        if self.arms.contains(&Arm::AxumTuned) { Arm::AxumTuned } else { Arm::Axum }
    }

    /// The runs of an arm in a scene, in the order of their repeats.
    pub fn runs(&self, scene: &str, arm: Arm) -> Vec<&Run> {
        let mut runs: Vec<_> =
            self.runs.iter().filter(|run| run.scene == scene && run.arm == arm).collect();
        runs.sort_by_key(|run| run.repeat);
        runs
    }

    /// The spread of a figure over the runs of an arm in a scene; `None` if it was not run.
    pub fn spread(&self, scene: &str, arm: Arm, figure: impl Fn(&Run) -> f64) -> Option<Spread> {
        let runs = self.runs(scene, arm);
        (!runs.is_empty()).then(|| Spread::of(runs.into_iter().map(figure).collect()))
    }

    /// The spread of the ratio of a figure between two arms, repeat by repeat.
    pub fn ratio(
        &self,
        scene: &str,
        arm: Arm,
        to: Arm,
        figure: impl Fn(&Run) -> f64,
    ) -> Option<Spread> {
        let others = self.runs(scene, to);
        let ratio = |run: &Run| {
            let other = others.iter().find(|other| other.repeat == run.repeat)?;
            Some(figure(run) / figure(other))
        };
        let ratios: Vec<_> = self.runs(scene, arm).into_iter().filter_map(ratio).collect();
        (!ratios.is_empty()).then(|| Spread::of(ratios))
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn run(scene: &str, arm: Arm, repeat: u32, cpu_us: f64) -> Run {
        Run {
            scene: scene.to_owned(),
            arm,
            repeat,
            report: Report {
                visits: 10,
                seconds: 2.0,
                p50_us: 100.0,
                p90_us: 150.0,
                p99_us: 200.0,
                p999_us: 300.0,
                max_us: 400.0,
                cpu_us: 1.0,
                ..Report::default()
            },
            heavy: None,
            usage: Usage {
                cpu_us,
                user_us: cpu_us / 4.0,
                system_us: cpu_us * 0.75,
                ..Usage::default()
            },
            server_busy: 0.5,
            load_busy: 0.5,
            welcomed: 10,
            counted: 10,
            calls: 10,
        }
    }

    /// Two repeats of three arms in one scene.
    pub fn record() -> Record {
        let scene = |name: &str| SceneRecord {
            name: name.to_owned(),
            about: String::from("closed loop, keep-alive"),
            connections: 64,
            rate: None,
            server_cores: vec![0],
            load_cores: vec![1],
        };
        let runs = |scene: &str| {
            vec![
                run(scene, Arm::Floor, 0, 100.0),
                run(scene, Arm::Tallyring, 0, 110.0),
                run(scene, Arm::Axum, 0, 400.0),
                // A repeat in which the machine was slow for all arms.
                run(scene, Arm::Floor, 1, 200.0),
                run(scene, Arm::Tallyring, 1, 220.0),
                run(scene, Arm::Axum, 1, 800.0),
            ]
        };
        Record {
            format: 3,
            environment: Environment::default(),
            load_alone_per_second: 100_000.0,
            arms: vec![Arm::Floor, Arm::Tallyring, Arm::Axum],
            scenes: vec![scene("closed-64"), scene("open-70")],
            failures: vec![],
            idle: vec![Memory {
                arm: Arm::Axum,
                connections: 10,
                resident_before_bytes: 100,
                resident_after_bytes: 1100,
            }],
            in_flight: vec![],
            calls: vec![SystemCalls {
                arm: Arm::Axum,
                counter: String::from("perf"),
                calls: 50,
                visits: 10,
            }],
            runs: [runs("closed-64"), runs("open-70")].concat(),
        }
    }

    #[test]
    fn ratios_are_taken_within_a_repeat() {
        let ratio = record().ratio("closed-64", Arm::Tallyring, Arm::Floor, Run::cpu_us).unwrap();
        assert!((ratio.least - 1.1).abs() < 1e-9 && (ratio.most - 1.1).abs() < 1e-9);
        assert!(record().ratio("closed-64", Arm::Tallyring, Arm::Nginx, Run::cpu_us).is_none());
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        let text = record().to_lines().unwrap();
        assert_eq!(text.lines().count(), 1 + record().runs.len());
        fs::write(&path, &text).unwrap();
        let again = Record::read(directory.path()).unwrap();
        assert_eq!(again.to_lines().unwrap(), text);
        for broken in ["", "{}", &text[..text.len() - 10]] {
            fs::write(&path, broken).unwrap();
            assert!(Record::read(directory.path()).is_err(), "{broken}");
        }
        assert!(Record::read(Path::new("/nowhere")).is_err());
    }

    #[test]
    fn the_tuned_one_is_compared_with_where_it_was_run() {
        let mut record = record();
        assert_eq!(record.usual(), Arm::Axum);
        record.arms.push(Arm::AxumTuned);
        assert_eq!(record.usual(), Arm::AxumTuned);
    }
}
