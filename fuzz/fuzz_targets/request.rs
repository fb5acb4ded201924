//! A request head: no panic, the same in two pieces as in one, and within its limits.
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
    match (&whole, &pieces) {
        (Err(_), Err(_)) => {}
        _ => assert_eq!(whole, pieces),
    }
    if let Ok(Some(whole)) = whole {
        assert!(whole.head_bytes <= LIMITS.head_bytes_max);
        assert!(bytes[..whole.head_bytes].ends_with(b"\r\n\r\n"));
        assert!(!bytes[..whole.head_bytes].contains(&0));
    }
});
