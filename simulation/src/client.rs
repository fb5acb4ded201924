//! Clients: each sends what its plan says, reads in its own way, and judges what it reads.

mod judge;

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    net::IpAddr,
    pin::pin,
    rc::Rc,
    task::{Poll, Waker},
    time::Duration,
};

use futures_util::future::{Either, select};
use monoio::{
    net::TcpStream,
    time::{sleep, timeout},
    world::{self, Process},
};

use crate::{
    answers::{self, Answer, Told},
    logged::Said,
    opening::Opening,
    plan::{Client, Ending, IDS_OF_CLIENT, Plan, Reading, Step},
    record::Record,
    request::{Request, Subject},
    server,
};

/// The process of all clients.
pub const CLIENTS: Process = Process::PEERS;
/// A client that is still not served after so long will never be.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a client that does not close stays after the server's end: longer than any deadline and any drain.
const STAY: Duration = Duration::from_secs(200);
/// What a deadline may be late by: the tick, slow timers, the way there and back.
const SPARE: Duration = Duration::from_millis(400);
/// More than any history has.
const CLIENTS_MAX: usize = 100;
/// For an interim answer.
const CONTINUE: Duration = Duration::from_millis(300);

/// What a client expects next.
enum Expected {
    /// The answer to this request, which has been sent whole since this time.
    Answer(Request, Option<Duration>),
    /// A refusal, then the end.
    Refusal,
    /// Any refusal, the answer to a request that is none for a visit, or the end.
    Anything,
}

/// How a connection ended for its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Closed,
    Reset,
}

/// By when the server does something.
#[derive(Debug, Clone, Copy, Default)]
struct Deadlines {
    head: Duration,
    body: Duration,
    idle: Duration,
    call: Duration,
}

/// What a client knows.
struct State {
    name: String,
    record: Rc<Record>,
    /// What is sent together with what follows.
    held: RefCell<Vec<u8>>,
    /// Whether its connection does not begin as it must: it gets no answer to anything.
    turned_away: bool,
    /// Its address, once it has come.
    address: Cell<Option<IpAddr>>,
    expected: RefCell<VecDeque<Expected>>,
    received: RefCell<Vec<u8>>,
    /// The last answer said that the connection closes.
    told_last: Cell<bool>,
    interim: Cell<bool>,
    ended: Cell<Option<End>>,
    /// When the last answer came.
    answered_at: Cell<Duration>,
    /// When the last bytes came.
    received_at: Cell<Duration>,
    /// Whether the server must do something in time, whatever fails: answer, or close.
    served: bool,
    deadlines: Deadlines,
    /// Whether nothing stands against its requests being answered.
    calm: bool,
    /// Whether what it does too slowly must be noticed in time.
    strict: bool,
    /// Whether a 408 may come: the world or the client is slow.
    slow: bool,
    waker: RefCell<Option<Waker>>,
    told: RefCell<Vec<Told>>,
}

/// Lets a client come. It must be served if nothing stands against it.
pub fn start(client: &Client, plan: &Plan, record: &Rc<Record>) {
    let calm = is_calm(client, plan);
    let answered = calm && !plan.drains_early;
    let paused = client.steps.iter().any(|(_, step)| matches!(step, Step::Request(_, Some(_))));
    let limits = &plan.clients_limits;
    let state = Rc::new(State {
        calm,
        turned_away: client.opening.as_ref().is_some_and(|opening| !opening.is_valid()),
        strict: plan.is_swift() && !plan.may_cut() && client.reading == Reading::Prompt,
        slow: paused || !opens_at_once(client) || !plan.is_swift(),
        // One who does not find a place waits for long.
        served: client.reading == Reading::Prompt && plan.clients.len() <= plan.least_clients(),
        deadlines: Deadlines {
            head: limits.head_timeout,
            body: limits.body_timeout,
            // A drain gives each client time for one more request.
            idle: limits.idle_timeout + limits.drain_idle_timeout,
            call: plan.upstream.call_timeout,
        },
        ..State::new(format!("client {}", client.id), record)
    });
    for (visit, trace) in client.visits_with_traces() {
        record.visit(visit, |visit| visit.worker = client.worker);
        trace.into_iter().for_each(|fields| record.traces.expect(visit, fields));
    }
    let client = client.clone();
    world::spawn_in(CLIENTS, async move {
        sleep(client.comes).await;
        let connect = TcpStream::connect_addr(server::address(client.worker));
        let Ok(Ok(stream)) = timeout(PATIENCE, connect).await else { return };
        stream.set_name(&state.name);
        state.comes(stream.maker(), client.worker);
        {
            let reads = pin!(state.read(&stream, client.reading));
            let acts = pin!(state.act(&stream, &client));
            match select(acts, reads).await {
                Either::Left(_) => {}
                Either::Right(((), _)) => unreachable!("a client reads until it leaves"),
            }
        }
        state.leave(calm, answered);
        if client.ending == Ending::Server && client.id.is_multiple_of(2) {
            // The server must close all the same.
            sleep(STAY).await;
        }
        drop(stream);
    });
}

