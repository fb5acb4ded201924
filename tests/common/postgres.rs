//! A PostgreSQL that a test starts for itself, in a directory and on a port of its own.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
};

use rustix::process::{Pid, geteuid, kill_process};
use socket2::Socket;

use super::{PATIENCE, Signal, reserve, tell_not_run};

/// Where the programs of the newest PostgreSQL are, or `None` where there is none: then `test` does not run, which is
/// said, and is a failure where `TEST_ENGINES` is `required`.
pub fn programs(test: &str) -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let number = |path: &PathBuf| path.parent()?.file_name()?.to_str()?.parse::<u32>().ok();
    let found = versions.map(|version| version.path().join("bin")).filter(|bin| {
        ["initdb", "postgres", "pg_basebackup"].iter().all(|name| bin.join(name).exists())
    });
    if let Some(found) = found.max_by_key(number) {
        return Some(found);
    }
    tell_not_run(test, "PostgreSQL: apt-get install postgresql");
    None
}

/// A database server, which ends with the test.
pub struct Database {
    programs: PathBuf,
    directory: tempfile::TempDir,
    server: Option<Child>,
    pub address: SocketAddr,
    /// Keeps the port while no server runs.
    _port: Socket,
}

impl Database {
    /// One with a database `site` of the user `me`, who needs no password. `settings` are lines of postgresql.conf.
    pub fn start(programs: &Path, settings: &str) -> Self {
        let mut database = Self::prepare(programs);
        let data = database.data();
        let initdb = ["-D", &data, "-U", "me", "-A", "trust", "--no-sync", "--no-instructions"];
        database.run("initdb", &initdb);
        database.set(settings);
        database.restart();
        database.sql_of("postgres", "CREATE DATABASE site");
        database
    }

    /// A copy of `primary` that follows it; `name` is what it calls itself.
    pub fn follow(primary: &Self, name: &str) -> Self {
        let mut standby = Self::prepare(&primary.programs);
        let port = primary.address.port();
        let source = format!("host=127.0.0.1 port={port} user=me application_name={name}");
        let data = standby.data();
        standby
            .run("pg_basebackup", &["-D", &data, "-R", "--no-sync", "-c", "fast", "-d", &source]);
        standby.restart();
        standby
    }

    fn prepare(programs: &Path) -> Self {
        let directory = tempfile::tempdir().unwrap();
        if geteuid().is_root() {
            // The server refuses to run as root.
            let owned = Command::new("chown").arg("postgres:").arg(directory.path()).status();
            assert!(owned.unwrap().success());
        }
        let (port, address) = reserve();
        let programs = programs.to_owned();
        Self { programs, directory, server: None, address, _port: port }
    }

    pub fn data(&self) -> String {
        self.directory.path().join("data").to_str().unwrap().to_owned()
    }

    /// One of its programs, as a user who is not root, and no longer than this thread lives.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        if geteuid().is_root() {
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
        }
        command.args(["--pdeathsig", "KILL"]).arg(self.programs.join(program));
        command.env_clear().env("LC_ALL", "C").stdin(Stdio::null()).current_dir("/");
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let output = self.command(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program}: {output:?}");
    }

    /// Adds lines to postgresql.conf, for the next start.
    pub fn set(&self, settings: &str) {
        self.write("postgresql.conf", settings);
    }

    /// Adds lines to one of its files.
    pub fn write(&self, file: &str, lines: &str) {
        let path = Path::new(&self.data()).join(file);
        let mut file = fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        writeln!(file, "{lines}").unwrap();
    }

    /// Starts the server, and waits until it takes connections.
    pub fn restart(&mut self) {
        assert!(self.server.is_none());
        let mut command = self.command("postgres");
        command.args(["-D", &self.data(), "-p", &self.address.port().to_string()]);
        command.args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]);
        command.args(["-c", "logging_collector=off", "-c", "log_destination=stderr"]);
        let mut server = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let (ready, wait) = mpsc::channel();
        let log = BufReader::new(server.stderr.take().unwrap());
        thread::spawn(move || {
            let mut said = String::new();
            for line in log.lines().map_while(Result::ok) {
                if line.contains("ready to accept") {
                    let _ = ready.send(Ok(()));
                }
                said = format!("{said}{line}\n");
            }
            let _ = ready.send(Err(said));
        });
        self.server = Some(server);
        wait.recv_timeout(PATIENCE).unwrap().unwrap();
    }

    /// Kills all its processes at once, as a power loss does.
    pub fn kill(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        let parent = server.id();
        // Stopped, it starts no further one.
        signal(parent, Signal::STOP);
        let children = children_of(parent);
        for process in children.iter().chain([&parent]) {
            signal(*process, Signal::KILL);
        }
        server.wait().unwrap();
        // They are other processes' children now: their memory is free when they are gone.
        for child in children {
            while Path::new(&format!("/proc/{child}")).exists() {
                thread::yield_now();
            }
        }
    }

    /// Makes a standby a primary.
    pub fn promote(&self) {
        assert_eq!(self.sql_of("postgres", "SELECT pg_promote()"), "t");
    }

    /// What psql prints for a statement in the database `site`.
    #[track_caller]
    pub fn sql(&self, text: &str) -> String {
        self.sql_of("site", text)
    }

    #[track_caller]
    pub fn sql_of(&self, database: &str, text: &str) -> String {
        let port = self.address.port().to_string();
        let mut psql = self.command("psql");
        psql.args(["-h", "127.0.0.1", "-p", &port, "-U", "me", "-d", database, "-AtXqc", text]);
        let output = psql.output().unwrap();
        assert!(output.status.success(), "{text}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// The total that its tables hold.
    #[track_caller]
    pub fn total(&self) -> u64 {
        let sum = "SELECT coalesce(sum(n), 0) FROM tallyring_totals WHERE name = ''";
        self.sql(sum).parse().unwrap()
    }

    pub fn url(&self) -> String {
        url(self.address)
    }
}

/// The database `site` that is reached at this address.
pub fn url(address: SocketAddr) -> String {
    format!("postgres://me@{address}/site")
}

impl Drop for Database {
    fn drop(&mut self) {
        self.kill();
    }
}

fn signal(process: u32, signal: Signal) {
    let process = Pid::from_raw(i32::try_from(process).unwrap()).unwrap();
    // Fails only when it has ended.
    let _ = kill_process(process, signal);
}

/// The processes that a process has started, proc_pid_task_children(5).
fn children_of(process: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children"));
    children.unwrap().split_ascii_whitespace().map(|child| child.parse().unwrap()).collect()
}
