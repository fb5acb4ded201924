//! What a start logs: a few lines on a terminal, one sentence in a text log, and fields in logs for programs.

use std::net::SocketAddr;

use crate::{
    config::Cores,
    counter::store::Counted,
    log::{self, Format},
    plural::{grouped, plural},
};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What has started.
#[derive(Debug, Clone)]
pub(super) struct StartSummary {
    /// What is served: the site, or a counter.
    pub(super) role: Role,
    /// Where it is served.
    pub(super) addresses: Vec<SocketAddr>,
    /// What it waits on.
    pub(super) driver: String,
    /// Where the counter in this process keeps its totals, if there is one.
    pub(super) store: Option<String>,
    /// What it has counted.
    pub(super) count: Option<Counted>,
    /// Where the admin listener is.
    pub(super) admin: Option<SocketAddr>,
}

/// What is served.
#[derive(Debug, Clone)]
pub(super) enum Role {
    /// The site.
    Site {
        /// How many workers serve it.
        workers: usize,
        /// On which cores.
        cores: Cores,
        /// The counters that register the visits, each once; the bundled one ends in [`BUNDLED`].
        counters: Vec<String>,
        /// Whether each connection must begin with a PROXY header.
        proxy_protocol: bool,
    },
    /// A counter alone.
    Counter,
}

impl StartSummary {
    /// Logs it in the format of the log.
    pub(super) fn tell(&self) {
        match log::chosen() {
            Format::Terminal => tracing::info!(target: log::PLAIN, "{}", self.lines()),
            Format::Json | Format::Journal => self.tell_fields(),
            Format::Text | Format::Auto => tracing::info!("{}", self.sentence()),
        }
    }

    fn tell_fields(&self) {
        let listen = self.urls().join(",");
        let (driver, store, count) =
            (self.driver.as_str(), self.store.as_deref(), self.count.map(|count| count.total));
        let admin = self.admin.map(url);
        let admin = admin.as_deref();
        match &self.role {
            Role::Site { workers, cores, counters, proxy_protocol } => {
                let (cores, counter) = (cores.to_string(), counters.join(","));
                let (cores, counter) = (cores.as_str(), counter.as_str());
                // Without a value it is left out.
                let proxy_protocol = proxy_protocol.then_some(true);
                tracing::info!(
                    listen,
                    workers,
                    cores,
                    driver,
                    counter,
                    store,
                    count,
                    admin,
                    proxy_protocol,
                    "tallyring {VERSION} serves"
                );
            }
            Role::Counter => {
                tracing::info!(listen, driver, store, count, "tallyring {VERSION} counts");
            }
        }
    }

    /// For a log that is read by people.
    fn sentence(&self) -> String {
        let (urls, driver) = (self.urls().join(" and "), &self.driver);
        let admin = self.admin.map(|address| format!("; admin on {}", url(address)));
        let counted = match (self.count, &self.store) {
            (Some(count), Some(store)) => format!("; {count} in {store}"),
            _ => String::new(),
        };
        match &self.role {
            Role::Site { workers, cores, counters, proxy_protocol } => format!(
                "tallyring {VERSION} serves {urls}{} with {} by {driver}; {}{counted}{}",
                if *proxy_protocol { " by the PROXY protocol" } else { "" },
                on_cores(*workers, cores),
                match counters.as_slice() {
                    [] => String::from("no route is counted"),
                    counters => format!("visits go to {}", counters.join(", ")),
                },
                admin.unwrap_or_default(),
            ),
            Role::Counter => format!("tallyring {VERSION} counts at {urls}, on {driver}{counted}"),
        }
    }

    /// For a person who has just started it.
    fn lines(&self) -> String {
        let mut lines = vec![format!("tallyring {VERSION}")];
        let mut say = |what: &str, text: String| lines.push(format!("  {what:<8} {text}"));
        let path = if matches!(self.role, Role::Site { .. }) { "/" } else { "/counter" };
        for address in &self.addresses {
            say("open", format!("{}{path}", reachable(address)));
        }
        let counters = match &self.role {
            Role::Site { counters, .. } => counters.as_slice(),
            Role::Counter => &[],
        };
        // The bundled one is shown by its store.
        for counter in counters.iter().filter(|counter| !counter.ends_with(BUNDLED)) {
            say("counter", counter.clone());
        }
        if let Some(store) = &self.store {
            let count = self.count.map(|count| format!("{} ", grouped(count.total)));
            say("count", format!("{}in {store}", count.unwrap_or_default()));
        }
        match &self.role {
            Role::Site { workers, cores, proxy_protocol, .. } => {
                if *proxy_protocol {
                    say("proxy", String::from("each connection must begin with a PROXY header"));
                }
                say("runs", format!("{}, by {}", on_cores(*workers, cores), self.driver));
            }
            Role::Counter => say("runs", format!("by {}", self.driver)),
        }
        if let Some(admin) = self.admin {
            say("metrics", format!("{}/metrics", url(admin)));
        }
        say("stop", String::from("Ctrl-C"));
        lines.join("\n")
    }

