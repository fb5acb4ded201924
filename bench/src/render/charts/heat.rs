//! All arms in all scenes: what a visit costs, as a multiple of what it costs the floor.

use svg::node::element::Rectangle;

use crate::{
    arms::Arm,
    record::{Record, Run},
    render::canvas::{Canvas, MARGIN, Side, WIDTH, at, group, text},
};

const TOP: f64 = 180.0;
const LEFT: f64 = 146.0;
const ROW: f64 = 30.0;
const KEY: f64 = 46.0;
/// Where each colour begins, after the first.
const STEPS: [f64; 7] = [0.95, 1.15, 1.5, 2.0, 3.0, 5.0, 8.0];

/// A row for each arm and a column for each scene; `None` without a scene that the floor was run in.
pub fn chart(record: &Record) -> Option<String> {
    let names = record.scenes.iter().map(|scene| scene.name.as_str());
    let (scenes, without): (Vec<_>, Vec<_>) =
        names.partition(|scene| !record.runs(scene, Arm::Floor).is_empty());
    if scenes.is_empty() {
        return None;
    }
    let without = match without.as_slice() {
        [] => String::new(),
        without => format!("The floor is not run in {}.", without.join(", ")),
    };
    let notes = [
        "Medians of the ratios within a repeat. Gray: as much as the floor; blue: less.",
        &without,
    ];
    let bottom = TOP + ROW * record.arms.len() as f64;
    let mut canvas =
        Canvas::new(bottom + KEY, "CPU time of a visit, as a multiple of the floor's", &notes);
    let wide = ((WIDTH - MARGIN - 60.0 - LEFT) / scenes.len() as f64).min(90.0);
    let x = |column: usize| LEFT + wide * column as f64;
    for (column, scene) in scenes.iter().enumerate() {
        let (x, y) = (x(column) + wide / 2.0, TOP - 12.0);
        let turned = format!("rotate(-40 {} {})", at(x), at(y));
        canvas.add(text((x, y), Side::Right, "scene", scene).set("transform", turned));
    }
    for (row, arm) in record.arms.iter().enumerate() {
        let y = TOP + ROW * row as f64;
        let name = text((LEFT - 12.0, y + ROW / 2.0), Side::Left, "name", &arm.name());
        canvas.add(group(*arm).add(name));
        for (column, scene) in scenes.iter().enumerate() {
            let ratio = record.ratio(scene, *arm, Arm::Floor, Run::cpu_us);
            cell(&mut canvas, (x(column), y), wide, ratio.map(|ratio| ratio.median));
        }
    }
    key(&mut canvas, bottom + 14.0);
    Some(canvas.finish())
}

fn colour(ratio: f64) -> usize {
    STEPS.iter().filter(|step| ratio >= **step).count()
}

fn cell(canvas: &mut Canvas, (x, y): (f64, f64), wide: f64, ratio: Option<f64>) {
    let middle = (x + wide / 2.0, y + ROW / 2.0);
    let Some(ratio) = ratio else { return canvas.add(text(middle, Side::Both, "note", "–")) };
    canvas.add(square((x, y), wide - 2.0, ROW - 2.0, colour(ratio)));
    let figure = if ratio < 10.0 { format!("{ratio:.2}") } else { format!("{ratio:.1}") };
    let class = if colour(ratio) > 6 { "pale" } else { "figure" };
    canvas.add(text(middle, Side::Both, class, &figure));
}

fn square((x, y): (f64, f64), wide: f64, high: f64, colour: usize) -> Rectangle {
    let square = Rectangle::new().set("class", format!("h{colour}")).set("rx", 3);
    square
        .set("x", at(x + 1.0))
        .set("y", at(y + 1.0))
        .set("width", at(wide))
        .set("height", at(high))
}

/// The legend of the colours.
fn key(canvas: &mut Canvas, y: f64) {
    let wide = 62.0;
    for colour in 0..=STEPS.len() {
        let x = LEFT + (wide + 4.0) * colour as f64;
        let label = match colour {
            0 => format!("< {}", STEPS[0]),
            _ => format!("≥ {}", STEPS[colour - 1]),
        };
        canvas.add(square((x, y), wide, 20.0, colour));
        let class = if colour > 6 { "pale" } else { "figure" };
        canvas.add(text((x + wide / 2.0, y + 11.0), Side::Both, class, &label));
    }
}
