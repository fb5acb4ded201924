//! A queue whose first entry has its place in it. A value without I/O.

use std::collections::VecDeque;

/// Entries in the order in which they came. As long as there is only one at a time, it allocates nothing: most
/// connections carry one call.
#[derive(Debug)]
pub(super) struct Fifo<T> {
    first: Option<T>,
    /// Empty while there is no first. It keeps its room.
    #[allow(clippy::box_collection)]
    // Of most connections there is none: 8 bytes instead of 32.
    others: Option<Box<VecDeque<T>>>,
}

impl<T> Default for Fifo<T> {
    fn default() -> Self {
        Self { first: None, others: None }
    }
}

impl<T> Fifo<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub(super) fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.others.as_ref().map_or(0, |others| others.len())
    }

    pub(super) fn first(&self) -> Option<&T> {
        self.first.as_ref()
    }

    /// The entry at this place; the first is at 0.
    pub(super) fn get(&self, place: usize) -> Option<&T> {
        match place.checked_sub(1) {
            None => self.first.as_ref(),
            Some(place) => self.others.as_ref()?.get(place),
        }
    }

    /// The entries, the first one first.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.first.iter().chain(self.others.iter().flat_map(|others| others.iter()))
    }

    pub(super) fn push(&mut self, entry: T) {
        match self.first {
            None => self.first = Some(entry),
            Some(_) => self.others.get_or_insert_default().push_back(entry),
        }
    }

    /// Takes the first one out.
    pub(super) fn pop(&mut self) -> Option<T> {
        let next = self.others.as_mut().and_then(|others| others.pop_front());
        std::mem::replace(&mut self.first, next)
    }

    /// Takes the last one out.
    pub(super) fn pop_last(&mut self) -> Option<T> {
        let last = self.others.as_mut().and_then(|others| others.pop_back());
        last.or_else(|| self.first.take())
    }

    /// Takes the one at this place out.
    pub(super) fn remove(&mut self, place: usize) -> Option<T> {
        match place.checked_sub(1) {
            None => self.pop(),
            Some(place) => self.others.as_mut()?.remove(place),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_at_a_time_allocates_nothing() {
        let mut fifo = Fifo::default();
        for entry in 0..3 {
            fifo.push(entry);
            assert_eq!((fifo.len(), fifo.pop(), fifo.pop()), (1, Some(entry), None));
        }
        assert!(fifo.others.is_none() && fifo.is_empty());
    }

    proptest! {
        #[test]
        fn it_does_what_a_list_does(events in prop::collection::vec((0..7u8, 0..5usize), 0..60)) {
            let (mut fifo, mut list) = (Fifo::default(), Vec::new());
            for (number, (event, place)) in events.into_iter().enumerate() {
                let taken = |list: &mut Vec<usize>, place| {
                    (place < list.len()).then(|| list.remove(place))
                };
                match event {
                    0 => prop_assert_eq!(fifo.pop(), taken(&mut list, 0)),
                    1 => prop_assert_eq!(fifo.pop_last(), list.pop()),
                    2 => prop_assert_eq!(fifo.remove(place), taken(&mut list, place)),
                    _ => {
                        fifo.push(number);
                        list.push(number);
                    }
                }
                prop_assert_eq!(fifo.iter().copied().collect::<Vec<_>>(), list.clone());
                prop_assert_eq!((fifo.len(), fifo.is_empty()), (list.len(), list.is_empty()));
                prop_assert_eq!((fifo.get(place), fifo.first()), (list.get(place), list.first()));
            }
        }
    }
}
