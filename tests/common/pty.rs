//! A program on a terminal of its own, and what that terminal shows.

// No test uses all of it.
#![allow(dead_code)]

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    num::NonZero,
    os::unix::fs::OpenOptionsExt,
    process::{Child, Command, ExitStatus},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::OFlags,
    process::Signal,
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Action, Termios, Winsize, tcflow, tcgetattr, tcsetwinsize},
};

/// Long enough for the slowest machine; nothing waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(60);
/// Who reads the screen stops at this byte.
const HANG_UP: u8 = 0x1c;

/// A program that runs on a terminal.
pub struct OnTerminal {
    pub child: Child,
    keyboard: File,
    /// The program's end, kept to see the modes that it leaves.
    other_end: File,
    modes: Termios,
    written: mpsc::Receiver<Vec<u8>>,
    pub display: vt100::Parser,
}

impl OnTerminal {
    /// Starts `command` as the foreground of a terminal of this size.
    pub fn start(command: &Command, rows: u16, columns: u16) -> Self {
        let terminal =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let name = ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
        let flags = OFlags::NOCTTY.bits().cast_signed();
        let other_end =
            OpenOptions::new().read(true).write(true).custom_flags(flags).open(name).unwrap();
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&terminal, size).unwrap();
        let modes = tcgetattr(&other_end).unwrap();
        // In a session of its own, whose terminal this is: so a change of its size is told to the program.
        let mut session = Command::new("setsid");
        session.arg("--ctty").arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => session.env(name, value),
                None => session.env_remove(name),
            };
        }
        let stream = || other_end.try_clone().unwrap();
        session.stdin(stream()).stdout(stream()).stderr(stream());
        let child = session.spawn().unwrap();
        drop(session);
        let keyboard = File::from(terminal);
        let mut screen = keyboard.try_clone().unwrap();
        let (sender, written) = mpsc::channel();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            // It ends with an error once nobody has the other end open any more.
            while let Ok(count @ 1..) = screen.read(&mut bytes)
                && !bytes[..count].contains(&HANG_UP)
            {
                let _ = sender.send(bytes[..count].to_vec());
            }
        });
        let display = vt100::Parser::new(some(rows), some(columns), 0);
        Self { child, keyboard, other_end, modes, written, display }
    }

    /// What the terminal shows now.
    pub fn shown(&self) -> String {
        self.display.screen().contents()
    }

    /// Waits until the terminal shows this.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        let began = Instant::now();
        while !self.shown().contains(text) {
            let reads = began.elapsed() < PATIENCE && self.reads_more();
            assert!(reads, "no {text:?} in\n{}", self.shown());
        }
    }

    /// Waits until the program has written more.
    #[track_caller]
    pub fn wait_for_more(&mut self) {
        assert!(self.reads_more(), "nothing more after\n{}", self.shown());
    }

    fn reads_more(&mut self) -> bool {
        let written = self.written.recv_timeout(PATIENCE);
        if let Ok(bytes) = &written {
            self.display.process(bytes);
        }
        written.is_ok()
    }

    pub fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    pub fn resize(&mut self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        self.display.screen_mut().set_size(some(rows), some(columns));
        tcsetwinsize(&self.keyboard, size).unwrap();
    }

    /// Lets the program wait where it writes to the terminal, like Ctrl-S.
    pub fn stop_output(&self) {
        tcflow(&self.other_end, Action::OOff).unwrap();
    }

    pub fn resume_output(&self) {
        tcflow(&self.other_end, Action::OOn).unwrap();
    }

    /// Waits until the program has noted a signal that was sent to it.
    pub fn wait_for_handler(&self, signal: Signal) {
        let program = procfs::process::Process::new(self.child.id().cast_signed()).unwrap();
        let bit = 1 << (signal.as_raw() - 1);
        while program.status().unwrap().shdpnd & bit != 0 {
            thread::yield_now();
        }
    }

    /// The terminal goes away, like a window that is closed. Returns how the program ends.
    pub fn hang_up(mut self) -> ExitStatus {
        self.other_end.write_all(&[HANG_UP]).unwrap();
        while self.reads_more() {}
        // Its last descriptors, but for the program's.
        let nothing = || File::open("/dev/null").unwrap();
        (self.keyboard, self.other_end) = (nothing(), nothing());
        self.child.wait().unwrap()
    }

    /// Waits for the end, after which the terminal must be as it was before.
    #[track_caller]
    pub fn wait(mut self) -> (ExitStatus, String) {
        let status = self.child.wait().unwrap();
        let modes = tcgetattr(&self.other_end).unwrap();
        assert_eq!(modes.local_modes, self.modes.local_modes, "lines, echo and signals");
        assert_eq!(modes.input_modes, self.modes.input_modes);
        assert_eq!(modes.output_modes, self.modes.output_modes);
        let display = &mut self.display;
        drop(std::mem::replace(&mut self.other_end, File::open("/dev/null").unwrap()));
        while let Ok(bytes) = self.written.recv_timeout(PATIENCE) {
            display.process(&bytes);
        }
        let screen = display.screen();
        assert!(!screen.alternate_screen(), "the screen is not given back");
        assert!(!screen.hide_cursor(), "the cursor is not there");
        (status, screen.contents())
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn some(number: u16) -> NonZero<u16> {
    NonZero::new(number).unwrap()
}
