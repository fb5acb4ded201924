//! `tallyring health`: asks a running server once, for container engines.

use std::time::Instant;

use crate::{
    ask::{self, AskError},
    config::HealthConfig,
};

/// Why the server is not healthy.
#[derive(Debug, thiserror::Error)]
pub enum Unhealthy {
    /// There is no answer.
    #[error("{0}")]
    Unanswered(#[from] AskError),
    /// It answers with another status than 2xx.
    #[error("it answers {0}")]
    Status(u16),
}

/// Asks once; the status of a 2xx answer.
///
/// # Errors
/// When there is no such answer in time.
pub fn ask(config: &HealthConfig) -> Result<u16, Unhealthy> {
    match ask::status(&config.target, Instant::now() + config.timeout)? {
        status @ 200..=299 => Ok(status),
        status => Err(Unhealthy::Status(status)),
    }
}