/// Makes visits one after another on a connection each, until two in a row are welcomed: the second at once.
pub async fn probe(
    worker: usize,
    visit: usize,
    tries: usize,
    opening: &[u8],
    record: Rc<Record>,
) -> Vec<Told> {
    let mut told = Vec::new();
    for number in 0..tries {
        let state = State::new(format!("probe of worker {worker}"), &record);
        let request = Request::visit((CLIENTS_MAX + visit) * IDS_OF_CLIENT + number, visit);
        state.expected.borrow_mut().push_back(Expected::Answer(request.clone(), None));
        let Ok(stream) = TcpStream::connect_addr(server::address(worker)).await else {
            return told;
        };
        stream.set_name(&state.name);
        state.comes(stream.maker(), worker);
        state.asks(|said, address| said.asks(address, &request));
        let _ = stream.send([opening, &request.bytes().0].concat()).await;
        {
            let reads = pin!(state.read(&stream, Reading::Prompt));
            let waits = pin!(timeout(PATIENCE, state.answered()));
            select(waits, reads).await;
        }
        told.extend(state.told.borrow().last());
        if told.ends_with(&[Told::Welcome; 2]) {
            return told;
        }
        if told.last() != Some(&Told::Welcome) {
            sleep(Duration::from_millis(700)).await;
        }
    }
    told
}

/// Whether nothing stands against all of its requests being answered.
fn is_calm(client: &Client, plan: &Plan) -> bool {
    let limit = plan.clients_limits.idle_timeout / 2;
    let patient = client.steps.iter().all(|(_, step)| match step {
        Step::Request(_, pause) => pause.is_none(),
        Step::Pause(pause) => *pause < limit,
        Step::Await => true,
        // The content of an answer is left out where the refused request is seen to be a HEAD: not judged here.
        Step::Refused(bytes) => !bytes.starts_with(b"HEAD"),
        Step::Garbage(_) => false,
    });
    let stays = matches!(client.ending, Ending::Answers | Ending::Server | Ending::Half);
    // Nothing may be asked after what was to be the last.
    let last = client.steps.iter().rev().find_map(|(_, step)| match step {
        Step::Request(request, _) => Some(Some(request)),
        Step::Refused(_) => Some(None),
        _ => None,
    });
    let keeps_word = client.steps.iter().all(|(_, step)| match step {
        Step::Request(request, _) => !request.closes() || Some(Some(request)) == last,
        _ => true,
    });
    // Two pauses in a row are one.
    let paused = client
        .steps
        .windows(2)
        .any(|steps| matches!(steps, [(_, Step::Pause(_)), (_, Step::Pause(_))]));
    keeps_word
        && opens_at_once(client)
        && patient
        && !paused
        && stays
        && client.reading == Reading::Prompt
        && plan.is_swift()
        && !plan.may_cut()
}

/// Whether its connection begins as it must, without a pause.
fn opens_at_once(client: &Client) -> bool {
    matches!(client.opening, None | Some(Opening::Header(_, None) | Opening::Joined(_)))
}

