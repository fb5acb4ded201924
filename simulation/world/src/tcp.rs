//! The TCP of the world.
//!
//! Bytes arrive in their order and after a while. A socket that is closed while it holds unread bytes resets its
//! connection, and so does one that receives more once both of its sides are shut (RFC 1122 section 4.2.2.13); a reset
//! may destroy what its receiver has not read. An address listens, refuses, or never answers.

use std::{
    collections::VecDeque,
    io, mem,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::RawFd,
    rc::Rc,
};

use crate::{
    operation::Kind,
    world::{Process, Sent, SocketKey, What, World},
};

const REFUSED: i32 = 111;
const RESET: i32 = 104;
const BROKEN_PIPE: i32 = 32;
/// What an operation may fail with that has no reason in the world: `ECONNRESET`, `ETIMEDOUT`, `EHOSTUNREACH`,
/// `ENOBUFS`, `EIO`.
const ANY: [i32; 5] = [RESET, 110, 113, 105, 5];
/// `EMFILE`, which an accept may fail with.
const TOO_MANY_FILES: i32 = 24;

/// Before the addresses of those who make connections.
const FIRST_MAKER: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);

/// One end of a connection.
pub(crate) struct Socket {
    /// The stream and the operations that use it.
    pub(crate) references: usize,
    process: Process,
    /// `None` while it waits to be accepted, and once it is closed.
    pub(crate) descriptor: Option<RawFd>,
    pub(crate) peer: SocketKey,
    /// The one that the connection was made to.
    address: SocketAddr,
    /// Who has made it: no two connections have the same.
    pub(crate) maker: IpAddr,
    /// Sent by the peer, and not here yet.
    on_the_way: VecDeque<Segment>,
    last_arrival: u64,
    received: VecDeque<u8>,
    /// The peer sends no more.
    ended: bool,
    reset: bool,
    shut_read: bool,
    shut_write: bool,
    closed: bool,
    /// Whether its close is a reset, as by `SO_LINGER` of 0 seconds.
    pub(crate) resets: bool,
    pub(crate) name: Rc<str>,
}

enum Segment {
    Data(Vec<u8>),
    End,
    Reset,
}

/// What listens at an address.
pub(crate) struct Backlog {
    pub(crate) process: Process,
    pub(crate) waiting: VecDeque<SocketKey>,
    /// It answers nobody.
    pub(crate) hangs: bool,
}

impl Socket {
    fn new(process: Process, address: SocketAddr, maker: IpAddr, peer: SocketKey) -> Self {
        Self {
            references: 1,
            process,
            descriptor: None,
            peer,
            address,
            maker,
            on_the_way: VecDeque::new(),
            last_arrival: 0,
            received: VecDeque::new(),
            ended: false,
            reset: false,
            shut_read: false,
            shut_write: false,
            closed: false,
            resets: false,
            name: Rc::from(""),
        }
    }

    /// What its peer has sent and it has not read.
    fn unread(&self) -> usize {
        let on_the_way = self.on_the_way.iter().map(|segment| match segment {
            Segment::Data(bytes) => bytes.len(),
            Segment::End | Segment::Reset => 0,
        });
        self.received.len() + on_the_way.sum::<usize>()
    }
}

