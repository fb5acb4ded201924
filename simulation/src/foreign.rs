//! Counters that are not tallyring's: prompt, slow, wrong, half, silent, gone and back.

use std::{
    cell::{Cell, RefCell},
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use fastrand::Rng;
use monoio::{
    net::{self, TcpStream},
    time::{sleep, timeout},
    world::{self, Process},
};

use crate::{
    plan::{ADDRESSES, Mode, Plan, WORKERS_MAX},
    record::{Call, Record},
};

/// An answer that nobody has asked for.
const UNASKED: &[u8] = b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n";
/// How long a counter that has said that it closes looks for a call that comes all the same.
const LAST_LOOK: Duration = Duration::from_millis(50);
/// How far apart a worker probes a counter that stops.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);
/// After so long a worker has heard whatever it was told, where bytes take no noticeable time.
const HEARD: Duration = Duration::from_millis(100);
/// What is asked of a counter at most, in bytes.
const CALL_BYTES_MAX: usize = 1_000;

/// A counter.
pub struct Foreign {
    number: usize,
    process: Process,
    mode: Cell<Mode>,
    /// The addresses where it listens, a bit for each.
    places: Cell<u8>,
    rng: RefCell<Rng>,
    record: Rc<Record>,
    /// Whether what is sent at once arrives at once.
    whole: bool,
    /// Since when each worker knows that this counter stops, and its calls after that. Nothing where it may call all
    /// the same.
    told: Option<RefCell<[Stopping; WORKERS_MAX]>>,
    /// Whether it may have other calls on a connection by the time of an answer. What it says then is all said of the
    /// call that it is about.
    pipelines: bool,
    /// Whether each of its answers ends its connection, where it has other calls; else none does. So no visit is lost.
    closes: bool,
    /// Whether bytes take no noticeable time.
    is_swift: bool,
    /// Whether it is one of several programs, by the connection: some take calls that register several visits, and say how
    /// many they have added, and some count one for each call.
    is_many: bool,
}

/// Since when a worker knows that a counter stops, and its calls after that.
type Stopping = Option<(Duration, u32)>;

/// An address of a counter.
pub fn address(counter: usize, place: usize) -> SocketAddr {
    let host = u8::try_from(counter * ADDRESSES + place + 1).unwrap_or(u8::MAX);
    (Ipv4Addr::new(10, 0, 1, host), 3001).into()
}

/// The addresses that these bits are for.
pub fn places(bits: u8) -> impl Iterator<Item = usize> {
    (0..ADDRESSES).filter(move |place| bits & 1 << place != 0)
}

impl Foreign {
    /// Starts to listen at the first of its addresses.
    pub fn start(number: usize, plan: &Plan, record: &Rc<Record>) -> Rc<Self> {
        let counter = Rc::new(Self {
            number,
            process: Process(Process::PEERS.0 + 1 + number),
            mode: Cell::new(Mode::Prompt),
            places: Cell::new(1),
            rng: RefCell::new(Rng::with_seed(plan.seed ^ (0xf0 + number as u64))),
            record: Rc::clone(record),
            whole: plan.world.cuts == 0 && plan.world.window >= 3_000,
            // Which worker a call comes from is seen only where each visit has its own.
            told: (plan.spares(number) && plan.batches.is_none() && !plan.pipelines())
                .then(RefCell::default),
            pipelines: plan.pipelines(),
            closes: (plan.seed >> number) & 3 == 0,
            is_swift: plan.is_swift(),
            is_many: plan.offers,
        });
        counter.listen_again();
        counter
    }

    /// Listens where it should and does not.
    fn listen_again(self: &Rc<Self>) {
        let mode = self.mode.get();
        for place in places(self.places.get()) {
            let address = address(self.number, place);
            if mode != Mode::Refuses && !net::is_listening(address) {
                self.listen(place);
            }
            net::set_hanging(address, mode == Mode::Hangs);
        }
    }

    fn listen(self: &Rc<Self>, place: usize) {
        let address = address(self.number, place);
        net::listen(self.process, address);
        let counter = Rc::clone(self);
        world::spawn_in(self.process, async move {
            while let Ok(stream) = net::accept(address, None).await {
                let process = counter.process;
                world::spawn_in(process, Rc::clone(&counter).serve(stream));
            }
        });
    }

    /// From now on it behaves so.
    pub fn set_mode(self: &Rc<Self>, mode: Mode) {
        self.mode.set(mode);
        if mode == Mode::Refuses {
            world::kill(self.process);
        }
        self.listen_again();
    }

    /// From now on it listens at these of its addresses. Who is connected stays, or is cut.
    pub fn move_to(self: &Rc<Self>, places: u8, cuts: bool) {
        self.places.set(places);
        if cuts {
            world::kill(self.process);
        }
        for place in (0..ADDRESSES).filter(|place| places & 1 << place == 0) {
            net::close_listener(address(self.number, place));
        }
        self.listen_again();
    }

    async fn serve(self: Rc<Self>, stream: TcpStream) {
        let mut received = Vec::new();
        let adds = self.is_many && self.rng.borrow_mut().bool();
        loop {
            let end = loop {
                if let Some(end) = received.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                    break end + 4;
                }
                if received.len() > CALL_BYTES_MAX {
                    self.record.violation(format_args!("a counter is sent what is no call"));
                    return;
                }
                match stream.receive(CALL_BYTES_MAX).await {
                    Ok(more) if !more.is_empty() => received.extend(more),
                    _ => return,
                }
            };
            let bytes: Vec<u8> = received.drain(..end).collect();
            let Some(call) = Call::read(&bytes) else {
                let call = String::from_utf8_lossy(&bytes).into_owned();
                self.record.violation(format_args!("a counter is sent what is no call: {call:?}"));
                return;
            };
            self.record.judge_call(call, &bytes);
            if !self.answer(&stream, call, adds).await {
                return;
            }
        }
    }

    fn count(&self, Call { visit, by }: Call) {
        self.record.visit(visit, |visit| visit.counted += by);
    }

    /// It is about to answer a call with success, and to say that so much was added. Where there may be others who take one
    /// visit in a call, that of several must be confirmed.
    fn confirm(&self, Call { visit, by }: Call, says: Option<u64>) {
        if !self.is_many || by == 1 || says == Some(by) {
            self.record.visit(visit, |visit| visit.confirmed += by);
        }
    }

    /// A worker has called: one that knows that this counter stops does so to probe it.
    fn called(&self, visit: usize) {
        let Some(told) = &self.told else { return };
        let worker = self.record.worker_of(visit);
        let mut told = told.borrow_mut();
        let Some((since, calls)) = &mut told[worker] else { return };
        let past = world::now() - *since;
        if past < HEARD {
            return;
        }
        *calls += 1;
        if PROBE_INTERVAL * (*calls - 1) > past {
            self.record.violation(format_args!(
                "worker {worker} calls counter {}, which stops, {calls} times in {past:?}",
                self.number
            ));
        }
    }

    /// A worker is told whether this counter goes on.
    fn tell(&self, visit: usize, goes_on: bool) {
        let Some(told) = &self.told else { return };
        let told = &mut told.borrow_mut()[self.record.worker_of(visit)];
        match goes_on {
            true => *told = None,
            false => {
                told.get_or_insert((world::now(), 0));
            }
        }
    }

    /// Answers a call; whether the connection goes on. `adds` is whether it takes calls that register several visits.
    async fn answer(&self, stream: &TcpStream, asked: Call, adds: bool) -> bool {
        let visit = asked.visit;
        let call = if self.is_many && !adds { Call { visit, by: 1 } } else { asked };
        let says = adds.then_some(call.by);
        self.called(visit);
        match self.mode.get() {
            Mode::Prompt => {}
            Mode::Stops => {
                self.count(call);
                self.confirm(asked, says);
                let number = self.record.new_number(call);
                self.record.answers(call, Some(number));
                let length = number.to_string().len();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{number}"
                );
                let _ = stream.send(with_added(answer, says).into()).await;
                self.tell(visit, false);
                return false;
            }
            Mode::Slow(pause) => sleep(pause).await,
            Mode::Any => return self.answer_anyhow(stream, asked, adds).await,
            Mode::Silent | Mode::Refuses | Mode::Hangs => {
                std::future::pending::<()>().await;
            }
        }
        self.count(call);
        self.confirm(asked, says);
        let number = self.record.new_number(call);
        let kind =
            if self.record.is_shared(visit) { self.rng.borrow_mut().usize(..) } else { visit };
        // One that closes would be taken for one that stops.
        let form = match kind % FORMS {
            _ if self.pipelines && self.closes => CLOSING,
            CLOSING if self.pipelines || self.told.is_some() => 0,
            form => form,
        };
        let (welcome, tells_number, goes_on) = welcome(kind, form, number);
        self.record.answers(call, tells_number.then_some(number));
        self.tell(visit, goes_on);
        stream.send(with_added(welcome, says).into()).await.is_ok() && goes_on
    }

    async fn answer_anyhow(&self, stream: &TcpStream, asked: Call, adds: bool) -> bool {
        let (call, says) = self.draw_added(asked, adds);
        let (answer, counts, is_success, pause, then) = self.draw(call, says);
        if is_success {
            self.confirm(asked, says);
        }
        if counts {
            self.count(call);
        }
        sleep(pause).await;
        if stream.send(answer).await.is_err() {
            return false;
        }
        match then {
            Then::GoesOn => true,
            Then::Closes => false,
            Then::Ends => {
                if self.pipelines {
                    // Those that were sent before the answer was heard are nobody's fault.
                    let sent = async {
                        while matches!(stream.receive(CALL_BYTES_MAX).await, Ok(bytes) if !bytes.is_empty())
                        {
                        }
                    };
                    if timeout(HEARD, sent).await.is_ok() || !self.is_swift {
                        return false;
                    }
                }
                let more = timeout(LAST_LOOK, stream.receive(CALL_BYTES_MAX)).await;
                if matches!(more, Ok(Ok(bytes)) if !bytes.is_empty()) {
                    self.record
                        .violation(format_args!("a counter is called after its last answer"));
                }
                false
            }
            Then::Resets => {
                stream.reset_at_close();
                false
            }
            Then::Hangs => {
                std::future::pending::<()>().await;
                false
            }
            Then::Adds(pause) => {
                sleep(pause).await;
                let _ = stream.send(UNASKED.to_vec()).await;
                // Whoever takes these bytes for an answer takes each later answer for that of another call, and
                // nothing can tell him. So there are none.
                std::future::pending::<()>().await;
                false
            }
        }
    }

    /// Draws what is counted of a call, and how much the answer says that was added. A proxy may have given it to another
    /// program, which counts one, and says nothing or something else.
    fn draw_added(&self, call: Call, adds: bool) -> (Call, Option<u64>) {
        let one = Call { by: 1, ..call };
        if !adds {
            return (if self.is_many { one } else { call }, None);
        }
        match self.rng.borrow_mut().u8(0..6) {
            0 => (one, None),
            1 if call.by > 1 => (one, None),
            2 | 3 if call.by > 1 => (one, Some(call.by - 1)),
            _ => (call, Some(call.by)),
        }
    }

    /// Draws an answer to a call, which says that so much was added: its bytes, whether its visits are counted, and whether
    /// it says so, when it is given, and what follows.
    fn draw(&self, call: Call, says: Option<u64>) -> (Vec<u8>, bool, bool, Duration, Then) {
        let number = self.record.new_number(call);
        let mut rng = self.rng.borrow_mut();
        let rng = &mut *rng;
        let pause = match rng.u8(0..8) {
            0 => Duration::from_millis(rng.u64(0..3_000)),
            1 | 2 => Duration::from_millis(rng.u64(0..200)),
            _ => Duration::ZERO,
        };
        let (status, counts) = match rng.u8(0..8) {
            0 => ("500 No", rng.bool()),
            1 => ("404 No", false),
            2 => ("302 No", rng.bool()),
            _ => ("200 OK", true),
        };
        let (mut text, mut closes, tells_number) = draw_form(rng, status, number);
        text = with_added(text, says);
        self.record.answers(call, tells_number.then_some(number));
        if rng.u8(0..5) == 0 {
            text = "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n".repeat(rng.usize(1..=3)) + &text;
        }
        let is_framed = is_framed(&text);
        let mut bytes = text.into_bytes();
        let kind = rng.u8(0..14);
        // What is cut off, or is no answer, does not say that the connection closes.
        closes &= kind > 3;
        let then = match kind {
            0 => {
                bytes.truncate(rng.usize(0..bytes.len()));
                Then::Closes
            }
            1 => {
                bytes.truncate(rng.usize(0..bytes.len()));
                Then::Hangs
            }
            2 => {
                bytes.truncate(rng.usize(0..bytes.len()));
                Then::Resets
            }
            3 => {
                bytes = (0..rng.usize(1..200)).map(|_| rng.u8(..)).collect();
                Then::GoesOn
            }
            // What comes together with an answer is seen before the next call, and spoils the connection.
            4 if self.whole && !self.pipelines && bytes.len() < 100 => {
                bytes.extend(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
                Then::GoesOn
            }
            // Else that would be the answer to the next.
            4 | 5 if !self.pipelines => Then::Adds(Duration::from_millis(rng.u64(0..50))),
            6 => Then::Closes,
            _ => Then::GoesOn,
        };
        let then = match closes {
            // Only the close says that the answer ends, and until then there may be other calls.
            true if self.pipelines && !is_framed => Then::Closes,
            true => Then::Ends,
            false => then,
        };
        (bytes, counts, status.starts_with('2'), pause, then)
    }
}

