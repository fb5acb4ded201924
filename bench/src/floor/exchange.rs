//! Each visit is one exchange with the counter, on a connection that has no other exchange at the time.

use std::{collections::VecDeque, net::SocketAddr, os::fd::RawFd};

use super::{Calls, Visitors, dial};
use crate::{REGISTER, by_descriptor::ByDescriptor, ring::Io};

/// The most connections to the counter, opened as needed.
const CONNECTIONS_MAX: usize = 8192;

pub(super) struct Exchange {
    counter: SocketAddr,
    /// The visitors whose visits are being registered, by the connection that is used for it.
    calling: ByDescriptor<RawFd>,
    idle: Vec<RawFd>,
    connections: usize,
    waiting: VecDeque<RawFd>,
}

impl Exchange {
    pub(super) fn new(counter: SocketAddr) -> Self {
        Self {
            counter,
            calling: ByDescriptor::default(),
            idle: Vec::new(),
            connections: 0,
            waiting: VecDeque::new(),
        }
    }

    fn dial(&mut self, io: &mut Io) -> Option<RawFd> {
        if self.connections == CONNECTIONS_MAX {
            return None;
        }
        let socket = dial(io, self.counter)?;
        self.connections += 1;
        Some(socket)
    }

    fn call(&mut self, io: &mut Io, socket: RawFd, visitor: RawFd) {
        self.calling.set(socket, visitor);
        io.send(socket, REGISTER);
    }
}

impl Calls for Exchange {
    fn register(&mut self, io: &mut Io, visitor: RawFd) {
        match self.idle.pop().or_else(|| self.dial(io)) {
            Some(socket) => self.call(io, socket, visitor),
            None => self.waiting.push_back(visitor),
        }
    }

    fn answered(&mut self, io: &mut Io, visitors: &mut Visitors, socket: RawFd, _bytes: usize) {
        if let Some(visitor) = self.calling.take(socket) {
            visitors.welcome(io, visitor);
        }
        match self.waiting.pop_front() {
            Some(visitor) => self.call(io, socket, visitor),
            None => self.idle.push(socket),
        }
    }

    fn closed(&mut self, socket: RawFd) {
        self.connections -= 1;
        self.calling.take(socket);
        self.idle.retain(|idle| *idle != socket);
    }
}
