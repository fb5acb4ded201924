//! Visitors: connections that make visits in a closed loop or at a constant rate, and measure how long each takes.
//!
//! At a constant rate a visit is measured from when it was due, even if no connection was free then. So a server that
//! stalls pays for all visits that were due meanwhile (wrk2: no coordinated omission).

mod answer;

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::SocketAddr,
    os::fd::RawFd,
    thread,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use self::answer::Answer;
use crate::ring::{self, Io, Program};

/// How long the last answers may take after the end.
const GRACE: Duration = Duration::from_secs(30);
/// The quantiles of [`Report::curve`].
const CURVE: [f64; 12] =
    [0.0, 0.25, 0.5, 0.75, 0.875, 0.9, 0.95, 0.975, 0.99, 0.995, 0.9975, 0.999];
/// Latencies are kept to three digits, up to a minute.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

/// What the visitors do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The server.
    pub address: SocketAddr,
    /// The page that they ask for.
    pub path: String,
    /// How many visitors.
    pub connections: usize,
    /// Visits a second of all together; without it each makes the next visit as soon as the last is answered.
    pub rate: Option<f64>,
    /// Visits after which a visitor opens another connection.
    pub visits_per_connection: Option<u64>,
    /// When they stop.
    pub until: Until,
}

/// When visitors stop.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    /// After this time.
    Time(Duration),
    /// After this many visits.
    Visits(u64),
}

/// What the visitors saw.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Visits that were registered: a 200 with another page than the sorry page.
    pub visits: u64,
    /// Visits made before those, to find out which thread serves a connection; all were answered.
    #[serde(default)]
    pub sounding_visits: u64,
    /// Visits with another answer, such as the sorry page.
    pub refused: u64,
    /// Visits without an answer.
    pub failed: u64,
    /// From the first visit to the end of the time, or to the last answer.
    pub seconds: f64,
    /// The 99 % quantile of the refused visits, in microseconds.
    #[serde(default)]
    pub refused_p99_us: f64,
    /// The median of the registered visits, in microseconds. The next four are quantiles and the maximum.
    pub p50_us: f64,
    /// 90 %.
    pub p90_us: f64,
    /// 99 %.
    pub p99_us: f64,
    /// 99.9 %.
    pub p999_us: f64,
    /// The slowest.
    pub max_us: f64,
    /// At the quantiles of [`Report::curve`]; empty in older records.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub curve_us: Vec<f64>,
    /// CPU time that the visitors took themselves, in microseconds.
    pub cpu_us: f64,
}

impl Report {
    /// Latencies of the visits that were registered, in microseconds, each with its quantile.
    pub fn curve(&self) -> Vec<(f64, f64)> {
        match self.curve_us.as_slice() {
            [] => vec![
                (0.5, self.p50_us),
                (0.9, self.p90_us),
                (0.99, self.p99_us),
                (0.999, self.p999_us),
            ],
            curve => CURVE.into_iter().zip(curve.iter().copied()).collect(),
        }
    }
}

/// Runs visitors on this many threads. The connections of `sockets` are used before others are opened.
///
/// # Errors
/// When the ring cannot be set up, or the server does not listen, or no longer listens.
pub fn run(plan: &Plan, threads: usize, sockets: &[RawFd]) -> io::Result<Report> {
    let threads = threads.clamp(1, plan.connections.max(1));
    let crowds: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|index| {
                let share = |whole: usize| whole / threads + usize::from(index < whole % threads);
                let until = match plan.until {
                    Until::Visits(visits) => Until::Visits(visits / threads as u64),
                    time @ Until::Time(_) => time,
                };
                let plan = Plan {
                    connections: share(plan.connections),
                    rate: plan.rate.map(|rate| rate / threads as f64),
                    until,
                    ..plan.clone()
                };
                // As many for each as it has connections.
                let sockets = sockets.iter().copied().skip(index).step_by(threads).collect();
                scope.spawn(move || {
                    let mut crowd = Crowd::new(plan, sockets)?;
                    ring::run(None, &mut crowd)?;
                    match crowd.turned_away.take() {
                        Some(error) if !crowd.has_finished() => Err(error),
                        _ => Ok(crowd),
                    }
                })
            })
            .collect();
        let joined = running.into_iter().map(|thread| {
            thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread of visitors panicked")))
        });
        joined.collect::<io::Result<_>>()
    })?;
    let (mut latencies, mut refusals) = (histogram()?, histogram()?);
    let mut report = Report::default();
    for crowd in crowds {
        report.visits += crowd.visits;
        report.refused += crowd.refused;
        report.failed += crowd.failed;
        report.seconds = report.seconds.max(crowd.seconds());
        latencies.add(crowd.latencies).map_err(io::Error::other)?;
        refusals.add(crowd.refusals).map_err(io::Error::other)?;
    }
    let at = |quantile| latencies.value_at_quantile(quantile) as f64 / 1000.0;
    report.refused_p99_us = refusals.value_at_quantile(0.99) as f64 / 1000.0;
    report.p50_us = at(0.5);
    report.p90_us = at(0.9);
    report.p99_us = at(0.99);
    report.p999_us = at(0.999);
    report.max_us = latencies.max() as f64 / 1000.0;
    report.curve_us = CURVE.map(at).to_vec();
    let used = clock_gettime(ClockId::ProcessCPUTime);
    report.cpu_us = used.tv_sec as f64 * 1e6 + used.tv_nsec as f64 / 1e3;
    Ok(report)
}

