//! A floor: the least that a visit costs on this kernel, for a way to register it.
//! `floor ADDRESS COUNTER-ADDRESS [exchange|pipelined|batched]`

use std::{io, net::ToSocketAddrs};

use clap::ValueEnum;
use tallyring_bench::{
    arguments,
    floor::{self, Strategy},
    ring,
};

fn main() -> io::Result<()> {
    let [address, counter, strategy] = arguments(["127.0.0.1:3000", "127.0.0.1:3001", "exchange"]);
    let none = || io::Error::other(format!("{counter}: no address"));
    let counter = counter.to_socket_addrs()?.next().ok_or_else(none)?;
    let unknown = |_| io::Error::other(format!("{strategy}: not exchange, pipelined or batched"));
    let strategy = Strategy::from_str(&strategy, false).map_err(unknown)?;
    floor::run(&ring::listen(&address)?, counter, strategy)
}
