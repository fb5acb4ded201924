//! The command line: every flag, its environment variable, its default and its help.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, builder::styling::Styles};

use super::{
    access_log::AccessLogArguments,
    balance::Balance,
    counters::{CounterSpread, CounterUrls},
    data_dir::StoreArguments,
    file::ConfigFileArguments,
    limits::LimitArguments,
    moving::MoveCommand,
    totals::{BackupArguments, RestoreArguments, TotalArguments},
    values::{Cores, Number, PageStatus, Period, address},
};
use crate::{
    http::hosts::HostList,
    log,
    runtime::driver,
    site::{Accept, Share},
    upstream::Endpoint,
};

const EXAMPLES: &str = "\
Examples:
  tallyring                                     serve on port 3000 with the bundled counter
  tallyring --counter http://10.0.0.5:3001/counter --cores 0-3
  tallyring counter --store redb:/var/lib/tallyring/counter.redb
  tallyring total                               how many visits are counted
  tallyring doctor                              what this machine gives and lacks

Every flag has an environment variable (shown beside it) and a key of the same name in the file of
--config. Flags win over variables, variables over the file.";

/// What `--version` says: the commit, the build and the drivers.
const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\ncommit   ",
    env!("BUILT_COMMIT"),
    "\nbuild    ",
    env!("BUILT_PROFILE"),
    " for ",
    env!("BUILT_TARGET"),
    " by ",
    env!("BUILT_COMPILER"),
    "\ndrivers  io_uring (Linux 5.7 or newer), epoll; tallyring doctor tells what this machine gives",
);

/// The program.
#[derive(Debug, Parser)]
#[command(
    name = "tallyring",
    version,
    long_version = VERSION,
    about = "An io_uring web server, one pinned worker per core, that registers every visit with a \
             counter",
    after_help = EXAMPLES,
    args_conflicts_with_subcommands = true,
    styles = Styles::plain(),
    max_term_width = 100
)]
pub struct Arguments {
    /// What to do; without it, to serve.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The flags of `serve`.
    #[command(flatten)]
    pub serve: ServeArguments,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the site (the default)
    Serve(Box<ServeArguments>),
    /// Serve the bundled counter alone; or export, import and migrate its totals
    ///
    /// Without one of its commands it serves.
    Counter(CounterArguments),
    /// Tell what this machine gives and lacks, with a remedy for each shortfall
    ///
    /// It reads the same settings as the server, and asks each counter once, by a GET, which registers no visit.
    /// Exits with 0 when the server would run on io_uring, 1 when only on epoll, 2 when not at all or when the settings
    /// are wrong.
    Doctor(Box<ServeArguments>),
    /// Ask a running server whether it is ready
    ///
    /// Exits with 0 when it is and with 1 when it is not or cannot be asked. It asks the admin listener,
    /// which it finds by the same settings as the server.
    Health(HealthArguments),
    /// Show a running server live in the terminal: its workers, counters and visits
    ///
    /// It asks the admin listener, which it finds by the same settings as the server. Where standard output is no
    /// terminal it prints the figures once, as with --once. Exits with 1 when the server cannot be asked.
    Top(TopArguments),
    /// Print a counter's total: of the one that runs, or of its file when none does
    ///
    /// It asks where the server's settings say that the counter listens. Exits with 1 when there is neither
    /// a counter nor a file.
    Total(TotalArguments),
    /// Copy all totals of a counter, which may run, into a file that `restore` takes
    ///
    /// It asks as `total` does. The copy is consistent, and on disk when the command ends.
    Backup(BackupArguments),
    /// Put a backup in place of the counter's file, of which no counter may be running
    ///
    /// The backup is checked first. The file that was there is kept beside it, as
    /// counter.redb.before-restore.
    Restore(RestoreArguments),
    /// Validate the settings and print each with where it came from
    Check(Box<ServeArguments>),
}

