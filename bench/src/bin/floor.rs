//! The floor: the least this kernel lets a visit cost. `floor ADDRESS COUNTER-ADDRESS`
//!
//! One exchange with the counter for each visit, each on a connection that carries no other.

use std::{collections::VecDeque, env, io, net::TcpListener, os::fd::RawFd};

use tallyring_bench::{
    REGISTER, WELCOME, heads,
    ring::{self, Io, Program},
};

/// Connections to the counter, opened at the start.
const UPSTREAMS: usize = 256;

/// What a socket is.
#[derive(Clone, Copy)]
enum Socket {
    Client,
    /// To the counter, and for which client.
    Upstream(Option<RawFd>),
}

struct Floor {
    counter: String,
    /// By descriptor: they are small and dense.
    sockets: Vec<Option<Socket>>,
    idle: Vec<RawFd>,
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

    fn register(&mut self, io: &mut Io, client: RawFd) {
        match self.idle.pop() {
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
        if self.idle.is_empty() && self.waiting.is_empty() && self.sockets.is_empty() {
            for _ in 0..UPSTREAMS {
                let Ok(upstream) = ring::connect(&self.counter) else { break };
                self.set(upstream, Some(Socket::Upstream(None)));
                self.idle.push(upstream);
                io.receive(upstream);
            }
        }
        self.set(socket, Some(Socket::Client));
        io.receive(socket);
    }

    fn received(&mut self, io: &mut Io, socket: RawFd, bytes: &[u8]) {
        match self.sockets[socket.unsigned_abs() as usize] {
            Some(Socket::Client) => (0..heads(bytes)).for_each(|_| self.register(io, socket)),
            Some(Socket::Upstream(client)) => {
                if let Some(client) = client {
                    io.send(client, WELCOME);
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
        self.set(socket, None);
        self.idle.retain(|idle| *idle != socket);
    }
}

fn main() -> io::Result<()> {
    let mut arguments = env::args().skip(1);
    let mut argument = |default: &str| arguments.next().unwrap_or_else(|| default.to_owned());
    let listener = TcpListener::bind(argument("127.0.0.1:3000"))?;
    let mut floor = Floor {
        counter: argument("127.0.0.1:3001"),
        sockets: Vec::new(),
        idle: Vec::new(),
        waiting: VecDeque::new(),
    };
    ring::run(&listener, &mut floor)
}
