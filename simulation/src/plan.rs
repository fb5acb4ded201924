//! What a history is made of: who comes, what they do and when, what fails. Drawn from a seed, and nothing but plain
//! values, so that parts of it can be left out to find what a failure needs.

mod draw;

use std::{collections::BTreeSet, fmt, str::FromStr, time::Duration};

use monoio::world::Settings;

use crate::{
    connection::ClientLimits,
    http::HeadLimits,
    opening::Opening,
    request::{
        self, BODY_BYTES_MAX, HEAD_BYTES_MAX, HEAD_BYTES_MORE, Request, Subject, TARGET_BYTES_MAX,
        VISITS,
    },
    trace::Fields,
    upstream::UpstreamLimits,
};

/// How many counters a site has: the first may be the bundled one.
pub const COUNTERS: usize = 2;
/// The most workers that serve.
pub const WORKERS_MAX: usize = 3;
/// The last visits are those of probes, one for each worker and counter.
pub const PROBES: usize = WORKERS_MAX * COUNTERS;
/// Requests that one client makes at most: its number and theirs make their ids.
pub const IDS_OF_CLIENT: usize = 1_000;
/// How many visits one call may register, in plans where one may register several.
pub const BATCHES: [usize; 3] = [2, 3, 1_000];
/// How many calls one connection to a counter may carry, in plans where it may carry several.
pub const PIPELINES: [usize; 4] = [2, 3, 8, 1_000];
/// How many addresses a counter moves between.
pub const ADDRESSES: usize = 3;

/// A history before it is lived through.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What it was drawn from.
    pub seed: u64,
    /// The world.
    pub world: Settings,
    /// How many workers serve.
    pub workers: usize,
    /// Whether workers hand fresh connections over to each other.
    pub handoff: bool,
    /// Whether the first counter is the bundled one.
    pub bundled: bool,
    /// To which counters a visit goes.
    pub spread: Spread,
    /// How many visits one call registers at most; nothing where each has a call of its own.
    pub batches: Option<usize>,
    /// Whether that is only offered: to a counter that says that it takes it.
    pub offers: bool,
    /// What clients may do.
    pub clients_limits: ClientLimits,
    /// What workers may ask of a counter.
    pub upstream: UpstreamLimits,
    /// Whether calls take traces to the counters, and the share of them that is recorded.
    pub traces: Option<&'static str>,
    /// Who comes.
    pub clients: Vec<Client>,
    /// What others do.
    pub acts: Vec<Act>,
    /// Until the faults have ended.
    pub length: Duration,
    /// Whether it drains in the midst of it all, or after all is well again.
    pub drains_early: bool,
    /// The access log, if there is one.
    pub access_log: Option<AccessLog>,
}

/// An access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccessLog {
    /// Room for the entries of one worker.
    pub ring_bytes: usize,
    /// One request in so many is recorded.
    pub one_in: u32,
}

/// To which counters a visit goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Spread {
    /// To its own.
    One,
    /// To any.
    Counters,
    /// To its own, of which each address is one.
    Addresses,
}

/// A client, and all that it does.
#[derive(Debug, Clone)]
pub struct Client {
    /// Its number in the whole plan.
    pub id: usize,
    /// The worker that the kernel chooses for it.
    pub worker: usize,
    /// When it comes.
    pub comes: Duration,
    /// What it sends first, where the server expects a PROXY header.
    pub opening: Option<Opening>,
    /// What it sends, each with its number.
    pub steps: Vec<(usize, Step)>,
    /// Whether it sends requests that follow each other at once.
    pub joins: bool,
    /// How it reads.
    pub reading: Reading,
    /// How it ends.
    pub ending: Ending,
}

impl Client {
    /// The visits that it asks for.
    pub fn visits(&self) -> impl Iterator<Item = usize> {
        self.visits_with_traces().map(|(visit, _)| visit)
    }

    /// The same, with the fields of their traces.
    pub fn visits_with_traces(&self) -> impl Iterator<Item = (usize, Option<Fields>)> {
        self.steps.iter().filter_map(|(_, step)| match step {
            Step::Request(Request { subject: Subject::Visit(visit), trace, .. }, _) => {
                Some((*visit, *trace))
            }
            _ => None,
        })
    }
}

