//! What the terminal shows, drawn into a buffer from values alone.

mod tables;

use std::{env, time::Instant};

use ratatui::{
    buffer::Buffer,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{RenderDirection, Sparkline, Widget},
};

use super::{
    history::{self, History, Series},
    rates::{Total, View},
    text::{UNKNOWN, bytes, duration, percent, rate, uptime},
};
use crate::plural::grouped;

/// A chart's title and its bars.
const CHART_LINES: u16 = 4;
/// In a lower terminal there are no charts.
const LINES_WITH_CHARTS_MIN: u16 = 20;

/// Whether the server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// It does.
    Live,
    /// It does not, and what is shown is old.
    Lost { why: String, since: Instant },
}

/// How things look. Nothing is told by colour alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Theme {
    colored: bool,
}

impl Theme {
    /// Without colours.
    pub const PLAIN: Self = Self { colored: false };

    /// With colours, unless `NO_COLOR` is set and not empty (<https://no-color.org>).
    pub fn of_environment() -> Self {
        Self { colored: env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) }
    }

    fn colored(self, color: Color) -> Style {
        if self.colored { Style::new().fg(color) } else { Style::new() }
    }

    fn good(self) -> Style {
        self.colored(Color::Green)
    }

    fn bad(self) -> Style {
        let modifier = if self.colored { Modifier::BOLD } else { Modifier::REVERSED };
        self.colored(Color::Red).add_modifier(modifier)
    }

    fn heading(self) -> Style {
        self.colored(Color::Cyan).add_modifier(Modifier::BOLD)
    }

    fn label(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }
}

/// What is shown beside the figures.
#[derive(Debug)]
pub struct Screen<'a> {
    pub link: &'a Link,
    /// `None` for a text, which has neither charts nor keys.
    pub history: Option<&'a History>,
    /// The first worker in the table.
    pub first_worker: usize,
    pub theme: Theme,
}

