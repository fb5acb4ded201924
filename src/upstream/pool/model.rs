//! The pool against a naive model of it: lists that are searched from end to end, and events at random.
//!
//! After each event both give the same actions in the same order, and each caller the same outcome. Besides, a call
//! is sent once (unless not a byte of it has left), each connection carries one call at a time, each caller is woken
//! once, and when all have left nothing remains.

use std::sync::Arc;

use proptest::prelude::*;

use super::{
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
    Answered(usize, bool),
    NotSent(usize),
    Closed(usize),
    TimePasses(u64),
    Addresses(Vec<u16>),
    Limits(UpstreamLimits),
}

fn some_limits() -> impl Strategy<Value = UpstreamLimits> {
    (1..5usize, 0..4usize, 100..1000u64, 100..1000u64).prop_map(
        |(connections_max, queue_max, call, idle)| UpstreamLimits {
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
        6 => (any(), prop::bool::weighted(0.9)).prop_map(|(n, reusable)| Event::Answered(n, reusable)),
        1 => any().prop_map(Event::NotSent),
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
    /// The place of its call.
    call: Option<usize>,
    /// Its task sends a call and waits for the answer.
    in_exchange: bool,
    closing: bool,
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
                let Connection { address, call, closing, .. } = &self.connections[*place];
                address.is_some() && call.is_none() && !closing
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
        match self.idle().is_empty() && self.queued().len() >= room {
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
        if let Some(connection) = self.idle().pop() {
            self.assign_first(connection);
        }
        self.dial();
    }

    fn dial(&mut self) {
        loop {
            let standing = self.connections.len() - self.dialing();
            if self.dialing() >= self.queued().len()
                || self.connections.len() >= self.limits.connections_max
                || standing > 0 && self.now < self.dial_after
            {
                return;
            }
            self.expected.push(Done::Dial(ConnectionId::default()));
            self.connections.push(Connection {
                id: ConnectionId::default(),
                address: None,
                call: None,
                in_exchange: false,
                closing: false,
                completed: false,
                idle_since: (self.now, 0),
            });
        }
    }

    /// Gives an idle connection the call that is next.
    fn assign_first(&mut self, connection: usize) {
        let call = self.queued()[0];
        self.calls[call].state = State::Assigned;
        let connection = &mut self.connections[connection];
        assert_eq!(connection.call.replace(call), None);
        self.expected.push(Done::Send(connection.id));
    }

    fn become_idle(&mut self, connection: usize) {
        let number = self.number().unsigned_abs();
        self.connections[connection].idle_since = (self.now, number);
        if !self.queued().is_empty() {
            self.assign_first(connection);
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

    fn cut(&mut self, connection: usize) {
        let connection = &mut self.connections[connection];
        connection.closing = true;
        connection.call = None;
        self.expected.push(Done::Cut(connection.id));
    }

    fn expire(&mut self) {
        let mut calls: Vec<_> = (0..self.calls.len()).collect();
        calls.sort_by_key(|call| (self.calls[*call].from_elsewhere, self.calls[*call].begun));
        for call in calls {
            let Call { state, begun, .. } = self.calls[call];
            if matches!(state, State::Queued | State::Assigned)
                && begun.after(self.limits.call_timeout) <= self.now
            {
                let carries = |connection: &Connection| connection.call == Some(call);
                if let Some(connection) = self.connections.iter().position(carries) {
                    self.cut(connection);
                }
                match self.calls[call].from_elsewhere {
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
    }

    fn dial_failed(&mut self, connection: usize, error: DialError) {
        self.connections.remove(connection);
        let (dialing, queued) = (self.dialing(), self.queued());
        if self.connections.len() > dialing {
            self.dial_after = self.now.after(DIAL_PAUSE);
        } else if queued.len() > dialing {
            self.end(queued[0], Err(CallError::NoConnection(error)));
        }
        self.dial();
    }

    fn take_request(&mut self, connection: usize) -> Option<CallBytes> {
        let connection = &mut self.connections[connection];
        let call = &mut self.calls[connection.call?];
        assert!(!call.sent, "it is sent twice");
        call.sent = true;
        connection.in_exchange = true;
        Some(Rc::clone(&call.request))
    }

    fn answered(&mut self, place: usize, status: u16, reusable: bool) -> bool {
        let open = self.connections.len();
        let connection = &mut self.connections[place];
        connection.in_exchange = false;
        let Some(call) = connection.call.take() else { return false };
        connection.completed = true;
        let address = connection.address.unwrap();
        let stays =
            reusable && open <= self.limits.connections_max && self.addresses.contains(&address);
        connection.closing = !stays;
        self.end(call, Ok(status));
        if stays {
            self.become_idle(place);
        }
        stays
    }

    fn not_sent(&mut self, connection: usize) {
        let connection = &mut self.connections[connection];
        connection.in_exchange = false;
        if let Some(call) = connection.call {
            self.calls[call].sent = false;
        }
    }

    fn closed(&mut self, connection: usize) {
        let Connection { call, in_exchange, completed, .. } = self.connections.remove(connection);
        match call {
            None => {}
            Some(call) if in_exchange => self.end(call, Err(CallError::Broken)),
            Some(call) if !completed => {
                self.end(call, Err(CallError::NoConnection(DialError::Other)));
            }
            Some(call) if !self.calls[call].has_caller => {
                self.calls[call].state = State::Forgotten;
            }
            Some(call) => {
                let rank = -self.number();
                self.calls[call].state = State::Queued;
                self.calls[call].rank = rank;
                if let Some(connection) = self.idle().pop() {
                    self.assign_first(connection);
                }
            }
        }
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
        let asks = |it: &Connection| it.address.is_some() && !it.in_exchange;
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
            Event::Answered(n, reusable) => {
                let (place, id) = self.choose(n, |connection| connection.in_exchange)?;
                let status = 200 + u16::try_from(n % 100).unwrap();
                let stays = self.pool.answered(id, answer(status, reusable), now);
                assert_eq!(stays, self.model.answered(place, status, reusable));
            }
            Event::NotSent(n) => {
                let (place, id) = self.choose(n, |connection| connection.in_exchange)?;
                self.pool.not_sent(id);
                self.model.not_sent(place);
                self.pool.closed(id, now);
                self.model.closed(place);
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
                self.pool.set_addresses(addresses.clone());
                self.model.set_addresses(addresses);
            }
            Event::Limits(limits) => {
                self.pool.set_limits(limits, now);
                self.model.limits = limits;
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
        assert_eq!(actions, std::mem::take(&mut self.model.expected));
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
