//! The charts of a record.

mod dots;
mod heat;
mod latency;
mod scaling;

use crate::{
    arms::Arm,
    record::{Record, Run},
    scenes::MAIN,
    statistics::Spread,
};

/// The charts that a record has figures for, by the names of their files.
pub fn charts(record: &Record) -> Vec<(&'static str, String)> {
    let charts = [
        ("cpu.svg", cpu(record)),
        ("latency.svg", latency::chart(record)),
        ("memory.svg", memory(record)),
        ("scaling.svg", scaling::chart(record)),
        ("ratios.svg", heat::chart(record)),
    ];
    charts.into_iter().filter_map(|(name, chart)| Some((name, chart?))).collect()
}

fn cpu(record: &Record) -> Option<String> {
    let row = |arm: &Arm| {
        let spread = record.spread(MAIN, *arm, Run::cpu_us)?;
        let ratio = record.ratio(MAIN, *arm, Arm::Floor, Run::cpu_us);
        let Spread { least, median, most, .. } = spread;
        let label = format!("{median:.1} ({least:.1}–{most:.1})");
        let ratio = ratio.map_or(String::from("–"), |ratio| format!("{:.2}", ratio.median));
        Some(dots::Row { arm: *arm, spread, labels: [label, ratio] })
    };
    let rows = record.arms.iter().filter_map(row).collect();
    dots::broken(
        "CPU time of the server for each visit, in µs",
        &format!("{MAIN}: 64 keep-alive connections, one core. Dot: median; line: all repeats."),
        ["µs (range)", "× floor"],
        rows,
    )
}

fn memory(record: &Record) -> Option<String> {
    let connections = record.idle.first()?.connections;
    let row = |idle: &crate::record::Memory| {
        let bytes = idle.bytes().max(1);
        let labels = [bytes.to_string(), String::new()];
        dots::Row { arm: idle.arm, spread: Spread::of(vec![bytes as f64]), labels }
    };
    dots::log(
        "Resident memory for each idle keep-alive connection, in bytes",
        &format!("{connections} connections that have made one visit. The axis is logarithmic."),
        ["bytes", ""],
        record.idle.iter().map(row).collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::{record, run};

    fn drawn(record: &Record, wanted: &str) -> String {
        let chart = charts(record).into_iter().find(|(name, _)| *name == wanted);
        chart.map(|(_, chart)| chart).unwrap_or_default()
    }

    /// The record, with a `seed` that needs ten times as much as the others.
    fn with_seed() -> Record {
        let mut record = record();
        record.arms.push(Arm::Seed);
        record.runs.push(run("closed-64", Arm::Seed, 0, 9000.0));
        record
    }

    #[test]
    fn charts_depend_only_on_the_figures() {
        let names = charts(&record()).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names, ["cpu.svg", "latency.svg", "memory.svg", "ratios.svg"]);
        assert_eq!(charts(&record()), charts(&record()));
    }

    #[test]
    fn cpu_shows_each_arm_with_its_range_least_first() {
        let cpu = drawn(&with_seed(), "cpu.svg");
        assert!(cpu.contains("\n16.5 (11.0–22.0)\n") && cpu.contains("\n1.10\n"), "{cpu}");
        let place = |name: &str| cpu.find(&format!("\n{name}\n")).unwrap();
        assert!(place("floor") < place("tallyring") && place("tallyring") < place("axum"));
    }

    #[test]
    fn an_axis_is_broken_only_for_what_is_far_beyond_all_others() {
        assert!(drawn(&with_seed(), "cpu.svg").contains("broken"));
        let mut others = record();
        others.runs.retain(|run| run.arm != Arm::Axum);
        assert!(!drawn(&others, "cpu.svg").contains("broken"));
    }

    #[test]
    fn scaling_is_drawn_where_the_server_has_several_cores() {
        let mut record = record();
        for (cores, cpu) in [(1, 100.0), (2, 120.0)] {
            let mut scene = record.scenes[0].clone();
            scene.name = format!("cores-{cores}");
            scene.server_cores = (0..cores).collect();
            record.runs.push(run(&scene.name, Arm::Tallyring, 0, cpu));
            record.scenes.push(scene);
        }
        let scaling = drawn(&record, "scaling.svg");
        assert!(scaling.contains("tallyring") && scaling.contains("class=\"ideal\""), "{scaling}");
    }

    #[test]
    fn ratios_are_of_scenes_that_the_floor_was_run_in() {
        let ratios = drawn(&record(), "ratios.svg");
        for shown in ["\nclosed-64\n", "\n1.10\n", "\n4.00\n"] {
            assert!(ratios.contains(shown), "{shown}: {ratios}");
        }
        let mut record = record();
        record.runs.retain(|run| run.arm != Arm::Floor || run.scene != "open-70");
        let ratios = drawn(&record, "ratios.svg");
        assert!(
            !ratios.contains("\nopen-70\n") && ratios.contains("is not run in open-70"),
            "{ratios}"
        );
    }
}
