//! What is wrong with the settings. A check names the setting; where its value was given, the flag, the variable
//! or the line of the file, is added by `pick`, which knows.

use std::{io, path::PathBuf};

use crate::upstream::without_secrets;

/// Settings that cannot be used: which, what was given and what would do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file of `--config` cannot be read.
    #[error("--config {0}: cannot read it: {1}")]
    File(PathBuf, io::Error),
    /// A value does not fit. Where it was given is not told yet.
    #[error("{setting}: {problem}")]
    Value {
        /// The setting's name.
        setting: String,
        /// What it takes.
        problem: String,
    },
    /// A key of a route does not fit. Where it was given is not told yet.
    #[error("route {path:?}: {key}: {problem}")]
    Route {
        /// Which route, counted from 0.
        place: usize,
        /// Its path.
        path: String,
        /// The key.
        key: String,
        /// What it takes.
        problem: String,
    },
    /// A value does not fit, as it was given in its place.
    #[error("{given}: {problem}")]
    Given {
        /// As it was written, like `--workers 0` or `/etc/tallyring.toml line 3: workers = 0`.
        given: String,
        /// What it takes.
        problem: String,
    },
    /// The system allows too few open files to serve anybody.
    #[error(
        "open files: the limit is {limit}, and this start needs at least {needed}, for {workers}; raise it by \
         ulimit -n, by LimitNOFILE= in a unit, or by --ulimit nofile= for a container"
    )]
    OpenFiles {
        /// What the system allows.
        limit: usize,
        /// With which a few clients can be served.
        needed: usize,
        /// Who needs them.
        workers: String,
    },
    /// A variable that looks like a setting and is none.
    #[error("{name} is no setting; did you mean {nearest}?")]
    Variable {
        /// The variable.
        name: String,
        /// The setting's variable that is most like it.
        nearest: String,
    },
}

impl ConfigError {
    /// The same of a key of the route at `place`, counted from 0.
    pub(super) fn of_route(self, place: usize, path: &str) -> Self {
        match self {
            Self::Value { setting: key, problem } => {
                Self::Route { place, path: path.to_owned(), key, problem }
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

/// The word that is most like another, if one is: what clap's suggestions go by.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const LIKENESS_MIN: f64 = 0.7;
    let likeness = known.into_iter().map(|known| (strsim::jaro(word, known), known));
    let (likeness, known) = likeness.max_by(|one, other| one.0.total_cmp(&other.0))?;
    (likeness > LIKENESS_MIN).then_some(known)
}

/// A message that may quote a URL, without what may be a secret in it.
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
