//! A server is replaced under load, and no request is lost: by a second one on the same port, and by one on the same
//! socket. TALLYRING_RESTARTS=N sets how often. The lines of docs/restart.md are run as they are.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use common::{
    COUNTED, Client, PATIENCE, Server, Stub, WELCOME, reserve, serve, tallyring, with_socket,
};

/// Clients that keep their connection, and as many that open one for each request.
const CLIENTS: usize = 8;
/// Requests that are answered between two restarts.
const REQUESTS: u64 = 2_000;

/// Clients that ask without a pause until they are stopped.
struct Load {
    over: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(address: SocketAddr) -> Self {
        let (over, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let clients = (0..2 * CLIENTS).map(|number| {
            let (over, answered) = (Arc::clone(&over), Arc::clone(&answered));
            thread::spawn(move || ask_on(address, number < CLIENTS, &over, &answered))
        });
        let clients = clients.collect();
        Self { over, answered, clients }
    }

    /// Waits until `more` further requests are answered.
    fn wait_for(&self, more: u64) {
        let wanted = self.answered.load(Ordering::Relaxed) + more;
        while self.answered.load(Ordering::Relaxed) < wanted {
            assert!(!self.clients.iter().any(JoinHandle::is_finished), "a client has given up");
            thread::yield_now();
        }
    }

    /// The number of answered requests, and a line for each that was lost.
    fn stop(self) -> (u64, Vec<String>) {
        self.over.store(true, Ordering::Relaxed);
        let lost = self.clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        (self.answered.load(Ordering::Relaxed), lost)
    }
}

/// Asks again and again; returns a line for each request that was lost. A request is never sent twice.
fn ask_on(
    address: SocketAddr,
    keeps: bool,
    over: &AtomicBool,
    answered: &AtomicU64,
) -> Vec<String> {
    const LOST_MAX: usize = 100;
    let mut lost = Vec::new();
    let mut kept = None;
    while !over.load(Ordering::Relaxed) && lost.len() < LOST_MAX {
        let fresh = kept.is_none();
        let result = kept.take().map_or_else(|| connect(address), Ok).and_then(|stream| {
            kept = ask(stream, keeps)?;
            Ok(())
        });
        match result {
            Ok(()) => {
                answered.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => lost.push(format!("keeps: {keeps}, fresh: {fresh}: {error}")),
        }
    }
    lost
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// One request; the connection, if it may carry another.
fn ask(mut stream: TcpStream, keeps: bool) -> io::Result<Option<TcpStream>> {
    let close = if keeps { "" } else { "Connection: close\r\n" };
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: a\r\n{close}\r\n").as_bytes())?;
    let mut bytes = Vec::new();
    let mut buffer = [0; 1024];
    while !bytes.ends_with(WELCOME.as_bytes()) {
        match stream.read(&mut buffer)? {
            0 => return Err(io::Error::other(format!("cut after {} bytes", bytes.len()))),
            count => bytes.extend_from_slice(&buffer[..count]),
        }
    }
    let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
    Ok((!text.contains("connection: close")).then_some(stream))
}

fn restarts() -> u64 {
    std::env::var("TALLYRING_RESTARTS").map_or(2, |text| text.parse().unwrap())
}

#[track_caller]
fn check_nothing_lost(load: Load) {
    let (answered, lost) = load.stop();
    println!("{answered} requests answered over {} restarts, {} lost", restarts(), lost.len());
    assert_eq!(lost, [""; 0], "lost, of {answered} answered");
}

#[test]
fn a_second_server_on_the_same_port_takes_over() {
    let stub = Stub::answering(COUNTED);
    let url = stub.url();
    let mut first = serve(&["--counter", &url, "--share-port"]);
    let address = first.address.to_string();
    let load = Load::start(first.address);
    for _ in 0..restarts() {
        load.wait_for(REQUESTS);
        let second = serve(&["--counter", &url, "--share-port", "--listen", &address]);
        load.wait_for(REQUESTS);
        first.stop();
        first = second;
    }
    load.wait_for(REQUESTS);
    check_nothing_lost(load);
    first.stop();
}

#[test]
fn a_server_on_the_same_socket_takes_over() {
    let stub = Stub::answering(COUNTED);
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let start = || {
        let url = stub.url();
        let arguments = ["serve", "--workers", "2", "--admin", "off", "--counter", &url];
        let command = with_socket(socket.try_clone().unwrap(), &arguments);
        Server::spawn(command, tempfile::tempdir().unwrap())
    };
    let mut server = start();
    let load = Load::start(server.address);
    for _ in 0..restarts() {
        load.wait_for(REQUESTS);
        server.stop();
        server = start();
    }
    load.wait_for(REQUESTS);
    check_nothing_lost(load);
    server.stop();
}

/// The shell's lines in a section of docs/restart.md, block by block.
fn documented_blocks(section: &str) -> Vec<String> {
    let page = include_str!("../docs/restart.md");
    let (_, section) = page.split_once(&format!("\n## {section}\n")).expect(section);
    let section = section.split("\n## ").next().unwrap();
    let blocks = section.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.map(str::to_owned).collect()
}

/// A shell that runs `script`, in which `tallyring` is the program under test with the settings of the tests.
fn run_script(script: &str) -> Command {
    let program = tallyring();
    let programs = Path::new(program.get_program()).parent().unwrap();
    let path = std::env::var("PATH").unwrap();
    // So that no process is left when a server does not become ready.
    let mut command = Command::new("timeout");
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
        .args([&PATIENCE.as_secs().to_string(), "bash", "-c", script])
        .env("PATH", format!("{}:{path}", programs.display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
}

#[test]
fn the_documented_lines_restart_a_server_without_loss() {
    let blocks = documented_blocks("Beside a second process");
    let [begin, restart] = &blocks[..] else { panic!("{blocks:?}") };
    let reserved = [(); 4].map(|()| reserve());
    let [site, counter, admin, second_admin] = reserved.each_ref().map(|(_, address)| *address);
    // The page does not wait until a server is ready: a person who types is slower. Its last line stops the first
    // server.
    let script = format!(
        "trap 'kill $(jobs -p)' EXIT\n{begin}\
         until tallyring health --admin {admin}; do sleep 0.1; done\necho started\nread\n\
         {restart}wait %2; echo restarted $?\nread\n"
    );
    let script = script.replace("127.0.0.1:3001", &counter.to_string());
    let script = script.replace("127.0.0.1:9301", &second_admin.to_string());
    let directory = tempfile::tempdir().unwrap();
    let mut shell = run_script(&script)
        .env("TALLYRING_LISTEN", site.to_string())
        .env("TALLYRING_ADMIN", admin.to_string())
        .env("TALLYRING_COUNTER_LISTEN", counter.to_string())
        .env("TALLYRING_DATA_DIR", directory.path())
        .env("TALLYRING_WORKERS", "2")
        .spawn()
        .unwrap();
    let mut said = BufReader::new(shell.stdout.take().unwrap()).lines();
    let mut wait_for = |words: &str| {
        let line = said.find(|line| line.as_ref().unwrap().starts_with(words)).expect(words);
        line.unwrap()
    };
    // The shell ends with its input, even if this test fails.
    let mut input = shell.stdin.take().unwrap();
    wait_for("started");
    let load = Load::start(site);
    load.wait_for(REQUESTS);
    input.write_all(b"\n").unwrap();
    assert_eq!(wait_for("restarted"), "restarted 0");
    load.wait_for(REQUESTS);
    let (answered, lost) = load.stop();
    assert_eq!(lost, [""; 0], "lost, of {answered} answered");
    let total = Client::connect(counter).get("/counter").body;
    assert_eq!(total, format!("{answered}\n"));
    drop(input);
    shell.wait().unwrap();
}
