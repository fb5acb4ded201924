//! The world itself: its state, what happens next, and how a history is drawn and run.

use std::{
    cell::RefCell,
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    fmt,
    future::Future,
    mem,
    net::SocketAddr,
    os::fd::RawFd,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use fastrand::Rng;
use slotmap::{SlotMap, new_key_type};

use crate::{
    descriptors::Descriptors,
    net::{Backlog, Socket},
    operation::{Operation, OperationKey},
};

new_key_type! {
    /// Names a task.
    pub(crate) struct TaskKey;
    /// Names a timer.
    pub(crate) struct TimerKey;
    /// Names one end of a connection.
    pub struct SocketKey;
}

/// How often the tasks may be polled without anything happening in between, for each task that there is.
const POLLS_WITHOUT_EVENT: usize = 100;
/// How soon an event must be due to come before a task that is ready, in microseconds.
const OVERTAKES: u64 = 50;

/// A process: a descriptor belongs to one, and all of its tasks and sockets can be killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process(pub usize);

/// In which order tasks that are ready are polled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The one that was woken first.
    Fifo,
    /// The one that was woken last.
    Lifo,
    /// Any of them.
    Random,
}

/// What a world is like.
#[derive(Debug, Clone)]
pub struct Settings {
    /// epoll, not a ring.
    pub legacy: bool,
    /// The order of tasks.
    pub order: Order,
    /// Bytes take up to so many microseconds to their peer.
    pub latency: u64,
    /// An operation takes up to so many microseconds to complete once it can.
    pub completion: u64,
    /// How many of 100 reads and writes are cut short.
    pub cuts: u8,
    /// How many of 10,000 operations fail without a reason.
    pub errors: u16,
    /// How many bytes one side sends that the other has not read.
    pub window: usize,
    /// How late a timer can be, in microseconds.
    pub lateness: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            legacy: false,
            order: Order::Fifo,
            latency: 100,
            completion: 20,
            cuts: 0,
            errors: 0,
            window: 64 * 1024,
            lateness: 2_000,
        }
    }
}

/// What has happened so far, in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tasks that were polled.
    pub polls: u64,
    /// Everything else.
    pub events: u64,
    /// Tasks that were started.
    pub tasks: u64,
}

/// Bytes that a process hands over to be sent.
#[derive(Debug)]
pub struct Sent<'a> {
    /// The process.
    pub process: Process,
    /// From where.
    pub socket: SocketKey,
    /// The address that the connection was made to.
    pub address: SocketAddr,
    /// What it wanted to send.
    pub offered: &'a [u8],
    /// How much of it was taken.
    pub taken: usize,
}

/// Why the world stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// What was waited for has happened.
    Done,
    /// The time was up.
    Late,
    /// Nothing will ever happen again.
    Quiet,
    /// Tasks wake each other without end, or one itself.
    Busy,
}

type Observer = Rc<dyn Fn(&Sent<'_>)>;
type Tracer = Rc<dyn Fn(u64, fmt::Arguments<'_>)>;

pub(crate) struct World {
    pub(crate) settings: Settings,
    pub(crate) rng: Rng,
    now: u64,
    /// Orders events of the same time.
    sequence: u64,
    events: BinaryHeap<Reverse<Event>>,
    calls: BTreeMap<u64, Box<dyn FnOnce()>>,
    timers: SlotMap<TimerKey, Timer>,
    tasks: SlotMap<TaskKey, Task>,
    pub(crate) operations: SlotMap<OperationKey, Operation>,
    pub(crate) sockets: SlotMap<SocketKey, Socket>,
    pub(crate) backlogs: BTreeMap<SocketAddr, Backlog>,
    processes: BTreeMap<Process, Descriptors>,
    pub(crate) running: Process,
    counts: Counts,
    pub(crate) observer: Option<Observer>,
    tracer: Option<Tracer>,
}

/// Something that happens at a time. Ordered by it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Event {
    at: u64,
    sequence: u64,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum What {
    Timer(TimerKey),
    /// What was sent first reaches this socket.
    Arrival(SocketKey),
    /// The operation completes if it can.
    Attempt(OperationKey),
    Cancel(OperationKey),
    /// Somebody outside acts: the call of this number.
    Call(u64),
}

struct Timer {
    at: u64,
    waker: Option<Waker>,
}

struct Task {
    /// `None` while it is polled.
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
    waker: Arc<TaskWaker>,
    process: Process,
}

struct TaskWaker {
    task: TaskKey,
    queued: AtomicBool,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            READY.with_borrow_mut(|ready| ready.push_back(self.task));
        }
    }
}

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
    /// The tasks that were woken. Apart from the world, since it is woken from while the world is borrowed.
    static READY: RefCell<VecDeque<TaskKey>> = const { RefCell::new(VecDeque::new()) };
}