fn error(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

impl World {
    fn any_error(&mut self) -> io::Error {
        let place = self.rng.usize(0..ANY.len());
        error(ANY[place])
    }

    /// Connects, unless nobody answers.
    pub(crate) fn connect(
        &mut self,
        process: Process,
        address: SocketAddr,
    ) -> Option<io::Result<SocketKey>> {
        if process.is_ours() && self.fails() {
            return Some(Err(self.any_error()));
        }
        let Some(backlog) = self.backlogs.get(&address) else { return Some(Err(error(REFUSED))) };
        if backlog.hangs {
            return None;
        }
        let server = backlog.process;
        self.connections += 1;
        let maker = IpAddr::V4(Ipv4Addr::from_bits(FIRST_MAKER.to_bits() + self.connections));
        let socket = Socket::new(process, address, maker, SocketKey::default());
        let here = self.sockets.insert(socket);
        let there = self.sockets.insert(Socket::new(server, address, maker, here));
        let descriptor = self.open_descriptor(process, here);
        let socket = &mut self.sockets[here];
        (socket.peer, socket.descriptor) = (there, Some(descriptor));
        if let Some(backlog) = self.backlogs.get_mut(&address) {
            backlog.waiting.push_back(there);
        }
        self.retry(|kind| kind == Kind::Accept(address));
        Some(Ok(here))
    }

    /// Accepts, if somebody waits.
    pub(crate) fn accept(
        &mut self,
        process: Process,
        address: SocketAddr,
    ) -> Option<io::Result<SocketKey>> {
        if self.backlogs.get(&address)?.waiting.is_empty() {
            return None;
        }
        if process.is_ours() && self.fails() {
            return Some(Err(error(TOO_MANY_FILES)));
        }
        self.take_waiting(process, address).map(Ok)
    }

    pub(crate) fn take_waiting(
        &mut self,
        process: Process,
        address: SocketAddr,
    ) -> Option<SocketKey> {
        let socket = self.backlogs.get_mut(&address)?.waiting.pop_front()?;
        self.sockets[socket].descriptor = Some(self.open_descriptor(process, socket));
        self.trace(format_args!("{} accepts", self.sockets[socket].name));
        Some(socket)
    }

    /// Appends what has arrived, at most `room` bytes; `None` when nothing has.
    pub(crate) fn receive(
        &mut self,
        key: SocketKey,
        room: usize,
        into: &mut Vec<u8>,
    ) -> Option<io::Result<usize>> {
        let ours = self.sockets[key].process.is_ours();
        let held = self.sockets[key].received.len();
        if held == 0 {
            return self.end_of(key);
        }
        if ours && self.fails() {
            return Some(Err(self.any_error()));
        }
        let count = self.cut(held.min(room));
        let socket = &mut self.sockets[key];
        into.extend(socket.received.drain(..count));
        let peer = socket.peer;
        self.retry(|kind| kind == Kind::Write(peer));
        Some(Ok(count))
    }

    /// What a read gives once nothing more has arrived.
    fn end_of(&self, key: SocketKey) -> Option<io::Result<usize>> {
        let socket = &self.sockets[key];
        if socket.reset {
            return Some(Err(error(RESET)));
        }
        (socket.ended || socket.shut_read).then_some(Ok(0))
    }

    pub(crate) fn peek(&self, key: SocketKey, buffer: &mut [u8]) -> Option<io::Result<usize>> {
        let held = &self.sockets[key].received;
        if held.is_empty() {
            return self.end_of(key);
        }
        let pairs = buffer.iter_mut().zip(held);
        Some(Ok(pairs.map(|(to, from)| *to = *from).count()))
    }

    /// Sends some of `bytes`; `None` while the peer has no room for them.
    pub(crate) fn write(&mut self, key: SocketKey, bytes: &[u8]) -> Option<io::Result<usize>> {
        let socket = &self.sockets[key];
        let (process, peer) = (socket.process, socket.peer);
        if socket.reset {
            return Some(Err(error(RESET)));
        }
        if socket.shut_write {
            return Some(Err(error(BROKEN_PIPE)));
        }
        let room = self.settings.window.saturating_sub(self.sockets[peer].unread());
        if room == 0 {
            return None;
        }
        if process.is_ours() && self.fails() {
            return Some(Err(self.any_error()));
        }
        let count = self.cut(bytes.len().min(room));
        if let Some(observer) = self.observer.clone() {
            let address = self.sockets[key].address;
            observer(&Sent { process, socket: key, address, offered: bytes, taken: count });
        }
        self.trace(format_args!(
            "{} sends {:?}",
            self.sockets[key].name,
            String::from_utf8_lossy(&bytes[..count.min(120)])
        ));
        self.send(key, Segment::Data(bytes[..count].to_vec()));
        Some(Ok(count))
    }

    /// `count`, or less of it.
    fn cut(&mut self, count: usize) -> usize {
        if count > 1 && self.chance(self.settings.cuts) { self.rng.usize(1..count) } else { count }
    }

    fn send(&mut self, from: SocketKey, segment: Segment) {
        let delay = self.delay(self.settings.latency);
        let to = self.sockets[from].peer;
        let at = (self.now() + delay).max(self.sockets[to].last_arrival);
        let socket = &mut self.sockets[to];
        socket.last_arrival = at;
        socket.on_the_way.push_back(segment);
        self.at(at, What::Arrival(to));
    }

    pub(crate) fn arrive(&mut self, key: SocketKey) {
        let Some(socket) = self.sockets.get_mut(key) else { return };
        let Some(segment) = socket.on_the_way.pop_front() else { return };
        if socket.reset {
            return;
        }
        match segment {
            Segment::Data(bytes) => {
                if socket.closed || (socket.shut_read && socket.shut_write) {
                    socket.reset = true;
                    socket.received.clear();
                    self.send(key, Segment::Reset);
                } else {
                    socket.received.extend(bytes);
                }
            }
            Segment::End => socket.ended = true,
            Segment::Reset => {
                socket.reset = true;
                if self.rng.bool() {
                    self.sockets[key].received.clear();
                }
                self.trace(format_args!("{} is reset", self.sockets[key].name));
            }
        }
        self.retry(|kind| kind == Kind::Read(key) || kind == Kind::Write(key));
    }

    pub(crate) fn shut_down(&mut self, key: SocketKey, read: bool, write: bool) {
        let socket = &mut self.sockets[key];
        socket.shut_read |= read;
        if write && !mem::replace(&mut socket.shut_write, true) {
            self.trace(format_args!("{} sends the end", self.sockets[key].name));
            self.send(key, Segment::End);
        }
        self.retry(|kind| kind == Kind::Read(key) || kind == Kind::Write(key));
    }

    /// One that used it uses it no more.
    pub(crate) fn release(&mut self, key: SocketKey) {
        let Some(socket) = self.sockets.get_mut(key) else { return };
        socket.references = socket.references.saturating_sub(1);
        if socket.references == 0 {
            self.close(key);
        }
    }

    pub(crate) fn close(&mut self, key: SocketKey) {
        let socket = &mut self.sockets[key];
        if mem::replace(&mut socket.closed, true) {
            return;
        }
        let process = socket.process;
        if let Some(descriptor) = socket.descriptor.take() {
            self.close_descriptor(process, descriptor);
        }
        let socket = &mut self.sockets[key];
        let unread = !mem::take(&mut socket.received).is_empty();
        if socket.reset {
            return;
        }
        if unread || socket.resets {
            socket.reset = true;
            self.trace(format_args!("{} closes by a reset", self.sockets[key].name));
            self.send(key, Segment::Reset);
        } else if !mem::replace(&mut socket.shut_write, true) {
            self.trace(format_args!("{} closes", self.sockets[key].name));
            self.send(key, Segment::End);
        }
    }
}

impl Process {
    /// The first of the processes that the world acts with, rather than those that are tried.
    pub const PEERS: Self = Self(100);

    /// Whether it is one of those that are tried: their operations may fail without a reason.
    pub fn is_ours(self) -> bool {
        self < Self::PEERS
    }
}
