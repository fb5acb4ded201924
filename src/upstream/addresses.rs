//! The addresses that the counter has, and which of them to dial first. A value without I/O.

use std::net::SocketAddr;

/// The counter's addresses, and which of them to try first.
#[derive(Debug)]
pub(super) struct Addresses {
    addresses: Vec<SocketAddr>,
    preferred: usize,
}

impl Addresses {
    pub(super) fn new(addresses: Vec<SocketAddr>) -> Self {
        Self { addresses, preferred: 0 }
    }

    /// Takes other addresses, and keeps the preferred one if it is still among them.
    pub(super) fn replace(&mut self, addresses: Vec<SocketAddr>) {
        let preferred = self.addresses.get(self.preferred);
        let place = addresses.iter().position(|address| Some(address) == preferred);
        *self = Self { addresses, preferred: place.unwrap_or(0) };
    }

    pub(super) fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    /// Whether this is one of them.
    pub(super) fn contains(&self, address: SocketAddr) -> bool {
        self.addresses.contains(&address)
    }

    /// Whether there is one that is not among `tried`.
    pub(super) fn has_others_than(&self, tried: &[SocketAddr]) -> bool {
        self.addresses.iter().any(|address| !tried.contains(address))
    }

    /// All of them, in the order in which to try them.
    pub(super) fn in_order(&self) -> Vec<SocketAddr> {
        let (before, from) = self.addresses.split_at(self.preferred.min(self.addresses.len()));
        [from, before].concat()
    }

    /// This one answered.
    pub(super) fn prefer(&mut self, address: SocketAddr) {
        if let Some(place) = self.addresses.iter().position(|known| *known == address) {
            self.preferred = place;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_that_answered_is_tried_first() {
        let [a, b, c] = ["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"].map(|a| a.parse().unwrap());
        let mut addresses = Addresses::new(vec![a, b]);
        assert_eq!(addresses.in_order(), [a, b]);
        addresses.prefer(b);
        assert_eq!(addresses.in_order(), [b, a]);
        addresses.replace(vec![a, c, b]);
        assert_eq!(addresses.in_order(), [b, a, c]);
        assert!(addresses.contains(c) && !addresses.has_others_than(&[a, b, c]));
        addresses.replace(vec![c]);
        assert_eq!(addresses.in_order(), [c]);
        assert!(!addresses.contains(a) && addresses.has_others_than(&[a, b]));
        addresses.replace(vec![]);
        assert_eq!(addresses.in_order(), []);
    }
}
