//! What a worker waits on: io_uring with the best flags this kernel takes, or epoll.
//!
//! Setups are tried from the best to the simplest, on the thread that will run the ring, because only that thread may
//! submit. Ring memory is charged to the user, and the kernel gives it back some time after a ring is closed. So one
//! thread of the process tries at a time, a setup that lacks memory is retried, and no thread tries what an earlier
//! one was refused.

use std::{
    fmt, fs, io,
    os::fd::RawFd,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use io_uring::{IoUring, Probe, opcode};
use monoio::{IoUringDriver, LegacyDriver, Runtime, RuntimeBuilder, time::TimeDriver};
use nix::errno::Errno;

use crate::metrics::DriverInfo;

/// Submission queue entries, most first. A full queue costs a system call in the middle of a round of tasks, so there
/// is room for what most rounds begin; the last size fits into the 64 KiB that older systems let a user lock.
const ENTRIES: [u32; 4] = [4096, 1024, 256, 64];
/// Completions that may wait for each submission entry: each connection keeps a read posted, and all of these can
/// complete in one round.
const COMPLETIONS_PER_ENTRY: u32 = 4;
/// How often a setup that lacks memory is tried, and the pause before each retry. The memory of a closed ring, of a
/// refused try or of an earlier process, comes back some time later: on Linux 6.18 after 16 ms in the median and 36
/// ms at most of 200 tries.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(25);
/// The operations that monoio needs for sockets, wakes and timers.
const OPERATIONS: [u8; 9] = [
    opcode::Accept::CODE,
    opcode::AsyncCancel::CODE,
    opcode::Close::CODE,
    opcode::Connect::CODE,
    opcode::PollAdd::CODE,
    opcode::Read::CODE,
    opcode::Recv::CODE,
    opcode::Send::CODE,
    opcode::Timeout::CODE,
];

/// Which driver the operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Choice {
    /// io_uring where it is available, else epoll.
    Auto,
    /// io_uring or nothing.
    #[value(name = "io_uring")]
    IoUring,
    /// epoll, even where io_uring is available.
    Epoll,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::IoUring => "io_uring",
            Self::Epoll => "epoll",
        })
    }
}

/// How a ring is set up, io_uring_setup(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ring {
    /// Entries of the submission queue.
    pub entries: u32,
    /// `IORING_SETUP_COOP_TASKRUN` (Linux 5.19) and `IORING_SETUP_SINGLE_ISSUER` (Linux 6.0): completions are
    /// processed when the worker enters the kernel anyway, without an interrupt, and without locks against other
    /// submitters.
    pub flags: bool,
}

/// What a runtime was built on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Driver {
    /// io_uring, and why a better setup was refused, if one was.
    IoUring(Ring, Option<String>),
    /// epoll, and why.
    Epoll(String),
}

impl Driver {
    /// The driver's name, as in `--driver` and in metrics.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::IoUring(..) => "io_uring",
            Self::Epoll(_) => "epoll",
        }
    }
}

impl Driver {
    /// All about it, for people.
    pub fn info(&self) -> DriverInfo {
        let flags = match self {
            Self::IoUring(Ring { flags: true, .. }, _) => "coop_taskrun,single_issuer",
            _ => "",
        };
        DriverInfo { name: self.name(), flags, description: self.to_string(), ring: None }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IoUring(ring, shortfall) => {
                let flags = if ring.flags { "coop_taskrun, single_issuer" } else { "no flags" };
                write!(f, "io_uring ({flags}, {} entries", ring.entries)?;
                match shortfall {
                    Some(reason) => write!(f, "; {reason})"),
                    None => f.write_str(")"),
                }
            }
            Self::Epoll(reason) => write!(f, "epoll ({reason})"),
        }
    }
}

/// Why no runtime could be built.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// io_uring was required, and it is unavailable.
    #[error("io_uring is unavailable: {0}; use --driver auto to serve on epoll instead")]
    NoIoUring(String),
    /// Not even epoll.
    #[error("no epoll runtime could be built: {0}")]
    NoEpoll(io::Error),
}

/// A monoio runtime on either driver.
pub enum AnyRuntime {
    /// On a ring, which has this descriptor, if that is known.
    IoUring(RingRuntime, Option<RawFd>),
    /// On epoll.
    Epoll(Runtime<TimeDriver<LegacyDriver>>),
}

impl AnyRuntime {
    /// The descriptor of the ring, if there is one and it is known.
    pub const fn ring(&self) -> Option<RawFd> {
        match self {
            Self::IoUring(_, ring) => *ring,
            Self::Epoll(_) => None,
        }
    }

    /// Runs `future`, and what it spawns, until it is done.
    pub fn block_on<F: Future>(&mut self, future: F) -> F::Output {
        match self {
            Self::IoUring(runtime, _) => runtime.block_on(future),
            Self::Epoll(runtime) => runtime.block_on(future),
        }
    }
}

