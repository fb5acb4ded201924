//! Flags, environment and file become one validated [`Config`], which is then only read.
//!
//! Flags win over `TALLYRING_*` variables, those over the file, and the file over the defaults.

mod addresses;
pub mod arguments;
mod contents;
pub mod environment;
mod error;
mod file;
mod health;
mod limits;
pub mod mistakes;
mod open_files;
mod pick;
mod places;
mod reload;
mod routes;
mod scalar;
mod settle;
pub mod totals;
mod values;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use http::{HeaderValue, StatusCode};

#[cfg(test)]
pub use self::contents::read_contents;
pub use self::{
    arguments::Arguments,
    contents::Content,
    error::ConfigError,
    health::{reachable, settle_health},
    limits::{admin_client_limits, internal_client_limits},
    pick::Setting,
    reload::{Renewed, renew},
    settle::{Settled, settle, settle_again, settle_counter},
    totals::{settle_ask, settle_file},
    values::Cores,
};
use crate::{
    connection::ClientLimits,
    counter::store,
    http::{HeadLimits, hosts::HostList, request::Method},
    log,
    runtime::driver,
    site::Accept,
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
    /// What the workers wait on.
    pub driver: driver::Choice,
    /// What is served.
    pub routes: Vec<RouteConfig>,
    /// What the files of each route held when they were read.
    pub contents: Vec<Content>,
    /// The status of a sorry page.
    pub sorry_status: StatusCode,
    /// What counts as registered.
    pub accept: Accept,
    /// Where the bundled counter keeps its totals; `None` when no route uses it.
    pub bundled: Option<store::Kind>,
    /// Where others can ask the bundled counter, if anywhere.
    pub counter_listen: Option<SocketAddr>,
    /// The hosts that it answers to there beside those that every counter does.
    pub counter_hosts: HostList,
    /// Whether the counters are not asked at the start.
    pub skip_counter_check: bool,
    /// Whether an empty file of the bundled counter's is begun anew.
    pub create: bool,
    /// The admin listener's address.
    pub admin: Option<SocketAddr>,
    /// The hosts that it answers to beside those that every such listener does.
    pub admin_hosts: HostList,
    /// Whether a server is not ready while visits are not registered.
    pub ready_needs_counter: bool,
    /// The form of log lines.
    pub log_format: log::Format,
    /// How much is logged.
    pub log_level: log::LogLevel,
    /// All maxima and deadlines.
    pub limits: Limits,
}

/// Everything `tallyring counter` needs to know.
#[derive(Debug, Clone)]
pub struct CounterConfig {
    /// Where the counter is served.
    pub listen: SocketAddr,
    /// The hosts that it answers to beside those that every counter does.
    pub hosts: HostList,
    /// Where its totals are kept.
    pub store: store::Kind,
    /// Whether an empty file is begun anew.
    pub create: bool,
    /// What it waits on.
    pub driver: driver::Choice,
    /// The form of log lines.
    pub log_format: log::Format,
    /// How much is logged.
    pub log_level: log::LogLevel,
    /// How long clients may take to leave after a signal.
    pub drain_timeout: Duration,
    /// What its clients may do.
    pub clients: ClientLimits,
}

/// Everything `tallyring health` needs to know.
#[derive(Debug, Clone)]
pub struct HealthConfig {
    /// Who is asked, and for what.
    pub target: Endpoint,
    /// For the whole answer.
    pub timeout: Duration,
}

/// Where totals come from.
#[derive(Debug, Clone)]
pub struct AskConfig {
    /// The counter that is asked, if one can be.
    pub counter: Option<Endpoint>,
    /// The file that is read when nobody answers there; none where the counter is somebody else's.
    pub file: Option<PathBuf>,
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

/// What the requests of a route get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteKind {
    /// They are visits.
    Visits(VisitsConfig),
    /// One content, which is not counted.
    Page(PageConfig),
    /// Files, which are not counted.
    Directory(DirectoryConfig),
}

/// A route that is not counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageConfig {
    /// What it serves.
    pub source: PageSource,
    /// Its type, in place of that of the file's extension.
    pub content_type: Option<HeaderValue>,
    /// How long caches may use it without asking again.
    pub cache: Option<Duration>,
}

/// Where a content comes from.
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
    /// How long caches may use them without asking again.
    pub cache: Option<Duration>,
}

/// A route whose requests are visits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VisitsConfig {
    /// The methods that are visits.
    pub methods: Vec<Method>,
    /// Who registers them; `None` is the bundled counter.
    pub counter: Option<Endpoint>,
    /// The files of the two pages, where they are not the two texts.
    pub files: PageFiles,
}

impl RouteConfig {
    /// Its visits, if its requests are any.
    pub fn visits(&self) -> Option<&VisitsConfig> {
        match &self.kind {
            RouteKind::Visits(visits) => Some(visits),
            RouteKind::Page(_) | RouteKind::Directory(_) => None,
        }
    }

    /// Its visits, to be changed.
    pub fn visits_mut(&mut self) -> Option<&mut VisitsConfig> {
        match &mut self.kind {
            RouteKind::Visits(visits) => Some(visits),
            RouteKind::Page(_) | RouteKind::Directory(_) => None,
        }
    }
}

/// Files of a route's pages, read at the start and again with all settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageFiles {
    /// In place of "Welcome to my site!".
    pub welcome: Option<PathBuf>,
    /// In place of "Error registering your visit".
    pub sorry: Option<PathBuf>,
    /// The type of both, where their extensions are not to give it.
    pub content_type: Option<HeaderValue>,
}

/// Every maximum and every deadline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Of the clients of all workers together: see [`clients_of_each`](Self::clients_of_each).
    pub clients: ClientLimits,
    /// Of each worker's calls to each counter.
    pub upstream: UpstreamLimits,
    /// Connections of others than our own workers to the bundled counter.
    pub counter_clients_max: usize,
    /// How long visits under way may take to end after a signal.
    pub drain_timeout: Duration,
    /// The files of all directories, which are kept in memory.
    pub files_bytes_max: usize,
}

impl Limits {
    /// Of the clients of each of so many workers.
    pub fn clients_of_each(&self, workers: usize) -> ClientLimits {
        let connections_max = self.clients.connections_max.div_ceil(workers);
        ClientLimits { connections_max, ..self.clients }
    }

    /// The shortest deadline of a worker's calls to its counters.
    pub fn shortest_call_wait(&self) -> Duration {
        self.upstream.call_timeout.min(self.upstream.idle_timeout)
    }
}

/// Files, and directories that they lie in, that all directories of the routes may have.
pub const FILES_MAX: usize = 10_000;

/// What a response head from a counter may have.
pub const RESPONSE_HEAD: HeadLimits =
    HeadLimits { head_bytes_max: 16 * 1024, head_fields_max: 100, target_bytes_max: 0 };
/// Content of a response that is read and discarded to keep the connection.
pub const DRAIN_BYTES_MAX: u64 = 64 * 1024;