/// The flags of `serve` and `check`.
#[derive(Debug, Clone, Args)]
#[allow(missing_docs)]
pub struct ServeArguments {
    /// Address to serve on, or a port alone, like 3000, on all IPv4 addresses; may be repeated
    #[arg(
        long,
        value_parser = listen_address,
        env = "TALLYRING_LISTEN",
        value_name = "ADDRESS",
        value_delimiter = ',',
        default_value = "0.0.0.0:3000"
    )]
    pub listen: Vec<SocketAddr>,
    /// Listen beside other processes that listen on the same address
    #[arg(long, env = "TALLYRING_SHARE_PORT", value_parser = yes_or_no)]
    pub share_port: bool,
    /// Expect a PROXY header (version 1 or 2), in which a load balancer names its client, at the beginning of each
    /// connection to the site; close others
    #[arg(long, env = "TALLYRING_PROXY_PROTOCOL", value_parser = yes_or_no)]
    pub proxy_protocol: bool,
    #[command(flatten)]
    pub endpoint: CounterEndpointArguments,
    /// What gets visits as a counter of its own, where --counter is a name: the name, whose addresses are tried
    /// in turn, or each of its addresses (at most 16)
    #[arg(long, env = "TALLYRING_COUNTER_SPREAD", value_name = "WHAT", default_value = "name")]
    pub counter_spread: CounterSpread,
    /// Hosts that the bundled counter answers to beside localhost and its own address, like
    /// counter,counter.internal
    #[arg(long, env = "TALLYRING_COUNTER_HOSTS", value_name = "LIST")]
    pub counter_hosts: Option<HostList>,
    /// Do not ask each counter once at the start (by a GET, which registers no visit); for counters that count
    /// every request
    #[arg(long, env = "TALLYRING_SKIP_COUNTER_CHECK", value_parser = yes_or_no)]
    pub skip_counter_check: bool,
    /// Number of workers [default: one for each CPU that this process may run on]
    #[arg(long, env = "TALLYRING_WORKERS", value_name = "NUMBER")]
    pub workers: Option<Workers>,
    /// Cores to pin a worker to each, like 0,2-5, in place of --workers
    #[arg(long, env = "TALLYRING_CORES", value_name = "LIST")]
    pub cores: Option<Cores>,
    /// Which worker serves a connection: the one that the kernel chose by a hash, or, where another has clearly less
    /// to do, that one
    #[arg(long, env = "TALLYRING_BALANCE", value_name = "HOW", default_value = "kernel")]
    pub balance: Balance,
    /// What the workers wait on
    #[arg(long, env = "TALLYRING_DRIVER", value_name = "DRIVER", default_value = "auto")]
    pub driver: driver::Choice,
    /// File to serve in place of "Welcome to my site!"; its extension gives its type, and none is
    /// plain text
    #[arg(long, env = "TALLYRING_WELCOME", value_name = "FILE")]
    pub welcome: Option<PathBuf>,
    /// File to serve in place of "Error registering your visit"
    #[arg(long, env = "TALLYRING_SORRY", value_name = "FILE")]
    pub sorry: Option<PathBuf>,
    /// Status of the page that a visitor gets whose visit was not registered; 503, for example, for checks
    /// that look at the status only
    #[arg(long, env = "TALLYRING_SORRY_STATUS", value_name = "CODE", default_value = "200")]
    pub sorry_status: PageStatus,
    /// Answers of the counter that make a visit registered: those with a 2xx status, or any
    #[arg(long, env = "TALLYRING_ACCEPT", value_name = "ANSWERS", default_value = "2xx")]
    pub accept: Accept,
    /// Send W3C Trace Context to the counter (traceparent, tracestate): of the client's trace, or of one that
    /// begins with the visit
    #[arg(long, env = "TALLYRING_TRACE_CONTEXT", value_parser = yes_or_no)]
    pub trace_context: bool,
    /// Share of the traces that begin with a visit which are marked to be recorded, like 1%, 0.01 or 1/100
    #[arg(long, env = "TALLYRING_TRACE_SAMPLE", value_name = "SHARE", default_value = "1%")]
    pub trace_sample: Share,
    #[command(flatten)]
    pub store: StoreArguments,
    /// Begin from zero where the counter's file is empty; without this, a start refuses it
    #[arg(long, env = "TALLYRING_CREATE", value_parser = yes_or_no)]
    pub create: bool,
    #[command(flatten)]
    pub file: ConfigFileArguments,
    /// Address of the admin listener (a live page at /, /livez, /readyz, /metrics, /stats), or off
    #[arg(
        long,
        env = "TALLYRING_ADMIN",
        value_name = "ADDRESS|off",
        default_value = "127.0.0.1:9300"
    )]
    pub admin: AdminAddress,
    /// Hosts that the admin listener answers to beside localhost and its own address, like
    /// site,metrics.internal
    #[arg(long, env = "TALLYRING_ADMIN_HOSTS", value_name = "LIST")]
    pub admin_hosts: Option<HostList>,
    /// Tell who asks /readyz that the server is not ready while visits are not registered
    #[arg(long, env = "TALLYRING_READY_NEEDS_COUNTER", value_parser = yes_or_no)]
    pub ready_needs_counter: bool,
    #[command(flatten)]
    pub log: LogArguments,
    #[command(flatten)]
    pub access_log: AccessLogArguments,
    #[command(flatten)]
    pub limits: LimitArguments,
}

