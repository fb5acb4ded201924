//! The page that shows the server live: one document, which needs nothing else but the stream of figures.

use http::{HeaderValue, StatusCode, header};

use crate::connection::Response;

const PAGE: &str = concat!(
    include_str!("page/head.html"),
    "<style>\n",
    include_str!("page/page.css"),
    "</style>\n</head>\n",
    include_str!("page/body.html"),
    "<script>\n",
    include_str!("page/page.js"),
    "</script>\n</body>\n</html>\n",
);

/// Nothing but the document's own style and script, named by their hashes, and connections to this server. Nobody may
/// frame it. After a change of the document, the test says what the hashes are.
const POLICY: &str = "default-src 'none'; \
    style-src 'sha256-hCu8IfVPHGIBak1shspr4jZi8Zqg3UHVzlUkSCxDzkA='; \
    script-src 'sha256-zacY0zMbqdo70EvFG87vf1EixrY0x1oZO9qXPy/Oxgo='; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) fn response() -> Response {
    let fields = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    let fields = fields.map(|(name, value)| (name, HeaderValue::from_static(value)));
    Response::new(StatusCode::OK, fields.into(), PAGE)
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    use super::*;

    /// The base64 of the SHA-256 of a text, by the system's sha256sum.
    fn hash(text: &str) -> String {
        const DIGITS: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut command = Command::new("sha256sum");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        let byte = |place| u32::from_str_radix(&output[place..place + 2], 16).unwrap();
        // 32 bytes are ten groups of three and one of two.
        let mut encoded = String::new();
        for group in 0..11 {
            let bytes = (0..3).map(|place| group * 3 + place);
            let value = bytes
                .fold(0, |value, place| value << 8 | if place < 32 { byte(place * 2) } else { 0 });
            for shift in [18, 12, 6, 0] {
                encoded.push(char::from(DIGITS[(value >> shift & 63) as usize]));
            }
        }
        encoded.truncate(43);
        encoded + "="
    }

    #[test]
    fn the_page_knows_the_event_before_a_planned_end() {
        assert!(super::super::watchers::RENEW.contains("\nevent: renew\n"));
        assert!(PAGE.contains("addEventListener(\"renew\""));
    }

    #[test]
    fn the_policy_allows_the_style_and_the_script_of_the_page_and_no_other() {
        for element in ["style", "script"] {
            let (_, rest) = PAGE.split_once(&format!("<{element}>")).unwrap();
            let (text, rest) = rest.split_once(&format!("</{element}>")).unwrap();
            let source = format!("{element}-src 'sha256-{}';", hash(text));
            assert!(POLICY.contains(&source), "it should say {source}");
            assert!(!rest.contains(&format!("<{element}")), "one {element} is named");
        }
        assert!(!PAGE.contains("style=") && !PAGE.contains(" onclick="));
    }
}
