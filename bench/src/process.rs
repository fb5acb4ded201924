//! Programs that are measured: started on their cores, watched through `/proc`, ended by their id.

use std::{
    ffi::OsStr,
    fs, io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};
use tallyring_bench::cpu_nanoseconds;

/// How long a program may take to end when it is asked to.
const END_LOOKS: u32 = 300;
const LOOK: Duration = Duration::from_millis(10);

/// A running program and the processes it starts; they end when this is dropped.
pub struct Process {
    child: Child,
}

/// What a program has used so far, proc_pid_stat(5), the schedstat and status files of its threads.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time of all threads that live, in microseconds, to the nanosecond.
    pub cpu_us: f64,
    /// Of which in user space, in microseconds, to the clock tick.
    pub user_us: f64,
    /// Of which in the kernel, likewise.
    pub system_us: f64,
    /// CPU time of the thread that used most, in microseconds.
    pub busiest_thread_us: f64,
    /// Threads that used at least a hundredth of all.
    pub threads: u64,
    /// Context switches of all threads, wanted or not.
    pub switches: u64,
    /// Resident memory at the end, in bytes.
    pub resident_bytes: u64,
}

/// What each thread has used: its id, CPU time in nanoseconds, and context switches.
pub struct Snapshot {
    threads: Vec<(u32, f64, u64)>,
    user_us: f64,
    system_us: f64,
    resident_bytes: u64,
}

impl Snapshot {
    /// What was used from `self` to `later`. A thread that ended in between is not in it.
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
            let (time_before, switches_before) = before.map_or((0.0, 0), |(_, t, s)| (*t, *s));
            each.push((time - time_before) / 1000.0);
            usage.switches += switches.saturating_sub(switches_before);
        }
        usage.cpu_us = each.iter().sum();
        usage.busiest_thread_us = each.iter().copied().fold(0.0, f64::max);
        usage.threads = each.iter().filter(|used| **used > usage.cpu_us / 100.0).count() as u64;
        usage
    }
}

impl Process {
    /// Starts a program on these cores (taskset(1)), at the head of a process group of its own.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start<A: AsRef<OsStr>>(
        cores: &str,
        program: &Path,
        arguments: &[A],
    ) -> io::Result<Self> {
        let mut command = Command::new("taskset");
        command.args(["-c", cores]).arg(program).args(arguments).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: one system call, which is async-signal-safe and allocates nothing.
        unsafe {
            // A terminal's interrupt reaches only its own group; what that kills ends this too.
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::TERM))?));
        }
        Ok(Self { child: command.spawn()? })
    }

    /// Its id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its id and those of the processes it has started.
    pub fn ids(&self) -> Vec<u32> {
        let mut ids = vec![self.child.id()];
        let mut place = 0;
        while let Some(id) = ids.get(place).copied() {
            place += 1;
            let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
            let children = children.unwrap_or_default();
            ids.extend(children.split_whitespace().filter_map(|id| id.parse::<u32>().ok()));
        }
        ids
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
            pause(LOOK);
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// What it has used so far.
    ///
    /// # Errors
    /// When it has ended.
    pub fn snapshot(&self) -> io::Result<Snapshot> {
        let mut snapshot =
            Snapshot { threads: Vec::new(), user_us: 0.0, system_us: 0.0, resident_bytes: 0 };
        let tick_us = 1e6 / rustix::param::clock_ticks_per_second() as f64;
        for id in self.ids() {
            for thread in fs::read_dir(format!("/proc/{id}/task"))? {
                let path = thread?.path();
                // A thread that has just ended has no file any more.
                let status = fs::read_to_string(path.join("status")).unwrap_or_default();
                let switches = status.lines().filter_map(|line| {
                    line.split_once("_ctxt_switches:")?.1.trim().parse::<u64>().ok()
                });
                let name = path.file_name().and_then(|name| name.to_str()?.parse().ok());
                let of_thread = (name.unwrap_or(id), cpu_nanoseconds(&path), switches.sum());
                snapshot.threads.push(of_thread);
            }
            let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
            // The name, in parentheses, may hold spaces; utime and stime are fields 14 and 15.
            let fields: Vec<_> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
            let ticks =
                |place: usize| fields.get(place).and_then(|text| text.parse().ok()).unwrap_or(0.0);
            snapshot.user_us += ticks(11) * tick_us;
            snapshot.system_us += ticks(12) * tick_us;
            let status = fs::read_to_string(format!("/proc/{id}/status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
            snapshot.resident_bytes += kibibytes.unwrap_or(0_u64) * 1024;
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
        Ok(fs::read_dir(format!("/proc/{}/fd", self.child.id()))?.count())
    }

    /// Asks it to end, and waits; kills it when it does not. To be asked first matters: a ring that
    /// is killed keeps its listener for a while after its process is gone.
    pub fn end(&mut self) {
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = rustix::process::kill_process_group(group, Signal::TERM);
            for _ in 0..END_LOOKS {
                if !matches!(self.child.try_wait(), Ok(None)) {
                    return;
                }
                pause(LOOK);
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

/// A free address on loopback. Whoever is to listen there is started before another address is asked
/// for: the same might be given again, and with `SO_REUSEPORT` both would listen and share the requests.
///
/// # Errors
/// What bind(2) says.
pub fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

/// Lets the machine come to rest. This is a benchmark: here time itself is the subject.
#[allow(clippy::disallowed_methods)]
pub fn pause(duration: Duration) {
    thread::sleep(duration);
}