/// The counter of the visits, for the server and for the commands that ask it.
#[derive(Debug, Clone, Args)]
#[allow(missing_docs)]
pub struct CounterEndpointArguments {
    /// Counter that registers the visits, like http://127.0.0.1:3001/counter; may be repeated, and each visit
    /// goes to one of them. Where its path or query has an n in braces, one call registers several visits, and
    /// their number stands there [default: the bundled counter]
    #[arg(long, env = "TALLYRING_COUNTER", hide_env_values = true, value_name = "URL")]
    pub counter: Vec<CounterUrls>,
    /// Address of the bundled counter for other programs, or off: then only the server itself uses
    /// it, and tallyring total reads its file while it is stopped
    #[arg(
        long,
        env = "TALLYRING_COUNTER_LISTEN",
        value_name = "ADDRESS|off",
        default_value = "127.0.0.1:3001"
    )]
    pub counter_listen: CounterAddress,
}

impl CounterEndpointArguments {
    /// The URLs of all flags, or of the variable.
    pub(super) fn urls(&self) -> Vec<Endpoint> {
        self.counter.iter().flat_map(|CounterUrls(urls)| urls).cloned().collect()
    }
}

/// What is logged, and how.
#[derive(Debug, Clone, Args)]
#[allow(missing_docs)]
pub struct LogArguments {
    /// Form of the log lines on standard error
    #[arg(long, env = "TALLYRING_LOG_FORMAT", value_name = "FORMAT", default_value = "auto")]
    pub log_format: log::Format,
    /// How much is logged: lines of this level, and more important ones
    #[arg(long, env = "TALLYRING_LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    pub log_level: log::LogLevel,
}

/// The flags of `counter`, or what it does with its totals while it does not run.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
#[allow(missing_docs)]
pub struct CounterArguments {
    #[command(subcommand)]
    pub command: Option<Box<MoveCommand>>,
    /// Address to serve on, or a port alone, like 3001, on 127.0.0.1
    #[arg(
        long,
        value_parser = counter_address,
        env = "TALLYRING_COUNTER_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:3001"
    )]
    pub listen: SocketAddr,
    /// Hosts that it answers to beside localhost and its own address, like counter,counter.internal
    #[arg(long, env = "TALLYRING_COUNTER_HOSTS", value_name = "LIST")]
    pub counter_hosts: Option<HostList>,
    #[command(flatten)]
    pub store: StoreArguments,
    /// Begin from zero where the counter's file is empty; without this, a start refuses it
    #[arg(long, env = "TALLYRING_CREATE", value_parser = yes_or_no)]
    pub create: bool,
    /// What it waits on
    #[arg(long, env = "TALLYRING_DRIVER", value_name = "DRIVER", default_value = "auto")]
    pub driver: driver::Choice,
    #[command(flatten)]
    pub log: LogArguments,
    /// Time for calls under way to end after SIGTERM or SIGINT
    #[arg(long, env = "TALLYRING_DRAIN_TIMEOUT", value_name = "TIME", default_value = "30s")]
    pub drain_timeout: Period,
}