fn histogram() -> io::Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).map_err(io::Error::other)
}

/// Some of the visitors, on one thread.
struct Crowd {
    plan: Plan,
    ask: &'static [u8],
    ask_last: &'static [u8],
    began: Instant,
    last_answer: Instant,
    started: u64,
    visitors: HashMap<RawFd, Visitor>,
    /// Connections without a visit under way.
    idle: Vec<RawFd>,
    /// The due times of visits that wait for a connection.
    late: VecDeque<Instant>,
    /// Why the last attempt to connect failed, if one has.
    turned_away: Option<io::Error>,
    under_way: u64,
    visits: u64,
    refused: u64,
    failed: u64,
    latencies: Histogram<u64>,
    refusals: Histogram<u64>,
    given: Vec<RawFd>,
}

#[derive(Default)]
struct Visitor {
    /// When the visit under way was due.
    due: Option<Instant>,
    answer: Answer,
    made: u64,
}

impl Crowd {
    fn new(plan: Plan, given: Vec<RawFd>) -> io::Result<Self> {
        // Leaked, since the ring sends static bytes.
        let ask = |field: &str| -> &'static [u8] {
            let text = format!("GET {} HTTP/1.1\r\nhost: localhost\r\n{field}\r\n", plan.path);
            Box::leak(text.into_boxed_str()).as_bytes()
        };
        let now = Instant::now();
        Ok(Self {
            ask: ask(""),
            ask_last: ask("connection: close\r\n"),
            began: now,
            last_answer: now,
            started: 0,
            visitors: HashMap::new(),
            idle: Vec::new(),
            late: VecDeque::new(),
            turned_away: None,
            under_way: 0,
            visits: 0,
            refused: 0,
            failed: 0,
            latencies: histogram()?,
            refusals: histogram()?,
            given,
            plan,
        })
    }

    fn seconds(&self) -> f64 {
        match self.plan.until {
            Until::Time(time) => time.as_secs_f64(),
            Until::Visits(_) => (self.last_answer - self.began).as_secs_f64(),
        }
    }

    /// Whether all visits have begun.
    fn has_finished(&self) -> bool {
        self.late.is_empty() && self.is_over(Instant::now())
    }

    /// Whether no visitor is left and none can connect.
    fn is_shut_out(&self) -> bool {
        self.visitors.is_empty() && self.turned_away.is_some()
    }

    fn is_over(&self, now: Instant) -> bool {
        match self.plan.until {
            Until::Time(time) => now >= self.began + time,
            Until::Visits(visits) => self.started >= visits,
        }
    }

    fn next_due(&self) -> Option<Instant> {
        let rate = self.plan.rate?;
        Some(self.began + Duration::from_secs_f64(self.started as f64 / rate))
    }

    fn come(&mut self, io: &mut Io) -> Option<RawFd> {
        let socket = self.given.pop().map_or_else(|| ring::connect(self.plan.address), Ok);
        let socket = match socket {
            Ok(socket) => socket,
            Err(error) => {
                self.failed += 1;
                self.turned_away = Some(error);
                return None;
            }
        };
        self.visitors.insert(socket, Visitor::default());
        io.receive(socket);
        Some(socket)
    }

    fn visit(&mut self, io: &mut Io, socket: RawFd, due: Instant) {
        let Some(visitor) = self.visitors.get_mut(&socket) else { return };
        visitor.due = Some(due);
        visitor.made += 1;
        self.under_way += 1;
        let is_last = self.plan.visits_per_connection.is_some_and(|most| visitor.made >= most);
        io.send(socket, if is_last { self.ask_last } else { self.ask });
    }

    /// Begins the next visit of a free connection, if one is due.
    fn go_on(&mut self, io: &mut Io, socket: RawFd, now: Instant) {
        if let Some(due) = self.late.pop_front() {
            self.visit(io, socket, due);
        } else if self.plan.rate.is_none() && !self.is_over(now) {
            self.started += 1;
            self.visit(io, socket, now);
        } else {
            self.idle.push(socket);
        }
    }

    fn answered(&mut self, io: &mut Io, socket: RawFd, status: u16) {
        let Some(visitor) = self.visitors.get_mut(&socket) else { return };
        let Some(due) = visitor.due.take() else { return };
        let now = Instant::now();
        self.under_way -= 1;
        self.last_answer = now;
        let taken = u64::try_from((now - due).as_nanos()).unwrap_or(u64::MAX);
        if status == 200 {
            self.visits += 1;
            self.latencies.saturating_record(taken);
        } else {
            self.refused += 1;
            self.refusals.saturating_record(taken);
        }
        // After the last visit of a connection the server closes it, and the visitor connects again.
        if self.plan.visits_per_connection.is_none_or(|most| visitor.made < most) {
            self.go_on(io, socket, now);
        }
    }
}

