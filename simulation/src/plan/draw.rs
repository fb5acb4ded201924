//! Draws plans from seeds.

use std::time::Duration;

use fastrand::Rng;
use monoio::world::{Order, Settings};

use super::*;
use crate::{
    opening::PLAIN,
    request::FILES,
    runtime::mailbox::LATE,
    trace::{Fields, SHARES},
};

/// The number of the first step of those that make a client busy.
const HOT_FIRST: usize = 700;

impl Plan {
    /// Draws a plan.
    pub fn draw(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let rng = &mut rng;
        // Of its own, so that it changes nothing of what is drawn besides.
        let mut spread = Rng::with_seed(seed ^ 0x5b5b);
        // Many histories are calm in one respect or another: a storm hides what a single fault shows.
        let stormy = rng.u8(0..3) == 0;
        let length = between(rng, 500, 6_000);
        let workers = rng.usize(1..=WORKERS_MAX);
        let bundled = rng.bool();
        let mut plan = Self {
            seed,
            world: draw_world(rng, stormy),
            workers,
            handoff: false,
            bundled,
            batches: draw_batches(seed),
            offers: draw_offers(seed),
            spread: [Spread::One, Spread::Counters, Spread::Addresses, Spread::One]
                [spread.usize(0..4)],
            clients_limits: draw_client_limits(rng),
            upstream: draw_upstream_limits(rng),
            traces: None,
            clients: Vec::new(),
            acts: draw_acts(rng, length, bundled),
            length,
            drains_early: rng.u8(0..4) == 0,
            access_log: draw_access_log(seed),
        };
        plan.upstream.pipeline_max = draw_pipeline(seed);
        let mut visits = 0..VISITS - PROBES;
        let clients = if rng.u8(0..4) == 0 { rng.usize(6..=14) } else { rng.usize(1..=6) };
        match (plan.spread, spread.u8(0..4)) {
            (Spread::Counters, 0 | 1) => plan.stop_one(&mut spread),
            (Spread::Counters, 2) => plan.hang(&mut spread),
            _ => {}
        }
        plan.clients = (0..clients).map(|id| draw_client(rng, id, &plan, &mut visits)).collect();
        plan.draw_openings();
        plan.draw_traces();
        plan.crowd(&mut visits);
        plan.draw_handoff();
        plan
    }

    /// In some plans workers hand connections over. In most of these the kernel chooses one of them for many clients,
    /// and in some many come at once: when the server drains, or to workers with room for few.
    fn draw_handoff(&mut self) {
        let mut rng = Rng::with_seed(self.seed ^ 0xba1a);
        if self.workers == 1 || rng.bool() {
            return;
        }
        self.handoff = true;
        self.drains_early |= rng.u8(0..4) == 0;
        let uneven = rng.u8(0..4) > 0;
        let mut crowd = None;
        if self.drains_early && rng.u8(0..4) > 0 {
            let early = Duration::from_micros(self.world.latency).mul_f64(rng.f64());
            crowd = Some(self.length.saturating_sub(early + LATE));
        } else if rng.u8(0..3) == 0 {
            self.clients_limits.connections_max = rng.usize(1..=3);
            crowd = Some(self.length.mul_f64(rng.f64() * 0.8));
        }
        for client in &mut self.clients {
            if uneven && rng.u8(0..4) > 0 {
                client.worker = 0;
            }
            if let Some(begin) = crowd
                && rng.u8(0..4) > 0
            {
                client.comes = begin + LATE.mul_f64(rng.f64() * 2.0);
            }
        }
        if rng.u8(0..4) > 0 {
            let calm = crowd.is_none() && rng.u8(0..4) > 0;
            self.draw_hot(calm, &mut rng);
        }
    }

