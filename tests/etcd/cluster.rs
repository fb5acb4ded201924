//! Three members, of which one is killed, stopped or cut off.

use std::{thread, time::Instant};

use crate::{
    PREFIX,
    common::{PATIENCE, Server, Signal},
    counter,
    load::Load,
    member::{Member, Network, prepare, program, url},
};

struct Cluster {
    members: Vec<Member>,
    network: Network,
}

impl Cluster {
    fn start(test: &str) -> Option<Self> {
        let program = program(test)?;
        let network = Network::default();
        let mut members = prepare(&program, 3, &[], |address| network.join(address));
        members.iter_mut().for_each(Member::start);
        members.iter().for_each(Member::wait_until_writable);
        network.learn(&members);
        Some(Self { members, network })
    }

    /// The place of the leader.
    fn leader(&self) -> usize {
        let leads = |member: &Member| member.standing().is_some_and(|(leads, _)| leads);
        let began = Instant::now();
        loop {
            if let Some(place) = self.members.iter().position(leads) {
                return place;
            }
            assert!(began.elapsed() < PATIENCE, "nobody leads");
            thread::yield_now();
        }
    }

    fn counter(&self) -> Server {
        counter(&url(&self.members, PREFIX), "a")
    }

    /// Waits until a member other than this one takes a write.
    fn wait_for_others(&self, gone: usize) {
        self.members[(gone + 1) % 3].wait_until_writable();
    }

    /// All members hold the same in the end, which is what was confirmed.
    fn check(&self, load: Load) {
        let books = load.stop();
        assert!(books.confirmed > 0);
        self.members.iter().for_each(|member| books.check(member.total(PREFIX)));
    }
}

#[test]
fn a_leader_that_is_killed_loses_nothing() {
    let Some(mut cluster) = Cluster::start("a_leader_that_is_killed_loses_nothing") else { return };
    let server = cluster.counter();
    let load = Load::start(server.address);
    for _ in 0..3 {
        load.wait_for_more();
        let leader = cluster.leader();
        cluster.members[leader].kill();
        cluster.wait_for_others(leader);
        load.wait_until_back();
        cluster.members[leader].start();
        cluster.members[leader].wait_until_writable();
    }
    cluster.check(load);
}

#[test]
fn a_member_that_is_stopped_is_left() {
    let Some(cluster) = Cluster::start("a_member_that_is_stopped_is_left") else { return };
    let server = cluster.counter();
    let load = Load::start(server.address);
    // Among them the one that the counter talks to, and the leader.
    for place in 0..3 {
        load.wait_for_more();
        cluster.members[place].signal(Signal::STOP);
        cluster.wait_for_others(place);
        load.wait_until_back();
        cluster.members[place].signal(Signal::CONT);
        cluster.members[place].wait_until_writable();
    }
    cluster.check(load);
}

#[test]
fn a_member_that_is_cut_off_is_left() {
    let Some(cluster) = Cluster::start("a_member_that_is_cut_off_is_left") else { return };
    let server = cluster.counter();
    let load = Load::start(server.address);
    // Its clients reach it, and it reaches nobody: first the leader, and then each one.
    let leader = cluster.leader();
    for place in [leader, 0, 1, 2] {
        load.wait_for_more();
        let (_, member) = cluster.members[place].standing().unwrap();
        cluster.network.cut_off(member);
        cluster.wait_for_others(place);
        load.wait_until_back();
        cluster.network.join_again(member);
        cluster.members[place].wait_until_writable();
    }
    cluster.check(load);
}

#[test]
fn without_a_majority_nothing_is_welcomed() {
    let Some(mut cluster) = Cluster::start("without_a_majority_nothing_is_welcomed") else {
        return;
    };
    let server = cluster.counter();
    let load = Load::start(server.address);
    load.wait_for_more();
    cluster.members[0].kill();
    cluster.members[1].kill();
    load.wait_for_failure();
    let line = server.wait_for_line("nothing is counted");
    assert!(line.contains("the counter's store etcd://"), "{line}");
    cluster.members[0].start();
    cluster.members[2].wait_until_writable();
    load.wait_until_back();
    cluster.members[1].start();
    cluster.members[1].wait_until_writable();
    cluster.check(load);
}
