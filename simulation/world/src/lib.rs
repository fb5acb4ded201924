//! A simulated machine and network: tasks, time, sockets, all drawn from a seed.
//!
//! The code of tallyring runs on it unchanged, because this crate has the names that it uses of `monoio`, `nix` and
//! `rustix`: whoever includes that code says `extern crate tallyring_world as monoio`. One thread has one world at a
//! time. Nothing here talks to a kernel, reads a clock or depends on an address, so that a seed is all that it takes
//! to repeat a history.
//!
//! [`world`] is the way in for whoever draws the history: begin, act, run.

#![forbid(unsafe_code)]
// A wrong use of the world is a bug of the history, which fails by it.
#![allow(clippy::expect_used)]

mod descriptors;
pub mod io;
mod machine;
pub mod net;
mod operation;
pub mod sys;
pub mod task;
mod tcp;
pub mod time;
pub mod utils;
pub mod world;

pub use monoio::{BufResult, buf};
pub use nix::errno;
pub use rustix::{fs, process};

pub use self::task::spawn;
