//! Writes the manual pages of tallyring and its completions for bash, zsh and fish:
//! `cargo run --example manual -- DIRECTORY`
//!
//! They are made from the arguments, and not by the program itself, so that it stays small.

#![forbid(unsafe_code)]

use std::{env, fs, io, path::Path, process::ExitCode};

use clap::builder::Resettable;
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;

/// What the first page has beside the arguments, in roff(7).
const FURTHER: &str = r#".SH "EXIT STATUS"
.TP
0
The server stopped as it was asked to; the command succeeded.
.TP
1
It could not start; the server that was asked is not healthy; a total, backup, restore or move failed.
.TP
2
The arguments or settings are wrong, and nothing was tried.
.TP
128 + N
A second signal N ended it at once.
.SH SIGNALS
.TP
SIGTERM, SIGINT
Accept no more, finish visits in progress, and end; a second signal ends it at once.
.TP
SIGHUP
Read the settings file and the pages again, apply what needs no restart, and log what does. If a setting is wrong,
nothing changes.
.SH FILES
.TP
/etc/default/tallyring
Settings of the service, as variables.
.TP
/var/lib/tallyring/counter.redb
The totals of the service's counter.
.TP
/var/lib/tallyring/counter.redb.before-restore
The totals from before a restore.
"#;

fn main() -> ExitCode {
    let Some(directory) = env::args_os().nth(1) else {
        eprintln!("manual: the directory to write to is missing");
        return ExitCode::from(2);
    };
    match write(Path::new(&directory)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("manual: {}: {error}", directory.display());
            ExitCode::FAILURE
        }
    }
}

fn write(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut tallyring::cli::command(), "tallyring", directory)?;
    }
    let command =
        tallyring::cli::command().disable_help_subcommand(true).long_version(None::<&str>);
    clap_mangen::generate_to(command.clone(), directory)?;
    let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let mut page = Vec::new();
    Man::new(command.after_help(Resettable::Reset)).render(&mut page)?;
    page.extend(examples_section(&examples).bytes());
    page.extend(FURTHER.as_bytes());
    fs::write(directory.join("tallyring.1"), page)
}

/// The examples as they are, line by line.
fn examples_section(text: &str) -> String {
    let lines = text.strip_prefix("Examples:\n").unwrap_or(text).replace('\\', "\\e");
    // A dot or an apostrophe at the beginning of a line would be a request.
    let lines = lines.lines().map(|line| format!("\\&{line}\n"));
    format!(".SH EXAMPLES\n.nf\n{}.fi\n", lines.collect::<String>())
}
