//! Members of an etcd cluster that a test starts for itself, in directories and on ports of their own.

use std::{
    collections::BTreeSet,
    env, fs,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Instant,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use socket2::Socket;

use crate::common::{PATIENCE, Signal, reserve, send_signal, tell_not_run};

/// Where etcd is, or `None` where there is none: then `test` does not run, which is said, and is a failure where
/// `TEST_ENGINES` is `required`.
pub fn program(test: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|directory| directory.join("etcd"));
    if let Some(found) = found.into_iter().find(|program| program.is_file()) {
        return Some(found);
    }
    tell_not_run(test, "etcd: apt-get install etcd-server");
    None
}

/// A member, which ends with the test.
pub struct Member {
    program: PathBuf,
    directory: tempfile::TempDir,
    name: String,
    flags: Vec<String>,
    process: Option<Child>,
    /// For its clients.
    pub address: SocketAddr,
    /// Where the others find it.
    advertised: SocketAddr,
    listens_to_peers: SocketAddr,
    /// Keep the ports while it does not run.
    _ports: [Socket; 2],
}

/// Starts a cluster of one member.
pub fn single(program: &Path, flags: &[&str]) -> Member {
    let mut members = prepare(program, 1, flags, |address| address);
    let mut member = members.remove(0);
    member.start();
    member.wait_until_writable();
    member
}

/// Members that are not started; `advertise` gives the address under which the others find the one that listens to them
/// at its argument.
pub fn prepare(
    program: &Path,
    count: usize,
    flags: &[&str],
    mut advertise: impl FnMut(SocketAddr) -> SocketAddr,
) -> Vec<Member> {
    let mut members: Vec<_> = (0..count)
        .map(|number| {
            let ((client, address), (peer, listens_to_peers)) = (reserve(), reserve());
            Member {
                program: program.to_owned(),
                directory: tempfile::tempdir().unwrap(),
                name: format!("m{number}"),
                flags: flags.iter().map(|flag| String::from(*flag)).collect(),
                process: None,
                address,
                advertised: advertise(listens_to_peers),
                listens_to_peers,
                _ports: [client, peer],
            }
        })
        .collect();
    let cluster =
        members.iter().map(|member| format!("{}=http://{}", member.name, member.advertised));
    let cluster = cluster.collect::<Vec<_>>().join(",");
    members.iter_mut().for_each(|member| {
        member.flags.splice(0..0, [String::from("--initial-cluster"), cluster.clone()]);
    });
    members
}

