//! Searches for a history of tallyring that fails, or repeats one.

#![forbid(unsafe_code)]

mod planted;

use std::{
    collections::BTreeSet,
    io::{self, Write},
    process::ExitCode,
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
    /// Search for so long
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Search for so many minutes
    #[arg(long, conflicts_with = "seconds")]
    minutes: Option<u64>,
    /// Search through so many histories
    #[arg(long, conflicts_with_all = ["seconds", "minutes"])]
    histories: Option<u64>,
    /// Begin with this seed, not with one of the time
    #[arg(long)]
    from: Option<u64>,
    /// How many threads; as many as there are cores, if it is not said
    #[arg(long)]
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
        "{} histories from seed {from} in {seconds:.1} s on {threads} threads: {} answers, {} events",
        seen.histories, seen.answers, seen.events
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
    println!(
        "cargo run --release -p tallyring-simulation -- --seed {seed} --without {}",
        parts.join(",")
    );
    ExitCode::FAILURE
}
