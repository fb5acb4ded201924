//! A request head: no panic, the same in two pieces and a byte at a time as in one, and within its limits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tallyring::http::{HeadLimits, request};

const LIMITS: HeadLimits =
    HeadLimits { head_bytes_max: 2048, head_fields_max: 16, target_bytes_max: 512 };

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, bytes) = input;
    let whole = request::parse(bytes, &mut Default::default(), &LIMITS, 1024);
    let mut scan = Default::default();
    let first = &bytes[..usize::from(cut).min(bytes.len())];
    let pieces = match request::parse(first, &mut scan, &LIMITS, 1024) {
        Ok(None) => request::parse(bytes, &mut scan, &LIMITS, 1024),
        result => result,
    };
    assert_eq!(whole, pieces);
    let mut scan = Default::default();
    let mut reads =
        (0..=bytes.len()).map(|end| request::parse(&bytes[..end], &mut scan, &LIMITS, 1024));
    assert_eq!(whole, reads.find(|read| *read != Ok(None)).unwrap_or(Ok(None)));
    if let Ok(Some(whole)) = whole {
        assert!(whole.head_bytes <= LIMITS.head_bytes_max);
        assert!(bytes[..whole.head_bytes].ends_with(b"\r\n\r\n"));
        assert!(!bytes[..whole.head_bytes].contains(&0));
    }
});
