//! The pool against a naive model of it: lists that are searched from end to end, and events at random.
//!
//! After each event both give the same actions in the same order, and each caller the same outcome. Besides, a call
//! is sent once (unless not a byte of it has left), is on one connection at a time and answered in its turn, each caller
//! is woken once, and when all have left nothing remains.

use std::sync::Arc;

use proptest::prelude::*;
use slotmap::Key as _;

use super::{
    state::SILENCE,
    tests::{Done, Wakes, address, answer, limits},
    *,
};
use crate::runtime::clock;

const PORTS: std::ops::Range<u16> = 1..4;

/// The next event. A number chooses among the calls or connections that it can apply to.
#[derive(Debug, Clone)]
enum Event {
    Call,
    /// One that began earlier by so many milliseconds, at another counter.
    CallFromElsewhere(u64),
    CallerLeaves(usize),
    Connected(usize, usize),
    DialFailed(usize),
    TakeRequest(usize),
    /// Whether the connection is reusable, and for several calls.
    Answered(usize, bool, bool),
    /// The last so many of those that were taken.
    NotSent(usize, usize),
    Closed(usize),
    TimePasses(u64),
    Addresses(Vec<u16>),
    Limits(UpstreamLimits),
}

fn some_limits() -> impl Strategy<Value = UpstreamLimits> {
    let pipeline_max = prop_oneof![Just(1), 2..6usize];
    (1..5usize, 0..4usize, 100..1000u64, 100..1000u64, pipeline_max).prop_map(
        |(connections_max, queue_max, call, idle, pipeline_max)| UpstreamLimits {
            pipeline_max,
            call_timeout: Duration::from_millis(call),
            idle_timeout: Duration::from_millis(idle),
            ..limits(connections_max, queue_max)
        },
    )
}

fn event() -> impl Strategy<Value = Event> {
    let any = any::<usize>;
    let ports = PORTS.collect::<Vec<_>>();
    prop_oneof![
        8 => Just(Event::Call),
        1 => (0..1200u64).prop_map(Event::CallFromElsewhere),
        2 => any().prop_map(Event::CallerLeaves),
        6 => (any(), any()).prop_map(|(n, address)| Event::Connected(n, address)),
        1 => any().prop_map(Event::DialFailed),
        8 => any().prop_map(Event::TakeRequest),
        6 => (any(), prop::bool::weighted(0.9), prop::bool::weighted(0.9))
            .prop_map(|(n, reusable, pipelines)| Event::Answered(n, reusable, pipelines)),
        1 => (any(), any()).prop_map(|(n, count)| Event::NotSent(n, count)),
        1 => any().prop_map(Event::Closed),
        3 => (0..300u64).prop_map(Event::TimePasses),
        1 => prop::sample::subsequence(ports, 0..=PORTS.len()).prop_map(Event::Addresses),
        1 => some_limits().prop_map(Event::Limits),
    ]
}

struct Call {
    id: CallId,
    request: CallBytes,
    begun: Moment,
    from_elsewhere: bool,
    state: State,
    /// Of the queued ones, the one with the lowest is next.
    rank: i64,
    has_caller: bool,
    sent: bool,
    wakes: Arc<Wakes>,
    /// How often its caller should have been woken.
    woken: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Queued,
    Assigned,
    Ended(Result<u16, CallError>),
    /// It has ended after its caller had left.
    Forgotten,
}

struct Connection {
    id: ConnectionId,
    address: Option<SocketAddr>,
    /// The places of its calls.
    calls: Vec<usize>,
    /// How many of these were taken.
    taken: usize,
    /// Those of them whose time was over.
    late: Vec<usize>,
    /// How many calls its task has taken that were not answered, as the task knows.
    awaited: usize,
    closing: bool,
    pipelines: bool,
    stuck: bool,
    told: bool,
    sends_no_more: bool,
    /// The number of the event since when it has room besides its calls.
    roomy: Option<i64>,
    /// When it became busy or was answered.
    heard: Moment,
    completed: bool,
    /// When it became idle, and its number among those that did.
    idle_since: (Moment, u64),
}

