//! Flags, environment and file become one validated [`Config`], which is then only read.
//!
//! Flags win over `TALLYRING_*` variables, those over the file, and the file over the defaults.

mod addresses;
pub mod arguments;
mod file;
mod health;
mod limits;
mod open_files;
mod pages;
mod pick;
mod routes;
mod settle;
mod values;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use http::StatusCode;

pub use self::{
    arguments::Arguments,
    health::settle_health,
    limits::{admin_clients, counter_clients},
    pages::read_pages,
    settle::{ConfigError, Settled, settle, settle_counter},
    values::Cores,
};
use crate::{
    connection::ClientLimits,
    counter::store,
    driver,
    http::{HeadLimits, hosts::HostList, request::Method},
    observe::log,
    site::{Accept, Pages},
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
    /// The status of a sorry page.
    pub sorry_status: StatusCode,
    /// What counts as registered.
    pub accept: Accept,
    /// Where the bundled counter keeps its totals; `None` when no route uses it.
    pub bundled: Option<store::Kind>,
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

/// A path whose requests are visits.
#[derive(Debug, Clone)]
pub struct RouteConfig {
    /// The path.
    pub path: String,
    /// The methods that are visits.
    pub methods: Vec<Method>,
    /// Who registers them; `None` is the bundled counter.
    pub counter: Option<Endpoint>,
    /// The files of the two pages, where they are not the two texts.
    pub files: PageFiles,
    /// What the files held at the start.
    pub pages: Pages,
}

/// Files of a route's pages, read at the start and again on SIGHUP.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageFiles {
    /// In place of "Welcome to my site!".
    pub welcome: Option<PathBuf>,
    /// In place of "Error registering your visit".
    pub sorry: Option<PathBuf>,
}

/// Every maximum and every deadline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Of each worker's clients.
    pub clients: ClientLimits,
    /// Of each worker's calls to each counter.
    pub upstream: UpstreamLimits,
    /// How long visits under way may take to end after a signal.
    pub drain_timeout: Duration,
}

/// What a response head from a counter may have.
pub const RESPONSE_HEAD: HeadLimits =
    HeadLimits { head_bytes_max: 16 * 1024, head_fields_max: 100, target_bytes_max: 0 };
/// Content of a response that is read and discarded to keep the connection.
pub const DRAIN_BYTES_MAX: u64 = 64 * 1024;
