//! The floors: the least that a visit costs on this kernel, for each way to register it.
//!
//! All have one loop, and the same visitors' side; they differ in their `Calls`.

mod batched;
mod exchange;
mod pipelined;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::RawFd,
};

use clap::ValueEnum;

use self::{batched::Batched, exchange::Exchange, pipelined::Pipelined};
use crate::{
    COUNTED, WELCOME,
    by_descriptor::ByDescriptor,
    heads,
    ring::{self, Io, Program},
};

/// How visits are registered with the counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Strategy {
    /// Each by one exchange, on a connection that has no other at the time
    Exchange,
    /// Each by a call of its own; calls that are ready in one turn leave in one write, over few connections
    Pipelined,
    /// All that arrived while a call was in flight by the next call
    Batched,
}

/// Serves visitors, and registers their visits with the counter.
///
/// # Errors
/// When the ring cannot be set up.
pub fn run(listener: &TcpListener, counter: SocketAddr, strategy: Strategy) -> io::Result<()> {
    match strategy {
        Strategy::Exchange => serve(listener, Exchange::new(counter)),
        Strategy::Pipelined => serve(listener, Pipelined::new(counter)),
        Strategy::Batched => serve(listener, Batched::new(counter)),
    }
}

fn serve(listener: &TcpListener, calls: impl Calls) -> io::Result<()> {
    ring::run(Some(listener), &mut Floor { visitors: Visitors::default(), calls })
}

/// The calls that register visits.
trait Calls {
    /// A visit is to be registered.
    fn register(&mut self, io: &mut Io, visitor: RawFd);
    /// Bytes of answers were received.
    fn answered(&mut self, io: &mut Io, visitors: &mut Visitors, socket: RawFd, bytes: usize);
    /// All that was ready has been taken.
    fn turn_ended(&mut self, _io: &mut Io) {}
    /// A connection to the counter has ended.
    fn closed(&mut self, socket: RawFd);
}

/// The visitors' connections; whether the visit on it is its last.
#[derive(Default)]
struct Visitors(ByDescriptor<bool>);

impl Visitors {
    fn welcome(&mut self, io: &mut Io, visitor: RawFd) {
        io.send(visitor, WELCOME);
        if self.0.get(visitor) == Some(&true) {
            io.finish(visitor);
        }
    }
}

struct Floor<C> {
    visitors: Visitors,
    calls: C,
}

impl<C: Calls> Program for Floor<C> {
    fn accepted(&mut self, io: &mut Io, socket: RawFd) {
        self.visitors.0.set(socket, false);
        io.receive(socket);
    }

    fn received(&mut self, io: &mut Io, socket: RawFd, bytes: &[u8]) {
        match self.visitors.0.get_mut(socket) {
            Some(is_last) => {
                // The visitors of this benchmark send `connection: close` as the last field.
                *is_last |= bytes.ends_with(b"close\r\n\r\n");
                (0..heads(bytes)).for_each(|_| self.calls.register(io, socket));
            }
            None => self.calls.answered(io, &mut self.visitors, socket, bytes.len()),
        }
    }

    fn closed(&mut self, _io: &mut Io, socket: RawFd) {
        if self.visitors.0.take(socket).is_none() {
            self.calls.closed(socket);
        }
    }

    fn turn_ended(&mut self, io: &mut Io) {
        self.calls.turn_ended(io);
    }
}

/// Opens a connection to the counter.
fn dial(io: &mut Io, counter: SocketAddr) -> Option<RawFd> {
    let socket = ring::connect(counter).ok()?;
    io.receive(socket);
    Some(socket)
}

/// Answers on one connection, which may be received in any pieces. All have the length of [`COUNTED`].
#[derive(Default)]
struct Answers {
    partial_bytes: usize,
}

impl Answers {
    /// Takes bytes; how many answers they complete.
    fn complete(&mut self, bytes: usize) -> usize {
        self.partial_bytes += bytes;
        let complete = self.partial_bytes / COUNTED.len();
        self.partial_bytes %= COUNTED.len();
        complete
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpStream,
        thread,
        time::Duration,
    };

    use socket2::SockRef;

    use super::*;
    use crate::{
        REGISTER, ask,
        load::{self, Plan, Until},
        requests::Requests,
        stub::Stub,
    };

