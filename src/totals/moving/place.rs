//! One of two stores that totals are moved between: each step is tried for some time, where it fails by what may pass.

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use super::{
    super::{check_not_lower, describe},
    MoveError, sum, told,
};
use crate::counter::store::{self, Found, Hold, Kind, Mark, OpenError, QUIET, TotalsByName, Whole};

/// How long a step is tried again.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one try may take where the store answers: ten thousand names are megabytes.
const TRY_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two tries, and two looks.
const PAUSE: Duration = Duration::from_millis(250);

/// A store that is moved from or to, which is tried for some time where it fails.
pub(super) struct Place {
    pub(super) name: String,
    pub(super) store: Box<dyn Whole>,
}

impl Place {
    pub(super) fn new(kind: &Kind, makes: bool) -> Result<Self, MoveError> {
        let store = store::whole(kind, makes)?.ok_or(MoveError::Memory)?;
        Ok(Self { name: kind.to_string(), store })
    }

    pub(super) fn look(&mut self) -> Result<Found, MoveError> {
        self.insist(|store, until| store.look(until)).map(plain)
    }

    /// Looks at one that must have totals, all of them.
    pub(super) fn look_to_read(&mut self) -> Result<Found, MoveError> {
        let found = self.look()?;
        match &found.mark {
            _ if found.is_new => Err(MoveError::Nothing(self.name.clone())),
            Some(mark @ Mark::FilledFrom(_)) => {
                Err(MoveError::Marked(self.name.clone(), mark.refusal()))
            }
            _ => Ok(found),
        }
    }

    /// Checks that these totals may replace what it holds.
    pub(super) fn check_free(
        &self,
        found: &Found,
        (origin, id, new): (&str, Option<u64>, &TotalsByName),
        force: bool,
    ) -> Result<(), MoveError> {
        let name = || self.name.clone();
        match &found.mark {
            _ if force => return Ok(()),
            // What there is of it is not whole.
            Some(Mark::FilledFrom(by)) if by == origin => return Ok(()),
            // That store may be closed, and be told later that all of its totals are here.
            Some(Mark::FilledFrom(by)) => {
                let (by, origin) = (by.clone(), origin.to_owned());
                return Err(MoveError::HalfFilled { store: name(), by, origin });
            }
            Some(mark @ Mark::MovedTo { store: to, .. }) if !mark.leads_to(origin, id) => {
                return Err(MoveError::Moved(name(), to.clone()));
            }
            _ if sum(&found.totals) == 0 || found.totals == *new => return Ok(()),
            _ => {}
        }
        let remedy = "give --force to replace them all the same";
        check_not_lower((origin, new), (&self.name, &found.totals), remedy)
            .map_err(MoveError::Lower)?;
        if found.mark.is_some() {
            // They come back from there.
            return Ok(());
        }
        let (holds, new) = (describe(&found.totals), describe(new));
        Err(MoveError::NotEmpty { store: name(), holds, origin: origin.to_owned(), new })
    }

    /// Waits until it is certain that no counter runs in it, and looks at it then.
    pub(super) fn wait_until_quiet(
        &mut self,
        first: Found,
        force: bool,
        tell: impl Fn(&str),
    ) -> Result<Found, MoveError> {
        let began = Instant::now();
        let mut now = first.clone();
        let mut waits = false;
        loop {
            if !now.is_marked_as(first.mark.as_ref(), first.hold) {
                return Err(MoveError::Changed(self.name.clone()));
            }
            self.check_not_running(&now, &first)?;
            let is_quiet = |ago: Option<u64>| ago.is_some_and(|ago| ago >= QUIET.as_secs());
            let recent = now.counters.iter().find(|seen| !is_quiet(seen.ago));
            let Some(recent) = recent.filter(|_| !force && began.elapsed() < QUIET) else {
                return Ok(now);
            };
            if !waits {
                let seen = recent.ago.map_or_else(String::new, |ago| format!(" {ago} s ago"));
                let (shard, most) = (&recent.shard, QUIET.as_secs());
                tell(&format!(
                    "the counter of shard {shard} was seen{seen} in {}; waiting until it is certain that it \
                     has ended, at most {most} s",
                    self.name
                ));
                waits = true;
            }
            pause();
            now = self.look()?;
        }
    }

    /// Checks that no counter has done anything since the first look.
    fn check_not_running(&self, now: &Found, first: &Found) -> Result<(), MoveError> {
        match now.counters.iter().find(|seen| !seen.is_as_in(&first.counters)) {
            None => Ok(()),
            Some(seen) => Err(MoveError::Running(self.name.clone(), seen.shard.clone())),
        }
    }

