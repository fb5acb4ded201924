//! What is seen of each visit from outside of the server: the truth that its books are held against.

use std::{
    cell::{Cell, RefCell, RefMut},
    fmt,
    rc::Rc,
};

use monoio::world;

use crate::{
    logged::Said,
    plan::{COUNTERS, Plan},
    request::VISITS,
    trace::Traces,
};

/// What happened to one visit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Visit {
    /// The worker that has its client.
    pub worker: usize,
    /// Calls of which at least one byte was sent.
    pub begun: usize,
    /// How often it was counted, and will not be forgotten.
    pub counted: u64,
    /// The number that its counter answered last, if that answer has one which must be shown.
    pub number: Option<u64>,
    /// Whether its client was welcomed.
    pub welcomed: bool,
    /// Whether its client was told that the server has too much to do.
    pub refused: bool,
}

/// All that is seen.
#[derive(Default)]
pub struct Record {
    visits: RefCell<Vec<Visit>>,
    /// What clients have asked and were told.
    said: RefCell<Said>,
    /// What is wrong, in the order in which it was seen.
    violations: RefCell<Vec<String>>,
    /// Numbers that counters have answered.
    numbers: Cell<u64>,
    /// Answers that were read and found to be right.
    answers: Cell<usize>,
    /// Whether nothing stands against visits of this counter being welcomed.
    serves: Cell<[bool; COUNTERS]>,
    /// Whether more visits may wait for a counter than there is room for.
    overloads: Cell<bool>,
    /// The traces of all visits.
    pub traces: Traces,
    /// Whether calls take traces to the counters, and how many are recorded.
    traced: Cell<Option<&'static str>>,
}

impl Record {
    /// Nothing was seen.
    pub fn new() -> Rc<Self> {
        Rc::new(Self { visits: RefCell::new(vec![Visit::default(); VISITS]), ..Self::default() })
    }

    /// What is to be expected of a history.
    pub fn expect(&self, plan: &Plan) {
        self.serves.set(std::array::from_fn(|counter| plan.serves(counter)));
        self.overloads.set(plan.upstream.queue_max < VISITS);
        self.traced.set(plan.traces);
    }

    /// Whether nothing stands against visits of this counter being welcomed.
    pub fn serves(&self, counter: usize) -> bool {
        self.serves.get()[counter]
    }

    /// Whether more visits may wait for a counter than there is room for.
    pub fn overloads(&self) -> bool {
        self.overloads.get()
    }

    /// What clients have asked and were told.
    pub fn said(&self) -> RefMut<'_, Said> {
        self.said.borrow_mut()
    }

    /// Changes what is known of a visit.
    pub fn visit(&self, visit: usize, change: impl FnOnce(&mut Visit)) {
        change(&mut self.visits.borrow_mut()[visit]);
    }

    /// The number for a call of a visit: no two calls of a history get the same. Those of one visit have the same
    /// length, from 4 digits to 20, so that the answer to a `HEAD` tells whether it has one.
    pub fn new_number(&self, visit: usize) -> u64 {
        self.numbers.set(self.numbers.get() + 1);
        let zeros = u32::try_from(3 + visit % 17).unwrap_or(0);
        10_u64.pow(zeros) + self.numbers.get()
    }

    /// The number that the page of a visit shows if it is welcomed.
    pub fn number(&self, visit: usize) -> Option<u64> {
        self.visits.borrow()[visit].number
    }

    /// Judges a whole call. It may be seen in the midst of an operation, when nothing can be traced.
    pub fn judge_call(&self, visit: usize, call: &[u8]) {
        if let Err(why) = self.traces.judge(visit, call, self.traced.get()) {
            self.violations.borrow_mut().push(why);
        }
    }

    /// The worker that has the client of a visit.
    pub fn worker_of(&self, visit: usize) -> usize {
        self.visits.borrow()[visit].worker
    }

    /// All visits.
    pub fn visits(&self) -> Vec<Visit> {
        self.visits.borrow().clone()
    }

    /// Something is wrong.
    pub fn violation(&self, what: fmt::Arguments<'_>) {
        world::trace(format_args!("VIOLATION: {what}"));
        self.violations.borrow_mut().push(what.to_string());
    }

    /// Whether something is wrong.
    pub fn failed(&self) -> bool {
        !self.violations.borrow().is_empty()
    }

    /// What is wrong.
    pub fn violations(&self) -> Vec<String> {
        self.violations.borrow().clone()
    }

    /// An answer was right.
    pub fn answered(&self) {
        self.answers.set(self.answers.get() + 1);
    }

    /// Answers that were right.
    pub fn answers(&self) -> usize {
        self.answers.get()
    }
}

/// The visit that a call is for, by the path that it begins with.
pub fn visit_of(call: &[u8]) -> Option<usize> {
    let rest = call.strip_prefix(b"POST /counter/v")?;
    let end = rest.iter().position(|byte| !byte.is_ascii_digit())?;
    std::str::from_utf8(&rest[..end]).ok()?.parse().ok()
}
