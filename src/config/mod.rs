//! Flags, environment and file become one validated [`Config`], which does not change afterwards.
//!
//! Flags win over `TALLYRING_*` variables, those over the file, and the file over the defaults.

mod access_log;
mod addresses;
pub mod arguments;
mod balance;
mod contents;
mod cores;
mod counters;
mod data_dir;
pub mod environment;
mod error;
mod file;
mod health;
mod limits;
mod locations;
pub mod mistakes;
pub mod moving;
mod open_files;
mod pick;
mod reload;
mod routes;
mod scalar;
mod settle;
pub mod totals;
mod values;

use std::{net::SocketAddr, num::NonZeroU32, path::PathBuf, sync::Arc, time::Duration};

use http::{HeaderValue, StatusCode};
use ipnet::IpNet;

pub use self::{
    arguments::Arguments,
    balance::Balance,
    contents::Content,
    counters::{CounterSpread, show_counters},
    error::ConfigError,
    health::{reachable, settle_health, settle_top},
    limits::{admin_client_limits, internal_client_limits},
    pick::Setting,
    reload::{Renewed, renew},
    settle::{Settled, settle, settle_again, settle_counter},
    totals::{settle_ask, settle_file, settle_store},
    values::Cores,
};
#[cfg(test)]
pub use self::{contents::read_contents, counters::CounterUrls};
use crate::{
    access_log::Format,
    connection::ClientLimits,
    counter::store,
    http::{HeadLimits, hosts::HostList, request::Method},
    log,
    runtime::driver,
    site::{Accept, Share},
    upstream::{Endpoint, UpstreamLimits},
};

/// Routes that a configuration may have.
pub const ROUTES_MAX: usize = 1000;

/// Everything `tallyring serve` needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the site is served.
    pub listen: Vec<SocketAddr>,
    /// Whether other processes may listen there too.
    pub share_port: bool,
    /// The cores of the workers, one each.
    pub cores: Vec<usize>,
    /// Which worker serves a connection.
    pub balance: Balance,
    /// What the workers wait on.
    pub driver: driver::Choice,
    /// What is served.
    pub routes: Vec<RouteConfig>,
    /// What each route serves, as it was read from its files.
    pub contents: Vec<Content>,
    /// The status of a sorry page.
    pub sorry_status: StatusCode,
    /// What counts as registered.
    pub accept: Accept,
    /// Whether calls take traces to the counter, and which share of those that begin here is to be recorded.
    pub traces: Option<Share>,
    /// Where the bundled counter keeps its totals; `None` when no route uses it.
    pub bundled: Option<store::Kind>,
    /// The address of the bundled counter for other programs, if it has one.
    pub counter_listen: Option<SocketAddr>,
    /// The hosts that it answers to there, besides those that every counter answers to.
    pub counter_hosts: HostList,
    /// What gets visits as a counter of its own.
    pub counter_spread: CounterSpread,
    /// Whether the counters are not asked at the start.
    pub skip_counter_check: bool,
    /// Whether the bundled counter begins from zero in an empty file.
    pub create: bool,
    /// The admin listener's address.
    pub admin: Option<SocketAddr>,
    /// The hosts that it answers to, besides those that every admin listener answers to.
    pub admin_hosts: HostList,
    /// Whether a server is not ready while visits are not registered.
    pub ready_needs_counter: bool,
    /// The form of log lines.
    pub log_format: log::Format,
    /// How much is logged.
    pub log_level: log::LogLevel,
    /// The access log, if there is one.
    pub access_log: Option<AccessLogConfig>,
    /// The proxies that are believed when they name a client; with the PROXY protocol, none is all.
    pub trusted_proxies: Arc<[IpNet]>,
    /// All limits and time-outs.
    pub limits: Limits,
}

/// What is logged of requests, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLogConfig {
    /// Where the lines go.
    pub output: AccessLogOutput,
    /// Their form.
    pub format: Format,
    /// One request in so many has a line.
    pub one_in: NonZeroU32,
}

/// Where the lines of the access log go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLogOutput {
    /// To standard output.
    Stdout,
    /// Into a file.
    File(PathBuf),
}

/// Everything `tallyring counter` needs to know.
#[derive(Debug, Clone)]
pub struct CounterConfig {
    /// Where the counter is served.
    pub listen: SocketAddr,
    /// The hosts that it answers to, besides those that every counter answers to.
    pub hosts: HostList,
    /// Where its totals are kept.
    pub store: store::Kind,
    /// Whether it begins from zero in an empty file.
    pub create: bool,
    /// What it waits on.
    pub driver: driver::Choice,
    /// The form of log lines.
    pub log_format: log::Format,
    /// How much is logged.
    pub log_level: log::LogLevel,
    /// Time for calls under way to end after a signal.
    pub drain_timeout: Duration,
    /// What its clients may do.
    pub clients: ClientLimits,
}

