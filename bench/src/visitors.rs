//! The programs on the other side of the server under test: its visitors and its counter, each as a
//! process on cores of their own.

use std::{
    io,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
};

use tallyring_bench::load::Report;

use crate::{
    arms::list,
    process::{Process, free_address},
};

/// Where the programs of the other side run.
#[derive(Debug, Clone, Copy)]
pub struct OtherSide<'a> {
    /// Where the built programs are.
    pub programs: &'a Path,
    /// The cores of all of them together.
    pub cores: &'a [usize],
}

impl OtherSide<'_> {
    /// Starts the counter stub, which takes so long for each answer.
    ///
    /// # Errors
    /// When it does not start.
    pub fn counter(&self, delay_ms: u32) -> io::Result<(Process, SocketAddr)> {
        let address = free_address()?;
        let threads = self.cores.len();
        let arguments = [address.to_string(), delay_ms.to_string(), threads.to_string()];
        let program = self.programs.join("stub");
        let mut counter = Process::start(&list(self.cores), &program, &arguments)?;
        counter.wait_for(address)?;
        Ok((counter, address))
    }

    /// The command that lets visitors loose on a site.
    pub fn command(&self, site: SocketAddr, arguments: &[&str]) -> Command {
        let mut command = Command::new("taskset");
        command.args(["-c", &list(self.cores)]).arg(self.programs.join("load"));
        command.arg(site.to_string()).args(["--threads", &self.cores.len().to_string()]);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Lets visitors loose on a site; what they saw.
    ///
    /// # Errors
    /// When they do not say.
    pub fn visit(&self, site: SocketAddr, arguments: &[&str]) -> io::Result<Report> {
        report(self.command(site, arguments).spawn()?)
    }
}

/// What visitors saw who were let loose before.
///
/// # Errors
/// When they do not say.
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
/// When it does not say.
pub fn total(counter: SocketAddr) -> io::Result<u64> {
    let mut stream = TcpStream::connect(counter)?;
    stream.write_all(b"GET /counter HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
    let mut answer = [0; 1024];
    let count = stream.read(&mut answer)?;
    let text = String::from_utf8_lossy(&answer[..count]);
    let body = text.split_once("\r\n\r\n").and_then(|(_, body)| body.trim().parse().ok());
    body.ok_or_else(|| io::Error::other(format!("the counter says {text:?}")))
}
