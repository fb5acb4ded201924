//! axum and reqwest, tuned: one pinned single-threaded runtime for each core with its own listener and client, another
//! allocator, and a client without the features that this program does not need. `axum-tuned ADDRESS COUNTER-URL`
//!
//! The benchmark's README says what each of these gains. The runtimes gain nearly all.

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
