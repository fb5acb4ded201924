//! The charts, as SVG.

use std::{fmt::Display, io};

use plotters::{prelude::*, style::text_anchor};

use crate::{
    record::{Record, Run},
    scenes::{MAIN, PACED},
};

const WIDTH: u32 = 860;
const BAR: i32 = 22;
const GAP: i32 = 12;
const TOP: i32 = 64;
const LEFT: i32 = 140;
const RIGHT: i32 = 120;
const USER: RGBColor = RGBColor(0x4c, 0x8b, 0xc9);
const SYSTEM: RGBColor = RGBColor(0x1f, 0x3f, 0x66);

/// A bar: its name, its parts from left to right, and what is written behind it.
struct Bar {
    name: String,
    parts: Vec<(f64, RGBColor)>,
    label: String,
}

/// The charts of a record, by the names of their files.
///
/// # Errors
/// When one cannot be drawn.
pub fn charts(record: &Record) -> io::Result<Vec<(&'static str, String)>> {
    let mut charts = Vec::new();
    let title = "CPU time of the server for each visit, in µs";
    let legend = format!("{MAIN}: 64 keep-alive connections, one core. Light: user, dark: kernel");
    charts.push(("cpu.svg", bars(title, &legend, &cpu(record))?));
    let latency = latency(record);
    if !latency.is_empty() {
        let title = "Latency at a constant rate, in µs";
        let legend = format!(
            "{PACED}: 70 % of what the slowest arm can do. Dark: p50, light: p99; log scale"
        );
        charts.push(("latency.svg", bars(title, &legend, &latency)?));
    }
    let idle: Vec<_> = record
        .idle
        .iter()
        .map(|idle| Bar {
            name: idle.arm.name(),
            parts: vec![((idle.bytes().max(1) as f64).log10(), USER)],
            label: idle.bytes().to_string(),
        })
        .collect();
    if !idle.is_empty() {
        let title = "Resident memory for each idle keep-alive connection, in bytes";
        charts.push(("memory.svg", bars(title, "10,000 connections; log scale", &idle)?));
    }
    let scaling = scaling(record);
    if !scaling.is_empty() {
        let title = "Visits a second by the number of the server's cores";
        charts.push(("scaling.svg", bars(title, "256 connections", &scaling)?));
    }
    Ok(charts)
}

fn cpu(record: &Record) -> Vec<Bar> {
    let bar = |arm: &crate::arms::Arm| {
        let cpu = record.spread(MAIN, *arm, Run::cpu_us)?.median;
        let user = record.spread(MAIN, *arm, |run| {
            run.usage.user_us / (run.usage.user_us + run.usage.system_us)
        })?;
        let user = user.median * cpu;
        Some(Bar {
            name: arm.name(),
            parts: vec![(user, USER), (cpu - user, SYSTEM)],
            label: format!("{cpu:.1}"),
        })
    };
    record.arms.iter().filter_map(bar).collect()
}

fn latency(record: &Record) -> Vec<Bar> {
    let bar = |arm: &crate::arms::Arm| {
        let p50 = record.spread(PACED, *arm, |run| run.report.p50_us)?.median;
        let p99 = record.spread(PACED, *arm, |run| run.report.p99_us)?.median;
        Some(Bar {
            name: arm.name(),
            parts: vec![(p50.log10(), SYSTEM), (p99.log10() - p50.log10(), USER)],
            label: format!("{p50:.0} / {p99:.0}"),
        })
    };
    record.arms.iter().filter_map(bar).collect()
}

fn scaling(record: &Record) -> Vec<Bar> {
    let scenes = record.scenes.iter().filter(|scene| scene.name.starts_with("cores-"));
    let bar = |scene: &crate::record::SceneRecord, arm: &crate::arms::Arm| {
        let rate = record.spread(&scene.name, *arm, Run::rate)?.median;
        Some(Bar {
            name: format!("{} {}", arm.name(), scene.server_cores.len()),
            parts: vec![(rate, USER)],
            label: format!("{rate:.0}"),
        })
    };
    scenes.flat_map(|scene| record.arms.iter().filter_map(move |arm| bar(scene, arm))).collect()
}

fn bars(title: &str, legend: &str, bars: &[Bar]) -> io::Result<String> {
    let height = TOP + (BAR + GAP) * i32::try_from(bars.len()).unwrap_or(0) + GAP;
    let mut text = String::new();
    let size = (WIDTH, height.unsigned_abs());
    draw(title, legend, bars, SVGBackend::with_string(&mut text, size))
        .map_err(io::Error::other)?;
    Ok(text)
}

fn draw<B: DrawingBackend>(
    title: &str,
    legend: &str,
    bars: &[Bar],
    backend: B,
) -> Result<(), String> {
    let fail = |error: &dyn Display| error.to_string();
    let area = backend.into_drawing_area();
    area.fill(&WHITE).map_err(|error| fail(&error))?;
    let font = |size: i32| ("sans-serif", size).into_font().color(&BLACK);
    let put = |text: &str, size: i32, place: (i32, i32)| {
        area.draw(&Text::new(text.to_owned(), place, font(size))).map_err(|error| fail(&error))
    };
    put(title, 18, (GAP, GAP))?;
    put(legend, 13, (GAP, 36))?;
    let most = bars.iter().map(|bar| bar.parts.iter().map(|(value, _)| value).sum::<f64>());
    let most = most.fold(f64::MIN_POSITIVE, f64::max);
    let room = f64::from(WIDTH.cast_signed() - LEFT - RIGHT);
    let mut top = TOP;
    for bar in bars {
        let middle = top + BAR / 2;
        let right = text_anchor::Pos::new(text_anchor::HPos::Right, text_anchor::VPos::Center);
        let name = Text::new(bar.name.clone(), (LEFT - GAP, middle), font(14).pos(right));
        area.draw(&name).map_err(|error| fail(&error))?;
        let mut from = LEFT;
        for (value, colour) in &bar.parts {
            // Within the picture: the largest bar fills the room.
            #[allow(clippy::cast_possible_truncation)]
            let to = from + (value / most * room).round() as i32;
            let rectangle = Rectangle::new([(from, top), (to, top + BAR)], colour.filled());
            area.draw(&rectangle).map_err(|error| fail(&error))?;
            from = to;
        }
        let left = text_anchor::Pos::new(text_anchor::HPos::Left, text_anchor::VPos::Center);
        let label = Text::new(bar.label.clone(), (from + GAP / 2, middle), font(14).pos(left));
        area.draw(&label).map_err(|error| fail(&error))?;
        top += BAR + GAP;
    }
    area.present().map_err(|error| fail(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::record;

    #[test]
    fn a_chart_shows_each_arm_and_is_the_same_each_time() {
        let drawn = charts(&record()).unwrap();
        let names: Vec<_> = drawn.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["cpu.svg", "latency.svg", "memory.svg"]);
        let cpu = &drawn[0].1;
        assert!(cpu.contains("tallyring") && cpu.contains("16.5"), "{cpu}");
        assert_eq!(*cpu, charts(&record()).unwrap()[0].1);
    }
}
