//! hyper and hyper-util's client on tokio's work-stealing scheduler. `hyper ADDRESS COUNTER-URL`

use std::io;

use tallyring_bench::{arguments, hyper_site::Site};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> io::Result<()> {
    let [address, counter] = arguments(["127.0.0.1:3000", "http://127.0.0.1:3001/counter"]);
    Site::new(&counter)?.listen(TcpListener::bind(address).await?).await
}
