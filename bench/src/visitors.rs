//! The programs on the other side of the server under test: its visitors and its counter, as processes on their cores.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
};

use tallyring_bench::{ask, load::Report};

use crate::process::{Process, free_address, spawn_on};

/// Where the programs of the other side run.
#[derive(Debug, Clone, Copy)]
pub struct OtherSide<'a> {
    /// Where the built programs are.
    pub programs: &'a Path,
    /// The cores of all of them.
    pub cores: &'a [usize],
}

impl OtherSide<'_> {
    /// Starts the counter stub, with this delay of each answer.
    ///
    /// # Errors
    /// When it does not start.
    pub fn counter(&self, delay_ms: u32) -> io::Result<(Process, SocketAddr)> {
        self.counter_delaying(delay_ms, 1)
    }

    /// Starts the counter stub, with this delay of one of so many answers.
    ///
    /// # Errors
    /// When it does not start.
    pub fn counter_delaying(
        &self,
        delay_ms: u32,
        one_in: u32,
    ) -> io::Result<(Process, SocketAddr)> {
        let address = free_address()?;
        let threads = self.cores.len();
        let figures = [delay_ms, u32::try_from(threads).unwrap_or(1), one_in];
        let arguments =
            [vec![address.to_string()], figures.map(|it| it.to_string()).into()].concat();
        let program = self.programs.join("stub");
        let mut counter = Process::start(self.cores, &program, &arguments)?;
        counter.wait_for(address)?;
        Ok((counter, address))
    }

    /// The command of the visitors of a site, to be spawned on these cores.
    pub fn command(&self, site: SocketAddr, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.programs.join("load"));
        command.arg(site.to_string()).args(["--threads", &self.cores.len().to_string()]);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts the visitors of a site, and does not wait for them.
    ///
    /// # Errors
    /// When their program cannot be started.
    pub fn send(&self, site: SocketAddr, arguments: &[&str]) -> io::Result<Child> {
        spawn_on(self.cores, &mut self.command(site, arguments))
    }

    /// Runs the visitors of a site; their report.
    ///
    /// # Errors
    /// When they fail.
    pub fn visit(&self, site: SocketAddr, arguments: &[&str]) -> io::Result<Report> {
        report(self.send(site, arguments)?)
    }
}

/// Waits for visitors that were started before; their report.
///
/// # Errors
/// When they fail.
pub fn report(visitors: Child) -> io::Result<Report> {
    let output = visitors.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!("load: {}: {}", output.status, said.trim_end())));
    }
    serde_json::from_slice(&output.stdout).map_err(io::Error::other)
}

/// How many visits a counter has counted.
///
/// # Errors
/// When it does not answer.
pub fn total(counter: SocketAddr) -> io::Result<u64> {
    figure(counter, "/counter")
}

/// How many calls the counter stub has got.
///
/// # Errors
/// When it does not answer.
pub fn calls(counter: SocketAddr) -> io::Result<u64> {
    figure(counter, "/calls")
}

fn figure(counter: SocketAddr, path: &str) -> io::Result<u64> {
    let figure = ask(&TcpStream::connect(counter)?, path)?;
    figure.trim().parse().map_err(|_| io::Error::other(format!("the counter says {figure:?}")))
}
