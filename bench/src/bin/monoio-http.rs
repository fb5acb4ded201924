//! The same program with monoio-http's own decoder and encoder, as one would first write it with these packages: one
//! pinned monoio runtime for each core, with tallyring's ring flags. It separates the cost of the codec from that of
//! the runtime. `monoio-http ADDRESS COUNTER-URL`
//!
//! These decoders have no limits and misread some malformed messages; they are used for the benchmark's load only.

use std::{cell::RefCell, io, net::SocketAddr, rc::Rc, thread};

use bytes::Bytes;
use http::{
    HeaderValue, Method, StatusCode, Uri,
    header::{CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST},
};
use io_uring_of_monoio::IoUring;
use monoio::{
    IoUringDriver, RuntimeBuilder,
    io::{OwnedReadHalf, OwnedWriteHalf, Splitable, sink::SinkExt, stream::Stream},
    net::{ListenerOpts, TcpListener, TcpStream},
};
use monoio_http::{
    common::{error::HttpError, request::Request, response::Response},
    h1::{
        codec::{
            ServerCodec,
            decoder::{FillPayload, ResponseDecoder},
            encoder::GenericEncoder,
        },
        payload::{FixedPayload, Payload},
    },
};
use tallyring_bench::{SORRY_PAGE, WELCOME_PAGE, arguments, heavy};

/// As in tallyring, so that only the code around the runtime differs.
const ENTRIES: u32 = 4096;

/// A connection to the counter.
struct Link {
    sender: GenericEncoder<OwnedWriteHalf<TcpStream>>,
    receiver: ResponseDecoder<OwnedReadHalf<TcpStream>>,
}

/// What one core serves.
struct Site {
    counter: SocketAddr,
    uri: Uri,
    host: HeaderValue,
    idle: RefCell<Vec<Link>>,
    heavy: Bytes,
}

impl Site {
    fn new(counter: &str) -> io::Result<Self> {
        let counter: Uri = counter.parse().map_err(io::Error::other)?;
        let authority = counter.authority().map(|authority| authority.as_str()).unwrap_or_default();
        Ok(Self {
            counter: authority.parse().map_err(io::Error::other)?,
            host: HeaderValue::from_str(authority).map_err(io::Error::other)?,
            uri: counter,
            idle: RefCell::default(),
            heavy: heavy(),
        })
    }

    /// Serves one client to the end of its connection.
    async fn serve(&self, stream: TcpStream) -> Result<(), HttpError> {
        stream.set_nodelay(true)?;
        let mut codec = ServerCodec::new(stream);
        while let Some(request) = codec.next().await {
            let request = request?;
            let is_last = request.headers().get(CONNECTION).is_some_and(|value| value == "close");
            let response = self.answer(request).await;
            codec.send_and_flush(response).await?;
            if is_last {
                break;
            }
        }
        Ok(())
    }

    async fn answer(&self, request: Request) -> Response {
        let page = match request.uri().path() {
            "/" => Bytes::from_static(WELCOME_PAGE.as_bytes()),
            "/heavy" => self.heavy.clone(),
            _ => {
                let mut response = Response::new(Payload::None);
                *response.status_mut() = StatusCode::NOT_FOUND;
                return response;
            }
        };
        let page = match self.register().await {
            Ok(true) => page,
            _ => Bytes::from_static(SORRY_PAGE.as_bytes()),
        };
        let mut response = Response::new(Payload::Fixed(FixedPayload::new(page)));
        let fields = response.headers_mut();
        fields.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }

    async fn register(&self) -> Result<bool, HttpError> {
        let idle = self.idle.borrow_mut().pop();
        let mut link = match idle {
            Some(link) => link,
            None => self.connect().await?,
        };
        let mut call: Request = Request::new(Payload::None);
        *call.method_mut() = Method::POST;
        *call.uri_mut() = self.uri.clone();
        let fields = call.headers_mut();
        fields.insert(HOST, self.host.clone());
        fields.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        link.sender.send_and_flush(call).await?;
        let answer = link.receiver.next().await;
        let answer = answer.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))??;
        // Only a connection whose answer was read to the end is used again.
        link.receiver.fill_payload().await?;
        self.idle.borrow_mut().push(link);
        Ok(answer.status().is_success())
    }

    async fn connect(&self) -> io::Result<Link> {
        let stream = TcpStream::connect_addr(self.counter).await?;
        stream.set_nodelay(true)?;
        let (receiver, sender) = stream.into_split();
        Ok(Link { sender: GenericEncoder::new(sender), receiver: ResponseDecoder::new(receiver) })
    }
}

fn main() -> io::Result<()> {
    let [address, counter] = arguments(["127.0.0.1:3000", "http://127.0.0.1:3001/counter"]);
    let address: SocketAddr = address.parse().map_err(io::Error::other)?;
    // If a worker fails, the process ends: its listener would keep accepting connections that are not served.
    thread::scope(|scope| {
        for core in core_affinity::get_core_ids().unwrap_or_default() {
            let counter = &counter;
            scope.spawn(move || {
                core_affinity::set_for_current(core);
                if let Err(error) = work(address, counter) {
                    eprintln!("monoio-http: {error}");
                    std::process::exit(1);
                }
            });
        }
    });
    Ok(())
}

fn work(address: SocketAddr, counter: &str) -> io::Result<()> {
    let mut ring = IoUring::builder();
    ring.setup_cqsize(ENTRIES * 4).setup_coop_taskrun().setup_single_issuer();
    let mut runtime =
        RuntimeBuilder::<IoUringDriver>::new().uring_builder(ring).with_entries(ENTRIES).build()?;
    runtime.block_on(async {
        let site = Rc::new(Site::new(counter)?);
        let listener = TcpListener::bind_with_config(address, &ListenerOpts::new().backlog(4096))?;
        loop {
            let (stream, _) = listener.accept().await?;
            let site = Rc::clone(&site);
            // An error is the client's end of the connection.
            monoio::spawn(async move { site.serve(stream).await });
        }
    })
}
