//! What the tests share: the real binary, raw clients and counter stubs, all on loopback and port 0.
//!
//! No clock synchronises anything here. Time-outs only end a test that would hang.

// No test uses all of it.
#![allow(dead_code, unused_imports)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod beside;
mod stub;

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};
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

/// Settings of whoever runs the tests are not theirs.
pub fn without_settings(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TALLYRING_") {
            command.env_remove(name);
        }
    }
    command.env_remove("STATE_DIRECTORY").stdin(Stdio::null());
    // Nor is their counter's file.
    command.env("XDG_STATE_HOME", env!("CARGO_TARGET_TMPDIR"));
    // Their counters count whatever they are sent.
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
    lines: mpsc::Receiver<String>,
    /// Kept until the process is gone.
    _directory: tempfile::TempDir,
}

/// A server with two workers that share what cores there are.
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
    std::fs::write(&path, file).unwrap();
    let mut all = vec!["--config", path.to_str().unwrap()];
    all.extend(flags);
    // The file is read once, at the start.
    serve(&all)
}

impl Server {
    /// Starts `tallyring` with these arguments, an own data directory, and no admin listener or port
    /// of anybody else's.
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
        Self { child, address, line, lines, _directory: directory }
    }

    /// The address that stands behind `words` in the start-up line.
    pub fn address_after(&self, words: &str) -> SocketAddr {
        address_in(self.line.split_once(words).expect(words).1)
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        send_signal(&self.child, signal);
    }

    /// Acts while the process is stopped: it finds all that was done at once when it goes on.
    pub fn while_stopped<T>(&self, act: impl FnOnce() -> T) -> T {
        self.signal(Signal::STOP);
        let outcome = act();
        self.signal(Signal::CONT);
        outcome
    }

    /// Waits for the end; the status, and all lines since the last look.
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

/// What a server's last line says of its visits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Books {
    pub welcomed: u64,
    pub erred: u64,
    pub refused: u64,
    pub abandoned: u64,
}

impl Books {
    pub fn read(line: &str) -> Self {
        let said = |word: &str| {
            let before = line.split_once(word).expect(line).0.trim_end();
            let before = before.trim_end_matches(" visits").trim_end_matches(" visit");
            before.rsplit(' ').next().unwrap().parse().expect(line)
        };
        Self {
            welcomed: said("welcomed"),
            erred: said("erred"),
            refused: said("refused"),
            abandoned: said("abandoned"),
        }
    }

    /// The books of several servers as one.
    pub fn sum(all: &[Self]) -> Self {
        all.iter().fold(Self { welcomed: 0, erred: 0, refused: 0, abandoned: 0 }, |sum, one| Self {
            welcomed: sum.welcomed + one.welcomed,
            erred: sum.erred + one.erred,
            refused: sum.refused + one.refused,
            abandoned: sum.abandoned + one.abandoned,
        })
    }

    /// Visits that were started: each is in one book.
    pub fn ended(&self) -> u64 {
        self.welcomed + self.erred + self.refused + self.abandoned
    }

    /// The contract: what was welcomed is counted, and what was counted is in a book.
    #[track_caller]
    pub fn check(&self, counted: u64) {
        assert!(self.welcomed <= counted, "{self:?}, {counted} counted");
        assert!(
            counted <= self.welcomed + self.erred + self.abandoned,
            "{self:?}, {counted} counted"
        );
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

/// A client that sends what it is told, right or wrong.
pub struct Client {
    pub stream: TcpStream,
    unread: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Response {
    /// The value of a field; `None` where there is none.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }
}

pub fn get_request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        Self::of(TcpStream::connect(address).unwrap())
    }

    pub fn of(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, unread: Vec::new() }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// False when the connection has ended.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    pub fn get(&mut self, path: &str) -> Response {
        self.send(get_request(path));
        self.response()
    }

    /// The next response, with the body that its length says.
    pub fn response(&mut self) -> Response {
        self.response_to("GET")
    }

    pub fn response_to(&mut self, method: &str) -> Response {
        self.response_or_end(method).expect("a response")
    }

    /// The next response; `None` when the server closes in order before it begins one.
    pub fn response_or_end(&mut self, method: &str) -> Option<Response> {
        self.try_response(method).expect("the server to answer or close")
    }

    /// The next response; `None` when the server closes in order before it begins one.
    ///
    /// # Errors
    /// When the connection is reset.
    pub fn try_response(&mut self, method: &str) -> io::Result<Option<Response>> {
        let Some(head) = self.read_through(b"\r\n\r\n")? else {
            assert!(self.unread.is_empty(), "a head was cut");
            return Ok(None);
        };
        let head = String::from_utf8(head).unwrap();
        let status = head.split(' ').nth(1).expect(&head).parse().unwrap();
        let mut response = Response { status, head, body: String::new() };
        let length = response.field("content-length").map_or(0, |length| length.parse().unwrap());
        if method != "HEAD" {
            while self.unread.len() < length {
                assert!(self.receive()? > 0, "the body was cut");
            }
            let rest = self.unread.split_off(length);
            response.body = String::from_utf8(std::mem::replace(&mut self.unread, rest)).unwrap();
        }
        Ok(Some(response))
    }

    /// The sum over all workers of a metric with a label, like `tallyring_visits_total{outcome="erred"`,
    /// asked of the admin listener.
    pub fn metric(&mut self, row: &str) -> u64 {
        let (name, label) = row.split_once('{').unwrap();
        let text = self.get("/metrics").body;
        let rows = text.lines().filter(|line| {
            line.split_once('{')
                .is_some_and(|(family, rest)| family == name && rest.contains(label))
        });
        rows.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    /// Asks for a metric until it is `wanted`.
    pub fn wait_for_metric(&mut self, row: &str, wanted: u64) {
        let began = Instant::now();
        while self.metric(row) != wanted {
            assert!(began.elapsed() < PATIENCE, "{row} never was {wanted}");
            thread::yield_now();
        }
    }

    fn read_through(&mut self, end: &[u8]) -> io::Result<Option<Vec<u8>>> {
        loop {
            let place = self.unread.windows(end.len()).position(|window| window == end);
            if let Some(place) = place {
                let rest = self.unread.split_off(place + end.len());
                return Ok(Some(std::mem::replace(&mut self.unread, rest)));
            }
            if self.receive()? == 0 {
                return Ok(None);
            }
        }
    }

    fn receive(&mut self) -> io::Result<usize> {
        let mut buffer = [0; 4096];
        let count = self.stream.read(&mut buffer)?;
        self.unread.extend_from_slice(&buffer[..count]);
        Ok(count)
    }

    /// Closes with a reset: what is on its way is lost (SO_LINGER of 0, socket(7)).
    pub fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Whether nothing is left of what was received so far.
    pub fn has_read_all(&self) -> bool {
        self.unread.is_empty()
    }

    /// Whether the server closes without another byte. A reset is a close too.
    pub fn is_closed(&mut self) -> bool {
        let mut byte = [0];
        self.unread.is_empty() && !matches!(self.stream.read(&mut byte), Ok(1..))
    }

    pub fn finish_sending(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }
}
