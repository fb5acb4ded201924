//! Which member is asked, and how long it is waited for.

use std::{
    collections::{BTreeSet, VecDeque},
    fmt,
    time::Duration,
};

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

const ONE_CLUSTER: &str = "name the members of one cluster only";

/// The members of a cluster.
pub(super) struct Members {
    cluster: ClusterUrl,
    /// Of the cluster that was used last.
    cluster_id: Option<u64>,
    /// The one that failed last: it may say of itself that it is well.
    left: Option<usize>,
    patience: Duration,
    /// Calls in turn that were not answered in time.
    unanswered: usize,
}

impl Members {
    pub(super) fn new(cluster: &ClusterUrl) -> Self {
        let (cluster, cluster_id) = (cluster.clone(), None);
        Self { cluster, cluster_id, left: None, patience: PATIENCE_MIN, unanswered: 0 }
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

    /// Connects to all members at once, and signs in to the first that can be used. The one that was left is taken only
    /// when no other is there. The first time all of them are waited for, to see that they are of one cluster.
    ///
    /// A silent member is waited for half as long once another one has answered that it has no leader: soon it may
    /// have.
    pub(super) async fn connect(&mut self, deadlines: Deadlines) -> Result<Session, Trouble> {
        let left = self.left.take();
        let places = self.cluster.hosts.len();
        let mut opening = self.open_all(deadlines);
        let mut waits_until = deadlines.until;
        let (mut usable, mut second_choice) = (VecDeque::new(), None);
        let mut unusable: Vec<Option<Unusable>> = (0..places).map(|_| None).collect();
        let mut is_first = self.cluster_id.is_none();
        loop {
            while (is_first || usable.is_empty())
                && let Ok(Some(opened)) = timeout_at(waits_until, opening.join_next()).await
            {
                // One that has panicked has told it by the hook.
                let Ok((place, opened)) = opened else { continue };
                match opened.and_then(|session| self.check_cluster(session)) {
                    Ok(session) if Some(place) == left => second_choice = Some(session),
                    Ok(session) => usable.push_back(session),
                    Err(why) => {
                        if why.answered {
                            waits_until = waits_until.min(Instant::now() + deadlines.patience / 2);
                        }
                        unusable[place] = Some(why);
                    }
                }
            }
            if is_first {
                self.check_one_cluster(&usable)?;
                is_first = false;
            }
            let Some(mut session) = usable.pop_front().or_else(|| second_choice.take()) else {
                return Err(self.explain(unusable));
            };
            match session.sign_in(&self.cluster).await {
                Ok(()) => {
                    self.cluster_id = session.cluster_id.or(self.cluster_id);
                    return Ok(session);
                }
                // What the cluster says, and not only this member.
                Err(Unusable { why, passes: false, .. }) => {
                    let host = &self.cluster.hosts[session.place];
                    return Err(Trouble::Refused(format!("{host}: {why}")));
                }
                Err(why) => unusable[session.place] = Some(why),
            }
        }
    }

    fn open_all(&self, deadlines: Deadlines) -> JoinSet<(usize, Result<Session, Unusable>)> {
        let mut opening = JoinSet::new();
        for place in 0..self.cluster.hosts.len() {
            let cluster = self.cluster.clone();
            opening.spawn(async move { (place, Session::open(&cluster, place, deadlines).await) });
        }
        opening
    }

    /// Refuses a member of another cluster than the one that was used before.
    fn check_cluster(&self, session: Session) -> Result<Session, Unusable> {
        match (self.cluster_id, session.cluster_id) {
            (Some(used), Some(found)) if used != found => Err(Unusable::lasting(format!(
                "it belongs to the etcd cluster {found:x}, and this counter counts in {used:x}: restart the \
                 counter if etcd was restored or made anew, otherwise {ONE_CLUSTER}"
            ))),
            _ => Ok(session),
        }
    }

    /// Refuses members of several clusters: which one counts would be chance.
    fn check_one_cluster(&self, usable: &VecDeque<Session>) -> Result<(), Trouble> {
        let ids: BTreeSet<_> = usable.iter().filter_map(|session| session.cluster_id).collect();
        if ids.len() < 2 {
            return Ok(());
        }
        let mut members: Vec<_> = usable.iter().collect();
        members.sort_by_key(|session| session.place);
        let of = |session: &&Session| {
            let id = session.cluster_id.map_or_else(|| "?".into(), |id| format!("{id:x}"));
            format!("{} of {id}", self.cluster.hosts[session.place])
        };
        let members = members.iter().map(of).collect::<Vec<_>>().join(", ");
        Err(Trouble::Refused(format!(
            "its members belong to several etcd clusters: {members}; {ONE_CLUSTER}"
        )))
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