struct Model {
    limits: UpstreamLimits,
    addresses: Vec<SocketAddr>,
    breaker: Breaker,
    calls: Vec<Call>,
    connections: Vec<Connection>,
    /// The last answer was that of a connection that can carry several calls.
    pipelines: bool,
    dial_after: Moment,
    now: Moment,
    numbers: i64,
    expected: Vec<Done>,
}

impl Model {
    fn queued(&self) -> Vec<usize> {
        let is_queued = |place: &usize| self.calls[*place].state == State::Queued;
        let mut queued: Vec<_> = (0..self.calls.len()).filter(is_queued).collect();
        queued.sort_by_key(|place| self.calls[*place].rank);
        queued
    }

    /// The places of idle connections, the one used last at the end.
    fn idle(&self) -> Vec<usize> {
        let mut idle: Vec<_> = (0..self.connections.len())
            .filter(|place| {
                let Connection { address, calls, closing, .. } = &self.connections[*place];
                address.is_some() && calls.is_empty() && !closing
            })
            .collect();
        idle.sort_by_key(|place| self.connections[*place].idle_since.1);
        idle
    }

    fn dialing(&self) -> usize {
        self.connections.iter().filter(|connection| connection.address.is_none()).count()
    }

    fn number(&mut self) -> i64 {
        self.numbers += 1;
        self.numbers
    }

    fn may_begin(&mut self) -> Result<(), NotBegun> {
        self.expire();
        if !self.breaker.admit(self.now) {
            return Err(NotBegun::Failing);
        }
        let dialable = self.limits.connections_max.saturating_sub(self.connections.len());
        let room = self.limits.queue_max + self.dialing() + dialable;
        match self.free().is_none() && self.queued().len() >= room {
            true => Err(NotBegun::Overloaded),
            false => Ok(()),
        }
    }

    fn begin(&mut self, id: CallId, request: CallBytes, earlier: Option<Duration>) {
        let rank = self.number();
        self.calls.push(Call {
            id,
            request,
            begun: self.now.before(earlier.unwrap_or_default()),
            from_elsewhere: earlier.is_some(),
            state: State::Queued,
            rank,
            has_caller: true,
            sent: false,
            wakes: Arc::default(),
            woken: 0,
        });
        self.serve();
        self.dial();
    }

    fn dial(&mut self) {
        let of_each = if self.pipelines { self.limits.pipeline_max } else { 1 };
        loop {
            let standing = self.connections.len() - self.dialing();
            if self.dialing() * of_each >= self.queued().len()
                || self.connections.len() >= self.limits.connections_max
                || standing > 0 && self.now < self.dial_after
            {
                return;
            }
            self.expected.push(Done::Dial(ConnectionId::default()));
            self.connections.push(Connection {
                id: ConnectionId::default(),
                address: None,
                calls: Vec::new(),
                taken: 0,
                late: Vec::new(),
                awaited: 0,
                closing: false,
                pipelines: false,
                stuck: false,
                told: false,
                sends_no_more: false,
                roomy: None,
                heard: self.now,
                completed: false,
                idle_since: (self.now, 0),
            });
        }
    }

    /// The connection that is next: of those with room, the one that has had it for the shortest time.
    fn free(&self) -> Option<usize> {
        let places =
            (0..self.connections.len()).filter(|place| self.connections[*place].roomy.is_some());
        let roomy = places.max_by_key(|place| self.connections[*place].roomy);
        let silent = |place: &usize| self.connections[*place].heard.after(SILENCE) <= self.now;
        match self.idle().pop() {
            Some(idle) => roomy.filter(|place| !silent(place)).or(Some(idle)),
            None => roomy,
        }
    }

    /// Gives the calls that wait to the connections that are free.
    fn serve(&mut self) {
        while let Some(call) = self.queued().first().copied()
            && let Some(place) = self.free()
        {
            self.calls[call].state = State::Assigned;
            let now = self.now;
            let connection = &mut self.connections[place];
            if connection.calls.is_empty() {
                connection.heard = now;
            }
            connection.calls.push(call);
            if connection.calls.len() - connection.taken == 1 {
                self.expected.push(Done::Send(connection.id));
            }
            self.settle(place);
        }
    }

