//! What keys mean, and a panic on a real terminal.

use std::{env, process::Command};

use super::*;

#[path = "../../../tests/common/pty.rs"]
mod pty;

/// Set in the process that panics.
const PANICS: &str = "TALLYRING_TEST_PANICS";

#[test]
fn a_panic_gives_the_terminal_back_and_is_told() {
    if env::var_os(PANICS).is_some() {
        let _screen = FullScreen::enter().unwrap();
        panic!("on purpose");
    }
    let mut command = Command::new(env::current_exe().unwrap());
    let name = "top::terminal::tests::a_panic_gives_the_terminal_back_and_is_told";
    command.args(["--exact", name, "--nocapture"]).env(PANICS, "yes").env("TERM", "xterm");
    let (status, shown) = pty::OnTerminal::start(&command, 60, 200).wait();
    assert!(!status.success());
    assert!(shown.contains("on purpose"), "{shown}");
}

#[test]
fn keys_quit_and_scroll() {
    let plain = |code| meaning(KeyEvent::new(code, KeyModifiers::NONE));
    for code in [KeyCode::Char('q'), KeyCode::Esc] {
        assert_eq!(plain(code), Key::Quit);
    }
    let control = |letter| meaning(KeyEvent::new(KeyCode::Char(letter), KeyModifiers::CONTROL));
    assert_eq!(control('c'), Key::Quit);
    assert_eq!((plain(KeyCode::Char('c')), control('d')), (Key::Other, Key::Other));
    assert_eq!((plain(KeyCode::Down), plain(KeyCode::Up)), (Key::Scroll(1), Key::Scroll(-1)));
}
