//! The usual way: programs whose visits all change one row.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    process::{Child, ChildStdout, Command, Stdio},
};

use tallyring_bench::load::Report;

use super::{Cpu, Kind, Machine, Run, Stage, StoresArguments, share, together};
use crate::process::spawn_on;

/// A program with its connections open.
struct Ready {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Ready {
    fn start(stage: &Stage, url: &str, connections: u16, seconds: f64) -> io::Result<Self> {
        let mut command = Command::new(stage.programs.join("hot-row"));
        command.args([url, &connections.to_string(), &seconds.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawn_on(&stage.cores, &mut command)?;
        let output = child.stdout.take().map(BufReader::new);
        let output = output.ok_or_else(|| io::Error::other("its output is not a pipe"))?;
        let mut ready = Self { child, output };
        match ready.line()?.as_str() {
            "ready" => Ok(ready),
            _ => Err(ready.why()),
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    fn go(&mut self) -> io::Result<()> {
        self.child.stdin.as_mut().map_or(Ok(()), |input| input.write_all(b"go\n"))
    }

    fn report(&mut self) -> io::Result<Report> {
        let line = self.line()?;
        if line.is_empty() {
            return Err(self.why());
        }
        serde_json::from_str(&line).map_err(io::Error::other)
    }

    /// Why it has ended.
    fn why(&mut self) -> io::Error {
        let mut said = String::new();
        if let Some(mut errors) = self.child.stderr.take() {
            let _ = errors.read_to_string(&mut said);
        }
        io::Error::other(said.trim().to_owned())
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        // It waits for the end of its input.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Runs the usual way once, by this many programs.
///
/// # Errors
/// When a program or the database fails.
pub fn run(arguments: &StoresArguments, stage: &Stage, count: u16, repeat: u32) -> io::Result<Run> {
    let engine = stage.engine(Kind::HotRow);
    let engine = engine.ok_or_else(|| io::Error::other("there is no PostgreSQL"))?;
    let total = || engine.sql("SELECT n FROM visits")?.parse::<u64>().map_err(io::Error::other);
    let (server, url) = (&engine.processes[0], engine.postgres_url());
    let programs = (0..count).map(|index| {
        Ready::start(stage, &url, share(arguments.visitors, count, index), arguments.seconds)
    });
    let mut programs = programs.collect::<io::Result<Vec<_>>>()?;
    let (before, earlier, machine) = (total()?, server.snapshot()?, Machine::watch());
    programs.iter_mut().try_for_each(Ready::go)?;
    let reports = programs.iter_mut().map(Ready::report).collect::<io::Result<Vec<_>>>()?;
    let database = earlier.until(&server.snapshot()?).cpu_us;
    let report = together(&reports);
    if report.visits == 0 {
        return Err(io::Error::other("nothing was counted"));
    }
    let cpu = Cpu { database, visitors: report.cpu_us, ..Cpu::default() };
    let (own_busy, others_busy) = machine.shares(cpu.sum(), stage.cores.len(), report.seconds);
    let counted = total()? - before;
    Ok(Run {
        store: Kind::HotRow,
        counters: count,
        repeat,
        own_busy,
        others_busy,
        welcomed: report.visits,
        counted,
        commits: Some(counted),
        report,
        cpu,
    })
}
