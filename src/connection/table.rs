//! The table of a worker's connections: what the worker waits for from each client, until when, and which client is
//! closed for a newcomer when the table is full.
//!
//! ```text
//!            first byte            head whole        body whole
//!   Idle ---------------> Head ---------------> Body ----------+
//!    ^                      |                                  v
//!    |                      +---- without a body -----> (not waited for: the service works)
//!    |   all written                                           |
//!    +-------------------- Write <-----------------------------+
//!                            | a refusal, or the last answer
//!                            v
//!                          Linger ---> closed
//!
//!   While the worker drains, DrainIdle takes the place of Idle.
//! ```
//!
//! Knows sockets only to shut them down, and nothing of what is read or written.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    mem,
    net::IpAddr,
    os::fd::RawFd,
    task::{Poll, Waker},
    time::Duration,
};

use enum_map::Enum;
use monoio::io::{CancelHandle, Canceller};
use nix::sys::socket::{MsgFlags, Shutdown, recv, shutdown};
use slotmap::SparseSecondaryMap;

use super::ClientLimits;
use crate::runtime::{
    clock::Moment,
    deadlines::{Deadlines, Key},
};

/// How long a client that was refused may take to close its side.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);

/// At the limit of connections, how long a client that is not idle keeps its place in a phase while newcomers wait.
/// It is checked each tick, so a newcomer waits less than a second.
const SHARE: Duration = Duration::from_millis(800);

/// How long a client keeps its place at least: an idle one has just connected, or was just answered, and is about to
/// send a request; another is in the middle of a read or a write that takes no time. At the latest, idle clients leave
/// once a newcomer has waited for [`SHARE`].
const SHARE_MIN: Duration = Duration::from_millis(100);

/// What the worker waits for from a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
pub enum Phase {
    /// The first byte of a request.
    Idle,
    /// The rest of a request head.
    Head,
    /// The rest of a request body.
    Body,
    /// Progress of a write.
    Write,
    /// The close, after a refusal.
    Linger,
    /// The first byte of a last request, before the server stops.
    DrainIdle,
}

impl Phase {
    /// The phases, other than idle, in which a slow client may be closed for a newcomer.
    const BUSY: [Self; 4] = [Self::Head, Self::Body, Self::Write, Self::Linger];

    fn timeout(self, limits: &ClientLimits) -> Duration {
        match self {
            Self::Idle => limits.idle_timeout,
            Self::Head => limits.head_timeout,
            Self::Body => limits.body_timeout,
            Self::Write => limits.write_timeout,
            Self::Linger => LINGER_TIMEOUT,
            Self::DrainIdle => limits.drain_idle_timeout,
        }
    }
}

/// The connections of one worker.
pub struct ConnectionTable {
    entries: RefCell<Deadlines<Entry, Phase>>,
    connections_max: Cell<usize>,
    /// They cancel the reads of the rest of a request. Few clients are in the middle of one.
    cancellers: RefCell<SparseSecondaryMap<Key, Canceller>>,
    /// A newcomer has waited for long, and all clients have requests in progress: the next request that begins is the
    /// last of its connection.
    slot_wanted: Cell<bool>,
    /// Of the accept loops and the drain, which wait for a client to leave or to become idle.
    waiting: RefCell<Vec<Waker>>,
}

struct Entry {
    /// Open for as long as the entry exists: the connection is removed before it closes.
    socket: RawFd,
    /// Who is on the other side.
    peer: IpAddr,
    expired: Option<Phase>,
}

impl ConnectionTable {
    /// No connections yet.
    pub fn new(limits: &ClientLimits) -> Self {
        Self {
            entries: RefCell::new(Deadlines::new(|phase: Phase| phase.timeout(limits))),
            connections_max: Cell::new(limits.connections_max),
            cancellers: RefCell::default(),
            slot_wanted: Cell::new(false),
            waiting: RefCell::default(),
        }
    }