/// Builds the best runtime that is available on this thread, which must be the one that runs it.
///
/// # Errors
/// When neither driver is available, or io_uring is not and `choice` allows nothing else.
pub fn build(choice: Choice) -> Result<(AnyRuntime, Driver), DriverError> {
    let reason = match choice {
        Choice::Epoll => String::from("chosen by --driver epoll"),
        Choice::Auto | Choice::IoUring => match build_ring() {
            Ok((runtime, descriptor, (ring, shortfall))) => {
                let runtime = AnyRuntime::IoUring(runtime, descriptor);
                return Ok((runtime, Driver::IoUring(ring, shortfall)));
            }
            Err(reason) => reason,
        },
    };
    if choice == Choice::IoUring {
        return Err(DriverError::NoIoUring(reason));
    }
    let runtime = RuntimeBuilder::<LegacyDriver>::new()
        .enable_timer()
        .build()
        .map_err(DriverError::NoEpoll)?;
    Ok((AnyRuntime::Epoll(runtime), Driver::Epoll(reason)))
}

type RingRuntime = Runtime<TimeDriver<IoUringDriver>>;

/// A setup that works, and why a better one does not.
type Setup = (Ring, Option<String>);

/// What the last thread has found: the setup that works, or why none does.
static LAST_SETUP: Mutex<Option<Result<Setup, String>>> = Mutex::new(None);

/// Builds a ring, starting with the setup that the last thread found; or the reason why none works.
fn build_ring() -> Result<(RingRuntime, Option<RawFd>, Setup), String> {
    let mut last = LAST_SETUP.lock().unwrap_or_else(PoisonError::into_inner);
    let top = last.take().unwrap_or_else(|| match retry(probe) {
        Ok(()) => Ok((Ring { entries: ENTRIES[0], flags: true }, None)),
        Err(error) => Err(explain(&error)),
    });
    let before = rings();
    let built = top.and_then(|setup| build_best(setup, |ring| retry(|| build_with(ring))));
    *last = Some(built.as_ref().map(|(_, setup)| setup.clone()).map_err(String::clone));
    let (runtime, setup) = built?;
    // monoio does not tell it. No other thread builds a ring meanwhile.
    let mut new = rings().into_iter().filter(|ring| !before.contains(ring));
    let descriptor = new.next().filter(|_| new.next().is_none());
    Ok((runtime, descriptor, setup))
}

/// The descriptors of this process that are rings; none where `/proc` cannot be read.
fn rings() -> Vec<RawFd> {
    let Ok(descriptors) = fs::read_dir("/proc/self/fd") else { return Vec::new() };
    let number = |entry: io::Result<fs::DirEntry>| {
        let entry = entry.ok()?;
        let target = fs::read_link(entry.path()).ok()?;
        let number = entry.file_name().to_str()?.parse().ok();
        number.filter(|_| target.as_os_str() == "anon_inode:[io_uring]")
    };
    descriptors.filter_map(number).collect()
}

/// Builds with this setup, or the first simpler one that works.
fn build_best<R>(
    (mut ring, mut shortfall): Setup,
    build: impl Fn(Ring) -> io::Result<R>,
) -> Result<(R, Setup), String> {
    loop {
        let error = match build(ring) {
            Ok(built) => return Ok((built, (ring, shortfall))),
            Err(error) => error,
        };
        let reason = explain(&error);
        let simpler = match error.raw_os_error().map(Errno::from_raw) {
            // Refused with any setup.
            Some(Errno::EPERM | Errno::EACCES | Errno::ENOSYS) => return Err(reason),
            // The kernel does not know the flags: fewer entries do not help.
            Some(Errno::EINVAL) if ring.flags => Some(Ring { flags: false, ..ring }),
            _ => ENTRIES
                .into_iter()
                .find(|&entries| entries < ring.entries)
                .map(|entries| Ring { entries, ..ring }),
        };
        let Some(simpler) = simpler else { return Err(shortfall.unwrap_or(reason)) };
        shortfall.get_or_insert(reason);
        ring = simpler;
    }
}

/// Retries what is refused for lack of memory. The thread has no tasks yet.
#[allow(clippy::disallowed_methods)]
fn retry<R>(build: impl Fn() -> io::Result<R>) -> io::Result<R> {
    for _ in 1..TRIES {
        match build() {
            Err(error) if error.raw_os_error() == Some(Errno::ENOMEM as i32) => {
                thread::sleep(PAUSE);
            }
            other => return other,
        }
    }
    build()
}

/// A kernel may have rings but lack an operation that monoio needs, or the probe for operations.
fn probe() -> io::Result<()> {
    let mut probe = Probe::new();
    let asked = IoUring::new(2)?.submitter().register_probe(&mut probe);
    if asked.is_ok() && OPERATIONS.into_iter().all(|operation| probe.is_supported(operation)) {
        Ok(())
    } else {
        Err(Errno::ENOSYS.into())
    }
}

