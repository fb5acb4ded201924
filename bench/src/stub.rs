//! The counter stub: a fast counter that keeps its total in memory.
//!
//! A `POST` registers a visit, or the number in its target, `by=N`; it, or one of so many, is answered after the delay,
//! and what follows it on its connection not before. `GET /calls` is
//! answered with the number of `POST`s, any other `GET` with the total; it needs a connection without an open call.
//! Requests may be pipelined; those that arrive in one turn of the loop are answered by one write.

use std::{
    collections::VecDeque,
    os::fd::RawFd,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    COUNTED,
    by_descriptor::ByDescriptor,
    requests::{Requests, visits},
    ring::{Io, Program},
};

/// The most answers in a write.
const ANSWERS_MAX: usize = 1024;
const REFUSED: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";

/// Many answers, one after the other.
static ANSWERS: LazyLock<Vec<u8>> = LazyLock::new(|| COUNTED.repeat(ANSWERS_MAX));

/// What all threads of a stub have counted.
#[derive(Debug, Default)]
pub struct Books {
    visits: AtomicU64,
    calls: AtomicU64,
}

/// One thread of a stub.
#[derive(Default)]
pub struct Stub {
    books: Arc<Books>,
    delay: Duration,
    /// One of so many calls is answered after the delay, the others at once.
    one_in: u64,
    /// How many calls it has got.
    seen: u64,
    /// The beginnings of requests.
    requests: ByDescriptor<Requests>,
    /// Answers that are due, in the order of their times.
    owed: VecDeque<Owed>,
    /// When the last answer of a connection is due that is delayed.
    last_due: ByDescriptor<Instant>,
}

struct Owed {
    /// `None`: at the end of this turn.
    due: Option<Instant>,
    socket: RawFd,
    answers: usize,
}

impl Stub {
    /// A stub that answers one of so many calls after a delay.
    pub fn new(books: Arc<Books>, delay: Duration, one_in: u64) -> Self {
        Self { books, delay, one_in, ..Self::default() }
    }

    fn owe(&mut self, socket: RawFd, answers: usize) {
        if self.one_in > 1 {
            return (0..answers).for_each(|_| self.owe_in_turn(socket));
        }
        let due = (!self.delay.is_zero()).then(|| Instant::now() + self.delay);
        match self.owed.back_mut() {
            Some(last) if last.socket == socket && due.is_none() => last.answers += answers,
            _ => self.owed.push_back(Owed { due, socket, answers }),
        }
    }

    /// Owes an answer that may be delayed, or be behind one that is.
    fn owe_in_turn(&mut self, socket: RawFd) {
        let now = Instant::now();
        self.seen += 1;
        let behind = self.last_due.get(socket).copied().filter(|due| *due > now);
        let due = match behind {
            _ if self.seen.is_multiple_of(self.one_in) => Some(now + self.delay),
            behind => behind,
        };
        if let Some(due) = due {
            self.last_due.set(socket, due);
        }
        let place = self.owed.partition_point(|owed| owed.due <= due);
        match place.checked_sub(1).and_then(|before| self.owed.get_mut(before)) {
            Some(last) if last.socket == socket && last.due == due => last.answers += 1,
            _ => self.owed.insert(place, Owed { due, socket, answers: 1 }),
        }
    }

    /// Sends the answers that are due.
    fn answer(&mut self, io: &mut Io, now: Option<Instant>) {
        while let Some(Owed { due, socket, answers }) = self.owed.front()
            && *due <= now
        {
            let most = (*answers).min(ANSWERS_MAX);
            io.send(*socket, &ANSWERS[..most * COUNTED.len()]);
            if most == *answers {
                self.owed.pop_front();
            } else if let Some(first) = self.owed.front_mut() {
                first.answers -= most;
            }
        }
    }

    fn tell(&self, io: &mut Io, socket: RawFd, head: &[u8]) {
        let of_calls = head.starts_with(b"GET /calls ");
        let figure = if of_calls { &self.books.calls } else { &self.books.visits };
        let figure = figure.load(Ordering::Relaxed).to_string();
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{figure}", figure.len());
        // Leaked, since the ring sends static bytes; a run asks only a few times.
        io.send(socket, Box::leak(answer.into_boxed_str()).as_bytes());
    }
}

