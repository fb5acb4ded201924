//! The bundled counter: the product's HTTP side and group commit, over a store that the plan lets fail.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use fastrand::Rng;
use monoio::world::{self, Process};

use crate::{
    connection::ClientLimits,
    counter::{
        Batch, COMMIT_TIMEOUT, HttpFrontend,
        store::{Operation, Outcome},
    },
    http::hosts::{HostList, Hosts},
    listener::Listener,
    plan::{Plan, StoreMode},
    record::{Call, Record},
    runtime::{
        driver::{Choice, Driver},
        mailbox,
    },
    worker::{self, Command},
};

/// The process of the counter.
pub const COUNTER: Process = Process(1);

/// Where it listens.
pub fn address() -> SocketAddr {
    (Ipv4Addr::new(10, 0, 2, 1), 3001).into()
}

/// How long commits take at most while all is well.
const COMMIT: Duration = Duration::from_millis(2);

type Orders = mailbox::Sender<Command<Vec<Outcome>>>;

/// The counter and its disk.
pub struct Bundled {
    limits: ClientLimits,
    mode: Cell<StoreMode>,
    /// Whether some operations are refused though the store works.
    refuses: Cell<bool>,
    rng: RefCell<Rng>,
    record: Rc<Record>,
    /// Batches that wait for the one that is committed, if one is.
    queue: RefCell<VecDeque<Batch>>,
    commits: Cell<bool>,
    /// How often it was started: who was killed hears of nothing.
    life: Cell<usize>,
    orders: RefCell<Option<Orders>>,
}

impl Bundled {
    /// Starts it.
    pub fn start(plan: &Plan, record: &Rc<Record>) -> Rc<Self> {
        let mut rng = Rng::with_seed(plan.seed ^ 0xb0b0);
        // Long ones let operations gather.
        let commit = [COMMIT, COMMIT * 20, COMMIT * 100][rng.usize(0..3)];
        let minute = Duration::from_secs(60);
        let counter = Rc::new(Self {
            limits: ClientLimits {
                connections_max: 1_000,
                head_timeout: minute,
                body_timeout: minute,
                idle_timeout: minute,
                write_timeout: minute,
                drain_idle_timeout: Duration::ZERO,
                proxy_protocol: false,
                ..plan.clients_limits
            },
            refuses: Cell::new(true),
            mode: Cell::new(StoreMode::Works(commit)),
            rng: RefCell::new(rng),
            record: Rc::clone(record),
            queue: RefCell::default(),
            commits: Cell::new(false),
            life: Cell::new(0),
            orders: RefCell::new(None),
        });
        counter.begin();
        counter
    }

    fn begin(self: &Rc<Self>) {
        self.life.set(self.life.get() + 1);
        let (orders, receiver) = mailbox::channel().expect("a mailbox");
        let counter = Rc::clone(self);
        let submit = move |batch| counter.submit(batch);
        let hosts = Hosts::new(address().ip(), HostList::default());
        let plan = worker::Plan {
            name: String::from("counter"),
            core: None,
            driver: Choice::Auto,
            listeners: vec![Listener {
                address: address(),
                process: COUNTER,
                accepted: Arc::default(),
            }],
            limits: self.limits,
            shortest_wait: Some(COMMIT_TIMEOUT),
            metrics: Arc::default(),
            access_log: None,
            trusted_proxies: Arc::default(),
            handoff: None,
            orders: receiver,
            make: move || HttpFrontend::new(Box::new(submit), hosts),
        };
        world::spawn_in(COUNTER, async move {
            worker::work(plan, Driver, |_| {}).await.expect("its orders reach it");
        });
        orders.send(Command::Serve);
        self.orders.replace(Some(orders));
    }

    /// From now on the store behaves so.
    pub fn set_mode(&self, mode: StoreMode) {
        self.mode.set(mode);
    }

    /// From now on all is well.
    pub fn mend(&self) {
        self.refuses.set(false);
        self.set_mode(StoreMode::Works(COMMIT));
    }

    /// Kills it and starts it again after `pause`.
    pub fn restart(self: &Rc<Self>, pause: Duration) {
        world::trace(format_args!("the counter is killed"));
        self.life.set(self.life.get() + 1);
        self.orders.replace(None);
        world::kill(COUNTER);
        self.queue.borrow_mut().clear();
        self.commits.set(false);
        let (counter, life) = (Rc::clone(self), self.life.get());
        world::call_after(pause, move || {
            if counter.life.get() == life {
                counter.begin();
            }
        });
    }

    /// Lets it drain: its clients leave.
    pub fn drain(&self) {
        if let Some(orders) = &*self.orders.borrow() {
            orders.send(Command::Drain);
        }
    }

    /// The total of a visit's counter, which is durable. It is another one for each call, as if all had one counter.
    fn keep(&self, visit: usize, by: u64) -> Outcome {
        let call = Call { visit, by };
        let number = self.record.new_number(call);
        self.record.visit(visit, |visit| visit.counted += by);
        self.record.answers(call, Some(number));
        Outcome::Total(number)
    }

    fn submit(self: &Rc<Self>, batch: Batch) {
        self.queue.borrow_mut().push_back(batch);
        self.commit_next();
    }

    fn commit_next(self: &Rc<Self>) {
        if self.commits.get() {
            return;
        }
        let Some(batch) = self.queue.borrow_mut().pop_front() else { return };
        self.commits.set(true);
        let mut rng = self.rng.borrow_mut();
        let (delay, fails) = match self.mode.get() {
            StoreMode::Works(most) => (most.mul_f64(rng.f64()), false),
            StoreMode::Fails => (Duration::from_millis(rng.u64(0..20)), rng.bool()),
            StoreMode::Hangs(delay) => (delay, rng.bool()),
        };
        drop(rng);
        let (counter, life) = (Rc::clone(self), self.life.get());
        world::call_after(delay, move || counter.commit(&batch, fails, life));
    }

    fn commit(self: &Rc<Self>, batch: &Batch, fails: bool, life: usize) {
        let killed = self.life.get() != life;
        let coin = || self.rng.borrow_mut().bool();
        // What was killed, or failed while it was written, is kept or not.
        let (kept, outcome) = match fails || killed {
            false => (true, None),
            true if coin() => (false, Some(Outcome::Failed)),
            true => (coin(), Some(Outcome::Unknown)),
        };
        let outcomes = batch.iter().map(|operation| {
            let Operation::Add { name, by } = operation else { return Outcome::Busy };
            let visit = name.strip_prefix('v').and_then(|visit| visit.parse().ok());
            let Some(visit) = visit else {
                self.record.violation(format_args!("the counter {name:?} is asked for"));
                return Outcome::Busy;
            };
            // One of many is refused, so that it shows whether each is told its own outcome.
            if self.refuses.get() && outcome.is_none() && self.rng.borrow_mut().u8(0..5) == 0 {
                return Outcome::TooManyNames;
            }
            let total = if kept { self.keep(visit, *by) } else { Outcome::Unknown };
            outcome.clone().unwrap_or(total)
        });
        let outcomes: Vec<_> = outcomes.collect();
        world::trace(format_args!("the store commits {batch:?}: {outcomes:?}"));
        if killed {
            return;
        }
        if let Some(orders) = &*self.orders.borrow() {
            orders.send(Command::Deliver(outcomes));
        }
        self.commits.set(false);
        self.commit_next();
    }
}
