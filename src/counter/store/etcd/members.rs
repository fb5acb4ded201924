//! Which member is asked, and how long it is waited for.

use std::{fmt, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, timeout_at},
};

use super::{
    session::{Deadlines, Session, Unusable},
    url::ClusterUrl,
};
use crate::counter::store::sharded::Trouble;

/// How long a call may take while members answer. A commit that comes late is refused, so it costs little to give one
/// up too early.
const PATIENCE_MIN: Duration = Duration::from_secs(1);
/// Until etcd itself gives a call up, with its default times.
const PATIENCE_MAX: Duration = Duration::from_secs(7);

/// The members of a cluster.
pub(super) struct Members {
    cluster: ClusterUrl,
    /// The one that failed last: it may say of itself that it is well.
    left: Option<usize>,
    patience: Duration,
    /// Calls in turn that were not answered in time.
    unanswered: usize,
}

impl Members {
    pub(super) fn new(cluster: &ClusterUrl) -> Self {
        Self { cluster: cluster.clone(), left: None, patience: PATIENCE_MIN, unanswered: 0 }
    }

    /// Of calls that begin now.
    pub(super) fn deadlines(&self, until: std::time::Instant) -> Deadlines {
        Deadlines { until: until.into(), patience: self.patience }
    }

    pub(super) fn note_answer(&mut self) {
        (self.patience, self.unanswered) = (PATIENCE_MIN, 0);
    }

    /// Notes that the member at a place has failed.
    pub(super) fn leave(&mut self, place: usize, was_silent: bool) {
        self.left = Some(place);
        if was_silent {
            self.note_silence();
        }
    }

    /// While each member has been asked once, a member is slow. When none answers, etcd is: the next calls may take
    /// half as long again.
    fn note_silence(&mut self) {
        self.unanswered += 1;
        if self.unanswered.is_multiple_of(self.cluster.hosts.len()) {
            self.patience = PATIENCE_MAX.min(self.patience * 3 / 2);
        }
    }

    /// Connects to all members at once, and keeps the first that can be used. The one that was left is taken only when
    /// no other is there.
    ///
    /// A silent member is waited for half as long once another one has answered that it has no leader: soon it may
    /// have.
    pub(super) async fn connect(&mut self, deadlines: Deadlines) -> Result<Session, Trouble> {
        let left = self.left.take();
        let places = self.cluster.hosts.len();
        let mut opening = JoinSet::new();
        for place in 0..places {
            let cluster = self.cluster.clone();
            opening.spawn(async move { (place, Session::open(&cluster, place, deadlines).await) });
        }
        let mut waits_until = deadlines.until;
        let mut second_choice = None;
        let mut unusable: Vec<Option<Unusable>> = (0..places).map(|_| None).collect();
        while let Ok(Some(opened)) = timeout_at(waits_until, opening.join_next()).await {
            match opened {
                Ok((place, Ok(session))) if Some(place) == left => second_choice = Some(session),
                Ok((_, Ok(session))) => return Ok(session),
                Ok((place, Err(why))) => {
                    if why.answered {
                        waits_until = waits_until.min(Instant::now() + deadlines.patience / 2);
                    }
                    unusable[place] = Some(why);
                }
                // It has panicked, which the hook has told.
                Err(_) => {}
            }
        }
        if let Some(session) = second_choice {
            return Ok(session);
        }
        Err(self.explain(unusable))
    }

    fn explain(&mut self, unusable: Vec<Option<Unusable>>) -> Trouble {
        let hosts = self.cluster.hosts.iter();
        let silent = Unusable::silent;
        let unusable: Vec<_> = unusable.into_iter().map(|why| why.unwrap_or_else(silent)).collect();
        let whys: Vec<_> = hosts
            .zip(&unusable)
            .map(|(host, unusable)| format!("{host}: {}", unusable.why))
            .collect();
        let passes = unusable.iter().any(|unusable| unusable.passes);
        if unusable.iter().any(|unusable| unusable.is_silent) {
            self.note_silence();
        }
        let why = whys.join("; ");
        if passes { Trouble::Disconnected(why) } else { Trouble::Refused(why) }
    }
}

impl fmt::Display for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cluster.fmt(f)
    }
}