impl Screen<'_> {
    /// Draws the server `target`; how many lines were used.
    pub fn draw(&self, target: &str, view: &View, area: Rect, buffer: &mut Buffer) -> u16 {
        let mut lines = vec![self.title(target, view), self.status(view)];
        lines.extend(self.totals(view));
        let mut rest = area;
        for line in lines {
            line.render(take(&mut rest, 1), buffer);
        }
        take(&mut rest, 1);
        if let Some(history) = self.history {
            let foot =
                Rect { y: rest.bottom().saturating_sub(1), height: 1.min(rest.height), ..rest };
            rest.height -= foot.height;
            if area.height >= LINES_WITH_CHARTS_MIN {
                self.charts(history, take(&mut rest, CHART_LINES), buffer);
                take(&mut rest, 1);
            }
            Line::styled("q quit   arrows scroll the workers", self.theme.label())
                .render(foot, buffer);
        }
        // Most of what is left is for the workers.
        let counters = Rect { height: (rest.height / 3).max(2).min(rest.height), ..rest };
        let unused = self.counters(&view.counters, counters, buffer);
        take(&mut rest, counters.height - unused);
        take(&mut rest, 1);
        let used = self.workers(&view.workers, rest, buffer);
        rest.y - area.y + used
    }

    fn title<'a>(&self, target: &'a str, view: &View) -> Line<'a> {
        Line::from(vec![
            Span::styled(format!("tallyring {}", view.version), self.theme.heading()),
            Span::raw("  "),
            Span::raw(target.trim_end_matches("/stats")),
            Span::styled(format!("  up {}", uptime(view.uptime_seconds)), self.theme.label()),
        ])
    }

    fn status(&self, view: &View) -> Line<'static> {
        match self.link {
            Link::Lost { why, since } => {
                let text = format!("LOST for {} s: {why}", since.elapsed().as_secs());
                Line::styled(text, self.theme.bad())
            }
            Link::Live if view.alarms.is_empty() => Line::styled("live", self.theme.good()),
            Link::Live => Line::styled(view.alarms.join("; "), self.theme.bad()),
        }
    }

    fn totals(&self, view: &View) -> Vec<Line<'static>> {
        let Total { latency, load, .. } = view.total;
        let total = &view.total;
        let cpu = percent(load.map(|load| load.user + load.system));
        let mut lines = vec![
            self.facts([
                ("visits/s", rate(total.visits_per_second)),
                ("in flight", grouped(total.in_flight)),
                ("p50", duration(latency.p50)),
                ("p99", duration(latency.p99)),
                ("CPU", cpu),
                ("CPU/visit", duration(total.cpu_per_visit)),
            ]),
            self.facts(total.outcomes.iter().map(|outcome| {
                let count = grouped(outcome.count);
                let per_second = outcome.per_second.filter(|rate| *rate > 0.0);
                let count = match per_second {
                    Some(_) => format!("{count} ({}/s)", rate(per_second)),
                    None => count,
                };
                (outcome.name, count)
            })),
            self.facts([
                ("clients", grouped(total.clients)),
                ("accepted/s", rate(total.accepted_per_second)),
                ("evicted", grouped(total.evicted)),
                ("bad requests", grouped(total.bad_requests)),
                ("panics", grouped(total.panics)),
                ("memory", bytes(view.memory_bytes)),
            ]),
        ];
        if let Some((counted, commits)) = view.bundled {
            lines.push(self.facts([("counted", grouped(counted)), ("commits/s", rate(commits))]));
        }
        if !total.causes.is_empty() {
            let causes =
                total.causes.iter().map(|(cause, count)| (cause.as_str(), grouped(*count)));
            let Line { mut spans, .. } = self.facts(causes);
            spans.insert(0, Span::styled("erred by  ", self.theme.bad()));
            lines.push(Line::from(spans));
        }
        lines
    }

    /// Names and values in a line.
    fn facts<'a>(&self, facts: impl IntoIterator<Item = (&'a str, String)>) -> Line<'static> {
        let mut spans = Vec::new();
        for (name, value) in facts {
            if !spans.is_empty() {
                spans.push(Span::raw("  "));
            }
            spans.push(Span::styled(format!("{name} "), self.theme.label()));
            spans.push(Span::styled(value, Style::new().add_modifier(Modifier::BOLD)));
        }
        Line::from(spans)
    }

    fn charts(&self, history: &History, area: Rect, buffer: &mut Buffer) {
        type Write = fn(Option<f64>) -> String;
        let charts: [(&str, &Series, Write, Style); 4] = [
            ("visits/s", &history.visits, rate, self.theme.good()),
            ("failed/s", &history.failed, rate, self.theme.colored(Color::Red)),
            ("p99", &history.p99, duration, self.theme.colored(Color::Yellow)),
            ("CPU", &history.cpu, percent, self.theme.colored(Color::Cyan)),
        ];
        let areas = Layout::horizontal([Constraint::Fill(1); 4]).spacing(2).split(area);
        for ((name, series, write, style), &area) in charts.into_iter().zip(areas.iter()) {
            let mut rest = area;
            let columns = history::columns(series, area.width.into());
            let highest = columns.iter().flatten().copied().reduce(f64::max);
            let title = match highest {
                Some(_) => format!("{name}, max {}", write(highest)),
                None => format!("{name} {UNKNOWN}"),
            };
            Line::styled(title, self.theme.label()).render(take(&mut rest, 1), buffer);
            bars(&columns, highest.unwrap_or_default(), style).render(rest, buffer);
        }
    }
}

/// The bars of a chart, whose highest one fills it.
fn bars(newest_first: &[Option<f64>], highest: f64, style: Style) -> Sparkline<'static> {
    /// The resolution of a bar.
    const FULL: u16 = 1000;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let bar = |value: &Option<f64>| {
        let share = if highest > 0.0 { value.unwrap_or(0.0) / highest } else { 0.0 };
        // From 0 to `FULL`.
        (share * f64::from(FULL)).round() as u64
    };
    let bars: Vec<u64> = newest_first.iter().map(bar).collect();
    Sparkline::default()
        .data(bars)
        .max(FULL.into())
        .direction(RenderDirection::RightToLeft)
        .style(style)
}

/// Takes lines from the top of an area, as many as there are.
fn take(area: &mut Rect, lines: u16) -> Rect {
    let taken = Rect { height: lines.min(area.height), ..*area };
    area.y += taken.height;
    area.height -= taken.height;
    taken
}

#[cfg(test)]
mod tests;
