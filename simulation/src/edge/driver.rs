//! In place of the choice of a driver: the world has one.

use std::{convert::Infallible, fmt, future::Future};

use crate::metrics::DriverInfo;

/// Which driver the operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The world's.
    Auto,
}

/// What a runtime was built on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Driver;

impl Driver {
    /// Never asked in a history, where no thread builds a runtime.
    pub fn info(&self) -> DriverInfo {
        DriverInfo { name: "simulated", flags: "", description: String::new(), ring: None }
    }
}

/// It is always there.
pub type DriverError = Infallible;

/// A worker of the world runs on the world's tasks.
pub struct Runtime;

impl Runtime {
    /// It has no ring.
    pub const fn ring(&self) -> Option<i32> {
        None
    }

    /// Is never called.
    pub fn block_on<F: Future>(&mut self, _: F) -> F::Output {
        unreachable!("a history starts a worker as a task")
    }
}

/// What runs a worker that has a thread.
///
/// # Errors
/// Never.
pub fn build(_: Choice) -> Result<(Runtime, Driver), DriverError> {
    Ok((Runtime, Driver))
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("simulated")
    }
}
