//! What tallyring sends, encoded by monoio-http: answers to visitors, calls to the counter.
//!
//! A message is rendered once and its bytes are written many times.

use std::{
    any::Any,
    cell::RefCell,
    future::Future,
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use monoio::{
    BufResult,
    buf::{IoBuf, IoVecBuf, Slice},
    io::{
        AsyncWriteRent,
        sink::{Sink, SinkExt},
    },
};
use monoio_http::{common::body::HttpBody, h1::codec::encoder::GenericEncoder};

/// `text/plain` as every text of tallyring's own is served.
pub const TEXT_PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// A response in bytes, without what depends on the request: whether the connection stays open, and whether a `HEAD`
/// leaves out the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The status line and the fields, each with its line end, without the empty line at the end.
    pub head: Bytes,
    /// The content.
    pub body: Bytes,
}

/// Renders a response with `Content-Length`, `Date` and `fields`.
///
/// `unix_seconds` is the time of the `Date` field (RFC 9110 section 6.6.1).
pub fn response(
    status: StatusCode,
    fields: &[(HeaderName, HeaderValue)],
    body: Bytes,
    unix_seconds: u64,
) -> Rendered {
    let mut response = http::Response::new(HttpBody::Ready(Some(body.clone())));
    *response.status_mut() = status;
    let date = httpdate::fmt_http_date(
        std::time::UNIX_EPOCH + std::time::Duration::from_secs(unix_seconds),
    );
    extend(response.headers_mut(), fields);
    if let Ok(date) = HeaderValue::try_from(date) {
        response.headers_mut().insert(header::DATE, date);
    }
    let Encoded { mut bytes, passed_over } = encode(response);
    // The encoder ends the head with an empty line, and the body follows it.
    bytes.truncate(bytes.len() + passed_over - body.len() - b"\r\n".len());
    Rendered { head: bytes.into(), body }
}

/// Renders a response whose status says that it has no content, such as 304: without a length, which would describe
/// the content of another answer (RFC 9110 section 8.6).
pub fn without_content(
    status: StatusCode,
    fields: &[(HeaderName, HeaderValue)],
    unix_seconds: u64,
) -> Rendered {
    const LENGTH: &[u8] = b"content-length: 0\r\n";
    let Rendered { head, body } = response(status, fields, Bytes::new(), unix_seconds);
    // The encoder gives every response a length.
    let head = match memchr::memmem::find(&head, LENGTH) {
        Some(at) => [&head[..at], &head[at + LENGTH.len()..]].concat().into(),
        None => head,
    };
    Rendered { head, body }
}

/// The fields of a short text.
pub fn text_fields() -> Vec<(HeaderName, HeaderValue)> {
    vec![(header::CONTENT_TYPE, TEXT_PLAIN)]
}

/// Renders a request with an empty body.
pub fn request(method: Method, uri: Uri, fields: &[(HeaderName, HeaderValue)]) -> Bytes {
    let mut request = http::Request::new(HttpBody::Ready(Some(Bytes::new())));
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    extend(request.headers_mut(), fields);
    encode(request).bytes.into()
}

fn extend(headers: &mut HeaderMap, fields: &[(HeaderName, HeaderValue)]) {
    headers.extend(fields.iter().cloned());
}

/// A message as the encoder wrote it.
#[derive(Default)]
struct Encoded {
    bytes: Vec<u8>,
    /// Bytes of a body that is too large for the encoder's own buffer, which it would write as it is. They are not
    /// copied: a page of many MiB is rendered again for each second's `Date`.
    passed_over: usize,
}

fn encode<M>(message: M) -> Encoded
where
    GenericEncoder<Memory>: Sink<M>,
{
    let memory = Memory::default();
    let mut encoder = GenericEncoder::new(memory.clone());
    {
        let sent = pin!(encoder.send_and_flush(message));
        // A write to memory never waits, so the first poll is the last.
        let Poll::Ready(result) = sent.poll(&mut Context::from_waker(Waker::noop())) else {
            unreachable!("a write to memory does not wait");
        };
        assert!(result.is_ok(), "an HTTP/1.1 message with its body at hand is always encodable");
    }
    memory.0.take()
}

