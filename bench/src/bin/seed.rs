//! The program that everybody writes first: axum, and a new client for each visit.
//! `seed ADDRESS COUNTER-URL`

use std::{env, io};

use axum::{Router, extract::State, routing::get};
use reqwest::Client;

async fn visit(State(counter): State<String>) -> &'static str {
    let registered = Client::new().post(&counter).send().await;
    match registered.and_then(reqwest::Response::error_for_status) {
        Ok(_) => "Welcome to my site!",
        Err(_) => "Error registering your visit",
    }
}

#[tokio::main]
async fn main() -> io::Result<()> {
    let mut arguments = env::args().skip(1);
    let mut argument = |default: &str| arguments.next().unwrap_or_else(|| default.to_owned());
    let listener = tokio::net::TcpListener::bind(argument("127.0.0.1:3000")).await?;
    let counter = argument("http://127.0.0.1:3001/counter");
    axum::serve(listener, Router::new().route("/", get(visit)).with_state(counter)).await
}
