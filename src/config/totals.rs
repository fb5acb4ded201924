//! The arguments and settings of `total`, `backup` and `restore`: which counter to ask, and where its file is. They are
//! the server's, read from the same sources, so that a container sets them once.

use std::path::PathBuf;

use clap::{ArgMatches, Args};

use super::{
    AskConfig, ConfigError, arguments::CounterEndpointArguments, counters::CounterUrls,
    data_dir::DataDirArguments, error::invalid, file::ConfigFileArguments, health::reachable,
    pick::Pick, scalar::Text, values::Period,
};
use crate::{
    counter::{self, store},
    upstream::Endpoint,
};

/// Where the counter's file is.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct FileArguments {
    /// Where the totals are kept, as the counter has it [default: redb:counter.redb in the data directory]
    #[arg(long, env = "TALLYRING_STORE", hide_env_values = true, value_name = "STORE")]
    pub store: Option<store::Kind>,
    #[command(flatten)]
    pub data_dir: DataDirArguments,
    #[command(flatten)]
    pub config: ConfigFileArguments,
}

/// Which counter is asked.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct AskArguments {
    #[command(flatten)]
    pub endpoint: CounterEndpointArguments,
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
    /// Replace the file if it is there, unless a total in it is higher
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

/// Settles which counter to ask, and which file to read when no counter runs.
///
/// # Errors
/// When there is neither.
pub fn settle_ask(arguments: AskArguments, matches: &ArgMatches) -> Result<AskConfig, ConfigError> {
    let timeout = arguments.timeout.0;
    let (mut file, locations) = arguments.file.config.read()?;
    let mut pick = Pick::new(matches, locations);
    let of_file = (file.counter.take(), file.counter_listen.take());
    // Both say which counter to ask. If both come from the same source, the URL wins: a server with a URL uses no
    // bundled counter.
    let from = [("counter", of_file.0.is_some()), ("counter-listen", of_file.1.is_some())]
        .map(|(name, in_file)| pick.source(name, in_file));
    let urls = of_file.0.map(|CounterUrls(urls)| urls);
    let mut urls = pick.value("counter", arguments.endpoint.urls(), urls, |_| String::new());
    if !urls.is_empty() && from[0] >= from[1] {
        let more = urls.split_off(1);
        return Ok(AskConfig {
            counter: urls.pop(),
            more,
            flag: "counter",
            file: None,
            database: None,
            timeout,
        });
    }
    let CounterEndpointArguments { counter_listen, .. } = arguments.endpoint;
    let listen = of_file.1.map(|Text(address)| address);
    let listen = pick.shown("counter-listen", counter_listen, listen).0;
    if let Some(address) = listen
        && address.port() == 0
    {
        let problem =
            format!("{address} has no port to ask at; give the one that the server tells");
        return Err(pick.locate(invalid("counter-listen", problem)));
    }
    let counter = listen.map(|address| Endpoint::bundled(reachable(address)));
    let FileArguments { store, data_dir, .. } = arguments.file;
    let in_file = (file.store.map(|Text(store)| store), file.data_dir);
    let (file, database) = match data_dir.settle_store(store, &mut pick, in_file) {
        Ok(store::Kind::Redb(path)) => (Some(path), None),
        // Without a file, a counter that runs can still be asked.
        Ok(store) if counter.is_some() => (None, store.is_shared().then(|| store.to_string())),
        Err(_) if counter.is_some() => (None, None),
        Ok(store::Kind::Memory) => return Err(in_memory()),
        Ok(store) => return Err(in_database(&store, "export")),
        Err(error) => return Err(error),
    };
    let (more, flag) = (Vec::new(), "counter-listen");
    Ok(AskConfig { counter, more, flag, file, database, timeout })
}

/// Settles where the counter's file is.
///
/// # Errors
/// When there is none.
pub fn settle_file(arguments: FileArguments, matches: &ArgMatches) -> Result<PathBuf, ConfigError> {
    match settle_store(arguments, matches)? {
        store::Kind::Redb(path) => Ok(path),
        store::Kind::Memory => Err(in_memory()),
        store => Err(in_database(&store, "import")),
    }
}

/// Settles where the totals are.
///
/// # Errors
/// When no place is known.
pub fn settle_store(
    arguments: FileArguments,
    matches: &ArgMatches,
) -> Result<store::Kind, ConfigError> {
    let (file, locations) = arguments.config.read()?;
    let mut pick = Pick::new(matches, locations);
    let in_file = (file.store.map(|Text(store)| store), file.data_dir);
    arguments.data_dir.settle_store(arguments.store, &mut pick, in_file)
}

/// `command` does the same with a database.
fn in_database(store: &store::Kind, command: &str) -> ConfigError {
    let problem = format!("{store} is no file; use tallyring counter {command}");
    invalid("store", problem)
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
