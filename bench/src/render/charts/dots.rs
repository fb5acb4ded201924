//! A chart with a row for each arm: a dot for its median and a line for its range.

use svg::node::element::Group;

use crate::{
    arms::Arm,
    render::{
        axis::Axis,
        canvas::{Canvas, MARGIN, Side, WIDTH, dot, line, text},
    },
    statistics::Spread,
};

const TOP: f64 = 100.0;
const ROW: f64 = 28.0;
/// The begin of the axis, after the names, and its end, before the figures.
const LEFT: f64 = 150.0;
const RIGHT: f64 = 640.0;
/// The right ends of the two columns of figures.
const FIGURES: [f64; 2] = [WIDTH - 80.0, WIDTH - MARGIN];
/// The end of the axis before a break, and the position of the mark beyond it.
const BREAK: f64 = RIGHT - 70.0;
const BEYOND: f64 = RIGHT - 24.0;
/// The axis is broken before an arm that needs this many times as much as all others.
const FAR: f64 = 2.0;

/// An arm, its figure, and how that is written.
pub struct Row {
    pub arm: Arm,
    pub spread: Spread,
    pub labels: [String; 2],
}

/// A chart with an axis from 0, which is broken before an arm that is far beyond all others.
pub fn broken(title: &str, note: &str, heads: [&str; 2], mut rows: Vec<Row>) -> Option<String> {
    sort(&mut rows);
    let most = |rows: &[Row]| rows.iter().map(|row| row.spread.most).fold(0.0, f64::max);
    let (last, others) = rows.split_last()?;
    let is_broken = !others.is_empty() && last.spread.median > FAR * most(others);
    let (shown, end) = if is_broken { (most(others), BREAK) } else { (most(&rows), RIGHT) };
    let axis = Axis::linear((0.0, shown * 1.02), (LEFT, end));
    let mut notes = vec![note.to_owned()];
    if is_broken {
        let times = last.spread.median / others.last()?.spread.median;
        let name = last.arm.name();
        notes.push(format!(
            "The axis is broken: {name} takes {times:.1} times as much as the next."
        ));
    }
    let mut canvas = begin(title, &notes, heads, &rows, &axis);
    if is_broken {
        cut(&mut canvas, bottom(&rows));
    }
    for (place, row) in rows.iter().enumerate() {
        let is_beyond = is_broken && place + 1 == rows.len();
        let x = |value: f64| if is_beyond { BEYOND } else { axis.place(value) };
        draw(&mut canvas, place, row, x);
    }
    Some(canvas.finish())
}

/// A chart with a logarithmic axis.
pub fn log(title: &str, note: &str, heads: [&str; 2], mut rows: Vec<Row>) -> Option<String> {
    sort(&mut rows);
    let (first, last) = (rows.first()?, rows.last()?);
    let axis = Axis::log((first.spread.least / 1.5, last.spread.most * 1.2), (LEFT, RIGHT));
    let mut canvas = begin(title, &[note.to_owned()], heads, &rows, &axis);
    for (place, row) in rows.iter().enumerate() {
        draw(&mut canvas, place, row, |value| axis.place(value));
    }
    Some(canvas.finish())
}

fn sort(rows: &mut [Row]) {
    rows.sort_by(|one, other| one.spread.median.total_cmp(&other.spread.median));
}

fn bottom(rows: &[Row]) -> f64 {
    TOP + ROW * rows.len() as f64
}

/// The canvas with the axis and the heads of the figures.
fn begin(title: &str, notes: &[String], heads: [&str; 2], rows: &[Row], axis: &Axis) -> Canvas {
    let bottom = bottom(rows);
    let notes: Vec<_> = notes.iter().map(String::as_str).collect();
    let mut canvas = Canvas::new(bottom + 36.0, title, &notes);
    for tick in axis.ticks() {
        let x = axis.place(tick);
        canvas.add(line("grid", (x, TOP - 6.0), (x, bottom)));
        canvas.add(text((x, bottom + 14.0), Side::Both, "note", &tick.to_string()));
    }
    for (head, x) in heads.into_iter().zip(FIGURES) {
        canvas.add(text((x, TOP - 14.0), Side::Left, "note", head));
    }
    canvas
}

/// Draws the break: two strokes across the axis.
fn cut(canvas: &mut Canvas, bottom: f64) {
    let middle = BREAK + 18.0;
    for x in [middle - 4.0, middle + 4.0] {
        canvas.add(line("axis", (x - 4.0, bottom + 8.0), (x + 4.0, bottom - 8.0)));
        canvas.add(line("axis", (x - 4.0, TOP + 2.0), (x + 4.0, TOP - 14.0)));
    }
}

fn draw(canvas: &mut Canvas, place: usize, row: &Row, x: impl Fn(f64) -> f64) {
    let y = TOP + ROW * (place as f64 + 0.5);
    let is_own = matches!(
        row.arm,
        Arm::Tallyring | Arm::TallyringPipelined | Arm::TallyringBatched | Arm::TallyringEpoll
    );
    let class = if is_own { row.arm.name() } else { String::from("other") };
    let Spread { least, median, most, .. } = row.spread;
    let mut marks = Group::new().set("class", class);
    marks = marks.add(text((LEFT - 14.0, y), Side::Left, "name", &row.arm.name()));
    if most > least {
        marks = marks.add(line("range", (x(least), y), (x(most), y)));
    }
    let shape = if is_own && row.arm != Arm::Tallyring { "hollow" } else { "dot" };
    canvas.add(marks.add(dot(shape, (x(median), y), 5.0)));
    for (label, x) in row.labels.iter().zip(FIGURES) {
        canvas.add(text((x, y), Side::Left, "figure", label));
    }
}
