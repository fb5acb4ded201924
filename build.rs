//! Tells the program what it was built from and how, for `tallyring --version`.

#![forbid(unsafe_code)]

use std::{env, fs, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=TALLYRING_COMMIT");
    let variable = |name| env::var(name).unwrap_or_default();
    let compiler = said_by(&variable("RUSTC"), &["--version"]).unwrap_or_default();
    // Not as TALLYRING_*, which are settings: cargo gives these to what it runs, too.
    println!("cargo::rustc-env=BUILT_COMMIT={}", commit());
    println!("cargo::rustc-env=BUILT_TARGET={}", variable("TARGET"));
    println!("cargo::rustc-env=BUILT_PROFILE={}", variable("PROFILE"));
    println!("cargo::rustc-env=BUILT_COMPILER={compiler}");
}

/// The commit: as it is given to a build that has no repository, as git tells it, or as `cargo package` has
/// noted it.
fn commit() -> String {
    let given = env::var("TALLYRING_COMMIT").ok().filter(|commit| !commit.is_empty());
    given.or_else(of_repository).or_else(of_package).unwrap_or_else(|| String::from("unknown"))
}

fn of_repository() -> Option<String> {
    let git = |arguments: &[&str]| said_by("git", arguments);
    // A repository around this one says nothing about these sources.
    let is_ours = git(&["ls-files", "--error-unmatch", "build.rs"]).is_some();
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).filter(|_| is_ours)?;
    // Which commit it is changes with one of these, and what differs from it with the sources.
    let branch = git(&["symbolic-ref", "--quiet", "HEAD"]);
    let places = ["HEAD", "packed-refs"].into_iter().map(String::from).chain(branch);
    for path in places.filter_map(|name| git(&["rev-parse", "--git-path", &name])) {
        if fs::exists(&path).unwrap_or(false) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    println!("cargo::rerun-if-changed=src");
    println!("cargo::rerun-if-changed=Cargo.lock");
    let differs =
        git(&["status", "--porcelain", "--", "src", "build.rs", "Cargo.toml", "Cargo.lock"]);
    Some(match differs.as_deref() {
        Some("") => commit,
        _ => format!("{commit} with changes"),
    })
}

fn of_package() -> Option<String> {
    let text = fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let (_, rest) = text.split_once("\"sha1\": \"")?;
    rest.get(..12).map(String::from)
}

/// What a program prints, if it succeeds.
fn said_by(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
