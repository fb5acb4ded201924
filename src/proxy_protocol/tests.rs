//! Each accepted header with its refused twins; every split reads the same; another parser reads the same.

use ppp::PartialResult;
use proptest::{prelude::*, sample::select};

use super::*;

/// What a header says, in a few words; or why it is refused; or that it is not whole.
fn told(read: &Result<Option<Header>, Malformed>) -> String {
    match read {
        Ok(None) => String::from("not whole"),
        Err(Malformed(reason)) => format!("refused: {reason}"),
        Ok(Some(Header { is_local: true, relayed: None, .. })) => String::from("local"),
        Ok(Some(Header { is_local: false, relayed: None, .. })) => String::from("not relayed"),
        Ok(Some(Header { is_local, relayed: Some(Relayed { source, destination }), .. })) => {
            assert!(!is_local);
            format!("{source} to {destination}")
        }
    }
}

/// Reads `bytes` whole and as they grow byte by byte; a request follows, which must not be touched.
#[track_caller]
fn check(bytes: &[u8], expected: &str) {
    let read = parse(bytes);
    assert_eq!(told(&read), expected, "{:?}", String::from_utf8_lossy(bytes));
    let mut grown = (0..=bytes.len()).map(|end| parse(&bytes[..end]));
    assert_eq!(grown.find(|read| *read != Ok(None)).unwrap_or(Ok(None)), read, "{bytes:?}");
    if let Ok(Some(header)) = read {
        assert_eq!(header.bytes, bytes.len());
        let followed = [bytes, b"GET / HTTP/1.1\r\n"].concat();
        assert_eq!(parse(&followed), read);
    }
}

/// A line without its CRLF.
#[track_caller]
fn check_line(line: &str, expected: &str) {
    check(format!("{line}\r\n").as_bytes(), expected);
}

const NO_HEADER: &str = "refused: there is no PROXY header";
const WRONG_LINE: &str = "refused: the line is not ASCII with CRLF at its end";
const WRONG_ENDS: &str =
    "refused: the line does not have two addresses of its protocol and two ports";
const WRONG_PROTOCOL: &str = "refused: the protocol is not TCP4, TCP6 or UNKNOWN";

#[test]
fn a_line_of_tcp() {
    check_line(
        "PROXY TCP4 192.0.2.1 198.51.100.7 56324 443",
        "192.0.2.1:56324 to 198.51.100.7:443",
    );
    check_line("PROXY TCP4 0.0.0.0 255.255.255.255 0 65535", "0.0.0.0:0 to 255.255.255.255:65535");
    check_line("PROXY TCP6 2001:db8::1 ::1 1 2", "[2001:db8::1]:1 to [::1]:2");
    check_line("PROXY TCP6 ::FFFF:192.0.2.1 ::1 1 2", "[::ffff:192.0.2.1]:1 to [::1]:2");
    let long = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    check_line(
        &format!("PROXY TCP6 {long} {long} 65535 65535"),
        &format!("[{long}]:65535 to [{long}]:65535"),
    );
}

#[test]
fn a_line_that_is_not_exactly_so() {
    for line in [
        // A number that is too large, or written in another way.
        "PROXY TCP4 192.0.2.256 198.51.100.7 56324 443",
        "PROXY TCP4 192.0.2.01 198.51.100.7 56324 443",
        "PROXY TCP4 192.0.2 198.51.100.7 56324 443",
        "PROXY TCP4 192.0.2.1 198.51.100.7 65536 443",
        "PROXY TCP4 192.0.2.1 198.51.100.7 056324 443",
        "PROXY TCP4 192.0.2.1 198.51.100.7 56324 00",
        "PROXY TCP4 192.0.2.1 198.51.100.7 +56324 443",
        "PROXY TCP4 192.0.2.1 198.51.100.7 -1 443",
        // One too few, one too many.
        "PROXY TCP4 192.0.2.1 198.51.100.7 56324",
        "PROXY TCP4 192.0.2.1 198.51.100.7 56324 443 1",
        "PROXY TCP4 192.0.2.1 56324 443",
        "PROXY TCP4 ",
        // Spaces.
        "PROXY TCP4  192.0.2.1 198.51.100.7 56324 443",
        "PROXY TCP4 192.0.2.1  198.51.100.7 56324 443",
        "PROXY TCP4 192.0.2.1 198.51.100.7 56324 443 ",
        "PROXY TCP4 192.0.2.1\t198.51.100.7 56324 443",
        // The other family.
        "PROXY TCP4 2001:db8::1 ::1 1 2",
        "PROXY TCP6 192.0.2.1 198.51.100.7 56324 443",
        "PROXY TCP6 2001:db8::1 198.51.100.7 1 2",
        "PROXY TCP6 2001:db8::1::2 ::1 1 2",
        "PROXY TCP6 fe80::1%2 ::1 1 2",
        "PROXY TCP6 [2001:db8::1] ::1 1 2",
    ] {
        check_line(line, WRONG_ENDS);
    }
    for line in [
        "PROXY TCP5 192.0.2.1 198.51.100.7 56324 443",
        "PROXY TCP4",
        "PROXY tcp4 192.0.2.1 198.51.100.7 56324 443",
        "PROXY UDP4 192.0.2.1 198.51.100.7 56324 443",
        "PROXY  TCP4 192.0.2.1 198.51.100.7 56324 443",
        "PROXY UNKNOWNS",
        "PROXY ",
    ] {
        check_line(line, WRONG_PROTOCOL);
    }
    for line in ["proxy TCP4 192.0.2.1 198.51.100.7 1 2", "PROXY", "PROXYTCP4", "GET / HTTP/1.1"] {
        check_line(line, NO_HEADER);
    }
}

