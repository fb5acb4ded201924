//! From what was said to what is meant: each setting takes its value from the first place that gives
//! one, and the whole is checked once.

use std::{
    collections::BTreeSet,
    env,
    fmt::Display,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use clap::ArgMatches;

use super::{
    Config, CounterConfig, DRAIN_BYTES_MAX, Limits, PageFiles, RESPONSE_HEAD, ROUTES_MAX,
    RouteConfig,
    arguments::{CounterArguments, ServeArguments},
    file::{File, RouteTable, Text},
    open_files::{CONNECTIONS_DEFAULT_MAX, FILES_BASE, OpenFiles},
    pages::{SORRY, WELCOME, read_pages},
    pick::{Pick, Setting, read_file},
    values::{Cores, Period, Size},
};
use crate::{
    connection::ClientLimits,
    counter::store,
    host,
    http::{HEAD_FIELDS_CAP, HeadLimits, request::Method},
    upstream::{Target, UpstreamLimits},
};

/// Workers that a configuration may ask for.
const WORKERS_MAX: usize = 1024;
/// For one more request of a client that is idle when the server is about to stop: a client under load
/// sends it at once, and the others are let go before a person who waits for the stop wonders.
const PARTING_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(1);

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
    let file = match &arguments.config {
        Some(path) => read_file(path)?,
        None => File::default(),
    };
    let mut pick = Pick::new(matches, arguments.config.clone());
    let listen = pick.value("listen", arguments.listen, file.listen.map(Vec::from), |addresses| {
        addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", ")
    });
    check_listen(&listen)?;
    let share_port = pick.shown("share-port", arguments.share_port, file.share_port);
    let counter =
        pick.option("counter", arguments.counter, file.counter.map(|text| text.0), |url| {
            url.as_ref().map_or_else(|| String::from("bundled"), Target::to_string)
        });
    let workers = pick.option("workers", arguments.workers, file.workers, or_auto);
    let cores = pick.option("cores", arguments.cores, file.cores, or_auto);
    let cores = settle_cores(workers.map(usize::from), cores)?;
    let driver = pick.shown("driver", arguments.driver, file.driver);
    let welcome = pick.option("welcome", arguments.welcome, file.welcome, or_text(WELCOME));
    let sorry = pick.option("sorry", arguments.sorry, file.sorry, or_text(SORRY));
    let accept = pick.value("accept", arguments.accept, file.accept, |accept| match accept {
        crate::site::Accept::Success => String::from("2xx"),
        crate::site::Accept::Any => String::from("any"),
    });
    let data_dir = pick.option("data-dir", arguments.data_dir, file.data_dir, |directory| {
        let directory = directory.clone().or_else(default_data_dir);
        directory.map_or_else(|| String::from("none"), |path| path.display().to_string())
    });
    let admin = pick.shown("admin", arguments.admin, file.admin.map(|Text(admin)| admin)).0;
    let log_format = pick.shown("log-format", arguments.log_format, file.log_format);

    let head = HeadLimits {
        head_bytes_max: pick.shown("head-max", arguments.head_max, file.head_max).0,
        head_fields_max: pick.shown(
            "head-fields-max",
            arguments.head_fields_max,
            file.head_fields_max,
        ),
        target_bytes_max: pick.shown("target-max", arguments.target_max, file.target_max).0,
    };
    check_head(&head)?;
    let Size(body_max) = pick.shown("body-max", arguments.body_max, file.body_max);
    let mut time =
        |name, argument: Period, file: Option<Period>| pick.shown(name, argument, file).0;
    let head_timeout = time("head-timeout", arguments.head_timeout, file.head_timeout);
    let body_timeout = time("body-timeout", arguments.body_timeout, file.body_timeout);
    let idle_timeout = time("idle-timeout", arguments.idle_timeout, file.idle_timeout);
    let write_timeout = time("write-timeout", arguments.write_timeout, file.write_timeout);
    let connect_timeout = time(
        "counter-connect-timeout",
        arguments.counter_connect_timeout,
        file.counter_connect_timeout,
    );
    let call_timeout = time("counter-timeout", arguments.counter_timeout, file.counter_timeout);
    let counter_idle_timeout =
        time("counter-idle-timeout", arguments.counter_idle_timeout, file.counter_idle_timeout);
    let drain_timeout = time("drain-timeout", arguments.drain_timeout, file.drain_timeout);
    let counter_connections = pick.shown(
        "counter-connections-max",
        arguments.counter_connections_max,
        file.counter_connections_max,
    );
    let queue_max =
        pick.shown("counter-queue-max", arguments.counter_queue_max, file.counter_queue_max);
    let connections =
        pick.option("connections-max", arguments.connections_max, file.connections_max, or_auto);

    let site_files = PageFiles { welcome, sorry };
    let routes = settle_routes(file.route, counter, &site_files)?;
    for route in &routes {
        pick.settings.push(describe(route, pick.file.as_deref()));
    }
    let bundled = match routes.iter().any(|route| route.counter.is_none()) {
        true => Some(default_store(data_dir)?),
        false => None,
    };
    let origins: BTreeSet<_> = routes.iter().map(|route| &route.counter).map(origin_of).collect();
    let mut notes = Vec::new();
    let files = OpenFiles {
        workers: cores.len(),
        counters: origins.len(),
        bundled: bundled.is_some(),
        admin: admin.is_some(),
    };
    let (connections_max, counter_connections_max) =
        files.share(host::open_files(), connections, counter_connections, &mut notes)?;
    let config = Config {
        listen,
        share_port,
        cores,
        driver,
        routes,
        accept,
        bundled,
        admin,
        log_format,
        limits: Limits {
            clients: ClientLimits {
                head,
                body_bytes_max: body_max as u64,
                connections_max,
                head_timeout,
                body_timeout,
                idle_timeout,
                write_timeout,
                parting_timeout: PARTING_TIMEOUT,
            },
            upstream: UpstreamLimits {
                connect_timeout,
                call_timeout,
                connections_max: counter_connections_max,
                queue_max,
                idle_timeout: counter_idle_timeout,
                head: RESPONSE_HEAD,
                drain_bytes_max: DRAIN_BYTES_MAX,
            },
            drain_timeout,
        },
    };
    Ok(Settled { config, settings: pick.settings, notes })
}