    /// Many clients begin with many requests, in which a worker may become too busy for all of them, so that connections
    /// leave it. Where it is `calm`, nothing else disturbs them, so that each must be answered.
    fn draw_hot(&mut self, calm: bool, rng: &mut Rng) {
        let comes = self.length.mul_f64(rng.f64() * 0.5);
        if calm {
            self.calm_world();
            self.seat_all();
            let proxy = self.clients_limits.proxy_protocol || rng.u8(0..4) == 0;
            if proxy {
                self.begin_with_openings(rng);
            }
        }
        for client in &mut self.clients {
            if rng.u8(0..4) == 0 {
                continue;
            }
            if calm {
                client.worker = 0;
                client.opening = client.opening.take().map(|_| Opening::Joined(PLAIN.to_vec()));
                (client.reading, client.ending) = (Reading::Prompt, Ending::Answers);
            }
            client.comes = comes + between(rng, 0, 30);
            let mut steps = Vec::new();
            for number in (HOT_FIRST..IDS_OF_CLIENT).step_by(2).take(rng.usize(20..=60)) {
                let request = Request::visit(client.id * IDS_OF_CLIENT + number, 0);
                let request = Request { subject: Subject::File(rng.usize(0..FILES)), ..request };
                let cut = rng.usize(1..request.bytes().0.len());
                let pause = (!calm && rng.u8(0..6) == 0).then(|| (cut, between(rng, 0, 15)));
                steps.push((number, Step::Request(request, pause)));
                let next = if rng.bool() { Step::Pause(between(rng, 0, 15)) } else { Step::Await };
                steps.extend((rng.u8(0..4) > 0).then_some((number + 1, next)));
            }
            client.steps.splice(0..0, steps);
        }
    }

    /// In some plans the server stands behind a load balancer. Drawn apart, so that the others stay as they are.
    fn draw_openings(&mut self) {
        let mut rng = Rng::with_seed(self.seed ^ 0xbeef);
        if rng.u8(0..4) == 0 {
            self.begin_with_openings(&mut rng);
        }
    }

    fn begin_with_openings(&mut self, rng: &mut Rng) {
        self.clients_limits.proxy_protocol = true;
        // The log tells clients by their addresses, and those in the headers are not one for each client.
        self.access_log = None;
        for client in &mut self.clients {
            client.opening = Some(Opening::draw(rng, self.clients_limits.head_timeout));
        }
    }
}

impl Plan {
    /// In some plans requests are parts of traces; in most of these the server knows.
    fn draw_traces(&mut self) {
        let mut rng = Rng::with_seed(self.seed ^ 0x7ace);
        if rng.u8(0..3) > 0 {
            return;
        }
        self.traces = (rng.u8(0..4) > 0).then(|| SHARES[rng.usize(0..SHARES.len())]);
        for (_, step) in self.clients.iter_mut().flat_map(|client| &mut client.steps) {
            if let Step::Request(request, _) = step {
                request.trace = Fields::draw(&mut rng);
            }
        }
    }
}

impl Plan {
    /// In most plans where one call registers several visits, or a connection carries several calls, they come at nearly the same time, and in many of these
    /// counters take a while, so that calls have several to register.
    fn crowd(&mut self, visits: &mut impl Iterator<Item = usize>) {
        let mut rng = Rng::with_seed(self.seed ^ 0xc0de);
        if (self.batches.is_none() && !self.pipelines()) || rng.u8(0..4) == 0 {
            return;
        }
        let comes = self.length.mul_f64(rng.f64() * 0.9);
        let (one_worker, most) = (rng.u8(0..4) > 0, VISITS / self.clients.len());
        for client in &mut self.clients {
            client.comes = comes + between(&mut rng, 0, 30);
            if one_worker {
                client.worker = 0;
            }
            let more = visits.take(rng.usize(0..=most)).enumerate().map(|(number, visit)| {
                let number = IDS_OF_CLIENT / 2 + number;
                let request = Request::visit(client.id * IDS_OF_CLIENT + number, visit);
                (number, Step::Request(request, None))
            });
            client.steps.splice(0..0, more);
            client.joins = rng.u8(0..4) > 0;
            // Those that pause between two requests still do.
            client.steps.retain(|(_, step)| *step != Step::Await);
        }
        let first = usize::from(self.bundled);
        if self.spread != Spread::Counters && rng.bool() {
            for counter in first..COUNTERS {
                self.act(
                    Duration::ZERO,
                    What::Counter(counter, Mode::Slow(between(&mut rng, 5, 150))),
                );
            }
        }
    }

    /// One counter stops, and nothing disturbs the other.
    fn stop_one(&mut self, rng: &mut Rng) {
        self.calm_counters();
        self.upstream.queue_max = 100;
        let at = self.length.mul_f64(rng.f64() / 2.0);
        self.act(at, What::Counter(rng.usize(0..COUNTERS), Mode::Stops));
    }

    /// One counter can be connected to only after long, or not at all, and the other answers late or never: a visit that
    /// goes from one to the other has the time of one call.
    fn hang(&mut self, rng: &mut Rng) {
        self.calm_counters();
        self.upstream.connect_timeout = Duration::from_millis(800);
        let hangs = rng.usize(0..COUNTERS);
        self.act(Duration::ZERO, What::Counter(hangs, Mode::Hangs));
        self.act(Duration::ZERO, What::Counter(COUNTERS - 1 - hangs, Mode::Silent));
    }

