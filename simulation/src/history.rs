//! One history: a plan is lived through, and what must always be true is checked.
//!
//! First comes all that the plan has: clients, faults, what operators do. Then, in three of four histories, all is well
//! again, and each worker must welcome visits. Then the server drains, and must end in time, with nothing left behind
//! and balanced books.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    fmt,
    io::{self, Write},
    panic::{self, AssertUnwindSafe},
    rc::Rc,
    sync::Once,
    time::Duration,
};

use monoio::world::{self, Counts, Stopped};

use crate::{
    answers::Told,
    bundled::{self, Bundled},
    client::{self, CLIENTS},
    foreign::{self, Foreign},
    plan::{Act, COUNTERS, Mode, PROBES, Plan, StoreMode, What},
    record::{Record, visit_of},
    request::VISITS,
    server::{SITE, Server},
    worker::Command,
};

/// What the probes of a worker may take: an open breaker lets one visit through each half second.
const TRIES: usize = 6;
/// What a drain may take beyond the deadlines of the clients: the linger's two seconds, and that of slow timers.
const DRAIN_SPARE: Duration = Duration::from_secs(4);
/// Polls for each event at most, over a whole history.
const POLLS_FOR_EVENT: u64 = 20;

/// What became of a history.
#[derive(Debug, Clone, Default)]
pub struct End {
    /// What was wrong.
    pub violations: Vec<String>,
    /// Answers that were right.
    pub answers: usize,
    /// What it took.
    pub counts: Counts,
    /// How much time has passed in it.
    pub time: Duration,
}

/// What a panic says that Rust cannot survive.
const ABORTS: &str = "panic in a destructor during cleanup";

thread_local! {
    static PANIC: Cell<Option<String>> = const { Cell::new(None) };
}

/// From now on panics say what they have to say to the history that they are part of, and nobody else.
fn catch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        panic::set_hook(Box::new(|panic| {
            let place = panic.location().map(ToString::to_string).unwrap_or_default();
            let payload = panic.payload();
            let text = payload.downcast_ref::<&str>().copied();
            let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
            let text = text.unwrap_or("(no message)");
            // The first is what is wrong: what is dropped because of it may panic too.
            let first = PANIC.take().unwrap_or_else(|| format!("a panic at {place}: {text}"));
            if text == ABORTS {
                let _ = writeln!(io::stdout(), "a history ends the process:\nwrong: {first}");
            }
            PANIC.set(Some(first));
        }));
    });
}

/// Lives through `plan`. Tells `trace` what happens, if it is given.
pub fn live(plan: &Plan, trace: Option<Rc<dyn Fn(u64, fmt::Arguments<'_>)>>) -> End {
    catch_panics();
    PANIC.set(None);
    let record = Record::new();
    let lived = panic::catch_unwind(AssertUnwindSafe(|| {
        world::begin(plan.seed, plan.world.clone());
        if let Some(trace) = trace {
            world::trace_to(move |time, what| trace(time, what));
        }
        let history = History::begin(plan, &record);
        history.live();
        (world::counts(), world::now())
    }));
    let ended = panic::catch_unwind(AssertUnwindSafe(world::end));
    let mut violations = record.violations();
    if (lived.is_err() || ended.is_err())
        && let Some(panic) = PANIC.take()
    {
        violations.push(panic);
    }
    let (counts, time) = lived.unwrap_or_default();
    End { violations, answers: record.answers(), counts, time }
}

struct History<'a> {
    plan: &'a Plan,
    record: Rc<Record>,
    server: Rc<Server>,
    foreign: Vec<Rc<Foreign>>,
    bundled: Option<Rc<Bundled>>,
    stopped: Rc<Cell<bool>>,
    drains: Cell<bool>,
}

impl<'a> History<'a> {
    fn begin(plan: &'a Plan, record: &Rc<Record>) -> Self {
        record.expect(plan);
        let calls = Rc::clone(record);
        world::observe(move |sent| {
            if sent.process == SITE
                && sent.taken > 0
                && let Some(visit) = visit_of(sent.offered)
            {
                calls.visit(visit, |visit| visit.begun += 1);
            }
        });
        let first = usize::from(plan.bundled);
        let foreign = (first..COUNTERS).map(|number| Foreign::start(number, plan, record));
        let history = Self {
            plan,
            foreign: foreign.collect(),
            bundled: plan.bundled.then(|| Bundled::start(plan, record)),
            server: Rc::new(Server::start(plan)),
            record: Rc::clone(record),
            stopped: Rc::new(Cell::new(false)),
            drains: Cell::new(false),
        };
        for client in &plan.clients {
            client::start(client, plan, record);
        }
        for act in &plan.acts {
            history.act_later(act);
        }
        history
    }

