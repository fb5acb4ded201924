//! One history: a plan is lived through, and what must always be true is checked.
//!
//! First comes all that the plan has: clients, faults, what operators do. Then, in three of four histories, all is well
//! again, and each worker must welcome visits. Then the server drains, and must end in time, with nothing left behind
//! and balanced books.

mod checks;

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
    counter::COMMIT_TIMEOUT,
    foreign::Foreign,
    logged::Logged,
    memory,
    metrics::WorkerMetrics,
    opening,
    plan::{Act, COUNTERS, Mode, PROBES, Plan, What},
    record::{Call, Record},
    request::VISITS,
    server::{self, SITE, Server},
    worker::Command,
};

/// What the probes of a worker may take: an open breaker lets one visit through each half second.
const TRIES: usize = 6;
/// What a drain may take beyond the deadlines of the clients: the linger's two seconds, and that of slow timers.
const DRAIN_SPARE: Duration = Duration::from_secs(4);
/// How far apart a worker probes a counter that fails.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);
/// What a worker may take to stop.
const STOP_TIME: Duration = Duration::from_secs(1);
/// Polls for each event at most, over a whole history.
const POLLS_FOR_EVENT: u64 = 20;

/// Is told what happens, with the time in microseconds.
pub type Tracer = Rc<dyn Fn(u64, fmt::Arguments<'_>)>;

/// What became of a history.
#[derive(Debug, Clone, Default)]
pub struct End {
    /// What was wrong.
    pub violations: Vec<String>,
    /// Answers that were right.
    pub answers: usize,
    /// Connections that were handed over to another worker.
    pub handed_over: u64,
    /// Connections that moved to another worker between two requests.
    pub moved: u64,
    /// What it took.
    pub counts: Counts,
    /// How much time has passed in it.
    pub time: Duration,
}

/// What a panic says that Rust cannot survive.
const ABORTS: &str = "panic in a destructor during cleanup";

thread_local! {
    /// Whether a history is lived through on this thread.
    static LIVES: Cell<bool> = const { Cell::new(false) };
    /// What the last panic in it said.
    static PANIC: Cell<Option<String>> = const { Cell::new(None) };
}

/// From now on a panic that is a part of a history says what it has to say to that history alone.
fn catch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !LIVES.get() {
                return others(panic);
            }
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
pub fn live(plan: &Plan, trace: Option<Tracer>) -> End {
    catch_panics();
    server::prepare();
    LIVES.set(true);
    PANIC.set(None);
    let before = memory::held();
    let record = Record::new();
    let lived = panic::catch_unwind(AssertUnwindSafe(|| {
        world::begin(plan.seed, plan.world.clone());
        if let Some(trace) = trace.clone() {
            world::trace_to(move |time, what| trace(time, what));
        }
        let history = History::begin(plan, &record);
        history.live();
        let sum = |count: fn(&WorkerMetrics) -> u64| {
            history.server.metrics.iter().map(|metrics| count(metrics)).sum()
        };
        let handed_over: u64 = sum(|metrics| metrics.handed_over.read());
        (world::counts(), world::now(), handed_over, sum(|metrics| metrics.moved.read()))
    }));
    let ended = panic::catch_unwind(AssertUnwindSafe(world::end));
    LIVES.set(false);
    let mut violations = record.violations();
    // Also one that was caught where a task ends: in the counter, nobody reads how many there were.
    if let Some(panic) = PANIC.take() {
        violations.push(panic);
    } else if lived.is_err() || ended.is_err() {
        violations.push(String::from("a panic without a message"));
    }
    let (counts, time, handed_over, moved) = lived.unwrap_or_default();
    let answers = record.right_answers();
    drop(record);
    // What it says takes memory too.
    let kept = memory::held() - before;
    if violations.is_empty() && kept != 0 {
        violations.push(format!("{kept} bytes are not given back"));
    }
    End { violations, answers, handed_over, moved, counts, time }
}

struct History<'a> {
    plan: &'a Plan,
    record: Rc<Record>,
    server: Rc<Server>,
    foreign: Vec<Rc<Foreign>>,
    bundled: Option<Rc<Bundled>>,
    stopped: Rc<Cell<bool>>,
    drains: Cell<bool>,
    /// What the access log has said so far.
    logged: RefCell<Vec<Logged>>,
    /// Since when each counter of each worker fails, and how often it had been dialed then; nothing where others than
    /// probes may dial it.
    failing: RefCell<Vec<Failing>>,
    /// How many visits each worker has sent in batches.
    batched: RefCell<Vec<u64>>,
}

