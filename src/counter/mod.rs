//! The bundled counter: numbers that go up, kept on disk, behind `POST /counter`.
//!
//! Its face is a service like the site; its commits run on a thread of their own. While one commit is
//! on its way to the disk, the operations that arrive gather for the next, so that the rate is bound
//! by commits and not by visits. Knows nothing of the site.

mod committer;
pub mod store;

use std::{
    cell::RefCell,
    mem,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};

pub use self::committer::{Batch, Committer, Job, Report};
use self::store::{Operation, Outcome};
use crate::{
    clock::{self, Moment},
    connection::{Form, Outbox, Service},
    deadlines::{Deadlines, Key},
    http::{
        hosts::Hosts,
        render::{self, Rendered},
        request::{Method, Request},
    },
};

/// The longest name of a counter, in bytes.
const NAME_BYTES_MAX: usize = 128;
/// Operations that may gather for a commit; more are refused. With the longest names they take 20 MB, and
/// those of the commit that is under way as much.
const GATHERED_MAX: usize = 100_000;
/// The most that one call may add.
const BY_MAX: u64 = 1_000_000;

/// How long an operation waits for its outcome. A disk that hangs would keep its client, gone or not, and
/// the client's place for good.
pub const STORE_TIMEOUT: Duration = Duration::from_secs(30);

/// When to come again after [`Outcome::Busy`] or [`Outcome::TimedOut`], in seconds.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// The queue of the operations whose outcome is not known.
const WAITING: u8 = 0;

/// The counter's face to HTTP.
pub struct Face {
    submit: Box<dyn Fn(Batch)>,
    hosts: Hosts,
    state: RefCell<State>,
}

struct State {
    /// Those whose outcome is not known wait, in the one queue.
    answers: Deadlines<Answer, 1>,
    /// Operations for the next commit, and whose they are.
    gathered: Batch,
    gathered_keys: Vec<Key>,
    /// Whose operations are being committed.
    committing: Option<Vec<Key>>,
}

#[derive(Default)]
struct Answer {
    outcome: Option<Outcome>,
    waker: Option<Waker>,
}

/// A request that the counter has taken.
pub enum Counting {
    /// Something that needs no store.
    Known(Box<Rendered>),
    /// An operation that is not begun.
    Admitted(Operation),
    /// An operation whose outcome comes with a commit.
    Begun(Ticket),
}

/// The right to the outcome of one operation.
pub struct Ticket {
    face: Rc<Face>,
    key: Key,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.face.state.borrow_mut().answers.remove(self.key);
    }
}

/// The face as connections hold it.
pub struct Counter(Rc<Face>);

impl Counter {
    /// A face whose batches go to `submit`; what becomes of each comes back by
    /// [`hear`](Service::hear).
    pub fn new(submit: Box<dyn Fn(Batch)>, hosts: Hosts) -> Self {
        let state = State {
            answers: Deadlines::new([STORE_TIMEOUT]),
            gathered: Batch::new(),
            gathered_keys: Vec::new(),
            committing: None,
        };
        Self(Rc::new(Face { submit, hosts, state: state.into() }))
    }
}

impl Face {
    fn begin(self: &Rc<Self>, operation: Operation) -> Ticket {
        let mut state = self.state.borrow_mut();
        if state.gathered.len() == GATHERED_MAX {
            let outcome = Some(Outcome::Busy);
            let key = state.answers.insert(Answer { outcome, waker: None });
            return Ticket { face: Rc::clone(self), key };
        }
        let key = state.answers.insert(Answer::default());
        state.answers.wait(key, WAITING, clock::now());
        state.gathered.push(operation);
        state.gathered_keys.push(key);
        drop(state);
        self.submit_gathered();
        Ticket { face: Rc::clone(self), key }
    }

    /// Ends the waits whose time is up at `now`. Their operations stay with the store.
    fn expire(&self, now: Moment) {
        let mut state = self.state.borrow_mut();
        while let Some((_, key)) = state.answers.pop_expired(now) {
            state.end(key, Outcome::TimedOut);
        }
    }

    /// Submits what has gathered, unless a commit is under way.
    fn submit_gathered(&self) {
        let mut state = self.state.borrow_mut();
        if state.committing.is_some() || state.gathered.is_empty() {
            return;
        }
        state.committing = Some(mem::take(&mut state.gathered_keys));
        let batch = mem::take(&mut state.gathered);
        drop(state);
        (self.submit)(batch);
    }
}