    fn act_later(&self, act: &Act) {
        let (what, plan) = (act.what, self.plan.clone());
        let (server, bundled) = (Rc::clone(&self.server), self.bundled.clone());
        let foreign = self.foreign.clone();
        let first = COUNTERS - foreign.len();
        let stopped = Rc::clone(&self.stopped);
        let counter = move |number: usize| foreign.get(number.wrapping_sub(first)).cloned();
        world::call_after(act.at, move || {
            world::trace(format_args!("act: {what:?}"));
            match what {
                What::Counter(number, mode) => {
                    counter(number).inspect(|counter| counter.set_mode(mode));
                }
                What::Move(number, place, cuts) => {
                    server.set_addresses(number, &[foreign::address(number, place)]);
                    if cuts {
                        counter(number).inspect(Foreign::cut);
                    }
                }
                What::Restart(pause) => {
                    bundled.inspect(|counter| counter.restart(pause));
                }
                What::Store(mode) => {
                    bundled.inspect(|counter| counter.set_mode(mode));
                }
                What::Pages(version) => server.set_pages(version),
                What::Ping => server.tell_all(|| Command::Ping),
                What::Limits(clients, connections) => {
                    server.set_limits(&plan, clients, connections);
                }
                What::Stop => {
                    stopped.set(true);
                    server.tell_all(|| Command::Stop);
                }
            }
        });
    }

    fn live(&self) {
        self.run(self.plan.length);
        if self.stopped.get() {
            return self.check_books();
        }
        if !self.plan.drains_early {
            self.mend();
            self.probe();
        }
        self.drain();
        self.check_left();
        self.check_books();
    }

    /// Runs for a while.
    fn run(&self, time: Duration) {
        self.run_until(time, || false);
    }

    /// Runs until `done` says so, and not for longer than `time`; whether it did.
    fn run_until(&self, time: Duration, mut done: impl FnMut() -> bool) -> bool {
        let stopped = world::run(time, || {
            self.check_limits();
            self.record.failed() || done()
        });
        if stopped == Stopped::Busy {
            self.violation(format_args!("tasks wake each other without end"));
        }
        stopped == Stopped::Done
    }

    fn violation(&self, what: fmt::Arguments<'_>) {
        self.record.violation(what);
    }

    /// What is true at every moment.
    fn check_limits(&self) {
        for (number, metrics) in self.server.metrics.iter().enumerate() {
            let calls = metrics.counter_connections.read();
            if calls > self.most_calls() {
                self.violation(format_args!("worker {number} has {calls} connections to counters"));
            }
            let clients = metrics.connections.read();
            // A worker that drains serves all whom the kernel has queued: its close would reset them.
            if clients > self.most_clients() && !self.drains.get() {
                self.violation(format_args!("worker {number} has {clients} clients"));
            }
            if clients > 0 && self.server.reports.borrow()[number].drained > 0 {
                self.violation(format_args!("worker {number} drained and has {clients} clients"));
            }
        }
    }

    fn most_calls(&self) -> u64 {
        let acts = self.plan.acts.iter().filter_map(|act| match act.what {
            What::Limits(_, connections) => Some(connections),
            _ => None,
        });
        let most = acts.chain([self.plan.upstream.connections_max]).max().unwrap_or(0);
        (most * COUNTERS) as u64
    }

    fn most_clients(&self) -> u64 {
        let acts = self.plan.acts.iter().filter_map(|act| match act.what {
            What::Limits(clients, _) => Some(clients),
            _ => None,
        });
        acts.chain([self.plan.clients_limits.connections_max]).max().unwrap_or(0) as u64
    }

    /// All faults end.
    fn mend(&self) {
        world::trace(format_args!("all is well again"));
        world::mend();
        for counter in &self.foreign {
            counter.set_mode(Mode::Prompt);
        }
        if let Some(bundled) = &self.bundled {
            bundled.set_mode(StoreMode::Works(Duration::from_millis(2)));
        }
        let first = COUNTERS - self.foreign.len();
        for number in first..COUNTERS {
            self.server.set_addresses(number, &[foreign::address(number, 0)]);
        }
        // Calls under way end, and a store that hangs comes back.
        self.run(self.plan.upstream.call_timeout + Duration::from_secs(7));
    }

