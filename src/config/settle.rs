//! From what was said to what is meant: each setting takes its value from the first place that gives
//! one, and the whole is checked once.

use std::{env, fs, io, net::SocketAddr, path::PathBuf};

use clap::ArgMatches;

use super::{
    Config, CounterConfig, PageFiles, RouteConfig,
    addresses::check_addresses,
    arguments::{CounterArguments, ServeArguments, WORKERS_MAX, Workers},
    contents::{SORRY, WELCOME, read_contents},
    error::{ConfigError, invalid},
    file::{File, read_file},
    limits::{internal_client_limits, settle_limits},
    open_files::{self, OpenFiles},
    pick::{Pick, Setting, Source, or_text},
    routes::{describe, origins, settle_routes},
    scalar::{Text, Word},
    values::{Cores, Number},
};
use crate::{
    counter::store, http::hosts::HostList, listener::inherited, runtime::host, upstream::Endpoint,
};

/// All settings.
#[derive(Debug)]
pub struct Settled {
    /// What the server reads.
    pub config: Config,
    /// What a person reads.
    pub settings: Vec<Setting>,
    /// What is not as it was asked, such as a limit that was made smaller, and why.
    pub notes: Vec<String>,
}

/// Settles the settings of `serve`.
///
/// # Errors
/// At the first that does not fit.
pub fn settle(arguments: ServeArguments, matches: &ArgMatches) -> Result<Settled, ConfigError> {
    let (file, places) = match &arguments.config {
        Some(path) => read_file(path).map(|(file, places)| (file, Some(places)))?,
        None => (File::default(), None),
    };
    let mut pick = Pick::new(matches, places);
    settle_all(arguments, file, &mut pick).map_err(|error| pick.locate(error))
}

/// Settles the settings of `serve` once more, from the same places.
///
/// # Errors
/// At the first that does not fit; when the file is none that can be read twice, as that of `--config <(…)`: a pipe
/// gives nothing the second time, and nothing is what a file without settings says.
pub fn settle_again(
    arguments: ServeArguments,
    matches: &ArgMatches,
) -> Result<Settled, ConfigError> {
    if let Some(path) = &arguments.config
        && fs::metadata(path).is_ok_and(|metadata| !metadata.is_file())
    {
        let problem = io::Error::other("it is no regular file, which can be read once only");
        return Err(ConfigError::File(path.clone(), problem));
    }
    settle(arguments, matches)
}

