//! Shards against a naive model: a database in memory that fails before, in and after each commit, and late.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

/// What becomes of a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// It is done, unless the fence forbids it.
    None,
    /// It meets with others.
    Conflict,
    /// There is no connection.
    Before,
    /// It is done, and the answer is lost.
    After,
    /// The connection is lost, and the try arrives later, or never.
    Late,
    /// The database refuses it.
    Refused,
}

/// The rows of a shard.
#[derive(Debug, Default, Clone)]
struct Rows {
    fence: Option<Fence>,
    values: TotalsByName,
    gone: bool,
}

/// What all counters share.
#[derive(Debug, Default)]
struct Database {
    epoch: u64,
    shards: BTreeMap<&'static str, Rows>,
    /// Tries that have not arrived.
    late: Vec<(&'static str, Fence, TotalsByName)>,
}

impl Database {
    /// Writes values, unless the fence forbids it; whether it did.
    fn write(&mut self, shard: &str, fence: Fence, values: &TotalsByName) -> bool {
        let Some(rows) = self.shards.get_mut(shard) else { return false };
        let current = rows.fence.unwrap();
        if current.epoch != fence.epoch || current.sequence >= fence.sequence {
            return false;
        }
        rows.fence = Some(fence);
        rows.gone = false;
        rows.values.extend(values.clone());
        true
    }

    /// The sums of all shards but this one.
    fn sums(&self, without: &str) -> TotalsByName {
        let mut sums = TotalsByName::new();
        for (_, rows) in self.shards.iter().filter(|(shard, _)| **shard != without) {
            for (name, value) in &rows.values {
                *sums.entry(name.clone()).or_default() += value;
            }
        }
        sums
    }

    fn take(&mut self, shard: &'static str) -> Taken {
        self.epoch += 1;
        let fence = Fence { epoch: self.epoch, sequence: 0 };
        let mut rows = self.shards.remove(shard).unwrap_or_default();
        for (_, gone) in self.shards.extract_if(.., |_, rows| rows.gone) {
            gone.values.into_iter().for_each(|(name, value)| {
                *rows.values.entry(name).or_default() += value;
            });
        }
        (rows.fence, rows.gone) = (Some(fence), false);
        let own = rows.values.clone();
        self.shards.insert(shard, rows);
        Taken { epoch: self.epoch, own, others: self.sums(shard) }
    }
}

/// A connection to it.
struct Connection {
    database: Arc<Mutex<Database>>,
    shard: &'static str,
    /// Of the next tries; none after them.
    faults: Arc<Mutex<VecDeque<Fault>>>,
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.shard)
    }
}

impl Connection {
    /// Does something whose answer may be lost.
    fn attempt<T>(
        &self,
        act: impl FnOnce(&mut Database) -> Option<T>,
        late: impl FnOnce() -> Option<(&'static str, Fence, TotalsByName)>,
    ) -> Result<T, Trouble> {
        let fault = self.faults.lock().unwrap().pop_front().unwrap_or(Fault::None);
        let mut database = self.database.lock().unwrap();
        let why = String::from("a fault");
        match fault {
            Fault::None => act(&mut database).ok_or(Trouble::Fenced),
            Fault::Conflict => Err(Trouble::Conflict(why)),
            Fault::Before => Err(Trouble::Disconnected(why)),
            Fault::After => {
                act(&mut database);
                Err(Trouble::Unknown(why))
            }
            Fault::Late => {
                database.late.extend(late());
                Err(Trouble::Unknown(why))
            }
            Fault::Refused => Err(Trouble::Refused(why)),
        }
    }
}

impl Engine for Connection {
    fn take(&mut self, _: Instant) -> Result<Taken, Trouble> {
        self.attempt(|database| Some(database.take(self.shard)), || None)
    }

    fn commit(
        &mut self,
        fence: Fence,
        values: &TotalsByName,
        wanted: Wanted<'_>,
        _: Instant,
    ) -> Result<TotalsByName, Trouble> {
        let commit = |database: &mut Database| {
            let done = database.write(self.shard, fence, values);
            done.then(|| pick(database.sums(self.shard), wanted))
        };
        self.attempt(commit, || Some((self.shard, fence, values.clone())))
    }

