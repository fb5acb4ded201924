//! What slow answers of a counter do to the visits behind them, where a connection carries one call and several.

use std::{io, net::SocketAddr, path::Path};

use clap::Args;
use serde::Serialize;
use tallyring_bench::load::Report;

use crate::{
    arms::list,
    machine::{Common, Environment},
    process::{Process, Usage, free_address, own_cores},
    record::lines,
    statistics::Spread,
    terminal::say,
    visitors::OtherSide,
};

/// The calls that a connection may carry.
const PIPELINES: [usize; 3] = [1, 4, 32];

/// What to measure, and how long.
#[derive(Debug, Args)]
pub struct PipelinedArguments {
    /// Visits a second
    #[arg(long, default_value_t = 4000, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// Visitors
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Milliseconds that a slow answer takes
    #[arg(long, default_value_t = 20)]
    slow_ms: u32,
    /// One answer of so many is slow
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(2..))]
    one_in: u32,
    /// Times that each is measured
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// Seconds of each run
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Serialize)]
struct Run {
    pipeline: usize,
    /// Whether some answers were slow.
    slow: bool,
    repeat: u32,
    report: Report,
    usage: Usage,
}

#[derive(Debug, Serialize)]
struct Record {
    environment: Environment,
    connections: usize,
    rate: u32,
    slow_ms: u32,
    one_in: u32,
    #[serde(skip)]
    runs: Vec<Run>,
}

/// A server with one worker, and what it is measured with.
struct Server {
    process: Process,
    site: SocketAddr,
    pipeline: usize,
    slow: bool,
}

/// Runs all in rotating order, prints the figures, and keeps them.
///
/// # Errors
/// When a program fails, or a visit was not welcomed.
pub fn pipelined(arguments: &PipelinedArguments) -> io::Result<()> {
    let programs = arguments.common.programs()?;
    let cores = own_cores()?;
    let (first, last) = (cores[0], cores[cores.len() - 1]);
    let other_side = OtherSide { programs: &programs, cores: &[last] };
    let (_prompt, prompt) = other_side.counter(0)?;
    let (_slow, slow) = other_side.counter_delaying(arguments.slow_ms, arguments.one_in)?;
    let environment = Environment::look();
    let mut servers = Vec::new();
    for pipeline in PIPELINES {
        for (slow, counter) in [(false, prompt), (true, slow)] {
            let program = programs.join("tallyring");
            servers.push(Server::start(&program, first, counter, pipeline, slow)?);
        }
    }
    let mut runs = Vec::new();
    for repeat in 0..arguments.repeats {
        servers.rotate_left(1);
        for server in &servers {
            let run = server.run(&other_side, arguments, repeat)?;
            let Run { pipeline, slow, report, .. } = &run;
            let p99 = report.p99_us;
            say(&format!("{:>3} {pipeline:>3} slow: {slow:<5} p99 {p99:>8.0} µs", repeat + 1))?;
            runs.push(run);
        }
    }
    let PipelinedArguments { connections, rate, slow_ms, one_in, .. } = *arguments;
    let record = Record { environment, connections, rate, slow_ms, one_in, runs };
    let summary = summary(&record);
    let name = format!("{}-pipelined", record.environment.day());
    let figures = lines(&record, &record.runs)?;
    let files = [("pipelined.jsonl", figures), ("summary.md", summary.clone())];
    let kept = arguments.common.keep(&name, &files)?;
    say(&format!("\n{summary}\n{kept}"))
}

impl Server {
    fn start(
        program: &Path,
        core: usize,
        counter: SocketAddr,
        pipeline: usize,
        slow: bool,
    ) -> io::Result<Self> {
        let site = free_address()?;
        let url = format!("http://{counter}/counter");
        let (listen, cores, most) = (site.to_string(), list(&[core]), pipeline.to_string());
        let arguments = ["--listen", &listen, "--admin", "off", "--counter", &url];
        let rest = ["--cores", &cores, "--driver", "io_uring", "--counter-pipeline", &most];
        let mut process = Process::start(&[core], program, &[&arguments[..], &rest].concat())?;
        process.wait_for(site)?;
        Ok(Self { process, site, pipeline, slow })
    }