impl Program for Stub {
    fn accepted(&mut self, io: &mut Io, socket: RawFd) {
        self.requests.set(socket, Requests::default());
        io.receive(socket);
    }

    fn received(&mut self, io: &mut Io, socket: RawFd, bytes: &[u8]) {
        let Some(mut requests) = self.requests.take(socket) else { return };
        let (mut counted, mut answers) = (0, 0);
        requests.take(bytes, |head| {
            if head.starts_with(b"GET ") {
                return self.tell(io, socket, head);
            }
            match visits(head) {
                None => io.send(socket, REFUSED),
                Some(visits) => {
                    counted += visits;
                    answers += 1;
                }
            }
        });
        self.requests.set(socket, requests);
        if answers > 0 {
            self.books.visits.fetch_add(counted, Ordering::Relaxed);
            self.books.calls.fetch_add(answers as u64, Ordering::Relaxed);
            self.owe(socket, answers);
        }
    }

    fn closed(&mut self, _io: &mut Io, socket: RawFd) {
        // The descriptor may be used again for another connection.
        self.owed.retain(|owed| owed.socket != socket);
        self.last_due.take(socket);
        self.requests.take(socket);
    }

    fn deadline(&self) -> Option<Instant> {
        self.owed.front().and_then(|owed| owed.due)
    }

    fn look(&mut self, io: &mut Io) {
        if !self.owed.is_empty() {
            self.answer(io, Some(Instant::now()));
        }
    }

    fn turn_ended(&mut self, io: &mut Io) {
        self.answer(io, None);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpStream,
        thread,
    };

    use super::*;
    use crate::{REGISTER, ask, ring};

    /// Sends calls in one write; their answers.
    fn answers(stub: Stub, calls: &[u8], length: usize) -> (Vec<u8>, [String; 2]) {
        let listener = ring::listen("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let mut stub = stub;
            ring::run(Some(&listener), &mut stub)
        });
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(calls).unwrap();
        let mut answers = vec![0; length];
        stream.read_exact(&mut answers).unwrap();
        let asked = ["/counter", "/calls"]
            .map(|path| ask(&TcpStream::connect(address).unwrap(), path).unwrap());
        (answers, asked)
    }

    #[test]
    fn pipelined_calls_are_each_answered_and_their_numbers_add_up() {
        // More than a buffer and more than a write of answers, so that heads are cut.
        let some = 2 * ANSWERS_MAX + 1;
        let by = b"POST /counter?by=5 HTTP/1.1\r\nhost: a\r\n\r\n";
        let calls = [REGISTER.repeat(some), by.repeat(3)].concat();
        for delay in [0, 1].map(Duration::from_millis) {
            let stub = Stub::new(Arc::default(), delay, 1);
            let (answers, asked) = answers(stub, &calls, COUNTED.len() * (some + 3));
            assert_eq!(answers, COUNTED.repeat(some + 3));
            assert_eq!(asked, [some + 15, some + 3].map(|figure| figure.to_string()));
        }
    }

    #[test]
    fn what_follows_a_delayed_answer_waits_for_it_and_is_not_lost() {
        // One of three is delayed: the third, which those behind it wait for.
        let stub = Stub::new(Arc::default(), Duration::from_millis(20), 3);
        let began = Instant::now();
        let (answers, asked) = answers(stub, &REGISTER.repeat(5), COUNTED.len() * 5);
        assert!(began.elapsed() >= Duration::from_millis(20));
        assert_eq!((answers, asked), (COUNTED.repeat(5), ["5", "5"].map(String::from)));
    }

    #[test]
    fn a_call_with_another_query_is_refused_and_not_counted() {
        let call = b"POST /counter?by=0 HTTP/1.1\r\nhost: a\r\n\r\n";
        let (answers, asked) = answers(Stub::default(), call, REFUSED.len());
        assert_eq!((answers.as_slice(), asked), (REFUSED, ["0", "0"].map(String::from)));
    }
}