    fn urls(&self) -> Vec<String> {
        let path = if matches!(self.role, Role::Site { .. }) { "" } else { "/counter" };
        self.addresses.iter().map(|&address| url(address) + path).collect()
    }
}

/// Follows the URL of the bundled counter.
pub(super) const BUNDLED: &str = " (bundled)";

fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}

/// A URL for a browser on this machine, also where the server listens on all addresses.
fn reachable(address: &SocketAddr) -> String {
    match address.ip().is_unspecified() {
        true => format!("http://localhost:{}", address.port()),
        false => url(*address),
    }
}

fn on_cores(workers: usize, cores: &Cores) -> String {
    let noun = if cores.0.len() == 1 { "core" } else { "cores" };
    format!("{} on {noun} {cores}", plural(workers, "worker"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(workers: usize, cores: &str) -> StartSummary {
        StartSummary {
            role: Role::Site {
                workers,
                cores: cores.parse().unwrap(),
                counters: vec![format!("http://127.0.0.1:3001/counter{BUNDLED}")],
                proxy_protocol: false,
            },
            addresses: vec!["0.0.0.0:3000".parse().unwrap()],
            driver: String::from("epoll (chosen by --driver epoll)"),
            store: Some(String::from("/data/counter.redb")),
            count: Some(Counted { total: 1234, named: 0 }),
            admin: Some("127.0.0.1:9300".parse().unwrap()),
        }
    }

    #[test]
    fn a_terminal_gets_a_few_lines() {
        let expected = format!(
            "tallyring {VERSION}\n  \
             open     http://localhost:3000/\n  \
             count    1,234 in /data/counter.redb\n  \
             runs     2 workers on cores 0-1, by epoll (chosen by --driver epoll)\n  \
             metrics  http://127.0.0.1:9300/metrics\n  \
             stop     Ctrl-C"
        );
        assert_eq!(site(2, "0-1").lines(), expected);
        let mut other = site(1, "3");
        (other.count, other.admin) = (None, None);
        other.addresses.push("[::1]:80".parse().unwrap());
        if let Role::Site { counters, proxy_protocol, .. } = &mut other.role {
            counters.push(String::from("http://counter/a?…"));
            *proxy_protocol = true;
        }
        let expected = format!(
            "tallyring {VERSION}\n  \
             open     http://localhost:3000/\n  \
             open     http://[::1]:80/\n  \
             counter  http://counter/a?…\n  \
             count    in /data/counter.redb\n  \
             proxy    each connection must begin with a PROXY header\n  \
             runs     1 worker on core 3, by epoll (chosen by --driver epoll)\n  \
             stop     Ctrl-C"
        );
        assert_eq!(other.lines(), expected);
    }

    #[test]
    fn a_log_gets_a_sentence() {
        let expected = format!(
            "tallyring {VERSION} serves http://0.0.0.0:3000 with 2 workers on cores 0-1 by epoll (chosen by \
             --driver epoll); visits go to http://127.0.0.1:3001/counter (bundled); 1,234 counted in \
             /data/counter.redb; admin on http://127.0.0.1:9300"
        );
        assert_eq!(site(2, "0-1").sentence(), expected);
        let mut relayed = site(2, "0-1");
        if let Role::Site { proxy_protocol, .. } = &mut relayed.role {
            *proxy_protocol = true;
        }
        let begin = format!("tallyring {VERSION} serves http://0.0.0.0:3000");
        let expected = expected.replace(&begin, &format!("{begin} by the PROXY protocol"));
        assert_eq!(relayed.sentence(), expected);
        let counter = StartSummary { role: Role::Counter, admin: None, ..site(1, "0") };
        let expected = format!(
            "tallyring {VERSION} counts at http://0.0.0.0:3000/counter, on epoll (chosen by --driver epoll); \
             1,234 counted in /data/counter.redb"
        );
        assert_eq!(counter.sentence(), expected);
        assert!(counter.lines().contains("open     http://localhost:3000/counter\n"));
    }
}
