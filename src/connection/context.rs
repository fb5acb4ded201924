//! What the connections of one worker have in common: their table, their buffers, their limits and
//! metrics. And the handle by which each connection has its place in the table.

use std::{cell::Cell, os::fd::RawFd, rc::Rc, sync::Arc, time::Duration};

use monoio::io::CancelHandle;

use super::{
    table::{ConnectionTable, Phase},
    write_buffer::{PooledWriteBuffer, WriteBufferPool},
};
use crate::{
    http::HeadLimits,
    metrics::WorkerMetrics,
    runtime::{
        budget,
        clock::{self, Moment},
        deadlines::Key,
        read_buffer::ReadBufferPool,
    },
};

/// What the clients of one worker may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientLimits {
    /// The size of a request head.
    pub head: HeadLimits,
    /// The size of a request body, which is read and discarded.
    pub body_bytes_max: u64,
    /// Connections open at a time.
    pub connections_max: usize,
    /// A whole head, from its first byte.
    pub head_timeout: Duration,
    /// A whole body, from the end of its head.
    pub body_timeout: Duration,
    /// Between two requests.
    pub idle_timeout: Duration,
    /// Until the client takes some of what is written.
    pub write_timeout: Duration,
    /// For one more request of a client that is idle when the server is about to stop.
    pub drain_idle_timeout: Duration,
}

/// What the connections of one worker have in common.
pub struct ClientContext {
    limits: Cell<ClientLimits>,
    metrics: Arc<WorkerMetrics>,
    table: ConnectionTable,
    read_buffers: ReadBufferPool,
    write_buffers: WriteBufferPool,
    draining: Cell<bool>,
}

/// A connection's place in the table, for as long as it is open.
pub struct ClientHandle {
    context: Rc<ClientContext>,
    key: Key,
}

impl ClientContext {
    /// No connections yet.
    pub fn new(limits: ClientLimits, metrics: Arc<WorkerMetrics>) -> Rc<Self> {
        Rc::new(Self {
            table: ConnectionTable::new(&limits),
            read_buffers: ReadBufferPool::new(limits.head.head_bytes_max),
            write_buffers: WriteBufferPool::default(),
            draining: Cell::new(false),
            limits: Cell::new(limits),
            metrics,
        })
    }

    /// What the clients may do.
    pub fn limits(&self) -> ClientLimits {
        self.limits.get()
    }

    /// From now on, the clients may do this. A head that grows is judged by it, and a wait that has begun ends by
    /// it; a body under way is not. Clients beyond the new number stay until somebody wants their place.
    pub fn set_limits(&self, limits: ClientLimits) {
        self.limits.set(limits);
        self.read_buffers.set_large_bytes(limits.head.head_bytes_max);
        self.table.set_limits(&limits);
    }

    /// The worker's large read buffers.
    pub fn read_buffers(&self) -> &ReadBufferPool {
        &self.read_buffers
    }

    /// An empty write buffer.
    pub fn write_buffer(&self) -> PooledWriteBuffer<'_> {
        self.write_buffers.take()
    }

    /// The worker's counts.
    pub fn metrics(&self) -> &Arc<WorkerMetrics> {
        &self.metrics
    }

    /// Whether no request is taken after those that have begun.
    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Whether a client that begins a request is told that it is the last, since it has to make room.
    pub fn closes_for_newcomer(&self) -> bool {
        let closes = self.table.take_slot_wanted();
        if closes {
            self.metrics.evicted.increment();
        }
        closes
    }

    /// Gives a connection that was accepted its place. Its socket stays open until the handle is dropped.
    pub fn register(self: &Rc<Self>, socket: RawFd) -> ClientHandle {
        self.metrics.accepted.increment();
        self.metrics.connections.increment();
        ClientHandle { context: Rc::clone(self), key: self.table.insert(socket) }
    }

    /// Waits until another connection is allowed, and makes a client leave for it if one may be made to.
    /// `look` is called each time around; no wait is longer than a tick. Ends at once while the worker drains.
    pub async fn wait_for_capacity(&self, mut look: impl FnMut()) {
        let since = clock::now();
        while !self.table.has_capacity() && !self.is_draining() {
            look();
            // What was received at the same time is read first: it tells who is not idle.
            budget::pause().await;
            if !self.table.has_capacity() {
                self.evict(since);
                self.table.changed().await;
            }
        }
    }

    /// Closes one client, if one may be closed, for a newcomer who waits since `since`: see
    /// [`ConnectionTable::evict`].
    pub fn evict(&self, since: Moment) {
        let now = clock::now();
        if self.table.evict(now.since(since), now) {
            self.metrics.evicted.increment();
        }
    }

    /// Takes one more request from each client, which is told that it was the last; those that send
    /// none are closed when the time for it is up.
    ///
    /// HTTP/1.1 has no other way to say so: a connection that is closed at once may already have a
    /// request on its way, which would be lost (RFC 9112 section 9.5).
    pub fn drain(&self) {
        self.draining.set(true);
        self.table.drain(clock::now());
        self.expire();
    }

    /// Waits until the last client has left.
    pub async fn all_closed(&self) {
        while self.table.len() > 0 {
            self.table.changed().await;
        }
    }

    /// Ends the waits whose time is up.
    pub fn expire(&self) {
        self.table.expire(clock::now());
    }
}

impl ClientHandle {
    /// What the worker's connections have in common.
    pub fn context(&self) -> &ClientContext {
        &self.context
    }

    /// The client is waited for. A wait for the rest of something goes on from its beginning.
    pub fn arm_deadline(&self, phase: Phase) {
        self.context.table.arm_deadline(self.key, phase, clock::now());
    }

    /// The client waits for us.
    pub fn disarm_deadline(&self) {
        self.context.table.disarm_deadline(self.key);
    }

    /// The phase whose time was up, if one was.
    pub fn expired_phase(&self) -> Option<Phase> {
        self.context.table.expired_phase(self.key)
    }

    /// Whether bytes have arrived that nobody has read.
    pub fn has_unread(&self) -> bool {
        self.context.table.has_unread(self.key)
    }

    /// What ends a read of the rest of a request when its time is up.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.context.table.cancel_handle(self.key)
    }

    /// The read that had a cancel handle has ended.
    pub fn forget_canceller(&self) {
        self.context.table.forget_canceller(self.key);
    }
}

impl Drop for ClientHandle {
    fn drop(&mut self) {
        self.context.metrics.connections.decrement();
        self.context.table.remove(self.key);
    }
}
