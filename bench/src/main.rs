//! Measures tallyring beside the usual way to write the same program.

mod arms;
mod balance;
mod check;
mod compare;
mod evenness;
mod greedy;
mod machine;
mod pipelined;
mod place;
mod process;
mod record;
mod render;
mod scenes;
mod soak;
mod statistics;
mod stores;
mod terminal;
mod visitors;
mod watched;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "tallyring-bench", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compare what a visit costs each arm, and keep the figures
    Compare(Box<compare::CompareArguments>),
    /// Measure what visitors who take more than their share cost the server and others
    Greedy(greedy::GreedyArguments),
    /// Measure what it costs a visit that somebody reads the metrics or has the live page open
    Watched(watched::WatchedArguments),
    /// Measure what slow answers do to the visits behind them, by the calls that a connection carries
    Pipelined(pipelined::PipelinedArguments),
    /// Simulate how evenly cores are busy: connections hashed to them, handed over, or stolen from
    Balance(balance::BalanceArguments),
    /// Measure how evenly a server's threads are busy, with each way to balance and beside work stealing
    Evenness(evenness::EvennessArguments),
    /// Make many visits over changing connections, and check that the server ends as it began
    Soak(soak::SoakArguments),
    /// Measure how many visits counters count a second on each store, and what a visit costs there
    Stores(stores::StoresArguments),
}

fn main() -> ExitCode {
    let Arguments { command } = Arguments::parse();
    let done = match command {
        Command::Compare(arguments) => compare::compare(&arguments),
        Command::Greedy(arguments) => greedy::greedy(&arguments),
        Command::Watched(arguments) => watched::watched(&arguments),
        Command::Pipelined(arguments) => pipelined::pipelined(&arguments),
        Command::Balance(arguments) => balance::balance(&arguments),
        Command::Evenness(arguments) => evenness::evenness(&arguments),
        Command::Soak(arguments) => soak::soak(&arguments),
        Command::Stores(arguments) => stores::stores(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tallyring-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_to_check_against_may_be_left_out() {
        let parse = |arguments: &[&str]| {
            let all = [&["tallyring-bench", "compare"], arguments].concat();
            Arguments::try_parse_from(all).is_ok()
        };
        assert!(parse(&["--check"]));
        assert!(parse(&["--check", "bench/runs/some", "--seconds", "1"]));
        assert!(!parse(&["--render"]));
    }
}
