//! `tallyring doctor`: what this host offers and lacks, with a remedy for each shortfall.

use std::fmt::Write as _;

use crate::{
    config::{Config, ConfigError, Cores},
    counter::store::{self, OpenError},
    counter_check::{self, Asked, Problem},
    listener::BACKLOG,
    plural::plural,
    runtime::{
        driver::{self, Choice, Driver},
        host,
    },
};

/// The fewest open files for a public server.
const OPEN_FILES_WANTED: u64 = 16_384;

/// The server would not start: the code of wrong settings for the other commands, too.
const EXIT_UNABLE: u8 = 2;

/// What the doctor found.
#[derive(Debug)]
pub struct Report {
    /// A line for each check, and a remedy below each shortfall.
    pub text: String,
    /// 0 when the server would run on io_uring, 1 when only on epoll, 2 when not at all or not by these settings.
    pub exit_code: u8,
}

/// Checks this host, and the counters that the settings name.
pub fn examine(settings: Result<&Config, &ConfigError>) -> Report {
    let mut sheet = Sheet::default();
    sheet.good("kernel", &host::kernel());
    let ring = driver::build(Choice::IoUring).map(|(_, driver)| driver);
    let epoll = driver::build(Choice::Epoll).map(|(_, driver)| driver);
    let exit_code = match (&ring, &epoll) {
        (Ok(Driver::IoUring(_, shortfall)), _) => {
            let driver = ring.as_ref().map(ToString::to_string).unwrap_or_default();
            match shortfall {
                None => sheet.good("io_uring", &format!("yes: {driver}")),
                Some(remedy) => {
                    sheet.short("io_uring", &format!("yes, not at its best: {driver}"), remedy);
                }
            }
            sheet.good("driver", "io_uring; epoll is the fallback");
            0
        }
        (ring, Ok(_)) => {
            let reason = ring.as_ref().err().map(ToString::to_string).unwrap_or_default();
            sheet.short("io_uring", "no", &reason);
            sheet.good("driver", "epoll, because io_uring is unavailable");
            1
        }
        (_, Err(error)) => {
            sheet.short("driver", "none", &error.to_string());
            EXIT_UNABLE
        }
    };
    examine_sysctls(&mut sheet);
    examine_limits(&mut sheet);
    match settings {
        Ok(config) => {
            if config.limits.clients.proxy_protocol {
                let expected = "on: a connection to the site that does not begin with a PROXY header is closed";
                sheet.good("PROXY protocol", expected);
            }
            examine_counters(&mut sheet, config);
        }
        Err(error) => {
            sheet.short("settings", &error.to_string(), "correct it: nothing starts until then");
            return Report { text: sheet.text, exit_code: EXIT_UNABLE };
        }
    }
    Report { text: sheet.text, exit_code }
}

fn examine_sysctls(sheet: &mut Sheet) {
    match host::sysctl("kernel.io_uring_disabled").as_deref() {
        None => sheet.good("kernel.io_uring_disabled", "not there (it came with Linux 6.6)"),
        Some("0") => sheet.good("kernel.io_uring_disabled", "0: allowed for all"),
        Some("1") => sheet.short(
            "kernel.io_uring_disabled",
            "1: allowed for CAP_SYS_ADMIN and the group kernel.io_uring_group only",
            "sysctl -w kernel.io_uring_disabled=0",
        ),
        Some(value) => sheet.short(
            "kernel.io_uring_disabled",
            &format!("{value}: refused to all"),
            "sysctl -w kernel.io_uring_disabled=0",
        ),
    }
    let somaxconn = host::sysctl("net.core.somaxconn");
    match somaxconn.and_then(|text| text.parse::<i32>().ok()) {
        None => sheet.short(
            "net.core.somaxconn",
            "cannot be read",
            "mount /proc, to see how many connections may wait to be accepted",
        ),
        Some(value) if value >= BACKLOG => sheet.good("net.core.somaxconn", &value.to_string()),
        Some(value) => sheet.short(
            "net.core.somaxconn",
            &format!(
                "{value}: so many connections may wait to be accepted; {BACKLOG} are asked for"
            ),
            &format!("sysctl -w net.core.somaxconn={BACKLOG}"),
        ),
    }
}

