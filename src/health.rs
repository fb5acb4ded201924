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
    #[error("{0}; --{1} says where to ask")]
    Unanswered(AskError, &'static str),
    /// It answers with another status than 2xx.
    #[error("it answers {0}{reason}", reason = quoted(.1))]
    Status(u16, Option<String>),
}

fn quoted(reason: &Option<String>) -> String {
    reason.as_ref().map_or_else(String::new, |reason| format!(", {reason:?}"))
}

/// Asks once; the status of a 2xx answer.
///
/// # Errors
/// When there is no such answer in time.
pub fn ask(config: &HealthConfig) -> Result<u16, Unhealthy> {
    let answer = ask::status_and_reason(&config.target, Instant::now() + config.timeout);
    match answer.map_err(|error| Unhealthy::Unanswered(error, config.flag))? {
        (status @ 200..=299, _) => Ok(status),
        (status, reason) => Err(Unhealthy::Status(status, reason)),
    }
}