/// What a client does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Sends a request; at the place, if there is one, it pauses.
    Request(Request, Option<(usize, Duration)>),
    /// Sends what is refused.
    Refused(Vec<u8>),
    /// Sends anything.
    Garbage(Vec<u8>),
    /// Does nothing.
    Pause(Duration),
    /// Waits until all requests so far were answered, or the connection ends.
    Await,
}

/// How a client reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// At once.
    Prompt,
    /// So many bytes at a time, with pauses.
    Slow(usize, Duration),
    /// Not after so many bytes.
    Stops(usize),
}

/// What a client does after its last step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Waits for all answers and closes.
    Answers,
    /// Waits for the server to close.
    Server,
    /// Closes its sending side and waits for the server to close.
    Half,
    /// Closes at once.
    Close,
    /// Resets at once.
    Reset,
}

/// Something that is done to the server or its counters.
#[derive(Debug, Clone)]
pub struct Act {
    /// Its number in the whole plan.
    pub id: usize,
    /// When.
    pub at: Duration,
    /// What.
    pub what: What,
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A counter that is not bundled behaves so from now on.
    Counter(usize, Mode),
    /// A counter that is not bundled has these of its addresses from now on, a bit for each; those who are connected
    /// stay or are cut. The name service tells the workers after a while, or when they ask because a connect failed.
    Move(usize, u8, bool),
    /// The bundled counter is killed and started again after a while.
    Restart(Duration),
    /// The bundled counter's store behaves so from now on.
    Store(StoreMode),
    /// Other pages.
    Pages(usize),
    /// The workers are asked whether they live.
    Ping,
    /// Other limits, those of the plan with so many connections for clients and to a counter, and so many more bytes
    /// for a head.
    Limits(usize, usize, usize),
    /// All workers stop at once: a second signal.
    Stop,
}

/// How a counter behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It counts and says so.
    Prompt,
    /// After a while.
    Slow(Duration),
    /// It does anything.
    Any,
    /// Nobody listens.
    Refuses,
    /// It answers no connect.
    Hangs,
    /// It takes calls and never answers.
    Silent,
    /// It counts and says so, and that it closes.
    Stops,
}

/// How a store behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreMode {
    /// Each commit takes up to so long.
    Works(Duration),
    /// Each commit fails before, or after it wrote, or works.
    Fails,
    /// Commits take this long.
    Hangs(Duration),
}

/// A part of a plan that can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// A client.
    Client(usize),
    /// A step of a client.
    Step(usize, usize),
    /// Something that is done.
    Act(usize),
    /// Reads and writes that are cut short.
    Cuts,
    /// Operations that fail by themselves.
    Errors,
    /// Bytes and completions that take long.
    Latency,
    /// Tasks in another order than they were woken in.
    Order,
    /// epoll.
    Legacy,
    /// Hand-overs.
    Handoff,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(client) => write!(f, "c{client}"),
            Self::Step(client, step) => write!(f, "c{client}.{step}"),
            Self::Act(act) => write!(f, "a{act}"),
            Self::Cuts => f.write_str("cuts"),
            Self::Errors => f.write_str("errors"),
            Self::Latency => f.write_str("latency"),
            Self::Order => f.write_str("order"),
            Self::Legacy => f.write_str("legacy"),
            Self::Handoff => f.write_str("handoff"),
        }
    }
}

impl FromStr for Part {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str =
            "a part is cN, cN.N, aN, cuts, errors, latency, order, legacy or handoff";
        Ok(match text {
            "cuts" => Self::Cuts,
            "errors" => Self::Errors,
            "latency" => Self::Latency,
            "order" => Self::Order,
            "legacy" => Self::Legacy,
            "handoff" => Self::Handoff,
            _ => {
                let number = |text: &str| text.parse().map_err(|_| FORM);
                match (text.strip_prefix('c'), text.strip_prefix('a')) {
                    (Some(client), _) => match client.split_once('.') {
                        Some((client, step)) => Self::Step(number(client)?, number(step)?),
                        None => Self::Client(number(client)?),
                    },
                    (_, Some(act)) => Self::Act(number(act)?),
                    _ => return Err(FORM),
                }
            }
        })
    }
}

