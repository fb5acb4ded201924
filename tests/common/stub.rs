//! Counters that do what a test says.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use super::PATIENCE;

/// A counter that does what a test says: each connection is handed to `serve` on a thread of its own,
/// with its number.
pub struct Stub {
    pub address: SocketAddr,
}

impl Stub {
    pub fn start(serve: impl Fn(usize, Peer) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        Self::start_on(listener, serve);
        Self { address }
    }

    pub fn start_on(listener: TcpListener, serve: impl Fn(usize, Peer) + Send + Sync + 'static) {
        let serve = Arc::new(serve);
        thread::spawn(move || {
            for (number, stream) in listener.incoming().map_while(Result::ok).enumerate() {
                let serve = Arc::clone(&serve);
                thread::spawn(move || serve(number, Peer::from(stream)));
            }
        });
    }

    /// A counter that says to each call what `answer` says.
    pub fn answering(answer: &'static str) -> Self {
        Self::start(move |_, mut peer| while peer.request().is_some() && peer.send(answer) {})
    }

    /// A counter, and how many calls it has counted.
    pub fn counting() -> (Self, Arc<AtomicUsize>) {
        let counted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&counted);
        let stub = Self::start(move |_, mut peer| {
            while peer.request().is_some() {
                count.fetch_add(1, Ordering::SeqCst);
                if !peer.send(COUNTED) {
                    return;
                }
            }
        });
        (stub, counted)
    }

    /// A counter that answers when the gate opens, and says when it has been asked.
    pub fn gated() -> (Self, Gate, mpsc::Receiver<()>) {
        let (gate, (asked, arrived)) = (Gate::default(), mpsc::channel());
        let open = gate.clone();
        let stub = Self::start(move |_, mut peer| {
            while peer.request().is_some() {
                asked.send(()).unwrap();
                open.wait();
                if !peer.send(COUNTED) {
                    return;
                }
            }
        });
        (stub, gate, arrived)
    }

    pub fn url(&self) -> String {
        format!("http://{}/counter", self.address)
    }
}

pub const COUNTED: &str = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1";

/// The server as a stub sees it.
pub struct Peer {
    pub stream: TcpStream,
    unread: Vec<u8>,
}

impl From<TcpStream> for Peer {
    fn from(stream: TcpStream) -> Self {
        Self { stream, unread: Vec::new() }
    }
}

impl Peer {
    /// The next call's head; `None` when the connection ends.
    pub fn request(&mut self) -> Option<String> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(place) = self.unread.windows(4).position(|window| window == b"\r\n\r\n") {
                let rest = self.unread.split_off(place + 4);
                let head = std::mem::replace(&mut self.unread, rest);
                return Some(String::from_utf8(head).unwrap());
            }
            match self.stream.read(&mut buffer) {
                Ok(count @ 1..) => self.unread.extend_from_slice(&buffer[..count]),
                _ => return None,
            }
        }
    }

    /// False when the connection has ended.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    /// Closes with a reset.
    pub fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

/// A door that a test opens once.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    pub fn wait(&self) {
        let open = self.0.0.lock().unwrap();
        let (_open, result) = self.0.1.wait_timeout_while(open, PATIENCE, |open| !*open).unwrap();
        assert!(!result.timed_out(), "the gate stayed shut");
    }
}
