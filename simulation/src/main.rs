//! Searches for a history of tallyring that fails, or repeats one.

#![forbid(unsafe_code)]

mod planted;

use std::{
    collections::BTreeSet,
    fmt::Display,
    io::{self, Write},
    process::ExitCode,
    str::FromStr,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::{Parser, Subcommand};
use tallyring_simulation::{
    plan::Part,
    search::{self, Until},
};

/// Runs tallyring's own code in simulated worlds, each drawn from a seed, and checks its promises
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Repeat the history of this seed, and tell what happens in it
    #[arg(long)]
    seed: Option<u64>,
    /// Leave out these parts of it, as a failure names them
    #[arg(long, value_delimiter = ',', requires = "seed")]
    without: Vec<Part>,
    /// Search for so many seconds
    #[arg(long, default_value_t = 60, value_parser = positive::<u64>, conflicts_with = "seed")]
    seconds: u64,
    /// Search for so many minutes
    #[arg(long, value_parser = positive::<u64>, conflicts_with_all = ["seconds", "seed"])]
    minutes: Option<u64>,
    /// Search through so many histories
    #[arg(long, value_parser = positive::<u64>, conflicts_with_all = ["seconds", "minutes", "seed"])]
    histories: Option<u64>,
    /// Begin with this seed; without it, with one made of the current time
    #[arg(long, conflicts_with = "seed")]
    from: Option<u64>,
    /// Use so many threads; without it, one for each core
    #[arg(long, value_parser = positive::<usize>, conflicts_with = "seed")]
    threads: Option<usize>,
    /// Name a failure at once, and do not look for what it does not need
    #[arg(long)]
    no_shrink: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Plant known defects in a copy of the code, and show how soon each is found
    Planted(planted::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(Command::Planted(arguments)) = &arguments.command {
        return planted::run(arguments);
    }
    match arguments.seed {
        Some(seed) => repeat(seed, arguments.without.into_iter().collect()),
        None => search(&arguments),
    }
}

/// A search through nothing finds nothing.
fn positive<T: FromStr<Err: Display> + Default + PartialEq>(text: &str) -> Result<T, String> {
    let number = text.parse::<T>().map_err(|error| error.to_string())?;
    if number == T::default() { Err(String::from("must be at least 1")) } else { Ok(number) }
}

fn repeat(seed: u64, without: BTreeSet<Part>) -> ExitCode {
    let end = search::repeat(seed, &without, |line| {
        // Whoever reads may have seen enough.
        let _ = writeln!(io::stdout(), "{line}");
    });
    println!("{} answers in {:?}; {:?}", end.answers, end.time, end.counts);
    for violation in &end.violations {
        println!("wrong: {violation}");
    }
    if end.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn search(arguments: &Arguments) -> ExitCode {
    let from = arguments.from.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now.as_secs() << 24
    });
    let until = match (arguments.histories, arguments.minutes) {
        (Some(histories), _) => Until::Histories(histories),
        (None, Some(minutes)) => Until::Time(Duration::from_secs(60 * minutes)),
        (None, None) => Until::Time(Duration::from_secs(arguments.seconds)),
    };
    let threads =
        arguments.threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, Into::into));
    let begun = SystemTime::now();
    let seen = search::search(from, until, threads);
    let seconds = begun.elapsed().unwrap_or_default().as_secs_f64();
    println!(
        "{} histories from seed {from} in {seconds:.1} s on {threads} threads: {} answers, {} events, {} connections \
         handed over, {} moved",
        seen.histories, seen.answers, seen.events, seen.handed_over, seen.moved
    );
    let Some((seed, violations)) = seen.failure else { return ExitCode::SUCCESS };
    println!("seed {seed} fails after {} histories:", seen.histories);
    for violation in violations {
        println!("wrong: {violation}");
    }
    if arguments.no_shrink {
        return ExitCode::FAILURE;
    }
    let parts: Vec<_> = search::shrink(seed).iter().map(ToString::to_string).collect();
    println!("to see it happen, with what it does not need left out:");
    print!("cargo run --release -p tallyring-simulation -- --seed {seed}");
    println!("{}{}", if parts.is_empty() { "" } else { " --without " }, parts.join(","));
    ExitCode::FAILURE
}
