//! hyper and hyper-util's client on tokio's work-stealing scheduler. `hyper ADDRESS COUNTER-URL`

use std::{env, io};

use tallyring_bench::hyper_site::Site;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> io::Result<()> {
    let mut arguments = env::args().skip(1);
    let mut argument = |default: &str| arguments.next().unwrap_or_else(|| default.to_owned());
    let listener = TcpListener::bind(argument("127.0.0.1:3000")).await?;
    let site = Site::new(&argument("http://127.0.0.1:3001/counter"))?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(site.clone().serve(stream));
    }
}
