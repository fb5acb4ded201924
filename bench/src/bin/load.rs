//! The visitors that load a server, as a program. Prints their report as JSON.

use std::{
    collections::HashMap,
    io,
    net::{SocketAddr, TcpStream},
    os::fd::{IntoRawFd, RawFd},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use tallyring_bench::{
    ask,
    load::{self, Plan, Until},
    thread_nanoseconds,
};

/// Visits that show which thread serves a connection.
const SOUNDING: usize = 300;
/// Connections opened in search of some that one thread serves.
const SOUNDINGS_MAX: usize = 64;

#[derive(Debug, Parser)]
#[command(name = "load", about = "Makes visits and measures how long each takes")]
struct Arguments {
    /// The server
    address: SocketAddr,
    #[arg(long, default_value = "/")]
    path: String,
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Visits a second of all connections together; without it each makes its next visit at once
    #[arg(long)]
    rate: Option<f64>,
    /// Open another connection after so many visits
    #[arg(long)]
    visits_per_connection: Option<u64>,
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Stop after so many visits instead
    #[arg(long)]
    visits: Option<u64>,
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Use only connections that one thread of this process serves, if its connections have one
    #[arg(long, value_name = "PID")]
    hot: Option<u32>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let address = arguments.address;
    match visit_all(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load: {address}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn visit_all(arguments: Arguments) -> io::Result<()> {
    let plan = Plan {
        address: arguments.address,
        path: arguments.path,
        connections: arguments.connections,
        rate: arguments.rate,
        visits_per_connection: arguments.visits_per_connection,
        until: match arguments.visits {
            Some(visits) => Until::Visits(visits),
            None => Until::Time(Duration::from_secs_f64(arguments.seconds)),
        },
    };
    let mut soundings = 0;
    let sockets = match arguments.hot {
        Some(process) => hot(&plan, process, &mut soundings)?,
        None => Vec::new(),
    };
    let mut report = load::run(&plan, arguments.threads, &sockets)?;
    report.sounding_visits = soundings;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

/// Connections that the same thread serves: those of the thread that first has enough. Where threads share connections,
/// a connection counts for the thread that did most of the work for it.
fn hot(plan: &Plan, process: u32, visits: &mut u64) -> io::Result<Vec<RawFd>> {
    let mut by_thread: HashMap<i32, Vec<TcpStream>> = HashMap::new();
    for _ in 0..SOUNDINGS_MAX {
        let stream = TcpStream::connect(plan.address)?;
        stream.set_nodelay(true)?;
        let before = thread_nanoseconds(process)?;
        for _ in 0..SOUNDING {
            ask(&stream, &plan.path)?;
            *visits += 1;
        }
        let after = thread_nanoseconds(process)?;
        let grown = |(thread, now): &(i32, u64)| now - before.get(thread).unwrap_or(&0);
        let busiest = after.into_iter().max_by_key(grown);
        let Some((thread, _)) = busiest else { continue };
        let streams = by_thread.entry(thread).or_default();
        streams.push(stream);
        if streams.len() == plan.connections {
            return Ok(streams.drain(..).map(IntoRawFd::into_raw_fd).collect());
        }
    }
    Err(io::Error::other("no thread serves that many connections"))
}
