//! The chart of a simulation: a column for each number of connections, with the spread of the load above and waits below.

use svg::node::element::{Group, Style};

use super::{
    Figures, POLICIES,
    cell::Cell,
    model::{Policy, Size},
    summary::{name, thousands},
};
use crate::render::{
    axis::Axis,
    canvas::{Canvas, MARGIN, Side, WIDTH, dot, line, polyline, text},
};

const STYLE: &str = ".reuse-port{color:#cf222e}.hand-over{color:#0969da}.stealing{color:#1a7f37}\n\
                     .stealing .curve{stroke-dasharray:7 4}\n\
                     @media (prefers-color-scheme:dark){.reuse-port{color:#ff7b72}.hand-over{color:#58a6ff}\
                     .stealing{color:#3fb950}}\n";
const LEFT: f64 = 62.0;
const GAP: f64 = 18.0;
const TOP: f64 = 142.0;
const PANEL: f64 = 170.0;
/// From the top of a panel to that of the one below.
const BELOW: f64 = PANEL + 74.0;
/// How wide the key of a policy is.
const KEY: f64 = 190.0;

/// A row of panels.
struct Row {
    title: &'static str,
    least: f64,
    figure: fn(&Cell) -> f64,
}

const ROWS: [Row; 2] = [
    Row {
        title: "Work of the busiest core, × an even share",
        least: 1.0,
        figure: |cell| cell.busiest,
    },
    Row {
        title: "p99 of the wait for a core, × the CPU time of a visit",
        least: 0.0,
        figure: |cell| cell.wait_p99,
    },
];

/// The chart as SVG.
pub fn chart(figures: &Figures) -> String {
    let load = format!(
        "Simulated. The connections keep the cores that they can use busy for {:.0} % of the time, if evenly. An even share is of",
        figures.setting.load * 100.0
    );
    let notes = [
        load.as_str(),
        "the cores that can be busy: as many as there are connections, at most all. Means over placements of the connections.",
    ];
    let height = TOP + BELOW * (ROWS.len() - 1) as f64 + PANEL + 42.0;
    let mut canvas =
        Canvas::new(height, "How evenly cores are busy, by connections and cores", &notes);
    canvas.add(Style::new(STYLE));
    for (place, policy) in POLICIES.into_iter().enumerate() {
        let x = MARGIN + KEY * place as f64;
        let y = 88.0;
        let key = Group::new().set("class", class(policy));
        let key = key.add(line("curve", (x, y), (x + 26.0, y))).add(dot("dot", (x + 13.0, y), 3.0));
        canvas.add(key.add(text((x + 34.0, y), Side::Right, "name", name(policy))));
    }
    for (place, row) in ROWS.iter().enumerate() {
        self::row(&mut canvas, TOP + BELOW * place as f64, row, figures);
    }
    canvas.finish()
}

fn row(canvas: &mut Canvas, top: f64, row: &Row, figures: &Figures) {
    let bottom = top + PANEL;
    canvas.add(text((MARGIN, top - 30.0), Side::Right, "head", row.title));
    let most = figures.cells.iter().map(row.figure).fold(row.least + 1.0, f64::max);
    let up = Axis::linear((row.least, row.least + (most - row.least) * 1.05), (bottom, top));
    for tick in up.ticks() {
        canvas.add(text((LEFT - 8.0, up.place(tick)), Side::Left, "note", &label(tick)));
    }
    let columns = figures.numbers(|size| size.connections);
    let cores = figures.numbers(|size| size.cores);
    let wide = (WIDTH - MARGIN - LEFT + GAP) / columns.len() as f64;
    for (column, connections) in columns.into_iter().enumerate() {
        let left = LEFT + wide * column as f64;
        let right = left + wide - GAP;
        let range = (cores[0] as f64, (cores[cores.len() - 1] as f64).max(cores[0] as f64 + 1.0));
        let along = Axis::log(range, (left + 10.0, right - 10.0));
        for tick in up.ticks() {
            canvas.add(line("grid", (left, up.place(tick)), (right, up.place(tick))));
        }
        canvas.add(line("axis", (left, bottom), (right, bottom)));
        let head = format!("{} connections", thousands(connections));
        canvas.add(text(((left + right) / 2.0, top - 9.0), Side::Both, "note", &head));
        // Each second number has a name, so that they do not overlap.
        for cores in cores.iter().step_by(2) {
            let place = (along.place(*cores as f64), bottom + 12.0);
            canvas.add(text(place, Side::Both, "note", &cores.to_string()));
        }
        for policy in POLICIES {
            let point = |cores: &usize| {
                let cell = figures.cell(Size { cores: *cores, connections }, policy)?;
                Some((along.place(*cores as f64), up.place((row.figure)(cell))))
            };
            let points: Vec<_> = cores.iter().filter_map(point).collect();
            let marks = Group::new().set("class", class(policy));
            let marks = marks.add(polyline("curve", points.iter().copied()));
            canvas.add(
                points.into_iter().fold(marks, |marks, place| marks.add(dot("dot", place, 2.5))),
            );
        }
    }
    canvas.add(text((LEFT - 8.0, bottom + 12.0), Side::Left, "note", "cores"));
}

/// A tick's number, without what binary fractions add to it.
fn label(tick: f64) -> String {
    ((tick * 100.0).round() / 100.0).to_string()
}

fn class(policy: Policy) -> &'static str {
    match policy {
        Policy::ReusePort => "reuse-port",
        Policy::HandOver => "hand-over",
        Policy::Stealing => "stealing",
    }
}
