//! Where the bundled counter keeps its file: the flags of the commands that use it, and the default.

use std::{env, path::PathBuf};

use clap::Args;

use super::{
    error::{ConfigError, invalid},
    pick::Pick,
};
use crate::counter::store;

/// The directory of the counter's file.
#[derive(Debug, Clone, Args)]
#[allow(missing_docs)]
pub struct DataDirArguments {
    /// Directory of the counter's file [default: $STATE_DIRECTORY, else $XDG_STATE_HOME/tallyring,
    /// else ~/.local/state/tallyring]
    #[arg(long, env = "TALLYRING_DATA_DIR", value_name = "DIRECTORY")]
    pub data_dir: Option<PathBuf>,
}

impl DataDirArguments {
    /// The store of a counter, by `--store` or by the directory of its file; `in_file` is the directory that the
    /// settings file gives. Both flags say where the totals are: the one from the higher source wins.
    pub(super) fn settle_store(
        self,
        store: Option<store::Kind>,
        pick: &mut Pick<'_>,
        in_file: Option<PathBuf>,
    ) -> Result<store::Kind, ConfigError> {
        let data_dir_from = pick.source("data-dir", in_file.is_some());
        match store {
            Some(store) if pick.source("store", false) >= data_dir_from => Ok(store),
            _ => default_store(pick.option("data-dir", self.data_dir, in_file, |_| String::new())),
        }
    }
}

/// The store of a server, in this directory or the default one.
pub(super) fn default_store(data_dir: Option<PathBuf>) -> Result<store::Kind, ConfigError> {
    let directory = data_dir.or_else(default_data_dir).ok_or_else(|| {
        invalid("data-dir", "no place for the counter's file is known (HOME is not set); give one")
    })?;
    Ok(store::Kind::Redb(absolute(directory).join("counter.redb")))
}

/// The directory where none is given, if the environment has one.
pub(super) fn default_data_dir() -> Option<PathBuf> {
    let directory = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    // systemd.exec(5): several directories are separated by colons; ours is the first.
    let state = env::var("STATE_DIRECTORY").ok();
    let state = state.and_then(|list| list.split(':').next().map(PathBuf::from));
    state
        .filter(|path| !path.as_os_str().is_empty())
        .or_else(|| directory("XDG_STATE_HOME").map(|path| path.join("tallyring")))
        .or_else(|| directory("HOME").map(|path| path.join(".local/state/tallyring")))
}

/// Makes a path absolute that is relative to the working directory.
pub(super) fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}