    fn read(
        &mut self,
        epoch: u64,
        wanted: Wanted<'_>,
        _: Instant,
    ) -> Result<TotalsByName, Trouble> {
        let read = |database: &mut Database| {
            let fence = database.shards.get(self.shard)?.fence?;
            (fence.epoch == epoch).then(|| pick(database.sums(self.shard), wanted))
        };
        self.attempt(read, || None)
    }
}

fn pick(mut sums: TotalsByName, wanted: Wanted<'_>) -> TotalsByName {
    if let Wanted::Names(names) = wanted {
        sums.retain(|name, _| names.contains(name));
    }
    sums
}

const RETRY: Retry = Retry { time: Duration::from_secs(3600), pause: Duration::ZERO, tries: 3 };

/// A database, and counters of it.
#[derive(Default)]
struct World {
    database: Arc<Mutex<Database>>,
    faults: Arc<Mutex<VecDeque<Fault>>>,
}

impl World {
    fn open(&self, shard: &'static str) -> Result<ShardedStore<Connection>, Trouble> {
        let (database, faults) = (Arc::clone(&self.database), Arc::clone(&self.faults));
        ShardedStore::open(Connection { database, shard, faults }, RETRY)
    }

    fn fail(&self, faults: &[Fault]) {
        *self.faults.lock().unwrap() = faults.iter().copied().collect();
    }