/// Settles the settings of `counter`.
///
/// # Errors
/// At the first that does not fit.
pub fn settle_counter(arguments: CounterArguments) -> Result<CounterConfig, ConfigError> {
    let store = match arguments.store {
        Some(store) => store,
        None => default_store(arguments.data_dir)?,
    };
    let files = usize::try_from(host::open_files()).unwrap_or(usize::MAX);
    Ok(CounterConfig {
        listen: arguments.listen,
        store,
        driver: arguments.driver,
        log_format: arguments.log_format,
        drain_timeout: arguments.drain_timeout.0,
        clients: counter_clients(
            files.saturating_sub(FILES_BASE).clamp(4, CONNECTIONS_DEFAULT_MAX),
        ),
    })
}

/// What the clients of the bundled counter may do: they are workers, which keep connections open for
/// as long as they like.
pub fn counter_clients(connections_max: usize) -> ClientLimits {
    ClientLimits {
        head: RESPONSE_HEAD_AS_REQUEST,
        body_bytes_max: DRAIN_BYTES_MAX,
        connections_max,
        head_timeout: std::time::Duration::from_secs(10),
        body_timeout: std::time::Duration::from_secs(30),
        idle_timeout: std::time::Duration::from_secs(300),
        write_timeout: std::time::Duration::from_secs(30),
        parting_timeout: PARTING_TIMEOUT,
    }
}

const RESPONSE_HEAD_AS_REQUEST: HeadLimits =
    HeadLimits { head_bytes_max: 16 * 1024, head_fields_max: 100, target_bytes_max: 8 * 1024 };

fn or_auto<T: Display>(value: &Option<T>) -> String {
    value.as_ref().map_or_else(|| String::from("auto"), T::to_string)
}

fn or_text(text: &'static str) -> impl Fn(&Option<PathBuf>) -> String {
    move |path| match path {
        Some(path) => path.display().to_string(),
        None => format!("the text {text:?}"),
    }
}

fn check_listen(listen: &[SocketAddr]) -> Result<(), ConfigError> {
    if listen.is_empty() {
        return Err(invalid("listen", "it needs at least one address"));
    }
    let mut seen = BTreeSet::new();
    match listen.iter().find(|address| address.port() != 0 && !seen.insert(**address)) {
        Some(twice) => Err(invalid("listen", format!("{twice} is given twice"))),
        None => Ok(()),
    }
}

