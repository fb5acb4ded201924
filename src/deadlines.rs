//! Who waits for what, and until when: entries in queues that each have one patience.
//!
//! All who wait in one queue wait equally long, so each queue is in the order of its deadlines and
//! its first entry is the one that expires next. Entering, leaving and expiring cost the same
//! whatever the number of entries. Knows nothing of what is waited for.

use std::time::Duration;

use slotmap::{DefaultKey, SlotMap};

use crate::clock::Moment;

/// Names an entry. A key is never used again for another one.
pub type Key = DefaultKey;

/// Entries of type `T`, each in one of `QUEUES` queues or in none.
#[derive(Debug)]
pub struct Deadlines<T, const QUEUES: usize> {
    entries: SlotMap<Key, Entry<T>>,
    queues: [Queue; QUEUES],
}

#[derive(Debug)]
struct Queue {
    patience: Duration,
    first: Option<Key>,
    last: Option<Key>,
}

#[derive(Debug)]
struct Entry<T> {
    value: T,
    /// The queue it waits in and since when.
    waits: Option<(u8, Moment)>,
    previous: Option<Key>,
    next: Option<Key>,
}

impl<T, const QUEUES: usize> Deadlines<T, QUEUES> {
    /// No entries, and queues with these patiences.
    pub fn new(patiences: [Duration; QUEUES]) -> Self {
        const { assert!(QUEUES <= u8::MAX as usize) };
        let queues = patiences.map(|patience| Queue { patience, first: None, last: None });
        Self { entries: SlotMap::new(), queues }
    }

    /// From now on entries of `queue` wait this long, those that wait already too.
    pub fn set_timeout(&mut self, queue: u8, timeout: Duration) {
        self.queues[usize::from(queue)].patience = timeout;
    }

    /// Adds an entry that waits in no queue.
    pub fn insert(&mut self, value: T) -> Key {
        self.entries.insert(Entry { value, waits: None, previous: None, next: None })
    }

    /// The entry's value; `None` once it was removed.
    pub fn get(&self, key: Key) -> Option<&T> {
        self.entries.get(key).map(|entry| &entry.value)
    }

