//! The order of the modules: each uses those below it only.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// From the top down, as in the crate's documentation.
const LAYERS: [&str; 24] = [
    "main",
    "cli",
    "doctor",
    "health",
    "top",
    "totals",
    "server",
    "counter_check",
    "ask",
    "config",
    "worker",
    "handoff",
    "site",
    "upstream",
    "counter",
    "connection",
    "access_log",
    "listener",
    "http",
    "proxy_protocol",
    "runtime",
    "metrics",
    "log",
    "plural",
];

#[test]
fn a_module_uses_those_below_it_only() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut seen, mut imports) = (BTreeSet::new(), 0);
    for path in files(&source) {
        let inside = path.strip_prefix(&source).unwrap();
        let module = inside.components().next().unwrap().as_os_str().to_str().unwrap();
        let module = module.trim_end_matches(".rs");
        if module == "lib" {
            continue;
        }
        let layer = layer(module).unwrap_or_else(|| panic!("{module} is in no layer"));
        seen.insert(module.to_owned());
        for used in used_modules(&without_tests(&path)) {
            imports += 1;
            let below = self::layer(&used).unwrap_or_else(|| panic!("{used} is in no layer"));
            let is_itself = used == module;
            assert!(is_itself || below > layer, "{} uses {used}, above it", inside.display());
        }
    }
    assert_eq!(seen.len(), LAYERS.len(), "{seen:?}");
    assert!(imports > 150, "{imports}");
}

#[test]
fn the_modules_that_a_text_uses_are_found() {
    let text = "use crate::{\n    a::{b, c},\n    d,\n    e::f,\n};\nuse crate::g::{h, i};\nlet x = crate::j::k();";
    let expected = ["a", "d", "e", "g", "j"].map(str::to_owned);
    assert_eq!(used_modules(text), BTreeSet::from(expected));
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| *layer == module)
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| match path.is_dir() {
            true => files(&path),
            false => vec![path],
        })
        .filter(|path| !is_test(path))
        .collect()
}

/// Files of tests alone.
fn is_test(path: &Path) -> bool {
    let names = ["tests.rs", "properties.rs", "faults.rs", "model.rs"];
    names.iter().any(|name| path.ends_with(name))
}

/// A file without its test module, which may use anything.
fn without_tests(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    text.split("\n#[cfg(test)]\nmod tests {").next().unwrap().to_owned()
}

/// The modules of this crate that a text names, in `use` lines or in paths.
fn used_modules(text: &str) -> BTreeSet<String> {
    let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let mut used = BTreeSet::new();
    for (place, words) in code.match_indices("crate::") {
        let rest = &code[place + words.len()..];
        match rest.strip_prefix('{') {
            Some(group) => used.extend(names_of(group)),
            None => {
                used.insert(name_at(rest));
            }
        }
    }
    used
}

/// The first names of the items of a group, whose opening brace was read.
fn names_of(group: &str) -> Vec<String> {
    let (mut depth, mut at_begin, mut names) = (0, true, Vec::new());
    for (place, character) in group.char_indices() {
        match character {
            '}' if depth == 0 => break,
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => at_begin = true,
            _ if depth == 0 && at_begin && !character.is_whitespace() => {
                names.push(name_at(&group[place..]));
                at_begin = false;
            }
            _ => {}
        }
    }
    names
}

fn name_at(text: &str) -> String {
    text.chars().take_while(|character| character.is_alphanumeric() || *character == '_').collect()
}
