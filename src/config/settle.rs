//! From what was said to what is meant: each setting takes its value from the first place that gives
//! one, and the whole is checked once.

use std::{env, io, net::SocketAddr, path::PathBuf};

use clap::ArgMatches;
use http::StatusCode;

use super::{
    Config, CounterConfig, PageFiles,
    addresses::check_addresses,
    arguments::{CounterArguments, ServeArguments},
    file::{File, Text},
    limits::{counter_clients, settle_limits},
    open_files::{CONNECTIONS_DEFAULT_MAX, FILES_BASE, OpenFiles},
    pages::{SORRY, WELCOME},
    pick::{Pick, Setting, Source, or_text, read_file},
    routes::{describe, origins, settle_routes},
    values::Cores,
};
use crate::{counter::store, host, http::hosts::HostList, listener::inherited, upstream::Endpoint};

/// Workers that a configuration may ask for.
const WORKERS_MAX: usize = 1024;
/// Settings that cannot be used: which, what was said and what would do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file of `--config` cannot be read.
    #[error("--config: cannot read {0}: {1}")]
    File(PathBuf, io::Error),
    /// It is not a configuration.
    #[error("--config: {path} line {line}: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where, counted from 1.
        line: usize,
        /// What was expected and got.
        message: String,
    },
    /// A value does not fit.
    #[error("{setting}: {problem}")]
    Value {
        /// The setting's name.
        setting: String,
        /// What it got and what it takes.
        problem: String,
    },
}

pub(super) fn invalid(setting: impl Into<String>, problem: impl Into<String>) -> ConfigError {
    ConfigError::Value { setting: setting.into(), problem: problem.into() }
}

/// All settings.
#[derive(Debug)]
pub struct Settled {
    /// What the server reads.
    pub config: Config,
    /// What a person reads.
    pub settings: Vec<Setting>,
    /// What was made smaller than asked, and why.
    pub notes: Vec<String>,
}

/// Settles the settings of `serve`.
///
/// # Errors
/// At the first that does not fit.
pub fn settle(arguments: ServeArguments, matches: &ArgMatches) -> Result<Settled, ConfigError> {
    let mut file = match &arguments.config {
        Some(path) => read_file(path)?,
        None => File::default(),
    };
    let mut pick = Pick::new(matches, arguments.config.clone());
    let listen =
        pick.value("listen", arguments.listen, file.listen.take().map(Vec::from), |addresses| {
            addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", ")
        });
    if listen.is_empty() {
        return Err(invalid("listen", "it needs at least one address"));
    }
    let share_port = pick.shown("share-port", arguments.share_port, file.share_port);
    let counter =
        pick.option("counter", arguments.counter, file.counter.take().map(|text| text.0), |url| {
            url.as_ref().map_or_else(|| String::from("bundled"), Endpoint::to_string)
        });
    let cores = settle_cores(
        &mut pick,
        (arguments.workers, file.workers),
        (arguments.cores, file.cores.take()),
    )?;
    let driver = pick.shown("driver", arguments.driver, file.driver);
    let welcome = pick.option("welcome", arguments.welcome, file.welcome.take(), or_text(WELCOME));
    let sorry = pick.option("sorry", arguments.sorry, file.sorry.take(), or_text(SORRY));
    let sorry_status = pick.shown("sorry-status", arguments.sorry_status, file.sorry_status);
    let sorry_status = settle_status(sorry_status)?;
    let accept = pick.value("accept", arguments.accept, file.accept, |accept| match accept {
        crate::site::Accept::Success => String::from("2xx"),
        crate::site::Accept::Any => String::from("any"),
    });
    let data_dir = pick.option("data-dir", arguments.data_dir, file.data_dir.take(), |directory| {
        let directory = directory.clone().or_else(default_data_dir);
        directory.map_or_else(|| String::from("none"), |path| path.display().to_string())
    });
    let create = pick.shown("create", arguments.create, file.create);
    let admin = pick.shown("admin", arguments.admin, file.admin.take().map(|Text(admin)| admin)).0;
    let admin_hosts = pick.option(
        "admin-hosts",
        arguments.admin_hosts,
        file.admin_hosts.take().map(|Text(hosts)| hosts),
        |hosts| hosts.as_ref().map_or_else(|| String::from("none"), HostList::to_string),
    );
    let ready_needs_counter =
        pick.shown("ready-needs-counter", arguments.ready_needs_counter, file.ready_needs_counter);
    let log_format = pick.shown("log-format", arguments.log_format, file.log_format);
    // Where sockets are handed down, nobody listens on `listen`.
    if !inherited::are_expected() {
        check_addresses(&listen, share_port, admin)?;
    }

    let site_files = PageFiles { welcome, sorry };
    let in_file = !file.route.is_empty();
    let routes = settle_routes(std::mem::take(&mut file.route), counter, &site_files)?;
    let bundled = match routes.iter().any(|route| route.counter.is_none()) {
        true => Some(default_store(data_dir)?),
        false => None,
    };
    let files = OpenFiles {
        workers: cores.len(),
        counters: origins(&routes),
        bundled: bundled.is_some(),
        admin: admin.is_some(),
    };
    let mut notes = Vec::new();
    let limits = settle_limits(&mut pick, &arguments.limits, &file, &files, &mut notes)?;
    let of_file = pick.file.as_deref().filter(|_| in_file);
    let described: Vec<_> = routes.iter().map(|route| describe(route, of_file)).collect();
    pick.settings.extend(described);
    let config = Config {
        listen,
        share_port,
        cores,
        driver,
        routes,
        sorry_status,
        accept,
        bundled,
        create,
        admin,
        admin_hosts: admin_hosts.unwrap_or_default(),
        ready_needs_counter,
        log_format,
        limits,
    };
    Ok(Settled { config, settings: pick.settings, notes })
}

