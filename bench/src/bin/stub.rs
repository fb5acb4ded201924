//! The counter stub, as a program. `stub ADDRESS [DELAY-MS [THREADS [ONE-IN]]]`

use std::{io, sync::Arc, thread, time::Duration};

use tallyring_bench::{
    arguments, ring,
    stub::{Books, Stub},
};

fn main() -> io::Result<()> {
    let [address, delay, threads, one_in] = arguments(["127.0.0.1:3001", "0", "1", "1"]);
    let delay = Duration::from_millis(delay.parse().map_err(io::Error::other)?);
    let threads: usize = threads.parse().map_err(io::Error::other)?;
    let one_in: u64 = one_in.parse().map_err(io::Error::other)?;
    let books = Arc::new(Books::default());
    let serve = || {
        let listener = ring::listen(&address)?;
        ring::run(Some(&listener), &mut Stub::new(Arc::clone(&books), delay, one_in))
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(serve)).collect();
        serve()?;
        others.into_iter().try_for_each(|other| other.join().unwrap_or(Ok(())))
    })
}
