//! The places of a name's addresses, where each of them is a counter of its own. A value without I/O.

use std::net::SocketAddr;

use super::balance::CANDIDATES_MAX;

/// A place for each address: an address keeps its place for as long as the name has it, and a new one gets a place that
/// is free.
#[derive(Debug, Default)]
pub struct Slots {
    addresses: [Option<SocketAddr>; CANDIDATES_MAX],
}

/// What other addresses of the name change.
#[derive(Debug, PartialEq, Eq)]
pub struct Changes {
    /// The places that have another address from now on, or none.
    pub slots: Vec<(usize, Option<SocketAddr>)>,
    /// How many addresses have no place.
    pub left_out: usize,
}

impl Slots {
    /// The name has these addresses from now on. Those beyond [`CANDIDATES_MAX`] get no place.
    pub fn set(&mut self, addresses: &[SocketAddr]) -> Changes {
        let before = self.addresses;
        for slot in &mut self.addresses {
            *slot = slot.filter(|address| addresses.contains(address));
        }
        let mut left_out = 0;
        for address in addresses {
            if self.addresses.contains(&Some(*address)) {
                continue;
            }
            // A place that was free before first: calls may still be under way at one that has just become free.
            let free = |place: &usize| self.addresses[*place].is_none();
            let rested = (0..CANDIDATES_MAX).find(|place| free(place) && before[*place].is_none());
            match rested.or_else(|| (0..CANDIDATES_MAX).find(free)) {
                Some(place) => self.addresses[place] = Some(*address),
                None => left_out += 1,
            }
        }
        let now = self.addresses.into_iter().enumerate();
        let slots = now.filter(|(place, address)| before[*place] != *address).collect();
        Changes { slots, left_out }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(host: usize) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, u8::try_from(host).unwrap()], 80))
    }

    #[track_caller]
    fn check(slots: &mut Slots, hosts: &[usize], expected: &[(usize, Option<usize>)], left: usize) {
        let addresses: Vec<_> = hosts.iter().map(|host| address(*host)).collect();
        let expected = expected.iter().map(|(place, host)| (*place, host.map(address))).collect();
        assert_eq!(slots.set(&addresses), Changes { slots: expected, left_out: left }, "{hosts:?}");
    }

    #[test]
    fn an_address_keeps_its_place_and_a_new_one_gets_a_free_one() {
        let mut slots = Slots::default();
        check(&mut slots, &[1, 2], &[(0, Some(1)), (1, Some(2))], 0);
        check(&mut slots, &[2, 1], &[], 0);
        // Not the place of the one that has gone.
        check(&mut slots, &[3, 2], &[(0, None), (2, Some(3))], 0);
        check(&mut slots, &[2, 4, 3], &[(0, Some(4))], 0);
        check(&mut slots, &[], &[(0, None), (1, None), (2, None)], 0);
    }

    #[test]
    fn there_are_as_many_places_as_candidates() {
        let mut slots = Slots::default();
        let all: Vec<usize> = (1..=CANDIDATES_MAX + 2).collect();
        let placed: Vec<_> = (0..CANDIDATES_MAX).map(|place| (place, Some(place + 1))).collect();
        check(&mut slots, &all, &placed, 2);
        // One that was left out gets the place of one that goes.
        let last = CANDIDATES_MAX + 2;
        check(&mut slots, &all[1..], &[(0, Some(last - 1))], 1);
    }
}
