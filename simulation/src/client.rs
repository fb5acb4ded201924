//! Clients: each sends what its plan says, reads in its own way, and judges what it reads.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
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
    plan::{Client, Ending, Plan, Reading, Step},
    record::Record,
    request::{Request, Subject},
    server,
};

/// The process of all clients.
pub const CLIENTS: Process = Process::PEERS;
/// A client that is still not served after so long will never be.
const PATIENCE: Duration = Duration::from_secs(30);
/// For an interim answer.
const CONTINUE: Duration = Duration::from_millis(300);

/// What a client expects next.
enum Expected {
    /// The answer to this request.
    Answer(Request),
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

/// What a client knows.
struct State {
    name: String,
    record: Rc<Record>,
    expected: RefCell<VecDeque<Expected>>,
    received: RefCell<Vec<u8>>,
    /// The last answer said that the connection closes.
    told_last: Cell<bool>,
    interim: Cell<bool>,
    ended: Cell<Option<End>>,
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
    let state = Rc::new(State {
        name: format!("client {}", client.id),
        record: Rc::clone(record),
        expected: RefCell::default(),
        received: RefCell::default(),
        told_last: Cell::new(false),
        interim: Cell::new(false),
        ended: Cell::new(None),
        slow: paused || !is_swift(plan),
        waker: RefCell::new(None),
        told: RefCell::default(),
    });
    for (_, step) in &client.steps {
        if let Step::Request(Request { subject: Subject::Visit(visit), .. }, _) = step {
            record.visit(*visit, |visit| visit.worker = client.worker);
        }
    }
    let client = client.clone();
    world::spawn_in(CLIENTS, async move {
        sleep(client.comes).await;
        let connect = TcpStream::connect_addr(server::address(client.worker));
        let Ok(Ok(stream)) = timeout(PATIENCE, connect).await else { return };
        stream.set_name(&state.name);
        {
            let reads = pin!(state.read(&stream, client.reading));
            let acts = pin!(state.act(&stream, &client));
            match select(acts, reads).await {
                Either::Left(_) => {}
                Either::Right(((), _)) => unreachable!("a client reads until it leaves"),
            }
        }
        state.leave(calm, answered);
    });
}

/// Makes visits one after another on a connection each, until two in a row are welcomed: the second at once.
pub async fn probe(worker: usize, visit: usize, tries: usize, record: Rc<Record>) -> Vec<Told> {
    let mut told = Vec::new();
    for _ in 0..tries {
        let state = Rc::new(State {
            name: format!("probe of worker {worker}"),
            record: Rc::clone(&record),
            expected: RefCell::new(VecDeque::from([Expected::Answer(Request::visit(visit))])),
            received: RefCell::default(),
            told_last: Cell::new(false),
            interim: Cell::new(false),
            ended: Cell::new(None),
            slow: true,
            waker: RefCell::new(None),
            told: RefCell::default(),
        });
        let Ok(stream) = TcpStream::connect_addr(server::address(worker)).await else {
            return told;
        };
        stream.set_name(&state.name);
        let _ = stream.send(Request::visit(visit).bytes().0).await;
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

/// Whether bytes take no noticeable time.
fn is_swift(plan: &Plan) -> bool {
    plan.is_swift()
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
        && patient
        && !paused
        && stays
        && client.reading == Reading::Prompt
        && is_swift(plan)
        && !plan.may_cut()
}

impl State {
    /// Sends what the client has to send, and waits as it is to.
    async fn act(&self, stream: &TcpStream, client: &Client) {
        for (_, step) in &client.steps {
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
            Ending::Server => self.end().await,
            Ending::Close => {}
            Ending::Reset => stream.reset_at_close(),
        }
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
        stream.send(bytes.clone()).await.ok()
    }

    async fn request(
        &self,
        stream: &TcpStream,
        request: &Request,
        pause: Option<(usize, Duration)>,
    ) -> Option<()> {
        let (bytes, head) = request.bytes();
        self.expected.borrow_mut().push_back(Expected::Answer(request.clone()));
        let (mut from, length) = (0, bytes.len());
        if request.expects_continue && head < length {
            stream.send(bytes[..head].to_vec()).await.ok()?;
            from = head;
            // One that is told to go on does so; one that is told nothing does too, in the end.
            self.interim.set(false);
            let told = self.wait_until(|state| state.interim.get() || state.is_answered());
            let _ = timeout(CONTINUE, told).await;
        }
        if let Some((place, pause)) = pause
            && (from..length).contains(&place)
        {
            stream.send(bytes[from..place].to_vec()).await.ok()?;
            from = place;
            sleep(pause).await;
        }
        stream.send(bytes[from..].to_vec()).await.ok()
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
        let _ = timeout(PATIENCE, waiting).await;
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
        std::future::pending().await
    }

    /// Judges what was received, as far as it is whole.
    fn judge(&self) {
        while !self.received.borrow().is_empty() {
            let head_only = match self.expected.borrow().front() {
                Some(Expected::Answer(request)) => request.method == "HEAD",
                _ => false,
            };
            let read = answers::read(&self.received.borrow(), head_only);
            let answer = match read {
                Ok(None) => return,
                Ok(Some((length, answer))) => {
                    self.received.borrow_mut().drain(..length);
                    answer
                }
                Err(why) if self.expects_anything() => {
                    // Whether it was a HEAD is not known.
                    let _ = why;
                    self.received.borrow_mut().clear();
                    return;
                }
                Err(why) => {
                    self.wrong(format_args!("received no answer: {why}"));
                    self.received.borrow_mut().clear();
                    return;
                }
            };
            self.judge_answer(&answer);
        }
    }

    fn expects_anything(&self) -> bool {
        matches!(self.expected.borrow().front(), Some(Expected::Anything))
    }

    fn judge_answer(&self, answer: &Answer) {
        world::trace(format_args!("{} reads an answer of {}", self.name, answer.status));
        if self.told_last.get() {
            return self.wrong(format_args!("an answer follows the last one: {answer:?}"));
        }
        let mut expected = self.expected.borrow_mut();
        if answer.status == 100 {
            if !matches!(expected.front(), Some(Expected::Answer(request)) if request.expects_continue)
            {
                self.wrong(format_args!("was told to go on, and had not asked"));
            }
            self.interim.set(true);
            return;
        }
        let Some(next) = expected.pop_front() else {
            return self.wrong(format_args!("received an answer and had not asked: {answer:?}"));
        };
        self.told_last.set(answer.closes());
        match next {
            Expected::Anything => expected.push_front(Expected::Anything),
            Expected::Refusal if (400..600).contains(&answer.status) && answer.closes() => {}
            Expected::Refusal => self.wrong(format_args!("was to be refused, and got {answer:?}")),
            Expected::Answer(_) if answer.status == 408 && self.slow && answer.closes() => {}
            Expected::Answer(request) => match answers::judge(&request, answer) {
                Ok(told) => self.note(&request, told),
                Err(why) => self.wrong(format_args!("{why}")),
            },
        }
    }

    fn note(&self, request: &Request, told: Told) {
        self.record.answered();
        self.told.borrow_mut().push(told);
        if let Subject::Visit(visit) = request.subject {
            if told == Told::Sorry && self.record.serves(server::counter_of(visit)) {
                self.wrong(format_args!("was not welcomed, though nothing stands against it"));
            }
            if told == Told::Overloaded && !self.record.overloads() {
                self.wrong(format_args!("was refused, though there was room for all visits"));
            }
            self.record.visit(visit, |visit| match told {
                Told::Welcome => visit.welcomed = true,
                Told::Overloaded => visit.refused = true,
                Told::Sorry | Told::Nothing => {}
            });
        }
    }

    fn wrong(&self, what: std::fmt::Arguments<'_>) {
        self.record.violation(format_args!("{} {what}", self.name));
    }

    /// The client has left. One against which nothing stood was not reset, so that it could read whatever it was
    /// answered; and it was answered, unless the server drained.
    fn leave(&self, calm: bool, answered: bool) {
        let (requests, bytes) = (self.expected.borrow().len(), self.received.borrow().len());
        if calm && self.ended.get() == Some(End::Reset) {
            self.wrong(format_args!("was reset, though nothing stood against it"));
        }
        if calm && bytes > 0 {
            self.wrong(format_args!("was left with {bytes} bytes of an answer"));
        }
        if answered && !self.told_last.get() && requests > 0 {
            self.wrong(format_args!(
                "was not answered, though nothing stood against it: {requests} requests are left"
            ));
        }
    }
}