fn settle_all(
    arguments: ServeArguments,
    mut file: File,
    pick: &mut Pick<'_>,
) -> Result<Settled, ConfigError> {
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
    let counter_listen = pick.shown(
        "counter-listen",
        arguments.counter_listen,
        file.counter_listen.take().map(|Text(address)| address),
    );
    let counter_hosts = pick.option(
        "counter-hosts",
        arguments.counter_hosts,
        file.counter_hosts.take().map(|Text(hosts)| hosts),
        |hosts| hosts.as_ref().map_or_else(|| String::from("none"), HostList::to_string),
    );
    let skip_counter_check =
        pick.shown("skip-counter-check", arguments.skip_counter_check, file.skip_counter_check);
    let cores = settle_cores(
        pick,
        (arguments.workers, file.workers),
        (arguments.cores, file.cores.take()),
    )?;
    let driver = pick.shown("driver", arguments.driver, file.driver.map(|Word(driver)| driver));
    let welcome = arguments.welcome.map(absolute);
    let welcome = pick.option("welcome", welcome, file.welcome.take(), or_text(WELCOME));
    let sorry = arguments.sorry.map(absolute);
    let sorry = pick.option("sorry", sorry, file.sorry.take(), or_text(SORRY));
    let sorry_status = pick.shown("sorry-status", arguments.sorry_status, file.sorry_status).0;
    let accept = file.accept.map(|Word(accept)| accept);
    let accept = pick.value("accept", arguments.accept, accept, |accept| match accept {
        crate::site::Accept::Success => String::from("2xx"),
        crate::site::Accept::Any => String::from("any"),
    });
    let data_dir = arguments.data_dir.map(absolute);
    let data_dir = pick.option("data-dir", data_dir, file.data_dir.take(), |directory| {
        let directory = directory.clone().or_else(default_data_dir);
        directory.map_or_else(|| String::from("none"), |path| absolute(path).display().to_string())
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
    let log_format = file.log_format.map(|Word(format)| format);
    let log_format = pick.shown("log-format", arguments.log_format, log_format);
    let log_level = file.log_level.map(|Word(level)| level);
    let log_level = pick.shown("log-level", arguments.log_level, log_level);

    let site_files = PageFiles { welcome, sorry, content_type: None };
    let routes = settle_routes(std::mem::take(&mut file.route), counter, &site_files)?;
    let uses_bundled =
        |route: &RouteConfig| route.visits().is_some_and(|visits| visits.counter.is_none());
    let bundled = match routes.iter().any(uses_bundled) {
        true => Some(default_store(data_dir)?),
        false => None,
    };
    let counter_listen = bundled.as_ref().and(counter_listen.0);
    // Where sockets are handed down, nobody listens on `listen`.
    let own = if inherited::are_expected() { &[][..] } else { &listen };
    check_addresses(own, share_port, admin, counter_listen)?;
    let files = OpenFiles {
        workers: cores.len(),
        counters: origins(&routes),
        bundled: bundled.is_some(),
        counter_listens: counter_listen.is_some(),
        admin: admin.is_some(),
    };
    let mut notes = Vec::new();
    let limits = settle_limits(pick, &arguments.limits, &file, &files, &mut notes)?;
    let contents = read_contents(&routes, &site_files, limits.files_bytes_max, &mut notes)?;
    let line = |place| pick.file.as_ref().and_then(|file| file.route(place, None));
    let described = routes.iter().zip(&contents).enumerate();
    let described: Vec<_> = described
        .map(|(place, (route, content))| describe(route, content, line(place).as_deref()))
        .collect();
    pick.settings.extend(described);
    let config = Config {
        listen,
        share_port,
        cores,
        driver,
        routes,
        contents,
        sorry_status,
        accept,
        bundled,
        counter_listen,
        counter_hosts: counter_hosts.unwrap_or_default(),
        skip_counter_check,
        create,
        admin,
        admin_hosts: admin_hosts.unwrap_or_default(),
        ready_needs_counter,
        log_format,
        log_level,
        limits,
    };
    Ok(Settled { config, settings: std::mem::take(&mut pick.settings), notes })
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
        _ => default_store(arguments.data_dir.map(absolute)).map_err(|error| pick.locate(error))?,
    };
    let files = usize::try_from(host::open_files()).unwrap_or(usize::MAX);
    Ok(CounterConfig {
        listen: arguments.listen,
        hosts: arguments.counter_hosts.unwrap_or_default(),
        store,
        create: arguments.create,
        driver: arguments.driver,
        log_format: arguments.log_format,
        log_level: arguments.log_level,
        drain_timeout: arguments.drain_timeout.0,
        clients: internal_client_limits(open_files::of_counter(files)?),
    })
}

/// The core of each worker. `workers` and `cores`, each as given by a flag or variable and by the file,
/// are two forms of one setting: that from the place that wins counts, and the other says nothing.
fn settle_cores(
    pick: &mut Pick<'_>,
    (workers, workers_in_file): (Option<Workers>, Option<Workers>),
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
    let cores = first_cores(workers.map(|Number(workers)| workers))?;
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
    if allowed.is_empty() {
        return Err(invalid(
            "workers",
            "the system does not tell which cores this process may use",
        ));
    }
    // More workers than cores share them in turn.
    Ok(allowed.iter().copied().cycle().take(workers).collect())
}

/// A path from the working directory, as it is from the root.
fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
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

pub(super) fn default_store(data_dir: Option<PathBuf>) -> Result<store::Kind, ConfigError> {
    let directory = data_dir.or_else(default_data_dir).ok_or_else(|| {
        invalid("data-dir", "no place for the counter's file is known (HOME is not set); give one")
    })?;
    Ok(store::Kind::Redb(absolute(directory).join("counter.redb")))
}
