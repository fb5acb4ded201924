//! What the benchmark's programs share: a bare io_uring loop, the least that this kernel lets an
//! exchange cost, and the visitors that load a server.
//!
//! Multishot accept and receive, provided buffers, static answers, and no parsing beyond looking for
//! the end of a head. Nothing here is fit to face a peer that does not come from this benchmark.

use std::{fs, path::Path};

use bytes::Bytes;

pub mod hyper_site;
pub mod load;
pub mod ring;

/// The answer of every arm to a visit, without the `Date` that a real server sends.
pub const WELCOME: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 19\r\n\
    content-type: text/plain; charset=utf-8\r\ncache-control: no-store\r\n\
    date: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\nWelcome to my site!";

/// The call that registers a visit.
pub const REGISTER: &[u8] =
    b"POST /counter HTTP/1.1\r\ncontent-length: 0\r\nhost: 127.0.0.1\r\nuser-agent: floor\r\n\r\n";

/// The counter's answer.
pub const COUNTED: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n1\n";

/// The size of the page at `/heavy`, in bytes: a visit that keeps its thread busy.
pub const HEAVY_BYTES: usize = 4 * 1024 * 1024;

/// The page at `/heavy`.
pub fn heavy() -> Bytes {
    vec![b'x'; HEAVY_BYTES].into()
}

/// The CPU time of a thread, by its directory below `/proc`: the first figure of its schedstat file, in
/// nanoseconds. 0 once it has ended.
pub fn cpu_nanoseconds(thread: &Path) -> f64 {
    let schedstat = fs::read_to_string(thread.join("schedstat")).unwrap_or_default();
    schedstat.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0.0)
}

/// How many heads end in `bytes`. The clients of this benchmark send each head in one segment.
pub fn heads(bytes: &[u8]) -> usize {
    bytes.windows(4).filter(|window| *window == b"\r\n\r\n").count()
}