    fn total(&self, name: &str) -> u64 {
        self.database.lock().unwrap().sums("").get(name).copied().unwrap_or(0)
    }
}

fn add(name: &str, by: u64) -> Operation {
    Operation::Add { name: name.to_owned(), by }
}

fn total(name: &str) -> Operation {
    Operation::Total { name: name.to_owned() }
}

/// Adds 1 where 10 are, with these faults; the outcome, the total in the database, and the outcome of one more.
#[track_caller]
fn check(faults: &[Fault], expected: (Outcome, u64, u64)) {
    let world = World::default();
    let mut store = world.open("a").unwrap();
    assert_eq!(store.commit(&[add("", 10)]), [Outcome::Total(10)]);
    world.fail(faults);
    let outcome = store.commit(&[add("", 1)]).remove(0);
    world.fail(&[]);
    let (outcome_expected, total, next) = expected;
    assert_eq!((outcome, world.total("")), (outcome_expected, total));
    assert_eq!(store.commit(&[add("", 1)]), [Outcome::Total(next)]);
    assert_eq!(store.counted(), Counted { total: next, named: 0 });
    assert_eq!(world.total(""), next);
    // What was late comes after all that.
    let late = std::mem::take(&mut world.database.lock().unwrap().late);
    for (shard, fence, values) in late {
        assert!(!world.database.lock().unwrap().write(shard, fence, &values));
    }
}

#[test]
fn a_commit_counts_once_or_not_at_all() {
    use Fault::{After, Before, Conflict, Late, Refused};
    check(&[], (Outcome::Total(11), 11, 12));
    check(&[Conflict, Conflict], (Outcome::Total(11), 11, 12));
    check(&[Conflict, Conflict, Conflict], (Outcome::Failed, 10, 11));
    check(&[Before, Before], (Outcome::Total(11), 11, 12));
    check(&[Before, Before, Before], (Outcome::Failed, 10, 11));
    check(&[After, Before], (Outcome::Total(11), 11, 12));
    check(&[After, Before, Before], (Outcome::Unknown, 11, 12));
    check(&[Late, Late], (Outcome::Total(11), 11, 12));
    check(&[Late, Late, Late], (Outcome::Unknown, 10, 12));
    // Another try is useless.
    check(&[Refused], (Outcome::Failed, 10, 11));
    check(&[Late, Refused], (Outcome::Unknown, 10, 12));
}

#[test]
fn values_are_written_again_after_a_connection_was_lost() {
    let world = World::default();
    let mut store = world.open("a").unwrap();
    store.commit(&[add("x", 5), add("y", 7)]);
    // Another copy of the database, which lacks the last commit.
    world.database.lock().unwrap().shards.get_mut("a").unwrap().values.clear();
    assert_eq!(store.commit(&[add("x", 1)]), [Outcome::Total(6)]);
    assert_eq!((world.total("x"), world.total("y")), (6, 0));
    world.fail(&[Fault::Before]);
    assert_eq!(store.commit(&[total("x")]), [Outcome::Total(6)]);
    assert_eq!((world.total("x"), world.total("y")), (6, 7));
}

#[test]
fn who_is_fenced_tells_nothing() {
    let world = World::default();
    let mut old = world.open("a").unwrap();
    assert_eq!(old.commit(&[add("", 1)]), [Outcome::Total(1)]);
    let mut new = world.open("a").unwrap();
    assert_eq!(new.commit(&[add("", 1)]), [Outcome::Total(2)]);
    assert!(!old.is_fenced());
    // Neither a read, nor a commit.
    assert_eq!(old.commit(&[total("")]), [Outcome::Failed]);
    assert!(old.is_fenced() && !new.is_fenced());
    assert_eq!(old.commit(&[add("", 1), Operation::All]), [Outcome::Failed, Outcome::Failed]);
    assert_eq!(new.commit(&[total("")]), [Outcome::Total(2)]);
    let mut third = world.open("a").unwrap();
    assert_eq!(new.commit(&[add("", 1)]), [Outcome::Failed]);
    assert_eq!(third.commit(&[total("")]), [Outcome::Total(2)]);
    // Also where nothing is asked of it.
    let _fourth = world.open("a").unwrap();
    third.beat();
    assert!(third.is_fenced());
}

#[test]
fn an_answer_that_was_lost_before_the_takeover_is_unknown() {
    let world = World::default();
    let mut old = world.open("a").unwrap();
    world.fail(&[Fault::Late, Fault::Refused]);
    assert_eq!(old.commit(&[add("", 1)]), [Outcome::Unknown]);
    world.fail(&[]);
    let mut new = world.open("a").unwrap();
    assert_eq!(old.commit(&[add("", 1)]), [Outcome::Failed]);
    assert_eq!(new.commit(&[total("")]), [Outcome::Total(0)]);
}

#[test]
fn a_total_is_the_sum_of_all_shards() {
    let world = World::default();
    let [mut a, mut b] = ["a", "b"].map(|shard| world.open(shard).unwrap());
    assert_eq!(a.commit(&[add("", 1), add("x", 2)]), [Outcome::Total(1), Outcome::Total(2)]);
    assert_eq!(b.commit(&[add("", 1), total("x")]), [Outcome::Total(2), Outcome::Total(2)]);
    assert_eq!(a.commit(&[total(""), add("x", 3)]), [Outcome::Total(2), Outcome::Total(5)]);
    let all = Bytes::from_static(br#"{"":2,"x":5}"#);
    assert_eq!(b.commit(&[Operation::All]), [Outcome::All(all)]);
    // The additions of a batch are in each of its listings.
    let all = Outcome::All(Bytes::from_static(br#"{"":2,"x":6}"#));
    assert_eq!(b.commit(&[Operation::All, add("x", 1)]), [all, Outcome::Total(6)]);
    assert_eq!(a.counted(), Counted { total: 2, named: 5 });
    assert_eq!(b.counted(), Counted { total: 2, named: 6 });
}

#[test]
fn names_are_bounded_over_all_shards() {
    let world = World::default();
    let [mut a, mut b] = ["a", "b"].map(|shard| world.open(shard).unwrap());
    let names: Vec<_> = (0..NAMES_MAX).map(|number| add(&format!("n{number}"), 1)).collect();
    assert!(a.commit(&names).iter().all(|outcome| *outcome == Outcome::Total(1)));
    let outcomes = b.commit(&[add("n0", 1), add("one-more", 1), add("", 1)]);
    assert_eq!(outcomes, [Outcome::Total(2), Outcome::TooManyNames, Outcome::Total(1)]);
    assert_eq!(b.commit(&[add("one-more", 1)]), [Outcome::TooManyNames]);
    assert_eq!((world.total("one-more"), world.total("n0")), (0, 2));
}

#[test]
fn a_start_folds_what_is_gone() {
    let world = World::default();
    let [mut a, mut b] = ["a", "b"].map(|shard| world.open(shard).unwrap());
    a.commit(&[add("", 5), add("x", 1)]);
    b.commit(&[add("", 3)]);
    world.database.lock().unwrap().shards.get_mut("a").unwrap().gone = true;
    let mut c = world.open("c").unwrap();
    assert_eq!(world.database.lock().unwrap().shards.keys().collect::<Vec<_>>(), [&"b", &"c"]);
    assert_eq!(c.commit(&[add("", 1), total("x")]), [Outcome::Total(9), Outcome::Total(1)]);
    // It was only thought gone, and its shard's name can be used again.
    assert_eq!(a.commit(&[add("", 1)]), [Outcome::Failed]);
    assert!(a.is_fenced());
    let mut again = world.open("a").unwrap();
    assert_eq!(again.commit(&[add("", 1)]), [Outcome::Total(10)]);
    assert_eq!(a.commit(&[total("")]), [Outcome::Failed]);
}

#[test]
fn nothing_is_tried_again_while_the_counter_ends() {
    let world = World::default();
    let mut store = world.open("a").unwrap();
    store.hurry().store(true, Ordering::Relaxed);
    world.fail(&[Fault::Before]);
    assert_eq!(store.commit(&[add("", 1)]), [Outcome::Failed]);
    assert_eq!(store.commit(&[add("", 1)]), [Outcome::Total(1)]);
}

#[test]
fn a_start_is_tried_again() {
    let world = World::default();
    world.fail(&[Fault::Before, Fault::After]);
    assert_eq!(world.open("a").unwrap().commit(&[add("", 1)]), [Outcome::Total(1)]);
    world.fail(&[Fault::Before, Fault::After, Fault::Conflict]);
    assert!(matches!(world.open("a"), Err(Trouble::Conflict(_))));
    world.fail(&[Fault::Refused]);
    assert!(matches!(world.open("a"), Err(Trouble::Refused(_))));
}

/// What happens to two shards, each of which has a counter, and may get another that takes it over.
#[derive(Debug, Clone)]
enum Step {
    /// A counter adds: its place modulo how many there are, how many additions, how many reads, and the faults.
    Commit(usize, usize, usize, Vec<Fault>),
    /// A counter shows that it runs.
    Beat(usize, Vec<Fault>),
    /// A counter starts on a shard, with these faults.
    Open(usize, Vec<Fault>),
    /// A try arrives late: its place modulo how many there are.
    Arrive(usize),
    /// A shard is thought gone.
    Vanish(usize),
}

const SHARDS: [&str; 3] = ["a", "b", "c"];
const NAMES: [&str; 2] = ["", "x"];

fn faults() -> impl Strategy<Value = Vec<Fault>> {
    let fault = prop_oneof![
        4 => Just(Fault::None),
        1 => Just(Fault::Conflict),
        1 => Just(Fault::Before),
        2 => Just(Fault::After),
        2 => Just(Fault::Late),
        1 => Just(Fault::Refused),
    ];
    prop::collection::vec(fault, 0..5)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (any::<usize>(), 0..3_usize, 0..3_usize, faults())
            .prop_map(|(place, adds, reads, faults)| Step::Commit(place, adds, reads, faults)),
        1 => (any::<usize>(), faults()).prop_map(|(place, faults)| Step::Beat(place, faults)),
        2 => (any::<usize>(), faults()).prop_map(|(shard, faults)| Step::Open(shard, faults)),
        2 => any::<usize>().prop_map(Step::Arrive),
        1 => any::<usize>().prop_map(Step::Vanish),
    ]
}

/// Each addition has a bit of its own, so a total shows which ones it contains, and none twice.
#[derive(Default)]
struct Additions {
    next: usize,
    confirmed: [u64; 2],
    failed: [u64; 2],
    unknown: [u64; 2],
}

impl Additions {
    fn take(&mut self) -> (usize, u64) {
        self.next += 1;
        (self.next % 2, 1 << (self.next / 2))
    }

    /// A total must contain what was confirmed before, and nothing that has failed or was never added.
    fn judge(&self, name: usize, total: u64, confirmed: u64, under_way: u64) {
        assert_eq!(confirmed & !total, 0, "{total:b} lacks something of {confirmed:b}");
        let possible = self.confirmed[name] | self.unknown[name] | under_way;
        assert_eq!(total & !possible, 0, "{total:b} has more than {possible:b}");
    }
}

thread_local! {
    /// What the histories have met with, so that a test that sees nothing fails.
    static MET: RefCell<BTreeMap<&'static str, usize>> = RefCell::default();
}

fn met(what: &'static str) {
    MET.with_borrow_mut(|met| *met.entry(what).or_default() += 1);
}

fn live(steps: Vec<Step>) {
    let world = World::default();
    let mut stores = vec![world.open("a").unwrap(), world.open("b").unwrap()];
    let mut additions = Additions::default();
    for step in steps {
        match step {
            Step::Commit(place, adds, reads, faults) => {
                world.fail(&faults);
                let place = place % stores.len();
                commit(&world, &mut stores[place], &mut additions, adds, reads);
            }
            Step::Beat(place, faults) => {
                world.fail(&faults);
                let place = place % stores.len();
                stores[place].beat();
            }
            Step::Open(shard, faults) => {
                world.fail(&faults);
                if let Ok(store) = world.open(SHARDS[shard % SHARDS.len()]) {
                    stores.push(store);
                }
            }
            Step::Arrive(place) => {
                let mut database = world.database.lock().unwrap();
                if !database.late.is_empty() {
                    let place = place % database.late.len();
                    let (shard, fence, values) = database.late.remove(place);
                    met(if database.write(shard, fence, &values) {
                        "kept late"
                    } else {
                        "refused late"
                    });
                }
            }
            Step::Vanish(shard) => {
                if let Some(rows) =
                    world.database.lock().unwrap().shards.get_mut(SHARDS[shard % SHARDS.len()])
                {
                    rows.gone = true;
                }
            }
        }
        world.fail(&[]);
    }
    for (place, name) in NAMES.iter().enumerate() {
        additions.judge(place, world.total(name), additions.confirmed[place], 0);
    }
}

/// Commits additions and reads by one counter, and judges each outcome.
fn commit(
    world: &World,
    store: &mut ShardedStore<Connection>,
    additions: &mut Additions,
    adds: usize,
    reads: usize,
) {
    let bits: Vec<_> = (0..adds).map(|_| additions.take()).collect();
    let mut batch: Vec<_> = bits.iter().map(|(name, bit)| add(NAMES[*name], *bit)).collect();
    batch.extend((0..reads).map(|name| total(NAMES[name])));
    let confirmed = additions.confirmed;
    let mut under_way = [0, 0];
    bits.iter().for_each(|(name, bit)| under_way[*name] |= bit);
    let shard = store.engine.shard;
    let fenced = world
        .database
        .lock()
        .unwrap()
        .shards
        .get(shard)
        .is_none_or(|rows| rows.fence.unwrap().epoch != store.epoch);
    let outcomes = store.commit(&batch);
    assert_eq!(outcomes.len(), batch.len());
    let names = bits.iter().map(|(name, _)| *name).chain(0..reads);
    for (place, (outcome, name)) in outcomes.iter().zip(names).enumerate() {
        let bit = bits.get(place).map_or(0, |(_, bit)| *bit);
        match outcome {
            Outcome::Total(total) => {
                met("told");
                assert!(!fenced, "a counter tells something whose shard another one has");
                additions.judge(name, *total, confirmed[name] | bit, under_way[name]);
                additions.confirmed[name] |= bit;
            }
            Outcome::Failed => {
                met(if fenced { "fenced" } else { "failed" });
                additions.failed[name] |= bit;
            }
            Outcome::Unknown => {
                met("unknown");
                additions.unknown[name] |= bit;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn nothing_is_lost_and_nothing_counts_twice() {
    let config = ProptestConfig { cases: 2_000, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let steps = prop::collection::vec(step(), 0..40);
    runner
        .run(&steps, |steps| {
            live(steps);
            Ok(())
        })
        .unwrap();
    let met = MET.take();
    for what in ["told", "failed", "fenced", "unknown", "kept late", "refused late"] {
        assert!(met.get(what).is_some_and(|count| *count > 100), "{what}: {met:?}");
    }
}
