//! tallyring's architecture on tokio: one pinned single-threaded runtime for each core, each with its own
//! `SO_REUSEPORT` listener.

use std::{io, process, thread};

use tokio::net::TcpListener;

use crate::ring;

/// Serves on each core. If a runtime fails, the process ends: its listener would keep accepting connections that are
/// not served.
///
/// # Errors
/// When it cannot listen on the address.
pub fn serve(
    address: &str,
    serve: impl AsyncFn(TcpListener) -> io::Result<()> + Sync,
) -> io::Result<()> {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let listeners = cores.iter().map(|_| ring::listen(address)).collect::<io::Result<Vec<_>>>()?;
    thread::scope(|scope| {
        for (core, listener) in cores.into_iter().zip(listeners) {
            let serve = &serve;
            scope.spawn(move || {
                core_affinity::set_for_current(core);
                if let Err(error) = work(listener, serve) {
                    eprintln!("core {}: {error}", core.id);
                    process::exit(1);
                }
            });
        }
    });
    Ok(())
}

fn work(
    listener: std::net::TcpListener,
    serve: &impl AsyncFn(TcpListener) -> io::Result<()>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    listener.set_nonblocking(true)?;
    runtime.block_on(async { serve(TcpListener::from_std(listener)?).await })
}
