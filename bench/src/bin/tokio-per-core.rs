//! hyper on one pinned single-threaded tokio runtime for each core, each with its own `SO_REUSEPORT` listener and
//! client: tallyring's architecture on tokio. `tokio-per-core ADDRESS COUNTER-URL`

use std::io;

use tallyring_bench::{arguments, hyper_site::Site, per_core};

fn main() -> io::Result<()> {
    let [address, counter] = arguments(["127.0.0.1:3000", "http://127.0.0.1:3001/counter"]);
    per_core::serve(&address, async |listener| Site::new(&counter)?.listen(listener).await)
}
