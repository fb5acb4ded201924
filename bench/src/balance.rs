//! How evenly cores are busy, simulated: connections that the kernel's hash gives to cores, that are handed over at accept,
//! or whose visits idle cores steal. Nothing is measured, so any machine gives the same figures.

mod cell;
mod chart;
#[cfg(test)]
mod exact;
pub mod model;
mod summary;

use std::{
    fmt::Display,
    fs, io,
    path::{Path, PathBuf},
};

use clap::Args;
use serde::{Deserialize, Serialize};

use self::{
    cell::Cell,
    model::{Policy, Service, Setting, Size},
};
use crate::terminal::say;

/// The file of the figures.
const FILE: &str = "balance.json";
const POLICIES: [Policy; 3] = [Policy::ReusePort, Policy::HandOver, Policy::Stealing];

/// What to simulate.
#[derive(Debug, Args)]
pub struct BalanceArguments {
    /// Numbers of cores
    #[arg(long, value_delimiter = ',', default_value = "2,4,8,16,32,64,128", value_parser = number)]
    cores: Vec<usize>,
    /// Numbers of connections; all are as busy
    #[arg(long, value_delimiter = ',', default_value = "4,8,64,1024,65536", value_parser = number)]
    connections: Vec<usize>,
    /// How busy the cores that connections can use are, if the load is even and no visit waits
    #[arg(long, default_value_t = 0.6, value_parser = load)]
    load: f64,
    /// How long a core works for a visit: always as long, or exponentially distributed
    #[arg(long, value_enum, default_value = "constant")]
    service: Service,
    /// What a stolen visit costs more, as a share of a visit's CPU time
    #[arg(long, default_value_t = 0.17, value_parser = cost)]
    steal_cost: f64,
    /// How often the connections are placed anew; on more than 16 cores in proportion less often
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    draws: u32,
    /// How long each placement is watched, by the CPU time of a visit
    #[arg(long, default_value_t = 1000.0, value_parser = span)]
    span: f64,
    /// Of the random numbers: the same seed gives the same figures
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Directory for the figures, the table and the chart
    #[arg(long, default_value = "bench/balance")]
    out: PathBuf,
    /// Draw the table and the chart in --out again from the figures there, and simulate nothing
    #[arg(long)]
    render: bool,
}

/// The most cores, and connections.
const NUMBER_MAX: usize = 1_000_000;

fn number(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=NUMBER_MAX).contains(number));
    number.ok_or_else(|| format!("must be a number from 1 to {NUMBER_MAX}"))
}

fn load(text: &str) -> Result<f64, String> {
    within(text, 0.01, 1.0)
}

fn cost(text: &str) -> Result<f64, String> {
    within(text, 0.0, 100.0)
}

fn span(text: &str) -> Result<f64, String> {
    within(text, 100.0, 1e6)
}

fn within(text: &str, least: f64, most: f64) -> Result<f64, String> {
    let figure = text.parse().ok().filter(|figure| (least..=most).contains(figure));
    figure.ok_or_else(|| format!("must be a number from {least} to {most}"))
}

/// A whole simulation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Figures {
    #[serde(flatten)]
    setting: Setting,
    cells: Vec<Cell>,
}

impl Figures {
    /// The figures, and what is made from them, by the names of their files.
    fn files(&self) -> io::Result<[(&'static str, String); 3]> {
        Ok([
            (FILE, serde_json::to_string_pretty(self)? + "\n"),
            ("summary.md", summary::summary(self)),
            ("balance.svg", chart::chart(self)),
        ])
    }

    /// A cell, if it was simulated.
    fn cell(&self, size: Size, policy: Policy) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.size == size && cell.policy == policy)
    }

    /// Numbers of cores or of connections, in order.
    fn numbers(&self, of: fn(Size) -> usize) -> Vec<usize> {
        let mut numbers: Vec<_> = self.cells.iter().map(|cell| of(cell.size)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }
}

