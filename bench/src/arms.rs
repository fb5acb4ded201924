//! The programs that are compared, and how each is started: with the same routes, the same counter and the same cores.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tallyring_bench::{HEAVY_BYTES, floor::Strategy};

use crate::process::Process;

/// A program that is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arm {
    /// A bare io_uring loop: the least that an exchange costs on this kernel
    Floor,
    /// The same loop, which writes the calls of a turn at once and waits for no answer
    FloorPipelined,
    /// The same loop, which registers all visits that arrived during a call by the next one
    FloorBatched,
    /// tallyring on io_uring
    Tallyring,
    /// tallyring on io_uring, with up to 1,000 calls on a connection to the counter
    TallyringPipelined,
    /// tallyring on io_uring, whose calls register all visits that wait
    TallyringBatched,
    /// tallyring on epoll
    TallyringEpoll,
    /// monoio-http's own decoder and encoder on one pinned monoio runtime for each core
    MonoioHttp,
    /// hyper on one pinned single-threaded tokio runtime for each core
    TokioPerCore,
    /// hyper on tokio's work-stealing scheduler
    Hyper,
    /// axum and reqwest, tuned: a pinned runtime and a client for each core, another allocator
    AxumTuned,
    /// axum and one shared reqwest client on tokio's work-stealing scheduler, as one usually writes it
    Axum,
    /// axum and a new reqwest client for each visit
    Seed,
    /// haproxy as a proxy to the counter
    Haproxy,
    /// nginx as a proxy to the counter
    Nginx,
}

/// All arms, in the order of the tables.
pub const ALL: [Arm; 15] = [
    Arm::Floor,
    Arm::FloorPipelined,
    Arm::FloorBatched,
    Arm::Tallyring,
    Arm::TallyringPipelined,
    Arm::TallyringBatched,
    Arm::TallyringEpoll,
    Arm::MonoioHttp,
    Arm::TokioPerCore,
    Arm::Hyper,
    Arm::AxumTuned,
    Arm::Axum,
    Arm::Seed,
    Arm::Haproxy,
    Arm::Nginx,
];

/// The most connections to the counter, for arms that have such a setting.
const COUNTER_CONNECTIONS_MAX: usize = 8192;
/// Calls on a connection to the counter, of the arm that has several.
const PIPELINE_MAX: usize = 1000;

impl Arm {
    /// Its name on the command line and in the results.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// Whether it is installed on this machine.
    pub fn is_installed(self) -> bool {
        match self {
            Self::Haproxy | Self::Nginx => Command::new(self.name()).arg("-v").output().is_ok(),
            _ => true,
        }
    }

    /// Whether it serves the heavy page.
    pub fn has_heavy_page(self) -> bool {
        !self.is_floor() && !matches!(self, Self::Seed | Self::Haproxy | Self::Nginx)
    }

    /// Whether it uses more than one core.
    pub fn scales(self) -> bool {
        !self.is_floor()
    }

    /// Whether each visit has a call of its own.
    pub fn has_call_for_each_visit(self) -> bool {
        !matches!(self, Self::FloorBatched | Self::TallyringBatched)
    }

    /// Whether it is a bare loop.
    pub fn is_floor(self) -> bool {
        matches!(self, Self::Floor | Self::FloorPipelined | Self::FloorBatched)
    }
}

/// What an arm is started with.
pub struct Setting<'a> {
    /// Where the built programs are.
    pub programs: &'a Path,
    /// For files that an arm needs.
    pub scratch: &'a Path,
    /// The cores of the server.
    pub cores: &'a [usize],
    /// Where it serves.
    pub site: SocketAddr,
    /// Where its counter is.
    pub counter: SocketAddr,
}

