//! The summary and the charts of a record, and the table of the benchmark's README. They are made from the record
//! alone, so that they can be made again.

pub mod axis;
pub mod canvas;
mod charts;
mod summary;

use std::{fs, io, path::Path};

pub use self::summary::in_short;
use crate::record::Record;

/// Writes the summary and the charts of a record into its directory.
///
/// # Errors
/// When they cannot be written.
pub fn write(directory: &Path, record: &Record) -> io::Result<()> {
    for (name, text) in files(record) {
        fs::write(directory.join(name), text)?;
    }
    Ok(())
}

/// The summary and the charts of a record, by the names of their files.
pub fn files(record: &Record) -> Vec<(&'static str, String)> {
    let charts = charts::charts(record);
    let names: Vec<_> = charts.iter().map(|(name, _)| *name).collect();
    let mut files = vec![("summary.md", summary::summary(record, &names))];
    files.extend(charts);
    files
}

/// The range over some records of each arm's median ratio to the floor, as Markdown: the table of the benchmark's
/// README.
#[cfg(test)]
fn over_machines(records: &[Record]) -> String {
    use crate::{
        arms::{ALL, Arm},
        record::Run,
        statistics::Spread,
    };
    const SCENES: [&str; 6] =
        ["closed-8", "closed-64", "closed-1024", "reconnect", "open-70", "slow-counter-2ms"];
    let range = |medians: Vec<f64>, digits: usize| {
        let Spread { least, most, .. } = Spread::of(medians);
        let (least, most) = (format!("{least:.digits$}"), format!("{most:.digits$}"));
        match least.as_str() {
            "NaN" => String::from("–"),
            same if same == most => least,
            _ => format!("{least} to {most}"),
        }
    };
    let mut text = format!("| arm | {} | bytes an idle connection |\n", SCENES.join(" | "));
    text += &format!("|{}\n", " --- |".repeat(SCENES.len() + 2));
    let is_recorded = |arm: &Arm| records.iter().any(|record| record.arms.contains(arm));
    for arm in ALL.into_iter().filter(is_recorded) {
        let of = |scene| {
            let ratio = |record: &Record| record.ratio(scene, arm, Arm::Floor, Run::cpu_us);
            let medians = records.iter().filter_map(ratio).map(|ratio| ratio.median);
            range(medians.collect(), 2)
        };
        let idle =
            records.iter().filter_map(|record| record.idle.iter().find(|idle| idle.arm == arm));
        let idle = range(idle.map(|idle| idle.bytes() as f64).collect(), 0);
        text += &format!("| {} | {} | {idle} |\n", arm.name(), SCENES.map(of).join(" | "));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::{
        arms::Arm,
        record::{FILE, Run},
        scenes::MAIN,
    };

    /// The directories of recorded comparisons.
    fn recorded() -> Vec<PathBuf> {
        let runs = Path::new(env!("CARGO_MANIFEST_DIR")).join("runs");
        let directories = fs::read_dir(runs).unwrap().map(|entry| entry.unwrap().path());
        let mut recorded: Vec<_> = directories.filter(|path| path.join(FILE).exists()).collect();
        recorded.sort();
        assert!(!recorded.is_empty());
        recorded
    }

    #[test]
    fn committed_files_match_their_figures() {
        for directory in recorded() {
            let record = Record::read(&directory).unwrap();
            for (name, text) in files(&record) {
                let committed = fs::read_to_string(directory.join(name)).unwrap_or_default();
                assert!(
                    committed == text,
                    "{}/{name} is not what {FILE} gives: run `compare --render {0}`",
                    directory.display()
                );
            }
        }
    }

    #[test]
    fn the_readme_has_the_chart_and_the_ratios_of_a_recorded_run() {
        let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
        let readme = fs::read_to_string(readme).unwrap();
        let readme = readme.split_whitespace().collect::<Vec<_>>().join(" ");
        let is_shown = |directory: &PathBuf| {
            let name = directory.file_name().unwrap().to_str().unwrap();
            let record = Record::read(directory).unwrap();
            let of = |arm| {
                let ratio = record.ratio(MAIN, Arm::Tallyring, arm, Run::cpu_us).unwrap();
                format!("{:.2} of", ratio.median)
            };
            let usual = record.usual();
            let figures = format!(
                "took {} {}'s CPU time, {} hyper's and {} a bare io_uring loop's",
                of(usual),
                usual.name(),
                of(Arm::Hyper),
                of(Arm::Floor)
            );
            readme.contains(&figures) && readme.contains(&format!("bench/runs/{name}/cpu.svg"))
        };
        assert!(recorded().iter().any(is_shown), "the README's figures are of no recorded run");
    }

    #[test]
    fn the_benchmarks_readme_has_the_results_of_all_machines() {
        let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
        let readme = fs::read_to_string(readme).unwrap();
        let records: Vec<_> = recorded().iter().map(|run| Record::read(run).unwrap()).collect();
        let table = over_machines(&records);
        assert!(readme.contains(&table), "bench/README.md lacks:\n{table}");
        for run in recorded() {
            let name = run.file_name().unwrap().to_str().unwrap().to_owned();
            assert!(readme.contains(&format!("runs/{name}/summary.md")), "{name}");
        }
    }
}
