//! The counter stub: a fast counter that counts nothing. `stub ADDRESS`

use std::{env, io, net::TcpListener, os::fd::RawFd};

use tallyring_bench::{
    COUNTED, heads,
    ring::{self, Io, Program},
};

struct Stub;

impl Program for Stub {
    fn accepted(&mut self, io: &mut Io, socket: RawFd) {
        io.receive(socket);
    }

    fn received(&mut self, io: &mut Io, socket: RawFd, bytes: &[u8]) {
        (0..heads(bytes)).for_each(|_| io.send(socket, COUNTED));
    }

    fn closed(&mut self, _io: &mut Io, _socket: RawFd) {}
}

fn main() -> io::Result<()> {
    let address = env::args().nth(1).unwrap_or_else(|| String::from("127.0.0.1:3001"));
    ring::run(&TcpListener::bind(address)?, &mut Stub)
}
