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
