//! Where settings come from: each takes its value from the first place that gives one, and notes which.

use std::{
    fmt::Display,
    fs,
    path::{Path, PathBuf},
};

use clap::{ArgMatches, parser::ValueSource};

use super::{ConfigError, file::File};
use crate::upstream::without_secrets;

/// A setting as it was settled, for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Its name, as in the file.
    pub name: String,
    /// Its value.
    pub value: String,
    /// Where the value came from.
    pub source: String,
}

/// The places that a setting can come from; the one that wins is the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    Default,
    File,
    Variable,
    Flag,
}

/// Takes each setting from the first place that gives one, and notes which.
pub(super) struct Pick<'a> {
    matches: &'a ArgMatches,
    pub(super) file: Option<PathBuf>,
    pub(super) settings: Vec<Setting>,
}

impl<'a> Pick<'a> {
    pub(super) fn new(matches: &'a ArgMatches, file: Option<PathBuf>) -> Self {
        Self { matches, file, settings: Vec::new() }
    }

    pub(super) fn value<T>(
        &mut self,
        name: &str,
        argument: T,
        file: Option<T>,
        show: impl Fn(&T) -> String,
    ) -> T {
        let source = self.source(name, file.is_some());
        let value = match (source, file) {
            (Source::File, Some(value)) => value,
            _ => argument,
        };
        self.note(name, show(&value), self.describe(name, source));
        value
    }

    /// Where a setting comes from, which the file may have or not.
    pub(super) fn source(&self, name: &str, in_file: bool) -> Source {
        match self.matches.value_source(&name.replace('-', "_")) {
            Some(ValueSource::CommandLine) => Source::Flag,
            Some(ValueSource::EnvVariable) => Source::Variable,
            _ if in_file => Source::File,
            _ => Source::Default,
        }
    }

    /// A place that a setting has come from, for a person.
    pub(super) fn describe(&self, name: &str, source: Source) -> String {
        match source {
            Source::Flag => format!("flag --{name}"),
            Source::Variable => {
                let variable = name.replace('-', "_").to_uppercase();
                format!("environment TALLYRING_{variable}")
            }
            Source::File => {
                let path = self.file.as_deref().unwrap_or(Path::new(""));
                format!("file {}", path.display())
            }
            Source::Default => String::from("default"),
        }
    }

    pub(super) fn note(&mut self, name: &str, value: String, source: String) {
        self.settings.push(Setting { name: name.to_owned(), value, source });
    }

    pub(super) fn shown<T: Display>(&mut self, name: &str, argument: T, file: Option<T>) -> T {
        self.value(name, argument, file, T::to_string)
    }

    pub(super) fn option<T>(
        &mut self,
        name: &str,
        argument: Option<T>,
        file: Option<T>,
        show: impl Fn(&Option<T>) -> String,
    ) -> Option<T> {
        self.value(name, argument, file.map(Some), show)
    }
}

/// Shows an option whose default is worked out.
pub(super) fn or_auto<T: Display>(value: &Option<T>) -> String {
    value.as_ref().map_or_else(|| String::from("auto"), T::to_string)
}

/// Shows a file, or the text that stands for it.
pub(super) fn or_text(text: &'static str) -> impl Fn(&Option<PathBuf>) -> String {
    move |path| match path {
        Some(path) => path.display().to_string(),
        None => format!("the text {text:?}"),
    }
}

/// A message that may quote a URL, without what may be a secret in it.
fn quoted_without_secrets(message: &str) -> String {
    let is_delimiter = |character: char| matches!(character, '"' | '`' | '\'' | ' ');
    let pieces = message.split_inclusive(is_delimiter);
    pieces
        .map(|piece| {
            let word = piece.strip_suffix(is_delimiter).unwrap_or(piece);
            without_secrets(word) + &piece[word.len()..]
        })
        .collect()
}

/// Reads the file of `--config`.
pub(super) fn read_file(path: &Path) -> Result<File, ConfigError> {
    let text =
        fs::read_to_string(path).map_err(|error| ConfigError::File(path.to_owned(), error))?;
    toml::from_str(&text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        ConfigError::Syntax {
            path: path.to_owned(),
            line: 1 + text[..start.min(text.len())].matches('\n').count(),
            message: quoted_without_secrets(&error.message().replace('\n', " ")),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_keeps_its_secrets() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tallyring.toml");
        let url = "http://user:s3cret@c/?token=s3cret&a=b";
        for setting in ["accept", "driver", "log-format", "workers", "create", "counter"] {
            fs::write(&path, format!("{setting} = \"{url}\"\n")).unwrap();
            let message = read_file(&path).err().unwrap().to_string();
            assert!(!message.contains("s3cret"), "{message}");
        }
        fs::write(&path, format!("\"{url}\" = 1\n")).unwrap();
        assert!(!read_file(&path).err().unwrap().to_string().contains("s3cret"));
    }

    #[test]
    fn a_file_names_the_line_of_its_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tallyring.toml");
        for (text, line, word) in [
            ("driver = \"auto\"\nlisten = 5\n", 2, "listen"),
            ("\n\ncolour = \"red\"\n", 3, "colour"),
            ("counter-timeout = \"soon\"\n", 1, "soon"),
            ("counter = \"https://a/\"\n", 1, "https"),
            ("[[route]]\npath = \"/\"\nmethods = [\"PUT\"]\n", 3, "PUT"),
        ] {
            fs::write(&path, text).unwrap();
            match read_file(&path) {
                Err(ConfigError::Syntax { line: at, message, .. }) => {
                    assert_eq!(at, line, "{text:?}: {message}");
                    assert!(message.contains(word) || word == "listen", "{text:?}: {message}");
                }
                other => panic!("{text:?}: {:?}", other.err()),
            }
        }
    }
}
