//! What is seen of each visit from outside of the server: the truth that its books are held against.

use std::{
    cell::{Cell, RefCell, RefMut},
    collections::BTreeSet,
    fmt,
    rc::Rc,
};

use monoio::world;

use crate::{
    logged::Said,
    plan::{COUNTERS, PROBES, Plan},
    request::VISITS,
    server,
    trace::Traces,
};

/// What happened to one visit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Visit {
    /// The worker that has its client.
    pub worker: usize,
    /// Calls of which at least one byte was sent. Of one that others are called as, the visits of these calls.
    pub begun: u64,
    /// How often it was counted, and will not be forgotten.
    pub counted: u64,
    /// How many visits a counter that is not bundled has said that it counted, in answers that may be believed.
    pub confirmed: u64,
    /// The number that its counter answered last, if that answer has one which must be shown.
    pub number: Option<u64>,
    /// Whether its client was welcomed.
    pub welcomed: bool,
    /// Whether its client was told that the server has too much to do.
    pub refused: bool,
}

/// The numbers of visits that one call may register together.
#[derive(Default)]
struct Numbers {
    /// Those that counters have answered, and that nobody was shown.
    left: BTreeSet<u64>,
    /// Visits whose answers have none.
    without: u64,
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
    /// The same, of the visits of each counter, where one call registers several.
    shared: RefCell<[Numbers; COUNTERS]>,
    /// Whether one call registers several visits.
    batches: Cell<bool>,
    /// Whether a call that registers one says nothing of it.
    offers: Cell<bool>,
    /// Visits of which at least one byte was sent.
    begun: Cell<u64>,
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
        self.batches.set(plan.batches.is_some());
        self.offers.set(plan.offers);
    }

    /// The visits that are called as others are: nothing tells which of them a call registers.
    pub fn is_shared(&self, visit: usize) -> bool {
        self.batches.get() && visit < VISITS - PROBES
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

    /// The total for a call, which is the number of its last visit: no two visits of a history get the same. Those of
    /// one visit have the same length, from 4 digits to 20, so that the answer to a `HEAD` tells whether it has one.
    pub fn new_number(&self, Call { visit, by }: Call) -> u64 {
        self.numbers.set(self.numbers.get() + by);
        let zeros = u32::try_from(3 + visit % 17).unwrap_or(0);
        10_u64.pow(zeros) + self.numbers.get()
    }

    /// A counter is about to answer a call with this number, or so that no number can be read.
    pub fn answers(&self, Call { visit, by }: Call, number: Option<u64>) {
        if !self.is_shared(visit) {
            return self.visit(visit, |visit| visit.number = number);
        }
        let numbers = &mut self.shared.borrow_mut()[visit];
        match number {
            Some(total) => numbers.left.extend(total + 1 - by..=total),
            None => numbers.without += by,
        }
    }

    /// What the page of a visit may show if it is welcomed, whose call registers others too.
    pub fn numbers(&self, visit: usize) -> Vec<Option<u64>> {
        let numbers = &self.shared.borrow()[server::counter_of(visit)];
        let without = (numbers.without > 0).then_some(None);
        numbers.left.iter().copied().map(Some).chain(without).collect()
    }

    /// The page of a visit shows this: no other does.
    pub fn is_shown(&self, visit: usize, number: Option<u64>) {
        let numbers = &mut self.shared.borrow_mut()[server::counter_of(visit)];
        match number {
            Some(number) => drop(numbers.left.remove(&number)),
            None => numbers.without -= 1,
        }
    }

    /// The number that the page of a visit shows if it is welcomed.
    pub fn number(&self, visit: usize) -> Option<u64> {
        self.visits.borrow()[visit].number
    }

    /// At least one byte of a call was sent.
    pub fn begins(&self, Call { visit, by }: Call) {
        self.begun.set(self.begun.get() + by);
        self.visit(visit, |visit| visit.begun += by);
    }

    /// Visits of which at least one byte was sent.
    pub fn begun(&self) -> u64 {
        self.begun.get()
    }

    /// Judges a whole call. It may be seen in the midst of an operation, when nothing can be traced.
    pub fn judge_call(&self, call: Call, bytes: &[u8]) {
        let Call { visit, by } = call;
        let is_told = if self.offers.get() { by > 1 } else { self.batches.get() };
        let batch = is_told.then_some(by);
        let of_it = |other: &usize| server::called_as(*other, self.batches.get()) == visit;
        let visits: Vec<usize> = (0..VISITS).filter(of_it).collect();
        if by == 0 || by > visits.len() as u64 {
            self.violations.borrow_mut().push(format!("{by} visits are called as {visit}"));
        }
        if let Err(why) = self.traces.judge(call, batch, &visits, bytes, self.traced.get()) {
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
    pub fn right_answers(&self) -> usize {
        self.answers.get()
    }
}

/// What a counter is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// The visit, or the one that those are called as which it registers.
    pub visit: usize,
    /// How many visits it registers.
    pub by: u64,
}

impl Call {
    /// The call that begins so.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(b"POST /counter/v")?;
        let (visit, rest) = number(rest)?;
        let by = match rest.strip_prefix(b"?by=") {
            Some(by) => number(by)?.0,
            None => 1,
        };
        Some(Self { visit: usize::try_from(visit).ok().filter(|visit| *visit < VISITS)?, by })
    }
}

impl Call {
    /// The calls that begin in the first `taken` of these bytes, which may be the rest of others, each with its own.
    pub fn read_all(offered: &[u8], taken: usize) -> impl Iterator<Item = (Self, &[u8])> {
        const BEGIN: &[u8] = b"POST /counter/v";
        let begins =
            (0..taken.min(offered.len())).filter(|place| offered[*place..].starts_with(BEGIN));
        begins.filter_map(|place| {
            let rest = &offered[place..];
            let end = rest.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
            Some((Self::read(rest)?, &rest[..end + 4]))
        })
    }
}

/// The number that `bytes` begin with, and what follows.
fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let end = bytes.iter().position(|byte| !byte.is_ascii_digit())?;
    let (digits, rest) = bytes.split_at(end);
    Some((std::str::from_utf8(digits).ok()?.parse().ok()?, rest))
}