    /// The entry's value; `None` once it was removed.
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        self.entries.get_mut(key).map(|entry| &mut entry.value)
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Takes an entry out.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        self.leave(key);
        self.entries.remove(key).map(|entry| entry.value)
    }

    /// The queue in which an entry waits.
    pub fn queue_of(&self, key: Key) -> Option<u8> {
        self.entries.get(key)?.waits.map(|(queue, _)| queue)
    }

    /// Lets an entry wait at the end of `queue`, from `now` on.
    pub fn wait(&mut self, key: Key, queue: u8, now: Moment) {
        self.leave(key);
        let Some(entry) = self.entries.get_mut(key) else { return };
        let ends = &mut self.queues[usize::from(queue)];
        entry.waits = Some((queue, now));
        entry.previous = ends.last.replace(key);
        match entry.previous {
            Some(previous) => self.entries[previous].next = Some(key),
            None => ends.first = Some(key),
        }
    }

    /// Takes an entry out of its queue: it waits for nothing.
    pub fn leave(&mut self, key: Key) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let Some((queue, _)) = entry.waits.take() else { return };
        let (previous, next) = (entry.previous.take(), entry.next.take());
        let ends = &mut self.queues[usize::from(queue)];
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
    pub fn first(&self, queue: u8) -> Option<Key> {
        self.queues[usize::from(queue)].first
    }

    /// The entry that has waited longest in `queue`, what part of its patience it has used at `now` (1 is
    /// all of it), and for how long it has waited.
    pub fn oldest(&self, queue: u8, now: Moment) -> Option<(Key, f64, Duration)> {
        let Queue { patience, first, .. } = self.queues[usize::from(queue)];
        let key = first?;
        let (_, since) = self.entries[key].waits?;
        let waited = now.since(since);
        Some((key, waited.as_secs_f64() / patience.as_secs_f64(), waited))
    }

    /// Takes an entry whose patience has ended out of its queue.
    pub fn pop_expired(&mut self, now: Moment) -> Option<(u8, Key)> {
        let expired = self.queues.iter().find_map(|queue| {
            let key = queue.first?;
            let (number, since) = self.entries[key].waits?;
            (since.after(queue.patience) <= now).then_some((number, key))
        })?;
        self.leave(expired.1);
        Some(expired)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: u8 = 0;
    const LONG: u8 = 1;

    fn at(milliseconds: u64) -> Moment {
        Moment::after(start(), Duration::from_millis(milliseconds))
    }

    /// Any fixed moment will do, so long as it is the same one in a test.
    fn start() -> Moment {
        static START: std::sync::OnceLock<Moment> = std::sync::OnceLock::new();
        *START.get_or_init(crate::clock::now)
    }

    fn deadlines() -> Deadlines<&'static str, 2> {
        Deadlines::new([Duration::from_millis(10), Duration::from_millis(100)])
    }

    fn expired(deadlines: &mut Deadlines<&'static str, 2>, now: Moment) -> Vec<&'static str> {
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
        deadlines.wait(a, LONG, at(0));
        deadlines.wait(b, SHORT, at(1));
        deadlines.wait(c, SHORT, at(2));
        assert_eq!(expired(&mut deadlines, at(10)), [""; 0]);
        assert_eq!(expired(&mut deadlines, at(11)), ["b"]);
        assert_eq!(expired(&mut deadlines, at(99)), ["c"]);
        assert_eq!(expired(&mut deadlines, at(100)), ["a"]);
        assert_eq!(deadlines.len(), 3);
    }

    #[test]
    fn an_entry_that_waits_anew_goes_to_the_end() {
        let mut deadlines = deadlines();
        let [a, b, c] = ["a", "b", "c"].map(|value| deadlines.insert(value));
        for key in [a, b, c] {
            deadlines.wait(key, SHORT, at(0));
        }
        deadlines.wait(a, SHORT, at(5));
        deadlines.leave(b);
        assert_eq!(deadlines.first(SHORT), Some(c));
        assert_eq!(expired(&mut deadlines, at(1000)), ["c", "a"]);
        assert_eq!(deadlines.queue_of(a), None);
    }

    #[test]
    fn the_oldest_of_a_queue_has_used_part_of_its_patience() {
        let mut deadlines = deadlines();
        let [a, b] = ["a", "b"].map(|value| deadlines.insert(value));
        assert_eq!(deadlines.oldest(LONG, at(0)), None);
        deadlines.wait(a, LONG, at(0));
        deadlines.wait(b, LONG, at(10));
        assert_eq!(deadlines.oldest(LONG, at(50)), Some((a, 0.5, Duration::from_millis(50))));
        deadlines.leave(a);
        assert_eq!(deadlines.oldest(LONG, at(35)), Some((b, 0.25, Duration::from_millis(25))));
    }

    #[test]
    fn a_new_time_out_holds_for_those_that_wait() {
        let mut deadlines = deadlines();
        let [a, b] = ["a", "b"].map(|value| deadlines.insert(value));
        deadlines.wait(a, LONG, at(0));
        deadlines.wait(b, LONG, at(10));
        deadlines.set_timeout(LONG, Duration::from_millis(50));
        assert_eq!(expired(&mut deadlines, at(49)), [""; 0]);
        assert_eq!(expired(&mut deadlines, at(50)), ["a"]);
        deadlines.set_timeout(LONG, Duration::from_millis(200));
        assert_eq!(expired(&mut deadlines, at(209)), [""; 0]);
        assert_eq!(expired(&mut deadlines, at(210)), ["b"]);
    }

    #[test]
    fn a_removed_entry_is_gone_and_its_key_is_not_used_again() {
        let mut deadlines = deadlines();
        let a = deadlines.insert("a");
        deadlines.wait(a, SHORT, at(0));
        assert_eq!(deadlines.remove(a), Some("a"));
        let b = deadlines.insert("b");
        deadlines.wait(a, SHORT, at(0));
        assert_eq!(deadlines.get(a), None);
        assert_eq!(deadlines.get(b), Some(&"b"));
        assert_eq!(expired(&mut deadlines, at(1000)), [""; 0]);
    }
}
