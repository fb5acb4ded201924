//! Values by name, with their sum.

use super::super::TotalsByName;

/// The values of a shard, or the sums of several.
#[derive(Debug, Default)]
pub(super) struct Values {
    by_name: TotalsByName,
    /// The sum of all but that of the counter without a name. A plain sum: what was added is subtracted again.
    named: u64,
}

impl Values {
    pub(super) fn new(by_name: TotalsByName) -> Self {
        let named = by_name.iter().filter(|(name, _)| !name.is_empty());
        let named = named.fold(0, |sum: u64, (_, value)| sum.wrapping_add(*value));
        Self { by_name, named }
    }

    /// The value of a name, 0 where there is none.
    pub(super) fn value(&self, name: &str) -> u64 {
        self.by_name.get(name).copied().unwrap_or(0)
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.by_name.keys()
    }

    /// The sum of all that have a name.
    pub(super) fn named(&self) -> u64 {
        self.named
    }

    /// Changes a value, or removes it.
    pub(super) fn set(&mut self, name: &str, value: Option<u64>) {
        let before = match (value, self.by_name.get_mut(name)) {
            (Some(value), Some(current)) => std::mem::replace(current, value),
            (Some(value), None) => self.by_name.insert(name.to_owned(), value).unwrap_or(0),
            (None, _) => self.by_name.remove(name).unwrap_or(0),
        };
        if !name.is_empty() {
            self.named = self.named.wrapping_sub(before).wrapping_add(value.unwrap_or(0));
        }
    }

    /// How many names these and others have together, besides the empty one.
    pub(super) fn names_with(&self, others: &Self) -> u64 {
        let elsewhere = others.names().filter(|name| !self.contains(name));
        self.names().chain(elsewhere).filter(|name| !name.is_empty()).count() as u64
    }

    /// The sums of these and others.
    pub(super) fn plus(&self, others: &Self) -> TotalsByName {
        let mut sums = self.by_name.clone();
        for (name, value) in &others.by_name {
            let sum = sums.entry(name.clone()).or_insert(0);
            *sum = sum.saturating_add(*value);
        }
        sums
    }
}
