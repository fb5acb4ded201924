//! Lines and aligned tables on standard output.

use std::{io, io::Write};

/// Prints a line.
///
/// # Errors
/// When the reader has closed the pipe, as `head` does: the command ends then, with the programs that it started.
pub fn say(line: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    let said = writeln!(output, "{line}").and_then(|()| output.flush());
    said.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => {
            io::Error::other("standard output was closed, so this was given up")
        }
        _ => error,
    })
}

/// Rows of cells in aligned columns: the first to the left, the others to the right.
pub fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |cell: &String| cell.chars().count();
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| width(&row[column])).max().unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, wide)) in row.iter().zip(widths).enumerate() {
            line += &match column {
                0 => format!("{cell:<wide$}"),
                _ => format!("  {cell:>wide$}"),
            };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [["", "µs"], ["floor", "9.5"], ["hyper", "31.25"], ["µ", "–"]];
        let aligned = table(&rows.map(|row| row.map(String::from)));
        assert_eq!(aligned, "          µs\nfloor    9.5\nhyper  31.25\nµ          –\n");
        assert_eq!(table::<2>(&[]), "");
    }
}
