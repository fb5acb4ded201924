//! How a history acts on the world of its thread, and runs it.

use std::{
    cell::RefCell, fmt, future::Future, io, mem, net::SocketAddr, os::fd::RawFd, rc::Rc,
    task::Context, time::Duration,
};

pub use crate::machine::SocketKey;
use crate::machine::{Next, READY, TaskKey, micros};
pub(crate) use crate::machine::{TimerKey, What, World};

/// How often the tasks may be polled without anything happening in between, for each task that there is.
const POLLS_WITHOUT_EVENT: usize = 100;
/// How many of 100 sends on a ring go past it.
const DIRECT: u8 = 50;

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

/// Sends at once what a socket takes of `bytes`, or nothing of them: at random, and never with epoll.
pub fn send_now(socket: RawFd, bytes: &[u8]) -> Option<io::Result<usize>> {
    with(|world| {
        let socket = world.socket_of(socket)?;
        let is_direct = !world.settings.legacy && !bytes.is_empty() && world.chance(DIRECT);
        if is_direct { world.write(socket, bytes) } else { None }
    })
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

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
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
