//! The text of `/metrics`, in the format that the client asks for: OpenMetrics, or the older one of Prometheus.

use std::fmt;

use http::HeaderValue;
use prometheus_client::{encoding::text, registry::Registry};

use crate::http::list_elements;

/// A format of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposition {
    /// The format that every client can read.
    Prometheus,
    /// The format that Prometheus prefers.
    OpenMetrics,
}

impl Exposition {
    /// The format that an `Accept` field asks for (RFC 9110 section 12.5.1). OpenMetrics only where it is named:
    /// clients that accept anything, such as curl and promtool, get the format that more programs can read.
    pub fn chosen_by(accept: Option<&[u8]>) -> Self {
        let (mut open_metrics, mut prometheus) = (0, None);
        for element in list_elements(accept.unwrap_or_default()) {
            let Ok(range) = std::str::from_utf8(element) else { continue };
            let mut parts = range.split(';').map(str::trim_ascii);
            let name = parts.next().unwrap_or_default().to_ascii_lowercase();
            let parameters: Vec<_> = parts.filter_map(parameter).collect();
            let weight = weight(&parameters);
            let is_version = |known: &[&str]| {
                let version = parameters.iter().find(|(name, _)| name == "version");
                version.is_none_or(|(_, version)| known.contains(version))
            };
            // A more precise range takes precedence.
            let precision = match name.as_str() {
                "application/openmetrics-text" if is_version(&["1.0.0", "0.0.1"]) => {
                    open_metrics = open_metrics.max(weight);
                    continue;
                }
                "text/plain" if is_version(&["0.0.4"]) => 3,
                "text/*" => 2,
                "*/*" => 1,
                _ => continue,
            };
            prometheus = prometheus.max(Some((precision, weight)));
        }
        let prometheus = prometheus.map_or(0, |(_, weight)| weight);
        if open_metrics > 0 && open_metrics >= prometheus {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    /// The `Content-Type` field.
    pub const fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        })
    }

    /// The metrics in this format.
    ///
    /// # Errors
    /// When a metric cannot be written.
    pub fn write(self, metrics: &Registry) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, metrics)?;
        Ok(match self {
            Self::OpenMetrics => text,
            Self::Prometheus => to_prometheus(&text),
        })
    }
}

fn parameter(text: &str) -> Option<(String, &str)> {
    let (name, value) = text.split_once('=')?;
    Some((name.trim_ascii().to_ascii_lowercase(), value.trim_ascii().trim_matches('"')))
}

/// The weight of RFC 9110 section 12.4.2, in thousandths; 0 if it is malformed.
fn weight(parameters: &[(String, &str)]) -> u16 {
    let Some((_, text)) = parameters.iter().find(|(name, _)| name == "q") else { return 1000 };
    match text.parse::<f32>() {
        // Between 0 and 1000.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Ok(weight) if (0.0..=1.0).contains(&weight) => (weight * 1000.0).round() as u16,
        _ => 0,
    }
}

/// The same metrics in Prometheus' text format 0.0.4: a family has the full name of its samples, an info is a gauge,
/// and there is no end mark. <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>
fn to_prometheus(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(of_family) = line.strip_prefix("# HELP ") {
            // The line with the type follows, and decides the name of both lines.
            help = of_family.split_once(' ').map(|(_, help)| help);
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|of_family| of_family.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                kind => ("", kind),
            };
            if let Some(help) = help.take() {
                text.push_str(&format!("# HELP {name}{suffix} {help}\n"));
            }
            text.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::{counter::Counter, gauge::Gauge, info::Info};

    use super::*;

    #[track_caller]
    fn check(accept: &str, expected: Exposition) {
        assert_eq!(Exposition::chosen_by(Some(accept.as_bytes())), expected, "{accept:?}");
    }

    #[test]
    fn the_client_chooses_the_format() {
        use Exposition::{OpenMetrics, Prometheus};
        assert_eq!(Exposition::chosen_by(None), Prometheus);
        for accept in [
            "",
            "*/*",
            "text/plain",
            "text/html",
            "application/*",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=0.3, text/plain;q=0.5",
            "application/openmetrics-text;q=0.3, */*",
            "application/openmetrics-text; version=2.0.0",
            "application/openmetrics-text;q=two",
            "application/openmetrics-text;q=1.5",
            "application/openmetrics-textual",
        ] {
            check(accept, Prometheus);
        }
        for accept in [
            "application/openmetrics-text",
            "Application/OpenMetrics-Text",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            "application/openmetrics-text; version=\"1.0.0\"",
            "text/plain, application/openmetrics-text",
            "text/html, application/openmetrics-text;Q=0.001",
            // What Prometheus 2 and 3 send.
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
             text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
             application/openmetrics-text;version=0.0.1;q=0.4,\
             text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
            // The more precise range gives the weight of text/plain.
            "*/*, text/plain;q=0.1, application/openmetrics-text;q=0.2",
        ] {
            check(accept, OpenMetrics);
        }
    }

    #[test]
    fn both_formats_have_the_same_samples() {
        let mut registry = Registry::with_prefix("a");
        let counter: Counter = Counter::default();
        counter.inc();
        registry.register("calls", "Calls", counter);
        registry.register("open", "Open ones", Gauge::<i64>::default());
        registry.register("build", "The version", Info::new([("version", "1 # 2")]));
        let expected = "# HELP a_calls Calls.\n# TYPE a_calls counter\na_calls_total 1\n\
                        # HELP a_open Open ones.\n# TYPE a_open gauge\na_open 0\n\
                        # HELP a_build The version.\n# TYPE a_build info\na_build_info{version=\"1 # 2\"} 1\n\
                        # EOF\n";
        assert_eq!(Exposition::OpenMetrics.write(&registry).unwrap(), expected);
        let expected = "# HELP a_calls_total Calls.\n# TYPE a_calls_total counter\na_calls_total 1\n\
                        # HELP a_open Open ones.\n# TYPE a_open gauge\na_open 0\n\
                        # HELP a_build_info The version.\n# TYPE a_build_info gauge\n\
                        a_build_info{version=\"1 # 2\"} 1\n";
        assert_eq!(Exposition::Prometheus.write(&registry).unwrap(), expected);
    }
}
