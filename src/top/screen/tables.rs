//! The tables of counters and workers.

use ratatui::{
    buffer::Buffer,
    layout::{Alignment, Constraint, Layout, Rect},
    style::Style,
    text::Line,
    widgets::{Cell, Row, Table, Widget},
};

use super::{Screen, take};
use crate::top::{
    rates::{CounterView, WorkerView},
    text::{duration, percent, rate},
};

/// A column: its heading, its width, where its text stands.
type Column = (&'static str, Constraint, Alignment);

const fn right(heading: &'static str, width: u16) -> Column {
    (heading, Constraint::Length(width), Alignment::Right)
}

/// With the spaces between them they fit into 80 characters.
const WORKER_COLUMNS: [Column; 12] = [
    right("worker", 6),
    right("core", 4),
    right("visits/s", 8),
    right("flight", 6),
    right("client", 6),
    right("user", 4),
    right("sys", 4),
    right("p50", 6),
    right("p99", 6),
    right("upstr", 5),
    right("queue", 5),
    ("driver", Constraint::Length(WORKER_DRIVER), Alignment::Left),
];
const WORKER_DRIVER: u16 = 8;
/// What a table of workers is wide, with a space after it.
const WORKER_TABLE: u16 = 82;

const COUNTER_COLUMNS: [Column; 9] = [
    ("counter", Constraint::Fill(1), Alignment::Left),
    ("state", Constraint::Length(12), Alignment::Left),
    right("conns", 5),
    right("idle", 5),
    right("queue", 5),
    right("last", 6),
    right("p50", 6),
    right("p99", 6),
    right("wait99", 6),
];

impl Screen<'_> {
    /// Draws the counters into the top of an area, and gives back the lines that are not used.
    pub(super) fn counters(
        &self,
        counters: &[CounterView],
        area: Rect,
        buffer: &mut Buffer,
    ) -> u16 {
        let rows = counters.iter().map(|counter| {
            let CounterView { failing: (failing, workers), latency, .. } = counter;
            let (state, style) = match failing {
                0 if counter.bundled => (String::from("ok, bundled"), Style::new()),
                0 => (String::from("ok"), Style::new()),
                failing => (format!("fails {failing}/{workers}"), self.theme.bad()),
            };
            let cells = [
                counter.name.clone(),
                state,
                counter.connections.to_string(),
                counter.idle.to_string(),
                counter.queued.to_string(),
                duration(counter.last_call),
                duration(latency.p50),
                duration(latency.p99),
                duration(counter.wait_p99),
            ];
            (cells, style)
        });
        self.table(&COUNTER_COLUMNS, rows.collect(), area, buffer)
    }

    /// Draws the workers, in several tables beside each other if they do not fit into one. The lines that were used.
    pub(super) fn workers(&self, workers: &[WorkerView], area: Rect, buffer: &mut Buffer) -> u16 {
        let in_one = usize::from(area.height.saturating_sub(1));
        let fit = usize::from((area.width / WORKER_TABLE).max(1));
        let tables = workers.len().div_ceil(in_one.max(1)).clamp(1, fit);
        // What fits is not scrolled.
        let first = self.first_worker.min(workers.len().saturating_sub(in_one * tables));
        let shown = &workers[first..];
        let rows_max = shown.len().div_ceil(tables).min(in_one).max(1);
        let width = if tables == 1 { area.width } else { WORKER_TABLE };
        let areas = Layout::horizontal(vec![Constraint::Length(width); tables]).split(area);
        let used = shown.chunks(rows_max).zip(areas.iter()).map(|(workers, &area)| {
            let rows = workers.iter().map(|worker| self.worker(worker)).collect();
            area.height - self.table(&WORKER_COLUMNS, rows, area, buffer)
        });
        used.max().unwrap_or(0)
    }

    fn worker(&self, worker: &WorkerView) -> ([String; 12], Style) {
        let (driver, style) = match worker.silent {
            // For how long is said above the table.
            Some(_) => (String::from("silent"), self.theme.bad()),
            None => (worker.driver.clone(), Style::new()),
        };
        let cells = [
            worker.worker.to_string(),
            worker.core.to_string(),
            rate(worker.visits_per_second),
            worker.in_flight.to_string(),
            worker.clients.to_string(),
            percent(worker.load.map(|load| load.user)),
            percent(worker.load.map(|load| load.system)),
            duration(worker.latency.p50),
            duration(worker.latency.p99),
            worker.upstream_connections.to_string(),
            worker.queued.to_string(),
            driver,
        ];
        (cells, style)
    }

    /// Draws a table; the lines of the area that are not used.
    fn table<const N: usize>(
        &self,
        columns: &[Column; N],
        rows: Vec<([String; N], Style)>,
        mut area: Rect,
        buffer: &mut Buffer,
    ) -> u16 {
        let lines = u16::try_from(rows.len() + 1).unwrap_or(u16::MAX);
        let table = take(&mut area, lines);
        let aligned =
            |place: usize, text: String| Cell::new(Line::from(text).alignment(columns[place].2));
        let header = columns.iter().enumerate();
        let header = header.map(|(place, (heading, ..))| aligned(place, (*heading).to_owned()));
        let rows = rows.into_iter().map(|(cells, style)| {
            let cells = cells.into_iter().enumerate();
            Row::new(cells.map(|(place, text)| aligned(place, text))).style(style)
        });
        Table::new(rows, columns.iter().map(|(_, width, _)| *width))
            .header(Row::new(header).style(self.theme.heading()))
            .render(table, buffer);
        area.height
    }
}
