//! The program as one first writes it: axum, and a new client for each visit.
//! `seed ADDRESS COUNTER-URL`

use std::io;

use axum::{Router, extract::State, routing::get};
use reqwest::Client;
use tallyring_bench::arguments;

async fn visit(State(counter): State<String>) -> &'static str {
    let registered = Client::new().post(&counter).send().await;
    match registered.and_then(reqwest::Response::error_for_status) {
        Ok(_) => "Welcome to my site!",
        Err(_) => "Error registering your visit",
    }
}

#[tokio::main]
async fn main() -> io::Result<()> {
    let [address, counter] = arguments(["127.0.0.1:3000", "http://127.0.0.1:3001/counter"]);
    let listener = tokio::net::TcpListener::bind(address).await?;
    axum::serve(listener, Router::new().route("/", get(visit)).with_state(counter)).await
}
