//! The defects that are planted to show that the simulation sees them are patches to the code as it is.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Fewer would leave promises without a defect that breaks them.
const LEAST: usize = 25;

fn patches() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("simulation/planted");
    let entries = fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[track_caller]
fn apply(patch: &Path) -> Result<(), String> {
    let checked = Command::new("git")
        .args(["apply", "--check"])
        .arg(patch)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("git");
    match checked.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&checked.stderr).into_owned()),
    }
}

#[test]
fn each_planted_defect_applies_to_the_code_and_says_what_it_breaks() {
    let patches = patches();
    assert!(patches.len() >= LEAST, "{} defects", patches.len());
    for patch in patches {
        let text = fs::read_to_string(&patch).unwrap();
        let (breaks, diff) = text.split_once("\n\ndiff --git ").expect("what it breaks");
        assert!((1..=2).contains(&breaks.lines().count()), "{}: {breaks}", patch.display());
        let mut files = diff.lines().filter_map(|line| line.strip_prefix("+++ "));
        assert!(files.all(|file| file.starts_with("b/src/")), "{}", patch.display());
        let applied = apply(&patch);
        assert!(applied.is_ok(), "{}: {applied:?}", patch.display());
    }
}

#[test]
fn a_defect_in_code_that_is_not_there_does_not_apply() {
    let directory = tempfile::tempdir().unwrap();
    let patch = directory.path().join("gone.patch");
    let text = "diff --git a/src/lib.rs b/src/lib.rs\n--- a/src/lib.rs\n+++ b/src/lib.rs\n@@ -1 +1 @@\n\
                -this was never there\n+this neither\n";
    fs::write(&patch, text).unwrap();
    assert!(apply(&patch).is_err());
}