impl State {
    fn new(name: String, record: &Rc<Record>) -> Self {
        Self {
            name,
            record: Rc::clone(record),
            held: RefCell::default(),
            turned_away: false,
            address: Cell::new(None),
            expected: RefCell::default(),
            received: RefCell::default(),
            told_last: Cell::new(false),
            interim: Cell::new(false),
            ended: Cell::new(None),
            answered_at: Cell::default(),
            received_at: Cell::default(),
            served: false,
            deadlines: Deadlines::default(),
            calm: false,
            strict: false,
            slow: true,
            waker: RefCell::new(None),
            told: RefCell::default(),
        }
    }

    /// The client is connected to a worker.
    fn comes(&self, address: IpAddr, worker: usize) {
        self.address.set(Some(address));
        self.record.said().comes(address, worker);
    }

    /// Notes what the client asks, or is told.
    fn asks(&self, note: impl FnOnce(&mut Said, IpAddr)) {
        if let Some(address) = self.address.get() {
            note(&mut self.record.said(), address);
        }
    }

    /// Sends what the client has to send, and waits as it is to.
    async fn act(&self, stream: &TcpStream, client: &Client) {
        if self.open(stream, client).await.is_none() {
            return self.end().await;
        }
        for (place, (_, step)) in client.steps.iter().enumerate() {
            let next = client.steps.get(place + 1).map(|(_, next)| next);
            if let (Step::Request(request, None), Some(Step::Request(..))) = (step, next)
                && client.joins
                && !request.expects_continue
            {
                self.hold(request);
                continue;
            }
            if self.ended.get().is_some() || self.step(stream, step).await.is_none() {
                break;
            }
        }
        match client.ending {
            Ending::Answers => self.answered().await,
            Ending::Half => {
                stream.end();
                self.end().await;
            }
            Ending::Server => {
                self.answered().await;
                let answered = world::now();
                self.end().await;
                let idle = world::now() - answered;
                if self.calm && idle > self.deadlines.idle + SPARE {
                    self.wrong(format_args!("was idle for {idle:?}, and not closed before"));
                }
            }
            Ending::Close => {}
            Ending::Reset => stream.reset_at_close(),
        }
    }

    /// Sends what its connection begins with. `None` when nothing is to follow.
    async fn open(&self, stream: &TcpStream, client: &Client) -> Option<()> {
        let (bytes, pause) = match &client.opening {
            None => return Some(()),
            Some(Opening::Joined(bytes)) => {
                // What follows must be sent at once.
                let waits =
                    matches!(client.steps.first(), None | Some((_, Step::Pause(_) | Step::Await)));
                if !waits {
                    self.held.replace(bytes.clone());
                    return Some(());
                }
                (bytes, None)
            }
            Some(Opening::Header(bytes, pause)) => (bytes, *pause),
            Some(Opening::Wrong(bytes) | Opening::Part(bytes)) => (bytes, None),
        };
        let mut rest = &bytes[..];
        if let Some((place, pause)) = pause {
            stream.send(bytes[..place].to_vec()).await.ok()?;
            rest = &bytes[place..];
            sleep(pause).await;
            if self.strict && pause > self.deadlines.head + SPARE && self.ended.get().is_none() {
                self.wrong(format_args!("took {pause:?} over a PROXY header, and was not closed"));
            }
        }
        stream.send(rest.to_vec()).await.ok()?;
        if matches!(client.opening, Some(Opening::Part(_))) {
            let sent = world::now();
            self.end().await;
            let open = world::now() - sent;
            if self.strict && open > self.deadlines.head + SPARE {
                self.wrong(format_args!(
                    "sent a part of a PROXY header, and was open for {open:?}"
                ));
            }
            return None;
        }
        Some(())
    }

    async fn send(&self, stream: &TcpStream, bytes: &[u8]) -> Option<()> {
        let held = self.held.take();
        stream.send([&held, bytes].concat()).await.ok()
    }

