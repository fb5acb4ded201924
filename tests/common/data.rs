//! A directory that is removed with the test.

use std::path::PathBuf;

use tempfile::TempDir;

/// A directory for what a test makes, and the paths in it.
pub struct Data(pub TempDir);

impl Data {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }
}