#[test]
fn a_line_ends_in_crlf_within_107_bytes() {
    check(b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\n", WRONG_LINE);
    check(b"PROXY UNKNOWN\n", WRONG_LINE);
    check(b"PROXY UNKNOWN a\rb\r\n", WRONG_LINE);
    check(b"PROXY UNKNOWN a\nb\r\n", WRONG_LINE);
    check("PROXY UNKNOWN ü\r\n".as_bytes(), WRONG_LINE);
    check(b"PROXY UNKNOWN \xff\r\n", WRONG_LINE);
    check(b"PROXY UNKNOWN\r", "not whole");
    check(b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443", "not whole");
    check(b"PROXY", "not whole");
    check(b"", "not whole");
    let padded = |bytes: usize| format!("PROXY UNKNOWN {}", "x".repeat(bytes - 16));
    check_line(&padded(107), "not relayed");
    check_line(&padded(108), "refused: the line is longer than 107 bytes");
    check(padded(107).as_bytes(), "not whole");
    check_line("PROXY UNKNOWN", "not relayed");
    check_line("PROXY UNKNOWN ", "not relayed");
    check_line("PROXY UNKNOWN 192.0.2.1 nonsense", "not relayed");
}

/// A header of version 2 with this command, family and content.
fn binary(command: u8, family: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    [SIGNATURE.as_slice(), &[command, family], &length, content].concat()
}

const IPV4: &[u8] = &[192, 0, 2, 1, 198, 51, 100, 7, 0xdc, 4, 1, 0xbb];
const FROM_IPV4: &str = "192.0.2.1:56324 to 198.51.100.7:443";

fn ipv6() -> Vec<u8> {
    let address = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
    [&address("2001:db8::1")[..], &address("::1"), &[0, 1, 0, 2]].concat()
}

const TOO_SHORT: &str = "refused: the header is too short for its addresses";
const WRONG_FAMILY: &str = "refused: the family or the protocol is not known in version 2";
const WRONG_COMMAND: &str = "refused: the version is not 2, or the command not LOCAL or PROXY";

#[test]
fn a_binary_header() {
    check(&binary(0x21, 0x11, IPV4), FROM_IPV4);
    check(&binary(0x21, 0x11, &IPV4[1..]), TOO_SHORT);
    check(&binary(0x21, 0x21, &ipv6()), "[2001:db8::1]:1 to [::1]:2");
    check(&binary(0x21, 0x21, &ipv6()[1..]), TOO_SHORT);
    // Not TCP: whoever it is, the ends of this connection count.
    check(&binary(0x21, 0x12, IPV4), "not relayed");
    check(&binary(0x21, 0x12, &IPV4[1..]), TOO_SHORT);
    check(&binary(0x21, 0x22, &ipv6()), "not relayed");
    check(&binary(0x21, 0x22, &ipv6()[1..]), TOO_SHORT);
    for family in [0x31, 0x32] {
        check(&binary(0x21, family, &[b'x'; 216]), "not relayed");
        check(&binary(0x21, family, &[b'x'; 215]), TOO_SHORT);
    }
    // What an unknown family has is skipped, and so is what a proxy says of its own connection.
    for content in [&b""[..], b"x", IPV4] {
        check(&binary(0x21, 0x00, content), "not relayed");
        check(&binary(0x20, 0x00, content), "local");
        check(&binary(0x20, 0x11, content), "local");
        check(&binary(0x20, 0xff, content), "local");
    }
    for family in [0x01, 0x02, 0x10, 0x20, 0x30, 0x13, 0x33, 0x41, 0xff] {
        check(&binary(0x21, family, &[b'x'; 216]), WRONG_FAMILY);
    }
    for command in [0x22, 0x2f, 0x01, 0x11, 0x31, 0x00] {
        check(&binary(command, 0x11, IPV4), WRONG_COMMAND);
    }
    let header = binary(0x21, 0x11, IPV4);
    for end in 0..header.len() {
        check(&header[..end], "not whole");
    }
    for place in 0..SIGNATURE.len() {
        let mut header = header.clone();
        header[place] ^= 1;
        check(&header, NO_HEADER);
    }
}

#[test]
fn extensions_are_skipped_and_bounded() {
    let with = |extensions: &[u8]| binary(0x21, 0x11, &[IPV4, extensions].concat());
    check(&with(b"\x04\0\0"), FROM_IPV4);
    check(&with(b"\x02\0\x01a\xe0\0\x02bc"), FROM_IPV4);
    check(&with(b"\x04"), "refused: an extension is cut short");
    check(&with(b"\x04\0\0\x04\0"), "refused: an extension is cut short");
    check(&with(b"\x02\0\x02a"), "refused: an extension is longer than the header");
    check(&with(b"\x02\xff\xffa"), "refused: an extension is longer than the header");
    let long = |bytes: usize| {
        let length = u16::try_from(bytes - 3).unwrap().to_be_bytes();
        [&[0xe0], &length[..], &vec![b'x'; bytes - 3]].concat()
    };
    check(&with(&long(536 - 28)), FROM_IPV4);
    check(&with(&long(HEADER_BYTES_MAX - 28)), FROM_IPV4);
    let too_long = "refused: the header is longer than 1256 bytes";
    check(&with(&long(HEADER_BYTES_MAX - 27)), too_long);
    // It is refused before a byte of it is waited for.
    check(&binary(0x20, 0x00, &[b'x'; 1241])[..FIXED_BYTES], too_long);
    check(&binary(0x20, 0x00, &[b'x'; 1240])[..FIXED_BYTES], "not whole");
}

#[test]
fn a_checksum_must_be_right() {
    let with = |checksum: &[u8]| {
        let length = u8::try_from(checksum.len()).unwrap();
        let extensions = [b"\x02\0\x01a\x03\0", &[length][..], checksum, b"\x04\0\0"].concat();
        binary(0x21, 0x11, &[IPV4, &extensions].concat())
    };
    let mut checksum = Crc32c::default();
    checksum.add(&with(&[0; 4]));
    let right = checksum.value().to_be_bytes();
    check(&with(&right), FROM_IPV4);
    let wrong = "refused: the checksum is wrong";
    check(&with(&[0; 4]), wrong);
    check(&with(&right[..3]), wrong);
    check(&with(&[&right[..], &[0]].concat()), wrong);
    for place in [16, 27, 31, 38] {
        let mut header = with(&right);
        header[place] ^= 1;
        check(&header, wrong);
    }
}

/// Nearly a header: the pieces of both versions, with a byte changed now and then.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let word = select(vec![
        "PROXY",
        "TCP4",
        "TCP6",
        "UNKNOWN",
        "192.0.2.1",
        "10.0.0.01",
        "2001:db8::1",
        "::",
        "0",
        "80",
        "080",
        "+80",
        "65535",
        "65536",
        "",
        "x",
    ]);
    let line = prop::collection::vec(word, 0..8)
        .prop_map(|words| format!("PROXY {}\r\n", words.join(" ")).into_bytes());
    let tcp = (any::<[u8; 4]>(), any::<[u8; 16]>(), any::<bool>(), any::<u16>()).prop_map(
        |(ipv4, ipv6, is_ipv4, port)| {
            let address: IpAddr = if is_ipv4 { ipv4.into() } else { ipv6.into() };
            let protocol = if is_ipv4 { 4 } else { 6 };
            format!("PROXY TCP{protocol} {address} {address} {port} 1\r\n").into_bytes()
        },
    );
    let content = prop::collection::vec(any::<u8>(), 0..300);
    let families = select(vec![0x00, 0x11, 0x12, 0x21, 0x22, 0x31, 0x32, 0x10, 0x41]);
    let headers = (select(vec![0x20, 0x21, 0x22]), families, content)
        .prop_map(|(command, family, content)| binary(command, family, &content));
    let plain = (any::<bool>(), any::<[u8; 36]>()).prop_map(|(is_ipv4, bytes)| match is_ipv4 {
        true => binary(0x21, 0x11, &bytes[..12]),
        false => binary(0x21, 0x21, &bytes),
    });
    let change = prop::option::weighted(0.3, (any::<prop::sample::Index>(), any::<u8>()));
    (prop_oneof![line, tcp, headers, plain], change, any::<bool>()).prop_map(
        |(mut bytes, change, followed)| {
            if let Some((place, byte)) = change {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            bytes.extend_from_slice(if followed { b"GET / HTTP/1.1\r\n" } else { b"" });
            bytes
        },
    )
}

