//! The file of `--config`: the keys of the flags, and routes.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use clap::Args;
use serde::{Deserialize, Deserializer, de};

use super::{
    access_log::{AccessLog, Networks, Sample},
    arguments::{AdminAddress, CounterAddress, Workers, listen_address},
    balance::Balance,
    contents::PageType,
    counters::{CounterSpread, CounterUrls},
    data_dir::ShardName,
    error::ConfigError,
    locations::Locations,
    scalar::{Scalar, Scalars, Text, Word, yes_or_no},
    values::{
        Amount, BatchMax, CacheTime, Cores, HeadFields, PageStatus, Period, PipelineMax, Positive,
        Size,
    },
};
use crate::{
    access_log::Format,
    counter::store,
    http::{hosts::HostList, request::Method},
    log,
    runtime::driver,
    site::{Accept, Share},
};

/// What a file may say. Every key is optional; one that is not here is an error.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct File {
    pub(super) listen: Option<Listen>,
    #[serde(default, deserialize_with = "yes_or_no")]
    pub(super) share_port: Option<bool>,
    #[serde(default, deserialize_with = "yes_or_no")]
    pub(super) proxy_protocol: Option<bool>,
    pub(super) counter: Option<CounterUrls>,
    pub(super) counter_spread: Option<Word<CounterSpread>>,
    pub(super) counter_listen: Option<Text<CounterAddress>>,
    pub(super) counter_hosts: Option<Text<HostList>>,
    #[serde(default, deserialize_with = "yes_or_no")]
    pub(super) skip_counter_check: Option<bool>,
    pub(super) workers: Option<Workers>,
    pub(super) cores: Option<Cores>,
    pub(super) balance: Option<Word<Balance>>,
    pub(super) driver: Option<Word<driver::Choice>>,
    pub(super) welcome: Option<PathBuf>,
    pub(super) sorry: Option<PathBuf>,
    pub(super) sorry_status: Option<PageStatus>,
    pub(super) accept: Option<Word<Accept>>,
    #[serde(default, deserialize_with = "yes_or_no")]
    pub(super) trace_context: Option<bool>,
    pub(super) trace_sample: Option<Text<Share>>,
    pub(super) store: Option<Text<store::Kind>>,
    pub(super) store_shard: Option<Text<ShardName>>,
    pub(super) data_dir: Option<PathBuf>,
    #[serde(default, deserialize_with = "yes_or_no")]
    pub(super) create: Option<bool>,
    pub(super) admin: Option<Text<AdminAddress>>,
    pub(super) admin_hosts: Option<Text<HostList>>,
    #[serde(default, deserialize_with = "yes_or_no")]
    pub(super) ready_needs_counter: Option<bool>,
    pub(super) log_format: Option<Word<log::Format>>,
    pub(super) log_level: Option<Word<log::LogLevel>>,
    pub(super) access_log: Option<Text<AccessLog>>,
    pub(super) access_log_format: Option<Word<Format>>,
    pub(super) access_log_sample: Option<Text<Sample>>,
    pub(super) trusted_proxy: Option<Networks>,
    pub(super) head_max: Option<Size>,
    pub(super) head_fields_max: Option<HeadFields>,
    pub(super) target_max: Option<Size>,
    pub(super) body_max: Option<Size>,
    pub(super) head_timeout: Option<Period>,
    pub(super) body_timeout: Option<Period>,
    pub(super) idle_timeout: Option<Period>,
    pub(super) write_timeout: Option<Period>,
    pub(super) connections_max: Option<Positive>,
    pub(super) counter_connect_timeout: Option<Period>,
    pub(super) counter_timeout: Option<Period>,
    pub(super) counter_connections_max: Option<Positive>,
    pub(super) counter_queue_max: Option<Amount>,
    pub(super) counter_batch_max: Option<BatchMax>,
    pub(super) counter_pipeline: Option<PipelineMax>,
    pub(super) counter_idle_timeout: Option<Period>,
    pub(super) drain_timeout: Option<Period>,
    pub(super) files_max: Option<Size>,
    #[serde(default)]
    pub(super) route: Vec<RouteTable>,
}

