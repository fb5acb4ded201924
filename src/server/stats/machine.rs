//! What the kernel tells of this process and its threads, read from `/proc`.

use std::collections::HashMap;

use procfs::{
    ProcResult,
    process::{LimitValue, Process},
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

/// The process and the CPU time of its threads, by their names. Empty where `/proc` cannot be read.
#[derive(Debug, Default)]
pub struct Machine {
    pub process: Option<ProcessStats>,
    pub threads: HashMap<String, Cpu>,
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

fn threads(process: &Process) -> ProcResult<HashMap<String, Cpu>> {
    // A thread may end while it is read.
    let threads = process.tasks()?.filter_map(|task| task.ok()?.stat().ok());
    Ok(threads.map(|stat| (stat.comm, cpu(stat.utime, stat.stime))).collect())
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
            (process.unwrap(), threads.contains_key("measured"))
        };
        let named = thread::Builder::new().name(String::from("measured"));
        let (process, is_there) = named.spawn(read).unwrap().join().unwrap();
        assert!(is_there);
        assert!(process.resident_memory_bytes > 4096 && process.open_fds > 2, "{process:?}");
        assert!(process.virtual_memory_bytes > process.resident_memory_bytes, "{process:?}");
        assert!(process.threads >= 2 && process.start_time_seconds > 1.7e9, "{process:?}");
        assert!(!Machine::read().threads.contains_key("measured"));
    }
}
