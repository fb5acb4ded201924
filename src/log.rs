//! Log lines on standard error: what an operator must know.
//!
//! A separate thread writes the lines, so that no worker waits for a terminal. There are no lines about single
//! requests.

use std::{
    env,
    io::{self, IsTerminal, Write},
    sync::OnceLock,
};

use rustix::fs::fstat;
use tracing::{Event, Level, Subscriber};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    Layer, Registry,
    filter::LevelFilter,
    fmt,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{self, DefaultFields, Writer},
    },
    layer::SubscriberExt,
    registry::LookupSpan,
    reload,
};

/// The most lines that wait to be written; more are dropped.
const LINES_MAX: usize = 10_000;

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// `journal` where standard error is the journal's, else `text`; on a terminal the start is shown in a few lines.
    Auto,
    /// For people: each line with its time and level.
    Text,
    /// For journald: each line with its priority, and without the time, which journald adds.
    Journal,
    /// One JSON object a line, for programs.
    Json,
    /// What `Auto` is on a terminal: `text`, except for lines with the target [`PLAIN`].
    #[value(skip)]
    Terminal,
}

/// The target of lines that a terminal shows without time and level.
pub const PLAIN: &str = "plain";

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Text => "text",
            Self::Journal => "journal",
            Self::Json => "json",
            Self::Terminal => "terminal",
        })
    }
}

/// How much is logged: lines of this level and of more important ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum LogLevel {
    /// What failed.
    Error,
    /// What an operator should look at.
    Warn,
    /// Start, stop and reload.
    Info,
    /// Single failures of connections to the counter.
    Debug,
}

impl std::fmt::Display for LogLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        })
    }
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
        }
    }
}

/// The format, once the log has begun.
static CHOSEN: OnceLock<Format> = OnceLock::new();

/// The level filter, once the log has begun.
static FILTER: OnceLock<reload::Handle<LevelFilter, Registry>> = OnceLock::new();

/// Begins to log. Waiting lines are written when the guard is dropped.
pub fn start(format: Format, level: LogLevel) -> WorkerGuard {
    let (writer, guard) =
        NonBlockingBuilder::default().buffered_lines_limit(LINES_MAX).finish(io::stderr());
    let lines = fmt::layer().with_writer(writer).with_target(false);
    match *CHOSEN.get_or_init(|| format.settled()) {
        Format::Json => begin(level, lines.json()),
        Format::Journal => begin(level, lines.event_format(Prioritized)),
        Format::Terminal => {
            let text = fmt::format().with_target(false).with_ansi(false);
            begin(level, lines.with_ansi(false).event_format(OnTerminal(text)));
        }
        Format::Text | Format::Auto => begin(level, lines.with_ansi(false)),
    }
    guard
}

fn begin<L>(level: LogLevel, lines: L)
where
    L: Layer<tracing_subscriber::layer::Layered<Filter, Registry>> + Send + Sync + 'static,
{
    // A filter of the whole log, not of a layer: tracing then knows the maximum level, and a line above it costs only
    // the load of a number.
    let (filter, handle) = Filter::new(level.into());
    let log = Registry::default().with(filter).with(lines);
    // Fails only when a log was begun before, which continues.
    if tracing::subscriber::set_global_default(log).is_ok() {
        let _ = FILTER.set(handle);
    }
}

type Filter = reload::Layer<LevelFilter, Registry>;

/// Changes the level from now on.
pub fn set_level(level: LogLevel) {
    if let Some(filter) = FILTER.get() {
        // Fails only when the log has ended, and that is when the process ends.
        let _ = filter.reload(LevelFilter::from(level));
    }
}

/// The format of the log, or what `auto` would be.
pub fn chosen() -> Format {
    CHOSEN.get().copied().unwrap_or_else(|| Format::Auto.settled())
}

/// Says why the program ends, at once and not through the log, which may not run.
pub fn complain(line: &str) {
    let text = match chosen() {
        // The journal adds the program's name.
        Format::Journal => prioritized(Level::ERROR, line),
        _ => format!("tallyring: {line}\n"),
    };
    // Fails when standard error is closed.
    let _ = io::stderr().write_all(text.as_bytes());
}

impl Format {
    fn settled(self) -> Self {
        match self {
            Self::Auto if is_journal() => Self::Journal,
            Self::Auto if io::stderr().is_terminal() => Self::Terminal,
            Self::Auto => Self::Text,
            settled => settled,
        }
    }
}

/// Whether standard error is the journal's. `$JOURNAL_STREAM` names the device and inode of the journal's socket
/// (systemd.exec(5)); processes that write elsewhere inherit it too.
fn is_journal() -> bool {
    let Ok(stream) = env::var("JOURNAL_STREAM") else { return false };
    let Ok(file) = fstat(io::stderr()) else { return false };
    stream == format!("{}:{}", file.st_dev, file.st_ino)
}

/// Lines with their time and level, except those with the target [`PLAIN`].
struct OnTerminal(format::Format);

impl<S> FormatEvent<S, DefaultFields> for OnTerminal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, DefaultFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        if event.metadata().target() != PLAIN {
            return self.0.format_event(context, writer, event);
        }
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

/// Lines with their priorities before them: sd-daemon(3).
struct Prioritized;

impl<S> FormatEvent<S, DefaultFields> for Prioritized
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, DefaultFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let mut text = String::new();
        context.format_fields(Writer::new(&mut text), event)?;
        writer.write_str(&prioritized(*event.metadata().level(), &text))
    }
}

/// Each line with a priority: the journal takes each for a message.
fn prioritized(level: Level, text: &str) -> String {
    let priority = match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    };
    text.lines().map(|line| format!("<{priority}>{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_has_its_priority() {
        for (level, priority) in [
            (Level::ERROR, "<3>"),
            (Level::WARN, "<4>"),
            (Level::INFO, "<6>"),
            (Level::DEBUG, "<7>"),
            (Level::TRACE, "<7>"),
        ] {
            assert_eq!(prioritized(level, "said"), format!("{priority}said\n"));
        }
        assert_eq!(prioritized(Level::ERROR, "one\ntwo"), "<3>one\n<3>two\n");
    }
}
