//! The floor: the least that a visit costs on this kernel. `floor ADDRESS COUNTER-ADDRESS`
//!
//! Each visit is one exchange with the counter, on a connection that has no other exchange at the time.

use std::{collections::VecDeque, io, os::fd::RawFd};

use tallyring_bench::{
    REGISTER, WELCOME, arguments, heads,
    ring::{self, Io, Program},
};

/// The most connections to the counter, opened as needed.
const UPSTREAMS_MAX: usize = 8192;

/// What a socket is.
#[derive(Clone, Copy)]
enum Socket {
    /// A visitor, and whether this is its last visit.
    Client { is_last: bool },
    /// A connection to the counter, and the client that it is used for.
    Upstream(Option<RawFd>),
}

struct Floor {
    counter: String,
    /// By descriptor: they are small and dense.
    sockets: Vec<Option<Socket>>,
    idle: Vec<RawFd>,
    upstreams: usize,
    waiting: VecDeque<RawFd>,
}

impl Floor {
    fn set(&mut self, socket: RawFd, kind: Option<Socket>) {
        let place = socket.unsigned_abs() as usize;
        if self.sockets.len() <= place {
            self.sockets.resize(place + 1, None);
        }
        self.sockets[place] = kind;
    }

    fn of(&self, socket: RawFd) -> Option<Socket> {
        self.sockets.get(socket.unsigned_abs() as usize).copied().flatten()
    }

    fn dial(&mut self, io: &mut Io) -> Option<RawFd> {
        if self.upstreams == UPSTREAMS_MAX {
            return None;
        }
        let upstream = ring::connect(self.counter.as_str()).ok()?;
        self.upstreams += 1;
        io.receive(upstream);
        Some(upstream)
    }

    fn register(&mut self, io: &mut Io, client: RawFd) {
        match self.idle.pop().or_else(|| self.dial(io)) {
            Some(upstream) => {
                self.set(upstream, Some(Socket::Upstream(Some(client))));
                io.send(upstream, REGISTER);
            }
            None => self.waiting.push_back(client),
        }
    }
}

impl Program for Floor {
    fn accepted(&mut self, io: &mut Io, socket: RawFd) {
        self.set(socket, Some(Socket::Client { is_last: false }));
        io.receive(socket);
    }

    fn received(&mut self, io: &mut Io, socket: RawFd, bytes: &[u8]) {
        match self.of(socket) {
            Some(Socket::Client { .. }) => {
                // The visitors of this benchmark send `connection: close` as the last field.
                if bytes.ends_with(b"close\r\n\r\n") {
                    self.set(socket, Some(Socket::Client { is_last: true }));
                }
                (0..heads(bytes)).for_each(|_| self.register(io, socket));
            }
            Some(Socket::Upstream(client)) => {
                if let Some(client) = client {
                    io.send(client, WELCOME);
                    if let Some(Socket::Client { is_last: true }) = self.of(client) {
                        io.finish(client);
                    }
                }
                match self.waiting.pop_front() {
                    Some(client) => {
                        self.set(socket, Some(Socket::Upstream(Some(client))));
                        io.send(socket, REGISTER);
                    }
                    None => {
                        self.set(socket, Some(Socket::Upstream(None)));
                        self.idle.push(socket);
                    }
                }
            }
            None => {}
        }
    }

    fn closed(&mut self, _io: &mut Io, socket: RawFd) {
        if matches!(self.of(socket), Some(Socket::Upstream(_))) {
            self.upstreams -= 1;
        }
        self.set(socket, None);
        self.idle.retain(|idle| *idle != socket);
    }
}

fn main() -> io::Result<()> {
    let [address, counter] = arguments(["127.0.0.1:3000", "127.0.0.1:3001"]);
    let listener = ring::listen(&address)?;
    let mut floor = Floor {
        counter,
        sockets: Vec::new(),
        idle: Vec::new(),
        upstreams: 0,
        waiting: VecDeque::new(),
    };
    ring::run(Some(&listener), &mut floor)
}
