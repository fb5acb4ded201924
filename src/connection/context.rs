//! What the connections of one worker have in common: their table, their buffers, their limits and metrics. And the
//! handle of a connection in that table.

use std::{
    cell::Cell,
    net::{IpAddr, SocketAddr},
    os::fd::RawFd,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use monoio::io::CancelHandle;

use super::{
    departures::Departures,
    table::{ConnectionTable, Phase},
    write_buffer::{PooledWriteBuffer, WriteBufferPool},
};
use crate::{
    access_log::{Recorder, is_trusted},
    http::HeadLimits,
    metrics::{BadRequest, WorkerMetrics},
    proxy_protocol::HEADER_BYTES_MAX,
    runtime::{
        budget,
        clock::{self, Moment},
        deadlines::Key,
        read_buffer::ReadBufferPool,
    },
};

/// How long a worker says nothing more of connections that began without a PROXY header.
const TELL_PAUSE: Duration = Duration::from_secs(60);

/// How long a newcomer who has closed a client waits for it to leave, before it closes another one.
const EVICT_PAUSE: Duration = Duration::from_millis(100);

/// The limits of the clients of one worker.
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
    /// Until a write makes progress.
    pub write_timeout: Duration,
    /// For one more request of a client that is idle when the server is about to stop.
    pub drain_idle_timeout: Duration,
    /// Whether each connection must begin with a PROXY header, within the time for a head.
    pub proxy_protocol: bool,
}

impl ClientLimits {
    /// The largest read that is not whole.
    fn unread_bytes_max(&self) -> usize {
        let header_bytes_max = if self.proxy_protocol { HEADER_BYTES_MAX } else { 0 };
        self.head.head_bytes_max.max(header_bytes_max)
    }
}

/// What the connections of one worker have in common.
pub struct ClientContext {
    limits: Cell<ClientLimits>,
    metrics: Arc<WorkerMetrics>,
    table: ConnectionTable,
    read_buffers: ReadBufferPool,
    write_buffers: WriteBufferPool,
    draining: Cell<bool>,
    /// Requests that were served in the drain with others behind them.
    drained: Cell<u32>,
    departures: Departures,
    /// Nothing is said before this of connections without a PROXY header.
    tell_after: Cell<Moment>,
    access_log: Option<Rc<Recorder>>,
    /// Who may begin a connection with a PROXY header; nobody in it is everybody.
    trusted_proxies: Arc<[IpNet]>,
}

/// Requests of all clients of a worker that are served in a drain with others behind them.
pub(super) const DRAINED_MAX: u32 = 4096;

/// A connection's place in the table, for as long as it is open.
pub struct ClientHandle {
    context: Rc<ClientContext>,
    key: Key,
}

impl ClientContext {
    /// No connections yet. Their requests are recorded by `access_log`, if there is one.
    pub fn new(
        limits: ClientLimits,
        metrics: Arc<WorkerMetrics>,
        access_log: Option<Recorder>,
        trusted_proxies: Arc<[IpNet]>,
    ) -> Rc<Self> {
        Rc::new(Self {
            table: ConnectionTable::new(&limits),
            read_buffers: ReadBufferPool::new(limits.unread_bytes_max()),
            write_buffers: WriteBufferPool::default(),
            draining: Cell::new(false),
            drained: Cell::new(0),
            departures: Departures::default(),
            tell_after: Cell::new(clock::now()),
            limits: Cell::new(limits),
            metrics,
            access_log: access_log.map(Rc::new),
            trusted_proxies,
        })
    }

    /// What the clients may do.
    pub fn limits(&self) -> ClientLimits {
        self.limits.get()
    }

    /// Applies new limits, also to heads that are not whole and to waits that have begun, but not to a body that is
    /// being read; a PROXY header, to connections that are accepted from now on. Clients beyond the new number stay
    /// until another client needs their place.
    pub fn set_limits(&self, limits: ClientLimits) {
        self.limits.set(limits);
        self.read_buffers.set_large_bytes(limits.unread_bytes_max());
        self.table.set_limits(&limits);
    }

    /// The worker's large read buffers.
    pub fn read_buffers(&self) -> &ReadBufferPool {
        &self.read_buffers
    }

