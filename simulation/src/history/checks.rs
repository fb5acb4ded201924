//! What is always true: at every moment, once all have left, and of the books at the end.

use std::sync::Arc;

use super::*;
use crate::{
    handoff::COMING_MAX,
    metrics::WorkerMetrics,
    plan::{Client, Spread},
    record::Visit,
};

/// What the worker's clock may be behind.
const CLOCK: Duration = Duration::from_millis(20);

impl History<'_> {
    /// What is true at every moment.
    pub(super) fn check_limits(&self) {
        self.check_probes();
        self.check_batches();
        for (number, intake) in self.server.intakes.iter().enumerate() {
            if intake.coming() > COMING_MAX {
                self.violation(format_args!("{} come to worker {number}", intake.coming()));
            }
        }
        for (number, metrics) in self.server.metrics.iter().enumerate() {
            let calls = counter_connections(metrics);
            if calls > self.most_calls() {
                self.violation(format_args!("worker {number} has {calls} connections to counters"));
            }
            let clients = metrics.connections.read();
            // A worker that drains serves all whom the kernel has queued: its close would reset them. One that stops
            // takes them, and closes them with its others.
            let ends = self.drains.get() || self.stopped.get();
            if clients > self.most_clients() && !ends {
                self.violation(format_args!("worker {number} has {clients} clients"));
            }
            if clients > 0 && self.server.reports.borrow()[number].drained > 0 {
                self.violation(format_args!("worker {number} drained and has {clients} clients"));
            }
        }
    }

    /// A counter that fails is dialed by probes alone, where visits have another one.
    pub(super) fn check_probes(&self) {
        if self.plan.spread != Spread::Counters {
            return;
        }
        let mut all = self.failing.borrow_mut();
        for (number, metrics) in self.server.metrics.iter().enumerate() {
            for (counter, upstream) in metrics.upstreams().iter().enumerate() {
                let failing = &mut all[number * COUNTERS + counter];
                let (connections, dialed) = (upstream.connections.read(), upstream.dialed.read());
                let others = connections > 1 || upstream.queued.read() > 1;
                *failing = match *failing {
                    _ if upstream.failing.read() == 0 => Failing::No,
                    Failing::No if connections > 0 || others => Failing::Unclear,
                    Failing::No => Failing::Since(world::now(), dialed),
                    Failing::Since(..) if others => Failing::Unclear,
                    known => known,
                };
                let Failing::Since(since, before) = *failing else { continue };
                let (dials, past) = (dialed - before, world::now() - since);
                if u32::try_from(dials).is_ok_and(|dials| PROBE_INTERVAL * dials > past + CLOCK) {
                    self.violation(format_args!(
                        "worker {number} dials counter {counter}, which fails, {dials} times in {past:?}"
                    ));
                }
            }
        }
    }

    /// A batch registers visits that wait for it, and nobody else: those that have left are not in it. The last to leave
    /// may be, as one who leaves when its own call is about to be sent: one of each counter's, since calls of several
    /// counters may leave in one write.
    fn check_batches(&self) {
        if self.plan.batches.is_none() {
            return;
        }
        let (mut all, mut most) = (self.batched.borrow_mut(), 0);
        for (number, metrics) in self.server.metrics.iter().enumerate() {
            let batched = metrics.upstreams().iter().map(|it| it.batched_visits.read()).sum();
            let (sent, in_flight) = (batched - all[number], metrics.in_flight());
            all[number] = batched;
            if sent > in_flight.max(COUNTERS as u64) {
                self.violation(format_args!(
                    "worker {number} registers {sent} visits, and {in_flight} wait for that"
                ));
            }
            most += metrics.started.read() - metrics.refused.read();
        }
        let begun = self.record.begun();
        if begun > most {
            self.violation(format_args!("{begun} visits were sent, and {most} have begun"));
        }
    }

    fn most_calls(&self) -> u64 {
        let acts = self.plan.acts.iter().filter_map(|act| match act.what {
            What::Limits(_, connections, _) => Some(connections),
            _ => None,
        });
        let most = acts.chain([self.plan.upstream.connections_max]).max().unwrap_or(0);
        (most * server::upstreams(self.plan.spread)) as u64
    }

    fn most_clients(&self) -> u64 {
        let acts = self.plan.acts.iter().filter_map(|act| match act.what {
            What::Limits(clients, ..) => Some(clients),
            _ => None,
        });
        acts.chain([self.plan.clients_limits.connections_max]).max().unwrap_or(0) as u64
    }

    /// Nothing is left once all have left.
    pub(super) fn check_left(&self) {
        if self.record.failed() {
            return;
        }
        self.run(self.plan.upstream.call_timeout + self.plan.upstream.idle_timeout + DRAIN_SPARE);
        if self.record.failed() {
            return;
        }
        for (number, metrics) in self.server.metrics.iter().enumerate() {
            let (clients, calls) = (metrics.connections.read(), counter_connections(metrics));
            if (clients, calls) != (0, 0) {
                self.violation(format_args!(
                    "worker {number} keeps {clients} clients and {calls} connections to counters"
                ));
            }
        }
        let served: u64 = self.server.metrics.iter().map(|metrics| metrics.accepted.read()).sum();
        let accepted = self.server.accepted();
        if served != accepted {
            self.violation(format_args!("{accepted} connections were accepted, {served} served"));
        }
        if self.server.intakes.iter().any(|intake| intake.coming() > 0) {
            self.violation(format_args!("a connection that was handed over is still awaited"));
        }
        if !self.server.has_no_calls() {
            self.violation(format_args!("calls or connections to counters are left in a pool"));
        }
        // Its orders and its deadlines: two tasks for each worker.
        let tasks = world::tasks_of(SITE);
        if tasks != 2 * self.plan.workers {
            self.violation(format_args!("{tasks} tasks are left of {} workers", self.plan.workers));
        }
        let descriptors = world::descriptors_of(SITE);
        if descriptors != 0 {
            self.violation(format_args!("{descriptors} descriptors are left open"));
        }
        let Counts { polls, events, .. } = world::counts();
        if polls > events * POLLS_FOR_EVENT {
            self.violation(format_args!("{polls} polls for {events} events"));
        }
        self.server.tell_all(|| Command::Stop);
        self.check_stopped();
        let Some(bundled) = &self.bundled else { return };
        bundled.drain();
        self.run(COMMIT_TIMEOUT + DRAIN_SPARE);
        let left = (world::tasks_of(bundled::COUNTER), world::descriptors_of(bundled::COUNTER));
        if left != (2, 0) {
            self.violation(format_args!(
                "(tasks, descriptors) of the counter that are left: {left:?}"
            ));
        }
    }

    /// Whoever was told to stop has stopped, whatever was in progress.
    pub(super) fn check_stopped(&self) {
        let stopped = self.run_until(STOP_TIME, || self.server.all(|reports| reports.stopped == 1));
        if !stopped && !self.record.failed() {
            self.violation(format_args!("a worker does not stop"));
        }
    }

    /// Takes out what is in the rings of the access log.
    pub(super) fn read_log(&self) {
        for (worker, entries) in self.server.entries.borrow_mut().iter_mut().enumerate() {
            while let Some(entry) = entries.next() {
                self.logged.borrow_mut().push(Logged::of(&entry, worker));
            }
        }
    }

    /// The access log says of each request what its client was told, once, and leaves out what was dropped and counted.
    pub(super) fn check_log(&self) {
        self.read_log();
        let Some(log) = self.plan.access_log else { return };
        if self.record.failed() {
            return;
        }
        let dropped = |metrics: &Arc<WorkerMetrics>| metrics.access_log_dropped.read();
        let dropped: Vec<_> = self.server.metrics.iter().map(dropped).collect();
        let moved = self.server.metrics.iter().map(|metrics| metrics.moved.read()).sum();
        let moved = self.plan.handoff.then_some(moved);
        let is_whole = log.one_in == 1;
        let wrong = self.record.said().check(&self.logged.borrow(), &dropped, is_whole, moved);
        wrong.iter().for_each(|wrong| self.violation(format_args!("the access log: {wrong}")));
    }

    /// The books balance, for each visit, each worker and in total.
    pub(super) fn check_books(&self) {
        if self.record.failed() {
            return;
        }
        // What a killed store wrote, or a counter counts that got a call late.
        self.run(Duration::from_secs(12));
        let visits = self.record.visits();
        self.check_shared(&visits);
        let alone = |(number, _): &(usize, &Visit)| !self.record.is_shared(*number);
        for (number, visit) in visits[..VISITS - PROBES].iter().enumerate().filter(alone) {
            if visit.begun > 1 || visit.counted > 1 {
                self.violation(format_args!("visit {number} was sent more than once: {visit:?}"));
            }
            if visit.welcomed && visit.counted == 0 {
                self.violation(format_args!("visit {number} was welcomed and not counted"));
            }
            if visit.refused && (visit.begun, visit.counted) != (0, 0) {
                self.violation(format_args!("visit {number} was refused and sent: {visit:?}"));
            }
        }
        let turned_away =
            self.plan.clients.iter().filter(|client| {
                client.opening.as_ref().is_some_and(|opening| !opening.is_valid())
            });
        let alone = |number: &usize| !self.record.is_shared(*number);
        for number in turned_away.flat_map(Client::visits).filter(alone) {
            let visit = visits[number];
            if (visit.begun, visit.counted) != (0, 0) {
                self.violation(format_args!("visit {number} had no PROXY header before it"));
            }
        }
        let mut sum = [0; 4];
        for (number, metrics) in self.server.metrics.iter().enumerate() {
            let counted = visits.iter().filter(|visit| visit.worker == number);
            let counted: u64 = counted.map(|visit| visit.counted).sum();
            let (welcomed, erred) = (metrics.welcomed.read(), metrics.erred.read());
            // Once a worker was cut, what it has not told is abandoned.
            let in_flight = metrics.in_flight();
            let abandoned = metrics.abandoned.read() + in_flight;
            if !self.stopped.get() && in_flight > 0 {
                self.violation(format_args!("worker {number} has {in_flight} visits in no book"));
            }
            let books = welcomed + erred + metrics.refused.read() + metrics.abandoned.read();
            if books > metrics.started.read() {
                self.violation(format_args!("worker {number} has visits in two books"));
            }
            if metrics.panics.read() > 0 {
                let panic = PANIC.take().unwrap_or_default();
                self.violation(format_args!("a task of worker {number}: {panic}"));
            }
            // A connection that was handed over has its visits in the books of another worker.
            let is_known = self.plan.batches.is_none() || self.plan.workers == 1;
            let balance = welcomed <= counted && counted <= welcomed + erred + abandoned;
            if is_known && !balance && !self.plan.handoff {
                self.violation(format_args!(
                    "the books of worker {number}: {welcomed} <= {counted} <= {welcomed} + {erred} + {abandoned}"
                ));
            }
            sum = [sum[0] + welcomed, sum[1] + counted, sum[2] + erred, sum[3] + abandoned];
        }
        let [welcomed, counted, erred, abandoned] = sum;
        if !(welcomed <= counted && counted <= welcomed + erred + abandoned) {
            self.violation(format_args!("the books of all: {sum:?}"));
        }
        let seen = visits.iter().filter(|visit| visit.welcomed).count() as u64;
        if seen > welcomed {
            self.violation(format_args!(
                "{seen} clients were welcomed, and {welcomed} are in the books"
            ));
        }
    }
}

impl History<'_> {
    /// The books balance of visits that are registered together: whose each was is not known, but how many they were.
    fn check_shared(&self, visits: &[Visit]) {
        if self.plan.batches.is_none() {
            return;
        }
        for (counter, Visit { begun, counted, confirmed, .. }) in
            visits[..COUNTERS].iter().enumerate()
        {
            let of_it = |(number, _): &(usize, &Visit)| {
                self.record.is_shared(*number) && server::counter_of(*number) == counter
            };
            let seen = visits.iter().enumerate().filter(of_it);
            let welcomed = seen.filter(|(_, visit)| visit.welcomed).count() as u64;
            // Of what is bundled, only the books tell.
            let is_confirmed = self.plan.bundled || welcomed <= *confirmed;
            if welcomed > *counted || counted > begun || !is_confirmed {
                self.violation(format_args!(
                    "{welcomed} visits of counter {counter} were welcomed, {counted} counted, {confirmed} confirmed and \
                     {begun} sent"
                ));
            }
        }
    }
}

/// A worker's connections to all counters.
fn counter_connections(metrics: &WorkerMetrics) -> u64 {
    metrics.upstreams().iter().map(|upstream| upstream.connections.read()).sum()
}
