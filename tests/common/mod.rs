//! What the tests share: the real binary, raw clients and counter stubs, all on loopback and port 0.
//!
//! No clock synchronises anything here. Time-outs only end a test that would hang.

// No test uses all of it.
#![allow(dead_code, unused_imports)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod beside;
mod books;
mod client;
mod data;
pub mod ending;
pub mod postgres;
pub mod proxy;
mod stub;

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

pub use books::Books;
pub use client::{Client, Response, get_request};
pub use data::Data;
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};
use socket2::{Domain, Socket, Type};
pub use stub::{COUNTED, Gate, Peer, Stub};

/// Long enough for the slowest machine; nothing waits for it to pass.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const WELCOME: &str = "Welcome to my site!";
pub const SORRY: &str = "Error registering your visit";

/// The binary under test.
pub fn tallyring() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tallyring"));
    without_settings(&mut command);
    command
}

/// Removes the settings of the user who runs the tests.
pub fn without_settings(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TALLYRING_") {
            command.env_remove(name);
        }
    }
    command.env_remove("STATE_DIRECTORY").stdin(Stdio::null());
    // Nor do tests use that user's counter file.
    command.env("XDG_STATE_HOME", env!("CARGO_TARGET_TMPDIR"));
    // Stubs count every request, so none may be sent at the start.
    command.env("TALLYRING_SKIP_COUNTER_CHECK", "yes");
}

pub fn send_signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// A running process, killed when the test ends.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    pub line: String,
    /// The lines before it.
    said: Vec<String>,
    lines: mpsc::Receiver<String>,
    /// Kept until the process is gone.
    _directory: tempfile::TempDir,
}

/// A server with two workers, whatever the number of cores.
pub fn serve(flags: &[&str]) -> Server {
    let mut all = vec!["serve"];
    if !flags.contains(&"--workers") {
        all.extend(["--workers", "2"]);
    }
    all.extend(flags);
    Server::start(&all, &[])
}

/// A server whose visits go to this counter.
pub fn serve_with(stub: &Stub, flags: &[&str]) -> Server {
    let url = stub.url();
    let mut all = vec!["--counter", &url];
    all.extend(flags);
    serve(&all)
}

/// A server with this configuration file.
pub fn serve_by(file: &str, flags: &[&str]) -> Server {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tallyring.toml");
    fs::write(&path, file).unwrap();
    let mut all = vec!["--config", path.to_str().unwrap()];
    all.extend(flags);
    // The file is read once, at the start.
    serve(&all)
}

impl Server {
    /// Starts `tallyring` with these arguments, its own data directory, and without the default ports.
    pub fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().to_str().unwrap().to_owned();
        let mut command = tallyring();
        command.args(arguments).envs(environment.iter().copied());
        if !arguments.contains(&"--data-dir") {
            command.args(["--data-dir", &data]);
        }
        if !arguments.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        if arguments[0] == "serve" && !arguments.contains(&"--admin") {
            command.args(["--admin", "off"]);
        }
        if arguments[0] == "serve" && !arguments.contains(&"--counter-listen") {
            command.args(["--counter-listen", "off"]);
        }
        Self::spawn(command, directory)
    }

    /// Starts a command that runs `tallyring` in the end.
    pub fn spawn(mut command: Command, directory: tempfile::TempDir) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let mut said = Vec::new();
        let line = loop {
            match lines.recv_timeout(PATIENCE) {
                Ok(line) if line.contains("tallyring 0.") => break line,
                Ok(line) => said.push(line),
                Err(_) => {
                    let _ = child.kill();
                    panic!("no start-up line; it said {said:?}");
                }
            }
        };
        let address = address_in(&line);
        Self { child, address, line, said, lines, _directory: directory }
    }

    /// The address behind `words` in the start-up line.
    pub fn address_after(&self, words: &str) -> SocketAddr {
        address_in(self.line.split_once(words).expect(words).1)
    }

    /// It has said `words` before it was ready.
    #[track_caller]
    pub fn check_said(&self, words: &str) {
        assert!(self.said.iter().any(|line| line.contains(words)), "{words}: {:?}", self.said);
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        send_signal(&self.child, signal);
    }

    /// Runs `act` while the process is stopped, so that it finds all effects at once when it continues.
    pub fn while_stopped<T>(&self, act: impl FnOnce() -> T) -> T {
        self.signal(Signal::STOP);
        let outcome = act();
        self.signal(Signal::CONT);
        outcome
    }

    /// Waits for the end; returns the status, and all lines since the last call.
    pub fn wait(&mut self) -> (ExitStatus, Vec<String>) {
        let status = self.child.wait().unwrap();
        let mut lines = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            lines.push(line);
        }
        (status, lines)
    }

    /// Asks it to stop and waits; the last line.
    pub fn stop(&mut self) -> String {
        self.signal(Signal::TERM);
        let (status, lines) = self.wait();
        assert_eq!(status.code(), Some(0), "{lines:?}");
        lines.last().expect("a last line").clone()
    }

    /// Asks it to stop; the visits of its last line.
    pub fn stop_with_books(&mut self) -> Books {
        Books::read(&self.stop())
    }

    /// Waits for a line that holds `words`.
    pub fn wait_for_line(&self, words: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).expect(words);
            if line.contains(words) {
                return line;
            }
        }
    }

    pub fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// A client of the admin listener, which must be on.
    pub fn admin(&self) -> Client {
        Client::connect(self.address_after("admin on "))
    }

    /// One request on a connection of its own.
    pub fn get(&self, path: &str) -> Response {
        self.client().get(path)
    }

    /// What a visitor of `/` reads.
    pub fn visit(&self) -> String {
        let response = self.get("/");
        assert_eq!(response.status, 200);
        response.body
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn address_in(text: &str) -> SocketAddr {
    let (_, rest) = text.split_once("http://").expect(text);
    let end = rest.find([' ', '/', ';', ',', '"']).unwrap_or(rest.len());
    rest[..end].parse().expect(text)
}

/// Runs `tallyring` to its end.
pub fn run(arguments: &[&str]) -> (i32, String, String) {
    let output = tallyring().args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// `tallyring` under a limit of the shell's, such as `-n 64`.
pub fn limited(limit: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", &format!("ulimit {limit}; exec \"$@\""), "bash"]);
    command.arg(env!("CARGO_BIN_EXE_tallyring")).args(arguments);
    without_settings(&mut command);
    command
}

/// `tallyring` with `socket` as the first one that a service manager hands down.
pub fn with_socket(socket: impl Into<OwnedFd>, arguments: &[&str]) -> Command {
    let mut command = Command::new("bash");
    let script = "exec 3<&0 0</dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$@\"";
    command.args(["-c", script, "bash", env!("CARGO_BIN_EXE_tallyring")]).args(arguments);
    command.stdin(Stdio::from(socket.into()));
    command
}

/// A process that is killed when the test ends.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An address at which nobody listens.
pub fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Tells that a test does not run for lack of what it needs, which is a failure where `TEST_ENGINES` is `required`.
pub fn tell_not_run(test: &str, needs: &str) {
    let line = format!("NOT RUN: {test} needs {needs}\n");
    assert_ne!(std::env::var("TEST_ENGINES").as_deref(), Ok("required"), "{line}");
    // Not by eprintln, whose text is shown for tests that fail only.
    std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).unwrap();
}

/// A port that no other process gets from the kernel, but on which a process can listen that names it: the socket is
/// bound and does not listen.
pub fn reserve() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

/// The most memory that the server has had resident so far, proc_pid_status(5).
pub fn peak_kib(server: &Server) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_ascii_whitespace().next().unwrap().parse().unwrap()
}
