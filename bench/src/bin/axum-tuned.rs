//! axum and reqwest as one ships them where each microsecond counts: one pinned single-threaded runtime for each
//! core, with a listener and a client of its own, another allocator, and a client that does nothing which this
//! program does not need. `axum-tuned ADDRESS COUNTER-URL`
//!
//! What each of these gives is in the benchmark's README. The runtimes give nearly all of it.

use std::io;

use mimalloc::MiMalloc;
use reqwest::{Client, redirect, retry};
use tallyring_bench::{arguments, axum_site, per_core};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> io::Result<()> {
    let [address, counter] = arguments(["127.0.0.1:3000", "http://127.0.0.1:3001/counter"]);
    per_core::serve(&address, async |listener| {
        let client = Client::builder()
            .tcp_nodelay(true)
            .no_proxy()
            .redirect(redirect::Policy::none())
            .referer(false)
            .retry(retry::never());
        axum_site::serve(listener, client, &counter).await
    })
}
