//! Deadlines of many entries: each waits in one of a few queues, and each queue has one time-out.
//!
//! All entries of one queue wait equally long, so each queue is in the order of its deadlines and its first entry is
//! the one that expires next. To arm, disarm and expire takes constant time. Knows nothing of what is waited for.

use std::time::Duration;

use enum_map::{EnumArray, EnumMap};
use slotmap::{DefaultKey, SlotMap};

use crate::runtime::clock::Moment;

/// Names an entry. A key is never used again for another one.
pub type Key = DefaultKey;

/// Entries of type `T`, each in one of the queues that `Q` names, or in none.
pub struct Deadlines<T, Q: EnumArray<Queue> + Copy> {
    entries: SlotMap<Key, Entry<T, Q>>,
    queues: EnumMap<Q, Queue>,
}

/// The entries that wait equally long, the first armed first.
#[derive(Debug)]
pub struct Queue {
    timeout: Duration,
    first: Option<Key>,
    last: Option<Key>,
}

struct Entry<T, Q> {
    value: T,
    /// The queue it waits in and since when.
    armed: Option<(Q, Moment)>,
    previous: Option<Key>,
    next: Option<Key>,
}

impl<T, Q: EnumArray<Queue> + Copy> Deadlines<T, Q> {
    /// No entries, and queues with these time-outs.
    pub fn new(timeout: impl Fn(Q) -> Duration) -> Self {
        let queue = |queue| Queue { timeout: timeout(queue), first: None, last: None };
        Self { entries: SlotMap::new(), queues: EnumMap::from_fn(queue) }
    }

    /// Sets the time-out of `queue`, also for entries that wait already: they stay in the order of their deadlines.
    pub fn set_timeout(&mut self, queue: Q, timeout: Duration) {
        self.queues[queue].timeout = timeout;
    }

    /// Adds an entry that waits in no queue.
    pub fn insert(&mut self, value: T) -> Key {
        self.entries.insert(Entry { value, armed: None, previous: None, next: None })
    }

    /// The entry's value; `None` once it was removed.
    pub fn get(&self, key: Key) -> Option<&T> {
        self.entries.get(key).map(|entry| &entry.value)
    }

