//! Visits a second over the server's cores, and ideal scaling for comparison.

use svg::node::element::Text;

use crate::{
    arms::Arm,
    record::{Record, Run, SATURATED},
    render::{
        axis::Axis,
        canvas::{Canvas, Side, dot, group, line, names, polyline, text},
    },
    statistics::Spread,
};

const TOP: f64 = 110.0;
const BOTTOM: f64 = 480.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 690.0;
/// The distance between the marks of two arms at the same number of cores.
const APART: f64 = 6.0;

/// An arm on this many cores: its rate, and whether the load limited it.
struct Point {
    cores: f64,
    rate: Spread,
    is_limited: bool,
}

/// The scaling scenes of a record; `None` where it has fewer than two.
pub fn chart(record: &Record) -> Option<String> {
    let curves: Vec<_> = record.arms.iter().map(|arm| (*arm, points(record, *arm))).collect();
    let curves: Vec<_> = curves.into_iter().filter(|(_, points)| points.len() > 1).collect();
    let all = || curves.iter().flat_map(|(_, points)| points);
    let cores = all().map(|point| point.cores).fold(1.0, f64::max);
    if cores < 2.0 {
        return None;
    }
    let ideal =
        |points: &[Point]| points.first().map_or(0.0, |one| one.rate.median * cores / one.cores);
    let most = curves.iter().map(|(_, points)| ideal(points)).fold(0.0, f64::max);
    let up =
        Axis::linear((0.0, all().map(|p| p.rate.most).fold(most, f64::max) * 1.02), (BOTTOM, TOP));
    let along = Axis::linear((1.0, cores), (LEFT + 40.0, RIGHT - 40.0));
    let mut canvas = Canvas::new(
        BOTTOM + 40.0,
        "Visits a second by the server's cores",
        &[
            "256 keep-alive connections. Medians with their range; dotted: ideal scaling of the rate on one core.",
            &limits(record),
        ],
    );
    for tick in up.ticks() {
        canvas.add(line("grid", (LEFT, up.place(tick)), (RIGHT, up.place(tick))));
        canvas.add(text((LEFT - 8.0, up.place(tick)), Side::Left, "note", &thousands(tick)));
    }
    let mut named: Vec<_> = all().map(|point| point.cores).collect();
    named.sort_by(f64::total_cmp);
    named.dedup();
    canvas.add(under(LEFT - 8.0, Side::Left, "cores"));
    for cores in named {
        canvas.add(under(along.place(cores), Side::Both, &cores.to_string()));
    }
    let mut ends = Vec::new();
    for (number, (arm, points)) in curves.iter().enumerate() {
        // Shifted, so that ranges do not hide each other.
        let aside = APART * (number as f64 - curves.len() as f64 / 2.0);
        let x = |cores: f64| along.place(cores) + aside;
        let place = |point: &Point, rate: f64| (x(point.cores), up.place(rate));
        let first = &points[0];
        let last = (x(cores), up.place(ideal(points)));
        let mut marks = group(*arm).add(polyline("ideal", [place(first, first.rate.median), last]));
        marks = marks.add(polyline("curve", points.iter().map(|p| place(p, p.rate.median))));
        for point in points {
            let ends = (place(point, point.rate.least), place(point, point.rate.most));
            let shape = if point.is_limited { "hollow" } else { "dot" };
            marks = marks.add(line("range", ends.0, ends.1));
            marks = marks.add(dot(shape, place(point, point.rate.median), 4.5));
        }
        canvas.add(marks);
        ends.extend(points.last().map(|point| (place(point, point.rate.median), *arm)));
    }
    names(&mut canvas, ends, (RIGHT, BOTTOM));
    Some(canvas.finish())
}

fn points(record: &Record, arm: Arm) -> Vec<Point> {
    let scenes = record.scenes.iter().filter(|scene| scene.name.starts_with("cores-"));
    let point = |scene: &crate::record::SceneRecord| {
        let median = |of: fn(&Run) -> f64| Some(record.spread(&scene.name, arm, of)?.median);
        Some(Point {
            cores: scene.server_cores.len() as f64,
            rate: record.spread(&scene.name, arm, Run::rate)?,
            is_limited: median(|run| run.load_busy)? >= SATURATED
                && median(|run| run.server_busy)? < SATURATED,
        })
    };
    let mut points: Vec<_> = scenes.filter_map(point).collect();
    points.sort_by(|one, other| one.cores.total_cmp(&other.cores));
    points
}

/// A note about load that was at its limit.
fn limits(record: &Record) -> String {
    let mut text =
        String::from("Hollow: the visitors and the counter were at their limit, not the server.");
    let scenes = record.scenes.iter().filter(|scene| scene.name.starts_with("cores-"));
    let mut shared =
        scenes.filter(|s| s.server_cores.iter().any(|core| s.load_cores.contains(core)));
    if let Some(scene) = shared.next() {
        text +=
            &format!(" On {} cores and more they share cores with it.", scene.server_cores.len());
    }
    text
}

fn under(x: f64, side: Side, label: &str) -> Text {
    text((x, BOTTOM + 16.0), side, "note", label)
}

fn thousands(rate: f64) -> String {
    if rate < 1000.0 { rate.to_string() } else { format!("{},000", rate / 1000.0) }
}