fn examine_limits(sheet: &mut Sheet) {
    match host::locked_memory() {
        None => sheet.good("locked memory", "unlimited"),
        Some(bytes) => {
            let size = bytesize::ByteSize(bytes).display().iec();
            // If this is too little, the check of io_uring above shows it.
            sheet.good(
                "locked memory",
                &format!("{size} (RLIMIT_MEMLOCK, which rings are charged to)"),
            );
        }
    }
    let files = host::open_files();
    let shown = if files == u64::MAX { String::from("unlimited") } else { files.to_string() };
    let about = files.saturating_sub(files.min(4096) / 2);
    let value = format!("{shown}, for about {}", plural(about, "client connection"));
    if files >= OPEN_FILES_WANTED {
        sheet.good("open files", &value);
    } else {
        sheet.short(
            "open files",
            &value,
            "ulimit -Hn 65536 before the start, or LimitNOFILE=65536 in the unit",
        );
    }
    let (cores, parallelism) = (host::cores(), host::parallelism());
    let workers = parallelism.min(cores.len());
    let shown = Cores(cores.clone());
    if workers == 0 {
        sheet.short("cores", "not told by the system", "give them by --cores");
    } else if parallelism < cores.len() {
        let value = format!(
            "{shown}, of which a cgroup's CPU quota gives {parallelism}: {}",
            plural(workers, "worker")
        );
        sheet.short("cores", &value, "give whole cores by a cpuset instead of a quota");
    } else {
        let workers = plural(workers, "worker");
        sheet.good("cores", &format!("{shown}: {workers}, one pinned to each core"));
    }
}

fn examine_counters(sheet: &mut Sheet, config: &Config) {
    if let Some(store) = &config.bundled {
        sheet.good("counter", &format!("bundled, in {store}; see tallyring total"));
        if store.is_shared() {
            examine_store(sheet, store, config.create);
        } else if let Err(marked @ OpenError::Marked(..)) = store::probe(store, config.create) {
            sheet.short(
                "store",
                &marked.to_string(),
                "do one of both; nothing starts here until then",
            );
        }
    }
    for Asked { counter, problem } in counter_check::check_all(&config.routes) {
        let Some((problem, meanwhile)) = problem else {
            sheet.good("counter", &format!("{counter} answers"));
            continue;
        };
        let remedy = match problem {
            Problem::Silent(_) => "start it, or correct --counter",
            Problem::Status(_) => "it runs, but the path may be wrong: correct --counter",
        };
        let remedy = format!("{remedy}; until then {meanwhile}");
        sheet.short("counter", &format!("{counter}: {problem}"), &remedy);
    }
}

/// A database, whose problems name their remedies.
fn examine_store(sheet: &mut Sheet, store: &store::Kind, create: bool) {
    match store::probe(store, create) {
        Ok(dangers) if dangers.is_empty() => sheet.good("store", &format!("{store} can be used")),
        Ok(dangers) => {
            for danger in dangers {
                sheet.short("store", &danger, "change the server's postgresql.conf");
            }
        }
        Err(error) => {
            let remedy = match error.passes() {
                true => "correct --store, or start what it names",
                false => "do what it says, or correct --store",
            };
            let remedy = format!("{remedy}; nothing starts here until then");
            sheet.short("store", &error.to_string(), &remedy);
        }
    }
}

#[derive(Default)]
struct Sheet {
    text: String,
}

impl Sheet {
    fn good(&mut self, what: &str, value: &str) {
        self.line("ok   ", what, value);
    }

    fn short(&mut self, what: &str, value: &str, remedy: &str) {
        self.line("SHORT", what, value);
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "{:>8}remedy: {remedy}", "");
    }

    fn line(&mut self, mark: &str, what: &str, value: &str) {
        let _ = writeln!(self.text, "{mark}   {what:<26} {value}");
    }
}
