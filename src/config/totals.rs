//! The arguments and settings of `total`, `backup` and `restore`: whom to ask for totals, and where the counter's
//! file is. They are the server's own, read from the same places, so that a container says them once.

use std::path::PathBuf;

use clap::{ArgMatches, Args};

use super::{
    AskConfig, ConfigError,
    arguments::CounterAddress,
    error::invalid,
    file::{File, read_file},
    health::reachable,
    pick::Pick,
    places::Places,
    scalar::Text,
    settle::default_store,
    values::Period,
};
use crate::{
    counter::{self, store},
    upstream::Endpoint,
};

/// Whose file it is.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct FileArguments {
    /// Where the totals are kept: redb:PATH [default: redb:counter.redb in the data directory]
    #[arg(long, env = "TALLYRING_STORE", value_name = "STORE")]
    pub store: Option<store::Kind>,
    /// Directory of the counter's file [default: $STATE_DIRECTORY, else $XDG_STATE_HOME/tallyring, else
    /// ~/.local/state/tallyring]
    #[arg(long, env = "TALLYRING_DATA_DIR", value_name = "DIRECTORY")]
    pub data_dir: Option<PathBuf>,
    /// TOML file with the server's settings
    #[arg(long, env = "TALLYRING_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Who is asked for totals.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct AskArguments {
    /// Address at which the bundled counter of a server, or `tallyring counter`, listens; with off, its file
    /// is read
    #[arg(
        long,
        env = "TALLYRING_COUNTER_LISTEN",
        value_name = "ADDRESS|off",
        default_value = "127.0.0.1:3001"
    )]
    pub counter_listen: CounterAddress,
    /// Counter that the server registers its visits with, which is asked in place of the bundled one, like
    /// http://127.0.0.1:3001/counter
    #[arg(long, env = "TALLYRING_COUNTER", hide_env_values = true, value_name = "URL")]
    pub counter: Option<Endpoint>,
    /// Time for the whole answer
    #[arg(long, env = "TALLYRING_TOTAL_TIMEOUT", value_name = "TIME", default_value = "10s")]
    pub timeout: Period,
    #[command(flatten)]
    pub file: FileArguments,
}

/// The arguments of `total`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct TotalArguments {
    /// Name of the counter, as in /counter/NAME [default: the one without a name]
    #[arg(value_parser = counter_name)]
    pub name: Option<String>,
    /// Print all totals by name, as JSON; the one without a name is ""
    #[arg(long, conflicts_with = "name")]
    pub all: bool,
    #[command(flatten)]
    pub ask: AskArguments,
}

/// The arguments of `backup`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct BackupArguments {
    /// File to make
    #[arg(value_name = "FILE")]
    pub to: PathBuf,
    /// Replace the file where it is there already
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub ask: AskArguments,
}

/// The arguments of `restore`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct RestoreArguments {
    /// File that `backup` has made, or a copy of a counter's file
    #[arg(value_name = "FILE")]
    pub from: PathBuf,
    /// Restore even if that lowers a total, or replaces a file that is not a counter's
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub file: FileArguments,
}

/// Settles whom to ask, and which file to read when nobody answers.
///
/// # Errors
/// When there is neither.
pub fn settle_ask(arguments: AskArguments, matches: &ArgMatches) -> Result<AskConfig, ConfigError> {
    let timeout = arguments.timeout.0;
    let (mut file, places) = read_config(&arguments.file)?;
    let mut pick = Pick::new(matches, places);
    let of_file = (file.counter.take(), file.counter_listen.take());
    // Both say whom to ask. From one place the URL counts: a server that has one uses no bundled counter.
    let from = [("counter", of_file.0.is_some()), ("counter-listen", of_file.1.is_some())]
        .map(|(name, in_file)| pick.source(name, in_file));
    let counter = pick
        .option("counter", arguments.counter, of_file.0.map(|Text(url)| url), |_| String::new());
    if let Some(counter) = counter
        && from[0] >= from[1]
    {
        return Ok(AskConfig { counter: Some(counter), file: None, timeout });
    }
    let listen = of_file.1.map(|Text(address)| address);
    let listen = pick.shown("counter-listen", arguments.counter_listen, listen).0;
    if let Some(address) = listen
        && address.port() == 0
    {
        let problem =
            format!("{address} has no port to ask at; give the one that the server tells");
        return Err(pick.locate(invalid("counter-listen", problem)));
    }
    let counter = listen.map(|address| Endpoint::bundled(reachable(address)));
    let file = match store(arguments.file, &mut pick, file) {
        Ok(store::Kind::Redb(path)) => Some(path),
        // There may be no place for a file: who runs is asked all the same.
        _ if counter.is_some() => None,
        Ok(store::Kind::Memory) => return Err(in_memory()),
        Err(error) => return Err(error),
    };
    Ok(AskConfig { counter, file, timeout })
}

/// Settles where the counter's file is.
///
/// # Errors
/// When there is none.
pub fn settle_file(arguments: FileArguments, matches: &ArgMatches) -> Result<PathBuf, ConfigError> {
    let (file, places) = read_config(&arguments)?;
    let mut pick = Pick::new(matches, places);
    match store(arguments, &mut pick, file)? {
        store::Kind::Redb(path) => Ok(path),
        store::Kind::Memory => Err(in_memory()),
    }
}

fn read_config(arguments: &FileArguments) -> Result<(File, Option<Places>), ConfigError> {
    match &arguments.config {
        Some(path) => read_file(path).map(|(file, places)| (file, Some(places))),
        None => Ok((File::default(), None)),
    }
}

fn store(
    arguments: FileArguments,
    pick: &mut Pick<'_>,
    file: File,
) -> Result<store::Kind, ConfigError> {
    let data_dir_from = pick.source("data-dir", file.data_dir.is_some());
    match arguments.store {
        // As for the counter: a directory from a place that wins says where the totals are, too.
        Some(store) if pick.source("store", false) >= data_dir_from => Ok(store),
        _ => default_store(
            pick.option("data-dir", arguments.data_dir, file.data_dir, |_| String::new()),
        ),
    }
}

fn in_memory() -> ConfigError {
    invalid("store", "memory keeps its totals in the counter's process alone; give redb:PATH")
}

/// The name of a counter.
fn counter_name(text: &str) -> Result<String, &'static str> {
    match counter::is_name(text) {
        true => Ok(text.to_owned()),
        false => Err("it must be 1 to 128 letters, digits, dots, dashes and underscores"),
    }
}