    /// An empty write buffer, which holds no memory yet.
    pub fn write_buffer(&self) -> PooledWriteBuffer<'_> {
        self.write_buffers.lend()
    }

    /// How many write buffers the worker has that no client holds.
    #[cfg(test)]
    pub fn spare_write_buffers(&self) -> usize {
        self.write_buffers.spares()
    }

    /// The worker's counts.
    pub fn metrics(&self) -> &Arc<WorkerMetrics> {
        &self.metrics
    }

    /// Who is connected.
    #[cfg(test)]
    pub fn peers(&self) -> Vec<IpAddr> {
        self.table.peers()
    }

    /// What records the requests.
    pub fn access_log(&self) -> Option<&Rc<Recorder>> {
        self.access_log.as_ref()
    }

    /// Whether the worker takes no more requests after those that have begun.
    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// In a drain, whether another request is served besides the one that begins: what a client has sent before it could
    /// know is not lost. Only so often, since a client may never pause.
    pub fn drains_further(&self) -> bool {
        let drained = self.drained.get();
        self.drained.set(drained.saturating_add(1));
        drained < DRAINED_MAX
    }

    /// Whether the request that a client begins is its last one, because another client needs its place.
    pub fn closes_for_newcomer(&self) -> bool {
        let closes = self.table.take_slot_wanted();
        if closes {
            self.metrics.evicted.increment();
        }
        closes
    }

    /// Adds a connection that `peer` has opened. Its socket stays open until the handle is dropped.
    pub fn register(self: &Rc<Self>, socket: RawFd, peer: IpAddr) -> ClientHandle {
        self.metrics.accepted.increment();
        self.register_moved(socket, peer)
    }

    /// Adds a connection that another worker has accepted, or that was here before.
    pub fn register_moved(self: &Rc<Self>, socket: RawFd, peer: IpAddr) -> ClientHandle {
        self.metrics.connections.increment();
        ClientHandle { context: Rc::clone(self), key: self.table.insert(socket, peer) }
    }

    /// Which connections leave.
    pub fn departures(&self) -> &Departures {
        &self.departures
    }

    /// Whether a PROXY header of `peer` is believed.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        self.trusted_proxies.is_empty() || is_trusted(peer, &self.trusted_proxies)
    }

    /// A connection did not begin with a PROXY header that is believed. It is logged now and then, since a proxy that
    /// sends none makes all connections end in this way.
    pub fn refuse_proxy_header(&self, reason: &dyn std::fmt::Display) {
        self.metrics.refuse(BadRequest::ProxyHeader);
        let now = clock::now();
        if now >= self.tell_after.get() {
            self.tell_after.set(now.after(TELL_PAUSE));
            tracing::warn!(
                "a connection was closed, since --proxy-protocol expects a PROXY header: {reason}; others are counted, \
                 and told once a minute"
            );
        }
    }

    /// Whether another connection can be served at once.
    pub fn has_room(&self) -> bool {
        self.table.has_capacity() || self.is_draining()
    }

    /// Waits until another connection is allowed, and closes a client for it where possible. `look` is called before
    /// each wait, which is at most a tick long. Returns at once while the worker drains.
    pub async fn wait_for_capacity(&self, mut look: impl FnMut()) {
        let since = clock::now();
        // One that was closed may take a moment to leave, and others who wait may take its place. So each of them
        // closes another one only after a pause; else many who wait would close far more clients than they are.
        let mut may_evict = since;
        while !self.has_room() {
            look();
            // What arrived at the same time is read first: it shows which clients are not idle.
            budget::pause().await;
            if !self.table.has_capacity() {
                let now = clock::now();
                if now >= may_evict && self.evict(since) {
                    may_evict = now.after(EVICT_PAUSE);
                }
                self.table.changed().await;
            }
        }
    }

    /// Closes one client, if one may be closed, for a newcomer who has waited since `since`: see
    /// [`ConnectionTable::evict`]. Returns whether one was closed.
    pub fn evict(&self, since: Moment) -> bool {
        let now = clock::now();
        let evicted = self.table.evict(now.since(since), now);
        if evicted {
            self.metrics.evicted.increment();
        }
        evicted
    }

    /// Takes one more request from each client, and tells it that this was the last. Clients that send none are
    /// closed when the time for it has passed.
    ///
    /// HTTP/1.1 has no other way to say so: a connection that is closed at once may already have a
    /// request on its way, which would be lost (RFC 9112 section 9.5).
    pub fn drain(&self) {
        self.draining.set(true);
        self.table.drain(clock::now());
        self.expire();
    }

    /// Waits until the last client has left, and no more come.
    pub async fn all_closed(&self, come: impl Fn() -> bool) {
        while self.table.len() > 0 || come() {
            self.table.changed().await;
        }
    }

    /// Ends the waits whose deadlines have passed.
    pub fn expire(&self) {
        self.table.expire(clock::now());
    }
}

impl ClientHandle {
    /// What the worker's connections have in common.
    pub fn context(&self) -> &ClientContext {
        &self.context
    }

    /// Its proxy has named the client.
    pub fn set_address(&self, client: SocketAddr) {
        tracing::debug!("a connection was relayed for {client}");
        self.context.table.set_peer(self.key, client.ip());
    }

    /// Who is on the other side.
    pub fn peer(&self) -> IpAddr {
        self.context.table.peer(self.key)
    }

    /// The worker waits for the client. A wait for the rest of a head or body keeps its first deadline.
    pub fn arm_deadline(&self, phase: Phase) {
        self.context.table.arm_deadline(self.key, phase, clock::now());
    }

    /// The client waits for the worker.
    pub fn disarm_deadline(&self) {
        self.context.table.disarm_deadline(self.key);
    }

    /// The phase whose deadline has passed, if one has.
    pub fn expired_phase(&self) -> Option<Phase> {
        self.context.table.expired_phase(self.key)
    }

    /// Whether bytes have arrived that were not read.
    pub fn has_unread(&self) -> bool {
        self.context.table.has_unread(self.key)
    }

    /// Cancels a read of the rest of a request when its deadline passes.
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
