//! Programs that are measured: started on their cores, observed through `/proc`, ended by signals.

use std::{
    ffi::OsStr,
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use procfs::process::Process as Proc;
use rustix::{
    process::{Pid, Signal, set_parent_process_death_signal},
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};
use serde::{Deserialize, Serialize};

/// How often a program is checked that has been asked to end.
const END_CHECKS: u32 = 300;
const CHECK_INTERVAL: Duration = Duration::from_millis(10);

/// A running program and the processes that it starts; they end when this is dropped.
pub struct Process {
    child: Child,
}

/// What a program has used: proc_pid_stat(5), and the schedstat and status files of its threads.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time of all threads that still run, in microseconds with the precision of a nanosecond.
    pub cpu_us: f64,
    /// The part in user space, in microseconds with the precision of a clock tick.
    pub user_us: f64,
    /// The part in the kernel, likewise.
    pub system_us: f64,
    /// CPU time of the thread that used most, in microseconds.
    pub busiest_thread_us: f64,
    /// Threads that used at least a hundredth of all.
    pub threads: u64,
    /// Context switches of all threads, voluntary or not.
    pub switches: u64,
    /// Resident memory at the end, in bytes.
    pub resident_bytes: u64,
}

/// What each thread has used: its id, CPU time in nanoseconds, and context switches.
#[derive(Default)]
pub struct Snapshot {
    threads: Vec<(i32, u64, u64)>,
    user_us: f64,
    system_us: f64,
    resident_bytes: u64,
}

impl Snapshot {
    /// Adds what a process has used.
    fn add(&mut self, process: &Proc) -> io::Result<()> {
        let tick_us = 1e6 / procfs::ticks_per_second() as f64;
        for thread in process.tasks().map_err(io::Error::other)?.flatten() {
            // A thread that has just ended has no files any more.
            let (Ok(time), Ok(status)) = (thread.schedstat(), thread.status()) else {
                continue;
            };
            let switches = [status.voluntary_ctxt_switches, status.nonvoluntary_ctxt_switches];
            let switches = switches.into_iter().flatten().sum();
            self.threads.push((thread.tid, time.sum_exec_runtime, switches));
        }
        let stat = process.stat().map_err(io::Error::other)?;
        self.user_us += stat.utime as f64 * tick_us;
        self.system_us += stat.stime as f64 * tick_us;
        let status = process.status().map_err(io::Error::other)?;
        self.resident_bytes += status.vmrss.unwrap_or(0) * 1024;
        Ok(())
    }

    /// What was used between `self` and `later`, without threads that ended in between.
    pub fn until(&self, later: &Self) -> Usage {
        let mut usage = Usage {
            user_us: later.user_us - self.user_us,
            system_us: later.system_us - self.system_us,
            resident_bytes: later.resident_bytes,
            ..Usage::default()
        };
        let mut each = Vec::new();
        for (thread, time, switches) in &later.threads {
            let before = self.threads.iter().find(|(before, ..)| before == thread);
            let (time_before, switches_before) = before.map_or((0, 0), |(_, t, s)| (*t, *s));
            each.push(time.saturating_sub(time_before) as f64 / 1000.0);
            usage.switches += switches.saturating_sub(switches_before);
        }
        usage.cpu_us = each.iter().sum();
        usage.busiest_thread_us = each.iter().copied().fold(0.0, f64::max);
        usage.threads = each.iter().filter(|used| **used > usage.cpu_us / 100.0).count() as u64;
        usage
    }
}

/// The cores that this process may run on.
///
/// # Errors
/// What sched_getaffinity(2) says.
pub fn own_cores() -> io::Result<Vec<usize>> {
    let own = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|core| own.is_set(*core)).collect())
}

/// Starts a command on these cores: a child inherits the affinity of the thread that starts it.
///
/// # Errors
/// When it cannot be started.
pub fn spawn_on(cores: &[usize], command: &mut Command) -> io::Result<Child> {
    let own = sched_getaffinity(None)?;
    let mut theirs = CpuSet::new();
    cores.iter().for_each(|core| theirs.set(*core));
    sched_setaffinity(None, &theirs)?;
    let child = command.spawn();
    sched_setaffinity(None, &own)?;
    let program = command.get_program().display();
    child.map_err(|error| io::Error::new(error.kind(), format!("{program}: {error}")))
}

