//! What a record is shown as: a summary, charts, and the table of the README. Everything here is made
//! from the record alone, so that it can be made again.

mod charts;
mod summary;

use std::{fs, io, path::Path};

use crate::record::Record;

/// Writes the summary and the charts of a record beside it.
///
/// # Errors
/// When they cannot be drawn or written.
pub fn write(directory: &Path, record: &Record) -> io::Result<()> {
    for (name, text) in files(record)? {
        fs::write(directory.join(name), text)?;
    }
    Ok(())
}

/// The files that a record gives, by name.
fn files(record: &Record) -> io::Result<Vec<(&'static str, String)>> {
    let mut files = vec![("summary.md", summary::summary(record))];
    files.extend(charts::charts(record)?);
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::summary::in_short;
    use super::*;
    use crate::record::FILE;

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
    fn what_is_committed_is_what_the_figures_give() {
        for directory in recorded() {
            let record = Record::read(&directory).unwrap();
            for (name, text) in files(&record).unwrap() {
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
    fn the_readme_has_the_table_of_a_recorded_run() {
        let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
        let readme = fs::read_to_string(readme).unwrap();
        let is_shown = |directory: &PathBuf| {
            let name = directory.file_name().unwrap().to_str().unwrap();
            let table = in_short(&Record::read(directory).unwrap());
            readme.contains(&table) && readme.contains(&format!("bench/runs/{name}/cpu.svg"))
        };
        assert!(recorded().iter().any(is_shown), "the README's table is of no recorded run");
    }
}
