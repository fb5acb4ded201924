//! The name service: where each counter is, as workers are told.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::{Rc, Weak},
    time::Duration,
};

use fastrand::Rng;
use monoio::world;

use crate::{foreign, plan::COUNTERS, server::Server};

/// The least time between two look-ups.
const PAUSE: Duration = Duration::from_secs(1);
/// A name is looked up anew after so long.
const REFRESH: Duration = Duration::from_secs(3);

/// Where the counters are.
pub struct Names {
    /// The addresses of each, a bit for each.
    places: [Cell<u8>; COUNTERS],
    /// Whether each is being looked up.
    looks: [Cell<bool>; COUNTERS],
    rng: RefCell<Rng>,
    server: RefCell<Weak<Server>>,
}

impl Names {
    /// Each counter is at the first of its addresses.
    pub fn new(seed: u64) -> Rc<Self> {
        Rc::new(Self {
            places: [const { Cell::new(1) }; COUNTERS],
            looks: [const { Cell::new(false) }; COUNTERS],
            rng: RefCell::new(Rng::with_seed(seed ^ 0xa0a0)),
            server: RefCell::default(),
        })
    }

    /// It tells the workers of this server.
    pub fn tell(&self, server: &Rc<Server>) {
        self.server.replace(Rc::downgrade(server));
    }

    /// A counter has these addresses from now on.
    pub fn moved(self: &Rc<Self>, counter: usize, places: u8) {
        self.places[counter].set(places);
        let names = Rc::clone(self);
        let delay = REFRESH.mul_f64(self.rng.borrow_mut().f64());
        world::call_after(delay, move || names.publish(counter));
    }

    /// A worker could not connect.
    pub fn refresh(self: &Rc<Self>, counter: usize) {
        if self.looks[counter].replace(true) {
            return;
        }
        let names = Rc::clone(self);
        let delay = PAUSE.mul_f64(self.rng.borrow_mut().f64());
        world::call_after(delay, move || {
            names.publish(counter);
            let again = Rc::clone(&names);
            world::call_after(PAUSE, move || again.looks[counter].set(false));
        });
    }

    fn publish(&self, counter: usize) {
        let places = foreign::places(self.places[counter].get());
        let addresses: Vec<SocketAddr> =
            places.map(|place| foreign::address(counter, place)).collect();
        if let Some(server) = self.server.borrow().upgrade() {
            server.set_addresses(counter, &addresses);
        }
    }
}
