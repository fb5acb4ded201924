//! The usual way to write the same program: axum and one shared reqwest client on tokio's
//! work-stealing scheduler. `axum ADDRESS COUNTER-URL`

use std::io;

use reqwest::Client;
use tallyring_bench::{arguments, axum_site};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> io::Result<()> {
    let [address, counter] = arguments(["127.0.0.1:3000", "http://127.0.0.1:3001/counter"]);
    let client = Client::builder().tcp_nodelay(true);
    axum_site::serve(TcpListener::bind(address).await?, client, &counter).await
}