/// What another parser makes of a header: its length and its ends.
fn read_by_ppp(bytes: &[u8]) -> Result<(usize, Option<Relayed>), String> {
    let relayed = |source: (IpAddr, u16), destination: (IpAddr, u16)| {
        Some(Relayed { source: source.into(), destination: destination.into() })
    };
    if bytes.starts_with(b"PROXY") {
        let header = ppp::v1::Header::try_from(bytes).map_err(|error| error.to_string())?;
        let ends = match header.addresses {
            ppp::v1::Addresses::Unknown => None,
            ppp::v1::Addresses::Tcp4(ends) => relayed(
                (ends.source_address.into(), ends.source_port),
                (ends.destination_address.into(), ends.destination_port),
            ),
            ppp::v1::Addresses::Tcp6(ends) => relayed(
                (ends.source_address.into(), ends.source_port),
                (ends.destination_address.into(), ends.destination_port),
            ),
        };
        return Ok((header.header.len(), ends));
    }
    let header = ppp::v2::Header::try_from(bytes).map_err(|error| error.to_string())?;
    let is_tcp = header.protocol == ppp::v2::Protocol::Stream;
    let ends = match header.addresses {
        _ if header.command == ppp::v2::Command::Local || !is_tcp => None,
        ppp::v2::Addresses::IPv4(ends) => relayed(
            (ends.source_address.into(), ends.source_port),
            (ends.destination_address.into(), ends.destination_port),
        ),
        ppp::v2::Addresses::IPv6(ends) => relayed(
            (ends.source_address.into(), ends.source_port),
            (ends.destination_address.into(), ends.destination_port),
        ),
        ppp::v2::Addresses::Unspecified | ppp::v2::Addresses::Unix(_) => None,
    };
    Ok((header.as_bytes().len(), ends))
}

