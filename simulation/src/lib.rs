//! The code of tallyring in a simulated world.
//!
//! The modules of the product are included as they are. What they say to `monoio`, `nix` and `rustix` reaches
//! `tallyring-world` instead, and five edges are replaced (`edge/`): where connections are accepted, the mailbox, the
//! choice of a driver, the log, and the end of the process. A [`plan`] is drawn from a seed, a [`history`] is a plan
//! that is lived through and checked, and [`search`] looks for one that fails.

// The product's unit tests are in its files: they run with the product, not here.
#![cfg(not(test))]
#![deny(unsafe_code)]
// A wrong use of the world is a bug of the simulation, and a failure is a panic.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

extern crate tallyring_world as monoio;
extern crate tallyring_world as nix;
extern crate tallyring_world as rustix;

// The product's modules are here whole, and not all of each is used.
#[path = "../../src/access_log/mod.rs"]
#[allow(dead_code, unused_imports)]
mod access_log;
#[path = "../../src/connection/mod.rs"]
#[allow(dead_code, unused_imports)]
mod connection;
#[path = "../../src/counter/mod.rs"]
#[allow(dead_code, unused_imports)]
mod counter;
#[path = "../../src/handoff/mod.rs"]
#[allow(dead_code, unused_imports)]
mod handoff;
#[path = "../../src/http/mod.rs"]
#[allow(dead_code, unused_imports)]
mod http;
#[path = "edge/listener.rs"]
mod listener;
#[path = "edge/log.rs"]
mod log;
#[path = "../../src/metrics/mod.rs"]
#[allow(dead_code, unused_imports)]
mod metrics;
#[path = "../../src/plural.rs"]
#[allow(dead_code, unused_imports)]
mod plural;
#[path = "../../src/proxy_protocol/mod.rs"]
mod proxy_protocol;
mod runtime;
#[path = "../../src/site/mod.rs"]
#[allow(dead_code, unused_imports)]
mod site;
#[path = "../../src/upstream/mod.rs"]
#[allow(dead_code, unused_imports)]
mod upstream;
#[path = "../../src/worker.rs"]
#[allow(dead_code, unused_imports)]
mod worker;

mod answers;
mod bundled;
mod client;
mod foreign;
pub mod history;
mod logged;
mod memory;
mod names;
mod opening;
pub mod plan;
mod record;
mod request;
pub mod search;
mod server;
mod trace;
