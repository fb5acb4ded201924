//! What a worker waits on: io_uring with the best flags this kernel takes, or epoll.
//!
//! A ladder: each rung is tried on the thread that will run it, because that thread becomes the only
//! one that may submit, and because ring memory is charged to the process as it is asked for.

use std::{fmt, io};

use monoio::{IoUringDriver, LegacyDriver, Runtime, RuntimeBuilder, time::TimeDriver};
use nix::errno::Errno;

/// Submission queue entries, most first. monoio gives up when the queue is full after a flush, so
/// there is room for every operation that one round of tasks can begin.
const ENTRIES: [u32; 3] = [4096, 1024, 256];
/// Completions that may wait for each submission entry: connections keep a read posted each, and
/// those can all complete in one round.
const COMPLETIONS_PER_ENTRY: u32 = 4;

/// Which driver the operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// io_uring where it is to be had, else epoll.
    Auto,
    /// io_uring or nothing.
    #[value(name = "io_uring")]
    #[serde(rename = "io_uring")]
    IoUring,
    /// epoll, even where io_uring is to be had.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ring {
    /// Entries of the submission queue.
    pub entries: u32,
    /// `IORING_SETUP_COOP_TASKRUN` (Linux 5.19) and `IORING_SETUP_SINGLE_ISSUER` (Linux 6.0):
    /// completions are worked off when the worker enters the kernel anyway, without an interrupt,
    /// and without locks against other submitters.
    pub flags: bool,
}

/// What a runtime was built on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Driver {
    /// io_uring. Why a higher rung was not to be had, when it was not.
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
    /// Only io_uring would do, and it is not to be had.
    #[error("io_uring is not to be had here: {0}; use --driver auto to serve on epoll instead")]
    NoIoUring(String),
    /// Not even epoll.
    #[error("no epoll runtime could be built: {0}")]
    NoEpoll(io::Error),
}

/// A monoio runtime on either driver.
pub enum AnyRuntime {
    /// On a ring.
    IoUring(Runtime<TimeDriver<IoUringDriver>>),
    /// On epoll.
    Epoll(Runtime<TimeDriver<LegacyDriver>>),
}

impl AnyRuntime {
    /// Runs `future`, and what it spawns, until it is done.
    pub fn block_on<F: Future>(&mut self, future: F) -> F::Output {
        match self {
            Self::IoUring(runtime) => runtime.block_on(future),
            Self::Epoll(runtime) => runtime.block_on(future),
        }
    }
}

/// Builds the best runtime to be had on this thread, which must be the one that runs it.
///
/// # Errors
/// When neither is to be had, or io_uring is not and `choice` allows nothing else.
pub fn build(choice: Choice) -> Result<(AnyRuntime, Driver), DriverError> {
    let reason = match choice {
        Choice::Epoll => String::from("chosen by --driver epoll"),
        Choice::Auto | Choice::IoUring => match build_ring() {
            Ok((runtime, ring, shortfall)) => {
                return Ok((AnyRuntime::IoUring(runtime), Driver::IoUring(ring, shortfall)));
            }
            Err(error) => explain(&error),
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

/// Goes down the ladder; gives the last rung's error when none holds.
fn build_ring() -> io::Result<(RingRuntime, Ring, Option<String>)> {
    let mut shortfall = None;
    for flags in [true, false] {
        for entries in ENTRIES {
            let ring = Ring { entries, flags };
            let error = match build_rung(ring) {
                Ok(runtime) => return Ok((runtime, ring, shortfall.as_ref().map(explain))),
                Err(error) => error,
            };
            match error.raw_os_error().map(Errno::from_raw) {
                // Refused whatever the setup: there is no lower rung.
                Some(Errno::EPERM | Errno::EACCES | Errno::ENOSYS) => return Err(error),
                // The kernel does not know the flags: fewer entries do not help.
                Some(Errno::EINVAL) if flags => {
                    shortfall.get_or_insert(error);
                    break;
                }
                _ => {
                    shortfall.get_or_insert(error);
                }
            }
        }
    }
    Err(shortfall.unwrap_or_else(|| io::ErrorKind::Unsupported.into()))
}

fn build_rung(ring: Ring) -> io::Result<RingRuntime> {
    let mut setup = io_uring::IoUring::builder();
    setup.setup_cqsize(ring.entries * COMPLETIONS_PER_ENTRY);
    if ring.flags {
        setup.setup_coop_taskrun().setup_single_issuer();
    }
    let runtime = RuntimeBuilder::<IoUringDriver>::new()
        .uring_builder(setup)
        .with_entries(ring.entries)
        .enable_timer()
        .build()?;
    // A kernel may have rings and lack an operation that monoio needs.
    if monoio::utils::detect_uring() { Ok(runtime) } else { Err(Errno::ENOSYS.into()) }
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
            "no memory for a larger ring (ENOMEM): raise the locked-memory limit, ulimit -l or \
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
    use super::*;

    #[test]
    fn epoll_is_always_to_be_had() {
        let (mut runtime, driver) = build(Choice::Epoll).unwrap();
        assert_eq!(driver.name(), "epoll");
        assert!(runtime.block_on(async { monoio::utils::is_legacy() }));
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