    /// The entry's value; `None` once it was removed.
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        self.entries.get_mut(key).map(|entry| &mut entry.value)
    }

    /// The values of all entries.
    #[cfg(test)]
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.entries.values().map(|entry| &entry.value)
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Takes an entry out.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        self.disarm(key);
        self.entries.remove(key).map(|entry| entry.value)
    }

    /// The queue in which an entry waits.
    pub fn queue_of(&self, key: Key) -> Option<Q> {
        self.entries.get(key)?.armed.map(|(queue, _)| queue)
    }

    /// Lets an entry wait at the end of `queue`, from `now` on.
    pub fn arm(&mut self, key: Key, queue: Q, now: Moment) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        if entry.armed.is_some() {
            self.disarm(key);
            return self.arm(key, queue, now);
        }
        let ends = &mut self.queues[queue];
        entry.armed = Some((queue, now));
        entry.previous = ends.last.replace(key);
        match entry.previous {
            Some(previous) => self.entries[previous].next = Some(key),
            None => ends.first = Some(key),
        }
    }

    /// Lets an entry wait in `queue` as if it had since `since`: behind those that have waited as long. Takes constant
    /// time where entries come nearly in the order of these moments.
    pub fn arm_since(&mut self, key: Key, queue: Q, since: Moment) {
        let began = |entry: &Entry<T, Q>| entry.armed.is_some_and(|(_, other)| other > since);
        self.disarm(key);
        let mut next = None;
        let mut previous = self.queues[queue].last;
        while let Some(before) = previous
            && began(&self.entries[before])
        {
            next = Some(before);
            previous = self.entries[before].previous;
        }
        let Some(next) = next else { return self.arm(key, queue, since) };
        let Some(entry) = self.entries.get_mut(key) else { return };
        (entry.armed, entry.previous, entry.next) = (Some((queue, since)), previous, Some(next));
        self.entries[next].previous = Some(key);
        match previous {
            Some(previous) => self.entries[previous].next = Some(key),
            None => self.queues[queue].first = Some(key),
        }
    }

    /// Takes an entry out of its queue.
    pub fn disarm(&mut self, key: Key) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let Some((queue, _)) = entry.armed.take() else { return };
        let (previous, next) = (entry.previous.take(), entry.next.take());
        let ends = &mut self.queues[queue];
        match previous {
            Some(previous) => self.entries[previous].next = next,
            None => ends.first = next,
        }
        match next {
            Some(next) => self.entries[next].previous = previous,
            None => ends.last = previous,
        }
    }

    /// The entry that has waited longest in `queue`.
    pub fn first(&self, queue: Q) -> Option<Key> {
        self.queues[queue].first
    }

    /// The entry that has waited longest in `queue`, what part of its time-out it has used at `now` (1 is
    /// all of it), and for how long it has waited.
    pub fn oldest(&self, queue: Q, now: Moment) -> Option<(Key, f64, Duration)> {
        let Queue { timeout, first, .. } = self.queues[queue];
        let key = first?;
        let (_, since) = self.entries[key].armed?;
        let waited = now.since(since);
        Some((key, waited.as_secs_f64() / timeout.as_secs_f64(), waited))
    }

    /// Takes an entry whose deadline has passed out of its queue.
    pub fn pop_expired(&mut self, now: Moment) -> Option<(Q, Key)> {
        let expired = self.queues.values().find_map(|queue| {
            let key = queue.first?;
            let (name, since) = self.entries[key].armed?;
            (since.after(queue.timeout) <= now).then_some((name, key))
        })?;
        self.disarm(expired.1);
        Some(expired)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use Timeout::{Long as LONG, Short as SHORT};

    #[derive(Debug, Clone, Copy, PartialEq, Eq, enum_map::Enum)]
    enum Timeout {
        Short,
        Long,
    }

    fn at(milliseconds: u64) -> Moment {
        Moment::after(start(), Duration::from_millis(milliseconds))
    }

    /// Any fixed moment will do, so long as it is the same one in a test.
    fn start() -> Moment {
        static START: std::sync::OnceLock<Moment> = std::sync::OnceLock::new();
        *START.get_or_init(crate::runtime::clock::now)
    }

    fn deadlines() -> Deadlines<&'static str, Timeout> {
        Deadlines::new(|timeout| match timeout {
            SHORT => Duration::from_millis(10),
            LONG => Duration::from_millis(100),
        })
    }

    fn expired(deadlines: &mut Deadlines<&'static str, Timeout>, now: Moment) -> Vec<&'static str> {
        std::iter::from_fn(|| {
            let (_, key) = deadlines.pop_expired(now)?;
            deadlines.get(key).copied()
        })
        .collect()
    }

    #[test]
    fn entries_expire_in_their_order_and_not_before() {
        let mut deadlines = deadlines();
        let [a, b, c] = ["a", "b", "c"].map(|value| deadlines.insert(value));
        deadlines.arm(a, LONG, at(0));
        deadlines.arm(b, SHORT, at(1));
        deadlines.arm(c, SHORT, at(2));
        assert_eq!(expired(&mut deadlines, at(10)), [""; 0]);
        assert_eq!(expired(&mut deadlines, at(11)), ["b"]);
        assert_eq!(expired(&mut deadlines, at(99)), ["c"]);
        assert_eq!(expired(&mut deadlines, at(100)), ["a"]);
        assert_eq!(deadlines.len(), 3);
    }

    #[test]
    fn an_entry_that_is_armed_again_goes_to_the_end() {
        let mut deadlines = deadlines();
        let [a, b, c] = ["a", "b", "c"].map(|value| deadlines.insert(value));
        for key in [a, b, c] {
            deadlines.arm(key, SHORT, at(0));
        }
        deadlines.arm(a, SHORT, at(5));
        deadlines.disarm(b);
        assert_eq!(deadlines.first(SHORT), Some(c));
        assert_eq!(expired(&mut deadlines, at(1000)), ["c", "a"]);
        assert_eq!(deadlines.queue_of(a), None);
    }

    #[test]
    fn an_entry_that_has_waited_before_goes_behind_those_that_have_waited_as_long() {
        // Each with the moment since which it waits.
        for order in [[0, 5, 10, 15], [15, 10, 5, 0], [10, 0, 15, 5], [5, 15, 0, 10]] {
            let mut deadlines = deadlines();
            let names = ["a", "b", "c", "d"];
            for since in order {
                let key = deadlines.insert(names[usize::try_from(since / 5).unwrap()]);
                deadlines.arm_since(key, LONG, at(since));
            }
            let late = deadlines.insert("b2");
            // It leaves where it was.
            deadlines.arm(late, SHORT, at(0));
            deadlines.arm_since(late, LONG, at(5));
            assert_eq!(expired(&mut deadlines, at(104)), ["a"], "{order:?}");
            assert_eq!(expired(&mut deadlines, at(200)), ["b", "b2", "c", "d"], "{order:?}");
        }
    }

    #[test]
    fn the_oldest_of_a_queue_has_used_part_of_its_time_out() {
        let mut deadlines = deadlines();
        let [a, b] = ["a", "b"].map(|value| deadlines.insert(value));
        assert_eq!(deadlines.oldest(LONG, at(0)), None);
        deadlines.arm(a, LONG, at(0));
        deadlines.arm(b, LONG, at(10));
        assert_eq!(deadlines.oldest(LONG, at(50)), Some((a, 0.5, Duration::from_millis(50))));
        deadlines.disarm(a);
        assert_eq!(deadlines.oldest(LONG, at(35)), Some((b, 0.25, Duration::from_millis(25))));
    }

    #[test]
    fn a_new_time_out_holds_for_those_that_wait() {
        let mut deadlines = deadlines();
        let [a, b, c] = ["a", "b", "c"].map(|value| deadlines.insert(value));
        deadlines.arm(a, LONG, at(0));
        deadlines.arm(b, LONG, at(10));
        deadlines.set_timeout(LONG, Duration::from_millis(20));
        deadlines.arm(c, LONG, at(15));
        assert_eq!(expired(&mut deadlines, at(19)), [""; 0]);
        assert_eq!(expired(&mut deadlines, at(30)), ["a", "b"]);
        deadlines.set_timeout(LONG, Duration::from_millis(200));
        assert_eq!(expired(&mut deadlines, at(214)), [""; 0]);
        assert_eq!(expired(&mut deadlines, at(215)), ["c"]);
    }

    #[test]
    fn a_removed_entry_is_gone_and_its_key_is_not_used_again() {
        let mut deadlines = deadlines();
        let a = deadlines.insert("a");
        deadlines.arm(a, SHORT, at(0));
        assert_eq!(deadlines.remove(a), Some("a"));
        let b = deadlines.insert("b");
        deadlines.arm(a, SHORT, at(0));
        assert_eq!(deadlines.get(a), None);
        assert_eq!(deadlines.get(b), Some(&"b"));
        assert_eq!(expired(&mut deadlines, at(1000)), [""; 0]);
    }
}
