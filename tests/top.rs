//! `tallyring top` on a real terminal, and as text.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "common/pty.rs"]
mod pty;

use std::{net::SocketAddr, process::Command};

use common::{
    COUNTED, Server, Signal, Stub, WELCOME, nobody, reserve, run, send_signal, serve, serve_with,
    tallyring,
};
use pty::OnTerminal;

const ADMIN: [&str; 4] = ["--workers", "2", "--admin", "127.0.0.1:0"];

fn top(admin: SocketAddr) -> Command {
    let mut command = tallyring();
    command
        .args(["top", "--admin", &admin.to_string()])
        .env("TERM", "xterm")
        .env_remove("NO_COLOR");
    command
}

fn admin_of(server: &Server) -> SocketAddr {
    server.address_after("admin on ")
}

#[test]
fn numbers_move_and_a_key_leaves() {
    let stub = Stub::answering(COUNTED);
    let server = serve_with(&stub, &ADMIN);
    for (visits, key) in ["q", "\x1b", "\x03"].into_iter().enumerate() {
        let mut top = OnTerminal::start(&top(admin_of(&server)), 24, 80);
        top.wait_for(&format!("welcomed {visits}"));
        top.wait_for("live");
        assert_eq!(server.visit(), WELCOME);
        top.wait_for(&format!("welcomed {}", visits + 1));
        top.wait_for(&format!("{} ", stub.address));
        assert!(top.display.screen().alternate_screen() && top.display.screen().hide_cursor());
        top.press(key);
        let (status, shown) = top.wait();
        assert_eq!(status.code(), Some(0), "{shown}");
    }
}

#[test]
fn a_signal_gives_the_terminal_back() {
    let server = serve(&[&ADMIN[..], &["--counter", "http://127.0.0.1:1/"]].concat());
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        let mut top = OnTerminal::start(&top(admin_of(&server)), 24, 80);
        top.wait_for("q quit");
        send_signal(&top.child, signal);
        assert_eq!(top.wait().0.code(), Some(code));
    }
}

#[test]
fn it_ends_when_its_terminal_goes_away() {
    let server = serve(&[&ADMIN[..], &["--counter", "http://127.0.0.1:1/"]].concat());
    let mut top = OnTerminal::start(&top(admin_of(&server)), 24, 80);
    top.wait_for("q quit");
    assert!(!top.hang_up().success());
}

#[test]
fn a_server_that_is_lost_is_told_and_one_that_comes_back_is_shown() {
    let stub = Stub::answering(COUNTED);
    let (_reserved, admin) = reserve();
    let admin_flag = admin.to_string();
    let flags = ["--workers", "2", "--admin", &admin_flag];
    let server = serve_with(&stub, &flags);
    let mut top = OnTerminal::start(&top(admin), 24, 80);
    top.wait_for("live");
    drop(server);
    // Refused, or reset in the midst of an answer.
    top.wait_for(" s: it does not answer: ");
    // What was seen last is still there.
    assert!(top.shown().contains("welcomed 0"), "{}", top.shown());
    let server = serve_with(&stub, &flags);
    top.wait_for("live");
    assert_eq!(server.visit(), WELCOME);
    top.wait_for("welcomed 1");
    top.press("q");
    assert_eq!(top.wait().0.code(), Some(0));
}

#[test]
fn a_counter_that_fails_is_told() {
    let address = nobody();
    let url = format!("http://{address}/counter");
    let server = serve(&[&ADMIN[..], &["--counter", &url]].concat());
    let mut top = OnTerminal::start(&top(admin_of(&server)), 24, 80);
    top.wait_for("live");
    // The kernel may give one worker more of the connections.
    (0..80).for_each(|_| drop(server.visit()));
    top.wait_for(&format!("the counter {address} fails"));
    top.wait_for("erred by  ");
    top.wait_for("fails 2/2");
    top.press("q");
    assert_eq!(top.wait().0.code(), Some(0));
}

#[test]
fn it_follows_the_size_of_the_terminal() {
    let server = serve(&[&ADMIN[..], &["--counter", "http://127.0.0.1:1/"]].concat());
    let mut top = OnTerminal::start(&top(admin_of(&server)), 24, 80);
    top.wait_for("q quit");
    for (rows, columns) in [(60, 200), (10, 40), (24, 80)] {
        top.resize(rows, columns);
        // It is the last line again.
        loop {
            let lines: Vec<_> = top.display.screen().rows(0, columns).collect();
            if lines[usize::from(rows) - 1].starts_with("q quit") {
                break;
            }
            top.wait_for_more();
        }
    }
    top.press("q");
    assert_eq!(top.wait().0.code(), Some(0));
}