/// Everything `tallyring health` needs to know.
#[derive(Debug, Clone)]
pub struct HealthConfig {
    /// The server and the page that are asked for.
    pub target: Endpoint,
    /// The setting that says so.
    pub flag: &'static str,
    /// For the whole answer.
    pub timeout: Duration,
}

/// Everything `tallyring top` needs to know.
#[derive(Debug, Clone)]
pub struct TopConfig {
    /// The figures that are asked for.
    pub target: Endpoint,
    /// For a whole answer.
    pub timeout: Duration,
    /// To print them once, in place of showing them.
    pub once: bool,
}

/// Where totals come from.
#[derive(Debug, Clone)]
pub struct AskConfig {
    /// The counter that is asked, if one can be.
    pub counter: Option<Endpoint>,
    /// More counters, each of which can be asked too.
    pub more: Vec<Endpoint>,
    /// The setting that says where it is.
    pub flag: &'static str,
    /// The file that is read when no counter runs; `None` for a counter that is not bundled.
    pub file: Option<PathBuf>,
    /// The database that has the totals in place of a file.
    pub database: Option<String>,
    /// For the whole answer.
    pub timeout: Duration,
}

/// A path, and what is served there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteConfig {
    /// The path.
    pub path: String,
    /// What its requests get.
    pub kind: RouteKind,
}

/// What a route does with its requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteKind {
    /// Counts them as visits.
    Visits(VisitsConfig),
    /// Serves one page, and does not count them.
    Page(PageConfig),
    /// Serves files, and does not count them.
    Directory(DirectoryConfig),
}

/// A route with one page that is not counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageConfig {
    /// What it serves.
    pub source: PageSource,
    /// Its type, in place of that of the file's extension.
    pub content_type: Option<HeaderValue>,
    /// How long caches may use it without revalidation.
    pub cache: Option<Duration>,
}

/// Where a page comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PageSource {
    /// A file.
    File(PathBuf),
    /// The text itself.
    Text(String),
}

/// A route whose path ends in `/*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryConfig {
    /// Where the files are.
    pub directory: PathBuf,
    /// How long caches may use them without revalidation.
    pub cache: Option<Duration>,
}

/// A route whose requests are visits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VisitsConfig {
    /// The methods that are visits.
    pub methods: Vec<Method>,
    /// Who registers them, each by one of these; none is the bundled counter.
    pub counters: Vec<Endpoint>,
    /// The files of the two pages, where they replace the two texts.
    pub files: PageFiles,
}

impl RouteConfig {
    /// Its visits, if it counts its requests.
    pub fn visits(&self) -> Option<&VisitsConfig> {
        match &self.kind {
            RouteKind::Visits(visits) => Some(visits),
            RouteKind::Page(_) | RouteKind::Directory(_) => None,
        }
    }

    /// Its visits, mutable.
    pub fn visits_mut(&mut self) -> Option<&mut VisitsConfig> {
        match &mut self.kind {
            RouteKind::Visits(visits) => Some(visits),
            RouteKind::Page(_) | RouteKind::Directory(_) => None,
        }
    }
}

/// Files of a route's pages, read at the start and at each reload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageFiles {
    /// Replaces "Welcome to my site!".
    pub welcome: Option<PathBuf>,
    /// Replaces "Error registering your visit".
    pub sorry: Option<PathBuf>,
    /// The type of both, in place of those of their extensions.
    pub content_type: Option<HeaderValue>,
}

/// All limits and time-outs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// For the clients of all workers together: see [`clients_of_each`](Self::clients_of_each).
    pub clients: ClientLimits,
    /// For the calls of each worker to each counter.
    pub upstream: UpstreamLimits,
    /// Visits that one call to a counter may register.
    pub counter_batch_max: usize,
    /// Connections of other programs to the bundled counter.
    pub counter_clients_max: usize,
    /// Time for visits under way to end after a signal.
    pub drain_timeout: Duration,
    /// Bytes of the files of all directories, which are kept in memory.
    pub files_bytes_max: usize,
}

impl Limits {
    /// The limits for the clients of one worker of this many.
    pub fn clients_of_each(&self, workers: usize) -> ClientLimits {
        let connections_max = self.clients.connections_max.div_ceil(workers);
        ClientLimits { connections_max, ..self.clients }
    }

    /// The shortest time-out of a worker's connections to its counters.
    pub fn shortest_call_wait(&self) -> Duration {
        self.upstream.call_timeout.min(self.upstream.idle_timeout)
    }
}

/// Files and subdirectories that all directories of the routes may have together.
pub const FILES_MAX: usize = 10_000;

/// The limits of a response head from a counter.
pub const RESPONSE_HEAD: HeadLimits =
    HeadLimits { head_bytes_max: 16 * 1024, head_fields_max: 100, target_bytes_max: 0 };
/// Content of a response that is read and discarded, so that the connection can be used again.
pub const DRAIN_BYTES_MAX: u64 = 64 * 1024;
