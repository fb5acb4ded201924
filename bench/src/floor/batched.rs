//! The visits that arrive while a call is in flight are registered together by the next call.

use std::{net::SocketAddr, os::fd::RawFd, sync::LazyLock};

use super::{Answers, Calls, Visitors, dial};
use crate::{REGISTER, ring::Io};

/// The most visits of a call.
const VISITS_MAX: usize = 4096;

/// The call for each number of visits, from 1.
static CALLS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let one = String::from_utf8_lossy(REGISTER);
    let call = |visits| one.replacen("/counter", &format!("/counter?by={visits}"), 1).into_bytes();
    (1..=VISITS_MAX).map(call).collect()
});

pub(super) struct Batched {
    counter: SocketAddr,
    connection: Option<RawFd>,
    answers: Answers,
    /// The visitors whose visits the call in flight registers.
    calling: Vec<RawFd>,
    /// Those who wait for the next one.
    waiting: Vec<RawFd>,
}

impl Batched {
    pub(super) fn new(counter: SocketAddr) -> Self {
        LazyLock::force(&CALLS);
        let (calling, waiting) = (Vec::new(), Vec::new());
        Self { counter, connection: None, answers: Answers::default(), calling, waiting }
    }
}

impl Calls for Batched {
    fn register(&mut self, _io: &mut Io, visitor: RawFd) {
        self.waiting.push(visitor);
    }

    fn answered(&mut self, io: &mut Io, visitors: &mut Visitors, _socket: RawFd, bytes: usize) {
        if self.answers.complete(bytes) > 0 {
            self.calling.drain(..).for_each(|visitor| visitors.welcome(io, visitor));
        }
    }

    fn turn_ended(&mut self, io: &mut Io) {
        if self.waiting.is_empty() || !self.calling.is_empty() {
            return;
        }
        self.connection = self.connection.or_else(|| dial(io, self.counter));
        let Some(socket) = self.connection else { return };
        self.calling.extend(self.waiting.drain(..self.waiting.len().min(VISITS_MAX)));
        io.send(socket, &CALLS[self.calling.len() - 1]);
    }

    fn closed(&mut self, _socket: RawFd) {
        self.connection = None;
        self.answers = Answers::default();
        self.calling.clear();
    }
}
