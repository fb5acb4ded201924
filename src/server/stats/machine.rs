//! What the kernel tells of this process and its threads, read from `/proc`.

use std::{collections::HashMap, fs, os::fd::RawFd};

use procfs::{
    ProcResult,
    process::{LimitValue, Process, Task},
};
use serde::Serialize;

/// CPU time that was used, in seconds. The kernel counts it in ticks, which are 10 ms on most machines.
#[derive(Debug, Default, Clone, Copy, PartialEq, Serialize)]
pub struct Cpu {
    pub user_seconds: f64,
    pub system_seconds: f64,
}

/// The process.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProcessStats {
    pub resident_memory_bytes: u64,
    pub virtual_memory_bytes: u64,
    pub open_fds: u64,
    /// `None` is no limit.
    pub max_fds: Option<u64>,
    pub threads: u64,
    pub cpu: Cpu,
    /// Since the Unix epoch.
    pub start_time_seconds: f64,
}

/// A thread.
#[derive(Debug, Clone, Copy)]
pub struct ThreadStats {
    pub cpu: Cpu,
    pub context_switches: Option<ContextSwitches>,
}

/// How often a thread gave its core up.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ContextSwitches {
    /// To wait: for a worker, how often it slept until a completion.
    pub voluntary: u64,
    /// For another thread.
    pub involuntary: u64,
}

/// What a ring has done, modulo 2^32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RingCounts {
    /// Operations that were given to the kernel.
    pub submitted: u32,
    /// Completions that the kernel has put into the ring.
    pub completed: u32,
}

impl RingCounts {
    /// Reads it; `None` where the kernel does not tell, or another thread is about to use the ring.
    pub fn read(ring: RawFd) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/self/fdinfo/{ring}")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let number = |name: &str| {
            let mut fields = text.lines().filter_map(|line| line.split_once(':'));
            fields.find(|(field, _)| *field == name)?.1.trim().parse().ok()
        };
        Some(Self { submitted: number("SqHead")?, completed: number("CqTail")? })
    }
}

/// The process and its threads, by their names. Empty where `/proc` cannot be read.
#[derive(Debug, Default)]
pub struct Machine {
    pub process: Option<ProcessStats>,
    pub threads: HashMap<String, ThreadStats>,
}

impl Machine {
    /// Reads it.
    pub fn read() -> Self {
        let Ok(process) = Process::myself() else { return Self::default() };
        Self {
            process: process_stats(&process).ok(),
            threads: threads(&process).unwrap_or_default(),
        }
    }
}

#[allow(clippy::cast_precision_loss)]
fn process_stats(process: &Process) -> ProcResult<ProcessStats> {
    let stat = process.stat()?;
    let max_fds = match process.limits()?.max_open_files.soft_limit {
        LimitValue::Value(limit) => Some(limit),
        LimitValue::Unlimited => None,
    };
    Ok(ProcessStats {
        resident_memory_bytes: stat.rss * procfs::page_size(),
        virtual_memory_bytes: stat.vsize,
        open_fds: process.fd_count()? as u64,
        max_fds,
        threads: stat.num_threads.unsigned_abs(),
        cpu: cpu(stat.utime, stat.stime),
        start_time_seconds: procfs::boot_time_secs()? as f64 + seconds(stat.starttime),
    })
}

fn threads(process: &Process) -> ProcResult<HashMap<String, ThreadStats>> {
    // A thread may end while it is read.
    Ok(process.tasks()?.filter_map(|task| thread(&task.ok()?).ok()).collect())
}

fn thread(task: &Task) -> ProcResult<(String, ThreadStats)> {
    let stat = task.stat()?;
    let status = task.status()?;
    let switches = status.voluntary_ctxt_switches.zip(status.nonvoluntary_ctxt_switches);
    let context_switches =
        switches.map(|(voluntary, involuntary)| ContextSwitches { voluntary, involuntary });
    Ok((stat.comm, ThreadStats { cpu: cpu(stat.utime, stat.stime), context_switches }))
}

fn cpu(user: u64, system: u64) -> Cpu {
    Cpu { user_seconds: seconds(user), system_seconds: seconds(system) }
}

#[allow(clippy::cast_precision_loss)]
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / procfs::ticks_per_second() as f64
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn the_process_and_a_thread_by_its_name() {
        let read = || {
            let Machine { process, threads } = Machine::read();
            (process.unwrap(), threads["measured"].context_switches.unwrap())
        };
        let slept = move || {
            let before = read().1.voluntary;
            // It waits for a thread, unless that one is very fast.
            let mut waits = (0..1000).map(|_| {
                thread::spawn(|| ()).join().unwrap();
                read()
            });
            waits.find(|(_, switches)| switches.voluntary > before)
        };
        let named = thread::Builder::new().name(String::from("measured"));
        let (process, _) = named.spawn(slept).unwrap().join().unwrap().expect("it has waited");
        assert!(process.resident_memory_bytes > 4096 && process.open_fds > 2, "{process:?}");
        assert!(process.virtual_memory_bytes > process.resident_memory_bytes, "{process:?}");
        assert!(process.threads >= 2 && process.start_time_seconds > 1.7e9, "{process:?}");
        assert!(!Machine::read().threads.contains_key("measured"));
    }

    #[test]
    fn a_ring_is_read_by_the_names_of_its_fields() {
        let text = "pos:\t0\nSqMask:\t0xfff\nSqHead:\t4294967295\nSqTail:\t7\nCqHead:\t2\nCqTail:\t3\n\
                    CachedCqTail:\t9\nPollList:\n  op=27, task_works=0\n";
        let counts = RingCounts { submitted: u32::MAX, completed: 3 };
        assert_eq!(RingCounts::parse(text), Some(counts));
        for missing in ["SqHead", "CqTail:\t3"] {
            assert_eq!(RingCounts::parse(&text.replace(missing, "Other")), None, "{missing}");
        }
        assert_eq!(RingCounts::parse(&text.replace("4294967295", "4294967296")), None);
        // A descriptor that is no ring.
        assert_eq!(RingCounts::read(0), None);
        assert_eq!(RingCounts::read(-1), None);
    }
}