fn check_head(head: &HeadLimits) -> Result<(), ConfigError> {
    const HEAD_BYTES: std::ops::RangeInclusive<usize> = 1024..=1024 * 1024;
    let HeadLimits { head_bytes_max, head_fields_max, target_bytes_max } = *head;
    if !HEAD_BYTES.contains(&head_bytes_max) {
        return Err(invalid("head-max", format!("{head_bytes_max} is not from 1KiB to 1MiB")));
    }
    if !(1..=HEAD_FIELDS_CAP).contains(&head_fields_max) {
        let problem = format!("{head_fields_max} is not from 1 to {HEAD_FIELDS_CAP}");
        return Err(invalid("head-fields-max", problem));
    }
    if target_bytes_max == 0 || target_bytes_max >= head_bytes_max {
        let problem = format!(
            "{} is not from 1 to below head-max, {}",
            Size(target_bytes_max),
            Size(head_bytes_max)
        );
        return Err(invalid("target-max", problem));
    }
    Ok(())
}

fn settle_cores(workers: Option<usize>, cores: Option<Cores>) -> Result<Vec<usize>, ConfigError> {
    let allowed = host::cores();
    if let Some(Cores(cores)) = cores {
        return match cores.iter().find(|core| !allowed.contains(core)) {
            Some(core) => {
                let allowed = Cores(allowed);
                let problem = format!("this process may not run on core {core}, only on {allowed}");
                Err(invalid("cores", problem))
            }
            None => Ok(cores),
        };
    }
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

fn settle_routes(
    tables: Vec<RouteTable>,
    counter: Option<Target>,
    site_files: &PageFiles,
) -> Result<Vec<RouteConfig>, ConfigError> {
    if tables.is_empty() {
        let methods = vec![Method::Get, Method::Head];
        let pages = read_pages(site_files)?;
        let files = site_files.clone();
        return Ok(vec![RouteConfig { path: String::from("/"), methods, counter, files, pages }]);
    }
    if tables.len() > ROUTES_MAX {
        let problem = format!("{} are more than {ROUTES_MAX}", tables.len());
        return Err(invalid("route", problem));
    }
    let mut routes: Vec<RouteConfig> = Vec::with_capacity(tables.len());
    for table in tables {
        let setting = format!("route {:?}", table.path);
        let plain = |byte: u8| byte.is_ascii_graphic() && !b"?#\\".contains(&byte);
        if !table.path.starts_with('/') || !table.path.bytes().all(plain) {
            let problem = "path: it must begin with / and hold visible ASCII without ?, # and \\";
            return Err(invalid(setting, problem));
        }
        if routes.iter().any(|route| route.path == table.path) {
            return Err(invalid(setting, "path: another route has it already"));
        }
        let mut methods = vec![Method::Get, Method::Head];
        if let Some(listed) = table.methods {
            methods = listed.into_iter().map(Method::from).collect();
            let repeated =
                (1..methods.len()).any(|place| methods[..place].contains(&methods[place]));
            if methods.is_empty() || repeated {
                let problem = "methods: it must list some of GET, HEAD and POST, each once";
                return Err(invalid(setting, problem));
            }
        }
        let files = PageFiles {
            welcome: table.welcome.or_else(|| site_files.welcome.clone()),
            sorry: table.sorry.or_else(|| site_files.sorry.clone()),
        };
        routes.push(RouteConfig {
            path: table.path,
            methods,
            counter: table.counter.map(|Text(target)| target).or_else(|| counter.clone()),
            pages: read_pages(&files)?,
            files,
        });
    }
    Ok(routes)
}

fn describe(route: &RouteConfig, file: Option<&Path>) -> Setting {
    let methods: Vec<_> = route.methods.iter().map(|method| method.as_str()).collect();
    let counter = route.counter.as_ref().map_or(String::from("bundled"), Target::to_string);
    let shown = |path: &Option<PathBuf>, text| or_text(text)(path);
    Setting {
        name: format!("route {}", route.path),
        value: format!(
            "{} to {counter}; welcome {}; sorry {}",
            methods.join(", "),
            shown(&route.files.welcome, WELCOME),
            shown(&route.files.sorry, SORRY)
        ),
        source: match file {
            Some(path) if route.path != "/" => format!("file {}", path.display()),
            _ => String::from("the settings above"),
        },
    }
}

fn origin_of(counter: &Option<Target>) -> Option<&crate::upstream::Origin> {
    counter.as_ref().map(|target| &target.origin)
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