    /// Each worker welcomes a visit for each counter.
    fn probe(&self) {
        let told = Rc::new(RefCell::new(VecDeque::new()));
        let mut probes = 0;
        for worker in 0..self.plan.workers {
            for counter in 0..COUNTERS {
                let visit = VISITS - PROBES + worker * COUNTERS + counter;
                self.record.visit(visit, |visit| visit.worker = worker);
                let (told, record) = (Rc::clone(&told), Rc::clone(&self.record));
                probes += 1;
                world::spawn_in(CLIENTS, async move {
                    let answers = client::probe(worker, visit, TRIES, record).await;
                    told.borrow_mut().push_back((worker, visit, answers));
                });
            }
        }
        let done = self.run_until(Duration::from_secs(120), || told.borrow().len() == probes);
        if !done && !self.record.failed() {
            self.violation(format_args!("a probe is never answered"));
        }
        for (worker, visit, answers) in &*told.borrow() {
            if !answers.ends_with(&[Told::Welcome; 2]) {
                self.violation(format_args!(
                    "worker {worker} does not welcome visit {visit} though all is well: {answers:?}"
                ));
            }
        }
    }

    fn drain(&self) {
        world::trace(format_args!("the server drains"));
        self.drains.set(true);
        self.server.tell_all(|| Command::Drain);
        let limits = &self.plan.clients_limits;
        let visits = self.plan.clients.iter().map(|client| client.steps.len()).max().unwrap_or(0);
        let visits = u32::try_from(visits).unwrap_or(1).max(1);
        let reading = Duration::from_secs(if self.reads_slowly() { 60 } else { 0 });
        let most = limits.drain_idle_timeout
            + limits.head_timeout
            + limits.body_timeout
            + limits.write_timeout * 2
            + self.plan.upstream.call_timeout * visits
            + reading
            + DRAIN_SPARE;
        let drained = self.run_until(most, || self.server.all(|reports| reports.drained == 1));
        if !drained && !self.record.failed() {
            let clients: u64 = self.server.metrics.iter().map(|m| m.connections.read()).sum();
            self.violation(format_args!("the drain takes too long: {clients} clients are left"));
        }
    }

    fn reads_slowly(&self) -> bool {
        // One that stops to read is cut at its deadline.
        let slow =
            |client: &crate::plan::Client| matches!(client.reading, crate::plan::Reading::Slow(..));
        self.plan.clients.iter().any(slow)
            || self.plan.world.latency > 1_000
            || self.plan.world.window < 3_000
    }

    /// Nothing is left once all have left.
    fn check_left(&self) {
        if self.record.failed() {
            return;
        }
        self.run(self.plan.upstream.call_timeout + self.plan.upstream.idle_timeout + DRAIN_SPARE);
        for (number, metrics) in self.server.metrics.iter().enumerate() {
            let (clients, calls) = (metrics.connections.read(), metrics.counter_connections.read());
            if (clients, calls) != (0, 0) {
                self.violation(format_args!(
                    "worker {number} keeps {clients} clients and {calls} connections to counters"
                ));
            }
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
        self.run_until(Duration::from_secs(1), || self.server.all(|reports| reports.stopped == 1));
    }

    /// The books balance, for each visit, each worker and in total.
    fn check_books(&self) {
        if self.record.failed() {
            return;
        }
        // What a killed store wrote, or a counter counts that got a call late.
        self.run(Duration::from_secs(12));
        let visits = self.record.visits();
        for (number, visit) in visits[..VISITS - PROBES].iter().enumerate() {
            if visit.begun > 1 || visit.counted > 1 {
                self.violation(format_args!("visit {number} was sent more than once: {visit:?}"));
            }
            if visit.welcomed && visit.counted == 0 {
                self.violation(format_args!("visit {number} was welcomed and not counted"));
            }
            if visit.refused && visit.begun + visit.counted as usize > 0 {
                self.violation(format_args!("visit {number} was refused and sent: {visit:?}"));
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
            if !(welcomed <= counted && counted <= welcomed + erred + abandoned) {
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
        if self.bundled.is_some() && world::tasks_of(bundled::COUNTER) > 2 + 64 {
            self.violation(format_args!("the counter keeps tasks"));
        }
    }
}