    /// Bytes take no noticeable time, and nobody is cut off.
    fn calm_world(&mut self) {
        self.world.errors = 0;
        self.world.latency = self.world.latency.min(1_000);
        self.world.completion = self.world.completion.min(500);
        self.world.window = self.world.window.max(3_000);
    }

    /// There is room for all clients, until the drain.
    fn seat_all(&mut self) {
        self.clients_limits.connections_max = 100;
        self.acts.retain(|act| !matches!(act.what, What::Limits(..) | What::Stop));
    }

    /// Nothing disturbs the counters, and bytes take no noticeable time.
    fn calm_counters(&mut self) {
        self.bundled = false;
        self.calm_world();
        self.upstream.call_timeout = self.upstream.call_timeout.max(Duration::from_secs(1));
        let fails = |what| {
            matches!(what, What::Counter(..) | What::Move(..) | What::Restart(_) | What::Store(_))
        };
        self.acts.retain(|act| !fails(act.what));
    }

    fn act(&mut self, at: Duration, what: What) {
        let id = self.acts.iter().map(|act| act.id + 1).max().unwrap_or(0);
        self.acts.push(Act { id, at, what });
    }
}

fn between(rng: &mut Rng, least: u64, most: u64) -> Duration {
    Duration::from_millis(rng.u64(least..=most))
}

fn draw_world(rng: &mut Rng, stormy: bool) -> Settings {
    Settings {
        legacy: rng.u8(0..4) == 0,
        order: [Order::Fifo, Order::Lifo, Order::Random][rng.usize(0..3)],
        latency: [50, 1_000, 20_000, 100_000][rng.usize(0..4)],
        completion: [1, 20, 500, 5_000][rng.usize(0..4)],
        cuts: if rng.bool() { rng.u8(0..=60) } else { 0 },
        errors: if stormy { rng.u16(1..=300) } else { 0 },
        window: [64 * 1024, 3_000, 500, 64][rng.usize(0..4)],
        lateness: [200, 2_000, 20_000][rng.usize(0..3)],
    }
}

fn draw_client_limits(rng: &mut Rng) -> ClientLimits {
    ClientLimits {
        head: HeadLimits {
            head_bytes_max: HEAD_BYTES_MAX,
            head_fields_max: 10,
            target_bytes_max: TARGET_BYTES_MAX,
        },
        body_bytes_max: BODY_BYTES_MAX as u64,
        connections_max: if rng.u8(0..4) == 0 { rng.usize(1..=4) } else { 100 },
        head_timeout: between(rng, 200, 1_500),
        body_timeout: between(rng, 200, 1_500),
        idle_timeout: between(rng, 500, 3_000),
        write_timeout: between(rng, 200, 1_500),
        drain_idle_timeout: between(rng, 100, 800),
        proxy_protocol: false,
    }
}

/// Of its own, so that it changes nothing of what is drawn besides.
fn draw_batches(seed: u64) -> Option<usize> {
    let mut rng = Rng::with_seed(seed ^ 0xba7c);
    (rng.u8(0..3) == 0).then(|| BATCHES[rng.usize(0..BATCHES.len())])
}

/// Of its own as well.
fn draw_offers(seed: u64) -> bool {
    Rng::with_seed(seed ^ 0x0ffe).bool() && draw_batches(seed).is_some()
}

/// Of its own as well.
fn draw_pipeline(seed: u64) -> usize {
    let mut rng = Rng::with_seed(seed ^ 0x9193);
    if rng.bool() { 1 } else { PIPELINES[rng.usize(0..PIPELINES.len())] }
}

/// Not from the seed itself: without a log the same history takes place.
fn draw_access_log(seed: u64) -> Option<AccessLog> {
    let mut rng = Rng::with_seed(!seed);
    (rng.u8(0..4) > 0).then(|| AccessLog {
        ring_bytes: if rng.u8(0..4) == 0 { rng.usize(50..1_000) } else { 64 * 1024 },
        one_in: if rng.u8(0..4) == 0 { rng.u32(2..=5) } else { 1 },
    })
}

fn draw_upstream_limits(rng: &mut Rng) -> UpstreamLimits {
    UpstreamLimits {
        connect_timeout: between(rng, 100, 600),
        call_timeout: between(rng, 200, 2_000),
        connections_max: rng.usize(1..=4),
        pipeline_max: 1,
        queue_max: if rng.u8(0..4) == 0 { rng.usize(1..=3) } else { 100 },
        idle_timeout: between(rng, 300, 2_000),
        head: HeadLimits { head_bytes_max: 400, head_fields_max: 20, target_bytes_max: 0 },
        drain_bytes_max: 1_000,
    }
}