impl Program for Crowd {
    fn begin(&mut self, io: &mut Io) {
        let came: Vec<_> = (0..self.plan.connections).filter_map(|_| self.come(io)).collect();
        self.began = Instant::now();
        for socket in came {
            self.go_on(io, socket, self.began);
        }
    }

    fn received(&mut self, io: &mut Io, socket: RawFd, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let Some(visitor) = self.visitors.get_mut(&socket) else { return };
            match visitor.answer.advance(&mut bytes) {
                Some(status) => self.answered(io, socket, status),
                None => return,
            }
        }
    }

    fn closed(&mut self, io: &mut Io, socket: RawFd) {
        let now = Instant::now();
        self.idle.retain(|idle| *idle != socket);
        let Some(visitor) = self.visitors.remove(&socket) else { return };
        if visitor.due.is_some() {
            self.under_way -= 1;
            self.failed += 1;
        }
        if (!self.is_over(now) || !self.late.is_empty())
            && let Some(anew) = self.come(io)
        {
            self.go_on(io, anew, now);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let end = match self.plan.until {
            Until::Time(time) => self.began + time,
            Until::Visits(_) => self.last_answer,
        };
        let now = Instant::now();
        match self.next_due() {
            Some(due) if !self.is_over(now) => Some(due),
            _ if now < end => Some(end),
            _ => Some(end + GRACE),
        }
    }

    fn look(&mut self, io: &mut Io) {
        let now = Instant::now();
        while let Some(due) = self.next_due()
            && due <= now
            && !self.is_over(due)
        {
            self.started += 1;
            match self.idle.pop() {
                Some(socket) => self.visit(io, socket, due),
                None => self.late.push_back(due),
            }
        }
        if self.is_over(now) && self.deadline().is_some_and(|end| end <= now) {
            // The grace period is over.
            self.failed += self.under_way + self.late.len() as u64;
            self.under_way = 0;
            self.late.clear();
        }
    }

    fn is_done(&self) -> bool {
        self.under_way == 0 && (self.has_finished() || self.is_shut_out())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers each head, and closes where it is asked to.
    struct Site;

    impl Program for Site {
        fn received(&mut self, io: &mut Io, socket: RawFd, bytes: &[u8]) {
            (0..crate::heads(bytes)).for_each(|_| io.send(socket, crate::COUNTED));
            if bytes.windows(5).any(|window| window == b"close") {
                io.finish(socket);
            }
        }

        fn closed(&mut self, _io: &mut Io, _socket: RawFd) {}
    }

    fn plan(address: SocketAddr, connections: usize, visits: u64) -> Plan {
        Plan {
            address,
            path: String::from("/"),
            connections,
            rate: None,
            visits_per_connection: None,
            until: Until::Visits(visits),
        }
    }

    #[test]
    fn visitors_who_find_nobody_say_so() {
        let listener = ring::listen("127.0.0.1:0").unwrap();
        let plan = plan(listener.local_addr().unwrap(), 3, 10);
        drop(listener);
        let refused = |plan: &Plan| run(plan, 1, &[]).unwrap_err().kind();
        assert_eq!(refused(&plan), io::ErrorKind::ConnectionRefused);
        let paced = Plan { rate: Some(1000.0), ..plan };
        assert_eq!(refused(&paced), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn each_visit_is_made_and_answered() {
        let listener = ring::listen("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || ring::run(Some(&listener), &mut Site));
        let plan = plan(address, 7, 1000);
        let counts = |plan: &Plan| {
            let report = run(plan, 2, &[]).unwrap();
            assert!(report.p50_us <= report.p99_us && report.p99_us <= report.max_us);
            let curve = report.curve();
            assert!(curve.is_sorted_by(|one, next| one.0 < next.0 && one.1 <= next.1), "{curve:?}");
            assert!(
                curve.contains(&(0.5, report.p50_us)) && curve.contains(&(0.99, report.p99_us))
            );
            let older = Report { curve_us: Vec::new(), ..report };
            assert!(older.curve().iter().all(|point| curve.contains(point)));
            (report.visits, report.refused, report.failed)
        };
        assert_eq!(counts(&plan), (1000, 0, 0));
        let anew = Plan { visits_per_connection: Some(3), ..plan.clone() };
        assert_eq!(counts(&anew), (1000, 0, 0));
        let paced = Plan { rate: Some(50_000.0), ..plan };
        assert_eq!(counts(&paced), (1000, 0, 0));
    }
}
