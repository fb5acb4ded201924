//! The machine of a run: what it is, whether it is fit for measurements, and the programs that are built on it.

use std::{
    fs, io,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use clap::Args;
use procfs::{CpuInfo, CpuTime, Current, CurrentSI, KernelStats};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::process::pause;

/// Descriptors that the largest scenes need, in each process.
const DESCRIPTORS_MIN: u64 = 20_000;
/// Connections that are opened to find out whether netfilter tracks them.
const PROBES: u64 = 16;
/// The most of the machine that other programs may use before a run.
const OTHERS_MAX: f64 = 0.05;

/// The arguments of all commands.
#[derive(Debug, Args)]
pub struct Common {
    /// Directory of the built programs; by default they are built now
    #[arg(long)]
    pub bin_dir: Option<PathBuf>,
    /// Directory for the results; by default a new one in bench/runs
    #[arg(long)]
    out: Option<PathBuf>,
}

/// The machine and the software of a run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Environment {
    /// When this was recorded, RFC 3339.
    pub began: String,
    /// The kernel's release.
    pub kernel: String,
    /// The processor's name.
    pub processor: String,
    /// Cores that this process may run on.
    pub cores: usize,
    /// The frequency governors of the cores; empty where they are unknown.
    pub governors: Vec<String>,
    /// The share of the machine's time that other programs and the hypervisor used.
    pub busy_before: f64,
    /// The most descriptors of a process.
    pub descriptors_max: u64,
    /// `net.core.somaxconn` and `net.ipv4.ip_local_port_range`.
    pub network: Vec<String>,
    /// How many of some new connections on loopback netfilter tracks.
    #[serde(default)]
    pub tracked: u64,
    /// The commit of the sources.
    pub commit: String,
    /// The compiler and the tools.
    pub tools: Vec<String>,
    /// The arguments of the command.
    pub command: Vec<String>,
    /// Reasons to doubt the figures.
    pub warnings: Vec<String>,
}

impl Environment {
    /// Looks at the machine for a second.
    pub fn look() -> Self {
        let (busy, all) = cpu_time();
        pause(Duration::from_secs(1));
        let (busy_later, all_later) = cpu_time();
        let sysctl = |name: &str| {
            let text = fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/")));
            format!("{name} {}", text.unwrap_or_default().trim().replace('\t', "-"))
        };
        let said = |program: &str, argument: &str| {
            let text = said_by(program, &[argument]);
            text.lines().next().unwrap_or_default().to_owned()
        };
        let mut environment = Self {
            began: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            processor: processor(),
            cores: cores(),
            governors: governors(),
            busy_before: (busy_later - busy) / (all_later - all).max(1.0),
            descriptors_max: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
            network: ["net.core.somaxconn", "net.ipv4.ip_local_port_range"].map(sysctl).to_vec(),
            tracked: tracked().unwrap_or(0),
            commit: said_by("git", &["describe", "--always", "--dirty"]),
            tools: vec![said("rustc", "--version"), said("haproxy", "-v"), said("nginx", "-v")],
            command: std::env::args().skip(1).collect(),
            warnings: Vec::new(),
        };
        environment.tools.retain(|tool| !tool.is_empty());
        environment.warnings = environment.doubts();
        environment
    }

    fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        if self.busy_before > OTHERS_MAX {
            let share = self.busy_before * 100.0;
            doubts.push(format!("others used {share:.0} % of the machine before the run"));
        }
        if let Some(governor) = self.governors.iter().find(|governor| *governor != "performance") {
            doubts.push(format!("the frequency governor is {governor}, not performance"));
        }
        if self.descriptors_max < DESCRIPTORS_MIN {
            doubts.push(format!(
                "only {} files may be open; raise `ulimit -n` to {DESCRIPTORS_MIN}",
                self.descriptors_max
            ));
        }
        // One or two may be those of other programs.
        if self.tracked >= PROBES / 2 {
            doubts.push(String::from(
                "netfilter tracks connections, on loopback too, as it does where a container engine has \
                 run: that is a part of each packet's cost, and connections beyond \
                 net.netfilter.nf_conntrack_max are dropped",
            ));
        }
        doubts
    }

    /// The first lines of a summary.
    pub fn describe(&self) -> String {
        let mut text = format!(
            "{}, {} cores, Linux {}; commit {}, {}\n",
            self.processor, self.cores, self.kernel, self.commit, self.began
        );
        for warning in &self.warnings {
            text += &format!("\nMind: {warning}.\n");
        }
        text
    }

    /// The day of the run.
    pub fn day(&self) -> &str {
        self.began.split('T').next().unwrap_or_default()
    }

    /// A name for the machine that can be the name of a directory.
    pub fn slug(&self) -> String {
        slug(&format!("{}, {} cores", self.processor, self.cores))
    }

    /// The name of this machine.
    pub fn slug_here() -> String {
        Self { processor: processor(), cores: cores(), ..Self::default() }.slug()
    }
}

/// What the processors have spent their time on, in ticks, if the kernel tells.
fn ticks() -> Option<CpuTime> {
    KernelStats::current().ok().map(|stats| stats.total)
}