/// Draws the form of an answer with this status, whether it says that the connection closes, and whether the number of
/// the visit can be read in it.
fn draw_form(rng: &mut Rng, status: &str, number: u64) -> (String, bool, bool) {
    let content = format!("{number}\n");
    let length = format!("Content-Length: {}", content.len());
    match rng.u8(0..9) {
        0 if status.starts_with('2') => {
            (String::from("HTTP/1.1 204 Counted\r\n\r\n"), false, false)
        }
        1 => (format!("HTTP/1.1 {status}\r\n{}", chunks(&content)), false, true),
        // Whether it was cut off cannot be known.
        2 => (format!("HTTP/1.1 {status}\r\n\r\n{content}"), true, false),
        3 => (format!("HTTP/1.0 {status}\r\n{length}\r\n\r\n{content}"), true, true),
        4 => (
            format!("HTTP/1.1 {status}\r\nConnection: close\r\n{length}\r\n\r\n{content}"),
            true,
            true,
        ),
        5 => {
            let content = "7".repeat(1500);
            let text = format!("HTTP/1.1 {status}\r\nContent-Length: 1500\r\n\r\n{content}");
            (text, true, false)
        }
        _ => (format!("HTTP/1.1 {status}\r\n{length}\r\n\r\n{content}"), false, true),
    }
}