    fn is_welcome(&self, place: usize) -> bool {
        let address = self.connections[place].address;
        self.connections.len() <= self.limits.connections_max
            && address.is_some_and(|address| self.addresses.contains(&address))
    }

    fn settle(&mut self, place: usize) {
        let welcome = self.is_welcome(place);
        let Connection { calls, closing, pipelines, stuck, sends_no_more, roomy, .. } =
            &self.connections[place];
        let has_room = welcome
            && !closing
            && *pipelines
            && !stuck
            && !sends_no_more
            && !calls.is_empty()
            && calls.len() < self.limits.pipeline_max;
        let roomy = has_room.then(|| roomy.unwrap_or(self.numbers + 1));
        self.numbers += 1;
        self.connections[place].roomy = roomy;
    }

    fn settle_all(&mut self) {
        let mut places: Vec<_> = (0..self.connections.len()).collect();
        // In the order of the pool's slots.
        places.sort_by_key(|place| self.connections[*place].id.data().as_ffi() & 0xffff_ffff);
        places.into_iter().for_each(|place| self.settle(place));
    }

    fn become_idle(&mut self, connection: usize) {
        let number = self.number().unsigned_abs();
        self.connections[connection].idle_since = (self.now, number);
    }

    /// What a connection has not sent goes elsewhere. It is cut if nobody waits for what it has sent.
    fn give_back_and_serve(&mut self, place: usize) {
        self.give_back(place);
        if self.connections[place].calls.len() == self.connections[place].late.len() {
            self.cut(place);
        }
        self.serve();
    }

    fn give_back(&mut self, place: usize) {
        self.settle(place);
        while self.connections[place].calls.len() > self.connections[place].taken {
            let connection = &mut self.connections[place];
            let call = connection.calls.pop().unwrap();
            match connection.late.iter().position(|late| *late == call) {
                Some(late) => drop(connection.late.remove(late)),
                None => self.requeue(call),
            }
        }
    }

    fn requeue(&mut self, call: usize) {
        if !self.calls[call].has_caller {
            self.calls[call].state = State::Forgotten;
            return;
        }
        self.calls[call].state = State::Queued;
        self.calls[call].rank = -self.number();
    }

    /// Ends what a connection carries.
    fn leave(&mut self, place: usize, requeues: bool, mut told: bool) {
        let connection = &mut self.connections[place];
        connection.closing = true;
        let (calls, taken) = (mem::take(&mut connection.calls), connection.taken);
        let late = mem::take(&mut connection.late);
        connection.taken = 0;
        self.settle(place);
        for (number, call) in calls.iter().enumerate() {
            let error = match number < taken {
                true => CallError::Broken,
                false if requeues => break,
                false => CallError::NoConnection(DialError::Other),
            };
            if late.contains(call) {
                continue;
            }
            match mem::replace(&mut told, true) {
                true => self.finish(*call, Err(error)),
                false => self.end(*call, Err(error)),
            }
        }
        if requeues {
            let waiting = calls[taken..].iter().rev().filter(|call| !late.contains(call));
            waiting.for_each(|call| self.requeue(*call));
        }
    }

    fn end(&mut self, call: usize, outcome: Result<u16, CallError>) {
        self.finish(call, outcome);
        let change = match outcome {
            Ok(_) => self.breaker.succeeded(),
            Err(_) => self.breaker.failed(self.now),
        };
        self.expected.extend(change.map(Done::Breaker));
    }

    fn finish(&mut self, call: usize, outcome: Result<u16, CallError>) {
        let call = &mut self.calls[call];
        call.state = if call.has_caller { State::Ended(outcome) } else { State::Forgotten };
        if call.has_caller {
            call.woken += 1;
            self.expected.push(Done::Woken);
        }
    }

    fn cut(&mut self, place: usize) {
        let connection = &mut self.connections[place];
        connection.closing = true;
        connection.calls.clear();
        connection.late.clear();
        connection.taken = 0;
        self.expected.push(Done::Cut(connection.id));
        self.settle(place);
    }