/// Acts on this thread's world.
///
/// # Panics
/// When there is none.
pub(crate) fn with<R>(act: impl FnOnce(&mut World) -> R) -> R {
    with_any(act).expect("a world has begun on this thread")
}

/// Acts on this thread's world, if there is one: what is dropped after its end finds none.
pub(crate) fn with_any<R>(act: impl FnOnce(&mut World) -> R) -> Option<R> {
    WORLD.with_borrow_mut(|world| world.as_mut().map(act))
}

/// Begins a world on this thread, in place of the last one.
pub fn begin(seed: u64, settings: Settings) {
    end();
    WORLD.with_borrow_mut(|world| *world = Some(World::new(seed, settings)));
}

/// Ends the world: all tasks are dropped first.
pub fn end() {
    while let Some(task) = with_any(World::remove_any_task).flatten() {
        drop(task);
    }
    WORLD.with_borrow_mut(Option::take);
    READY.take();
}

/// Starts a task in the process that runs.
pub(crate) fn start_task(future: impl Future<Output = ()> + 'static) {
    let process = with(|world| world.running);
    spawn_in(process, future);
}

/// Starts a task in a process.
pub fn spawn_in(process: Process, future: impl Future<Output = ()> + 'static) {
    let waker = with(|world| world.add_task(process, Box::pin(future)));
    waker.wake();
}

/// Lets `act` happen after a while, in no process.
pub fn call_after(delay: Duration, act: impl FnOnce() + 'static) {
    with(|world| world.call_at(world.now + micros(delay), Box::new(act)));
}

/// The time since the beginning.
pub fn now() -> Duration {
    Duration::from_micros(with(|world| world.now))
}

/// What has happened so far.
pub fn counts() -> Counts {
    with(|world| world.counts)
}

/// How many tasks of a process have not ended.
pub fn tasks_of(process: Process) -> usize {
    with(|world| world.tasks.values().filter(|task| task.process == process).count())
}

/// How many descriptors of a process are open.
pub fn descriptors_of(process: Process) -> usize {
    with(|world| world.processes.get(&process).map_or(0, |open| open.sockets().count()))
}

/// Kills a process: its tasks go, and its connections are reset or closed.
pub fn kill(process: Process) {
    while let Some(task) = with(|world| world.remove_task_of(process)) {
        let before = with(|world| mem::replace(&mut world.running, process));
        drop(task);
        with(|world| world.running = before);
    }
    with(|world| world.close_all(process));
}

/// From now on nothing fails without a reason, and nothing takes long.
pub fn mend() {
    with(|world| {
        let Settings { latency, completion, window, lateness, .. } = Settings::default();
        let settings = &mut world.settings;
        settings.errors = 0;
        settings.latency = settings.latency.min(latency);
        settings.completion = settings.completion.min(completion);
        settings.window = settings.window.max(window);
        settings.lateness = settings.lateness.min(lateness);
        // Who waits for room has it now.
        world.retry(|_| true);
    });
}

