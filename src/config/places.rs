//! Where the keys of the file of `--config` stand, and what is written there.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
};

use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, nearest, quoted_without_secrets};
use crate::upstream::without_secrets;

/// The most of a value that is repeated.
const SHOWN_CHARACTERS_MAX: usize = 80;

/// A file's keys.
#[derive(Debug, Default)]
pub(super) struct Places {
    path: PathBuf,
    keys: Keys,
    routes: Vec<Table>,
}

type Keys = BTreeMap<String, Place>;

/// A `[[route]]` table.
#[derive(Debug)]
struct Table {
    line: usize,
    keys: Keys,
}

/// A key and its value.
#[derive(Debug)]
struct Place {
    /// Counted from 1.
    line: usize,
    /// Of both, in bytes.
    span: Range<usize>,
    /// As they are written.
    text: String,
}

impl Places {
    /// Finds the keys of `text`, which stands in the file at `path`; none where it is no TOML.
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

    /// Where a setting stands, `FILE line 3`, if it does.
    pub(super) fn line(&self, key: &str) -> Option<String> {
        self.keys.get(key).map(|place| self.at(place.line))
    }

    /// A setting as it stands there, `FILE line 3: key = value`, if it does.
    pub(super) fn given(&self, key: &str) -> Option<String> {
        self.keys.get(key).map(|place| self.show(place))
    }

    /// Where a route stands, or a key of it.
    pub(super) fn route(&self, place: usize, key: Option<&str>) -> Option<String> {
        let table = self.routes.get(place)?;
        let line = key.and_then(|key| table.keys.get(key)).map_or(table.line, |place| place.line);
        Some(self.at(line))
    }

    /// What is wrong with the file as TOML, or with a value of it.
    pub(super) fn explain(&self, text: &str, error: &toml::de::Error) -> ConfigError {
        let start = error.span().map_or(0, |span| span.start);
        let tables = self.routes.iter().map(|table| &table.keys).chain([&self.keys]);
        let around = tables.flat_map(BTreeMap::values).find(|place| place.span.contains(&start));
        let given = around.map_or_else(|| self.at(line_at(text, start)), |place| self.show(place));
        ConfigError::Given { given, problem: problem(error.message()) }
    }

    fn at(&self, line: usize) -> String {
        format!("{} line {line}", self.path.display())
    }

    fn show(&self, place: &Place) -> String {
        format!("{}: {}", self.at(place.line), place.text)
    }
}

fn keys_of(text: &str, table: &DeTable<'_>) -> Keys {
    let place = |(key, value): (&toml::Spanned<_>, &toml::Spanned<DeValue<'_>>)| {
        let span = key.span().start..value.span().end.max(key.span().end);
        let name: &std::borrow::Cow<'_, str> = key.get_ref();
        let shown = shortened(&shown(text, value));
        let text_of_place = format!("{} = {shown}", without_secrets(name));
        let line = line_at(text, span.start);
        (name.clone().into_owned(), Place { line, span, text: text_of_place })
    };
    table.iter().map(place).collect()
}

/// A value without what may be a secret: of each text as a whole, since a secret may hold quotes and spaces, and
/// what gives it away may come last.
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

/// On one line, and not too long for it.
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

/// What a person is told of what serde says.
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
