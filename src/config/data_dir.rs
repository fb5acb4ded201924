//! Where the bundled counter keeps its file: the flags of the commands that use it, and the default.

use std::{env, path::PathBuf};

use clap::Args;

use super::{
    error::{ConfigError, invalid},
    pick::Pick,
};
use crate::{
    counter::{self, store},
    runtime::host,
};

/// Where a counter keeps its totals.
#[derive(Debug, Clone, Args)]
#[allow(missing_docs)]
pub struct StoreArguments {
    /// Where the bundled counter keeps its totals: redb:PATH, a database that counters share like
    /// postgres://USER@HOST/DATABASE or etcd://HOST/PREFIX, or memory for trials [default: redb:counter.redb in the data directory]
    #[arg(long, env = "TALLYRING_STORE", hide_env_values = true, value_name = "STORE")]
    pub store: Option<store::Kind>,
    /// Name of this counter in the database, other than that of any other that runs; the same after a
    /// restart [default: the host's name and the port of the counter]
    #[arg(long, env = "TALLYRING_STORE_SHARD", value_name = "NAME")]
    pub store_shard: Option<ShardName>,
    #[command(flatten)]
    pub data_dir: DataDirArguments,
}

/// The name of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardName(pub(super) String);

impl std::str::FromStr for ShardName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match counter::is_name(text) {
            true => Ok(Self(text.to_owned())),
            false => Err("it must be 1 to 128 letters, digits, dots, dashes and underscores"),
        }
    }
}

impl std::fmt::Display for ShardName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl ShardName {
    /// That of the counter at this port, where none is given. It survives a restart, and differs from those of other
    /// counters on this host; a pod of a StatefulSet has its own name as the host's.
    pub(super) fn of_port(port: u16) -> Self {
        let host = host::name();
        let plain = |letter: char| match letter.is_ascii_alphanumeric() || ".-".contains(letter) {
            true => letter,
            false => '_',
        };
        Self(format!("{}-{port}", host.chars().take(100).map(plain).collect::<String>()))
    }
}

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
    /// The store of a counter, by `--store` or by the directory of its file; `in_file` is what the settings file gives
    /// of both. Both say where the totals are: the one from the higher source wins.
    pub(super) fn settle_store(
        self,
        store: Option<store::Kind>,
        pick: &mut Pick<'_>,
        in_file: (Option<store::Kind>, Option<PathBuf>),
    ) -> Result<store::Kind, ConfigError> {
        let wins = store_wins(pick, (in_file.0.is_some(), in_file.1.is_some()));
        match pick.option("store", store, in_file.0, |_| String::new()) {
            Some(store) if wins => Ok(store),
            _ => {
                default_store(pick.option("data-dir", self.data_dir, in_file.1, |_| String::new()))
            }
        }
    }
}

/// Whether a store that is given says where the totals are, and not the directory; `in_file` says which of both the
/// settings file has.
pub(super) fn store_wins(pick: &Pick<'_>, in_file: (bool, bool)) -> bool {
    pick.source("store", in_file.0) >= pick.source("data-dir", in_file.1)
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
