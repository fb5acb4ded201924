//! The site on hyper, for the arms that differ only in the runtime.

use std::{convert::Infallible, io, sync::Arc};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    body::Incoming,
    header::{CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use tokio::net::{TcpListener, TcpStream};

use crate::{SORRY_PAGE, WELCOME_PAGE, heavy};

/// The site: a client for the counter, and its pages.
pub struct Site {
    client: Client<HttpConnector, Full<Bytes>>,
    counter: Uri,
    /// Made once: otherwise the client makes it from the URL for each call.
    host: HeaderValue,
    heavy: Bytes,
}

impl Site {
    /// A site that registers its visits at `counter`.
    ///
    /// # Errors
    /// When that is no URL.
    pub fn new(counter: &str) -> io::Result<Self> {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let counter: Uri = counter.parse().map_err(io::Error::other)?;
        let host = counter.authority().map_or("", |authority| authority.as_str());
        let mut client = Client::builder(TokioExecutor::new());
        // A call is one small buffer, so vectored writes gain nothing.
        client.set_host(false).http1_writev(false);
        Ok(Self {
            client: client.build(connector),
            host: HeaderValue::from_str(host).map_err(io::Error::other)?,
            counter,
            heavy: heavy(),
        })
    }

    /// Serves the clients of a listener.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn listen(self, listener: TcpListener) -> io::Result<()> {
        let site = Arc::new(self);
        loop {
            let (stream, _) = listener.accept().await?;
            let site = Arc::clone(&site);
            tokio::spawn(async move { site.serve(stream).await });
        }
    }

    /// Serves one client to the end of its connection.
    async fn serve(&self, stream: TcpStream) {
        // Fails only when the connection has closed.
        let _ = stream.set_nodelay(true);
        let answer = service_fn(|request| self.answer(request));
        // An error is the client's end of the connection.
        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let page = match request.uri().path() {
            "/" => Bytes::from_static(WELCOME_PAGE.as_bytes()),
            "/heavy" => self.heavy.clone(),
            _ => {
                let mut response = Response::new(Full::default());
                *response.status_mut() = StatusCode::NOT_FOUND;
                return Ok(response);
            }
        };
        let page = match self.register().await {
            true => page,
            false => Bytes::from_static(SORRY_PAGE.as_bytes()),
        };
        let mut response = Response::new(Full::new(page));
        let fields = response.headers_mut();
        fields.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(response)
    }

    async fn register(&self) -> bool {
        let mut call = Request::new(Full::default());
        *call.method_mut() = Method::POST;
        *call.uri_mut() = self.counter.clone();
        call.headers_mut().insert(HOST, self.host.clone());
        let Ok(mut answer) = self.client.request(call).await else { return false };
        let status = answer.status();
        // Only a connection whose answer was read to the end is used again.
        while let Some(part) = http_body_util::BodyExt::frame(answer.body_mut()).await {
            if part.is_err() {
                break;
            }
        }
        status.is_success()
    }
}