/// Whether the other parser may see it otherwise: it checks the family of a `LOCAL`, which is to be ignored, and takes
/// no more than six words of a line for an unknown protocol.
fn may_be_read_otherwise(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PROXY UNKNOWN") || bytes.get(SIGNATURE.len()) == Some(&0x20)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_split_reads_the_same(bytes in nearly(), cut in any::<prop::sample::Index>()) {
        let read = parse(&bytes);
        let first = parse(&bytes[..cut.index(bytes.len() + 1)]);
        prop_assert!(first == Ok(None) || first == read, "{first:?}, {read:?}");
        if let Ok(Some(header)) = read {
            prop_assert!(header.bytes <= HEADER_BYTES_MAX && header.bytes <= bytes.len());
            // Nothing behind it counts, and not a byte less is enough.
            prop_assert_eq!(parse(&bytes[..header.bytes]), read);
            prop_assert_eq!(parse(&bytes[..header.bytes - 1]), Ok(None));
        }
    }

    #[test]
    fn what_is_accepted_is_read_the_same_by_another_parser(bytes in nearly()) {
        if let Ok(Some(Header { bytes: length, relayed, .. })) = parse(&bytes)
            && !may_be_read_otherwise(&bytes)
        {
            prop_assert_eq!(read_by_ppp(&bytes), Ok((length, relayed)));
        }
    }

    #[test]
    fn what_another_parser_writes_is_accepted(
        addresses in any::<([u8; 4], [u8; 4], u16, u16)>(),
        others in any::<([u16; 8], [u16; 8], u16, u16)>(),
        is_ipv4 in any::<bool>(),
        extension in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let ipv4 = ppp::v2::IPv4::new(addresses.0, addresses.1, addresses.2, addresses.3);
        let ipv6 = ppp::v2::IPv6::new(others.0, others.1, others.2, others.3);
        let ends: ppp::v2::Addresses = if is_ipv4 { ipv4.into() } else { ipv6.into() };
        let builder = ppp::v2::Builder::with_addresses(
            ppp::v2::Version::Two | ppp::v2::Command::Proxy,
            ppp::v2::Protocol::Stream,
            ends,
        );
        let bytes = builder.write_tlv(0xe1, &extension).unwrap().build().unwrap();
        let ours = parse(&bytes).unwrap().unwrap();
        prop_assert!(ours.relayed.is_some());
        prop_assert_eq!(read_by_ppp(&bytes), Ok((ours.bytes, ours.relayed)));
        let line = match is_ipv4 {
            true => ppp::v1::Addresses::Tcp4(ipv4).to_string(),
            false => ppp::v1::Addresses::Tcp6(ipv6).to_string(),
        };
        let of_line = parse(line.as_bytes()).unwrap().unwrap();
        prop_assert_eq!(of_line.relayed, ours.relayed);
        // Neither takes a part for the whole.
        let part = &line.as_bytes()[..line.len() - 1];
        prop_assert_eq!(parse(part), Ok(None));
        prop_assert!(ppp::v1::Header::try_from(part).is_incomplete());
    }
}