impl Plan {
    /// The plan without some of its parts.
    pub fn without(mut self, parts: &BTreeSet<Part>) -> Self {
        let left = |part: Part| !parts.contains(&part);
        self.clients.retain(|client| left(Part::Client(client.id)));
        for client in &mut self.clients {
            let id = client.id;
            client.steps.retain(|(step, _)| left(Part::Step(id, *step)));
        }
        self.acts.retain(|act| left(Part::Act(act.id)));
        let calm = Settings::default();
        if !left(Part::Cuts) {
            self.world.cuts = 0;
        }
        if !left(Part::Errors) {
            self.world.errors = 0;
        }
        if !left(Part::Latency) {
            self.world.latency = calm.latency;
            self.world.completion = calm.completion;
            self.world.lateness = calm.lateness;
        }
        if !left(Part::Order) {
            self.world.order = calm.order;
        }
        if !left(Part::Legacy) {
            self.world.legacy = false;
        }
        self.handoff &= left(Part::Handoff);
        self
    }

    /// All that can be left out, the largest first.
    pub fn parts(&self) -> Vec<Part> {
        let clients = self.clients.iter().map(|client| Part::Client(client.id));
        let acts = self.acts.iter().map(|act| Part::Act(act.id));
        let world =
            [Part::Errors, Part::Cuts, Part::Latency, Part::Order, Part::Legacy, Part::Handoff];
        let steps = self
            .clients
            .iter()
            .flat_map(|client| client.steps.iter().map(|(step, _)| Part::Step(client.id, *step)));
        clients.chain(acts).chain(world).chain(steps).collect()
    }

    /// Whether bytes take no noticeable time.
    pub fn is_swift(&self) -> bool {
        self.world.latency <= 1_000 && self.world.completion <= 500 && self.world.window >= 3_000
    }

    /// Whether nothing stands against visits of this counter being welcomed. Of the bundled one, single visits are
    /// refused.
    pub fn serves(&self, counter: usize) -> bool {
        match self.spread {
            Spread::Counters => (0..COUNTERS).all(|counter| self.serves_itself(counter)),
            Spread::One | Spread::Addresses => self.serves_itself(counter),
        }
    }

    /// Whether nothing stands against visits being welcomed that go to this counter.
    fn serves_itself(&self, counter: usize) -> bool {
        let disturbs = |act: &Act| match act.what {
            // Calls that were sent behind the last answer are lost.
            What::Counter(_, Mode::Stops) if !self.pipelines() => false,
            What::Counter(number, _) | What::Move(number, ..) => number == counter,
            _ => false,
        };
        let bundled = self.bundled && counter == 0;
        !bundled
            && self.is_swift()
            && self.world.errors == 0
            && self.upstream.call_timeout >= Duration::from_secs(1)
            && !self.acts.iter().any(disturbs)
    }

    /// Whether a counter that stops gets no more than probes: visits have another one, against which nothing stands. It
    /// must be known whose visits they are.
    pub fn spares(&self, stops: usize) -> bool {
        self.spread == Spread::Counters
            && !self.handoff
            && self.upstream.queue_max >= VISITS
            && (0..COUNTERS).all(|counter| counter == stops || self.serves_itself(counter))
    }

    /// Whether one connection to a counter may carry several calls.
    pub fn pipelines(&self) -> bool {
        self.upstream.pipeline_max > 1
    }

    /// The least limit of clients at any time.
    pub fn least_clients(&self) -> usize {
        let clients_max = self.acts.iter().filter_map(|act| match act.what {
            What::Limits(clients, ..) => Some(clients),
            _ => None,
        });
        clients_max.chain([self.clients_limits.connections_max]).min().unwrap_or(0)
    }

    /// Whether something other than a client, its own deadline and a drain may end its connection.
    pub fn may_cut(&self) -> bool {
        self.world.errors > 0
            || self.clients.len() >= self.least_clients()
            || self.acts.iter().any(|act| act.what == What::Stop)
    }
}
