//! Where settings come from: each takes its value from the highest source that gives one, and notes which.

use std::{fmt::Display, path::PathBuf};

use clap::{ArgMatches, parser::ValueSource};

use super::{ConfigError, locations::Locations};
use crate::upstream::without_secrets;

/// A settled setting, for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Its name, as in the file.
    pub name: String,
    /// Its value.
    pub value: String,
    /// Where the value came from.
    pub source: String,
}

/// What can give a setting, from the lowest source to the highest, which wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    Default,
    File,
    Variable,
    Flag,
}

/// Takes each setting from the highest source that gives one, and notes which.
pub(super) struct Pick<'a> {
    matches: &'a ArgMatches,
    /// Where the keys of the file are, if there is a file.
    pub(super) file: Option<Locations>,
    pub(super) settings: Vec<Setting>,
}

impl<'a> Pick<'a> {
    pub(super) fn new(matches: &'a ArgMatches, file: Option<Locations>) -> Self {
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

    /// Where a setting comes from; `in_file` says whether the file gives it.
    pub(super) fn source(&self, name: &str, in_file: bool) -> Source {
        let id = id(name);
        // clap panics when it is asked for a flag that the command does not have.
        let is_flag = self.matches.ids().any(|known| *known == id);
        match is_flag.then(|| self.matches.value_source(&id)).flatten() {
            Some(ValueSource::CommandLine) => Source::Flag,
            Some(ValueSource::EnvVariable) => Source::Variable,
            _ if in_file => Source::File,
            _ => Source::Default,
        }
    }

    /// The source of a setting, for a person.
    pub(super) fn describe(&self, name: &str, source: Source) -> String {
        match source {
            Source::Flag => format!("flag --{name}"),
            Source::Variable => format!("environment {}", variable(name)),
            Source::File => {
                let line = self.file.as_ref().and_then(|file| file.line(name));
                format!("file {}", line.unwrap_or_default())
            }
            Source::Default => String::from("default"),
        }
    }

    /// Adds to an error where the wrong value was given.
    pub(super) fn locate(&self, error: ConfigError) -> ConfigError {
        match error {
            ConfigError::Value { setting, problem } => {
                ConfigError::Given { given: self.given(&setting), problem }
            }
            ConfigError::Route { index, ref path, ref key, ref problem } => {
                let line = self.file.as_ref().and_then(|file| file.route(index, Some(key)));
                let Some(line) = line else { return error };
                let given = format!("{line}: route {path:?}: {key}");
                ConfigError::Given { given, problem: problem.clone() }
            }
            other => other,
        }
    }

    /// A setting as it was given.
    fn given(&self, name: &str) -> String {
        let in_file = self.file.as_ref().and_then(|file| file.given(name));
        match self.source(name, in_file.is_some()) {
            Source::Flag => format!("--{name} {}", self.written(name)),
            Source::Variable => format!("{}={}", variable(name), self.written(name)),
            Source::File => in_file.unwrap_or_default(),
            Source::Default => match self.written(name) {
                default if default.is_empty() => format!("--{name}"),
                default => format!("--{name} {default} (the default)"),
            },
        }
    }

    /// The values of a flag or variable.
    fn written(&self, name: &str) -> String {
        let values = self.matches.try_get_raw(&id(name)).ok().flatten().into_iter().flatten();
        let values = values.map(|value| without_secrets(&value.to_string_lossy()));
        values.collect::<Vec<_>>().join(",")
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

/// The name that clap has for a setting.
fn id(name: &str) -> String {
    name.replace('-', "_")
}

/// The variable of a setting of `serve`.
fn variable(name: &str) -> String {
    format!("TALLYRING_{}", id(name).to_uppercase())
}

/// Shows an option, or the word that stands for none.
pub(super) fn or<T: Display>(word: &'static str) -> impl Fn(&Option<T>) -> String {
    move |value| value.as_ref().map_or_else(|| word.to_owned(), T::to_string)
}

/// Shows the path of a file, or the text that is used without one.
pub(super) fn or_text(text: &'static str) -> impl Fn(&Option<PathBuf>) -> String {
    move |path| match path {
        Some(path) => path.display().to_string(),
        None => format!("the text {text:?}"),
    }
}
