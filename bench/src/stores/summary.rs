//! The summary of a run of all stores, and what is wrong with it.

use std::collections::BTreeMap;

use super::{Kind, Record, Run};
use crate::statistics::Spread;

/// The summary, and what is wrong.
pub fn judge(record: &Record) -> (String, Vec<String>) {
    let faults = record.runs.iter().filter(|run| run.welcomed != run.counted).map(|run| {
        format!(
            "{}, {} counters, repeat {}: {} welcomed, {} counted",
            run.store.name(),
            run.counters,
            run.repeat,
            run.welcomed,
            run.counted
        )
    });
    let faults: Vec<_> = faults.collect();
    let mut text = record.environment.describe();
    let repeats = record.runs.iter().map(|run| run.repeat + 1).max().unwrap_or(0);
    text += &format!(
        "\n{} visitors in a closed loop, shared out to the sites: a tallyring with one worker for each counter, and the \
         counters on {}. Medians (and the range of the rates) of {repeats} runs of {} s in rotating order. All programs \
         share the {} cores. CPU time is that of a visit.\n\n",
        record.visitors,
        match record.engines.as_slice() {
            [] => String::from("stores of their own"),
            engines =>
                format!("{}, started for this on loopback with fsync on", engines.join(" and ")),
        },
        record.seconds,
        record.environment.cores,
    );
    text += &table(&record.runs);
    for line in &record.left_out {
        text += &format!("\n{line}.\n");
    }
    let exact = record.runs.len() - faults.len();
    text += &format!(
        "\nIn {exact} of {} runs the counters counted exactly the visits that were welcomed.\n",
        record.runs.len()
    );
    for fault in &faults {
        text += &format!("\n{fault}.\n");
    }
    (text, faults)
}

fn table(runs: &[Run]) -> String {
    let mut text = String::from(
        "| store | counters | visits/s | × one UPDATE | commits/s | visits a commit | p50 µs | p99 µs | CPU µs: site | \
         counter | database | visitors | cores busy: these | others |\n",
    );
    text += &format!("|{}\n", " --- |".repeat(14));
    let mut arms: Vec<(Kind, u16)> = Vec::new();
    for run in runs {
        if !arms.contains(&(run.store, run.counters)) {
            arms.push((run.store, run.counters));
        }
    }
    arms.sort_by_key(|(store, counters)| {
        (Kind::ALL.iter().position(|kind| kind == store), *counters)
    });
    let usual = usual(runs);
    for (store, counters) in arms {
        let of_arm: Vec<_> =
            runs.iter().filter(|run| (run.store, run.counters) == (store, counters)).collect();
        text += &row(&of_arm, &usual);
    }
    text
}

/// The rate of one program of the usual way, by its repeat.
fn usual(runs: &[Run]) -> BTreeMap<u32, f64> {
    let least = runs.iter().filter(|run| run.store == Kind::HotRow).map(|run| run.counters).min();
    let of_least =
        runs.iter().filter(|run| run.store == Kind::HotRow && Some(run.counters) == least);
    of_least.map(|run| (run.repeat, run.rate())).collect()
}

