//! Settles the settings: each takes its value from the highest source that gives one, and all are checked together
//! once.

use std::{fs, io, mem, net::SocketAddr, path::PathBuf};

use clap::ArgMatches;
use http::StatusCode;

use super::{
    Config, Content, CounterConfig, PageFiles, RouteConfig,
    access_log::settle_access_log,
    addresses::check_addresses,
    arguments::{CounterArguments, ServeArguments},
    contents::{SORRY, WELCOME, read_contents},
    cores::settle_cores,
    counters::{CounterSpread, CounterUrls, check_counters, show_counters},
    data_dir::{ShardName, StoreArguments, absolute, default_data_dir, default_store, store_wins},
    error::{ConfigError, invalid},
    file::File,
    limits::{internal_client_limits, settle_limits},
    open_files::{self, OpenFiles},
    pick::{Pick, Setting, or, or_text},
    routes::{describe, origins, settle_routes},
    scalar::{Text, Word},
};
use crate::{
    counter::store,
    http::hosts::HostList,
    listener::inherited,
    log,
    runtime::host,
    site::{Accept, Share},
    upstream::Endpoint,
};

/// All settings.
#[derive(Debug)]
pub struct Settled {
    /// For the server.
    pub config: Config,
    /// For a person.
    pub settings: Vec<Setting>,
    /// What differs from what was asked, such as a limit that was made smaller, and why.
    pub notes: Vec<String>,
}

/// Settles the settings of `serve`.
///
/// # Errors
/// At the first that does not fit.
pub fn settle(arguments: &ServeArguments, matches: &ArgMatches) -> Result<Settled, ConfigError> {
    let (file, locations) = arguments.file.read()?;
    let mut pick = Pick::new(matches, locations);
    let settled = Sources { arguments, file, pick: &mut pick }.settle();
    settled.map_err(|error| pick.locate(error))
}

/// Settles the settings of `serve` once more, from the same sources.
///
/// # Errors
/// At the first that does not fit, and when the file can be read only once, as in `--config <(…)`: a pipe is empty
/// the second time, and an empty file is one without settings.
pub fn settle_again(
    arguments: &ServeArguments,
    matches: &ArgMatches,
) -> Result<Settled, ConfigError> {
    if let Some(path) = &arguments.file.config
        && fs::metadata(path).is_ok_and(|metadata| !metadata.is_file())
    {
        let problem = io::Error::other("it is no regular file, which can be read once only");
        return Err(ConfigError::File(path.clone(), problem));
    }
    settle(arguments, matches)
}

/// The sources of the settings of `serve`. Each method settles one section, and is called in the order in which
/// `check` prints the settings.
struct Sources<'a, 'm> {
    arguments: &'a ServeArguments,
    file: File,
    pick: &'a mut Pick<'m>,
}

/// The section about the counter.
struct CounterSettings {
    urls: Vec<Endpoint>,
    spread: CounterSpread,
    listen: Option<SocketAddr>,
    hosts: HostList,
    skip_check: bool,
}

/// The section about the pages of visits.
struct PageSettings {
    files: PageFiles,
    sorry_status: StatusCode,
    accept: Accept,
    traces: Option<Share>,
}

/// The section about the admin listener.
struct AdminSettings {
    listen: Option<SocketAddr>,
    hosts: HostList,
    ready_needs_counter: bool,
}