    /// Checks that it can be closed; it is as it was.
    pub(super) fn prepare_close(&mut self, mark: &Mark) -> Result<(), MoveError> {
        self.insist(|store, until| store.prepare_close(mark, until))
    }

    /// Whether it may have been closed all the same, after this failure to close it.
    pub(super) fn may_be_closed(&mut self, mark: &Mark, error: &MoveError) -> bool {
        let is_lost = matches!(error, MoveError::Store(why) if why.passes());
        is_lost || {
            let now = self.store.look(Instant::now() + STEP_TIMEOUT);
            now.map_or(true, |now| now.mark.as_ref() == Some(mark))
        }
    }

    /// Closes it, unless its mark is another one, or a counter has done anything, since it was quiet.
    pub(super) fn close(
        &mut self,
        mark: &Mark,
        quiet: &Found,
        force: bool,
    ) -> Result<Found, MoveError> {
        let end = Instant::now() + STEP_TIMEOUT;
        let mut seen = quiet.clone();
        loop {
            match self.store.close(mark, &seen, force, Instant::now() + TRY_TIMEOUT) {
                Ok(found) => return Ok(plain(found)),
                Err(error) if error.passes() && Instant::now() + PAUSE < end => {
                    pause();
                    let now = self.look()?;
                    if !force {
                        self.check_not_running(&now, quiet)?;
                    }
                    // The try that failed may have done it.
                    if now.mark.as_ref() == Some(mark) {
                        (seen.mark, seen.hold) = (now.mark, now.hold);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    pub(super) fn fill(&mut self, hold: Hold, totals: &TotalsByName) -> Result<(), MoveError> {
        self.insist(|store, until| store.fill(hold, totals, until))
    }

    /// Checks that it holds these totals.
    pub(super) fn read_back(&mut self, totals: &TotalsByName) -> Result<(), MoveError> {
        let found = self.look()?.totals;
        if found == *totals {
            return Ok(());
        }
        let (found, expected) = (told(&found), told(totals));
        Err(MoveError::Differs { store: self.name.clone(), found, expected })
    }

    pub(super) fn open(&mut self, hold: Hold) -> Result<Option<PathBuf>, MoveError> {
        self.insist(|store, until| store.open(hold, until))
    }

    /// The number of a store that has one or can have one.
    pub(super) fn identify(&mut self, found: &Found) -> Result<Option<u64>, MoveError> {
        if found.id.is_some() {
            return Ok(found.id);
        }
        self.give_number(None)
    }

    /// In place of this one, unless another migration is quicker.
    fn give_number(&mut self, before: Option<u64>) -> Result<Option<u64>, MoveError> {
        // As large as a number of PostgreSQL.
        let id = fastrand::u64(1..1 << 63);
        self.insist(|store, until| store.identify(before, id, until))?;
        Ok(self.look()?.id)
    }

    /// Whether another one is this store, by another name. Two may have one number, as a copy and its original have: then
    /// this one gets a new one, which only it has.
    pub(super) fn is_same(
        &mut self,
        found: &Found,
        other: &mut Self,
        in_other: &Found,
    ) -> Result<bool, MoveError> {
        if found.id != in_other.id {
            return Ok(false);
        }
        let id = self.give_number(found.id)?;
        let is_same = id.is_some() && other.look()?.id == id;
        if let Some(before) = found.id.filter(|_| is_same) {
            // By which others may know it.
            self.insist(|store, until| store.identify(id, before, until))?;
        }
        Ok(is_same)
    }

    /// Does a step, and does it once more while it fails by what may pass.
    fn insist<T>(
        &mut self,
        mut step: impl FnMut(&mut dyn Whole, Instant) -> Result<T, OpenError>,
    ) -> Result<T, MoveError> {
        let end = Instant::now() + STEP_TIMEOUT;
        loop {
            match step(&mut *self.store, Instant::now() + TRY_TIMEOUT) {
                Ok(done) => return Ok(done),
                // Another process has locked it.
                Err(OpenError::InUse(path)) => return Err(MoveError::InUse(path)),
                Err(error) if error.passes() && Instant::now() + PAUSE < end => pause(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

// No worker runs in this process, so it may sleep.
#[allow(clippy::disallowed_methods)]
fn pause() {
    thread::sleep(PAUSE);
}

/// The counter without a name has no total in some stores, and 0 in others.
fn plain(found: Found) -> Found {
    Found { totals: without_nothing(found.totals), ..found }
}

pub(super) fn without_nothing(mut totals: TotalsByName) -> TotalsByName {
    totals.retain(|name, total| !name.is_empty() || *total > 0);
    totals
}