/// Settles the settings of `counter`.
///
/// # Errors
/// At the first that does not fit.
pub fn settle_counter(
    arguments: CounterArguments,
    matches: &ArgMatches,
) -> Result<CounterConfig, ConfigError> {
    let pick = Pick::new(matches, None);
    let store = match arguments.store {
        // A directory from a place that wins says where the totals are, too.
        Some(store) if pick.source("store", false) >= pick.source("data-dir", false) => store,
        _ => default_store(arguments.data_dir)?,
    };
    let files = usize::try_from(host::open_files()).unwrap_or(usize::MAX);
    Ok(CounterConfig {
        listen: arguments.listen,
        hosts: arguments.counter_hosts.unwrap_or_default(),
        store,
        create: arguments.create,
        driver: arguments.driver,
        log_format: arguments.log_format,
        drain_timeout: arguments.drain_timeout.0,
        clients: counter_clients(
            files.saturating_sub(FILES_BASE).clamp(4, CONNECTIONS_DEFAULT_MAX),
        ),
    })
}

/// The core of each worker. `workers` and `cores`, each as given by a flag or variable and by the file,
/// are two forms of one setting: that from the place that wins counts, and the other says nothing.
/// A status that ends a request: 204 and 304 have no content, and 1xx are none.
fn settle_status(code: u16) -> Result<StatusCode, ConfigError> {
    match (code, StatusCode::from_u16(code)) {
        (200..=599, Ok(status)) if !matches!(code, 204 | 205 | 304) => Ok(status),
        _ => Err(invalid(
            "sorry-status",
            format!(
                "{code} is no status of an answer with a page; it takes 200 to 599, but 204, 205 and 304"
            ),
        )),
    }
}

fn settle_cores(
    pick: &mut Pick<'_>,
    (workers, workers_in_file): (Option<u16>, Option<u16>),
    (cores, cores_in_file): (Option<Cores>, Option<Cores>),
) -> Result<Vec<usize>, ConfigError> {
    let workers_from = pick.source("workers", workers_in_file.is_some());
    let cores_from = pick.source("cores", cores_in_file.is_some());
    if workers_from == cores_from && workers_from != Source::Default {
        let given = ["workers", "cores"].map(|name| pick.describe(name, workers_from));
        let given = match workers_from {
            Source::File => format!("workers and cores of {}", given[0]),
            _ => given.join(" and "),
        };
        return Err(invalid("workers", format!("{given} exclude each other; give one of them")));
    }
    if cores_from > workers_from {
        let cores = listed_cores(if cores_from == Source::File { cores_in_file } else { cores })?;
        pick.note("workers", cores.len().to_string(), String::from("follows from cores"));
        pick.note("cores", Cores::of(&cores).to_string(), pick.describe("cores", cores_from));
        return Ok(cores);
    }
    let workers = if workers_from == Source::File { workers_in_file } else { workers };
    let cores = first_cores(workers.map(usize::from))?;
    pick.note("workers", cores.len().to_string(), pick.describe("workers", workers_from));
    pick.note("cores", Cores::of(&cores).to_string(), String::from("follows from workers"));
    Ok(cores)
}

/// The cores of a list, if this process may run on all of them.
fn listed_cores(cores: Option<Cores>) -> Result<Vec<usize>, ConfigError> {
    let allowed = host::cores();
    let cores = cores.map(|Cores(cores)| cores).unwrap_or_default();
    match cores.iter().find(|core| !allowed.contains(core)) {
        Some(core) => {
            let allowed = Cores(allowed);
            let problem = format!("this process may not run on core {core}, only on {allowed}");
            Err(invalid("cores", problem))
        }
        None => Ok(cores),
    }
}

/// The first cores that this process may run on, for so many workers or for one on each.
fn first_cores(workers: Option<usize>) -> Result<Vec<usize>, ConfigError> {
    let allowed = host::cores();
    let workers = workers.unwrap_or_else(|| host::parallelism().clamp(1, WORKERS_MAX));
    if !(1..=WORKERS_MAX).contains(&workers) {
        return Err(invalid("workers", format!("{workers} is not from 1 to {WORKERS_MAX}")));
    }
    if allowed.is_empty() {
        return Err(invalid(
            "workers",
            "the system does not tell which cores this process may use",
        ));
    }
    // More workers than cores share them in turn.
    Ok(allowed.iter().copied().cycle().take(workers).collect())
}

fn default_data_dir() -> Option<PathBuf> {
    let directory = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    // systemd.exec(5): several directories are separated by colons; ours is the first.
    let state = env::var("STATE_DIRECTORY").ok();
    let state = state.and_then(|list| list.split(':').next().map(PathBuf::from));
    state
        .filter(|path| !path.as_os_str().is_empty())
        .or_else(|| directory("XDG_STATE_HOME").map(|path| path.join("tallyring")))
        .or_else(|| directory("HOME").map(|path| path.join(".local/state/tallyring")))
}

fn default_store(data_dir: Option<PathBuf>) -> Result<store::Kind, ConfigError> {
    let directory = data_dir.or_else(default_data_dir).ok_or_else(|| {
        invalid("data-dir", "no place for the counter's file is known (HOME is not set); give one")
    })?;
    Ok(store::Kind::Redb(directory.join("counter.redb")))
}
