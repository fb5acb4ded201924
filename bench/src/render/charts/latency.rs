//! Latencies at a constant rate, as curves over their quantiles, as HdrHistogram plots them.

use crate::{
    arms::Arm,
    record::{Record, SceneRecord},
    render::{
        axis::Axis,
        canvas::{Canvas, Side, group, line, names, polyline, text},
    },
    scenes::{PACED, PACED_BY_AXUM},
    statistics::Spread,
};

const TOP: f64 = 92.0;
const PANEL: f64 = 330.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 690.0;
/// The quantiles with ticks.
const QUANTILES: [(f64, &str); 5] =
    [(0.0, "0 %"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %")];

/// A quantile, and its latency over all repeats.
type Point = (f64, Spread);

/// A panel for each scene with a constant rate.
pub fn chart(record: &Record) -> Option<String> {
    let scenes = [PACED, PACED_BY_AXUM].map(|name| {
        let scene = record.scenes.iter().find(|scene| scene.name == name)?;
        let curve = |arm: &Arm| Some((*arm, curve(record, name, *arm)?));
        let curves: Vec<_> = record.arms.iter().filter_map(curve).collect();
        (!curves.is_empty()).then_some((scene, curves))
    });
    let scenes: Vec<_> = scenes.into_iter().flatten().collect();
    if scenes.is_empty() {
        return None;
    }
    let mut canvas = Canvas::new(
        TOP + (PANEL + 64.0) * scenes.len() as f64,
        "Latency at a constant rate",
        &[
            "Medians over all repeats, and the range of tallyring's. The upward axis is logarithmic; the other one spreads",
            "the slowest visits, as HdrHistogram does. A visit is measured from when it was due.",
        ],
    );
    let mut top = TOP;
    for (scene, curves) in scenes {
        panel(&mut canvas, top, scene, &curves);
        top += PANEL + 64.0;
    }
    Some(canvas.finish())
}

fn curve(record: &Record, scene: &str, arm: Arm) -> Option<Vec<Point>> {
    let curves: Vec<_> =
        record.runs(scene, arm).into_iter().map(|run| run.report.curve()).collect();
    let first = curves.first()?;
    let point = |(place, (quantile, _)): (usize, &(f64, f64))| {
        let latencies = curves.iter().filter_map(|curve| curve.get(place)).map(|point| point.1);
        (*quantile, Spread::of(latencies.collect()))
    };
    Some(first.iter().enumerate().map(point).collect())
}

fn panel(canvas: &mut Canvas, top: f64, scene: &SceneRecord, curves: &[(Arm, Vec<Point>)]) {
    let bottom = top + 26.0 + PANEL;
    let shown = curves.iter().flat_map(|(_, curve)| curve).map(|(_, spread)| spread.median);
    let (least, most) = shown.fold((f64::INFINITY, 1.0), |(least, most), latency| {
        (latency.clamp(1.0, least), latency.max(most))
    });
    let up = Axis::log((least / 1.2, most * 1.2), (bottom, top + 26.0));
    let along = Axis::log((1.0, 1000.0), (LEFT, RIGHT));
    let x = |quantile: f64| along.place(1.0 / (1.0 - quantile));
    let y = |latency: f64| up.place(latency).clamp(top + 26.0, bottom);
    let rate = scene.rate.map_or(String::new(), |rate| format!(" ({rate:.0} visits/s)"));
    let head = format!("{}: {}{rate}", scene.name, scene.about);
    canvas.add(text((16.0, top + 8.0), Side::Right, "head", &head));
    for tick in up.ticks() {
        canvas.add(line("grid", (LEFT, up.place(tick)), (RIGHT, up.place(tick))));
        canvas.add(text((LEFT - 8.0, up.place(tick)), Side::Left, "note", &time(tick)));
    }
    for (quantile, name) in QUANTILES {
        canvas.add(line("grid", (x(quantile), top + 26.0), (x(quantile), bottom)));
        canvas.add(text((x(quantile), bottom + 14.0), Side::Both, "note", name));
    }
    let ends = curves.iter().filter_map(|(arm, curve)| {
        let (quantile, latency) = curve.last()?;
        Some(((x(*quantile), y(latency.median)), *arm))
    });
    let ends = ends.collect();
    for (arm, curve) in curves {
        let line = curve.iter().map(|(quantile, latency)| (x(*quantile), y(latency.median)));
        let mut marks = group(*arm);
        if *arm == Arm::Tallyring {
            let side = |of: fn(&Spread) -> f64| {
                curve.iter().map(move |(quantile, latency)| (*quantile, of(latency)))
            };
            let around =
                side(|s| s.least).chain(side(|s| s.most).collect::<Vec<_>>().into_iter().rev());
            marks = marks.add(polyline("band", around.map(|(quantile, at)| (x(quantile), y(at)))));
        }
        canvas.add(marks.add(polyline("curve", line)));
    }
    names(canvas, ends, (RIGHT, bottom));
}

fn time(microseconds: f64) -> String {
    match microseconds {
        short if short < 1000.0 => format!("{short} µs"),
        long => format!("{} ms", long / 1000.0),
    }
}
