//! The terminal: taken for a full screen, and given back as it was, however the program ends.

use std::{
    io::{self, Stdout},
    panic,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use ratatui::{
    Terminal,
    backend::CrosstermBackend,
    buffer::Buffer,
    crossterm::{
        cursor,
        event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
        execute,
        terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode},
    },
    layout::Rect,
};
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGTERM};

/// Whether the terminal is ours now.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// A terminal that shows nothing but us. Its `Drop` gives it back.
pub struct FullScreen(Terminal<CrosstermBackend<Stdout>>);

impl FullScreen {
    /// Takes the terminal. A panic gives it back too, before its message is written.
    ///
    /// # Errors
    /// When there is none that can be used so. It is as it was then.
    pub fn enter() -> io::Result<Self> {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            give_back();
            before(info);
        }));
        enable_raw_mode()?;
        TAKEN.store(true, Ordering::Release);
        let entered = execute!(io::stdout(), EnterAlternateScreen, cursor::Hide)
            .and_then(|()| Terminal::new(CrosstermBackend::new(io::stdout())));
        entered.map(Self).inspect_err(|_| give_back())
    }

    /// Draws, in the size that the terminal has now.
    ///
    /// # Errors
    /// When it cannot be written to.
    pub fn draw(&mut self, draw: impl FnOnce(Rect, &mut Buffer)) -> io::Result<()> {
        self.0.draw(|frame| draw(frame.area(), frame.buffer_mut())).map(drop)
    }
}

impl Drop for FullScreen {
    fn drop(&mut self) {
        give_back();
    }
}

/// Gives it back once: a second time would put the cursor back over what was written since.
fn give_back() {
    if TAKEN.swap(false, Ordering::AcqRel) {
        // Nothing can be done about an error: the terminal is gone.
        let _ = execute!(io::stdout(), LeaveAlternateScreen, cursor::Show);
        let _ = disable_raw_mode();
    }
}

/// What a key means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    Quit,
    /// By so many workers.
    Scroll(isize),
    /// It means nothing, or the size has changed: to draw again is right.
    Other,
}

/// Waits for a key, for a time at most.
///
/// # Errors
/// When the terminal cannot be read.
pub fn next_key(wait: Duration) -> io::Result<Option<Key>> {
    if !event::poll(wait)? {
        return Ok(None);
    }
    Ok(Some(match event::read()? {
        Event::Key(key) if key.kind != KeyEventKind::Release => meaning(key),
        _ => Key::Other,
    }))
}

const fn meaning(key: KeyEvent) -> Key {
    /// Most of what a terminal shows.
    const PAGE: isize = 10;
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Key::Quit,
        KeyCode::Char('q' | 'Q') | KeyCode::Esc => Key::Quit,
        KeyCode::Down | KeyCode::Char('j') => Key::Scroll(1),
        KeyCode::Up | KeyCode::Char('k') => Key::Scroll(-1),
        KeyCode::PageDown => Key::Scroll(PAGE),
        KeyCode::PageUp => Key::Scroll(-PAGE),
        KeyCode::Home => Key::Scroll(isize::MIN),
        KeyCode::End => Key::Scroll(isize::MAX),
        _ => Key::Other,
    }
}

/// The signals that end a program.
pub struct Signals(Arc<AtomicUsize>);

impl Signals {
    /// From now on they are noted, and end nothing.
    ///
    /// # Errors
    /// When the system refuses it.
    pub fn register() -> io::Result<Self> {
        let last = Arc::<AtomicUsize>::default();
        let again = Arc::<AtomicBool>::default();
        for signal in [SIGHUP, SIGINT, SIGTERM] {
            let number = signal.unsigned_abs() as usize;
            // A second one ends it at once, also while it waits for a terminal that takes nothing (Ctrl-S).
            signal_hook::flag::register_conditional_shutdown(
                signal,
                128 + signal,
                Arc::clone(&again),
            )?;
            signal_hook::flag::register(signal, Arc::clone(&again))?;
            signal_hook::flag::register_usize(signal, Arc::clone(&last), number)?;
        }
        Ok(Self(last))
    }

    /// The last one.
    pub fn received(&self) -> Option<i32> {
        let signal = self.0.load(Ordering::Acquire);
        i32::try_from(signal).ok().filter(|signal| *signal != 0)
    }
}

#[cfg(test)]
mod tests;
