//! The program: arguments in, exit status out.

use std::{
    env,
    ffi::OsString,
    fmt::Display,
    io::{self, Write},
    process::ExitCode,
    sync::Arc,
};

use clap::{Arg, ArgMatches, CommandFactory, FromArgMatches};
use signal_hook::consts::signal::SIGXFSZ;

use crate::{
    config::{
        self, Arguments, ConfigError, Setting,
        arguments::{Command, CounterArguments, HealthArguments, ServeArguments, TopArguments},
        environment::check_environment,
        mistakes,
        moving::{ExportArguments, ImportArguments, MoveCommand},
        totals::{BackupArguments, RestoreArguments, TotalArguments},
    },
    doctor, health, log,
    runtime::task,
    server::{self, Ended, ServerError},
    top::{self, Closed},
    totals::{self, moving},
};

/// The arguments or settings are wrong; nothing was tried.
const EXIT_USAGE: u8 = 2;
/// The server could not start.
const EXIT_FAILED: u8 = 1;
/// Another counter has taken over the shard: a restart would only take it back.
const EXIT_FENCED: u8 = 3;

/// The program's arguments, for its manual and its completions.
#[doc(hidden)]
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Runs the program with the process's arguments.
pub fn run() -> ExitCode {
    run_with(env::args_os())
}

/// Runs the program with these arguments; the first is its own name.
pub fn run_with<T: Into<OsString> + Clone>(arguments: impl IntoIterator<Item = T>) -> ExitCode {
    let given: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
    let parsed = without_empty_variables(Arguments::command());
    let parsed = parsed.try_get_matches_from(&given).and_then(|matches| {
        let arguments = Arguments::from_arg_matches(&matches)?;
        Ok((arguments, matches))
    });
    let (arguments, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return refuse_arguments(&error, &given),
    };
    let notes = match check_environment(&Arguments::command()) {
        Ok(notes) => notes,
        Err(error) => return refuse_settings(&error),
    };
    let of_command = |name| matches.subcommand_matches(name).unwrap_or(&matches);
    match arguments.command {
        None => serve(&arguments.serve, &matches, notes),
        Some(Command::Serve(flags)) => serve(&flags, of_command("serve"), notes),
        Some(Command::Check(flags)) => check(&flags, of_command("check"), notes),
        Some(Command::Counter(mut flags)) => match flags.command.take() {
            Some(command) => move_totals(*command, of_command("counter")),
            None => counter(flags, of_command("counter"), notes),
        },
        // It runs every few seconds, and the server has logged the notes.
        Some(Command::Health(flags)) => ask_health(flags, of_command("health")),
        Some(Command::Top(flags)) => show_top(flags, of_command("top")),
        Some(Command::Total(flags)) => total(flags, of_command("total")),
        Some(Command::Backup(flags)) => backup(flags, of_command("backup")),
        Some(Command::Restore(flags)) => restore(flags, of_command("restore")),
        Some(Command::Doctor(flags)) => {
            let settled = config::settle(&flags, of_command("doctor"));
            let report = doctor::examine(settled.as_ref().map(|settled| &settled.config));
            let notes = notes.iter().map(|note| format!("note: {note}\n"));
            let text = report.text + &notes.collect::<String>();
            print(&text, ExitCode::from(report.exit_code))
        }
    }
}

/// Treats an empty `TALLYRING_*` variable as one that is not set. Compose files and units make empty ones from
/// `TALLYRING_X=`, and when they pass on a variable that is not set.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |argument: &Arg| {
        argument.get_env().and_then(env::var_os).is_some_and(|value| value.is_empty())
    };
    let without_empty = |argument: Arg| match is_empty(&argument) {
        true => argument.env(None::<&'static str>),
        false => argument,
    };
    command.mut_args(without_empty).mut_subcommands(without_empty_variables)
}

/// Help goes to standard output; a mistake is one line on standard error.
fn refuse_arguments(error: &clap::Error, given: &[OsString]) -> ExitCode {
    if !error.use_stderr() {
        return print(&error.to_string(), ExitCode::SUCCESS);
    }
    log::complain(&mistakes::explain(error, &Arguments::command(), given));
    ExitCode::from(EXIT_USAGE)
}

