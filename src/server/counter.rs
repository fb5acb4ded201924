//! The bundled counter as a worker: one thread for its face, one for its commits.

use std::{
    net::SocketAddr,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use super::{Group, Run, ServerError, describe_drivers};
use crate::{
    connection::ClientLimits,
    counter::{
        COMMIT_TIMEOUT, Committer, HttpFrontend, Job,
        store::{Outcome, Store},
    },
    driver,
    http::hosts::{HostList, Hosts},
    listener::Listener,
    mailbox,
    worker::{self, Order, Plan},
};

/// How long its clients may take to leave when they are our own workers.
const OWN_CLIENTS_DRAIN: Duration = Duration::from_secs(2);

/// How long the store may take to close when the time to finish is up.
const CLOSE_MIN: Duration = Duration::from_secs(1);

/// A counter that runs in this process.
pub(super) struct BundledCounter {
    address: SocketAddr,
    driver: String,
    orders: mailbox::Sender<Order<Vec<Outcome>>>,
    committer: Committer,
}

impl BundledCounter {
    /// Starts it on a listener and lets it serve.
    pub(super) fn start(
        run: &Run,
        listeners: Vec<Listener>,
        store: Box<dyn Store>,
        driver: driver::Choice,
        limits: ClientLimits,
        hosts: HostList,
    ) -> Result<Self, ServerError> {
        let address = listeners[0].address;
        let hosts = Hosts::new(address.ip(), hosts);
        let (orders, receiver) = mailbox::channel()?;
        let report = orders.clone();
        let report = move |outcomes| {
            // Fails only when the face has ended, and with it those who would be answered.
            let _ = report.send(Order::Tell(outcomes));
        };
        let committer = Committer::start(store, report, run.close_reporter())?;
        let jobs = committer.jobs();
        let submit = move |batch| {
            // Fails only after the close, when nobody is answered any more.
            let _ = jobs.send(Job::Commit(batch));
        };
        let plan = Plan {
            name: String::from("counter"),
            core: None,
            driver,
            listeners,
            limits,
            shortest_wait: Some(COMMIT_TIMEOUT),
            metrics: Arc::default(),
            orders: receiver,
            make: move || HttpFrontend::new(Box::new(submit), hosts),
        };
        worker::start(plan, run.reporter(Group::Counter))?;
        let driver = describe_drivers(run.wait_until_ready(Group::Counter, 1)?);
        orders.send(Order::Serve);
        Ok(Self { address, driver, orders, committer })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn driver(&self) -> &str {
        &self.driver
    }

    /// From now on, its clients may do this.
    pub(super) fn set_limits(&self, limits: ClientLimits) {
        // Fails only when it has ended, and then nobody is its client.
        let _ = self.orders.send(Order::Limit(limits, Some(COMMIT_TIMEOUT)));
    }

    /// Has it say that all orders before this one are done.
    pub(super) fn confirm(&self, confirmed: &mpsc::Sender<()>) {
        let _ = self.orders.send(Order::Confirm(confirmed.clone()));
    }

    /// Has it report that it still works.
    pub(super) fn ask(&self) {
        // Fails only when it has ended, and then nobody answers.
        let _ = self.orders.send(Order::Answer);
    }

    /// Stops it once its only clients, our own workers, have drained; its store may take until `end`. A
    /// signal that ends this sooner, if one came.
    pub(super) fn stop(self, run: &Run, end: Instant) -> Option<i32> {
        self.drain_and_close(run, OWN_CLIENTS_DRAIN, end)
    }

    /// Lets calls under way end, `timeout` at most, and closes the store, which may take until `end`
    /// and a moment; the second signal, if one came.
    pub(super) fn drain_and_close(self, run: &Run, timeout: Duration, end: Instant) -> Option<i32> {
        self.orders.send(Order::Drain);
        let cut = run.drain(Group::Counter, 1, timeout);
        self.committer.close();
        let soonest = Instant::now() + CLOSE_MIN;
        let end = if cut.is_some() { soonest } else { end.max(soonest) };
        let (closed, signal) = run.wait_until_closed(end, CLOSE_MIN);
        if !closed {
            tracing::error!(
                "the counter's store hangs and is cut: of the calls that wait for it nobody knows \
                 whether they were counted"
            );
        }
        cut.or(signal)
    }
}