impl Sources<'_, '_> {
    fn settle(mut self) -> Result<Settled, ConfigError> {
        let (listen, share_port) = self.listen()?;
        let Self { arguments, file, pick } = &mut self;
        let proxy_protocol =
            pick.shown("proxy-protocol", arguments.proxy_protocol, file.proxy_protocol);
        let counter = self.counter()?;
        let cores = self.cores()?;
        let balance = self.file.balance.map(|Word(balance)| balance);
        let balance = self.pick.shown("balance", self.arguments.balance, balance);
        let driver = self.file.driver.map(|Word(driver)| driver);
        let driver = self.pick.shown("driver", self.arguments.driver, driver);
        let pages = self.pages();
        let (store, data_dir, create) = self.store();
        let admin = self.admin();
        let (log_format, log_level) = self.log();
        let Self { arguments, file, pick } = &mut self;
        let (access_log, trusted_proxies) = settle_access_log(pick, &arguments.access_log, file);

        let tables = mem::take(&mut self.file.route);
        let routes = settle_routes(tables, (&counter.urls, counter.spread), &pages.files)?;
        let bundled = use_bundled(&routes);
        let bundled = bundled.then(|| store.map_or_else(|| default_store(data_dir), Ok));
        let bundled = bundled.transpose()?;
        let counter_listen = counter.listen.filter(|_| bundled.is_some());
        let shard_address = counter_listen.or(listen.first().copied().filter(|_| !share_port));
        let bundled = self.name_shard(bundled, shard_address)?;
        // With sockets from the service manager, nothing listens on `listen`.
        let own = if inherited::are_expected() { &[][..] } else { &listen };
        check_addresses(own, share_port, admin.listen, counter_listen)?;
        let open_files = OpenFiles {
            workers: cores.len(),
            counters: origins(&routes, counter.spread),
            bundled: bundled.is_some(),
            counter_listens: counter_listen.is_some(),
            admin: admin.listen.is_some(),
        };
        let mut notes = Vec::new();
        let Self { arguments, file, pick } = &mut self;
        let mut limits = settle_limits(pick, &arguments.limits, file, &open_files, &mut notes)?;
        limits.clients.proxy_protocol = proxy_protocol;
        let contents = read_contents(&routes, &pages.files, limits.files_bytes_max, &mut notes)?;
        self.describe_routes(&routes, &contents);
        let config = Config {
            listen,
            share_port,
            cores,
            balance,
            driver,
            routes,
            contents,
            sorry_status: pages.sorry_status,
            accept: pages.accept,
            traces: pages.traces,
            bundled,
            counter_listen,
            counter_hosts: counter.hosts,
            counter_spread: counter.spread,
            skip_counter_check: counter.skip_check,
            create,
            admin: admin.listen,
            admin_hosts: admin.hosts,
            ready_needs_counter: admin.ready_needs_counter,
            log_format,
            log_level,
            access_log,
            trusted_proxies,
            limits,
        };
        Ok(Settled { config, settings: mem::take(&mut self.pick.settings), notes })
    }