fn serve(arguments: &ServeArguments, matches: &ArgMatches, notes: Vec<String>) -> ExitCode {
    // The same flags and variables each time; the file and the pages may have changed.
    let read = || config::settle_again(arguments, matches);
    let settled = match config::settle(arguments, matches) {
        Ok(settled) => settled,
        Err(error) => return refuse_settings(&error),
    };
    let guard = log::start(settled.config.log_format, settled.config.log_level);
    task::log_panics();
    for note in notes.iter().chain(&settled.notes) {
        tracing::warn!("{note}");
    }
    let ended = server::serve(settled, read);
    drop(guard);
    exit(ended)
}

fn counter(arguments: CounterArguments, matches: &ArgMatches, notes: Vec<String>) -> ExitCode {
    let config = match config::settle_counter(arguments, matches) {
        Ok(config) => config,
        Err(error) => return refuse_settings(&error),
    };
    let guard = log::start(config.log_format, config.log_level);
    task::log_panics();
    for note in notes {
        tracing::warn!("{note}");
    }
    let ended = server::serve_counter(config);
    drop(guard);
    exit(ended)
}

/// Container engines expect 0 for healthy and 1 for unhealthy, and keep the message.
fn ask_health(arguments: HealthArguments, matches: &ArgMatches) -> ExitCode {
    let config = match config::settle_health(arguments, matches) {
        Ok(config) => config,
        Err(error) => {
            log::complain(&error.to_string());
            return ExitCode::from(EXIT_FAILED);
        }
    };
    match health::ask(&config) {
        Ok(status) => {
            print(&format!("healthy: {} answers {status}\n", config.target), ExitCode::SUCCESS)
        }
        Err(reason) => {
            log::complain(&format!("unhealthy: {}: {reason}", config.target));
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn show_top(arguments: TopArguments, matches: &ArgMatches) -> ExitCode {
    let config = match config::settle_top(arguments, matches) {
        Ok(config) => config,
        Err(error) => return refuse_settings(&error),
    };
    let shown = if config.once || !top::has_terminal() {
        top::once(&config).map(|text| print(&text, ExitCode::SUCCESS))
    } else {
        top::show(&config).map(|closed| match closed {
            Closed::ByKey => ExitCode::SUCCESS,
            Closed::BySignal(signal) => exit(Ok(Ended::Cut { signal })),
        })
    };
    shown.unwrap_or_else(|error| {
        let hint = if error.may_be_elsewhere() { "; --admin says where to ask" } else { "" };
        log::complain(&format!("cannot show {}: {error}{hint}", config.target));
        ExitCode::from(EXIT_FAILED)
    })
}

fn total(arguments: TotalArguments, matches: &ArgMatches) -> ExitCode {
    let config = match config::settle_ask(arguments.ask, matches) {
        Ok(config) => config,
        Err(error) => return refuse_settings(&error),
    };
    if !arguments.all && !config.more.is_empty() {
        let mut exit = ExitCode::SUCCESS;
        for said in totals::of_each(&config, arguments.name.as_deref(), log::complain) {
            let failed = said.is_err();
            let told = tell(said);
            exit = if failed { told } else { exit };
        }
        return exit;
    }
    tell(match arguments.all {
        // A map of numbers is always JSON.
        true => totals::all(&config, log::complain)
            .map(|totals| serde_json::to_string(&totals).unwrap_or_default()),
        false => totals::total(&config, arguments.name.as_deref(), log::complain)
            .map(|total| total.to_string()),
    })
}

/// Makes a write beyond the file-size limit fail, so that the unfinished file is removed, instead of ending the
/// process.
fn outlive_file_limit() {
    // If it fails, only the message is lost.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::default());
}

fn backup(arguments: BackupArguments, matches: &ArgMatches) -> ExitCode {
    outlive_file_limit();
    match config::settle_ask(arguments.ask, matches) {
        Ok(config) => tell(totals::back_up(&config, &arguments.to, arguments.force, log::complain)),
        Err(error) => refuse_settings(&error),
    }
}

fn restore(arguments: RestoreArguments, matches: &ArgMatches) -> ExitCode {
    outlive_file_limit();
    match config::settle_file(arguments.file, matches) {
        Ok(file) => tell(totals::restore(&arguments.from, &file, arguments.force)),
        Err(error) => refuse_settings(&error),
    }
}

/// Does something with the totals of counters that do not run.
fn move_totals(command: MoveCommand, matches: &ArgMatches) -> ExitCode {
    outlive_file_limit();
    let matches = matches.subcommand().map_or(matches, |(_, of_command)| of_command);
    match command {
        MoveCommand::Export(arguments) => export(arguments, matches),
        MoveCommand::Import(arguments) => import(arguments, matches),
        MoveCommand::Migrate(given) => {
            tell(moving::migrate(&given.from.0, &given.to.0, given.force, log::complain))
        }
        MoveCommand::Reopen(given) => tell(moving::reopen(&given.store.0)),
    }
}

fn export(arguments: ExportArguments, matches: &ArgMatches) -> ExitCode {
    let store = match config::settle_store(arguments.store, matches) {
        Ok(store) => store,
        Err(error) => return refuse_settings(&error),
    };
    if arguments.to.as_os_str() != "-" {
        return tell(moving::export(&store, &arguments.to, arguments.force, log::complain));
    }
    match moving::as_json(&store, log::complain) {
        Ok(json) => print(&json, ExitCode::SUCCESS),
        Err(error) => tell(Err(error)),
    }
}

fn import(arguments: ImportArguments, matches: &ArgMatches) -> ExitCode {
    let from = (arguments.from.as_os_str() != "-").then_some(&*arguments.from);
    match config::settle_store(arguments.store, matches) {
        Ok(store) => tell(moving::import(from, &store, arguments.force, log::complain)),
        Err(error) => refuse_settings(&error),
    }
}

/// Prints one line: the result, or why there is none.
fn tell<E: Display>(said: Result<String, E>) -> ExitCode {
    match said {
        Ok(text) => print(&format!("{text}\n"), ExitCode::SUCCESS),
        Err(error) => {
            log::complain(&error.to_string());
            ExitCode::from(EXIT_FAILED)
        }
    }
}

/// Prints the settings. What `serve` would refuse at its start is refused with the same message.
fn check(arguments: &ServeArguments, matches: &ArgMatches, mut notes: Vec<String>) -> ExitCode {
    let settled = match config::settle(arguments, matches) {
        Ok(settled) => settled,
        Err(error) => return refuse_settings(&error),
    };
    notes.extend(settled.notes);
    match server::check(&settled.config) {
        Ok(found) => notes.extend(found),
        Err(error) => return exit(Err(error)),
    }
    let width = settled.settings.iter().map(|setting| setting.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Setting { name, value, source } in settled.settings {
        text.push_str(&format!("{name:<width$}  {value}  ({source})\n"));
    }
    for note in notes {
        text.push_str(&format!("note: {note}\n"));
    }
    print(&text, ExitCode::SUCCESS)
}

fn refuse_settings(error: &ConfigError) -> ExitCode {
    log::complain(&error.to_string());
    ExitCode::from(EXIT_USAGE)
}

fn exit(ended: Result<Ended, ServerError>) -> ExitCode {
    match ended {
        Ok(Ended::Drained) => ExitCode::SUCCESS,
        Ok(Ended::Fenced) => ExitCode::from(EXIT_FENCED),
        // As shells do for a process that a signal has ended.
        Ok(Ended::Cut { signal }) => {
            ExitCode::from(u8::try_from(128 + signal).unwrap_or(EXIT_FAILED))
        }
        Err(error) => {
            log::complain(&error.to_string());
            ExitCode::from(EXIT_FAILED)
        }
    }
}

/// Writes to standard output; `code`, or a failure when that is not possible.
fn print(text: &str, code: ExitCode) -> ExitCode {
    let mut output = io::stdout();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Ok(()) => code,
        // The reader has closed the pipe, as `head` does.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => code,
        Err(error) => {
            log::complain(&format!("cannot write to standard output: {error}"));
            ExitCode::from(EXIT_FAILED)
        }
    }
}
