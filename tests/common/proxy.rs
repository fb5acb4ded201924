//! A proxy before a database, which cuts connections at a byte.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use super::PATIENCE;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    ToServer,
    ToClient,
}

/// What a proxy does to the bytes of one way.
#[derive(Debug, Default)]
struct Line {
    /// Bytes that still pass; after them the connection is cut. No limit while it is `None`.
    left: Option<usize>,
    /// Bytes that have passed.
    passed: usize,
    /// Replaces bytes, as many by as many.
    replace: Option<(Vec<u8>, Vec<u8>)>,
}

/// A proxy before a database, which cuts connections at a byte.
pub struct Proxy {
    pub address: SocketAddr,
    lines: Arc<[Mutex<Line>; 2]>,
    cuts: Arc<AtomicUsize>,
}

impl Proxy {
    pub fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let lines = Arc::<[Mutex<Line>; 2]>::default();
        let cuts = Arc::<AtomicUsize>::default();
        let (of_listener, cuts_of_listener) = (Arc::clone(&lines), Arc::clone(&cuts));
        // It ends with the process.
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(target) else { continue };
                for stream in [&client, &server] {
                    stream.set_nodelay(true).unwrap();
                }
                for way in [Way::ToServer, Way::ToClient] {
                    let (from, to) = match way {
                        Way::ToServer => (&client, &server),
                        Way::ToClient => (&server, &client),
                    };
                    let ends = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let (lines, cuts) = (Arc::clone(&of_listener), Arc::clone(&cuts_of_listener));
                    thread::spawn(move || pass(ends, &lines[way as usize], &cuts));
                }
            }
        });
        Self { address, lines, cuts }
    }

    /// Lets so many bytes pass one way, and then cuts that connection, and no other.
    pub fn cut_after(&self, way: Way, bytes: usize) {
        self.lines[way as usize].lock().unwrap().left = Some(bytes);
    }

    /// Cuts nothing; how many connections were cut since the last call.
    pub fn pass_all(&self) -> usize {
        self.lines.iter().for_each(|line| line.lock().unwrap().left = None);
        self.cuts.swap(0, Ordering::SeqCst)
    }

    /// Replaces bytes of what the server says.
    pub fn replace(&self, this: &str, by: &str) {
        assert_eq!(this.len(), by.len());
        let line = &self.lines[Way::ToClient as usize];
        line.lock().unwrap().replace = Some((this.into(), by.into()));
    }

    /// Waits until a connection is cut.
    pub fn wait_for_cut(&self) {
        let began = Instant::now();
        while self.cuts.load(Ordering::SeqCst) == 0 {
            assert!(began.elapsed() < PATIENCE, "nothing is cut");
            thread::yield_now();
        }
    }

    /// How many bytes have passed.
    pub fn passed(&self, way: Way) -> usize {
        self.lines[way as usize].lock().unwrap().passed
    }
}

fn pass((mut from, mut to): (TcpStream, TcpStream), line: &Mutex<Line>, cuts: &AtomicUsize) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let mut line = line.lock().unwrap();
        let mut bytes = buffer[..count].to_vec();
        if let Some((this, by)) = &line.replace {
            for place in 0..bytes.len().saturating_sub(this.len() - 1) {
                if bytes[place..].starts_with(this) {
                    bytes[place..place + this.len()].copy_from_slice(by);
                }
            }
        }
        let passes = line.left.map_or(count, |left| left.min(count));
        line.left = line.left.map(|left| left - passes);
        line.passed += passes;
        let cut = passes < count;
        if cut {
            line.left = None;
            cuts.fetch_add(1, Ordering::SeqCst);
        }
        drop(line);
        if to.write_all(&bytes[..passes]).is_err() || cut {
            break;
        }
    }
    for stream in [&from, &to] {
        let _ = stream.shutdown(Shutdown::Both);
    }
}
