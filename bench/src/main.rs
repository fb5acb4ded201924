//! Measures tallyring beside the usual way to write the same program.

mod compare;
mod process;

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
    /// Run the arms side by side and print what a visit costs each
    Compare(compare::CompareArguments),
}

fn main() -> ExitCode {
    let Arguments { command: Command::Compare(arguments) } = Arguments::parse();
    match compare::compare(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tallyring-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