/// Where the encoder writes. Shared, since the encoder does not give its writer back.
#[derive(Clone, Default)]
struct Memory(Rc<RefCell<Encoded>>);

impl AsyncWriteRent for Memory {
    async fn write<T: IoBuf>(&mut self, buf: T) -> BufResult<usize, T> {
        // A generic buffer shows its bytes as a pointer only. The encoder writes two types: its own
        // buffer, and a large body.
        let any: &dyn Any = &buf;
        let mut encoded = self.0.borrow_mut();
        if let Some(own) = any.downcast_ref::<Slice<BytesMut>>() {
            encoded.bytes.extend_from_slice(&own.get_ref()[own.begin()..own.end()]);
        } else if any.is::<Slice<Bytes>>() {
            encoded.passed_over += buf.bytes_init();
        } else {
            return (Err(std::io::ErrorKind::Unsupported.into()), buf);
        }
        (Ok(buf.bytes_init()), buf)
    }

    async fn writev<T: IoVecBuf>(&mut self, buf_vec: T) -> BufResult<usize, T> {
        (Err(std::io::ErrorKind::Unsupported.into()), buf_vec)
    }

    async fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }

    async fn shutdown(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_its_head_and_its_body() {
        let fields = [
            (header::CONTENT_TYPE, TEXT_PLAIN),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        ];
        let rendered = response(StatusCode::OK, &fields, Bytes::from_static(b"hello"), 784_111_777);
        let head = str::from_utf8(&rendered.head).unwrap();
        assert_eq!(
            head,
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-type: text/plain; charset=utf-8\r\n\
             cache-control: no-store\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
        );
        assert_eq!(rendered.body, "hello");
    }

    #[test]
    fn a_response_without_content_has_no_length() {
        let fields = [(header::ETAG, HeaderValue::from_static("\"a\""))];
        let rendered = without_content(StatusCode::NOT_MODIFIED, &fields, 784_111_777);
        assert_eq!(
            str::from_utf8(&rendered.head).unwrap(),
            "HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
        );
        assert!(rendered.body.is_empty());
    }

    #[test]
    fn a_response_may_be_empty_or_larger_than_the_encoders_buffer() {
        for bytes in [0, 8 * 1024 - 1, 8 * 1024, 100_000] {
            let rendered = response(StatusCode::NOT_FOUND, &[], vec![b'x'; bytes].into(), 0);
            let head = str::from_utf8(&rendered.head).unwrap();
            assert!(head.starts_with("HTTP/1.1 404 Not Found\r\n"), "{head}");
            assert!(head.contains(&format!("content-length: {bytes}\r\n")), "{head}");
            assert_eq!(rendered.body.len(), bytes);
            assert!(rendered.head.ends_with(b" GMT\r\n"), "{head}");
        }
    }

    #[test]
    fn a_large_body_is_shared_and_not_copied() {
        let body = Bytes::from(vec![b'x'; 1 << 20]);
        let rendered = response(StatusCode::OK, &[], body.clone(), 0);
        assert_eq!(rendered.body.as_ptr(), body.as_ptr());
        let encoded = encode(http::Response::new(HttpBody::Ready(Some(body.clone()))));
        assert_eq!(encoded.passed_over, body.len());
        assert!(encoded.bytes.capacity() < 16 * 1024, "{} bytes", encoded.bytes.capacity());
    }

    #[test]
    fn a_request_names_its_path_and_an_empty_body() {
        let fields = [(header::HOST, HeaderValue::from_static("counter:3001"))];
        let bytes = request(Method::POST, Uri::from_static("/counter?by=1"), &fields);
        assert_eq!(
            str::from_utf8(&bytes).unwrap(),
            "POST /counter?by=1 HTTP/1.1\r\ncontent-length: 0\r\nhost: counter:3001\r\n\r\n"
        );
    }
}