impl Process {
    /// Starts a program on these cores, at the head of a process group of its own.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start<A: AsRef<OsStr>>(
        cores: &[usize],
        program: &Path,
        arguments: &[A],
    ) -> io::Result<Self> {
        Self::start_logged(cores, program, arguments, Stdio::null())
    }

    /// The same, with its standard error to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_logged<A: AsRef<OsStr>>(
        cores: &[usize],
        program: &Path,
        arguments: &[A],
        log: impl Into<Stdio>,
    ) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.args(arguments).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // SAFETY: one system call, which is async-signal-safe and allocates nothing.
        unsafe {
            // An interrupt at the terminal reaches only the terminal's group; so this ends with its parent.
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::TERM))?));
        }
        Ok(Self { child: spawn_on(cores, &mut command)? })
    }

    /// Its id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// It and the processes that it has started.
    fn family(&self) -> io::Result<Vec<Proc>> {
        let mut family = vec![process(self.child.id())?];
        let mut place = 0;
        while let Some(parent) = family.get(place) {
            place += 1;
            let children = parent.task_main_thread().and_then(|main| main.children());
            // A child that has just ended has no files any more.
            let children =
                children.unwrap_or_default().into_iter().filter_map(|id| process(id).ok());
            family.extend(children.collect::<Vec<_>>());
        }
        Ok(family)
    }

    /// Its id and those of the processes that it has started.
    ///
    /// # Errors
    /// When it has ended.
    pub fn ids(&self) -> io::Result<Vec<i32>> {
        Ok(self.family()?.iter().map(Proc::pid).collect())
    }

    /// Waits until it accepts connections.
    ///
    /// # Errors
    /// When it ends instead, or takes more than ten seconds.
    pub fn wait_for(&mut self, address: SocketAddr) -> io::Result<()> {
        for _ in 0..1000 {
            if let Some(status) = self.child.try_wait()? {
                return Err(io::Error::other(format!("it ended at once: {status}")));
            }
            if TcpStream::connect(address).is_ok() {
                return Ok(());
            }
            pause(CHECK_INTERVAL);
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// What it has used so far.
    ///
    /// # Errors
    /// When it has ended.
    pub fn snapshot(&self) -> io::Result<Snapshot> {
        let mut snapshot = Snapshot::default();
        let family = self.family()?;
        for (place, process) in family.iter().enumerate() {
            let added = snapshot.add(process);
            // A child may have ended meanwhile, as those of databases do.
            if place == 0 {
                added?;
            }
        }
        Ok(snapshot)
    }

    /// Its resident memory now.
    ///
    /// # Errors
    /// When it has ended.
    pub fn resident_bytes(&self) -> io::Result<u64> {
        Ok(self.snapshot()?.resident_bytes)
    }

    /// How many descriptors it has open.
    ///
    /// # Errors
    /// When it has ended.
    pub fn descriptors(&self) -> io::Result<usize> {
        process(self.id())?.fd_count().map_err(io::Error::other)
    }

    /// Asks it to end and waits; kills it when it does not end. It is asked first because the ring of a killed process
    /// keeps its listener for a while.
    pub fn end(&mut self) {
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = rustix::process::kill_process_group(group, Signal::TERM);
            for _ in 0..END_CHECKS {
                if !matches!(self.child.try_wait(), Ok(None)) {
                    return;
                }
                pause(CHECK_INTERVAL);
            }
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

fn process(id: u32) -> io::Result<Proc> {
    Proc::new(id.cast_signed()).map_err(io::Error::other)
}

/// A free address on loopback. Start the program that is to listen there before asking for another address: the same
/// one could be returned again, and with `SO_REUSEPORT` both programs would share the requests.
///
/// # Errors
/// What bind(2) says.
pub fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

/// Waits. This is a benchmark, where time is what matters.
#[allow(clippy::disallowed_methods)]
pub fn pause(duration: Duration) {
    thread::sleep(duration);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_has_its_cores_and_its_parent_keeps_its_own() {
        let own = own_cores().unwrap();
        let last = *own.last().unwrap();
        let mut command = Command::new("grep");
        command.args(["Cpus_allowed_list", "/proc/self/status"]).stdout(Stdio::piped());
        let output = spawn_on(&[last], &mut command).unwrap().wait_with_output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(said.trim(), format!("Cpus_allowed_list:\t{last}"));
        assert_eq!(own_cores().unwrap(), own);
        let error = spawn_on(&own, &mut Command::new("/nowhere")).unwrap_err().to_string();
        assert!(error.starts_with("/nowhere: "), "{error}");
        assert_eq!(own_cores().unwrap(), own);
    }

    #[test]
    fn the_usage_of_a_process_is_read() {
        let mut process =
            Process::start(&own_cores().unwrap(), Path::new("sleep"), &["60"]).unwrap();
        let before = process.snapshot().unwrap();
        let usage = before.until(&process.snapshot().unwrap());
        assert!(usage.resident_bytes > 0 && process.descriptors().unwrap() >= 3, "{usage:?}");
        assert_eq!(process.ids().unwrap(), [process.id().cast_signed()]);
        process.end();
        assert!(process.snapshot().is_err());
    }
}