fn build_with(ring: Ring) -> io::Result<RingRuntime> {
    let mut builder = IoUring::builder();
    builder.setup_cqsize(ring.entries * COMPLETIONS_PER_ENTRY);
    if ring.flags {
        builder.setup_coop_taskrun().setup_single_issuer();
    }
    RuntimeBuilder::<IoUringDriver>::new()
        .uring_builder(builder)
        .with_entries(ring.entries)
        .enable_timer()
        .build()
}

/// Says what an error of io_uring_setup(2) means here and what would change it.
fn explain(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM | Errno::EACCES) => String::from(
            "io_uring is refused (EPERM): run the container with --security-opt \
             seccomp=docker/seccomp.json, or set sysctl kernel.io_uring_disabled=0",
        ),
        Some(Errno::ENOSYS) => String::from(
            "io_uring does not exist here (ENOSYS): it needs Linux 5.7 or newer, and in a container \
             --security-opt seccomp=docker/seccomp.json",
        ),
        Some(Errno::ENOMEM) => String::from(
            "too little locked memory for full-size rings (ENOMEM): raise its limit, ulimit -l or \
             LimitMEMLOCK=",
        ),
        Some(Errno::EINVAL) => {
            String::from("the kernel does not know the ring flags (EINVAL): they need Linux 6.0")
        }
        _ => format!("io_uring cannot be set up: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    /// Starts with the best setup, where `build` is the kernel's answer; the setups tried, and the outcome.
    fn build_best_where(
        build: impl Fn(Ring) -> Result<(), Errno>,
    ) -> (Vec<Ring>, Result<Setup, String>) {
        let tried = RefCell::new(Vec::new());
        let top = Ring { entries: ENTRIES[0], flags: true };
        let outcome = build_best((top, None), |ring| {
            tried.borrow_mut().push(ring);
            build(ring).map_err(io::Error::from)
        });
        (tried.into_inner(), outcome.map(|((), setup)| setup))
    }

    #[test]
    fn epoll_is_always_available() {
        let (mut runtime, driver) = build(Choice::Epoll).unwrap();
        assert_eq!(driver.name(), "epoll");
        assert!(runtime.block_on(async { monoio::utils::is_legacy() }));
    }

    #[test]
    fn with_little_memory_rings_are_smaller_or_refused() {
        let (tried, outcome) =
            build_best_where(|ring| if ring.entries > 256 { Err(Errno::ENOMEM) } else { Ok(()) });
        assert_eq!(tried.iter().map(|ring| ring.entries).collect::<Vec<_>>(), [4096, 1024, 256]);
        let (ring, shortfall) = outcome.unwrap();
        assert_eq!(ring, Ring { entries: 256, flags: true });
        assert!(shortfall.unwrap().contains("ENOMEM"));

        let (tried, outcome) = build_best_where(|_| Err(Errno::ENOMEM));
        assert_eq!(tried.len(), ENTRIES.len());
        assert!(tried.iter().all(|ring| ring.flags), "{tried:?}");
        assert!(outcome.unwrap_err().contains("ENOMEM"));
    }

    #[test]
    fn unknown_flags_are_left_out() {
        let (tried, outcome) =
            build_best_where(|ring| if ring.flags { Err(Errno::EINVAL) } else { Ok(()) });
        assert_eq!(tried.len(), 2);
        let (ring, shortfall) = outcome.unwrap();
        assert_eq!(ring, Ring { entries: ENTRIES[0], flags: false });
        assert!(shortfall.unwrap().contains("EINVAL"));
    }

    #[test]
    fn a_refusal_of_io_uring_ends_the_search() {
        for errno in [Errno::EPERM, Errno::EACCES, Errno::ENOSYS] {
            let (tried, outcome) = build_best_where(|_| Err(errno));
            assert_eq!((tried.len(), outcome.is_err()), (1, true));
        }
    }

    #[test]
    fn only_lack_of_memory_is_retried() {
        for (errno, refusals, tries) in
            [(Errno::ENOMEM, 2, 3), (Errno::ENOMEM, 9, TRIES), (Errno::EPERM, 1, 1)]
        {
            let tried = Cell::new(0);
            let outcome = retry(|| {
                tried.set(tried.get() + 1);
                if tried.get() > refusals { Ok(()) } else { Err(errno.into()) }
            });
            assert_eq!((tried.get(), outcome.is_ok()), (tries, refusals < tries));
        }
    }

    #[test]
    fn the_same_errors_say_what_to_do() {
        for (errno, remedy) in [
            (Errno::EPERM, "kernel.io_uring_disabled"),
            (Errno::ENOSYS, "Linux 5.7"),
            (Errno::ENOMEM, "LimitMEMLOCK"),
            (Errno::EINVAL, "Linux 6.0"),
        ] {
            let explained = explain(&io::Error::from_raw_os_error(errno as i32));
            assert!(explained.contains(remedy), "{explained}");
        }
    }
}
