//! The usual way to write the same program: axum and one shared reqwest client on tokio's
//! work-stealing scheduler. `axum ADDRESS COUNTER-URL`

use std::{env, io};

use axum::{
    Router, extract::State, http::header, response::IntoResponse, routing::get, serve::ListenerExt,
};
use bytes::Bytes;
use reqwest::Client;

#[derive(Clone)]
struct Site {
    client: Client,
    counter: String,
    heavy: Bytes,
}

async fn visit(State(site): State<Site>) -> impl IntoResponse {
    let registered = site.client.post(&site.counter).send().await;
    let registered = registered.and_then(reqwest::Response::error_for_status).is_ok();
    let page = if registered { "Welcome to my site!" } else { "Error registering your visit" };
    ([(header::CACHE_CONTROL, "no-store")], page)
}

async fn heavy_visit(State(site): State<Site>) -> impl IntoResponse {
    let registered = site.client.post(&site.counter).send().await;
    match registered.and_then(reqwest::Response::error_for_status) {
        Ok(_) => site.heavy.into_response(),
        Err(_) => "Error registering your visit".into_response(),
    }
}

#[tokio::main]
async fn main() -> io::Result<()> {
    let mut arguments = env::args().skip(1);
    let mut argument = |default: &str| arguments.next().unwrap_or_else(|| default.to_owned());
    let address = argument("127.0.0.1:3000");
    let counter = argument("http://127.0.0.1:3001/counter");
    let client = Client::builder().tcp_nodelay(true).build().map_err(io::Error::other)?;
    let listener = tokio::net::TcpListener::bind(address).await?.tap_io(|stream| {
        // A connection that is gone already needs no option.
        let _ = stream.set_nodelay(true);
    });
    let site = Site { client, counter, heavy: tallyring_bench::heavy() };
    let router =
        Router::new().route("/", get(visit)).route("/heavy", get(heavy_visit)).with_state(site);
    axum::serve(listener, router).await
}
