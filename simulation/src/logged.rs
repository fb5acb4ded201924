//! What clients have asked and were told, which the access log is held against.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crate::{
    access_log::Entry,
    answers::{Answer, Told},
    request::Request,
};

/// What the access log says of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    worker: usize,
    client: IpAddr,
    line: String,
    user_agent: String,
    status: u16,
    content_bytes: u64,
    outcome: &'static str,
}

impl Logged {
    /// An entry of this worker.
    pub fn of(entry: &Entry<'_>, worker: usize) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            worker,
            client: entry.client,
            line: text(entry.line),
            user_agent: text(entry.user_agent),
            status: entry.status,
            content_bytes: entry.content_bytes,
            outcome: entry.outcome,
        }
    }
}

/// What all clients have asked and were told, by their addresses, of which no two are the same.
#[derive(Default)]
pub struct Said(BTreeMap<IpAddr, Client>);

struct Client {
    worker: usize,
    /// Its requests, by their names.
    asked: BTreeMap<String, Asked>,
    /// Whether it has sent something that is no such request.
    asked_anything: bool,
    /// The status of its refusal.
    refused: Option<u16>,
}

struct Asked {
    line: String,
    told: Option<Line>,
}

/// Status, bytes of the content, outcome.
type Line = (u16, u64, &'static str);

impl Said {
    /// A client is connected to a worker.
    pub fn comes(&mut self, address: IpAddr, worker: usize) {
        let client =
            Client { worker, asked: BTreeMap::new(), asked_anything: false, refused: None };
        self.0.insert(address, client);
    }

    fn client(&mut self, address: IpAddr) -> &mut Client {
        self.0.get_mut(&address).expect("it has come")
    }

    /// It asks this.
    pub fn asks(&mut self, address: IpAddr, request: &Request) {
        let asked = Asked { line: request.line(), told: None };
        self.client(address).asked.insert(format!("r{}", request.id), asked);
    }

    /// It sends what is no request, or another one.
    pub fn asks_anything(&mut self, address: IpAddr) {
        self.client(address).asked_anything = true;
    }

    /// It is refused.
    pub fn is_refused(&mut self, address: IpAddr, status: u16) {
        self.client(address).refused = Some(status);
    }

    /// It has read this answer.
    pub fn is_told(&mut self, address: IpAddr, request: &Request, answer: &Answer, told: Told) {
        let outcome = match told {
            Told::Welcome => "welcomed",
            Told::Sorry => "erred",
            Told::Overloaded => "refused",
            Told::Nothing => "uncounted",
        };
        let asked = self.client(address).asked.get_mut(&format!("r{}", request.id));
        let line = (answer.status, answer.content.len() as u64, outcome);
        asked.expect("it has asked").told = Some(line);
    }

    /// What is wrong with a log that has these entries; each worker has dropped so many. `is_whole` says whether all
    /// requests are recorded; `moved` how many clients moved to another worker, where any may be served by another one
    /// than it is connected to.
    pub fn check(
        &mut self,
        logged: &[Logged],
        dropped: &[u64],
        is_whole: bool,
        moved: Option<u64>,
    ) -> Vec<String> {
        let mut dropped = dropped.to_vec();
        if moved.is_some() {
            self.follow(logged);
            // Nobody knows whose clients have no entry at all.
            dropped = vec![dropped.iter().sum(); dropped.len()];
        }
        let mut wrong = Vec::new();
        let mut seen = BTreeSet::new();
        for entry in logged {
            if let Err(why) = self.check_entry(entry, &mut seen, moved.is_some()) {
                wrong.push(format!("{why}: {entry:?}"));
            }
        }
        let places: BTreeSet<_> = logged.iter().map(|entry| (entry.client, entry.worker)).collect();
        let clients: BTreeSet<_> = logged.iter().map(|entry| entry.client).collect();
        let changed = (places.len() - clients.len()) as u64;
        if moved.is_some_and(|moved| changed > moved) {
            wrong.push(format!("clients changed their worker {changed} times, of {moved:?}"));
        }
        for (worker, &dropped) in dropped.iter().enumerate().filter(|_| is_whole) {
            let clients = self.0.iter().filter(|(_, client)| client.worker == worker);
            let missing: Vec<String> = clients
                .flat_map(|(address, client)| client.missing(*address, logged, &seen))
                .collect();
            if missing.len() as u64 > dropped {
                wrong.push(format!("{dropped} were dropped by worker {worker}, but {missing:?}"));
            }
        }
        wrong
    }

    /// Each client is one of the worker that has its first entry.
    fn follow(&mut self, logged: &[Logged]) {
        let mut seen = BTreeSet::new();
        for entry in logged.iter().filter(|entry| seen.insert(entry.client)) {
            if let Some(client) = self.0.get_mut(&entry.client) {
                client.worker = entry.worker;
            }
        }
    }

    fn check_entry<'a>(
        &self,
        entry: &'a Logged,
        seen: &mut BTreeSet<&'a str>,
        moves: bool,
    ) -> Result<(), &'static str> {
        let client = self.0.get(&entry.client).ok_or("nobody is there")?;
        if !moves && client.worker != entry.worker {
            return Err("its client is another worker's");
        }
        let name = entry.user_agent.as_str();
        let Some(asked) = client.asked.get(name) else {
            return match client.refused {
                _ if !name.is_empty() => Err("its client has not asked that"),
                // A head that came too slowly is no request either.
                Some(status) if status == entry.status => Ok(()),
                _ if client.asked_anything || entry.status == 408 => Ok(()),
                _ => Err("its client has sent requests only"),
            };
        };
        if !seen.insert(name) {
            return Err("there are two of it");
        }
        let line = (entry.status, entry.content_bytes, entry.outcome);
        match asked.told {
            _ if asked.line != entry.line => Err("it asked something else"),
            Some(told) if told != line => Err("its client was told something else"),
            // One that is not welcomed may be known to be so before it is its turn to be answered.
            _ if entry.status == 499 && entry.outcome == "welcomed" => Err("it was not answered"),
            _ => Ok(()),
        }
    }
}

impl Client {
    /// Which of its answers have no entry.
    fn missing(&self, address: IpAddr, logged: &[Logged], seen: &BTreeSet<&str>) -> Vec<String> {
        let told = self.asked.iter().filter(|(_, asked)| asked.told.is_some());
        let missing = told.filter(|(name, _)| !seen.contains(name.as_str()));
        let missing = missing.map(|(name, asked)| format!("{name} {} is missing", asked.line));
        let refused = self.refused.filter(|status| {
            !logged.iter().any(|entry| entry.client == address && entry.status == *status)
        });
        let refused = refused.map(|status| format!("{address} was refused with {status}"));
        missing.chain(refused).collect()
    }
}
