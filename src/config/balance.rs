//! Which worker serves a connection.

use std::fmt;

use clap::ValueEnum;

/// Who chooses the worker of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Balance {
    /// The kernel, by a hash of the addresses
    Kernel,
    /// The kernel, and a worker that has more to do than another hands connections over
    Handoff,
}

impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Handoff => "handoff",
        })
    }
}
