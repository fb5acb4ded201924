//! The summary of a record: its tables, as Markdown and for the terminal.

use crate::{
    arms::Arm,
    record::{Record, Run, SATURATED, SceneRecord},
    scenes::{MAIN, PACED},
    statistics::Spread,
    terminal::table,
};

/// The summary as Markdown, with the charts of these names.
pub fn summary(record: &Record, charts: &[&str]) -> String {
    let mut text = record.environment.describe();
    let repeats = record.runs.iter().map(|run| run.repeat + 1).max().unwrap_or(0);
    text += &format!(
        "\nMedians of {repeats} runs (and their range), interleaved in rotating order; ratios are taken \
         within a repeat. Visitors and counter alone, with no server between them, exchange {:.0} \
         answers a second.\n",
        record.load_alone_per_second
    );
    text += &books(record);
    for failure in &record.failures {
        text += &format!("\nA run failed: {failure}\n");
    }
    text += &format!("\n{}", main_table(record));
    for chart in charts {
        text += &format!("\n![{}]({chart})\n", chart.trim_end_matches(".svg"));
    }
    for scene in &record.scenes {
        text += &of_scene(record, scene);
    }
    text += &memory(record);
    text += &calls(record);
    text += &visits_a_call(record);
    text
}

fn books(record: &Record) -> String {
    let wrong: Vec<_> = record.runs.iter().filter(|run| run.welcomed != run.counted).collect();
    let mut text = format!(
        "\nIn {} of {} runs the counter counted exactly the visits that were answered with 200.\n",
        record.runs.len() - wrong.len(),
        record.runs.len()
    );
    for run in wrong {
        text += &format!(
            "- {} in {}, repeat {}: {} answered, {} counted\n",
            run.arm.name(),
            run.scene,
            run.repeat,
            run.welcomed,
            run.counted
        );
    }
    text
}

/// The heads of the columns; the fifth gets the name of the usual arm.
const HEADS: [&str; 13] = [
    "arm",
    "CPU µs a visit",
    "user",
    "× floor",
    "×",
    "visits/s",
    "p50 µs",
    "p99 µs",
    "p99.9 µs",
    "max µs",
    "switches a visit",
    "MiB",
    "busiest thread",
];

fn of_scene(record: &Record, scene: &SceneRecord) -> String {
    let rate = scene.rate.map_or(String::new(), |rate| format!(", {rate:.0} visits/s"));
    let mut text = format!(
        "\n## {}\n\n{}; {} connections{rate}; the server on {}, the load on {}.\n\n",
        scene.name,
        capitalised(&scene.about),
        scene.connections,
        cores(&scene.server_cores),
        cores(&scene.load_cores)
    );
    let mut heads = HEADS.map(String::from);
    heads[4] = format!("× {}", record.usual().name());
    text += &row(heads);
    text += &row(HEADS.map(|_| String::from("---")));
    let mut limited = Vec::new();
    for arm in &record.arms {
        let spread = |figure: fn(&Run) -> f64| record.spread(&scene.name, *arm, figure);
        let Some(cpu) = spread(Run::cpu_us) else { continue };
        let median =
            |figure: fn(&Run) -> f64| spread(figure).map_or(f64::NAN, |spread| spread.median);
        let ratio = |to| ratio(record.ratio(&scene.name, *arm, to, Run::cpu_us));
        let load = median(|run| run.load_busy);
        if load >= SATURATED && median(|run| run.server_busy) < SATURATED {
            limited.push(arm.name());
        }
        text += &row([
            arm.name(),
            format!("{:.2} ({:.2}–{:.2})", cpu.median, cpu.least, cpu.most),
            format!(
                "{:.0} %",
                100.0 * median(|run| run.usage.user_us / (run.usage.user_us + run.usage.system_us))
            ),
            ratio(Arm::Floor),
            ratio(record.usual()),
            format!("{:.0}", median(Run::rate)),
            format!("{:.0}", median(|run| run.report.p50_us)),
            format!("{:.0}", median(|run| run.report.p99_us)),
            format!("{:.0}", median(|run| run.report.p999_us)),
            format!("{:.0}", median(|run| run.report.max_us)),
            format!("{:.3}", median(|run| run.usage.switches as f64 / run.report.visits as f64)),
            format!("{:.1}", median(|run| run.usage.resident_bytes as f64 / 1048576.0)),
            format!(
                "{:.0} %",
                100.0 * median(|run| run.usage.busiest_thread_us / run.usage.cpu_us)
            ),
        ]);
    }
    if !limited.is_empty() {
        text += &format!(
            "\nThe visitors and the counter, not the server, limited the rate of: {}.\n",
            limited.join(", ")
        );
    }
    text
}

fn memory(record: &Record) -> String {
    if record.idle.is_empty() {
        return String::new();
    }
    let kinds = [
        ("idle keep-alive connection", &record.idle),
        ("visit in flight, with its connection to the counter", &record.in_flight),
    ];
    let mut text = String::from("\n## Memory\n");
    for (kind, memory) in kinds.into_iter().filter(|(_, memory)| !memory.is_empty()) {
        text += &format!("\n| arm | resident bytes for each {kind} | of |\n| --- | --- | --- |\n");
        for memory in memory {
            let (bytes, of) = (memory.bytes().to_string(), memory.connections.to_string());
            text += &row([memory.arm.name(), bytes, of]);
        }
    }
    text
}

