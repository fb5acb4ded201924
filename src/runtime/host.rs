//! What the machine gives this process: cores, open files, kernel settings.

use std::{num::NonZeroUsize, thread};

use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    time::{ClockId, clock_gettime},
};

/// The cores that this process may run on (sched_getaffinity(2)), in order.
pub fn cores() -> Vec<usize> {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    cores.into_iter().map(|core| core.id).collect()
}

/// How many threads can run at a time: the cores, or fewer where a cgroup's quota says so.
pub fn parallelism() -> usize {
    thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// The CPU time that this thread has used, in microseconds (`CLOCK_THREAD_CPUTIME_ID`, clock_gettime(2)). It takes a
/// system call.
pub fn thread_cpu_micros() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    // Neither field is ever negative on this clock.
    time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_nsec.unsigned_abs() / 1000
}

/// The open files that this process may have. The soft limit is raised to the hard one first: it is low for programs
/// that use select(2), which this one does not.
pub fn open_files() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok()
    {
        return maximum.unwrap_or(u64::MAX);
    }
    current.unwrap_or(u64::MAX)
}

/// The memory that this process may lock, in bytes; `None` is no limit. Rings are charged to it.
pub fn locked_memory() -> Option<u64> {
    getrlimit(Resource::Memlock).current
}

/// A value of `/proc/sys`, as text without the line end.
pub fn sysctl(name: &str) -> Option<String> {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    std::fs::read_to_string(path).ok().map(|text| text.trim_end().to_owned())
}

/// The name of this host.
pub fn name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The release of the kernel, like `6.1.0-18-amd64`.
pub fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}
