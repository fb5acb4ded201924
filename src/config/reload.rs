//! Settings that are read while the server runs: which of them take effect at once, and which need a restart.

use super::{
    Config, Content, RouteConfig, Settled, VisitsConfig, counters::show_counters, pick::Setting,
};

/// Settings that are applied only at the start.
const NEED_RESTART: [&str; 20] = [
    "listen",
    "share-port",
    "counter-spread",
    "counter-listen",
    "counter-hosts",
    "skip-counter-check",
    "workers",
    "cores",
    "balance",
    "driver",
    "store",
    "store-shard",
    "data-dir",
    "create",
    "admin",
    "log-format",
    "access-log",
    "access-log-format",
    "access-log-sample",
    "trusted-proxy",
];

/// Settings that are a part of each route; their changes are told as changes of the routes.
const OF_ROUTES: [&str; 3] = ["counter", "welcome", "sorry"];

/// The result of a reload.
#[derive(Debug)]
pub struct Renewed {
    /// The settings from now on.
    pub settled: Settled,
    /// Lines about what has changed.
    pub changes: Vec<String>,
    /// Lines about what needs a restart and stays as it was.
    pub restarts: Vec<String>,
}

/// Merges the settings that were read with the `running` ones, which keep what needs a restart. `known` says whether
/// the workers know the counter of these visits: they know those of the start only.
pub fn renew(running: &Settled, read: Settled, known: impl Fn(&VisitsConfig) -> bool) -> Renewed {
    let Settled { config: mut read, settings: read_settings, notes } = read;
    let mut restarts = Vec::new();
    let mut changes = Vec::new();
    let mut settings = Vec::new();
    // Until a restart the workers trust whom they trusted at the start, so that nobody else may name clients.
    let trust_waits = running.config.trusted_proxies != read.trusted_proxies;
    if trust_waits {
        read.limits.clients.proxy_protocol = running.config.limits.clients.proxy_protocol;
    }
    for setting in read_settings {
        let Some(old) = running.settings.iter().find(|old| old.name == setting.name) else {
            settings.push(setting);
            continue;
        };
        let (name, was, is) = (setting.name.as_str(), &old.value, &setting.value);
        let needs_restart =
            NEED_RESTART.contains(&name) || (trust_waits && name == "proxy-protocol");
        if is != was && needs_restart && !follows(&setting) {
            restarts.push(format!("{name} needs a restart: {was} stays, {is} was read"));
        } else if is != was && !needs_restart && !is_of_routes(name) {
            changes.push(format!("{name} is {is}, was {was}"));
        }
        settings.push(if needs_restart { old.clone() } else { setting });
    }
    let routes = read.routes.into_iter().zip(read.contents);
    let routes = renew_routes(&running.config.routes, routes, known, &mut restarts);
    (read.routes, read.contents) = routes.into_iter().unzip();
    changes.extend(route_changes(&running.config.routes, &read.routes));
    let config = without_restart(&running.config, read);
    Renewed { settled: Settled { config, settings, notes }, changes, restarts }
}

/// The settings that were read, with the running ones where a restart is needed.
fn without_restart(running: &Config, read: Config) -> Config {
    Config {
        listen: running.listen.clone(),
        share_port: running.share_port,
        cores: running.cores.clone(),
        balance: running.balance,
        driver: running.driver,
        bundled: running.bundled.clone(),
        counter_listen: running.counter_listen,
        counter_hosts: running.counter_hosts.clone(),
        counter_spread: running.counter_spread,
        skip_counter_check: running.skip_counter_check,
        create: running.create,
        admin: running.admin,
        log_format: running.log_format,
        access_log: running.access_log.clone(),
        trusted_proxies: running.trusted_proxies.clone(),
        ..read
    }
}

/// Whether the value was computed from another setting, which has a line of its own.
fn follows(setting: &Setting) -> bool {
    setting.source.starts_with("follows from")
}

/// Whether the setting is a route, or a part of each.
fn is_of_routes(name: &str) -> bool {
    OF_ROUTES.contains(&name) || name.starts_with("route ")
}