/// A `[[route]]` table.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RouteTable {
    pub(super) path: String,
    pub(super) methods: Option<Vec<RouteMethod>>,
    pub(super) counter: Option<CounterUrls>,
    pub(super) welcome: Option<PathBuf>,
    pub(super) sorry: Option<PathBuf>,
    #[serde(default, deserialize_with = "yes_or_no")]
    pub(super) counted: Option<bool>,
    pub(super) page: Option<PathBuf>,
    pub(super) text: Option<String>,
    pub(super) directory: Option<PathBuf>,
    pub(super) cache: Option<Text<CacheTime>>,
    /// The type of these files.
    #[serde(rename = "type")]
    pub(super) content_type: Option<Text<PageType>>,
}

impl RouteTable {
    /// A route with nothing but its path.
    pub(super) fn of(path: &str) -> Self {
        Self { path: path.to_owned(), ..Self::default() }
    }
}

impl File {
    /// Makes relative paths absolute: they start at the directory of the file.
    fn resolve_paths(&mut self, directory: &Path) {
        let of_routes = self.route.iter_mut().flat_map(|route| {
            [&mut route.welcome, &mut route.sorry, &mut route.page, &mut route.directory]
        });
        let of_site = [&mut self.welcome, &mut self.sorry, &mut self.data_dir];
        for path in of_site.into_iter().chain(of_routes).flatten() {
            *path = directory.join(&*path);
        }
        let access_log = self.access_log.take();
        self.access_log =
            access_log.map(|Text(output)| Text(output.map_path(|path| directory.join(path))));
        if let Some(Text(store::Kind::Redb(path))) = &mut self.store {
            *path = directory.join(&*path);
        }
    }
}

/// The settings file, for all commands that read it.
#[derive(Debug, Clone, Args)]
#[allow(missing_docs)]
pub struct ConfigFileArguments {
    /// TOML file with settings and `[[route]]` tables
    #[arg(long, env = "TALLYRING_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

impl ConfigFileArguments {
    /// Reads the file, and where its keys are. Without one there are no settings.
    pub(super) fn read(&self) -> Result<(File, Option<Locations>), ConfigError> {
        match &self.config {
            Some(path) => read_file(path).map(|(file, locations)| (file, Some(locations))),
            None => Ok((File::default(), None)),
        }
    }
}

fn read_file(path: &Path) -> Result<(File, Locations), ConfigError> {
    let unreadable = |error: io::Error| ConfigError::File(path.to_owned(), error);
    let text = fs::read_to_string(path).map_err(unreadable)?;
    let locations = Locations::of(path, &text);
    let mut file: File = toml::from_str(&text).map_err(|error| locations.explain(&text, &error))?;
    let absolute = std::path::absolute(path).map_err(unreadable)?;
    file.resolve_paths(absolute.parent().unwrap_or(&absolute));
    Ok((file, locations))
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
#[derive(Debug)]
pub(super) struct Listen(Vec<SocketAddr>);

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let addresses = Vec::from(Scalars::deserialize(deserializer)?);
        let address = |value| match value {
            Scalar::Text(text) => listen_address(&text),
            Scalar::Number(port) => listen_address(&port.to_string()),
            Scalar::Switch(_) | Scalar::Other => listen_address(""),
        };
        addresses
            .into_iter()
            .map(address)
            .collect::<Result<_, _>>()
            .map(Self)
            .map_err(de::Error::custom)
    }
}

impl From<Listen> for Vec<SocketAddr> {
    fn from(Listen(addresses): Listen) -> Self {
        addresses
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tallyring.toml");
        fs::write(&path, text).unwrap();
        let said = read_file(&path).err().unwrap().to_string();
        assert_eq!(said, format!("{} {expected}", path.display()), "{text:?}");
    }