fn draw_acts(rng: &mut Rng, length: Duration, bundled: bool) -> Vec<Act> {
    let acts = if rng.u8(0..4) == 0 { 0 } else { rng.usize(1..=6) };
    let mut acts: Vec<_> = (0..acts)
        .map(|_| {
            let at = length.mul_f64(rng.f64());
            (if rng.u8(0..4) == 0 { Duration::ZERO } else { at }, draw_act(rng, bundled))
        })
        .collect();
    acts.sort_by_key(|(at, _)| *at);
    acts.into_iter().enumerate().map(|(id, (at, what))| Act { id, at, what }).collect()
}

fn draw_act(rng: &mut Rng, bundled: bool) -> What {
    let counter = rng.usize(if bundled { 1..COUNTERS } else { 0..COUNTERS });
    match rng.u8(0..16) {
        0..=4 => What::Counter(counter, draw_mode(rng)),
        5 | 6 => What::Move(counter, rng.u8(0..1 << ADDRESSES), rng.bool()),
        7 if bundled => What::Restart(between(rng, 0, 1_000)),
        8..=10 if bundled => What::Store(match rng.u8(0..4) {
            0 => StoreMode::Works(between(rng, 0, 50)),
            1 | 2 => StoreMode::Fails,
            _ => StoreMode::Hangs(between(rng, 500, 5_000)),
        }),
        11 | 12 => What::Pages(rng.usize(0..2)),
        13 => What::Limits(rng.usize(1..=5), rng.usize(1..=4), rng.usize(0..2) * HEAD_BYTES_MORE),
        14 if rng.u8(0..3) == 0 => What::Stop,
        _ => What::Ping,
    }
}

fn draw_mode(rng: &mut Rng) -> Mode {
    match rng.u8(0..10) {
        0 => Mode::Prompt,
        1 => Mode::Slow(between(rng, 1, 1_000)),
        2..=5 => Mode::Any,
        6 | 7 => Mode::Refuses,
        8 => Mode::Hangs,
        _ => Mode::Silent,
    }
}

fn draw_client(
    rng: &mut Rng,
    id: usize,
    plan: &Plan,
    visits: &mut impl Iterator<Item = usize>,
) -> Client {
    let mut steps = Vec::new();
    let count = if rng.u8(0..5) == 0 { rng.usize(5..=20) } else { rng.usize(1..=4) };
    for _ in 0..count {
        let Some(visit) = visits.next() else { break };
        let last = match rng.u8(0..100) {
            0..4 => Some(Step::Refused(request::refused(rng))),
            4..8 => Some(Step::Garbage(request::garbage(rng))),
            _ => None,
        };
        if let Some(last) = last {
            steps.push(last);
            break;
        }
        let request = Request::draw(rng, id * IDS_OF_CLIENT + steps.len(), visit);
        let (length, closes) = (request.bytes().0.len(), request.closes());
        let pause = if rng.u8(0..6) == 0 {
            // Some wait for longer than they may.
            let most = plan.clients_limits.head_timeout.as_millis().try_into().unwrap_or(1_000);
            let most = if rng.u8(0..4) == 0 { most * 2 } else { most / 3 };
            Some((rng.usize(1..length), between(rng, 0, most)))
        } else {
            None
        };
        steps.push(Step::Request(request, pause));
        if closes && rng.u8(0..4) > 0 {
            // Most keep to what they have said.
            break;
        }
        match rng.u8(0..8) {
            0 => steps.push(Step::Pause(between(rng, 0, 300))),
            1 => steps.push(Step::Pause(between(rng, 0, 4_000))),
            2..=4 => steps.push(Step::Await),
            _ => {}
        }
    }
    Client {
        id,
        worker: rng.usize(0..plan.workers),
        comes: plan.length.mul_f64(rng.f64() * 0.9),
        opening: None,
        steps: steps.into_iter().enumerate().collect(),
        joins: false,
        reading: match rng.u8(0..12) {
            0 => Reading::Slow(rng.usize(1..2_000), between(rng, 1, 40)),
            1 => Reading::Stops(rng.usize(0..3_000)),
            _ => Reading::Prompt,
        },
        ending: match rng.u8(0..10) {
            0..=3 => Ending::Answers,
            4 | 5 => Ending::Server,
            6 | 7 => Ending::Half,
            8 => Ending::Close,
            _ => Ending::Reset,
        },
    }
}