/// The flags of `health`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct HealthArguments {
    /// Address of the admin listener of the server that is asked
    #[arg(
        long,
        env = "TALLYRING_ADMIN",
        value_name = "ADDRESS|off",
        default_value = "127.0.0.1:9300"
    )]
    pub admin: AdminAddress,
    /// Page to ask for in place of the admin listener's /readyz, like http://127.0.0.1:3001/counters of
    /// a counter; any 2xx answer is healthy
    #[arg(long, env = "TALLYRING_HEALTH_URL", hide_env_values = true, value_name = "URL")]
    pub url: Option<Endpoint>,
    #[command(flatten)]
    pub file: ConfigFileArguments,
    /// Time for the whole answer
    #[arg(long, env = "TALLYRING_HEALTH_TIMEOUT", value_name = "TIME", default_value = "2s")]
    pub timeout: Period,
}

/// The flags of `top`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct TopArguments {
    /// Address of the admin listener of the server that is shown
    #[arg(
        long,
        env = "TALLYRING_ADMIN",
        value_name = "ADDRESS|off",
        default_value = "127.0.0.1:9300"
    )]
    pub admin: AdminAddress,
    #[command(flatten)]
    pub file: ConfigFileArguments,
    /// Time for a whole answer
    #[arg(long, value_name = "TIME", default_value = "2s")]
    pub timeout: Period,
    /// Print the figures once, as text
    #[arg(long)]
    pub once: bool,
}

/// Workers that may be asked for.
pub const WORKERS_MAX: usize = 1024;

/// A number of workers.
pub type Workers = Number<1, WORKERS_MAX>;

/// An address of the site.
pub(super) fn listen_address(text: &str) -> Result<SocketAddr, String> {
    address(text, SocketAddr::from(([0, 0, 0, 0], 3000)))
}

/// An address that `counter` listens on: a port alone is on loopback.
fn counter_address(text: &str) -> Result<SocketAddr, String> {
    match text {
        "off" => Err(String::from(
            "a counter by itself has to listen, only serve takes off; give an address like \
             127.0.0.1:3001",
        )),
        _ => address(text, SocketAddr::from(([127, 0, 0, 1], 3001))),
    }
}

/// The value of a variable for a yes-or-no flag.
fn yes_or_no(text: &str) -> Result<bool, &'static str> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err("it must be true, 1, yes or on, or else false, 0, no or off"),
    }
}

/// An address or `off`. A port alone is on loopback; `PORT` is the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressOrOff<const PORT: u16>(pub Option<SocketAddr>);

/// The address of the admin listener.
pub type AdminAddress = AddressOrOff<9300>;

/// The address of the bundled counter.
pub type CounterAddress = AddressOrOff<3001>;

impl<const PORT: u16> std::str::FromStr for AddressOrOff<PORT> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Self(None)),
            _ => address(text, SocketAddr::from(([127, 0, 0, 1], PORT)))
                .map(|address| Self(Some(address)))
                .map_err(|problem| match problem.starts_with("it must be") {
                    true => {
                        format!("it must be an address like 127.0.0.1:{PORT}, a port, or off")
                    }
                    false => problem,
                }),
        }
    }
}

impl<const PORT: u16> std::fmt::Display for AddressOrOff<PORT> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(address) => address.fmt(f),
            None => f.write_str("off"),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{ArgAction, CommandFactory};

    use super::*;

    #[test]
    fn no_help_has_what_clap_takes_for_the_end_of_a_line() {
        let command = Arguments::command();
        let commands = std::iter::once(&command).chain(command.get_subcommands());
        for argument in commands.flat_map(clap::Command::get_arguments) {
            let help = argument.get_long_help().or(argument.get_help());
            let help = help.map(ToString::to_string).unwrap_or_default();
            assert!(!help.contains("{n}"), "{}: {help}", argument.get_id());
        }
    }

    #[test]
    fn every_variable_of_a_yes_or_no_flag_takes_the_same_words() {
        let command = Arguments::command();
        let commands = std::iter::once(&command).chain(command.get_subcommands());
        let mut seen = 0;
        for argument in commands.flat_map(clap::Command::get_arguments) {
            let is_yes_or_no = matches!(argument.get_action(), ArgAction::SetTrue);
            if is_yes_or_no && argument.get_env().is_some() {
                seen += 1;
                let parser = format!("{:?}", argument.get_value_parser());
                assert_ne!(parser, "ValueParser::bool", "{}", argument.get_id());
            }
        }
        assert!(seen >= 4, "{seen}");
    }
}