/// Busy time of the processors, with that which the hypervisor took, and all time, in ticks.
pub fn cpu_time() -> (f64, f64) {
    let Some(ticks) = ticks() else { return (0.0, 0.0) };
    let idle = ticks.idle + ticks.iowait.unwrap_or(0);
    let rest = [ticks.irq, ticks.softirq, ticks.steal].into_iter().flatten().sum::<u64>();
    let busy = ticks.user + ticks.nice + ticks.system + rest;
    (busy as f64, (busy + idle) as f64)
}

/// Time that the hypervisor took from processors with work (steal), in seconds of one processor.
pub fn stolen_seconds() -> f64 {
    let stolen = ticks().and_then(|ticks| ticks.steal).unwrap_or(0);
    stolen as f64 / procfs::ticks_per_second() as f64
}

/// How many of some new connections on loopback netfilter tracks. The size of its table is not enough: it may contain
/// old connections, and those of other networks.
fn tracked() -> io::Result<u64> {
    let count = || -> io::Result<u64> {
        let text = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count")?;
        text.trim().parse().map_err(io::Error::other)
    };
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let before = count()?;
    let open: Vec<_> =
        (0..PROBES).map(|_| TcpStream::connect(address)).collect::<io::Result<_>>()?;
    let after = count()?;
    drop(open);
    Ok(after.saturating_sub(before))
}

fn governors() -> Vec<String> {
    let mut governors = Vec::new();
    for core in fs::read_dir("/sys/devices/system/cpu").into_iter().flatten().flatten() {
        let path = core.path().join("cpufreq/scaling_governor");
        governors.extend(fs::read_to_string(path).ok().map(|text| text.trim().to_owned()));
    }
    governors.sort();
    governors.dedup();
    governors
}

fn processor() -> String {
    let processors = CpuInfo::current().ok();
    let name = processors.as_ref().and_then(|all| all.model_name(0));
    name.unwrap_or("unknown processor").to_owned()
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(0, usize::from)
}

fn slug(text: &str) -> String {
    let plain =
        text.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' });
    let plain: String = plain.collect();
    plain.split('-').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-")
}

/// What a program prints; empty if it cannot be run.
fn said_by(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or(String::new(), |output| {
        let said = if output.stdout.is_empty() { output.stderr } else { output.stdout };
        String::from_utf8_lossy(&said).trim().to_owned()
    })
}

impl Common {
    /// The directory of the programs: the given one, or that of a release build, which is made now. Raises the
    /// open-file limit to its maximum.
    ///
    /// # Errors
    /// When they cannot be built.
    pub fn programs(&self) -> io::Result<PathBuf> {
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
        if let Some(directory) = &self.bin_dir {
            let named =
                |error| io::Error::other(format!("--bin-dir {}: {error}", directory.display()));
            return directory.canonicalize().map_err(named);
        }
        let build = ["build", "--release", "--locked", "--workspace"];
        if !Command::new("cargo").args(build).status()?.success() {
            return Err(io::Error::other("the programs could not be built"));
        }
        Ok(std::env::current_exe()?.parent().map(Path::to_owned).unwrap_or_default())
    }

    /// Writes the files of a run into the given directory, or into the first of `name`, `name-2` and so on in
    /// bench/runs that does not exist: a run is never overwritten. Says where they are.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn keep(&self, name: &str, files: &[(&str, String)]) -> io::Result<String> {
        let unused = || {
            let first = format!("bench/runs/{name}");
            let later = (2..).map(|number| format!("{first}-{number}"));
            let mut names = std::iter::once(first.clone()).chain(later).map(PathBuf::from);
            names.find(|directory| !directory.exists()).unwrap_or_default()
        };
        let directory = self.out.clone().unwrap_or_else(unused);
        fs::create_dir_all(&directory)?;
        let mut kept = String::from("kept:");
        for (file, text) in files {
            let path = directory.join(file);
            fs::write(&path, text)?;
            kept += &format!("\n  {}", path.display());
        }
        Ok(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_is_unfit_is_told() {
        let fit = Environment { descriptors_max: u64::MAX, ..Environment::default() };
        assert_eq!(fit.doubts(), [""; 0]);
        let busy = Environment { busy_before: 0.5, ..fit.clone() };
        assert_eq!(busy.doubts(), ["others used 50 % of the machine before the run"]);
        let slow = Environment { governors: vec![String::from("powersave")], ..fit.clone() };
        assert_eq!(slow.doubts(), ["the frequency governor is powersave, not performance"]);
        let others = Environment { tracked: 1, ..fit.clone() };
        assert_eq!(others.doubts(), [""; 0]);
        let tracked = Environment { tracked: PROBES, ..fit.clone() };
        assert!(tracked.doubts()[0].contains("netfilter"));
        let narrow = Environment { descriptors_max: 1024, ..fit };
        assert!(narrow.doubts()[0].contains("1024 files"));
    }

    #[test]
    fn a_name_is_fit_for_a_directory() {
        assert_eq!(slug("A (R) CPU @ 2, 2 cores"), "a-r-cpu-2-2-cores");
    }
}
