//! hyper on one single-threaded tokio runtime for each core, pinned, each with its own
//! `SO_REUSEPORT` listener and its own client: tallyring's architecture on tokio's I/O.
//! `tokio-per-core ADDRESS COUNTER-URL`

use std::{env, io, net::TcpListener, thread};

use tallyring_bench::{hyper_site::Site, ring};

fn main() -> io::Result<()> {
    let mut arguments = env::args().skip(1);
    let mut argument = |default: &str| arguments.next().unwrap_or_else(|| default.to_owned());
    let (address, counter) =
        (argument("127.0.0.1:3000"), argument("http://127.0.0.1:3001/counter"));
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let workers: Vec<_> = cores
        .into_iter()
        .map(|core| {
            let (listener, site) = (ring::listen(&address)?, Site::new(&counter)?);
            Ok(thread::spawn(move || {
                core_affinity::set_for_current(core);
                work(listener, &site)
            }))
        })
        .collect::<io::Result<_>>()?;
    workers.into_iter().try_for_each(|worker| worker.join().unwrap_or(Ok(())))
}

fn work(listener: TcpListener, site: &Site) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(site.clone().serve(stream));
        }
    })
}
