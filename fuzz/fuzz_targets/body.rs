//! A chunked body: no panic, the same end in two pieces as in one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tallyring::http::body::{BodyError, BodyReader, Progress};

/// Where the body ends, or why it does not; `None` while it goes on.
fn end_of(pieces: &[&[u8]]) -> Option<Result<usize, BodyError>> {
    let mut reader = BodyReader::chunked(1 << 20);
    let mut before = 0;
    for piece in pieces {
        match reader.advance(piece) {
            Ok(Progress { consumed, done: true }) => return Some(Ok(before + consumed)),
            Ok(Progress { consumed, .. }) => assert_eq!(consumed, piece.len()),
            Err(error) => return Some(Err(error)),
        }
        before += piece.len();
    }
    None
}

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, bytes) = input;
    let (first, second) = bytes.split_at(usize::from(cut).min(bytes.len()));
    assert_eq!(end_of(&[bytes]), end_of(&[first, second]));
});