/// Shows all that processes hand over to be sent. The observer must not act on the world.
pub fn observe(observer: impl Fn(&Sent<'_>) + 'static) {
    with(|world| world.observer = Some(Rc::new(observer)));
}

/// Tells what happens, with the time in microseconds. The tracer must not act on the world.
pub fn trace_to(tracer: impl Fn(u64, fmt::Arguments<'_>) + 'static) {
    with(|world| world.tracer = Some(Rc::new(tracer)));
}

/// Tells something.
pub fn trace(what: fmt::Arguments<'_>) {
    with(|world| world.trace(what));
}

/// Runs until `done` says so, which is asked after each step, but not for longer than `time`.
pub fn run(time: Duration, mut done: impl FnMut() -> bool) -> Stopped {
    let end = with(|world| world.now + micros(time));
    let mut polls = 0;
    loop {
        if done() {
            return Stopped::Done;
        }
        if let Some(task) = with(World::next_ready) {
            polls += 1;
            if polls > POLLS_WITHOUT_EVENT * (10 + with(|world| world.tasks.len())) {
                return Stopped::Busy;
            }
            poll_task(task);
            continue;
        }
        polls = 0;
        match with(|world| world.next_event(end)) {
            Next::Fired(Some(call)) => call(),
            Next::Fired(None) => {}
            Next::None => return Stopped::Quiet,
            Next::Late => return Stopped::Late,
        }
    }
}

fn poll_task(key: TaskKey) {
    let Some((mut future, waker, process)) = with(|world| world.begin_poll(key)) else { return };
    let ended = future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
    with(|world| world.running = process);
    if ended {
        drop(future);
        with(|world| drop(world.tasks.remove(key)));
    } else {
        let future = with(|world| world.end_poll(key, future));
        drop(future);
    }
}

enum Next {
    /// What is to be called, if anything.
    Fired(Option<Box<dyn FnOnce()>>),
    None,
    Late,
}

pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX / 4).min(u64::MAX / 4)
}

impl World {
    fn new(seed: u64, settings: Settings) -> Self {
        Self {
            settings,
            rng: Rng::with_seed(seed),
            now: 0,
            sequence: 0,
            events: BinaryHeap::new(),
            calls: BTreeMap::new(),
            timers: SlotMap::with_key(),
            tasks: SlotMap::with_key(),
            operations: SlotMap::with_key(),
            sockets: SlotMap::with_key(),
            backlogs: BTreeMap::new(),
            processes: BTreeMap::new(),
            running: Process(0),
            counts: Counts::default(),
            observer: None,
            tracer: None,
        }
    }

    pub(crate) fn now(&self) -> u64 {
        self.now
    }

    pub(crate) fn trace(&self, what: fmt::Arguments<'_>) {
        if let Some(tracer) = &self.tracer {
            tracer(self.now, what);
        }
    }

    pub(crate) fn count_task(&mut self) {
        self.counts.tasks += 1;
    }

    /// Whether something happens that happens `of_100` times of 100.
    pub(crate) fn chance(&mut self, of_100: u8) -> bool {
        of_100 > 0 && self.rng.u8(0..100) < of_100
    }

    /// Whether an operation fails without a reason.
    pub(crate) fn fails(&mut self) -> bool {
        self.settings.errors > 0 && self.rng.u16(0..10_000) < self.settings.errors
    }

    /// Up to `most`, with short ones as frequent as long ones.
    pub(crate) fn delay(&mut self, most: u64) -> u64 {
        let bits = 64 - most.leading_zeros();
        let bits = self.rng.u32(0..=bits);
        self.rng.u64(0..=most.min((1 << bits) - 1))
    }

    pub(crate) fn at(&mut self, at: u64, what: What) {
        self.sequence += 1;
        self.events.push(Reverse(Event { at, sequence: self.sequence, what }));
    }

    fn call_at(&mut self, at: u64, call: Box<dyn FnOnce()>) {
        self.at(at, What::Call(self.sequence + 1));
        self.calls.insert(self.sequence, call);
    }

    fn add_task(&mut self, process: Process, future: Pin<Box<dyn Future<Output = ()>>>) -> Waker {
        let key = self.tasks.insert_with_key(|task| Task {
            future: Some(future),
            waker: Arc::new(TaskWaker { task, queued: AtomicBool::new(false) }),
            process,
        });
        Waker::from(Arc::clone(&self.tasks[key].waker))
    }

    fn remove_any_task(&mut self) -> Option<Pin<Box<dyn Future<Output = ()>>>> {
        let key = self.tasks.keys().next()?;
        self.remove_task(key)
    }

    fn remove_task_of(&mut self, process: Process) -> Option<Pin<Box<dyn Future<Output = ()>>>> {
        let (key, _) = self.tasks.iter().find(|(_, task)| task.process == process)?;
        self.remove_task(key)
    }