fn row(runs: &[&Run], usual: &BTreeMap<u32, f64>) -> String {
    let spread =
        |figure: &dyn Fn(&Run) -> f64| Spread::of(runs.iter().map(|run| figure(run)).collect());
    let median = |figure: &dyn Fn(&Run) -> f64| spread(figure).median;
    let or_dash = |figure: f64, digits: usize| match figure.is_nan() {
        true => String::from("–"),
        false => format!("{figure:.digits$}"),
    };
    let a_visit = |part: fn(&Run) -> f64| {
        let cost = median(&|run| part(run) / run.report.visits as f64);
        if cost > 0.0 { format!("{cost:.1}") } else { String::from("–") }
    };
    let rate = spread(&Run::rate);
    let ratios = runs.iter().filter_map(|run| Some(run.rate() / usual.get(&run.repeat)?));
    let ratio = Spread::of(ratios.collect()).median;
    let batch = median(&|run| run.commits.map_or(f64::NAN, |all| run.counted as f64 / all as f64));
    format!(
        "| {} | {} | {:.0} ({:.0}–{:.0}) | {} | {} | {} | {:.0} | {:.0} | {} | {} | {} | {} | {:.0} % | {:.0} % |\n",
        runs[0].store.name(),
        runs[0].counters,
        rate.median,
        rate.least,
        rate.most,
        or_dash(ratio, 1),
        or_dash(median(&Run::commit_rate), 0),
        or_dash(batch, 1),
        median(&|run| run.report.p50_us),
        median(&|run| run.report.p99_us),
        a_visit(|run| run.cpu.sites),
        a_visit(|run| run.cpu.counters),
        a_visit(|run| run.cpu.database),
        a_visit(|run| run.cpu.visitors),
        median(&|run| run.own_busy) * 100.0,
        median(&|run| run.others_busy) * 100.0,
    )
}

#[cfg(test)]
mod tests {
    use tallyring_bench::load::Report;

    use super::*;
    use crate::{machine::Environment, stores::Cpu};

    fn run(store: Kind, repeat: u32, visits: u64) -> Run {
        Run {
            store,
            counters: 1,
            repeat,
            report: Report { visits, seconds: 2.0, p50_us: 5.0, p99_us: 9.0, ..Report::default() },
            cpu: Cpu { counters: visits as f64 * 2.5, ..Cpu::default() },
            own_busy: 0.5,
            others_busy: 0.25,
            welcomed: visits + 10,
            counted: visits + 10,
            commits: (store != Kind::Memory).then_some((visits + 10) / 10),
        }
    }

    fn record(runs: Vec<Run>) -> Record {
        Record {
            environment: Environment::default(),
            visitors: 64,
            seconds: 2.0,
            engines: vec![String::from("postgres 15")],
            left_out: vec![String::from("etcd: left out")],
            runs,
        }
    }

    #[test]
    fn a_store_is_compared_with_the_usual_way_in_the_same_repeat() {
        let runs = [
            run(Kind::HotRow, 0, 100),
            run(Kind::Postgres, 0, 2000),
            run(Kind::Postgres, 1, 8000),
            // A repeat in which the machine was fast for all.
            run(Kind::HotRow, 1, 400),
            run(Kind::Memory, 0, 4000),
        ];
        let (text, faults) = judge(&record(runs.into()));
        assert_eq!(faults, [""; 0]);
        let row = "| PostgreSQL | 1 | 2500 (1000–4000) | 20.0 | 250 | 10.0 | 5 | 9 | – | 2.5 | – | – | 50 % | 25 % |";
        assert!(text.contains(row), "{text}");
        let row = "| memory | 1 | 2000 (2000–2000) | 40.0 | – | – | 5 | 9 | – | 2.5 | – | – | 50 % | 25 % |";
        assert!(text.contains(row), "{text}");
        assert!(text.contains("\netcd: left out.\n") && text.contains("In 5 of 5 runs"), "{text}");
    }

    #[test]
    fn a_visit_that_is_lost_or_counted_twice_is_a_fault() {
        let lost = Run { counted: 109, ..run(Kind::Redb, 0, 100) };
        let twice = Run { counted: 111, ..run(Kind::Redb, 1, 100) };
        let (text, faults) = judge(&record(vec![lost, twice, run(Kind::Redb, 2, 100)]));
        let line = "redb, 1 counters, repeat 1: 110 welcomed, 111 counted";
        assert!(faults.len() == 2 && faults[1] == line, "{faults:?}");
        assert!(text.contains("In 1 of 3 runs") && text.contains(line), "{text}");
        // Without the usual way there is no ratio.
        assert!(text.contains("| redb | 1 | 50 (50–50) | – |"), "{text}");
    }
}
