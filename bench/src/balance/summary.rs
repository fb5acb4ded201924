//! The table of a simulation, as Markdown and for the terminal.

use super::{
    Figures, POLICIES,
    cell::Cell,
    model::{Policy, Service, Size},
};
use crate::terminal::table;

/// What a policy is called.
pub fn name(policy: Policy) -> &'static str {
    match policy {
        Policy::ReusePort => "SO_REUSEPORT",
        Policy::HandOver => "hand-over",
        Policy::Stealing => "work stealing",
    }
}

/// A number with a comma before each three digits.
pub fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev();
    groups.map(String::from_utf8_lossy).collect::<Vec<_>>().join(",")
}

/// The summary as Markdown.
pub fn summary(figures: &Figures) -> String {
    let setting = &figures.setting;
    let mut text = format!(
        "# Evenly busy cores, simulated\n\n\
         Connections, all as busy, that would keep the cores that they can use busy for {:.0} % of the time if the load \
         were even. A visit takes a core {}, a stolen one {:.0} % more; times are by that of a visit. {} placements of \
         the connections, in proportion fewer on more than 16 cores, each watched for {:.0} visits of a core after a \
         quarter of that; seed {}.\n\n\
         - busiest: the work of the busiest core, by an even share for each core that can be busy; mean, and the worst \
         of 20 placements.\n\
         - p99 wait: how long a visit waits for a core.\n\
         - visits: by those that would be made if no visit had to wait.\n\
         - stolen: the share of the visits that another core than the last one serves, with work stealing.\n\
         - policies, in this order: {}.\n\n",
        setting.load * 100.0,
        match setting.service {
            Service::Constant => "always as long",
            Service::Exponential => "an exponentially distributed time",
        },
        setting.steal_cost * 100.0,
        setting.draws,
        setting.span,
        setting.seed,
        POLICIES.map(name).join(", "),
    );
    for (place, cells) in rows(figures).into_iter().enumerate() {
        text += &format!("| {} |\n", cells.join(" | "));
        if place == 0 {
            text += &format!("|{}\n", " --- |".repeat(cells.len()));
        }
    }
    text += "\n![How evenly cores are busy](balance.svg)\n";
    text
}

/// The table, aligned for a terminal.
pub fn in_short(figures: &Figures) -> String {
    table(&rows(figures))
}

/// A row for each size, below the heads of the columns.
fn rows(figures: &Figures) -> Vec<[String; 12]> {
    let mut rows = vec![
        [
            "connections",
            "cores",
            "busiest: hash",
            "hand-over",
            "stealing",
            "p99 wait: hash",
            "hand-over",
            "stealing",
            "visits: hash",
            "hand-over",
            "stealing",
            "stolen",
        ]
        .map(String::from),
    ];
    for connections in figures.numbers(|size| size.connections) {
        for cores in figures.numbers(|size| size.cores) {
            let size = Size { cores, connections };
            let of = |policy, figure: &dyn Fn(&Cell) -> String| {
                figures.cell(size, policy).map_or(String::from("–"), figure)
            };
            let busiest = |cell: &Cell| format!("{:.2} ({:.2})", cell.busiest, cell.busiest_p95);
            let wait = |cell: &Cell| format!("{:.1}", cell.wait_p99);
            let visits = |cell: &Cell| format!("{:.0} %", cell.visits * 100.0);
            let columns: [&dyn Fn(&Cell) -> String; 3] = [&busiest, &wait, &visits];
            let all = columns.map(|figure| POLICIES.map(|policy| of(policy, figure)));
            let [[a, b, c], [d, e, f], [g, h, i]] = all;
            let stolen = of(Policy::Stealing, &|cell| format!("{:.0} %", cell.stolen * 100.0));
            let (connections, cores) = (thousands(connections), cores.to_string());
            rows.push([connections, cores, a, b, c, d, e, f, g, h, i, stolen]);
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped() {
        for (number, text) in [(0, "0"), (64, "64"), (1024, "1,024"), (1_000_000, "1,000,000")] {
            assert_eq!(thousands(number), text);
        }
    }
}
