//! What an operator sees: metrics, the admin listener, logs. Written to by the request path, never
//! asked by it.

pub mod admin;
pub mod exposition;
pub mod log;
pub mod metrics;