    /// `None` when nothing more can be sent.
    async fn step(&self, stream: &TcpStream, step: &Step) -> Option<()> {
        let (bytes, expected) = match step {
            Step::Pause(pause) => {
                sleep(*pause).await;
                return Some(());
            }
            Step::Await => {
                self.answered().await;
                return Some(());
            }
            Step::Request(request, pause) => return self.request(stream, request, *pause).await,
            Step::Refused(bytes) => (bytes, Expected::Refusal),
            Step::Garbage(bytes) => (bytes, Expected::Anything),
        };
        self.expected.borrow_mut().push_back(expected);
        self.asks(Said::asks_anything);
        self.send(stream, bytes).await
    }

    /// Sends a request together with what follows.
    fn hold(&self, request: &Request) {
        self.expected.borrow_mut().push_back(Expected::Answer(request.clone(), None));
        self.asks(|said, address| said.asks(address, request));
        self.held.borrow_mut().extend(request.bytes().0);
    }

    async fn request(
        &self,
        stream: &TcpStream,
        request: &Request,
        pause: Option<(usize, Duration)>,
    ) -> Option<()> {
        let (bytes, head) = request.bytes();
        self.expected.borrow_mut().push_back(Expected::Answer(request.clone(), None));
        self.asks(|said, address| said.asks(address, request));
        let begins = self.expected.borrow().len() == 1;
        let (mut from, length) = (0, bytes.len());
        if request.expects_continue && head < length {
            self.send(stream, &bytes[..head]).await?;
            from = head;
            // One that is told to go on does so; one that is told nothing does too, in the end.
            self.interim.set(false);
            let told = self.wait_until(|state| state.interim.get() || state.is_answered());
            let _ = timeout(CONTINUE, told).await;
        }
        if let Some((place, pause)) = pause
            && (from..length).contains(&place)
        {
            self.send(stream, &bytes[from..place]).await?;
            from = place;
            sleep(pause).await;
            let (what, most) = match place < head {
                true => ("head", self.deadlines.head),
                false => ("body", self.deadlines.body),
            };
            if self.strict && begins && pause > most + SPARE && !self.is_answered() {
                self.wrong(format_args!(
                    "took {pause:?} over a {what}, and was not told that it is too slow"
                ));
            }
        }
        self.send(stream, &bytes[from..]).await?;
        // It may have been refused before.
        if let Some(Expected::Answer(last, sent)) = self.expected.borrow_mut().back_mut()
            && last == request
        {
            *sent = Some(world::now());
        }
        Some(())
    }

    fn is_answered(&self) -> bool {
        self.ended.get().is_some() || self.expected.borrow().is_empty()
    }

    async fn answered(&self) {
        self.wait_until(Self::is_answered).await;
    }

    async fn end(&self) {
        self.wait_until(|state| state.ended.get().is_some()).await;
    }

    /// Waits, but not for ever.
    async fn wait_until(&self, is: impl Fn(&Self) -> bool) {
        let waiting = poll_fn(|context| {
            if is(self) {
                return Poll::Ready(());
            }
            self.waker.replace(Some(context.waker().clone()));
            Poll::Pending
        });
        let began = world::now();
        let late = timeout(PATIENCE, waiting).await.is_err();
        if late && self.served && self.received_at.get() <= began {
            self.wrong(format_args!("was neither answered nor closed in {PATIENCE:?}"));
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Reads until the end, and then for ever.
    async fn read(&self, stream: &TcpStream, reading: Reading) {
        let mut total = 0;
        loop {
            let most = match reading {
                Reading::Prompt => 100_000,
                Reading::Slow(bytes, pause) => {
                    sleep(pause).await;
                    bytes
                }
                Reading::Stops(bytes) if total >= bytes => break,
                Reading::Stops(bytes) => bytes - total,
            };
            match stream.receive(most).await {
                Ok(bytes) if bytes.is_empty() => {
                    self.ended.set(Some(End::Closed));
                    break;
                }
                Ok(bytes) => {
                    total += bytes.len();
                    self.received_at.set(world::now());
                    self.received.borrow_mut().extend(bytes);
                    self.judge();
                }
                Err(_) => {
                    self.ended.set(Some(End::Reset));
                    break;
                }
            }
            self.wake();
        }
        self.wake();
        std::future::pending::<()>().await;
    }
}