/// Whether a counter fails.
#[derive(Debug, Clone, Copy, Default)]
enum Failing {
    #[default]
    No,
    Since(Duration, u64),
    Unclear,
}

impl<'a> History<'a> {
    fn begin(plan: &'a Plan, record: &Rc<Record>) -> Self {
        record.expect(plan);
        let calls = Rc::clone(record);
        world::observe(move |sent| {
            if sent.process == SITE {
                for (call, bytes) in Call::read_all(sent.offered, sent.taken) {
                    calls.begins(call);
                    calls.judge_call(call, bytes);
                }
            }
        });
        let first = usize::from(plan.bundled);
        let foreign = (first..COUNTERS).map(|number| Foreign::start(number, plan, record));
        let history = Self {
            plan,
            foreign: foreign.collect(),
            bundled: plan.bundled.then(|| Bundled::start(plan, record)),
            server: Server::start(plan),
            record: Rc::clone(record),
            stopped: Rc::new(Cell::new(false)),
            drains: Cell::new(false),
            failing: RefCell::new(vec![Failing::No; plan.workers * COUNTERS]),
            batched: RefCell::new(vec![0; plan.workers]),
            logged: RefCell::default(),
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
                What::Move(number, places, cuts) => {
                    counter(number).inspect(|counter| counter.move_to(places, cuts));
                    server.names.moved(number, places);
                }
                What::Restart(pause) => {
                    bundled.inspect(|counter| counter.restart(pause));
                }
                What::Store(mode) => {
                    bundled.inspect(|counter| counter.set_mode(mode));
                }
                What::Pages(version) => server.set_pages(version),
                What::Ping => server.tell_all(|| Command::Ping),
                What::Limits(clients, connections, head_bytes) => {
                    server.set_limits(&plan, clients, connections, head_bytes);
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
            self.check_stopped();
            self.check_books();
            return self.check_log();
        }
        if !self.plan.drains_early {
            self.mend();
            self.probe();
        }
        self.drain();
        self.check_left();
        self.check_books();
        self.check_log();
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
        // Only now and then: small rings have no room for all.
        self.read_log();
        if stopped == Stopped::Busy {
            self.violation(format_args!("tasks wake each other without end"));
        }
        stopped == Stopped::Done
    }

    fn violation(&self, what: fmt::Arguments<'_>) {
        self.record.violation(what);
    }

    /// All faults end.
    fn mend(&self) {
        world::trace(format_args!("all is well again"));
        world::mend();
        for counter in &self.foreign {
            counter.move_to(1, false);
            counter.set_mode(Mode::Prompt);
        }
        if let Some(bundled) = &self.bundled {
            bundled.mend();
        }
        let first = COUNTERS - self.foreign.len();
        for number in first..COUNTERS {
            self.server.names.moved(number, 1);
        }
        // Calls under way end, and a store that hangs comes back.
        self.run(self.plan.upstream.call_timeout + Duration::from_secs(7));
    }

    /// Each worker lives, and welcomes a visit for each counter.
    fn probe(&self) {
        let before = self.server.reports.borrow().clone();
        self.server.tell_all(|| Command::Ping);
        let lives = self.run_until(Duration::from_secs(1), || {
            let after = self.server.reports.borrow();
            after.iter().zip(&before).all(|(after, before)| after.pongs > before.pongs)
        });
        if !lives && !self.record.failed() {
            self.violation(format_args!("a worker does not say that it lives"));
        }
        let told = Rc::new(RefCell::new(VecDeque::new()));
        let opening = if self.plan.clients_limits.proxy_protocol { opening::PLAIN } else { b"" };
        let mut probes = 0;
        for worker in 0..self.plan.workers {
            for counter in 0..COUNTERS {
                let visit = VISITS - PROBES + worker * COUNTERS + counter;
                self.record.visit(visit, |visit| visit.worker = worker);
                let (told, record) = (Rc::clone(&told), Rc::clone(&self.record));
                probes += 1;
                world::spawn_in(CLIENTS, async move {
                    let answers = client::probe(worker, visit, TRIES, opening, record).await;
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
            + limits.head_timeout * if limits.proxy_protocol { 2 } else { 1 }
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
}
