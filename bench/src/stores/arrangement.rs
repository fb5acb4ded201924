//! Counters on a store, a tallyring with one worker before each, and visitors.

use std::{
    fs, io,
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

use super::{Cpu, Kind, Machine, Run, Stage, StoresArguments, engines, log_path, share, together};
use crate::{
    arms::list,
    process::{Process, Snapshot, Usage, free_address, spawn_on},
    visitors::{report, total},
};

const WARM_UP_SECONDS: f64 = 0.4;

/// A running counter.
pub struct Started {
    process: Process,
    address: SocketAddr,
    log: String,
}

/// A running site.
struct Site {
    process: Process,
    address: SocketAddr,
}

impl Started {
    fn start(stage: &Stage, store: Kind, index: u16) -> io::Result<Self> {
        let engine = stage.engine(store);
        let store_url = match (store, engine) {
            (Kind::Postgres | Kind::HotRow, Some(engine)) => engine.postgres_url(),
            (Kind::Etcd | Kind::Etcd3, Some(engine)) => engine.etcd_url(),
            (Kind::Redb, _) => {
                format!("redb:{}", stage.scratch.path().join(format!("{index}.redb")).display())
            }
            _ => String::from("memory"),
        };
        let (name, address) = (format!("counter-{index}"), free_address()?);
        let log = log_path(stage, &name);
        let listen = address.to_string();
        let mut arguments = vec!["counter", "--listen", &listen, "--store", &store_url];
        if engine.is_some() {
            arguments.extend(["--store-shard", &name]);
        }
        let program = stage.programs.join("tallyring");
        let file = engines::log_file(&log)?;
        let mut process = Process::start_logged(&stage.cores, &program, &arguments, file)?;
        let said = |error| io::Error::other(format!("{error}: {}", engines::last_line(&log)));
        process.wait_for(address).map_err(said)?;
        Ok(Self { process, address, log: log.display().to_string() })
    }

    /// Starts a counter on a store for once: what it says where this program does not know such a store.
    ///
    /// # Errors
    /// When it does not start for another reason.
    pub fn is_unknown(stage: &Stage, store: Kind) -> io::Result<Option<String>> {
        match Self::start(stage, store, 0) {
            Ok(_) => Ok(None),
            Err(error) if is_usage(&log_path(stage, "counter-0")) => Ok(Some(error.to_string())),
            Err(error) => Err(error),
        }
    }

    /// Ends it; how many commits it says that it made.
    fn end(mut self) -> Option<u64> {
        self.process.end();
        commits(&engines::last_line(self.log.as_ref()))
    }
}

/// Whether a log says which stores there are, as it does for another one.
fn is_usage(log: &std::path::Path) -> bool {
    fs::read_to_string(log).is_ok_and(|text| text.contains("it must be redb:PATH"))
}

/// The commits of a counter's last line.
fn commits(line: &str) -> Option<u64> {
    let (number, _) = line.rsplit_once("; ")?.1.split_once(" commit")?;
    number.parse().ok()
}

/// Runs counters on a store once: what was welcomed, what was counted, and what it took.
///
/// # Errors
/// When a program fails, or a visit was not welcomed.
pub fn run(
    arguments: &StoresArguments,
    stage: &Stage,
    store: Kind,
    count: u16,
    repeat: u32,
) -> io::Result<Run> {
    let counters = (0..count)
        .map(|index| Started::start(stage, store, index))
        .collect::<io::Result<Vec<_>>>()?;
    let totals = || total_of_all(&counters, stage.engine(store).is_some());
    let before = totals()?;
    let sites = counters.iter().enumerate();
    let sites = sites.map(|(index, counter)| site(stage, index, counter.address));
    let sites = sites.collect::<io::Result<Vec<_>>>()?;
    let visit = |seconds: f64| {
        let visitors = sites.iter().zip(0..).map(|(site, index)| {
            send(stage, site.address, share(arguments.visitors, count, index), seconds)
        });
        let visitors = visitors.collect::<io::Result<Vec<_>>>()?;
        let reports = visitors.into_iter().map(report).collect::<io::Result<Vec<_>>>()?;
        let report = together(&reports);
        if report.refused + report.failed > 0 || report.visits == 0 {
            return Err(io::Error::other(format!("not every visit was welcomed: {report:?}")));
        }
        Ok(report)
    };
    let warmed = visit(WARM_UP_SECONDS)?;
    let look = || -> io::Result<[Vec<Snapshot>; 3]> {
        let snapshots = |processes: Vec<&Process>| -> io::Result<Vec<Snapshot>> {
            processes.into_iter().map(Process::snapshot).collect()
        };
        let database = stage.engine(store).into_iter().flat_map(|engine| &engine.processes);
        Ok([
            snapshots(sites.iter().map(|site| &site.process).collect())?,
            snapshots(counters.iter().map(|counter| &counter.process).collect())?,
            snapshots(database.collect())?,
        ])
    };
    let (machine, earlier) = (Machine::watch(), look()?);
    let report = visit(arguments.seconds)?;
    let later = look()?;
    let [sites_us, counters_us, database] = used(&earlier, &later);
    let cpu = Cpu { sites: sites_us, counters: counters_us, database, visitors: report.cpu_us };
    let (own_busy, others_busy) = machine.shares(cpu.sum(), stage.cores.len(), report.seconds);
    let (welcomed, counted) = (warmed.visits + report.visits, totals()? - before);
    drop(sites);
    let commits = counters.into_iter().map(Started::end).sum();
    Ok(Run {
        store,
        counters: count,
        repeat,
        report,
        cpu,
        own_busy,
        others_busy,
        welcomed,
        counted,
        commits,
    })
}

/// What counters hold: together, or each.
fn total_of_all(counters: &[Started], shared: bool) -> io::Result<u64> {
    let asked = if shared { &counters[..1] } else { counters };
    asked.iter().map(|counter| total(counter.address)).sum()
}

/// A tallyring with one worker before a counter.
fn site(stage: &Stage, index: usize, counter: SocketAddr) -> io::Result<Site> {
    let address = free_address()?;
    let (listen, url) = (address.to_string(), format!("http://{counter}/counter"));
    let core = [stage.cores[index % stage.cores.len()]];
    let cores = list(&core);
    let arguments = ["--listen", &listen, "--counter", &url, "--cores", &cores, "--admin", "off"];
    let mut process = Process::start(&core, &stage.programs.join("tallyring"), &arguments)?;
    process.wait_for(address)?;
    Ok(Site { process, address })
}

/// Starts visitors on all cores.
fn send(stage: &Stage, site: SocketAddr, visitors: u16, seconds: f64) -> io::Result<Child> {
    let mut command = Command::new(stage.programs.join("load"));
    command.args([site.to_string(), String::from("--connections"), visitors.to_string()]);
    command.args(["--seconds", &seconds.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    spawn_on(&stage.cores, &mut command)
}

/// CPU time of each group of processes.
fn used<const N: usize>(earlier: &[Vec<Snapshot>; N], later: &[Vec<Snapshot>; N]) -> [f64; N] {
    std::array::from_fn(|group| {
        let pairs = earlier[group].iter().zip(&later[group]);
        pairs.map(|(before, after)| before.until(after)).map(|Usage { cpu_us, .. }| cpu_us).sum()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commits_of_a_counter_are_in_its_last_line() {
        let line = "2026-11-28T00:00:00Z INFO stopped; 1,234 counted in redb:/a; b; 17 commits";
        assert_eq!(commits(line), Some(17));
        assert_eq!(commits("stopped; 1 counted in memory; 1 commit"), Some(1));
        assert_eq!(commits("stopped; 1,234 counted in memory"), None);
        assert_eq!(commits(""), None);
    }
}