impl Member {
    /// Starts it, and waits for nothing.
    pub fn start(&mut self) {
        assert!(self.process.is_none());
        let scheme =
            if self.flags.iter().any(|flag| flag == "--cert-file") { "https" } else { "http" };
        let client = format!("{scheme}://{}", self.address);
        // It ends with this thread at the latest.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(&self.program);
        command.args(["--name", &self.name, "--data-dir", self.data().to_str().unwrap()]);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &format!("http://{}", self.listens_to_peers)]);
        command.args(["--initial-advertise-peer-urls", &format!("http://{}", self.advertised)]);
        command.args(&self.flags).env_clear().stdin(Stdio::null());
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log()).unwrap();
        let process = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        self.process = Some(process);
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// Where other members would connect.
    pub fn peers(&self) -> SocketAddr {
        self.listens_to_peers
    }

    /// Waits until it takes connections.
    pub fn wait_for_port(&self) {
        self.wait_for("takes a connection", || TcpStream::connect(self.address).ok());
    }

    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Another cluster takes its place.
    #[allow(dead_code)]
    pub fn replace(&mut self) {
        self.kill();
        fs::remove_dir_all(self.data()).unwrap();
        self.flags.extend(["--initial-cluster-token", "another"].map(String::from));
        self.start();
        self.wait_until_writable();
    }

    pub fn signal(&self, signal: Signal) {
        send_signal(self.process.as_ref().unwrap(), signal);
    }

    /// Whether this member is the leader, and its number, as far as it knows.
    pub fn standing(&self) -> Option<(bool, u64)> {
        let status = self.try_ask("/v3/maintenance/status", &json!({}))?;
        let number = |value: &Value| value.as_str()?.parse::<u64>().ok();
        let (member, leader) =
            (number(&status["header"]["member_id"])?, number(&status["leader"])?);
        Some((member == leader, member))
    }

    /// Waits until it has a leader and takes a write.
    pub fn wait_until_writable(&self) {
        let put = json!({ "key": STANDARD.encode("/test"), "value": "" });
        self.wait_for("takes a write", || self.try_ask("/v3/kv/put", &put));
    }

    fn wait_for<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            match look() {
                Some(found) => return found,
                None if began.elapsed() > PATIENCE => {
                    panic!("never {what}: {}", fs::read_to_string(self.log()).unwrap());
                }
                None => thread::yield_now(),
            }
        }
    }

    /// What it answers; `None` where that is an error, or it does not answer.
    pub fn try_ask(&self, path: &str, question: &Value) -> Option<Value> {
        let (status, text) = self.post(path, question).ok()?;
        (status == 200).then(|| serde_json::from_str(&text).unwrap())
    }

    #[track_caller]
    pub fn ask(&self, path: &str, question: Value) -> Value {
        let (status, text) = self.post(path, &question).unwrap();
        assert_eq!(status, 200, "{path}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    fn post(&self, path: &str, question: &Value) -> io::Result<(u16, String)> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let content = question.to_string();
        let length = content.len();
        let host = self.address;
        write!(
            stream,
            "POST {path} HTTP/1.0\r\nHost: {host}\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{content}"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, content) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.ok_or(io::ErrorKind::InvalidData)?, content.to_owned()))
    }

    /// All keys that begin with `prefix`, with their values.
    pub fn keys(&self, prefix: &str) -> Vec<(String, String)> {
        let end = format!("{}0", prefix.strip_suffix('/').unwrap());
        let question = json!({ "key": STANDARD.encode(prefix), "range_end": STANDARD.encode(end) });
        let answer = self.ask("/v3/kv/range", question);
        let text = |value: &Value| {
            String::from_utf8(STANDARD.decode(value.as_str().unwrap_or("")).unwrap()).unwrap()
        };
        let kvs = answer["kvs"].as_array().cloned().unwrap_or_default();
        kvs.iter().map(|found| (text(&found["key"]), text(&found["value"]))).collect()
    }

    pub fn put(&self, key: &str, value: &str) {
        let question = json!({ "key": STANDARD.encode(key), "value": STANDARD.encode(value) });
        self.ask("/v3/kv/put", question);
    }

    pub fn delete(&self, key: &str) {
        self.ask("/v3/kv/deleterange", json!({ "key": STANDARD.encode(key) }));
    }

    /// The sum of what all shards hold of the counter without a name, below `prefix`.
    pub fn total(&self, prefix: &str) -> u64 {
        let keys = self.keys(&format!("{prefix}/totals//"));
        keys.iter().map(|(_, value)| value.parse::<u64>().unwrap()).sum()
    }

    /// The revision that it is at.
    pub fn revision(&self) -> u64 {
        let answer = self.ask("/v3/kv/range", json!({ "key": STANDARD.encode("/test") }));
        answer["header"]["revision"].as_str().unwrap().parse().unwrap()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The URL of a store with these members.
pub fn url(members: &[Member], prefix: &str) -> String {
    let hosts: Vec<_> = members.iter().map(|member| member.address.to_string()).collect();
    format!("etcd://{}{prefix}", hosts.join(","))
}

/// What lies between members: connections to and from those that are cut off carry nothing.
#[derive(Clone, Default)]
pub struct Network {
    cut_off: Arc<Mutex<BTreeSet<u64>>>,
    /// The members behind each proxy, once they are known.
    behind: Arc<Mutex<Vec<(SocketAddr, u64)>>>,
}

impl Network {
    /// A proxy before the member that listens to others here; where these find it.
    pub fn join(&self, target: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let network = self.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let network = network.clone();
                thread::spawn(move || network.connect(client, target));
            }
        });
        address
    }

    /// Tells which member is which.
    pub fn learn(&self, members: &[Member]) {
        let member = |member: &Member| (member.listens_to_peers, member.standing().unwrap().1);
        *self.behind.lock().unwrap() = members.iter().map(member).collect();
    }

    pub fn cut_off(&self, member: u64) {
        self.cut_off.lock().unwrap().insert(member);
    }

    pub fn join_again(&self, member: u64) {
        assert!(self.cut_off.lock().unwrap().remove(&member));
    }

    /// Passes bytes between a member that connects and the one that it connects to, while neither is cut off.
    fn connect(&self, mut client: TcpStream, target: SocketAddr) {
        let mut buffer = [0; 16 * 1024];
        let Ok(count @ 1..) = client.read(&mut buffer) else { return };
        // Each request between members has this field.
        let head = String::from_utf8_lossy(&buffer[..count]).into_owned();
        let from = head.lines().find_map(|line| line.strip_prefix("X-Server-From: "));
        let from = from.and_then(|id| u64::from_str_radix(id.trim(), 16).ok());
        let Ok(mut server) = TcpStream::connect(target) else { return };
        self.wait_while_cut(from, target);
        if server.write_all(&buffer[..count]).is_err() {
            return;
        }
        let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
        let network = self.clone();
        thread::spawn(move || network.pass(back, from, target));
        self.pass((client, server), from, target);
    }

    fn pass(
        &self,
        (mut from, mut to): (TcpStream, TcpStream),
        member: Option<u64>,
        target: SocketAddr,
    ) {
        let mut buffer = [0; 16 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            self.wait_while_cut(member, target);
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        for stream in [&from, &to] {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    // The network has no other way to be silent.
    #[allow(clippy::disallowed_methods)]
    fn wait_while_cut(&self, from: Option<u64>, target: SocketAddr) {
        loop {
            let behind = self.behind.lock().unwrap();
            let to = behind.iter().find(|(address, _)| *address == target).map(|(_, id)| *id);
            drop(behind);
            let cut_off = self.cut_off.lock().unwrap();
            if ![from, to].into_iter().flatten().any(|member| cut_off.contains(&member)) {
                return;
            }
            drop(cut_off);
            thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}