/// The routes that were read, with their contents. One whose counter the workers do not know keeps its running counter;
/// without one it is left out.
fn renew_routes(
    running: &[RouteConfig],
    read: impl Iterator<Item = (RouteConfig, Content)>,
    known: impl Fn(&VisitsConfig) -> bool,
    restarts: &mut Vec<String>,
) -> Vec<(RouteConfig, Content)> {
    let renew = |(mut route, content): (RouteConfig, Content)| {
        if route.visits().is_none_or(&known) {
            return Some((route, content));
        }
        let path = route.path.clone();
        let visits = route.visits_mut()?;
        let counter = shown(visits);
        let old = running.iter().find(|old| old.path == path).and_then(RouteConfig::visits);
        let Some(old) = old else {
            restarts.push(format!(
                "route {path} needs a restart and is left out: {counter} is on a new host"
            ));
            return None;
        };
        restarts.push(format!(
            "the counter of route {path} needs a restart: {} stays, {counter} was read",
            shown(old)
        ));
        visits.counters.clone_from(&old.counters);
        Some((route, content))
    };
    read.filter_map(renew).collect()
}

fn shown(visits: &VisitsConfig) -> String {
    show_counters(&visits.counters, "the bundled counter")
}

fn route_changes(running: &[RouteConfig], now: &[RouteConfig]) -> Vec<String> {
    let find = |routes: &[RouteConfig], path: &str| {
        routes.iter().find(|route| route.path == path).cloned()
    };
    let gone = running.iter().filter(|old| find(now, &old.path).is_none());
    let gone = gone.map(|old| format!("route {} is gone", old.path));
    let renewed = now.iter().filter_map(|route| match find(running, &route.path) {
        None => Some(format!("route {} is new", route.path)),
        Some(old) if old != *route => Some(format!("route {} has changed", route.path)),
        Some(_) => None,
    });
    gone.chain(renewed).collect()
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches};

    use super::*;
    use crate::config::{Arguments, settle};

    fn settled(file: &str) -> Settled {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tallyring.toml");
        std::fs::write(&path, file).unwrap();
        let words = ["tallyring", "--config", path.to_str().unwrap(), "--data-dir", "/nowhere"];
        let matches = Arguments::command().get_matches_from(words);
        let arguments = Arguments::from_arg_matches(&matches).unwrap();
        settle(&arguments.serve, &matches).unwrap()
    }

    const RUNNING: &str = "counter = \"http://10.0.0.1/a\"\n[[route]]\npath = \"/\"\n\
                           [[route]]\npath = \"/b\"\ncounter = \"http://10.0.0.2/b\"\n";

    /// Whether the counter of these visits is one of [`RUNNING`].
    fn known(visits: &VisitsConfig) -> bool {
        let is_known = |counter: String| {
            counter.starts_with("http://10.0.0.1/") || counter.starts_with("http://10.0.0.2/")
        };
        !visits.counters.is_empty() && visits.counters.iter().map(ToString::to_string).all(is_known)
    }

    /// What a server that runs with [`RUNNING`] says of `read`.
    #[track_caller]
    fn check(read: &str, changes: &[&str], restarts: &[&str]) -> Renewed {
        let running = settled(RUNNING);
        let renewed = renew(&running, settled(read), known);
        assert_eq!(renewed.changes, changes, "{read}");
        assert_eq!(renewed.restarts, restarts, "{read}");
        renewed
    }

    #[test]
    fn most_settings_take_effect_at_once() {
        check(RUNNING, &[], &[]);
        let renewed = check(
            &format!("head-max = \"32KiB\"\nlog-level = \"warn\"\n{RUNNING}"),
            &["log-level is warn, was info", "head-max is 32KiB, was 16KiB"],
            &[],
        );
        assert_eq!(renewed.settled.config.limits.clients.head.head_bytes_max, 32 * 1024);
        let renewed = check(
            &RUNNING.replace("10.0.0.2/b", "10.0.0.1/b").replace("/b\"\nc", "/c\"\nc"),
            &["route /b is gone", "route /c is new"],
            &[],
        );
        assert_eq!(renewed.settled.config.routes.len(), 2);
        let posted = RUNNING.replace("\"/\"", "\"/\"\nmethods = [\"POST\"]");
        check(&posted, &["route / has changed"], &[]);
    }

    #[test]
    fn what_needs_a_restart_stays_and_is_told() {
        let read =
            format!("listen = \"0.0.0.0:4000\"\nadmin = \"off\"\nbody-max = \"1KiB\"\n{RUNNING}");
        let renewed = check(
            &read,
            &["body-max is 1KiB, was 64KiB"],
            &[
                "listen needs a restart: 0.0.0.0:3000 stays, 0.0.0.0:4000 was read",
                "admin needs a restart: 127.0.0.1:9300 stays, off was read",
            ],
        );
        let config = &renewed.settled.config;
        assert_eq!(config.listen, ["0.0.0.0:3000".parse().unwrap()]);
        assert!(config.admin.is_some());
        // It is told at each reload, as long as it differs.
        let again = renew(&renewed.settled, settled(&read), known);
        assert_eq!((again.changes, again.restarts.len()), (vec![], 2));
    }

    #[test]
    fn cores_are_told_by_the_setting_that_gives_them() {
        let core = crate::runtime::host::cores()[0];
        let running = settled(&format!("workers = 3\n{RUNNING}"));
        let read = settled(&format!("cores = \"{core}\"\n{RUNNING}"));
        let renewed = renew(&running, read, known);
        assert!(renewed.restarts.iter().all(|line| line.starts_with("cores needs a restart: ")));
        assert_eq!(renewed.settled.config.cores.len(), 3);
        let read = settled(&format!("workers = 2\n{RUNNING}"));
        let renewed = renew(&running, read, known);
        assert_eq!(renewed.restarts, ["workers needs a restart: 3 stays, 2 was read"]);
    }

    #[test]
    fn a_counter_on_a_new_host_needs_a_restart() {
        let renewed = check(
            &RUNNING.replace("10.0.0.2/b", "10.0.0.3/b"),
            &[],
            &["the counter of route /b needs a restart: http://10.0.0.2/b stays, \
               http://10.0.0.3/b was read"],
        );
        assert_eq!(renewed.settled.config.routes, settled(RUNNING).config.routes);
        let renewed = check(
            &format!("{RUNNING}[[route]]\npath = \"/c\"\ncounter = \"http://10.0.0.3/\"\n"),
            &[],
            &["route /c needs a restart and is left out: http://10.0.0.3/ is on a new host"],
        );
        let Config { routes, contents, .. } = renewed.settled.config;
        assert_eq!((routes.len(), contents.len()), (2, 2));
        check(
            &RUNNING.replace("counter = \"http://10.0.0.1/a\"\n", ""),
            &[],
            &["the counter of route / needs a restart: http://10.0.0.1/a stays, \
               the bundled counter was read"],
        );
    }

    /// A new setting must be put into one of the lists.
    #[test]
    fn every_setting_is_known_here() {
        let applied = [
            "proxy-protocol",
            "sorry-status",
            "accept",
            "trace-context",
            "trace-sample",
            "admin-hosts",
            "ready-needs-counter",
            "log-level",
            "head-max",
            "head-fields-max",
            "target-max",
            "body-max",
            "connections-max",
            "counter-connections-max",
            "counter-queue-max",
            "counter-batch-max",
            "counter-pipeline",
            "head-timeout",
            "body-timeout",
            "idle-timeout",
            "write-timeout",
            "counter-connect-timeout",
            "counter-timeout",
            "counter-idle-timeout",
            "drain-timeout",
            "files-max",
        ];
        for Setting { name, .. } in settled("").settings {
            let lists = [
                NEED_RESTART.contains(&name.as_str()),
                applied.contains(&name.as_str()),
                is_of_routes(&name),
            ];
            assert_eq!(lists.iter().filter(|is_in| **is_in).count(), 1, "{name}");
        }
    }
}