/// The forms of an answer.
const FORMS: usize = 5;
/// The one that ends its connection.
const CLOSING: usize = 3;

/// How a counter that works says that a visit is counted, in each of the forms that an answer may have, whether the
/// number of the visit can be read in it, and whether the counter takes another call.
fn welcome(visit: usize, form: usize, number: u64) -> (String, bool, bool) {
    let content = format!("{number}{}", if visit.is_multiple_of(4) { "" } else { "\n" });
    let length = content.len();
    match form {
        0 => (
            format!(
                "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n\
                 HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{content}"
            ),
            true,
            true,
        ),
        1 => (format!("HTTP/1.1 200 OK\r\n{}", chunks(&content)), true, true),
        2 => (String::from("HTTP/1.1 204 Counted\r\n\r\n"), false, true),
        CLOSING => (format!("HTTP/1.0 200 OK\r\n\r\n{content}"), false, false),
        // No number, though it begins and ends like one; some are more than is read at once.
        _ => {
            let length = if visit.is_multiple_of(2) { 500 } else { 21 };
            let content = "7".repeat(length);
            (format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{content}"), false, true)
        }
    }
}

/// Whether an answer says where it ends.
fn is_framed(answer: &str) -> bool {
    ["Content-Length", "Transfer-Encoding", " 204 "].iter().any(|word| answer.contains(word))
}

/// The answer, which says besides how much was added.
fn with_added(mut answer: String, added: Option<u64>) -> String {
    let head = answer.rfind("HTTP/1.").unwrap_or(0);
    if let (Some(added), Some(line)) = (added, answer[head..].find("\r\n")) {
        answer.insert_str(head + line, &format!("\r\nTallyring-Added: {added}"));
    }
    answer
}

/// A body of two chunks.
fn chunks(content: &str) -> String {
    let (one, other) = content.split_at(content.len() / 2);
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    format!("Transfer-Encoding: chunked\r\n\r\n{}{}0\r\nA: 8\r\n\r\n", chunk(one), chunk(other))
}

/// What a counter does after an answer.
enum Then {
    GoesOn,
    Closes,
    /// Closes as well, and has said so.
    Ends,
    Resets,
    Hangs,
    /// Sends what nobody has asked for, after a while.
    Adds(Duration),
}
