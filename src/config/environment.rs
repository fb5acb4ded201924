//! Variables with the prefix of settings that are not settings: without this check, a setting with a misspelt name
//! would be ignored without a word.

use std::env;

use super::error::{ConfigError, nearest};

const PREFIX: &str = "TALLYRING_";

/// The variable of `build.rs`, which may still be in the environment.
const OF_BUILDS: &str = "TALLYRING_COMMIT";

/// Looks for `TALLYRING_*` variables that are not settings of any command; a note for each.
///
/// # Errors
/// When one is probably a misspelt setting.
pub fn check_environment(command: &clap::Command) -> Result<Vec<String>, ConfigError> {
    let commands = command.get_subcommands().chain([command]);
    let settings = commands.flat_map(clap::Command::get_arguments);
    let settings = settings.filter_map(|argument| argument.get_env()?.to_str());
    let settings: Vec<&str> = settings.collect();
    let mut notes = Vec::new();
    for (name, value) in env::vars_os() {
        let (name, value) = (name.to_string_lossy(), value.to_string_lossy());
        notes.extend(judge(&name, &value, &settings)?);
    }
    notes.sort();
    Ok(notes)
}

fn judge(name: &str, value: &str, settings: &[&str]) -> Result<Option<String>, ConfigError> {
    let Some(word) = name.strip_prefix(PREFIX) else { return Ok(None) };
    let is_known = settings.contains(&name) || name == OF_BUILDS;
    // An empty variable counts as one that is not set.
    if is_known || value.is_empty() || is_service_link(name, value) {
        return Ok(None);
    }
    let words = settings.iter().filter_map(|setting| setting.strip_prefix(PREFIX));
    let Some(nearest) = nearest(word, words) else {
        return Ok(Some(format!("{name} is no setting and is ignored")));
    };
    let nearest = format!("{PREFIX}{nearest}");
    if is_misspelt(name, &nearest) {
        return Err(ConfigError::Variable { name: name.to_owned(), nearest });
    }
    Ok(Some(format!("{name} is no setting and is ignored; the nearest is {nearest}")))
}

/// Whether one name was probably meant to be the other. Other programs' variables may have our prefix, such as the tag
/// of an image in the environment of a compose file; a start is not refused because of them.
fn is_misspelt(name: &str, setting: &str) -> bool {
    const MISTAKES_MAX: usize = 2;
    strsim::osa_distance(name, setting) <= MISTAKES_MAX
}

