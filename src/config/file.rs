//! The file of `--config`: the keys of the flags, and routes.

use std::{fmt::Display, net::SocketAddr, path::PathBuf, str::FromStr};

use serde::{Deserialize, Deserializer};

use super::{
    arguments::AdminAddress,
    values::{Cores, Period, Size, from_text},
};
use crate::{
    driver,
    http::{hosts::HostList, request::Method},
    observe::log,
    site::Accept,
    upstream::Endpoint,
};

/// What a file may say. Every key is optional; one that is not here is an error.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct File {
    pub(super) listen: Option<Listen>,
    pub(super) share_port: Option<bool>,
    pub(super) counter: Option<Text<Endpoint>>,
    pub(super) workers: Option<u16>,
    pub(super) cores: Option<Cores>,
    pub(super) driver: Option<driver::Choice>,
    pub(super) welcome: Option<PathBuf>,
    pub(super) sorry: Option<PathBuf>,
    pub(super) sorry_status: Option<u16>,
    pub(super) accept: Option<Accept>,
    pub(super) data_dir: Option<PathBuf>,
    pub(super) create: Option<bool>,
    pub(super) admin: Option<Text<AdminAddress>>,
    pub(super) admin_hosts: Option<Text<HostList>>,
    pub(super) ready_needs_counter: Option<bool>,
    pub(super) log_format: Option<log::Format>,
    pub(super) head_max: Option<Size>,
    pub(super) head_fields_max: Option<usize>,
    pub(super) target_max: Option<Size>,
    pub(super) body_max: Option<Size>,
    pub(super) head_timeout: Option<Period>,
    pub(super) body_timeout: Option<Period>,
    pub(super) idle_timeout: Option<Period>,
    pub(super) write_timeout: Option<Period>,
    pub(super) connections_max: Option<usize>,
    pub(super) counter_connect_timeout: Option<Period>,
    pub(super) counter_timeout: Option<Period>,
    pub(super) counter_connections_max: Option<usize>,
    pub(super) counter_queue_max: Option<usize>,
    pub(super) counter_idle_timeout: Option<Period>,
    pub(super) drain_timeout: Option<Period>,
    #[serde(default)]
    pub(super) route: Vec<RouteTable>,
}

/// A `[[route]]` table.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RouteTable {
    pub(super) path: String,
    pub(super) methods: Option<Vec<RouteMethod>>,
    pub(super) counter: Option<Text<Endpoint>>,
    pub(super) welcome: Option<PathBuf>,
    pub(super) sorry: Option<PathBuf>,
}

/// A method that a route may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum RouteMethod {
    Get,
    Head,
    Post,
}

impl From<RouteMethod> for Method {
    fn from(method: RouteMethod) -> Self {
        match method {
            RouteMethod::Get => Self::Get,
            RouteMethod::Head => Self::Head,
            RouteMethod::Post => Self::Post,
        }
    }
}

/// One address or several.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "an address like \"0.0.0.0:3000\", or a list of them")]
pub(super) enum Listen {
    One(SocketAddr),
    Several(Vec<SocketAddr>),
}

impl From<Listen> for Vec<SocketAddr> {
    fn from(listen: Listen) -> Self {
        match listen {
            Listen::One(address) => vec![address],
            Listen::Several(addresses) => addresses,
        }
    }
}

/// A value in the text form that its flag takes.
#[derive(Debug)]
pub(super) struct Text<T>(pub(super) T);

impl<'de, T: FromStr<Err: Display>> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer).map(Self)
    }
}