    #[test]
    fn a_file_names_the_line_and_the_value_of_its_error() {
        check(
            "driver = \"auto\"\nlisten = true\n",
            "line 2: listen = true: it must be an address like 0.0.0.0:3000 or [::]:3000, or a port",
        );
        check(
            "listen = [\"[::]:80\", \"0.0.0.0:99999\"]\n",
            "line 1: listen = [\"[::]:80\", \"0.0.0.0:99999\"]: port 99999 is above 65535",
        );
        check(
            "\n\nworkers = \"two\"\n",
            "line 3: workers = \"two\": it must be a number from 1 to 1024",
        );
        check("workers = 5000\n", "line 1: workers = 5000: it must be a number from 1 to 1024");
        check("counter-timeout = 2\n", "line 1: counter-timeout = 2: write a time like \"2s\"");
        check("counter-timeout = 0.5\n", "line 1: counter-timeout = 0.5: write a time like \"2s\"");
        check(
            "counter-timeout = \"soon\"\n",
            "line 1: counter-timeout = \"soon\": it must be a time like 250ms, 5s or 1m",
        );
        check(
            "head-max = \"large\"\n",
            "line 1: head-max = \"large\": it must be a size like 65536, 64KiB or 1MB",
        );
        check(
            "sorry-status = 204\n",
            "line 1: sorry-status = 204: it must be a status from 200 to 599, except 204, 205 and 304, which \
             have no page",
        );
        check(
            "driver = \"steam\"\n",
            "line 1: driver = \"steam\": it must be auto, io_uring or epoll",
        );
        check("create = \"yes\"\n", "line 1: create = \"yes\": it must be true or false");
        check("cores = [0, 1]\n", "line 1: cores = [0, 1]: write it as text in quotes");
        check(
            "counter = \"https://a/\"\n",
            "line 1: counter = \"https://a/\": https:// is not supported yet; use http://, for example \
             through a local TLS proxy",
        );
    }

    #[test]
    fn an_unknown_key_is_named_with_the_nearest_one() {
        check(
            "\nlisen = 80\n",
            "line 2: lisen = 80: lisen is no setting here; did you mean listen?",
        );
        check("xyz = 1\n", "line 1: xyz = 1: xyz is no setting here");
        check(
            "[[route]]\npath = \"/\"\n\n[[route]]\npath = \"/a\"\nmethod = [\"GET\"]\n",
            "line 6: method = [\"GET\"]: method is no setting here; did you mean methods?",
        );
    }

    #[test]
    fn ports_and_lists_of_addresses() {
        let listen = |text: &str| toml::from_str::<File>(text).unwrap().listen.unwrap().0;
        let addresses = |texts: &[&str]| {
            texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>()
        };
        assert_eq!(listen("listen = 80"), addresses(&["0.0.0.0:80"]));
        assert_eq!(listen("listen = \":80\""), addresses(&["0.0.0.0:80"]));
        assert_eq!(listen("listen = [80, \"[::]:80\"]"), addresses(&["0.0.0.0:80", "[::]:80"]));
    }

    #[test]
    fn a_file_keeps_its_secrets() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tallyring.toml");
        let url = "http://user:s3cret@c/?token=s3cret&a=b";
        for setting in ["accept", "driver", "log-format", "workers", "create", "counter", "listen"]
        {
            fs::write(&path, format!("{setting} = \"{url}\"\n")).unwrap();
            let message = read_file(&path).err().unwrap().to_string();
            assert!(message.contains(setting) && !message.contains("s3cret"), "{message}");
        }
        // With quotes and spaces, or so long that the sign that shows it to be a secret is cut off.
        let long = format!("http://user:s3cret{}@c/", "x".repeat(200));
        for url in
            ["https://c/?token=it's3cret", "https://c/?a s3cret", "https://u:p a@s3cret@c/", &long]
        {
            for value in
                [format!("\"{url}\""), format!("\"\"\"\n{url}\"\"\""), format!("[\"{url}\"]")]
            {
                for setting in ["counter", "workers", "driver", "listen"] {
                    fs::write(&path, format!("{setting} = {value}\n")).unwrap();
                    let Err(error) = read_file(&path) else { continue };
                    assert!(!error.to_string().contains("s3cret"), "{error}");
                }
            }
        }
        fs::write(&path, format!("\"{url}\" = 1\n")).unwrap();
        assert!(!read_file(&path).err().unwrap().to_string().contains("s3cret"));
    }

    #[test]
    fn paths_are_relative_to_the_directory_of_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tallyring.toml");
        let text = "welcome = \"a.html\"\nsorry = \"/b.html\"\ndata-dir = \"data\"\n[[route]]\npath = \"/\"\nsorry = \"c/d\"";
        fs::write(&path, text).unwrap();
        let (file, _) = read_file(&path).unwrap();
        let within = |name| Some(directory.path().join(name));
        assert_eq!((file.welcome, file.data_dir), (within("a.html"), within("data")));
        assert_eq!(file.sorry, Some(PathBuf::from("/b.html")));
        assert_eq!((&file.route[0].welcome, &file.route[0].sorry), (&None, &within("c/d")));
    }
}