impl State {
    fn end(&mut self, key: Key, outcome: Outcome) {
        self.answers.leave(key);
        let Some(answer) = self.answers.get_mut(key) else { return };
        answer.outcome = Some(outcome);
        if let Some(waker) = answer.waker.take() {
            waker.wake();
        }
    }
}

impl Ticket {
    fn poll(&self, context: &mut Context<'_>) -> Poll<Outcome> {
        let mut state = self.face.state.borrow_mut();
        let Some(answer) = state.answers.get_mut(self.key) else {
            unreachable!("an answer lives as long as its ticket");
        };
        if let Some(outcome) = answer.outcome.take() {
            return Poll::Ready(outcome);
        }
        answer.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Service for Counter {
    type Pending = Counting;
    /// The outcomes of the batch that was submitted last, in its order.
    type Word = Vec<Outcome>;

    fn admit(&self, request: &Request<'_>) -> Counting {
        match judge_sender(request, &self.0.hosts).and_then(|()| operation(request)) {
            Ok(operation) => Counting::Admitted(operation),
            Err(answer) => Counting::Known(Box::new(answer)),
        }
    }

    fn is_refused(&self, counting: &Counting) -> bool {
        matches!(counting, Counting::Known(answer) if answer.is_error())
    }

    fn start(&self, counting: &mut Counting) {
        if let Counting::Admitted(operation) = counting {
            let operation = mem::replace(operation, Operation::All);
            *counting = Counting::Begun(self.0.begin(operation));
        }
    }

    fn poll_answer(
        &self,
        counting: &mut Counting,
        form: Form,
        outbox: &mut Outbox,
        context: &mut Context<'_>,
    ) -> Poll<()> {
        match counting {
            Counting::Known(answer) => outbox.push(answer, form),
            Counting::Admitted(_) => unreachable!("an operation is started before it is polled"),
            Counting::Begun(ticket) => {
                let outcome = std::task::ready!(ticket.poll(context));
                outbox.push(&render_outcome(outcome), form);
            }
        }
        Poll::Ready(())
    }

    fn hear(&self, outcomes: Vec<Outcome>) {
        let mut state = self.0.state.borrow_mut();
        let keys = state.committing.take().unwrap_or_default();
        assert_eq!(keys.len(), outcomes.len(), "each operation has one outcome");
        for (key, outcome) in keys.into_iter().zip(outcomes) {
            // The first end counts: what comes after a time-out changes nothing.
            if state.answers.queue_of(key).is_some() {
                state.end(key, outcome);
            }
        }
        drop(state);
        self.0.submit_gathered();
    }

    fn expire(&self) {
        self.0.expire(clock::now());
    }
}

/// Refuses what web pages send: a counter is for servers.
fn judge_sender(request: &Request<'_>, hosts: &Hosts) -> Result<(), Rendered> {
    if request.has_origin {
        return Err(text(403, "a counter takes nothing from web pages (Origin)\n"));
    }
    // RFC 9110 section 15.5.20: the request was sent to a server that it is not for.
    if !hosts.allow(request.host) {
        return Err(text(421, "this host is not answered here; --counter-hosts can allow it\n"));
    }
    Ok(())
}

/// What a request asks of the store, or the answer that needs none.
fn operation(request: &Request<'_>) -> Result<Operation, Rendered> {
    let name = match request.path {
        "/counters" => None,
        "/counter" => Some(""),
        path => match path.strip_prefix("/counter/") {
            Some(name) if is_name(name) => Some(name),
            Some(_) => {
                return Err(text(
                    400,
                    "a counter's name is 1 to 128 letters, digits, dots, dashes and underscores\n",
                ));
            }
            None if path == "*" => return Err(allow("GET, HEAD, POST, OPTIONS", StatusCode::OK)),
            None => {
                return Err(text(404, "there are /counter, /counter/NAME and /counters\n"));
            }
        },
    };
    let Some(name) = name else {
        return match request.method {
            Method::Get | Method::Head => Ok(Operation::All),
            method => Err(not_allowed("GET, HEAD, OPTIONS", method)),
        };
    };
    let name = name.to_owned();
    match request.method {
        Method::Get | Method::Head => Ok(Operation::Total { name }),
        Method::Post => match by(request.query) {
            Some(by) => Ok(Operation::Add { name, by }),
            None => Err(text(400, "the query is by=N, with N from 1 to 1000000\n")),
        },
        method => Err(not_allowed("GET, HEAD, POST, OPTIONS", method)),
    }
}

/// Names stand in paths and in JSON as they are, so they hold nothing that either would escape.
pub fn is_name(name: &str) -> bool {
    let is_name_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    matches!(name.len(), 1..=NAME_BYTES_MAX) && name.bytes().all(is_name_byte)
}

/// How much a query adds: 1 without one, else the number of `by=N`.
fn by(query: Option<&str>) -> Option<u64> {
    let Some(query) = query.filter(|query| !query.is_empty()) else { return Some(1) };
    let digits = query.strip_prefix("by=")?;
    let valid = matches!(digits.len(), 1..=7) && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits.parse().ok().filter(|_| valid)?;
    (1..=BY_MAX).contains(&number).then_some(number)
}

fn render_outcome(outcome: Outcome) -> Rendered {
    match outcome {
        Outcome::Total(total) => text(200, &format!("{total}\n")),
        Outcome::All(json) => {
            let fields = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
            render::response(StatusCode::OK, &fields, json, clock::unix_seconds())
        }
        Outcome::TooManyNames => text(507, "there are too many counters for another name\n"),
        Outcome::Busy => come_again("too much is under way; nothing was counted\n"),
        Outcome::TimedOut => come_again("the store takes too long; the count may have been kept\n"),
        Outcome::Failed => text(503, "the store failed; nothing was counted\n"),
        Outcome::Unknown => text(503, "the store failed; the count may have been kept\n"),
    }
}

fn come_again(reason: &'static str) -> Rendered {
    let fields = [&render::text_fields()[..], &[(header::RETRY_AFTER, RETRY_AFTER)]].concat();
    let reason = Bytes::from_static(reason.as_bytes());
    render::response(StatusCode::SERVICE_UNAVAILABLE, &fields, reason, clock::unix_seconds())
}

fn text(status: u16, text: &str) -> Rendered {
    render::text(status, text.to_owned(), clock::unix_seconds())
}

fn not_allowed(methods: &'static str, method: Method) -> Rendered {
    match method {
        Method::Options => allow(methods, StatusCode::OK),
        _ => allow(methods, StatusCode::METHOD_NOT_ALLOWED),
    }
}

fn allow(methods: &'static str, status: StatusCode) -> Rendered {
    let fields = [(header::ALLOW, HeaderValue::from_static(methods))];
    render::response(status, &fields, Bytes::new(), clock::unix_seconds())
}

#[cfg(test)]
mod tests {
    use std::{
        collections::VecDeque,
        net::Ipv4Addr,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
        task::Wake,
    };

    use proptest::prelude::*;

    use super::*;
    use crate::http::hosts::HostList;

    /// What happens to the face.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        /// A client asks.
        Begin,
        /// The client at this place leaves.
        Leave(usize),
        /// The client at this place looks for its outcome.
        Poll(usize),
        /// The commit under way ends, in order or not.
        Commit(bool),
        /// The time of all that wait is up.
        Expire,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Begin),
            1 => any::<usize>().prop_map(Step::Leave),
            3 => any::<usize>().prop_map(Step::Poll),
            2 => any::<bool>().prop_map(Step::Commit),
            1 => Just(Step::Expire),
        ]
    }

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// A client and what it is to be told: the total that bears the number of its operation, once a
    /// commit has ended in order, that it has failed, or that it takes too long, whatever it does later.
    struct Asker {
        number: u64,
        ticket: Ticket,
        expected: Option<Outcome>,
        woken: Arc<Woken>,
        polled: bool,
        committed: bool,
    }

    impl Asker {
        /// It has an outcome now, unless it had one before.
        fn expect(&mut self, outcome: Outcome) {
            if self.expected.is_none() {
                self.expected = Some(outcome);
                assert_eq!(self.woken.0.load(Ordering::Relaxed), self.polled);
            }
        }

        /// Whether it has its outcome.
        fn poll(&mut self) -> bool {
            let waker = Waker::from(Arc::clone(&self.woken));
            let outcome = self.ticket.poll(&mut Context::from_waker(&waker));
            self.polled = true;
            match &self.expected {
                Some(expected) => assert_eq!(outcome, Poll::Ready(expected.clone())),
                None => assert!(outcome.is_pending()),
            }
            outcome.is_ready()
        }
    }

    type Submitted = Rc<RefCell<VecDeque<Batch>>>;

    /// Ends the commit under way, if there is one.
    fn end_commit(counter: &Counter, submitted: &Submitted, works: bool, askers: &mut [Asker]) {
        let Some(batch) = submitted.borrow_mut().pop_front() else { return };
        assert!(submitted.borrow().is_empty(), "two commits under way");
        let outcome = |operation: &Operation| match operation {
            Operation::Add { by, .. } if works => (*by, Outcome::Total(*by)),
            Operation::Add { by, .. } => (*by, Outcome::Unknown),
            other => panic!("{other:?}"),
        };
        let (numbers, outcomes): (Vec<_>, Vec<_>) = batch.iter().map(outcome).unzip();
        assert!(numbers.is_sorted(), "{numbers:?}");
        counter.hear(outcomes.clone());
        for asker in askers {
            let place = numbers.iter().position(|number| *number == asker.number);
            if let Some(place) = place {
                assert!(!mem::replace(&mut asker.committed, true), "committed twice");
                asker.expect(outcomes[place].clone());
            }
        }
    }

    proptest! {
        #[test]
        fn each_operation_has_its_own_outcome(steps in prop::collection::vec(step(), 0..200)) {
            let submitted = Submitted::default();
            let to = Rc::clone(&submitted);
            let submit = Box::new(move |batch| to.borrow_mut().push_back(batch));
            let counter =
                Counter::new(submit, Hosts::new(Ipv4Addr::LOCALHOST.into(), HostList::default()));
            let mut askers: Vec<Asker> = Vec::new();
            let mut number = 0;
            for step in steps {
                match step {
                    Step::Begin => {
                        number += 1;
                        let ticket =
                            counter.0.begin(Operation::Add { name: String::new(), by: number });
                        let (expected, woken) = (None, Arc::default());
                        let (polled, committed) = (false, false);
                        askers.push(Asker { number, ticket, expected, woken, polled, committed });
                    }
                    Step::Commit(works) => end_commit(&counter, &submitted, works, &mut askers),
                    Step::Expire => {
                        counter.0.expire(clock::now().after(STORE_TIMEOUT));
                        askers.iter_mut().for_each(|asker| asker.expect(Outcome::TimedOut));
                    }
                    Step::Leave(_) | Step::Poll(_) if askers.is_empty() => {}
                    Step::Leave(place) => drop(askers.swap_remove(place % askers.len())),
                    Step::Poll(place) => {
                        let place = place % askers.len();
                        if askers[place].poll() {
                            askers.swap_remove(place);
                        }
                    }
                }
            }
            // All that were begun are committed, the abandoned too, and nothing is left behind.
            while !submitted.borrow().is_empty() {
                end_commit(&counter, &submitted, true, &mut askers);
            }
            assert!(askers.iter_mut().all(Asker::poll));
            askers.clear();
            let state = counter.0.state.borrow();
            assert!(state.answers.len() == 0 && state.gathered.is_empty());
            assert!(state.gathered_keys.is_empty() && state.committing.is_none());
        }
    }

    #[track_caller]
    fn check_by(query: Option<&str>, expected: Option<u64>) {
        assert_eq!(by(query), expected, "{query:?}");
    }

    #[test]
    fn a_call_adds_one_or_as_much_as_it_says() {
        check_by(None, Some(1));
        check_by(Some(""), Some(1));
        check_by(Some("by=1"), Some(1));
        check_by(Some("by=1000000"), Some(1_000_000));
        for query in
            ["by", "by=", "by=0", "by=1000001", "by=-1", "by=+1", "by=1.0", "by=1&by=2", "x=1"]
        {
            check_by(Some(query), None);
        }
    }

    #[test]
    fn who_is_refused_for_now_is_told_when_to_come_again() {
        for outcome in [Outcome::Busy, Outcome::TimedOut] {
            let answer = render_outcome(outcome);
            let head = str::from_utf8(&answer.head).unwrap();
            assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
            assert!(head.contains("\r\nretry-after: 1\r\n"), "{head}");
            assert!(head.contains("\r\ncontent-type: text/plain"), "{head}");
        }
    }

    #[test]
    fn names_are_plain() {
        for name in ["a", "home.page", "A-1_b", &"a".repeat(128)] {
            assert!(is_name(name), "{name:?}");
        }
        for name in ["", "a/b", "a b", "a%20", "\"", "é", &"a".repeat(129)] {
            assert!(!is_name(name), "{name:?}");
        }
    }
}
