//! Where the keys of the file of `--config` are, and what is written there.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
};

use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, nearest, quoted_without_secrets};
use crate::upstream::without_secrets;

/// The most characters of a value that an error shows.
const SHOWN_CHARACTERS_MAX: usize = 80;

/// A file's keys.
#[derive(Debug, Default)]
pub(super) struct Locations {
    path: PathBuf,
    keys: Keys,
    routes: Vec<Table>,
}

type Keys = BTreeMap<String, Location>;

/// A `[[route]]` table.
#[derive(Debug)]
struct Table {
    line: usize,
    keys: Keys,
}

/// A key and its value.
#[derive(Debug)]
struct Location {
    /// Counted from 1.
    line: usize,
    /// Of key and value, in bytes.
    span: Range<usize>,
    /// `key = value`, without secrets and on one line.
    text: String,
}

impl Locations {
    /// Finds the keys of `text`, the content of the file at `path`; none if it is not TOML.
    pub(super) fn of(path: &Path, text: &str) -> Self {
        let table = DeTable::parse(text).map(toml::Spanned::into_inner).unwrap_or_default();
        let keys = keys_of(text, &table);
        let routes = match table.get("route").map(toml::Spanned::get_ref) {
            Some(DeValue::Array(routes)) => routes.iter().collect(),
            _ => Vec::new(),
        };
        let table = |value: &toml::Spanned<DeValue<'_>>| Table {
            line: line_at(text, value.span().start),
            keys: value.get_ref().as_table().map(|table| keys_of(text, table)).unwrap_or_default(),
        };
        Self { path: path.to_owned(), keys, routes: routes.into_iter().map(table).collect() }
    }

    /// Where a setting is, as `FILE line 3`, if the file has it.
    pub(super) fn line(&self, key: &str) -> Option<String> {
        self.keys.get(key).map(|location| self.at(location.line))
    }

    /// A setting as it is written, as `FILE line 3: key = value`, if the file has it.
    pub(super) fn given(&self, key: &str) -> Option<String> {
        self.keys.get(key).map(|location| self.show(location))
    }

    /// Where a route is, or one of its keys.
    pub(super) fn route(&self, index: usize, key: Option<&str>) -> Option<String> {
        let table = self.routes.get(index)?;
        let key = key.and_then(|key| table.keys.get(key));
        let line = key.map_or(table.line, |location| location.line);
        Some(self.at(line))
    }

    /// What is wrong with the file as TOML, or with a value of it.
    pub(super) fn explain(&self, text: &str, error: &toml::de::Error) -> ConfigError {
        let start = error.span().map_or(0, |span| span.start);
        let tables = self.routes.iter().map(|table| &table.keys).chain([&self.keys]);
        let around = tables.flat_map(BTreeMap::values).find(|key| key.span.contains(&start));
        let given = around.map_or_else(|| self.at(line_at(text, start)), |key| self.show(key));
        ConfigError::Given { given, problem: problem(error.message()) }
    }

    fn at(&self, line: usize) -> String {
        format!("{} line {line}", self.path.display())
    }

    fn show(&self, location: &Location) -> String {
        format!("{}: {}", self.at(location.line), location.text)
    }
}

fn keys_of(text: &str, table: &DeTable<'_>) -> Keys {
    let locate = |(key, value): (&toml::Spanned<_>, &toml::Spanned<DeValue<'_>>)| {
        let span = key.span().start..value.span().end.max(key.span().end);
        let name: &std::borrow::Cow<'_, str> = key.get_ref();
        let shown = shortened(&shown(text, value));
        let written = format!("{} = {shown}", without_secrets(name));
        let line = line_at(text, span.start);
        (name.clone().into_owned(), Location { line, span, text: written })
    };
    table.iter().map(locate).collect()
}

/// A value without what may be a secret. Each text is judged as a whole: a secret may contain quotes and spaces, and
/// the sign that shows it to be one may come last.
fn shown(text: &str, value: &toml::Spanned<DeValue<'_>>) -> String {
    match value.get_ref() {
        DeValue::String(written) => {
            let written = without_secrets(written);
            let quote = if written.contains('"') { '\'' } else { '"' };
            format!("{quote}{written}{quote}")
        }
        DeValue::Array(values) => {
            let values: Vec<_> = values.iter().map(|value| shown(text, value)).collect();
            format!("[{}]", values.join(", "))
        }
        DeValue::Table(_) => String::from("{…}"),
        _ => text.get(value.span()).unwrap_or_default().to_owned(),
    }
}

/// A text on one line, cut where it is too long.
fn shortened(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut shown: String = line.chars().take(SHOWN_CHARACTERS_MAX).collect();
    if shown.len() < line.len() {
        shown.push('…');
    }
    shown
}

fn line_at(text: &str, offset: usize) -> usize {
    1 + text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count()
}

/// A message of serde, in words for a person.
fn problem(message: &str) -> String {
    let message = quoted_without_secrets(&message.replace('\n', " "));
    // "unknown field `lisen`, expected one of `listen`, `workers`, …"
    if !message.starts_with("unknown field") {
        return message;
    }
    let mut words = message.split('`').skip(1).step_by(2);
    let unknown = words.next().unwrap_or_default();
    match nearest(unknown, words) {
        Some(nearest) => format!("{unknown} is no setting here; did you mean {nearest}?"),
        None => format!("{unknown} is no setting here"),
    }
}
