//! The settings of the access log: their flags, their values, and how they are settled.

use std::{fmt, net::IpAddr, num::NonZeroU32, path::PathBuf, str::FromStr, sync::Arc};

use clap::Args;
use ipnet::IpNet;
use serde::{Deserialize, Deserializer};

use super::{
    AccessLogConfig, AccessLogOutput,
    data_dir::absolute,
    file::File,
    pick::Pick,
    scalar::{Scalar, Scalars, Text, Word},
};
use crate::{access_log::Format, site::Share};

/// The flags of `serve` and `check` for the access log.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Access log")]
#[allow(missing_docs)]
pub struct AccessLogArguments {
    /// File to write a line to for each request, - for standard output, or off; SIGHUP opens it anew
    #[arg(
        long,
        env = "TALLYRING_ACCESS_LOG",
        value_name = "FILE|-|off",
        default_value = "off",
        allow_hyphen_values = true
    )]
    pub access_log: AccessLog,
    /// Form of its lines
    #[arg(
        long,
        env = "TALLYRING_ACCESS_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "combined"
    )]
    pub access_log_format: Format,
    /// Share of the requests that have a line, one in so many, like 1%, 0.01 or 1/100: of each worker the first
    /// and then each hundredth
    #[arg(long, env = "TALLYRING_ACCESS_LOG_SAMPLE", value_name = "SHARE", default_value = "100%")]
    pub access_log_sample: Sample,
    /// Proxies, like 10.0.0.0/8, that are believed when they name the client in X-Forwarded-For; may be
    /// repeated. With --proxy-protocol, connections of others are closed
    #[arg(long, env = "TALLYRING_TRUSTED_PROXY", value_name = "CIDR", value_delimiter = ',')]
    pub trusted_proxy: Vec<Network>,
}

/// Where the access log goes, if anywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLog(pub Option<AccessLogOutput>);

impl FromStr for AccessLog {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "" => Err("it must be a file, - for standard output, or off"),
            "off" => Ok(Self(None)),
            "-" => Ok(Self(Some(AccessLogOutput::Stdout))),
            path => Ok(Self(Some(AccessLogOutput::File(PathBuf::from(path))))),
        }
    }
}

impl fmt::Display for AccessLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            None => f.write_str("off"),
            Some(output) => output.fmt(f),
        }
    }
}

impl AccessLog {
    /// The same with another path, if it has one.
    pub(super) fn map_path(self, map: impl FnOnce(PathBuf) -> PathBuf) -> Self {
        Self(self.0.map(|output| match output {
            AccessLogOutput::Stdout => AccessLogOutput::Stdout,
            AccessLogOutput::File(path) => AccessLogOutput::File(map(path)),
        }))
    }
}

impl fmt::Display for AccessLogOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("-"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// One in so many: the share of the requests that have a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    share: Share,
    /// How many.
    one_in: NonZeroU32,
}

impl FromStr for Sample {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let share: Share = text.parse()?;
        let one_in = share.whole_of_one();
        let one_in = one_in.ok_or("it must be one in so many, like 1%, 0.01 or 1/100")?;
        Ok(Self { share, one_in })
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.share.fmt(f)
    }
}

/// A network of proxies; an address alone is one of a single host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network(pub IpNet);

impl FromStr for Network {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim_ascii();
        let host = || text.parse().ok().map(|host: IpAddr| IpNet::from(host));
        let network = text.parse().ok().or_else(host);
        let network = network.map(|network: IpNet| Self(network.trunc()));
        network.ok_or("it must be a network or an address, like 10.0.0.0/8, fd00::/8 or 10.0.0.7")
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One network or several.
#[derive(Debug)]
pub(super) struct Networks(Vec<Network>);

impl<'de> Deserialize<'de> for Networks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let networks = Vec::from(Scalars::deserialize(deserializer)?);
        networks.into_iter().map(Scalar::parse).collect::<Result<_, _>>().map(Self)
    }
}

/// Settles the section about the access log and the proxies.
pub(super) fn settle_access_log(
    pick: &mut Pick<'_>,
    arguments: &AccessLogArguments,
    file: &mut File,
) -> (Option<AccessLogConfig>, Arc<[IpNet]>) {
    let output = file.access_log.take().map(|Text(output)| output);
    let given = arguments.access_log.clone().map_path(absolute);
    let AccessLog(output) = pick.shown("access-log", given, output);
    let format = file.access_log_format.map(|Word(format)| format);
    let format = pick.shown("access-log-format", arguments.access_log_format, format);
    let sample = file.access_log_sample.take().map(|Text(sample)| sample);
    let sample = pick.shown("access-log-sample", arguments.access_log_sample, sample);
    let trusted = file.trusted_proxy.take().map(|Networks(networks)| networks);
    let trusted = pick.value("trusted-proxy", arguments.trusted_proxy.clone(), trusted, shown);
    let trusted: Arc<[IpNet]> = trusted.into_iter().map(|Network(network)| network).collect();
    (output.map(|output| AccessLogConfig { output, format, one_in: sample.one_in }), trusted)
}

fn shown(networks: &Vec<Network>) -> String {
    match networks.as_slice() {
        [] => String::from("none"),
        networks => networks.iter().map(Network::to_string).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check<T: FromStr + fmt::Display>(text: &str, expected: Option<&str>) {
        let parsed = text.parse::<T>().ok().map(|value| value.to_string());
        assert_eq!(parsed.as_deref(), expected, "{text:?}");
    }

    #[test]
    fn samples() {
        for (text, shown) in [("1", "100%"), ("0.01", "1%"), ("1/3", "1/3"), ("0.0001%", "0.0001%")]
        {
            check::<Sample>(text, Some(shown));
        }
        // Shares that are not one in so many, and what is no share.
        for text in ["0", "2/3", "30%", "0.75", "", "2", "1/0", "1/1000001", "1e-2"] {
            check::<Sample>(text, None);
        }
    }

    #[test]
    fn networks() {
        check::<Network>("10.0.0.0/8", Some("10.0.0.0/8"));
        check::<Network>("10.1.2.3/8", Some("10.0.0.0/8"));
        check::<Network>(" 10.0.0.7", Some("10.0.0.7/32"));
        check::<Network>("fd00::/8", Some("fd00::/8"));
        check::<Network>("::1", Some("::1/128"));
        check::<Network>("0.0.0.0/0", Some("0.0.0.0/0"));
        for text in ["", "10.0.0.0/33", "10.0.0", "proxy", "10.0.0.0/", "10.0.0.7:80", "::/129"] {
            check::<Network>(text, None);
        }
    }

    #[test]
    fn outputs() {
        check::<AccessLog>("off", Some("off"));
        check::<AccessLog>("-", Some("-"));
        check::<AccessLog>("./off", Some("./off"));
        check::<AccessLog>("", None);
    }
}
