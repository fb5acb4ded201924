//! The descriptors of one process: the lowest free number is given out first, as a kernel does, so that a number that
//! was closed soon names another socket.

use std::os::fd::RawFd;

use crate::world::SocketKey;

/// Those below are standard input, output and error.
const FIRST: usize = 3;

/// The open descriptors of a process.
#[derive(Debug, Default)]
pub(crate) struct Descriptors(Vec<Option<SocketKey>>);

impl Descriptors {
    /// Gives `socket` the lowest free number.
    pub(crate) fn open(&mut self, socket: SocketKey) -> RawFd {
        let free = self.0.iter().position(Option::is_none);
        let place = free.unwrap_or_else(|| {
            self.0.push(None);
            self.0.len() - 1
        });
        self.0[place] = Some(socket);
        RawFd::try_from(place + FIRST).unwrap_or(RawFd::MAX)
    }

    pub(crate) fn get(&self, descriptor: RawFd) -> Option<SocketKey> {
        *self.0.get(place(descriptor)?)?
    }

    pub(crate) fn close(&mut self, descriptor: RawFd) {
        if let Some(slot) = place(descriptor).and_then(|place| self.0.get_mut(place)) {
            *slot = None;
        }
    }

    /// All sockets that are open.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = SocketKey> + '_ {
        self.0.iter().copied().flatten()
    }
}

fn place(descriptor: RawFd) -> Option<usize> {
    usize::try_from(descriptor).ok()?.checked_sub(FIRST)
}
