//! Databases that the benchmark starts for itself: in a directory of their own, on loopback, with fsync, ended with it.

use std::{
    fs::{self, File},
    io,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use rustix::{fs::statfs, process::geteuid};
use tempfile::TempDir;

use crate::process::{Process, free_address, pause};

/// The user as whom PostgreSQL runs where we are root, as it refuses to.
const OWNER: &str = "postgres";
/// `TMPFS_MAGIC` of statfs(2).
const TMPFS: u64 = 0x0102_1994;
/// How often a database is asked whether it serves.
const ASKS: u32 = 200;
const ASK_INTERVAL: Duration = Duration::from_millis(50);

/// A running database.
pub struct Engine {
    /// The only one of PostgreSQL, or one for each member of etcd.
    pub processes: Vec<Process>,
    /// Of each process.
    addresses: Vec<SocketAddr>,
    /// Its name and version.
    pub version: String,
    // Removed once the processes have ended.
    _directory: TempDir,
}

/// A directory for an engine's files.
pub fn directory(parent: Option<&Path>) -> io::Result<TempDir> {
    let named = |error: io::Error| match parent {
        Some(parent) => {
            io::Error::new(error.kind(), format!("--dir {}: {error}", parent.display()))
        }
        None => error,
    };
    parent.map_or_else(tempfile::tempdir, tempfile::tempdir_in).map_err(named)
}

/// Whether fsync does nothing for files in this directory.
pub fn is_in_memory(directory: &Path) -> bool {
    statfs(directory).is_ok_and(|file_system| u64::try_from(file_system.f_type) == Ok(TMPFS))
}

/// Starts a PostgreSQL with its own defaults, but for the number of connections.
///
/// # Errors
/// When it is not installed, or does not start.
pub fn postgres(cores: &[usize], parent: Option<&Path>) -> io::Result<Engine> {
    let programs = postgres_programs().ok_or_else(|| {
        let text =
            "PostgreSQL is not installed: apt-get install postgresql, or leave it out by --stores";
        io::Error::other(text)
    })?;
    let directory = directory(parent)?;
    let data = directory.path().join("data");
    let own = geteuid().is_root();
    if own {
        said(Command::new("chown").arg(format!("{OWNER}:")).arg(directory.path()))?;
    }
    let drop = ["--reuid", OWNER, "--regid", OWNER, "--clear-groups"];
    // In a fast shutdown the server cuts its clients, where SIGTERM would wait for them.
    let death = ["--pdeathsig", "INT"];
    let drop = if own { &drop[..] } else { &[] };
    let data = data.display().to_string();
    let initdb = programs.join("initdb");
    let first = ["-D", &data, "-U", "me", "-A", "trust", "--no-sync", "--no-instructions"];
    said(Command::new("setpriv").args(drop).arg(initdb).args(first).current_dir("/"))?;
    let address = free_address()?;
    let port = address.port().to_string();
    let program = programs.join("postgres").display().to_string();
    let settings =
        ["listen_addresses=127.0.0.1", "unix_socket_directories=", "max_connections=300"];
    let mut arguments = [drop, &death, &[&program, "-D", &data, "-p", &port]].concat();
    arguments.extend(settings.iter().flat_map(|setting| ["-c", setting]));
    let mut process = Process::start(cores, Path::new("setpriv"), &arguments)?;
    process.wait_for(address)?;
    let version = said(Command::new(programs.join("postgres")).arg("--version"))?;
    let version = version.trim().to_owned();
    let (processes, addresses) = (vec![process], vec![address]);
    let engine = Engine { processes, addresses, version, _directory: directory };
    until_it_serves(|| engine.sql_of("postgres", "CREATE DATABASE site"))?;
    engine.sql("CREATE TABLE visits (name text PRIMARY KEY, n bigint NOT NULL)")?;
    engine.sql("INSERT INTO visits VALUES ('home', 0)")?;
    Ok(engine)
}

/// Where the programs of the newest PostgreSQL of Debian are.
fn postgres_programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let number = |path: &PathBuf| path.parent()?.file_name()?.to_str()?.parse::<u32>().ok();
    let found = versions.map(|version| version.path().join("bin"));
    found.filter(|programs| programs.join("initdb").exists()).max_by_key(number)
}

