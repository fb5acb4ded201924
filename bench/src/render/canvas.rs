//! The canvas that charts are drawn on: SVG that follows the reader's light or dark colour scheme.

use svg::{
    Document, Node,
    node::element::{Circle, Group, Line, Polyline, Rectangle, Style, Text},
};

use crate::arms::Arm;

/// The width of a README, so that text is shown at its size.
pub const WIDTH: f64 = 860.0;
/// The margin of the canvas.
pub const MARGIN: f64 = 16.0;

/// Colours are given by class; an arm's marks take the `color` of their group.
const STYLE: &str = r#"
text{font:14px system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif;fill:#1f2328}
.title{font-size:18px;font-weight:600}
.note{font-size:13px;fill:#59636e}
.name{fill:currentColor}
.tallyring .name{font-weight:600}
.paper{fill:#ffffff}
.grid{stroke:#d8dee4}
.axis{stroke:#818b98}
.dot{fill:currentColor;stroke:currentColor;stroke-width:2}
.hollow{fill:#ffffff;stroke:currentColor;stroke-width:2}
.range{stroke:currentColor;stroke-width:3;stroke-linecap:round;opacity:.45}
.curve{fill:none;stroke:currentColor;stroke-width:2;stroke-linejoin:round}
.tallyring .curve{stroke-width:3.5}
.tallyring-pipelined .curve,.tallyring-batched .curve,.tallyring-epoll .curve,.floor .curve,.floor-pipelined .curve,.floor-batched .curve,.axum .curve{stroke-dasharray:7 4}
.ideal{fill:none;stroke:currentColor;stroke-dasharray:1 5;stroke-linecap:round;stroke-width:2;opacity:.7}
.lead{fill:none;stroke:currentColor;opacity:.5}
.band{fill:currentColor;stroke:none;opacity:.15}
.other{color:#6e7781}
.tallyring,.tallyring-pipelined,.tallyring-batched,.tallyring-epoll{color:#0969da}
.floor{color:#59636e}
.floor-pipelined{color:#57606a}
.floor-batched{color:#424a53}
.monoio-http{color:#1b7c83}
.tokio-per-core{color:#bc4c00}
.hyper{color:#8a4600}
.axum-tuned{color:#9a6700}
.axum{color:#a4700a}
.seed{color:#cf222e}
.haproxy{color:#8250df}
.nginx{color:#1a7f37}
.h0{fill:#b6e3ff}.h1{fill:#eaeef2}.h2{fill:#fff8c5}.h3{fill:#fae17d}.h4{fill:#ffb77c}.h5{fill:#fb8f44}.h6{fill:#e16f24}.h7{fill:#bc4c00}
.pale{fill:#ffffff}
@media (prefers-color-scheme:dark){
text{fill:#f0f6fc}
.note{fill:#9198a1}
.name{fill:currentColor}
.paper{fill:#0d1117}
.grid{stroke:#2a313c}
.axis{stroke:#656c76}
.hollow{fill:#0d1117}
.band{opacity:.25}
.other{color:#9198a1}
.tallyring,.tallyring-pipelined,.tallyring-batched,.tallyring-epoll{color:#58a6ff}
.floor{color:#9198a1}
.floor-pipelined{color:#a5acb5}
.floor-batched{color:#b7bdc8}
.monoio-http{color:#39c5cf}
.tokio-per-core{color:#f0883e}
.hyper{color:#ffa657}
.axum-tuned{color:#d29922}
.axum{color:#e3b341}
.seed{color:#ff7b72}
.haproxy{color:#bc8cff}
.nginx{color:#3fb950}
.h0{fill:#0c4a8a}.h1{fill:#262c36}.h2{fill:#2f2a12}.h3{fill:#4b3a0c}.h4{fill:#6b3f0b}.h5{fill:#8a4612}.h6{fill:#a8501a}.h7{fill:#c9612a}
}
"#;

/// On which side of its position a text is.
#[derive(Debug, Clone, Copy)]
pub enum Side {
    /// It begins at the position.
    Right,
    /// It is centred at the position.
    Both,
    /// It ends at the position.
    Left,
}

/// A chart that is being drawn.
pub struct Canvas {
    document: Document,
}

impl Canvas {
    /// A canvas of this height, with a title and notes.
    pub fn new(height: f64, title: &str, notes: &[&str]) -> Self {
        let paper =
            Rectangle::new().set("class", "paper").set("width", WIDTH).set("height", height);
        let mut document = Document::new()
            .set("viewBox", (0.0, 0.0, WIDTH, height))
            .set("role", "img")
            .set("aria-label", title)
            .add(Style::new(STYLE))
            .add(paper.set("rx", 6))
            .add(text((MARGIN, 28.0), Side::Right, "title", title));
        for (line, note) in notes.iter().enumerate() {
            let place = (MARGIN, 48.0 + 17.0 * line as f64);
            document.append(text(place, Side::Right, "note", note));
        }
        Self { document }
    }

    /// Draws something.
    pub fn add(&mut self, node: impl Into<Box<dyn Node>>) {
        self.document.append(node);
    }

    /// The chart as SVG.
    pub fn finish(self) -> String {
        format!("{}\n", self.document)
    }
}

/// A number for an attribute, rounded to a tenth of a pixel.
pub fn at(place: f64) -> f64 {
    (place * 10.0).round() / 10.0
}

/// The group of an arm's marks, which gives them its colour.
pub fn group(arm: Arm) -> Group {
    Group::new().set("class", arm.name())
}

/// A text, vertically centred at its position.
pub fn text((x, y): (f64, f64), side: Side, class: &str, text: &str) -> Text {
    let anchor = match side {
        Side::Right => "start",
        Side::Both => "middle",
        Side::Left => "end",
    };
    let text = Text::new(text).set("class", class).set("text-anchor", anchor);
    text.set("x", at(x)).set("y", at(y + 5.0))
}

/// A straight line.
pub fn line(class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) -> Line {
    let line = Line::new().set("class", class);
    line.set("x1", at(x1)).set("y1", at(y1)).set("x2", at(x2)).set("y2", at(y2))
}

/// A line through points, or what it encloses.
pub fn polyline(class: &str, points: impl IntoIterator<Item = (f64, f64)>) -> Polyline {
    let points = points.into_iter().map(|(x, y)| format!("{},{}", at(x), at(y)));
    Polyline::new().set("class", class).set("points", points.collect::<Vec<_>>().join(" "))
}

/// A dot.
pub fn dot(class: &str, (x, y): (f64, f64), radius: f64) -> Circle {
    Circle::new().set("class", class).set("cx", at(x)).set("cy", at(y)).set("r", radius)
}

/// Names of curves right of `right`, without overlap; `ends` are the ends of the curves.
pub fn names(canvas: &mut Canvas, mut ends: Vec<((f64, f64), Arm)>, (right, bottom): (f64, f64)) {
    const APART: f64 = 17.0;
    ends.sort_by(|one, other| one.0.1.total_cmp(&other.0.1));
    let mut places: Vec<f64> = Vec::new();
    for ((_, y), _) in &ends {
        places.push(places.last().map_or(*y, |above| y.max(above + APART)));
    }
    let mut most = bottom;
    for place in places.iter_mut().rev() {
        *place = place.min(most);
        most = *place - APART;
    }
    for (((x, y), arm), place) in ends.into_iter().zip(places) {
        let lead = polyline("lead", [(x + 6.0, y), (right + 22.0, place), (right + 28.0, place)]);
        let name = text((right + 32.0, place), Side::Right, "name", &arm.name());
        canvas.add(group(arm).add(lead).add(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_follows_the_colour_scheme_and_escapes_its_text() {
        let svg = Canvas::new(100.0, "a < b", &["& c"]).finish();
        assert!(svg.contains("prefers-color-scheme:dark"), "{svg}");
        assert!(svg.contains("a &lt; b") && svg.contains("&amp; c"), "{svg}");
    }

    #[test]
    fn each_arm_has_its_colour_in_both_schemes() {
        let (light, dark) = STYLE.split_once("@media").unwrap();
        for arm in crate::arms::ALL {
            let class = format!(".{}", arm.name());
            for scheme in [light, dark] {
                let coloured = |line: &str| {
                    let (classes, rule) = line.split_once('{')?;
                    rule.starts_with("color:").then(|| classes.split(',').any(|one| one == class))
                };
                assert!(scheme.lines().filter_map(coloured).any(|it| it), "{class}");
            }
        }
    }

    #[test]
    fn names_do_not_overlap_and_are_on_the_canvas() {
        let mut canvas = Canvas::new(100.0, "", &[]);
        let ends = [Arm::Floor, Arm::Hyper, Arm::Axum].map(|arm| ((0.0, 90.0), arm));
        names(&mut canvas, ends.to_vec(), (0.0, 95.0));
        let svg = canvas.finish();
        for y in ["y=\"66\"", "y=\"83\"", "y=\"100\""] {
            assert!(svg.contains(y), "{y}: {svg}");
        }
    }
}
