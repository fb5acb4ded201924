//! Each visit has a call of its own. The calls that are ready in one turn leave in one write, over few connections, and
//! wait for no answer.

use std::{collections::VecDeque, net::SocketAddr, os::fd::RawFd, sync::LazyLock};

use super::{Answers, Calls, Visitors, dial};
use crate::{REGISTER, ring::Io};

/// The most connections to the counter, opened as needed.
const CONNECTIONS_MAX: usize = 4;
/// The most calls without an answer on a connection. They fit into its send buffer, so that no write waits for room
/// while the next one overtakes it.
const UNANSWERED_MAX: usize = 1024;

/// The most calls of a connection, one after the other.
static CALLS: LazyLock<Vec<u8>> = LazyLock::new(|| REGISTER.repeat(UNANSWERED_MAX));

struct Connection {
    socket: RawFd,
    /// The visitors whose calls have no answer yet, in the order of the calls.
    unanswered: VecDeque<RawFd>,
    answers: Answers,
}

pub(super) struct Pipelined {
    counter: SocketAddr,
    connections: Vec<Connection>,
    /// Visitors whose calls leave at the end of the turn.
    ready: VecDeque<RawFd>,
}

impl Pipelined {
    pub(super) fn new(counter: SocketAddr) -> Self {
        Self { counter, connections: Vec::new(), ready: VecDeque::new() }
    }

    /// The connection for the next write: one without a call, else a new one, else the one with the fewest calls.
    fn choose(&mut self, io: &mut Io) -> Option<&mut Connection> {
        let is_busy = self.connections.iter().all(|connection| !connection.unanswered.is_empty());
        if is_busy
            && self.connections.len() < CONNECTIONS_MAX
            && let Some(socket) = dial(io, self.counter)
        {
            let (unanswered, answers) = (VecDeque::new(), Answers::default());
            self.connections.push(Connection { socket, unanswered, answers });
        }
        let least =
            self.connections.iter_mut().min_by_key(|connection| connection.unanswered.len());
        least.filter(|connection| connection.unanswered.len() < UNANSWERED_MAX)
    }
}

impl Calls for Pipelined {
    fn register(&mut self, _io: &mut Io, visitor: RawFd) {
        self.ready.push_back(visitor);
    }

    fn answered(&mut self, io: &mut Io, visitors: &mut Visitors, socket: RawFd, bytes: usize) {
        let connection = self.connections.iter_mut().find(|one| one.socket == socket);
        let Some(Connection { unanswered, answers, .. }) = connection else { return };
        for _ in 0..answers.complete(bytes) {
            if let Some(visitor) = unanswered.pop_front() {
                visitors.welcome(io, visitor);
            }
        }
    }

    fn turn_ended(&mut self, io: &mut Io) {
        while !self.ready.is_empty() {
            let Some(Connection { socket, unanswered, .. }) = self.choose(io) else { return };
            let (socket, room) = (*socket, UNANSWERED_MAX - unanswered.len());
            let count = self.ready.len().min(room);
            io.send(socket, &CALLS[..count * REGISTER.len()]);
            let sent = self.ready.drain(..count);
            if let Some(connection) = self.connections.iter_mut().find(|one| one.socket == socket) {
                connection.unanswered.extend(sent);
            }
        }
    }

    fn closed(&mut self, socket: RawFd) {
        self.connections.retain(|connection| connection.socket != socket);
    }
}
