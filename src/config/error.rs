//! What is wrong with the settings. A check names the setting; `pick` adds where the value was given: the flag, the
//! variable, or the line of the file.

use std::{io, path::PathBuf};

use crate::upstream::without_secrets;

/// Settings that cannot be used: which, what was given, and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file of `--config` cannot be read.
    #[error("--config {0}: cannot read it: {1}")]
    File(PathBuf, io::Error),
    /// A value does not fit. Where it was given is added later.
    #[error("{setting}: {problem}")]
    Value {
        /// The setting's name.
        setting: String,
        /// What it takes.
        problem: String,
    },
    /// A key of a route does not fit. Where it was given is added later.
    #[error("route {path:?}: {key}: {problem}")]
    Route {
        /// Which route, counted from 0.
        index: usize,
        /// Its path.
        path: String,
        /// The key.
        key: String,
        /// What it takes.
        problem: String,
    },
    /// A value does not fit, with where it was given.
    #[error("{given}: {problem}")]
    Given {
        /// As it was written, like `--workers 0` or `/etc/tallyring.toml line 3: workers = 0`.
        given: String,
        /// What it takes.
        problem: String,
    },
    /// The system allows too few open files.
    #[error(
        "open files: the limit is {limit}, and this start needs at least {needed}, for {workers}; raise it by \
         ulimit -n, by LimitNOFILE= in a unit, or by --ulimit nofile= for a container"
    )]
    OpenFiles {
        /// What the system allows.
        limit: usize,
        /// Enough to serve a few clients.
        needed: usize,
        /// Who needs them.
        workers: String,
    },
    /// A variable whose name is almost that of a setting.
    #[error("{name} is no setting; did you mean {nearest}?")]
    Variable {
        /// The variable.
        name: String,
        /// The variable that is probably meant.
        nearest: String,
    },
}

impl ConfigError {
    /// The same error, of a key of the route at `index`.
    pub(super) fn of_route(self, index: usize, path: &str) -> Self {
        match self {
            Self::Value { setting: key, problem } => {
                Self::Route { index, path: path.to_owned(), key, problem }
            }
            other => other,
        }
    }
}

pub(super) fn invalid(setting: impl Into<String>, problem: impl Into<String>) -> ConfigError {
    ConfigError::Value { setting: setting.into(), problem: problem.into() }
}

/// `a, b or c`.
pub(super) fn one_of(words: &[impl AsRef<str>]) -> String {
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    match words.as_slice() {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// The known word that is most similar to `word`, if one is similar, by the measure of clap's suggestions.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const SIMILARITY_MIN: f64 = 0.7;
    let similarity = known.into_iter().map(|known| (strsim::jaro(word, known), known));
    let (similarity, known) = similarity.max_by(|one, other| one.0.total_cmp(&other.0))?;
    (similarity > SIMILARITY_MIN).then_some(known)
}

/// A message that may quote URLs, without what may be a secret in them.
pub(super) fn quoted_without_secrets(message: &str) -> String {
    let is_delimiter = |character: char| matches!(character, '"' | '`' | '\'' | ' ');
    let pieces = message.split_inclusive(is_delimiter);
    pieces
        .map(|piece| {
            let word = piece.strip_suffix(is_delimiter).unwrap_or(piece);
            without_secrets(word) + &piece[word.len()..]
        })
        .collect()
}