/// Simulates all, prints the table, and keeps it with the figures and the chart.
///
/// # Errors
/// When they cannot be written, or read for `--render`.
pub fn balance(arguments: &BalanceArguments) -> io::Result<()> {
    let figures = match arguments.render {
        true => read(&arguments.out)?,
        false => simulate(arguments)?,
    };
    say(&format!("\n{}", summary::in_short(&figures)))?;
    fs::create_dir_all(&arguments.out).map_err(|error| at(&arguments.out, error))?;
    for (name, text) in figures.files()? {
        let path = arguments.out.join(name);
        fs::write(&path, text).map_err(|error| at(&path, error))?;
        say(&format!("kept: {}", path.display()))?;
    }
    Ok(())
}

fn simulate(arguments: &BalanceArguments) -> io::Result<Figures> {
    let setting = Setting {
        seed: arguments.seed,
        load: arguments.load,
        service: arguments.service,
        steal_cost: arguments.steal_cost,
        draws: arguments.draws,
        span: arguments.span,
    };
    let mut figures = Figures { setting, cells: Vec::new() };
    for connections in &arguments.connections {
        for cores in &arguments.cores {
            let size = Size { cores: *cores, connections: *connections };
            for policy in POLICIES {
                figures.cells.push(Cell::simulate(&figures.setting, size, policy));
            }
        }
        say(&format!("{connections} connections: simulated"))?;
    }
    Ok(figures)
}

/// The figures in a directory.
fn read(directory: &Path) -> io::Result<Figures> {
    let path = directory.join(FILE);
    let text = fs::read_to_string(&path).map_err(|error| at(&path, error))?;
    serde_json::from_str(&text).map_err(|error| at(&path, error))
}

fn at(path: &Path, error: impl Display) -> io::Error {
    io::Error::other(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_files_are_what_is_simulated() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("balance");
        let figures = read(&directory).unwrap();
        for (name, text) in figures.files().unwrap() {
            let committed = fs::read_to_string(directory.join(name)).unwrap();
            assert!(text == committed, "{name} is old: run `balance --render`");
        }
        // Some that take no time; the others are from the same code.
        for (cores, connections) in [(2, 4), (8, 4), (4, 64)] {
            let size = Size { cores, connections };
            for policy in POLICIES {
                let again = Cell::simulate(&figures.setting, size, policy);
                assert_eq!(figures.cell(size, policy), Some(&again), "old: run `balance`");
            }
        }
    }

    #[test]
    fn the_page_about_scaling_has_rows_of_the_table() {
        let bench = Path::new(env!("CARGO_MANIFEST_DIR"));
        let page = fs::read_to_string(bench.join("../docs/scaling.md")).unwrap();
        let table = fs::read_to_string(bench.join("balance/summary.md")).unwrap();
        let heads = table.lines().find(|line| line.starts_with("| connections |")).unwrap();
        let rows = page.lines().skip_while(|line| *line != heads).skip(2);
        let rows: Vec<_> = rows.take_while(|line| line.starts_with('|')).collect();
        assert!(!rows.is_empty());
        for row in rows {
            assert!(table.lines().any(|line| line == row), "the table has no {row}");
        }
    }

    #[test]
    fn figures_that_are_not_there_or_broken_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let said = || read(directory.path()).unwrap_err().to_string();
        assert!(said().contains(FILE), "{}", said());
        fs::write(directory.path().join(FILE), "{\"seed\": 1}").unwrap();
        assert!(said().contains(FILE) && said().contains("missing field"), "{}", said());
    }

    #[test]
    fn arguments_have_limits() {
        assert_eq!((number("128"), number("1")), (Ok(128), Ok(1)));
        for wrong in ["0", "1000001", "-1", "many", ""] {
            assert!(number(wrong).is_err(), "{wrong}");
        }
        assert_eq!((load("1"), cost("0"), span("400")), (Ok(1.0), Ok(0.0), Ok(400.0)));
        for wrong in ["0", "1.1", "NaN", "-1", "x"] {
            assert!(load(wrong).is_err(), "{wrong}");
        }
        assert!(cost("-0.1").is_err() && span("99").is_err() && span("inf").is_err());
    }
}
