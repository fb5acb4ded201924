//! In place of the log: nothing is said before the end of a process, which is told by itself.

/// Says nothing.
pub fn complain(_: &str) {}