    /// How long a floor that does another thing than expected is waited for.
    const TIMEOUT: Duration = Duration::from_secs(10);
    const ALL: [Strategy; 3] = [Strategy::Exchange, Strategy::Pipelined, Strategy::Batched];

    /// The address of a floor whose counter is at this address.
    fn floor(counter: SocketAddr, strategy: Strategy) -> SocketAddr {
        let listener = ring::listen("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || run(&listener, counter, strategy));
        address
    }

    /// The requests of a connection once these bytes are in.
    fn read(mut stream: &TcpStream, bytes: usize) -> Vec<String> {
        let mut received = vec![0; bytes];
        stream.read_exact(&mut received).unwrap();
        let (mut requests, mut lines) = (Requests::default(), Vec::new());
        requests.take(&received, |head| {
            let head = String::from_utf8_lossy(head);
            lines.push(head.lines().next().unwrap_or_default().to_owned());
        });
        lines
    }

    /// Six visits that arrive at once, and a counter that answers none before it has all of `calls`: those of each
    /// connection.
    #[track_caller]
    fn check(strategy: Strategy, calls: &[&[&str]]) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // It is the limit of accept(2) too.
        SockRef::from(&listener).set_read_timeout(Some(TIMEOUT)).unwrap();
        let address = floor(listener.local_addr().unwrap(), strategy);
        let mut visitor = TcpStream::connect(address).unwrap();
        visitor.set_read_timeout(Some(TIMEOUT)).unwrap();
        visitor.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".repeat(6).as_slice()).unwrap();
        let length = |line: &&str| REGISTER.len() + line.len() - "POST /counter HTTP/1.1".len();
        let connections: Vec<_> = calls
            .iter()
            .map(|lines| {
                let (stream, _) = listener.accept().unwrap();
                stream.set_read_timeout(Some(TIMEOUT)).unwrap();
                assert_eq!(read(&stream, lines.iter().map(length).sum()), *lines);
                stream
            })
            .collect();
        for (mut connection, lines) in connections.iter().zip(calls) {
            connection.write_all(&COUNTED.repeat(lines.len())).unwrap();
        }
        let mut welcomes = vec![0; WELCOME.len() * 6];
        visitor.read_exact(&mut welcomes).unwrap();
        assert_eq!(welcomes, WELCOME.repeat(6));
    }

    #[test]
    fn visits_that_arrive_together_are_registered_in_the_way_of_each_floor() {
        let call = "POST /counter HTTP/1.1";
        check(Strategy::Exchange, &[[call].as_slice(); 6]);
        check(Strategy::Pipelined, &[&[call; 6]]);
        check(Strategy::Batched, &[&["POST /counter?by=6 HTTP/1.1"]]);
    }

    #[test]
    fn the_counter_counts_the_visits_that_were_welcomed() {
        for strategy in ALL {
            let listener = ring::listen("127.0.0.1:0").unwrap();
            let counter = listener.local_addr().unwrap();
            thread::spawn(move || ring::run(Some(&listener), &mut Stub::default()));
            let plan = Plan {
                address: floor(counter, strategy),
                path: String::from("/"),
                connections: 100,
                rate: None,
                visits_per_connection: None,
                until: Until::Visits(5000),
            };
            let anew = Plan { visits_per_connection: Some(3), ..plan.clone() };
            for (plan, total) in [(plan, "5000"), (anew, "10000")] {
                let report = load::run(&plan, 2, &[]).unwrap();
                assert_eq!((report.visits, report.refused, report.failed), (5000, 0, 0));
                assert_eq!(ask(&TcpStream::connect(counter).unwrap(), "/counter").unwrap(), total);
            }
            let calls = ask(&TcpStream::connect(counter).unwrap(), "/calls").unwrap();
            let calls: u64 = calls.parse().unwrap();
            match strategy {
                Strategy::Batched => assert!((1..10_000).contains(&calls), "{calls}"),
                _ => assert_eq!(calls, 10_000, "{strategy:?}"),
            }
        }
    }

    #[test]
    fn an_answer_is_complete_with_its_last_byte() {
        let mut answers = Answers::default();
        assert_eq!(answers.complete(COUNTED.len() * 2 + 1), 2);
        assert_eq!(answers.complete(COUNTED.len() - 2), 0);
        assert_eq!(answers.complete(1), 1);
    }
}
