//! Log lines on standard error: what an operator must know, once each.
//!
//! Lines are handed to a thread that writes them, so that no worker waits for a terminal. Never used
//! for single requests.

use std::io;

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{filter::LevelFilter, fmt};

/// Lines that may wait to be written; more are dropped.
const LINES_MAX: usize = 10_000;

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line, for programs.
    Json,
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// Begins to log. What is still to be written is written when the guard is dropped.
pub fn start(format: Format) -> WorkerGuard {
    let (writer, guard) =
        NonBlockingBuilder::default().buffered_lines_limit(LINES_MAX).finish(io::stderr());
    let lines = fmt().with_writer(writer).with_max_level(LevelFilter::INFO).with_target(false);
    // Fails only when a log was begun before, which then goes on.
    let _ = match format {
        Format::Text => tracing::subscriber::set_global_default(lines.with_ansi(false).finish()),
        Format::Json => tracing::subscriber::set_global_default(lines.json().finish()),
    };
    guard
}
