//! A start as far as it can be tried beside a server that runs: what `serve` would refuse, `check` refuses in the
//! same words, since both go through here.

use super::ServerError;
use crate::{
    config::Config,
    counter::store::{self, OpenError},
    listener::{self, BindError, inherited},
    runtime::driver::{self, Choice},
    worker::WorkerError,
};

/// Looks at all that a start needs. What is in the way of a start only now is a note: a server that runs has its
/// addresses and its file, and an address may come with the network.
///
/// # Errors
/// When a start would fail whenever it was.
pub(super) fn try_start(config: &Config) -> Result<Vec<String>, ServerError> {
    let mut notes = Vec::new();
    let mut judge = |tried: Result<(), ServerError>| match tried {
        Err(error) if may_pass(&error) => {
            notes.push(format!("a start would fail now: {error}"));
            Ok(())
        }
        result => result,
    };
    // Where sockets are handed down, nobody listens on `listen`.
    if !inherited::are_expected() {
        for &address in &config.listen {
            let tried = listener::probe(address, config.share_port);
            judge(tried.map_err(ServerError::Site))?;
        }
    }
    if let Some(address) = config.admin {
        judge(listener::probe(address, false).map_err(ServerError::Admin))?;
    }
    if let Some(address) = config.counter_listen {
        let shares = config.share_port;
        let tried = listener::probe(address, false);
        judge(tried.map_err(|error| ServerError::CounterListen { error, shares }))?;
    }
    if let Some(kind) = &config.bundled {
        judge(store::probe(kind, config.create).map_err(ServerError::Store))?;
    }
    Ok(notes)
}

/// The driver, where only one will do.
pub(super) fn try_driver(config: &Config) -> Result<(), ServerError> {
    if config.driver == Choice::IoUring {
        driver::build(config.driver).map_err(WorkerError::Driver)?;
    }
    Ok(())
}

fn may_pass(error: &ServerError) -> bool {
    match error {
        ServerError::Site(error)
        | ServerError::Admin(error)
        | ServerError::CounterListen { error, .. } => matches!(
            error,
            BindError::InUse { .. }
                | BindError::Connected { .. }
                | BindError::Bound { .. }
                | BindError::NotHere { .. }
        ),
        ServerError::Store(error) => matches!(error, OpenError::InUse(_)),
        _ => false,
    }
}
