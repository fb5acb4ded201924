//! A PROXY header: no panic, the same in two pieces and a byte at a time as in one, and within its limit.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tallyring::proxy_protocol::{HEADER_BYTES_MAX, parse};

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, bytes) = input;
    let whole = parse(bytes);
    let first = parse(&bytes[..usize::from(cut).min(bytes.len())]);
    assert!(first == Ok(None) || first == whole);
    let mut reads = (0..=bytes.len()).map(|end| parse(&bytes[..end]));
    assert_eq!(whole, reads.find(|read| *read != Ok(None)).unwrap_or(Ok(None)));
    match whole {
        Ok(Some(header)) => assert!((15..=HEADER_BYTES_MAX).contains(&header.bytes)),
        // No more is waited for than a header may have.
        Ok(None) => assert!(bytes.len() < HEADER_BYTES_MAX),
        Err(_) => {}
    }
});
