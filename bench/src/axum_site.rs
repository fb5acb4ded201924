//! The site on axum and reqwest, for the arms that differ only in how these are set up.

use std::{io, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
    routing::get,
    serve::ListenerExt,
};
use bytes::Bytes;
use reqwest::{Client, ClientBuilder, Url};
use tokio::net::TcpListener;

use crate::{SORRY_PAGE, WELCOME_PAGE, heavy};

/// A constant: a string would be checked and copied for each visit.
const NO_STORE: [(HeaderName, HeaderValue); 1] =
    [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];

/// In one `Arc`, so that a visit clones nothing else; the URL is parsed once.
struct Site {
    client: Client,
    counter: Url,
    heavy: Bytes,
}

impl Site {
    async fn register(&self) -> bool {
        let answer = self.client.post(self.counter.clone()).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }
}

async fn visit(State(site): State<Arc<Site>>) -> impl IntoResponse {
    (NO_STORE, if site.register().await { WELCOME_PAGE } else { SORRY_PAGE })
}

async fn heavy_visit(State(site): State<Arc<Site>>) -> Response {
    match site.register().await {
        true => (NO_STORE, site.heavy.clone()).into_response(),
        false => (NO_STORE, SORRY_PAGE).into_response(),
    }
}

/// Serves the site, which registers its visits at `counter`.
///
/// # Errors
/// When that is no URL, or the client cannot be built.
pub async fn serve(listener: TcpListener, client: ClientBuilder, counter: &str) -> io::Result<()> {
    let client = client.build().map_err(io::Error::other)?;
    let counter = counter.parse().map_err(io::Error::other)?;
    let site = Arc::new(Site { client, counter, heavy: heavy() });
    let router =
        Router::new().route("/", get(visit)).route("/heavy", get(heavy_visit)).with_state(site);
    let listener = listener.tap_io(|stream| {
        // Fails only when the connection has closed.
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, router).await
}
