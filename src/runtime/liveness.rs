//! Whether all essential parts of a worker still run: its accept loops and its deadlines. Each shows it by going
//! around its loop once after it was asked.

use std::cell::{Cell, RefCell};

use monoio::io::{CancelHandle, Canceller};

/// The parts of one worker, and what they have shown since they were asked last.
pub struct Liveness {
    /// Called when all parts have shown themselves.
    alive: Box<dyn Fn()>,
    parts: Cell<usize>,
    /// How often they were asked.
    round: Cell<u64>,
    /// Parts that have not shown themselves in this round.
    missing: Cell<usize>,
    /// Interrupts what a part waits on, so that it goes around its loop.
    canceller: RefCell<Canceller>,
}

/// The last round in which a part has shown itself.
#[derive(Debug, Default)]
pub struct Shown(u64);

impl Liveness {
    /// No parts yet. `alive` is called each time that all have shown themselves after they were asked.
    pub fn new(alive: impl Fn() + 'static) -> Self {
        Self {
            alive: Box::new(alive),
            parts: Cell::default(),
            round: Cell::default(),
            missing: Cell::default(),
            canceller: RefCell::default(),
        }
    }

    /// Adds a part. It is missing from the next round on.
    pub fn add_part(&self) -> Shown {
        self.parts.set(self.parts.get() + 1);
        Shown(self.round.get())
    }

    /// Asks all parts to show themselves.
    pub fn ask(&self) {
        self.round.set(self.round.get() + 1);
        self.missing.set(self.parts.get());
        self.interrupt();
    }

    /// Interrupts what the parts wait on.
    pub fn interrupt(&self) {
        let canceller = self.canceller.take();
        self.canceller.replace(canceller.cancel());
    }

    /// The handle for a part's next wait, a new one each time around.
    pub fn handle(&self) -> CancelHandle {
        self.canceller.borrow().handle()
    }

    /// A part is at the beginning of its loop.
    pub fn show(&self, shown: &mut Shown) {
        if shown.0 == self.round.get() {
            return;
        }
        shown.0 = self.round.get();
        self.missing.set(self.missing.get() - 1);
        if self.missing.get() == 0 {
            (self.alive)();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[test]
    fn all_parts_must_show_themselves_after_they_were_asked() {
        let rounds = Rc::new(Cell::new(0));
        let count = Rc::clone(&rounds);
        let liveness = Liveness::new(move || count.set(count.get() + 1));
        let [mut a, mut b] = [liveness.add_part(), liveness.add_part()];
        // Nobody asked.
        liveness.show(&mut a);
        liveness.show(&mut b);
        for round in 0..3 {
            liveness.ask();
            // One part goes around often, the other hangs.
            (0..3).for_each(|_| liveness.show(&mut a));
            assert_eq!(rounds.get(), round);
            liveness.show(&mut b);
            assert_eq!(rounds.get(), round + 1);
        }
        // A new round begins again with all parts.
        liveness.ask();
        liveness.show(&mut a);
        liveness.ask();
        liveness.show(&mut b);
        assert_eq!(rounds.get(), 3);
        liveness.show(&mut a);
        assert_eq!(rounds.get(), 4);
    }
}
