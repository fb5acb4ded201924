//! A start as far as it can be tried while another server may run. `serve` and `check` both call this, so they refuse
//! the same with the same message.

use super::{ServerError, access_log};
use crate::{
    config::Config,
    counter::store,
    listener::{self, BindError, inherited},
    runtime::driver::{self, Choice},
    worker::WorkerError,
};

/// Checks all that a start needs. What may pass is only a note: another server may have the addresses and the file, and
/// an address may appear with the network.
///
/// # Errors
/// When a start would fail at any time.
pub(super) fn try_start(config: &Config) -> Result<Vec<String>, ServerError> {
    let mut notes = Vec::new();
    let mut judge = |tried: Result<(), ServerError>| match tried {
        Err(error) if may_pass(&error) => {
            notes.push(format!("a start would fail now: {error}"));
            Ok(())
        }
        result => result,
    };
    // With sockets from the service manager, nothing listens on `listen`.
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
    if let Some(log) = &config.access_log {
        judge(access_log::probe(&log.output).map_err(ServerError::AccessLog))?;
    }
    if let Some(kind) = &config.bundled {
        let mut dangers = Vec::new();
        let probed = store::probe(kind, config.create).map(|found| dangers = found);
        judge(probed.map_err(ServerError::Store))?;
        notes.extend(dangers.into_iter().map(|danger| format!("store: {danger}")));
    }
    Ok(notes)
}

/// Tries the driver, if the settings allow only one.
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
        ServerError::Store(error) => error.passes(),
        _ => false,
    }
}