    fn listen(&mut self) -> Result<(Vec<SocketAddr>, bool), ConfigError> {
        let Self { arguments, file, pick } = self;
        let in_file = file.listen.take().map(Vec::from);
        let listen = pick.value("listen", arguments.listen.clone(), in_file, |addresses| {
            addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", ")
        });
        if listen.is_empty() {
            return Err(invalid("listen", "it needs at least one address"));
        }
        let share_port = pick.shown("share-port", arguments.share_port, file.share_port);
        Ok((listen, share_port))
    }

    fn counter(&mut self) -> Result<CounterSettings, ConfigError> {
        let Self { arguments, file, pick } = self;
        let urls = file.counter.take().map(|CounterUrls(urls)| urls);
        let show = |urls: &Vec<Endpoint>| show_counters(urls, "bundled");
        let urls = pick.value("counter", arguments.endpoint.urls(), urls, show);
        let spread = file.counter_spread.map(|Word(spread)| spread);
        let spread = pick.shown("counter-spread", arguments.counter_spread, spread);
        check_counters(&urls, spread).map_err(|problem| invalid("counter", problem))?;
        let listen = file.counter_listen.take().map(|Text(address)| address);
        let listen = pick.shown("counter-listen", arguments.endpoint.counter_listen, listen).0;
        let hosts = file.counter_hosts.take().map(|Text(hosts)| hosts);
        let hosts =
            pick.option("counter-hosts", arguments.counter_hosts.clone(), hosts, or("none"));
        let skip_check =
            pick.shown("skip-counter-check", arguments.skip_counter_check, file.skip_counter_check);
        let hosts = hosts.unwrap_or_default();
        Ok(CounterSettings { urls, spread, listen, hosts, skip_check })
    }

    fn cores(&mut self) -> Result<Vec<usize>, ConfigError> {
        let Self { arguments, file, pick } = self;
        let workers = (arguments.workers, file.workers);
        settle_cores(pick, workers, (arguments.cores.clone(), file.cores.take()))
    }

    fn pages(&mut self) -> PageSettings {
        let Self { arguments, file, pick } = self;
        let welcome = arguments.welcome.clone().map(absolute);
        let welcome = pick.option("welcome", welcome, file.welcome.take(), or_text(WELCOME));
        let sorry = arguments.sorry.clone().map(absolute);
        let sorry = pick.option("sorry", sorry, file.sorry.take(), or_text(SORRY));
        let sorry_status = pick.shown("sorry-status", arguments.sorry_status, file.sorry_status).0;
        let accept = file.accept.map(|Word(accept)| accept);
        let accept = pick.value("accept", arguments.accept, accept, |accept| match accept {
            Accept::Success => String::from("2xx"),
            Accept::Any => String::from("any"),
        });
        let traced = pick.shown("trace-context", arguments.trace_context, file.trace_context);
        let share = file.trace_sample.take().map(|Text(share)| share);
        let share = pick.shown("trace-sample", arguments.trace_sample, share);
        let files = PageFiles { welcome, sorry, content_type: None };
        PageSettings { files, sorry_status, accept, traces: traced.then_some(share) }
    }

    /// Where the bundled counter keeps its totals, the directory of its file where that is not given, and whether an
    /// empty file is begun from zero.
    fn store(&mut self) -> (Option<store::Kind>, Option<PathBuf>, bool) {
        let Self { arguments, file, pick } = self;
        let in_file = file.store.take().map(|Text(store)| store);
        let wins = store_wins(pick, (in_file.is_some(), file.data_dir.is_some()));
        let shown = or("counter.redb in the data directory");
        let store = pick.option("store", arguments.store.store.clone(), in_file, |store| {
            shown(&store.clone().filter(|_| wins))
        });
        let given = arguments.store.data_dir.data_dir.clone().map(absolute);
        let data_dir = pick.option("data-dir", given, file.data_dir.take(), |directory| {
            let directory = directory.clone().or_else(default_data_dir).map(absolute);
            directory.map_or_else(|| String::from("none"), |path| path.display().to_string())
        });
        let create = pick.shown("create", arguments.create, file.create);
        (store.filter(|_| wins), data_dir, create)
    }

    /// Names the shard of a store that counters share, after the address of its counter if no name is given.
    fn name_shard(
        &mut self,
        mut store: Option<store::Kind>,
        address: Option<SocketAddr>,
    ) -> Result<Option<store::Kind>, ConfigError> {
        let Self { arguments, file, pick } = self;
        // Told only where it matters.
        if let Some(store) = store.as_mut().filter(|store| store.is_shared()) {
            let in_file = file.store_shard.take().map(|Text(name)| name);
            let given = arguments.store.store_shard.clone();
            if address.is_none() && given.is_none() && in_file.is_none() {
                // The site's port is another server's too, which would have the same shard.
                let problem = "with share-port and counter-listen off no port tells this server from others; name its shard";
                return Err(invalid("store-shard", problem));
            }
            let default = ShardName::of_port(address.map_or(0, |address| address.port()));
            store.set_shard(pick.shown("store-shard", given.unwrap_or(default), in_file).0);
        }
        Ok(store)
    }

    fn admin(&mut self) -> AdminSettings {
        let Self { arguments, file, pick } = self;
        let listen = file.admin.take().map(|Text(address)| address);
        let listen = pick.shown("admin", arguments.admin, listen).0;
        let hosts = file.admin_hosts.take().map(|Text(hosts)| hosts);
        let hosts = pick.option("admin-hosts", arguments.admin_hosts.clone(), hosts, or("none"));
        let ready_needs_counter = pick.shown(
            "ready-needs-counter",
            arguments.ready_needs_counter,
            file.ready_needs_counter,
        );
        AdminSettings { listen, hosts: hosts.unwrap_or_default(), ready_needs_counter }
    }

    fn log(&mut self) -> (log::Format, log::LogLevel) {
        let Self { arguments, file, pick } = self;
        let format = file.log_format.map(|Word(format)| format);
        let format = pick.shown("log-format", arguments.log.log_format, format);
        let level = file.log_level.map(|Word(level)| level);
        (format, pick.shown("log-level", arguments.log.log_level, level))
    }

    /// Lists the routes among the settings.
    fn describe_routes(&mut self, routes: &[RouteConfig], contents: &[Content]) {
        for (index, (route, content)) in routes.iter().zip(contents).enumerate() {
            let line = self.pick.file.as_ref().and_then(|file| file.route(index, None));
            self.pick.settings.push(describe(route, content, line.as_deref()));
        }
    }
}

/// Whether the bundled counter registers the visits of one of these routes.
fn use_bundled(routes: &[RouteConfig]) -> bool {
    routes.iter().any(|route| route.visits().is_some_and(|visits| visits.counters.is_empty()))
}

/// Settles the settings of `counter`.
///
/// # Errors
/// At the first that does not fit.
pub fn settle_counter(
    arguments: CounterArguments,
    matches: &ArgMatches,
) -> Result<CounterConfig, ConfigError> {
    let mut pick = Pick::new(matches, None);
    let StoreArguments { store, store_shard, data_dir } = arguments.store;
    let store = data_dir.settle_store(store, &mut pick, (None, None));
    let mut store = store.map_err(|error| pick.locate(error))?;
    store.set_shard(store_shard.unwrap_or_else(|| ShardName::of_port(arguments.listen.port())).0);
    let files = usize::try_from(host::open_files()).unwrap_or(usize::MAX);
    Ok(CounterConfig {
        listen: arguments.listen,
        hosts: arguments.counter_hosts.unwrap_or_default(),
        store,
        create: arguments.create,
        driver: arguments.driver,
        log_format: arguments.log.log_format,
        log_level: arguments.log.log_level,
        drain_timeout: arguments.drain_timeout.0,
        clients: internal_client_limits(open_files::of_counter(files)?),
    })
}