    fn remove_task(&mut self, key: TaskKey) -> Option<Pin<Box<dyn Future<Output = ()>>>> {
        let task = self.tasks.remove(key)?;
        self.running = task.process;
        task.future
    }

    fn next_ready(&mut self) -> Option<TaskKey> {
        READY.with_borrow_mut(|ready| {
            if ready.is_empty() {
                return None;
            }
            // The network does not wait for tasks.
            let soon = self.events.peek().is_some_and(|Reverse(event)| {
                matches!(event.what, What::Arrival(_)) && event.at <= self.now + OVERTAKES
            });
            if soon && self.rng.u8(0..8) == 0 {
                return None;
            }
            let place = match self.settings.order {
                Order::Fifo => 0,
                Order::Lifo => ready.len() - 1,
                Order::Random => self.rng.usize(0..ready.len()),
            };
            ready.remove(place)
        })
    }

    #[allow(clippy::type_complexity)]
    fn begin_poll(
        &mut self,
        key: TaskKey,
    ) -> Option<(Pin<Box<dyn Future<Output = ()>>>, Waker, Process)> {
        let task = self.tasks.get_mut(key)?;
        task.waker.queued.store(false, Ordering::Relaxed);
        self.counts.polls += 1;
        let before = mem::replace(&mut self.running, task.process);
        Some((task.future.take()?, Waker::from(Arc::clone(&task.waker)), before))
    }

    /// Keeps the future for the next poll; gives it back if its task was killed meanwhile.
    fn end_poll(
        &mut self,
        key: TaskKey,
        future: Pin<Box<dyn Future<Output = ()>>>,
    ) -> Option<Pin<Box<dyn Future<Output = ()>>>> {
        match self.tasks.get_mut(key) {
            Some(task) => task.future.replace(future),
            None => Some(future),
        }
    }

    fn next_event(&mut self, end: u64) -> Next {
        match self.events.peek() {
            None => return Next::None,
            Some(Reverse(event)) if event.at > end => return Next::Late,
            Some(_) => {}
        }
        let Some(Reverse(Event { at, what, .. })) = self.events.pop() else { return Next::None };
        self.now = self.now.max(at);
        self.counts.events += 1;
        match what {
            What::Timer(key) => self.fire(key),
            What::Arrival(socket) => self.arrive(socket),
            What::Attempt(operation) => self.attempt(operation),
            What::Cancel(operation) => self.cancel(operation),
            What::Call(number) => return Next::Fired(self.calls.remove(&number)),
        }
        Next::Fired(None)
    }

    pub(crate) fn add_timer(&mut self, duration: Duration) -> TimerKey {
        // monoio's wheel counts milliseconds and rounds up.
        let at = (self.now + micros(duration)).div_ceil(1_000) * 1_000;
        let at = at + self.delay(self.settings.lateness);
        let key = self.timers.insert(Timer { at, waker: None });
        self.at(at, What::Timer(key));
        key
    }

    pub(crate) fn poll_timer(&mut self, key: TimerKey, waker: &Waker) -> Poll<()> {
        let now = self.now;
        match self.timers.get_mut(key) {
            Some(timer) if timer.at > now => {
                timer.waker = Some(waker.clone());
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }

    pub(crate) fn remove_timer(&mut self, key: TimerKey) {
        self.timers.remove(key);
    }

    fn fire(&mut self, key: TimerKey) {
        if let Some(waker) = self.timers.get_mut(key).and_then(|timer| timer.waker.take()) {
            waker.wake();
        }
    }

    pub(crate) fn socket_of(&self, descriptor: RawFd) -> Option<SocketKey> {
        self.processes.get(&self.running)?.get(descriptor)
    }

    pub(crate) fn open_descriptor(&mut self, process: Process, socket: SocketKey) -> RawFd {
        self.processes.entry(process).or_default().open(socket)
    }

    pub(crate) fn close_descriptor(&mut self, process: Process, descriptor: RawFd) {
        self.processes.entry(process).or_default().close(descriptor);
    }

    fn close_all(&mut self, process: Process) {
        self.backlogs.retain(|_, backlog| backlog.process != process);
        self.operations.retain(|_, operation| operation.process != process);
        let Some(descriptors) = self.processes.remove(&process) else { return };
        for socket in descriptors.sockets() {
            self.close(socket);
        }
    }
}