impl Setting<'_> {
    /// Starts an arm, and waits until it accepts connections.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(&self, arm: Arm) -> io::Result<Process> {
        let cores = self.cores;
        let url = format!("http://{}/counter", self.counter);
        let site = self.site.to_string();
        let own = |name: &str| self.programs.join(name);
        let fail = |error| io::Error::other(format!("{}: {error}", arm.name()));
        let started = match arm {
            Arm::Floor => self.floor(Strategy::Exchange),
            Arm::FloorPipelined => self.floor(Strategy::Pipelined),
            Arm::FloorBatched => self.floor(Strategy::Batched),
            Arm::Tallyring => self.tallyring("io_uring", "", ""),
            Arm::TallyringPipelined => {
                let pipeline = format!("counter-pipeline = {PIPELINE_MAX}\n");
                self.tallyring("io_uring", "", &pipeline)
            }
            Arm::TallyringBatched => self.tallyring("io_uring", "?by={n}", ""),
            Arm::TallyringEpoll => self.tallyring("epoll", "", ""),
            Arm::MonoioHttp
            | Arm::TokioPerCore
            | Arm::Hyper
            | Arm::AxumTuned
            | Arm::Axum
            | Arm::Seed => Process::start(cores, &own(&arm.name()), &[site, url]),
            Arm::Haproxy => {
                let file = self.write("haproxy.cfg", &self.haproxy())?;
                Process::start(cores, Path::new("haproxy"), &[Path::new("-f"), &file])
            }
            Arm::Nginx => {
                let file = self.write("nginx.conf", &self.nginx())?;
                let prefix = self.scratch;
                let arguments = [Path::new("-p"), prefix, Path::new("-c"), &file];
                Process::start(cores, Path::new("nginx"), &arguments)
            }
        };
        let mut process = started.map_err(fail)?;
        process.wait_for(self.site).map_err(fail)?;
        Ok(process)
    }

    fn floor(&self, strategy: Strategy) -> io::Result<Process> {
        let strategy = strategy.to_possible_value().map(|value| value.get_name().to_owned());
        let arguments =
            [self.site.to_string(), self.counter.to_string(), strategy.unwrap_or_default()];
        Process::start(self.cores, &self.programs.join("floor"), &arguments)
    }

    /// Starts tallyring with this `--balance`, and waits until it accepts connections.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_balanced(&self, balance: &str) -> io::Result<Process> {
        let setting = format!("balance = \"{balance}\"\n");
        let mut process = self.tallyring("io_uring", "", &setting)?;
        process.wait_for(self.site)?;
        Ok(process)
    }

    /// `more` are settings in lines of their own.
    fn tallyring(&self, driver: &str, query: &str, more: &str) -> io::Result<Process> {
        let page = self.scratch.join("heavy.txt");
        if !page.exists() {
            fs::write(&page, vec![b'x'; HEAVY_BYTES])?;
        }
        let url = format!("http://{}/counter{query}", self.counter);
        let config = format!(
            "listen = [\"{}\"]\ncounter = \"{url}\"\ndriver = \"{driver}\"\nadmin = \"off\"\nskip-counter-check = true\n\
             counter-connections-max = {COUNTER_CONNECTIONS_MAX}\n{more}\
             [[route]]\npath = \"/\"\n[[route]]\npath = \"/heavy\"\nwelcome = \"{}\"\n",
            self.site,
            page.display()
        );
        let file = self.write("tallyring.toml", &config)?;
        let cores = list(self.cores);
        let arguments = [Path::new("--config"), &file, Path::new("--cores"), Path::new(&cores)];
        Process::start(self.cores, &self.programs.join("tallyring"), &arguments)
    }

    fn haproxy(&self) -> String {
        format!(
            "global\n  nbthread {}\n  maxconn 12000\n  no strict-limits\n\
             defaults\n  mode http\n  timeout connect 60s\n  timeout client 60s\n  timeout server 60s\n\
             frontend site\n  bind {}\n  http-request set-method POST\n  http-request set-path /counter\n  \
             default_backend counter\n\
             backend counter\n  http-reuse always\n  server counter {}\n",
            self.cores.len(),
            self.site,
            self.counter
        )
    }

    fn nginx(&self) -> String {
        format!(
            "daemon off;\nworker_processes {};\nworker_cpu_affinity auto;\npid nginx.pid;\n\
             error_log stderr crit;\nworker_rlimit_nofile 65536;\n\
             events {{ worker_connections 20000; }}\n\
             http {{\n  access_log off;\n  keepalive_requests 1000000000;\n  \
             upstream counter {{ server {}; keepalive 1024; keepalive_requests 1000000000; }}\n  \
             server {{\n    listen {} reuseport backlog=4096;\n    location / {{\n      \
             proxy_pass http://counter/counter;\n      proxy_method POST;\n      \
             proxy_http_version 1.1;\n      proxy_set_header Connection \"\";\n      \
             proxy_set_header Content-Length 0;\n      proxy_pass_request_body off;\n    }}\n  }}\n}}\n",
            self.cores.len(),
            self.counter,
            self.site
        )
    }

    fn write(&self, name: &str, text: &str) -> io::Result<PathBuf> {
        let path = self.scratch.join(name);
        fs::write(&path, text)?;
        Ok(path)
    }
}

/// Cores in the form of `--cores`.
pub fn list(cores: &[usize]) -> String {
    cores.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}
