//! An io_uring thread-per-core web server that registers every visit with an upstream counter.
//!
//! The crate in reading order, each part with what it promises to the next:
//!
//! - [`cli`]: arguments in, exit status out.
//! - `health`, `totals`: questions to a running server, by the client of `ask`.
//! - `config`: flags, environment and file become one validated value, which is then only read.
//! - `server`: binds everything, starts the workers, waits for a signal, drains.
//! - `worker`: what one core owns. Workers share nothing while they serve.
//! - `driver`: what a worker waits on, io_uring or epoll.
//! - `listener`: the `SO_REUSEPORT` sockets and the accept loop.
//! - `connection`: one client. Answers leave in the order of their requests; every wait has a deadline.
//! - [`http`]: the wire format, pure. What it accepts obeys every rule; what it consumes is bounded.
//! - `site`: which requests are visits and which page each gets.
//! - `upstream`: the counter as a client sees it. A visit is sent at most once.
//! - `counter`: the bundled counter. What it answered is on disk.
//! - `observe`: metrics, the admin listener, logs. Written to by the request path, never asked.
//!
//! Imports point down this list. ARCHITECTURE.md tells the way of a visit through it.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod ask;
pub mod cli;
mod clock;
mod config;
mod connection;
mod counter;
mod counter_check;
mod deadlines;
mod doctor;
mod driver;
mod health;
mod host;
pub mod http;
mod listener;
mod liveness;
mod mailbox;
mod observe;
mod pace;
mod plural;
mod read_buffer;
mod server;
mod site;
mod task;
mod totals;
mod upstream;
mod worker;
