//! An io_uring thread-per-core web server that registers every visit with an upstream counter.
//!
//! The crate from the top down; a module uses those below it only, which `tests/layers.rs` checks:
//!
//! - [`cli`]: arguments in, exit status out.
//! - `doctor`, `health`, `top`, `totals`: commands that report on the machine, a server or a counter's file.
//! - `server`: binds everything, starts the workers, waits for signals, reloads, drains; the admin listener.
//! - `counter_check`, `ask`: one question to a running server.
//! - `config`: flags, environment and file become one validated value, which is then only read.
//! - `worker`: what one core owns. Workers share nothing while they serve.
//! - `handoff`: gives connections to workers that have less to do.
//! - `site`: which requests are visits and what each request gets.
//! - `upstream`: the counter as a client sees it. A visit is sent at most once.
//! - `counter`: the bundled counter. What it has answered is on disk.
//! - `connection`: one client. Answers leave in the order of their requests; every wait has a deadline.
//! - `access_log`: the record of each request, from its head to its line.
//! - `listener`: the `SO_REUSEPORT` sockets, and how connections are accepted from them.
//! - [`http`]: the wire format, pure. What it accepts obeys every rule; what it consumes is bounded.
//! - [`proxy_protocol`]: the header in which a load balancer names its client, pure.
//! - `runtime`: the driver, tasks, clock, deadlines, mailbox, cooperative budget, read buffers.
//! - `metrics`, `log`, `plural`: written to by all others, never read by them.
//!
//! ARCHITECTURE.md follows a visit through these modules.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod access_log;
mod ask;
pub mod cli;
mod config;
mod connection;
mod counter;
mod counter_check;
mod doctor;
mod handoff;
mod health;
pub mod http;
mod listener;
mod log;
mod metrics;
mod plural;
pub mod proxy_protocol;
mod runtime;
mod server;
mod site;
mod top;
mod totals;
mod upstream;
mod worker;
