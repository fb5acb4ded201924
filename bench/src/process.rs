//! Programs that are measured: started on their cores, watched through `/proc`, ended by their id.

use std::{
    ffi::OsStr,
    fs, io,
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

/// A running program; it ends when this is dropped.
pub struct Process {
    child: Child,
}

/// What a process has used so far, proc_pid_stat(5) and the schedstat files of its threads.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub struct Usage {
    /// CPU time of all threads that live, in microseconds, to the nanosecond.
    pub cpu_us: f64,
    /// Of which in user space, in microseconds, to the clock tick.
    pub user_us: f64,
    /// Of which in the kernel, likewise.
    pub system_us: f64,
}

impl Process {
    /// Starts a program on these cores (taskset(1)).
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start<A: AsRef<OsStr>>(
        cores: &str,
        program: &Path,
        arguments: &[A],
    ) -> io::Result<Self> {
        let child = Command::new("taskset")
            .args(["-c", cores])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { child })
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
            pause(Duration::from_millis(10));
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// What it has used.
    ///
    /// # Errors
    /// When it has ended.
    pub fn usage(&self) -> io::Result<Usage> {
        let id = self.child.id();
        let mut cpu_us = 0.0;
        for thread in fs::read_dir(format!("/proc/{id}/task"))? {
            // A thread that has just ended has no file any more.
            let schedstat =
                fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
            let nanoseconds = schedstat.split(' ').next().and_then(|text| text.parse().ok());
            cpu_us += nanoseconds.unwrap_or(0.0) / 1000.0;
        }
        let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
        // The name, in parentheses, may hold spaces; utime and stime are fields 14 and 15.
        let fields: Vec<_> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let tick_us = 1e6 / rustix::param::clock_ticks_per_second() as f64;
        let ticks =
            |place: usize| fields.get(place).and_then(|text| text.parse().ok()).unwrap_or(0.0);
        Ok(Usage { cpu_us, user_us: ticks(11) * tick_us, system_us: ticks(12) * tick_us })
    }

    /// Its resident memory, in bytes.
    ///
    /// # Errors
    /// When it has ended.
    pub fn resident_bytes(&self) -> io::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kibibytes.map(|kibibytes| kibibytes * 1024).ok_or(io::ErrorKind::InvalidData.into())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lets the machine come to rest. This is a benchmark: here time itself is the subject.
#[allow(clippy::disallowed_methods)]
pub fn pause(duration: Duration) {
    thread::sleep(duration);
}