    /// The time of a call is over that a connection carries. Returns whether the breaker knows of the connection.
    fn time_is_over(&mut self, call: usize) -> bool {
        let carries = |connection: &Connection| connection.calls.contains(&call);
        let Some(place) = self.connections.iter().position(carries) else { return false };
        let connection = &mut self.connections[place];
        connection.stuck = true;
        let number = connection.calls.iter().position(|other| *other == call).unwrap();
        match number < connection.taken {
            true => connection.late.push(call),
            false => drop(connection.calls.remove(number)),
        }
        self.give_back_and_serve(place);
        let told = &mut self.connections[place].told;
        !self.calls[call].from_elsewhere && mem::replace(told, true)
    }

    fn expire(&mut self) {
        let mut calls: Vec<_> = (0..self.calls.len()).collect();
        calls.sort_by_key(|call| (self.calls[*call].from_elsewhere, self.calls[*call].begun));
        for call in calls {
            let Call { state, begun, .. } = self.calls[call];
            if matches!(state, State::Queued | State::Assigned)
                && begun.after(self.limits.call_timeout) <= self.now
            {
                let told = self.time_is_over(call);
                match told || self.calls[call].from_elsewhere {
                    true => self.finish(call, Err(CallError::TimedOut)),
                    false => self.end(call, Err(CallError::TimedOut)),
                }
            }
        }
        for connection in self.idle() {
            let (since, _) = self.connections[connection].idle_since;
            if since.after(self.limits.idle_timeout) <= self.now {
                self.cut(connection);
            }
        }
        self.dial();
    }

    fn caller_leaves(&mut self, call: usize) {
        let call = &mut self.calls[call];
        call.has_caller = false;
        if call.state != State::Assigned {
            call.state = State::Forgotten;
        }
    }

    fn connected(&mut self, connection: usize, address: SocketAddr) {
        self.connections[connection].address = Some(address);
        self.become_idle(connection);
        self.serve();
        self.dial();
    }

    fn dial_failed(&mut self, connection: usize, error: DialError) {
        self.connections.remove(connection);
        let (dialing, queued) = (self.dialing(), self.queued());
        if self.connections.len() > dialing {
            self.dial_after = self.now.after(DIAL_PAUSE);
        } else {
            self.pipelines = false;
            if queued.len() > dialing {
                self.end(queued[0], Err(CallError::NoConnection(error)));
            }
        }
        self.dial();
    }

    fn take_request(&mut self, connection: usize) -> Option<CallBytes> {
        let connection = &mut self.connections[connection];
        let call = &mut self.calls[*connection.calls.get(connection.taken)?];
        assert!(!call.sent, "it is sent twice");
        call.sent = true;
        connection.taken += 1;
        connection.awaited += 1;
        Some(Rc::clone(&call.request))
    }

    fn answered(
        &mut self,
        place: usize,
        Answer { status, reusable, pipelines, .. }: Answer,
    ) -> bool {
        let welcome = self.is_welcome(place);
        let connection = &mut self.connections[place];
        connection.awaited -= 1;
        if connection.closing {
            connection.awaited = 0;
            return false;
        }
        let call = connection.calls.remove(0);
        connection.taken -= 1;
        connection.heard = self.now;
        (connection.completed, connection.pipelines, self.pipelines) = (true, pipelines, pipelines);
        let late = connection.late.iter().position(|late| *late == call);
        late.map(|late| connection.late.remove(late));
        if connection.late.is_empty() {
            (connection.stuck, connection.told) = (false, false);
        }
        if late.is_none() {
            self.end(call, Ok(status));
        }
        if reusable && !pipelines {
            self.give_back(place);
        }
        let Connection { calls, late, sends_no_more, .. } = &self.connections[place];
        let stays = reusable
            && match calls.is_empty() {
                true => welcome && !sends_no_more,
                false => calls.len() > late.len(),
            };
        if !stays {
            self.leave(place, true, true);
            self.connections[place].awaited = 0;
        } else if calls.is_empty() {
            self.become_idle(place);
        }
        self.settle(place);
        self.serve();
        stays
    }