    fn run(
        &self,
        other_side: &OtherSide<'_>,
        arguments: &PipelinedArguments,
        repeat: u32,
    ) -> io::Result<Run> {
        let visit = |seconds: f64| {
            let figures = [arguments.connections as f64, seconds, f64::from(arguments.rate)];
            let [connections, seconds, rate] = figures.map(|figure| figure.to_string());
            let visits = ["--connections", &connections, "--seconds", &seconds, "--rate", &rate];
            other_side.visit(self.site, &visits)
        };
        visit(0.3)?;
        let before = self.process.snapshot()?;
        let report = visit(arguments.seconds)?;
        let usage = before.until(&self.process.snapshot()?);
        if report.refused + report.failed > 0 || report.visits == 0 {
            return Err(io::Error::other(format!("not every visit was welcomed: {report:?}")));
        }
        Ok(Run { pipeline: self.pipeline, slow: self.slow, repeat, report, usage })
    }
}

fn summary(record: &Record) -> String {
    let Record { connections, rate, slow_ms, one_in, .. } = record;
    let mut text = record.environment.describe();
    text += &format!(
        "\nOne worker, {rate} visits a second of {connections} visitors, a counter that answers at once, or one of \
         {one_in} calls after {slow_ms} ms and those behind it on its connection not before. What a visit takes from \
         when it was due; medians of {} runs.\n\n",
        record.runs.iter().map(|run| run.repeat + 1).max().unwrap_or(0)
    );
    text += "| `--counter-pipeline` | slow answers | p50 ms | p90 ms | p99 ms | p99.9 ms | CPU µs a visit |\n\
             | --- | --- | --- | --- | --- | --- | --- |\n";
    for pipeline in PIPELINES {
        for slow in [false, true] {
            let of = |figure: fn(&Run) -> f64| {
                let same = |run: &&Run| run.pipeline == pipeline && run.slow == slow;
                Spread::of(record.runs.iter().filter(same).map(figure).collect()).median
            };
            let quantiles: [fn(&Run) -> f64; 4] = [
                |run| run.report.p50_us,
                |run| run.report.p90_us,
                |run| run.report.p99_us,
                |run| run.report.p999_us,
            ];
            let [p50, p90, p99, p999] = quantiles.map(|quantile| of(quantile) / 1000.0);
            let cpu = of(|run| run.usage.cpu_us / run.report.visits as f64);
            let some = if slow { format!("1 of {one_in}") } else { String::from("none") };
            text += &format!(
                "| {pipeline} | {some} | {p50:.2} | {p90:.2} | {p99:.2} | {p999:.2} | {cpu:.1} |\n"
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_has_the_medians_of_each_setting() {
        let run = |pipeline, slow, repeat, p99_us| Run {
            pipeline,
            slow,
            repeat,
            report: Report { visits: 10, p50_us: 500.0, p99_us, ..Report::default() },
            usage: Usage { cpu_us: 150.0, ..Usage::default() },
        };
        let mut runs = Vec::new();
        for pipeline in PIPELINES {
            for (repeat, p99_us) in [(0, 1000.0), (1, 3000.0), (2, 2000.0)] {
                runs.push(run(pipeline, false, repeat, p99_us));
                runs.push(run(pipeline, true, repeat, p99_us * pipeline as f64));
            }
        }
        let environment = Environment::default();
        let record =
            Record { environment, connections: 64, rate: 4000, slow_ms: 20, one_in: 200, runs };
        let text = summary(&record);
        assert!(text.contains("medians of 3 runs"), "{text}");
        for line in [
            "| 1 | none | 0.50 | 0.00 | 2.00 | 0.00 | 15.0 |",
            "| 4 | 1 of 200 | 0.50 | 0.00 | 8.00 | 0.00 | 15.0 |",
            "| 32 | 1 of 200 | 0.50 | 0.00 | 64.00 | 0.00 | 15.0 |",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
