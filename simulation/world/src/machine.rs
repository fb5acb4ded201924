//! The state of the world, and what happens next: tasks that were woken, and events in the order of their times.

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
    task::{Poll, Wake, Waker},
    time::Duration,
};

use fastrand::Rng;
use slotmap::{SlotMap, new_key_type};

use crate::{
    descriptors::Descriptors,
    operation::{Operation, OperationKey},
    tcp::{Backlog, Socket},
    world::{Counts, Order, Process, Sent, Settings},
};

new_key_type! {
    /// Names a task.
    pub(crate) struct TaskKey;
    /// Names a timer.
    pub(crate) struct TimerKey;
    /// Names one end of a connection.
    pub struct SocketKey;
}

/// How soon an event must be due to come before a task that is ready, in microseconds.
const OVERTAKES: u64 = 50;

/// What a task is made of.
pub(crate) type BoxedTask = Pin<Box<dyn Future<Output = ()>>>;
type Observer = Rc<dyn Fn(&Sent<'_>)>;
type Tracer = Rc<dyn Fn(u64, fmt::Arguments<'_>)>;

thread_local! {
    /// The tasks that were woken. Apart from the world, since it is woken from while the world is borrowed.
    pub(crate) static READY: RefCell<VecDeque<TaskKey>> = const { RefCell::new(VecDeque::new()) };
}

pub(crate) struct World {
    pub(crate) settings: Settings,
    pub(crate) rng: Rng,
    pub(crate) now: u64,
    /// Orders events of the same time.
    sequence: u64,
    events: BinaryHeap<Reverse<Event>>,
    calls: BTreeMap<u64, Box<dyn FnOnce()>>,
    timers: SlotMap<TimerKey, Timer>,
    pub(crate) tasks: SlotMap<TaskKey, Task>,
    pub(crate) operations: SlotMap<OperationKey, Operation>,
    pub(crate) sockets: SlotMap<SocketKey, Socket>,
    pub(crate) backlogs: BTreeMap<SocketAddr, Backlog>,
    /// Connections that were made: each has an address of its own.
    pub(crate) connections: u32,
    pub(crate) processes: BTreeMap<Process, Descriptors>,
    pub(crate) running: Process,
    pub(crate) counts: Counts,
    pub(crate) observer: Option<Observer>,
    pub(crate) tracer: Option<Tracer>,
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

pub(crate) struct Task {
    /// `None` while it is polled.
    future: Option<BoxedTask>,
    waker: Arc<TaskWaker>,
    pub(crate) process: Process,
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

pub(crate) enum Next {
    /// What is to be called, if anything.
    Fired(Option<Box<dyn FnOnce()>>),
    None,
    Late,
}

impl World {
    pub(crate) fn new(seed: u64, settings: Settings) -> Self {
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
            connections: 0,
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

    pub(crate) fn call_at(&mut self, at: u64, call: Box<dyn FnOnce()>) {
        self.at(at, What::Call(self.sequence + 1));
        self.calls.insert(self.sequence, call);
    }

    pub(crate) fn add_task(&mut self, process: Process, future: BoxedTask) -> Waker {
        let key = self.tasks.insert_with_key(|task| Task {
            future: Some(future),
            waker: Arc::new(TaskWaker { task, queued: AtomicBool::new(false) }),
            process,
        });
        Waker::from(Arc::clone(&self.tasks[key].waker))
    }

    pub(crate) fn remove_any_task(&mut self) -> Option<BoxedTask> {
        let key = self.tasks.keys().next()?;
        self.remove_task(key)
    }

    pub(crate) fn remove_task_of(&mut self, process: Process) -> Option<BoxedTask> {
        let (key, _) = self.tasks.iter().find(|(_, task)| task.process == process)?;
        self.remove_task(key)
    }

    fn remove_task(&mut self, key: TaskKey) -> Option<BoxedTask> {
        let task = self.tasks.remove(key)?;
        self.running = task.process;
        task.future
    }

    pub(crate) fn next_ready(&mut self) -> Option<TaskKey> {
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

    pub(crate) fn begin_poll(&mut self, key: TaskKey) -> Option<(BoxedTask, Waker, Process)> {
        let task = self.tasks.get_mut(key)?;
        task.waker.queued.store(false, Ordering::Relaxed);
        self.counts.polls += 1;
        let before = mem::replace(&mut self.running, task.process);
        Some((task.future.take()?, Waker::from(Arc::clone(&task.waker)), before))
    }

    /// Keeps the future for the next poll; gives it back if its task was killed meanwhile.
    pub(crate) fn end_poll(&mut self, key: TaskKey, future: BoxedTask) -> Option<BoxedTask> {
        match self.tasks.get_mut(key) {
            Some(task) => task.future.replace(future),
            None => Some(future),
        }
    }

    pub(crate) fn next_event(&mut self, end: u64) -> Next {
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

    pub(crate) fn close_all(&mut self, process: Process) {
        self.backlogs.retain(|_, backlog| backlog.process != process);
        self.operations.retain(|_, operation| operation.process != process);
        let Some(descriptors) = self.processes.remove(&process) else { return };
        for socket in descriptors.sockets() {
            self.close(socket);
        }
    }
}

pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX / 4).min(u64::MAX / 4)
}