    fn not_sent(&mut self, place: usize, count: usize) {
        let connection = &mut self.connections[place];
        connection.awaited -= count;
        connection.sends_no_more = true;
        if connection.closing {
            return;
        }
        connection.taken -= count;
        connection.calls[connection.taken..].iter().for_each(|call| self.calls[*call].sent = false);
        if connection.taken > 0 {
            self.give_back_and_serve(place);
            self.dial();
        }
    }

    fn closed(&mut self, place: usize) {
        let Connection { completed, closing, told, .. } = self.connections[place];
        if !closing {
            self.leave(place, completed, told);
        }
        self.connections.remove(place);
        self.serve();
        self.dial();
    }

    fn set_addresses(&mut self, addresses: Vec<SocketAddr>) {
        self.addresses = addresses;
        for connection in self.idle() {
            let address = self.connections[connection].address;
            if !address.is_some_and(|address| self.addresses.contains(&address)) {
                self.cut(connection);
            }
        }
        self.settle_all();
        self.serve();
    }
}

/// The pool and the model, which get the same events.
struct Both {
    pool: Pool,
    model: Model,
}

impl Both {
    fn new(limits: UpstreamLimits) -> Self {
        let now = clock::now();
        let addresses: Vec<_> = PORTS.map(address).collect();
        let pool = Pool::new(limits, addresses.clone(), now);
        let model = Model {
            limits,
            addresses,
            breaker: Breaker::default(),
            calls: Vec::new(),
            connections: Vec::new(),
            pipelines: false,
            dial_after: now,
            now,
            numbers: 0,
            expected: Vec::new(),
        };
        Self { pool, model }
    }

    /// The place and the id of one of the connections of which `of` is true.
    fn choose(&self, n: usize, of: fn(&Connection) -> bool) -> Option<(usize, ConnectionId)> {
        let connections = self.model.connections.iter().enumerate();
        let those: Vec<_> = connections.filter(|(_, connection)| of(connection)).collect();
        let (place, connection) = those.get(n.checked_rem(those.len())?)?;
        Some((*place, connection.id))
    }

    fn call(&mut self, earlier: Option<Duration>) {
        let may_begin = self.model.may_begin();
        let (request, now) = (CallBytes::default(), self.model.now);
        let begun = match earlier {
            None => self.pool.call(&request, Content::Discarded, now, Stamp::default()),
            Some(earlier) => self.pool.call_since(
                &request,
                Content::Discarded,
                now.before(earlier),
                now,
                Stamp::default(),
            ),
        };
        assert_eq!(begun.map(drop), may_begin);
        if let Ok(id) = begun {
            self.model.begin(id, request, earlier);
        }
    }

    fn caller_leaves(&mut self, n: usize) -> Option<()> {
        let calls = self.model.calls.iter().enumerate();
        let those: Vec<_> = calls.filter(|(_, call)| call.has_caller).collect();
        let &(place, call) = those.get(n.checked_rem(those.len())?)?;
        let waits = matches!(call.state, State::Queued | State::Assigned);
        assert_eq!(self.pool.dropped(call.id).is_some(), waits);
        self.model.caller_leaves(place);
        Some(())
    }

    fn take_request(&mut self, n: usize) -> Option<()> {
        let asks = |it: &Connection| it.address.is_some() && !it.sends_no_more;
        let (place, id) = self.choose(n, asks)?;
        let given = self.pool.take_request(id, || self.model.now).map(|taken| taken.request);
        let requests = [given, self.model.take_request(place)];
        let [given, expected] = requests.map(|bytes| bytes.map(|it| Rc::as_ptr(&it)));
        assert_eq!(given, expected);
        Some(())
    }

