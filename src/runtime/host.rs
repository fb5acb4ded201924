//! What the machine gives this process: cores, open files, kernel settings.

use std::{cell::OnceCell, fs::File, num::NonZeroUsize, os::unix::fs::FileExt, thread};

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

/// Tells how long the thread that calls it has been runnable so far, in microseconds: it ran, or it waited for a core
/// that others used. Each call takes two system calls, and all are of one thread.
///
/// Where the kernel has no account of waits, they are left out.
pub fn runnable_micros() -> impl Fn() -> u64 + Send {
    let account = OnceCell::new();
    move || {
        // Text of the kernel's, made while it is read: no disk is waited for.
        let account = account.get_or_init(|| File::open("/proc/thread-self/schedstat").ok());
        let waited = account.as_ref().and_then(|account| {
            let mut text = [0; 64];
            let length = account.read_at(&mut text, 0).ok()?;
            waited_micros(&text[..length])
        });
        thread_cpu_micros() + waited.unwrap_or(0)
    }
}

/// How long a thread has waited for a core, in microseconds, after its line of `schedstat`: nanoseconds on a core,
/// nanoseconds runnable without one, and turns.
fn waited_micros(schedstat: &[u8]) -> Option<u64> {
    let waited = str::from_utf8(schedstat).ok()?.split_whitespace().nth(1)?;
    waited.parse::<u64>().ok().map(|nanos| nanos / 1000)
}

/// The CPU time that this thread has used, in microseconds (`CLOCK_THREAD_CPUTIME_ID`, clock_gettime(2)).
fn thread_cpu_micros() -> u64 {
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

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use core_affinity::{CoreId, set_for_current};

    use super::*;

    #[test]
    fn the_wait_for_a_core_is_the_second_number() {
        assert_eq!(waited_micros(b"61056123 110917 19\n"), Some(110));
        assert_eq!(waited_micros(b"0 0 0\n"), Some(0));
        for text in [&b""[..], b"61056123\n", b"1 many 3\n", b"1 -1 3\n", b"\xff \xff"] {
            assert_eq!(waited_micros(text), None, "{text:?}");
        }
    }

    /// Two threads that share a core have both been runnable all the time, though each has run for half of it.
    #[test]
    fn a_thread_that_shares_its_core_is_runnable_for_longer_than_it_runs() {
        const ENOUGH: u64 = 100_000;
        let core = cores()[0];
        let together = Barrier::new(2);
        let spin = || {
            assert!(set_for_current(CoreId { id: core }));
            let runnable = runnable_micros();
            together.wait();
            let (began, used_before) = (runnable(), thread_cpu_micros());
            // Both are here.
            while thread_cpu_micros() - used_before < ENOUGH {}
            (runnable() - began, thread_cpu_micros() - used_before)
        };
        let both = thread::scope(|scope| {
            [scope.spawn(spin), scope.spawn(spin)].map(|spinning| spinning.join().unwrap())
        });
        let (runnable, used) =
            both.into_iter().fold((0, 0), |(runnable, used), one| (runnable + one.0, used + one.1));
        assert!(runnable > used + ENOUGH / 4, "{both:?}");
    }
}