/// Starts the members of an etcd, with its own defaults: they answer for a commit when more than half of them have it on
/// their disk, which is the same one here.
///
/// # Errors
/// When it is not installed, or does not start.
pub fn etcd(cores: &[usize], parent: Option<&Path>, members: usize) -> io::Result<Engine> {
    let named = |error: io::Error| {
        let text =
            format!("etcd: {error}; apt-get install etcd-server, or leave it out by --stores");
        io::Error::other(text)
    };
    let version = said(Command::new("etcd").arg("--version")).map_err(named)?;
    let version = version.lines().next().unwrap_or_default();
    let noun = if members == 1 { "member" } else { "members" };
    let version = format!("{version} ({members} {noun})");
    let directory = directory(parent)?;
    let (addresses, peers) = (free_addresses(members)?, free_addresses(members)?);
    let peers = peers.iter().map(|address| format!("http://{address}")).collect::<Vec<_>>();
    let cluster = peers.iter().enumerate().map(|(number, peer)| format!("m{number}={peer}"));
    let cluster = cluster.collect::<Vec<_>>().join(",");
    let start = |(number, address): (usize, &SocketAddr)| {
        let (name, clients) = (format!("m{number}"), format!("http://{address}"));
        let data = directory.path().join(&name).display().to_string();
        let arguments = [
            ["--name", &name],
            ["--data-dir", &data],
            ["--listen-client-urls", &clients],
            ["--advertise-client-urls", &clients],
            ["--listen-peer-urls", &peers[number]],
            ["--initial-advertise-peer-urls", &peers[number]],
            ["--initial-cluster", &cluster],
        ];
        Process::start(cores, Path::new("etcd"), &arguments.concat())
    };
    let processes = addresses.iter().enumerate().map(start);
    let mut processes = processes.collect::<io::Result<Vec<_>>>()?;
    // It serves its clients once there is a leader.
    for (process, address) in processes.iter_mut().zip(&addresses) {
        process.wait_for(*address)?;
    }
    Ok(Engine { processes, addresses, version, _directory: directory })
}

/// Different ones, as long as nobody else takes them.
fn free_addresses(count: usize) -> io::Result<Vec<SocketAddr>> {
    let kept = (0..count).map(|_| TcpListener::bind("127.0.0.1:0"));
    let kept = kept.collect::<io::Result<Vec<_>>>()?;
    kept.iter().map(TcpListener::local_addr).collect()
}

impl Engine {
    /// The database `site` of a PostgreSQL.
    pub fn postgres_url(&self) -> String {
        format!("postgres://me@{}/site", self.addresses[0])
    }

    /// All members of an etcd.
    pub fn etcd_url(&self) -> String {
        let addresses = self.addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>();
        format!("etcd://{}/bench", addresses.join(","))
    }

    /// What psql prints for a statement in the database `site`.
    ///
    /// # Errors
    /// When it fails.
    pub fn sql(&self, text: &str) -> io::Result<String> {
        self.sql_of("site", text)
    }

    fn sql_of(&self, database: &str, text: &str) -> io::Result<String> {
        let port = self.addresses[0].port().to_string();
        let to = ["-h", "127.0.0.1", "-p", &port, "-U", "me", "-d", database, "-AtXqc", text];
        Ok(said(Command::new("psql").args(to))?.trim().to_owned())
    }
}

/// Asks until it succeeds: a server that listens may not serve yet.
fn until_it_serves<T>(mut ask: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..ASKS {
        if let Ok(answer) = ask() {
            return Ok(answer);
        }
        pause(ASK_INTERVAL);
    }
    ask()
}

/// What a program prints.
fn said(command: &mut Command) -> io::Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let program = command.get_program().display();
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{program}: {}: {}", output.status, said.trim())))
}

/// The last line of a program's log.
pub fn last_line(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().last().unwrap_or_default().to_owned()
}

/// A file for a program's log.
pub fn log_file(path: &Path) -> io::Result<File> {
    File::create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_prints_is_read_or_why_it_fails() {
        assert_eq!(said(Command::new("echo").arg("a")).unwrap(), "a\n");
        let error = said(Command::new("ls").arg("/nowhere")).unwrap_err().to_string();
        assert!(error.contains("ls: exit status: 2") && error.contains("/nowhere"), "{error}");
        assert!(said(&mut Command::new("/nowhere")).is_err());
    }

    #[test]
    fn a_directory_in_memory_is_told_from_one_on_a_disk() {
        assert!(!is_in_memory(Path::new("/proc")) && !is_in_memory(Path::new("/nowhere")));
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        if let Some(mount) = mounts.find(|mount| mount[2] == "tmpfs" && mount[1] == "/dev/shm") {
            assert!(is_in_memory(Path::new(mount[1])));
        }
    }
}
