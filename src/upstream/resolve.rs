//! The addresses of counters that are given by name, looked up by the system's resolver on a thread
//! of their own, since that can take seconds and no worker ever waits for it.

use std::{
    io,
    net::{SocketAddr, ToSocketAddrs},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use super::Host;
use crate::runtime::task;

/// How long an answer is used.
const REFRESH: Duration = Duration::from_secs(30);
/// The least time between two look-ups, however many connects fail.
const PAUSE: Duration = Duration::from_secs(1);

/// Asks for a name to be looked up again. Cheap, never blocks, and may be repeated.
#[derive(Debug, Clone)]
pub struct Refresher(Option<mpsc::SyncSender<()>>);

impl Refresher {
    /// The addresses may have changed.
    pub fn refresh(&self) {
        if let Some(sender) = &self.0 {
            // Full means that it was asked already.
            let _ = sender.try_send(());
        }
    }
}

/// Looks up `host`, then keeps looking: every 30 seconds and when asked to. Calls `publish` with the first answer,
/// and with each later one that differs from the last.
///
/// A literal address is published at once and never looked up again.
///
/// # Errors
/// When the thread cannot be started.
pub fn start<P>(host: Host, mut publish: P) -> io::Result<Refresher>
where
    P: FnMut(Vec<SocketAddr>) + Send + 'static,
{
    let (name, port) = match host {
        Host::Address(address) => {
            publish(vec![address]);
            return Ok(Refresher(None));
        }
        Host::Name(name, port) => (name, port),
    };
    let (sender, asked) = mpsc::sync_channel(1);
    let look = move || look_up(&name, port).map_err(|error| format!("{name}: {error}"));
    // Without it the addresses would never change.
    task::spawn_essential_thread(String::from("resolver"), move || {
        keep_looking(look, &asked, PAUSE, publish);
    })?;
    Ok(Refresher(Some(sender)))
}

/// Looks, publishes what is new, and waits until the answer is old or somebody asks.
// On a thread of its own.
#[allow(clippy::disallowed_methods)]
fn keep_looking<L, P>(mut look: L, asked: &mpsc::Receiver<()>, pause: Duration, mut publish: P)
where
    L: FnMut() -> Result<Vec<SocketAddr>, String>,
    P: FnMut(Vec<SocketAddr>),
{
    let mut current: Option<Vec<SocketAddr>> = None;
    let mut failing = false;
    loop {
        let began = Instant::now();
        match look() {
            Ok(addresses) => {
                if failing {
                    tracing::info!("the counter's name can be looked up again");
                }
                failing = false;
                if !current.as_ref().is_some_and(|current| same(current, &addresses)) {
                    tracing::info!("the counter's name has the addresses {addresses:?}");
                    publish(addresses.clone());
                    current = Some(addresses);
                }
            }
            Err(error) => {
                let kept = if current.is_some() { "; its last addresses are kept" } else { "" };
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!("the counter's name cannot be looked up: {error}{kept}");
                    if current.is_none() {
                        // There is a first answer, even without addresses.
                        publish(Vec::new());
                    }
                }
            }
        }
        let timeout = if current.is_some() { REFRESH } else { pause };
        if asked.recv_timeout(timeout) == Err(mpsc::RecvTimeoutError::Disconnected) {
            return;
        }
        thread::sleep(pause.saturating_sub(began.elapsed()));
    }
}

/// All addresses of a name, each once, in the resolver's order (RFC 6724).
fn look_up(name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let mut addresses = Vec::new();
    for address in (name, port).to_socket_addrs()? {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "it has no address"));
    }
    Ok(addresses)
}

/// Whether two answers name the same addresses; many name servers change the order with each answer.
fn same(one: &[SocketAddr], other: &[SocketAddr]) -> bool {
    one.len() == other.len() && one.iter().all(|address| other.contains(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_literal_address_is_published_at_once() {
        let address: SocketAddr = "127.0.0.1:80".parse().unwrap();
        let (sender, published) = mpsc::channel();
        let refresher =
            start(Host::Address(address), move |addresses| sender.send(addresses).unwrap());
        assert_eq!(published.try_recv(), Ok(vec![address]));
        refresher.unwrap().refresh();
    }

    #[test]
    fn a_name_is_looked_up_by_the_system() {
        let addresses = look_up("localhost", 80).unwrap();
        assert!(addresses.iter().all(|address| address.ip().is_loopback()), "{addresses:?}");
        assert!(!addresses.is_empty());
    }

    #[test]
    fn an_unknown_name_publishes_that_there_is_no_address() {
        let (sender, published) = mpsc::channel();
        let host = Host::Name(String::from("no-such-name.invalid"), 80);
        let _refresher = start(host, move |addresses| drop(sender.send(addresses))).unwrap();
        assert_eq!(published.recv(), Ok(vec![]));
    }

    #[test]
    fn what_is_new_is_published_and_the_last_good_answer_kept() {
        let [a, b] = ["127.0.0.1:1", "127.0.0.2:1"].map(|text| text.parse::<SocketAddr>().unwrap());
        let mut answers = vec![
            Err(String::from("not yet")),
            Err(String::from("not yet")),
            Ok(vec![a, b]),
            Ok(vec![b, a]),
            Err(String::from("gone")),
            Ok(vec![a, b]),
            Ok(vec![b]),
        ]
        .into_iter();
        let (sender, asked) = mpsc::sync_channel(1);
        let mut sender = Some(sender);
        let mut published = Vec::new();
        let look = || {
            let answer = answers.next().unwrap();
            // A refresh is asked for before each wait; after the last answer the sender is gone.
            match answers.len() {
                0 => drop(sender.take()),
                _ => Refresher(sender.clone()).refresh(),
            }
            answer
        };
        keep_looking(look, &asked, Duration::ZERO, |addresses| published.push(addresses));
        assert_eq!(published, [vec![], vec![a, b], vec![b]]);
    }
}