    /// Applies new limits, also to waits that have begun. Connections beyond a smaller number stay.
    pub fn set_limits(&self, limits: &ClientLimits) {
        let mut entries = self.entries.borrow_mut();
        for queue in 0..Phase::LENGTH {
            let phase = Phase::from_usize(queue);
            entries.set_timeout(phase, phase.timeout(limits));
        }
        drop(entries);
        self.connections_max.set(limits.connections_max);
        // There may be capacity now.
        self.wake_waiting();
    }

    /// The number of connections.
    pub fn len(&self) -> usize {
        self.entries.borrow().len()
    }

    /// Whether another connection is allowed.
    pub fn has_capacity(&self) -> bool {
        self.len() < self.connections_max.get()
    }

    /// Adds a connection to `peer`. Its socket stays open until it is removed.
    pub fn insert(&self, socket: RawFd, peer: IpAddr) -> Key {
        self.slot_wanted.set(false);
        self.entries.borrow_mut().insert(Entry { socket, peer: peer.to_canonical(), expired: None })
    }

    /// Removes a connection that is about to close.
    pub fn remove(&self, key: Key) {
        self.entries.borrow_mut().remove(key);
        self.forget_canceller(key);
        self.wake_waiting();
    }

    /// The worker waits for the client from `now` on. A wait for the rest of a head or body keeps its first deadline.
    pub fn arm_deadline(&self, key: Key, phase: Phase, now: Moment) {
        let mut entries = self.entries.borrow_mut();
        let continues = matches!(phase, Phase::Head | Phase::Body);
        if continues && entries.queue_of(key) == Some(phase) {
            return;
        }
        entries.arm(key, phase, now);
        drop(entries);
        if phase == Phase::Idle {
            // An accept loop that waits for capacity may close this client.
            self.wake_waiting();
        }
    }

    /// The client waits for the worker.
    pub fn disarm_deadline(&self, key: Key) {
        self.entries.borrow_mut().disarm(key);
    }

    /// Who is on the other sides.
    #[cfg(test)]
    pub fn peers(&self) -> Vec<IpAddr> {
        self.entries.borrow().values().map(|entry| entry.peer).collect()
    }

    /// Its proxy has named `peer` as who is on the other side.
    pub fn set_peer(&self, key: Key, peer: IpAddr) {
        if let Some(entry) = self.entries.borrow_mut().get_mut(key) {
            // An IPv4 client of an IPv6 socket is the same client.
            entry.peer = peer.to_canonical();
        }
    }

    /// Who is on the other side of a connection that was not removed.
    pub fn peer(&self, key: Key) -> IpAddr {
        let entries = self.entries.borrow();
        let Some(entry) = entries.get(key) else { unreachable!("its handle removes it") };
        entry.peer
    }

    /// The phase whose deadline has passed, if one has.
    pub fn expired_phase(&self, key: Key) -> Option<Phase> {
        self.entries.borrow().get(key)?.expired
    }

    /// Whether bytes have arrived that were not read.
    pub fn has_unread(&self, key: Key) -> bool {
        self.entries.borrow().get(key).is_some_and(|entry| has_unread(entry.socket))
    }

    /// Cancels a read of the rest of a request when its deadline passes.
    pub fn cancel_handle(&self, key: Key) -> CancelHandle {
        let canceller = Canceller::new();
        let handle = canceller.handle();
        self.cancellers.borrow_mut().insert(key, canceller);
        handle
    }

    /// The read that had a [handle](Self::cancel_handle) has ended.
    pub fn forget_canceller(&self, key: Key) {
        self.cancellers.borrow_mut().remove(key);
    }

    /// Whether the request that begins is the last of its connection, because a newcomer needs the place. True once
    /// for each newcomer.
    pub fn take_slot_wanted(&self) -> bool {
        self.slot_wanted.get() && self.slot_wanted.replace(false)
    }

