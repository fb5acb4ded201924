//! Counters whose totals are in etcd, with real members that the tests start, kill, stop, cut off and fill.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;
#[path = "../common/mod.rs"]
mod common;
mod load;
mod member;
mod messages;
mod shards;
mod single;

use common::Server;

/// The prefix of all keys here.
const PREFIX: &str = "/site";

/// A counter with a shard of this name.
fn counter(store: &str, shard: &str) -> Server {
    Server::start(&["counter", "--store", store, "--store-shard", shard], &[])
}
