//! Whether tallyring or a floor has become worse than in a recorded run, by more than the noise.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    arms::Arm,
    record::{Record, Run},
    scenes::MAIN,
    terminal::say,
};

/// Where the recorded runs are.
const RUNS: &str = "bench/runs";
/// Median deviations by which two medians must differ.
const DEVIATIONS: f64 = 3.0;
/// The arms that are run for a check.
pub const ARMS: [Arm; 7] = [
    Arm::Floor,
    Arm::FloorPipelined,
    Arm::FloorBatched,
    Arm::Tallyring,
    Arm::TallyringPipelined,
    Arm::TallyringEpoll,
    Arm::AxumTuned,
];
/// The ratios that are checked.
const PAIRS: [(Arm, Arm); 8] = [
    (Arm::FloorPipelined, Arm::Floor),
    (Arm::FloorBatched, Arm::Floor),
    (Arm::Tallyring, Arm::Floor),
    (Arm::Tallyring, Arm::AxumTuned),
    (Arm::TallyringPipelined, Arm::Floor),
    (Arm::TallyringPipelined, Arm::FloorPipelined),
    (Arm::TallyringEpoll, Arm::Floor),
    (Arm::TallyringEpoll, Arm::AxumTuned),
];

/// The record to compare with: the one in `directory`, or else the newest, of `machine` if it has one.
///
/// # Errors
/// When there is none.
pub fn baseline(directory: Option<&Path>, machine: &str) -> io::Result<Record> {
    let directory = match directory {
        None => newest(Path::new(RUNS), machine)?,
        Some(directory) => PathBuf::from(directory),
    };
    say(&format!("compared with {}", directory.display()))?;
    Record::read(&directory)
}

/// The newest directory in `runs` with a record of this format. Records of the same machine come first, since ratios to
/// the floor differ between machines.
fn newest(runs: &Path, machine: &str) -> io::Result<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(runs)? {
        let path = entry?.path();
        if let Ok(Record { environment, .. }) = Record::read(&path) {
            found.push((environment.slug() == machine, environment.began, path));
        }
    }
    found.sort();
    let newest = found.pop().map(|(_, _, path)| path);
    newest.ok_or_else(|| io::Error::other(format!("no recorded run in {}", runs.display())))
}

/// Compares the ratios of tallyring to floor and axum-tuned, and of the other floors to floor, each within one run of
/// `compare`. What one of the two records lacks is left out.
///
/// # Errors
/// When one has become worse.
pub fn check(now: &Record, then: &Record) -> io::Result<()> {
    let (here, there) = (now.environment.slug(), then.environment.slug());
    if here != there {
        say(&format!("Mind: that was recorded on another machine, {there}"))?;
    }
    let mut worse = now.failures.clone();
    for (arm, to) in PAIRS {
        let ratio = |record: &Record| record.ratio(MAIN, arm, to, Run::cpu_us);
        let (Some(now), Some(then)) = (ratio(now), ratio(then)) else { continue };
        let noise = DEVIATIONS * (now.deviation + then.deviation);
        let line = format!(
            "{} x {}: {:.3}, recorded {:.3}, noise {noise:.3}",
            arm.name(),
            to.name(),
            now.median,
            then.median
        );
        say(&line)?;
        if now.median > then.median + noise {
            worse.push(line);
        }
    }
    match worse.is_empty() {
        true => Ok(()),
        false => Err(io::Error::other(format!("worse than recorded: {}", worse.join("; ")))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::{record, run};

    #[test]
    fn a_record_of_the_same_machine_comes_first() {
        let runs = tempfile::tempdir().unwrap();
        for (name, processor, began) in [("a", "A", "2026-01"), ("b", "B", "2026-02")] {
            let mut record = record();
            record.environment.processor = processor.to_owned();
            record.environment.began = began.to_owned();
            fs::create_dir(runs.path().join(name)).unwrap();
            let text = record.to_lines().unwrap();
            fs::write(runs.path().join(name).join(crate::record::FILE), text).unwrap();
        }
        let newest = |machine| newest(runs.path(), machine).unwrap();
        assert_eq!(newest("a-0-cores"), runs.path().join("a"));
        assert_eq!(newest("c-0-cores"), runs.path().join("b"));
    }

    #[test]
    fn each_ratio_is_of_arms_that_are_run() {
        for (arm, to) in PAIRS {
            assert!(ARMS.contains(&arm) && ARMS.contains(&to) && arm != to);
        }
    }

    #[test]
    fn only_what_is_worse_beyond_noise_fails() {
        let then = record();
        assert!(check(&then, &then).is_ok());
        let mut worse = record();
        for run in worse.runs.iter_mut().filter(|run| run.arm == Arm::Tallyring) {
            run.usage.cpu_us *= 1.2;
        }
        let error = check(&worse, &then).unwrap_err().to_string();
        assert!(error.contains("tallyring x floor: 1.320, recorded 1.100"), "{error}");
        assert!(check(&then, &worse).is_ok());
        // An older record may lack the tuned arm, or a floor.
        let with = |arm, cpu_us| {
            let mut record = record();
            record.arms.push(arm);
            let runs = [(0, 1.0), (1, 2.0)];
            record.runs.extend(runs.map(|(repeat, slow)| run(MAIN, arm, repeat, cpu_us * slow)));
            record
        };
        assert!(check(&with(Arm::AxumTuned, 200.0), &then).is_ok());
        let refused = |arm, now, then| check(&with(arm, now), &with(arm, then)).unwrap_err();
        let error = refused(Arm::AxumTuned, 50.0, 200.0).to_string();
        assert!(error.contains("tallyring x axum-tuned"), "{error}");
        assert!(check(&with(Arm::FloorBatched, 65.0), &then).is_ok());
        let error = refused(Arm::FloorBatched, 100.0, 65.0).to_string();
        assert!(error.contains("floor-batched x floor: 1.000, recorded 0.650"), "{error}");
        let mut failed = record();
        failed.failures.push(String::from("axum fell over"));
        assert!(check(&failed, &then).is_err());
        // One of two repeats that is slower by half is noise.
        let mut noisy = record();
        noisy.runs.iter_mut().find(|run| run.arm == Arm::Tallyring).unwrap().usage.cpu_us *= 1.5;
        assert!(check(&noisy, &then).is_ok());
    }
}
