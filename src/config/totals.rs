//! The settings of `total`, `backup` and `restore`: whom to ask for totals, and where the counter's file is. They are
//! the server's own, read from the same places, so that a container says them once.

use std::path::PathBuf;

use clap::ArgMatches;

use super::{
    AskConfig, ConfigError,
    arguments::{AskArguments, FileArguments},
    file::{File, Text},
    health::reachable,
    pick::{Pick, read_file},
    settle::{default_store, invalid},
};
use crate::{counter::store, upstream::Target};

/// Settles whom to ask, and which file to read when nobody answers.
///
/// # Errors
/// When there is neither.
pub fn settle_ask(arguments: AskArguments, matches: &ArgMatches) -> Result<AskConfig, ConfigError> {
    let timeout = arguments.timeout.0;
    let mut file = read_config(&arguments.file)?;
    let mut pick = Pick::new(matches, arguments.file.config.clone());
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
        return Err(invalid("counter-listen", problem));
    }
    let counter = listen.map(|address| Target::bundled(reachable(address)));
    let file = match store(arguments.file, &mut pick, file)? {
        store::Kind::Redb(path) => Some(path),
        store::Kind::Memory if counter.is_none() => return Err(in_memory()),
        store::Kind::Memory => None,
    };
    Ok(AskConfig { counter, file, timeout })
}

/// Settles where the counter's file is.
///
/// # Errors
/// When there is none.
pub fn settle_file(arguments: FileArguments, matches: &ArgMatches) -> Result<PathBuf, ConfigError> {
    let file = read_config(&arguments)?;
    let mut pick = Pick::new(matches, arguments.config.clone());
    match store(arguments, &mut pick, file)? {
        store::Kind::Redb(path) => Ok(path),
        store::Kind::Memory => Err(in_memory()),
    }
}

fn read_config(arguments: &FileArguments) -> Result<File, ConfigError> {
    arguments.config.as_deref().map_or_else(|| Ok(File::default()), read_file)
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