/// Whether it is one that Kubernetes sets in each container for each service, as Docker's links did: those of a service
/// `tallyring` or `tallyring-…` have our prefix.
/// <https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>
fn is_service_link(name: &str, value: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_protocol = |text: &str| matches!(text, "TCP" | "UDP" | "SCTP");
    let is_url = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    // NAME_SERVICE_HOST, NAME_SERVICE_PORT, NAME_SERVICE_PORT_HTTP
    if name.ends_with("_SERVICE_HOST") {
        return true;
    }
    if name.ends_with("_SERVICE_PORT") || name.contains("_SERVICE_PORT_") {
        return is_number(value);
    }
    // NAME_PORT is a URL; a person who means a port gives a number.
    let Some((_, port)) = name.rsplit_once("_PORT_").filter(|(_, port)| !port.is_empty()) else {
        return name.ends_with("_PORT") && is_url;
    };
    // NAME_PORT_3000_TCP, and the same with _PROTO, _PORT or _ADDR at the end.
    let mut parts = port.split('_');
    let (number, protocol) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let rest = parts.next();
    let is_part = matches!(rest, None | Some("PROTO" | "PORT" | "ADDR"));
    is_number(number) && is_protocol(protocol) && is_part && parts.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: [&str; 6] = [
        "TALLYRING_LISTEN",
        "TALLYRING_COUNTER",
        "TALLYRING_COUNTER_TIMEOUT",
        "TALLYRING_COUNTER_LISTEN",
        "TALLYRING_SHARE_PORT",
        "TALLYRING_ADMIN",
    ];

    #[track_caller]
    fn check(name: &str, value: &str, expected: Result<Option<&str>, &str>) {
        let judged = judge(name, value, &SETTINGS).map_err(|error| error.to_string());
        let judged = judged.as_ref().map(|note| note.as_deref()).map_err(String::as_str);
        assert_eq!(judged, expected, "{name}={value}");
    }

    #[test]
    fn a_variable_that_is_no_setting_is_named() {
        for name in SETTINGS {
            check(name, "1", Ok(None));
        }
        check("PATH", "/bin", Ok(None));
        check("TALLYRING", "1", Ok(None));
        check("TALLYRING_COMMIT", "abc", Ok(None));
        check("TALLYRING_COUNTER_TIMEUT", "", Ok(None));
        check(
            "TALLYRING_COUNTER_TIMEUT",
            "1s",
            Err("TALLYRING_COUNTER_TIMEUT is no setting; did you mean TALLYRING_COUNTER_TIMEOUT?"),
        );
        check(
            "TALLYRING_LISEN",
            "80",
            Err("TALLYRING_LISEN is no setting; did you mean TALLYRING_LISTEN?"),
        );
        check(
            "TALLYRING_COUNTER_TIMEOTU",
            "1s",
            Err("TALLYRING_COUNTER_TIMEOTU is no setting; did you mean TALLYRING_COUNTER_TIMEOUT?"),
        );
        for (others, nearest) in [
            ("TALLYRING_URL", "TALLYRING_COUNTER_LISTEN"),
            ("TALLYRING_COUNTER_TOKEN", "TALLYRING_COUNTER_LISTEN"),
            ("TALLYRING_ADMIN_USER", "TALLYRING_ADMIN"),
            ("TALLYRING_COUNTER_PORT_3001_TCP_START", "TALLYRING_COUNTER"),
        ] {
            let note = format!("{others} is no setting and is ignored; the nearest is {nearest}");
            check(others, "x", Ok(Some(&note)));
        }
        check("TALLYRING_IMAGE", "x", Ok(Some("TALLYRING_IMAGE is no setting and is ignored")));
        check("TALLYRING_PORT", "80", Ok(Some("TALLYRING_PORT is no setting and is ignored")));
    }

    #[test]
    fn the_links_of_kubernetes_are_passed_over() {
        for (name, value) in [
            ("TALLYRING_SERVICE_HOST", "10.0.0.1"),
            ("TALLYRING_SERVICE_PORT", "3000"),
            ("TALLYRING_SERVICE_PORT_HTTP", "3000"),
            ("TALLYRING_SERVICE_PORT_HTTP_ALT", "3000"),
            ("TALLYRING_PORT", "tcp://10.0.0.1:3000"),
            ("TALLYRING_PORT_3000_TCP", "tcp://10.0.0.1:3000"),
            ("TALLYRING_PORT_3000_TCP_PROTO", "tcp"),
            ("TALLYRING_PORT_3000_TCP_PORT", "3000"),
            ("TALLYRING_PORT_3000_TCP_ADDR", "10.0.0.1"),
            ("TALLYRING_PORT_53_UDP_ADDR", "10.0.0.1"),
            ("TALLYRING_PORT_53_SCTP", "sctp://10.0.0.1:53"),
            ("TALLYRING_COUNTER_SERVICE_HOST", "10.0.0.1"),
            ("TALLYRING_COUNTER_PORT", "tcp://10.0.0.1:3001"),
            ("TALLYRING_COUNTER_PORT_3001_TCP_ADDR", "10.0.0.1"),
        ] {
            assert!(is_service_link(name, value), "{name}={value}");
            check(name, value, Ok(None));
        }
        for (name, value) in [
            ("TALLYRING_PORT", "3000"),
            ("TALLYRING_COUNTER_PORT", "3000"),
            ("TALLYRING_SERVICE_PORT", "tcp://10.0.0.1:3000"),
            ("TALLYRING_PORT_3000", "tcp://10.0.0.1:3000"),
            ("TALLYRING_PORT_X_TCP", "tcp://10.0.0.1:3000"),
            ("TALLYRING_PORT_3000_HTTP", "tcp://10.0.0.1:3000"),
            ("TALLYRING_PORT_3000_TCP_HOST", "10.0.0.1"),
            ("TALLYRING_PORT_3000_TCP_ADDR_X", "10.0.0.1"),
            ("TALLYRING_PORT_", "tcp://10.0.0.1:3000"),
            ("TALLYRING_LISEN", "tcp://10.0.0.1:3000"),
        ] {
            assert!(!is_service_link(name, value), "{name}={value}");
        }
    }
}