#[test]
fn a_key_is_read_that_comes_with_a_change_of_size() {
    let server = serve(&[&ADMIN[..], &["--counter", "http://127.0.0.1:1/"]].concat());
    let mut top = OnTerminal::start(&top(admin_of(&server)), 24, 80);
    top.wait_for("q quit");
    // It cannot draw after the first changes: so the last one and the key, in this order, are there when it waits again.
    top.stop_output();
    for columns in 81..=90 {
        top.resize(24, columns);
        top.wait_for_handler(Signal::WINCH);
    }
    top.press("q");
    top.resume_output();
    assert_eq!(top.wait().0.code(), Some(0));
}

#[test]
fn no_color_is_obeyed() {
    let server = serve(&[&ADMIN[..], &["--counter", "http://127.0.0.1:1/"]].concat());
    for (value, has_colors) in [("", true), ("1", false)] {
        let mut command = top(admin_of(&server));
        command.env("NO_COLOR", value);
        let mut top = OnTerminal::start(&command, 24, 80);
        top.wait_for("q quit");
        let screen = top.display.screen();
        let colors = (0..24).flat_map(|row| (0..80).map(move |column| (row, column)));
        let mut cells = colors.filter_map(|(row, column)| screen.cell(row, column));
        assert_eq!(cells.any(|cell| cell.fgcolor() != vt100::Color::Default), has_colors);
        top.press("q");
        assert_eq!(top.wait().0.code(), Some(0));
    }
}

#[test]
fn without_a_terminal_the_figures_are_printed_once() {
    let stub = Stub::answering(COUNTED);
    let server = serve_with(&stub, &ADMIN);
    assert_eq!(server.visit(), WELCOME);
    let admin = admin_of(&server).to_string();
    for flags in [&["top", "--admin", &admin][..], &["top", "--once", "--admin", &admin]] {
        let (code, out, error) = run(flags);
        assert_eq!((code, error.as_str()), (0, ""), "{out}");
        let lines: Vec<_> = out.lines().collect();
        assert!(lines[0].starts_with("tallyring ") && lines[0].contains(&admin), "{out}");
        assert_eq!(lines[1], "live");
        assert!(out.contains("welcomed 1  erred 0"), "{out}");
        assert!(out.contains(&format!("{} ", stub.address)), "{out}");
        let workers =
            lines.iter().filter(|line| line.contains("io_uring") || line.contains("epoll"));
        assert_eq!(workers.count(), 2, "{out}");
        assert!(!out.contains('\x1b') && !out.contains("q quit"), "{out:?}");
    }
    // On a terminal too, and on one that can do nothing.
    let command = |more: &[&str], term| {
        let mut command = top(admin_of(&server));
        command.args(more).env("TERM", term);
        command
    };
    for command in [command(&["--once"], "xterm"), command(&[], "dumb")] {
        let (status, shown) = OnTerminal::start(&command, 40, 120).wait();
        assert_eq!(status.code(), Some(0));
        assert!(shown.contains("welcomed 1") && !shown.contains("q quit"), "{shown}");
    }
}

/// It ends with this exit code and message, as text and on a terminal.
#[track_caller]
fn check_refused(admin: &str, code: i32, expected: &str) {
    let (status, out, error) = run(&["top", "--admin", admin, "--once"]);
    assert_eq!((status, out.as_str()), (code, ""), "{error}");
    assert_eq!(error, format!("tallyring: {expected}\n"));
    let mut command = tallyring();
    command.args(["top", "--admin", admin]).env("TERM", "xterm");
    let (status, shown) = OnTerminal::start(&command, 24, 200).wait();
    assert_eq!(status.code(), Some(code));
    assert!(shown.contains(expected), "{shown}");
}

#[test]
fn a_server_that_cannot_be_asked_is_told_with_the_reason() {
    let refused = nobody().to_string();
    check_refused(
        &refused,
        1,
        &format!(
            "cannot show http://{refused}/stats: it does not answer: Connection refused (os error 111); --admin says where to ask"
        ),
    );
    for (answer, expected) in [
        (
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
            "it answers 404; --admin says where to ask",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{\"schema\":9}",
            "its figures have schema 9, and this program reads 1",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno",
            "its answer is not that of a tallyring server: expected ident at line 1 column 2; --admin says where to ask",
        ),
        (
            "nonsense\r\n\r\n",
            "the counter's response is malformed: it does not begin with HTTP/; --admin says where to ask",
        ),
    ] {
        let stub = Stub::answering(answer);
        let address = stub.address.to_string();
        check_refused(&address, 1, &format!("cannot show http://{address}/stats: {expected}"));
    }
    check_refused("off", 2, "--admin off: it is off, so that nobody can be asked; give an --admin");
}