fn calls(record: &Record) -> String {
    let Some(first) = record.calls.first() else { return String::new() };
    let mut text = format!(
        "\n## System calls\n\nIn `{MAIN}`, counted by `{}` in a run of their own.\n\n\
         | arm | system calls a visit |\n| --- | --- |\n",
        first.counter
    );
    for calls in &record.calls {
        let each = calls.calls as f64 / calls.visits as f64;
        text += &format!("| {} | {each:.3} |\n", calls.arm.name());
    }
    text
}

/// Where a call to the counter registers more than one visit.
fn visits_a_call(record: &Record) -> String {
    let mut rows = String::new();
    for arm in &record.arms {
        for scene in &record.scenes {
            let runs = record.runs(&scene.name, *arm);
            let visits = runs.into_iter().filter(|run| run.calls > 0);
            let visits = visits.map(|run| run.counted as f64 / run.calls as f64);
            let visits = Spread::of(visits.collect());
            if visits.most > 1.0 {
                let figures =
                    format!("{:.1} ({:.1}–{:.1})", visits.median, visits.least, visits.most);
                rows += &row([arm.name(), scene.name.clone(), figures]);
            }
        }
    }
    if rows.is_empty() {
        return rows;
    }
    format!(
        "\n## Visits that a call registers\n\nMore than one in:\n\n\
         | arm | scene | visits a call |\n| --- | --- | --- |\n{rows}"
    )
}

/// The main figures of each arm, aligned for a terminal.
pub fn in_short(record: &Record) -> String {
    table(&main_figures(record))
}

/// The same as Markdown.
fn main_table(record: &Record) -> String {
    let mut text = String::new();
    for (place, cells) in main_figures(record).into_iter().enumerate() {
        text += &row(cells);
        if place == 0 {
            text += &row(["---"; 6].map(String::from));
        }
    }
    text
}

/// The main figures of each arm, below the heads of the columns.
fn main_figures(record: &Record) -> Vec<[String; 6]> {
    let usual = record.usual();
    let mut rows = vec![[
        String::new(),
        String::from("CPU µs a visit"),
        String::from("× floor"),
        format!("× {}", usual.name()),
        String::from("p99 µs at 70 %"),
        String::from("bytes an idle connection"),
    ]];
    for arm in &record.arms {
        let Some(cpu) = record.spread(MAIN, *arm, Run::cpu_us) else { continue };
        let paced = record.spread(PACED, *arm, |run| run.report.p99_us);
        let idle = record.idle.iter().find(|idle| idle.arm == *arm);
        rows.push([
            arm.name(),
            format!("{:.1} ({:.1}–{:.1})", cpu.median, cpu.least, cpu.most),
            ratio(record.ratio(MAIN, *arm, Arm::Floor, Run::cpu_us)),
            ratio(record.ratio(MAIN, *arm, usual, Run::cpu_us)),
            paced.map_or(String::from("–"), |paced| format!("{:.0}", paced.median)),
            idle.map_or(String::from("–"), |idle| idle.bytes().to_string()),
        ]);
    }
    rows
}

fn row<const N: usize>(cells: [String; N]) -> String {
    format!("| {} |\n", cells.join(" | "))
}

fn ratio(spread: Option<Spread>) -> String {
    spread.map_or(String::from("–"), |spread| format!("{:.2}", spread.median))
}

fn cores(cores: &[usize]) -> String {
    let list = crate::arms::list(cores);
    if cores.len() == 1 { format!("core {list}") } else { format!("cores {list}") }
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters
        .next()
        .map_or(String::new(), |first| first.to_uppercase().collect::<String>() + letters.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{
        Memory,
        tests::{record, run},
    };

    #[test]
    fn a_run_is_summarised() {
        let mut record = record();
        let text = summary(&record, &["cpu.svg"]);
        assert!(text.contains("![cpu](cpu.svg)"), "{text}");
        let expected =
            "| tallyring | 16.50 (11.00–22.00) | 25 % | 1.10 | 0.28 | 5 | 100 | 200 | 300 | 400 |";
        assert!(text.contains(expected), "{text}");
        assert!(text.contains("| axum | 100 | 10 |"), "{text}");
        assert!(text.contains("| axum | 5.000 |"), "{text}");
        assert!(!text.contains("visit in flight"), "{text}");
        record.in_flight = vec![Memory { connections: 4, ..record.idle[0].clone() }];
        assert!(summary(&record, &[]).contains("| axum | 250 | 4 |"));
        assert!(text.contains("In 12 of 12 runs"), "{text}");
        assert!(!text.contains("limited the rate"), "{text}");
        record.failures.push(String::from("axum fell over"));
        assert!(summary(&record, &[]).contains("A run failed: axum fell over"));
        record.runs.push(Run { counted: 9, ..run("closed-64", Arm::Axum, 2, 1.0) });
        assert!(
            summary(&record, &[]).contains("- axum in closed-64, repeat 2: 10 answered, 9 counted")
        );
        assert!(!summary(&record, &[]).contains("that a call registers"));
        record.runs[0].calls = 4;
        assert!(summary(&record, &[]).contains("| floor | closed-64 | 1.8 (1.0–2.5) |"));
        for run in &mut record.runs {
            run.load_busy = 0.99;
        }
        assert!(summary(&record, &[]).contains("limited the rate of: floor, tallyring, axum"));
    }

    #[test]
    fn each_arm_has_a_row_in_short() {
        let expected = "| tallyring | 16.5 (11.0–22.0) | 1.10 | 0.28 | 200 | – |\n";
        assert!(main_table(&record()).contains(expected));
        let expected = "tallyring  16.5 (11.0–22.0)     1.10    0.28             200";
        assert!(in_short(&record()).contains(expected), "{}", in_short(&record()));
    }
}