    /// Closes one client for a newcomer who has waited for `waited`; returns whether one was closed. It is the client
    /// that has been idle longest, else the one that has used most of its time for a head, a body, a write or the
    /// close. A busy one keeps its place for [`SHARE`], or for [`SHARE_MIN`] once the newcomer has waited for `SHARE`.
    /// Clients that wait for their answer stay; if there are no others, the next request that begins is the last of
    /// its connection.
    pub fn evict(&self, waited: Duration, now: Moment) -> bool {
        let patient = waited < SHARE;
        let mut entries = self.entries.borrow_mut();
        if evict_idle(&mut entries, now, patient) {
            return true;
        }
        let busiest = Phase::BUSY
            .into_iter()
            .filter_map(|phase| entries.oldest(phase, now))
            .max_by(|(_, one, _), (_, other, _)| one.total_cmp(other));
        let share = if patient { SHARE } else { SHARE_MIN };
        match busiest {
            Some((key, _, waited)) if waited >= share => close(&mut entries, key),
            _ => {
                self.slot_wanted.set(!patient);
                false
            }
        }
    }

    /// Gives idle clients the shorter time of a drain for one last request.
    pub fn drain(&self, now: Moment) {
        let mut entries = self.entries.borrow_mut();
        while let Some(key) = entries.first(Phase::Idle) {
            entries.arm(key, Phase::DrainIdle, now);
        }
    }

    /// Ends the waits whose deadlines have passed at `now`. The sockets are shut down, so that the pending operations
    /// end by themselves: a cancel would race with their completion.
    ///
    /// A client that gets an answer because it was too slow may still be sending, and the kernel resets a connection
    /// that receives more when both of its sides are shut (RFC 1122 section 4.2.2.13): its read is cancelled instead,
    /// and still awaited.
    pub fn expire(&self, now: Moment) {
        let mut entries = self.entries.borrow_mut();
        while let Some((phase, key)) = entries.pop_expired(now) {
            let Some(entry) = entries.get_mut(key) else { continue };
            entry.expired = Some(phase);
            let side = match phase {
                Phase::Head | Phase::Body => {
                    drop(self.cancellers.borrow_mut().remove(key).map(Canceller::cancel));
                    continue;
                }
                // A request that has already arrived is still answered.
                Phase::Idle | Phase::DrainIdle => Shutdown::Read,
                Phase::Write | Phase::Linger => Shutdown::Both,
            };
            shut_down(entry.socket, side);
        }
        drop(entries);
        // Newcomers may have waited long enough now.
        self.wake_waiting();
    }

    /// Waits until a client has left or become idle, or a tick has passed.
    pub async fn changed(&self) {
        let mut registered = false;
        poll_fn(|context| {
            if mem::replace(&mut registered, true) {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Wakes those that wait, with nothing borrowed: they may look at the table at once.
    fn wake_waiting(&self) {
        if self.waiting.borrow().is_empty() {
            return;
        }
        let waiting = self.waiting.take();
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// Closes the client that has been idle longest, if it may be closed; returns whether it was.
///
/// A client whose request has begun to arrive is not idle, even if nothing of it was read: its time for a head starts
/// now.
fn evict_idle(entries: &mut Deadlines<Entry, Phase>, now: Moment, patient: bool) -> bool {
    while let Some((key, _, idle)) = entries.oldest(Phase::Idle, now) {
        let Some(entry) = entries.get(key) else { return false };
        let socket = entry.socket;
        if has_unread(socket) {
            entries.arm(key, Phase::Head, now);
        } else if patient && idle < SHARE_MIN {
            return false;
        } else {
            entries.disarm(key);
            // Only the receiving side: what arrives before this takes effect is still answered.
            shut_down(socket, Shutdown::Read);
            return true;
        }
    }
    false
}

/// Closes a client that is not idle; what it still sends, or has not received, is lost.
fn close(entries: &mut Deadlines<Entry, Phase>, key: Key) -> bool {
    let Some(entry) = entries.get(key) else { return false };
    shut_down(entry.socket, Shutdown::Both);
    entries.disarm(key);
    true
}

fn has_unread(socket: RawFd) -> bool {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    matches!(recv(socket, &mut [0], flags), Ok(1..))
}

fn shut_down(socket: RawFd, side: Shutdown) {
    // An error means that the peer has closed already.
    let _ = shutdown(socket, side);
}