    /// Applies an event to both; `None` when there is nothing to apply it to.
    fn apply(&mut self, event: Event) -> Option<()> {
        let now = self.model.now;
        match event {
            Event::Call => self.call(None),
            Event::CallFromElsewhere(earlier) => self.call(Some(Duration::from_millis(earlier))),
            Event::CallerLeaves(n) => self.caller_leaves(n)?,
            Event::Connected(n, address) => {
                let (place, id) = self.choose(n, |connection| connection.address.is_none())?;
                let addresses = &self.model.addresses;
                let address = *addresses.get(address.checked_rem(addresses.len())?)?;
                self.pool.connected(id, address, now);
                self.model.connected(place, address);
            }
            Event::DialFailed(n) => {
                let (place, id) = self.choose(n, |connection| connection.address.is_none())?;
                self.pool.dial_failed(id, DialError::Refused, now);
                self.model.dial_failed(place, DialError::Refused);
            }
            Event::TakeRequest(n) => self.take_request(n)?,
            Event::Answered(n, reusable, pipelines) => {
                let (place, id) = self.choose(n, |connection| connection.awaited > 0)?;
                let status = 200 + u16::try_from(n % 100).unwrap();
                let answer =
                    Answer { pipelines: reusable && pipelines, ..answer(status, reusable) };
                let stays = self.pool.answered(id, answer.clone(), now);
                assert_eq!(stays, self.model.answered(place, answer));
            }
            Event::NotSent(n, count) => {
                let fails =
                    |connection: &Connection| connection.awaited > 0 && !connection.sends_no_more;
                let (place, id) = self.choose(n, fails)?;
                let count = 1 + count % self.model.connections[place].awaited;
                self.pool.not_sent(id, count, now);
                self.model.not_sent(place, count);
                if self.model.connections[place].awaited == 0 {
                    self.pool.closed(id, now);
                    self.model.closed(place);
                }
            }
            Event::Closed(n) => {
                let (place, id) = self.choose(n, |connection| connection.address.is_some())?;
                self.pool.closed(id, now);
                self.model.closed(place);
            }
            Event::TimePasses(milliseconds) => {
                self.model.now = now.after(Duration::from_millis(milliseconds));
                self.pool.expire(self.model.now);
                self.model.expire();
            }
            Event::Addresses(ports) => {
                let addresses: Vec<_> = ports.into_iter().map(address).collect();
                self.pool.set_addresses(addresses.clone(), now);
                self.model.set_addresses(addresses);
            }
            Event::Limits(limits) => {
                self.pool.set_limits(limits, now);
                self.model.limits = limits;
                self.model.settle_all();
                self.model.serve();
                self.model.expire();
            }
        }
        Some(())
    }

    /// Compares the actions of both, and the outcomes that both give to callers.
    fn check(&mut self) {
        let mut dialed = Vec::new();
        let actions = self.pool.actions().into_iter().map(|done| match done {
            Done::Dial(id) => {
                dialed.push(id);
                Done::Dial(ConnectionId::default())
            }
            other => other,
        });
        let actions: Vec<_> = actions.collect();
        assert_eq!(actions, mem::take(&mut self.model.expected));
        let unnamed =
            self.model.connections.iter_mut().filter(|it| it.id == ConnectionId::default());
        unnamed.zip(dialed).for_each(|(connection, id)| connection.id = id);
        for call in &self.model.calls {
            assert_eq!(call.wakes.count(), call.woken);
            if call.has_caller {
                let waker = Waker::from(Arc::clone(&call.wakes));
                let told = self.pool.poll(call.id, &mut Context::from_waker(&waker));
                let expected = match call.state {
                    State::Ended(outcome) => Poll::Ready(outcome),
                    _ => Poll::Pending,
                };
                assert_eq!(told, expected);
            }
        }
        let named = self.model.calls.iter().filter(|call| call.state != State::Forgotten);
        self.pool.check_invariants(&named.map(|call| call.id).collect::<Vec<_>>());
    }

    fn everybody_leaves(&mut self) {
        let mut events =
            [Event::CallerLeaves(0), Event::DialFailed(0), Event::Closed(0)].into_iter().cycle();
        while !self.model.connections.is_empty() || self.model.calls.iter().any(|it| it.has_caller)
        {
            self.apply(events.next().unwrap());
            self.check();
        }
    }
}

proptest! {
    #[test]
    fn the_pool_does_what_the_model_does(
        limits in some_limits(),
        events in prop::collection::vec(event(), 0..200),
    ) {
        let mut both = Both::new(limits);
        for event in events {
            both.apply(event);
            both.check();
        }
        both.everybody_leaves();
        prop_assert!(both.pool.is_empty());
    }
}
