//! `tallyring top`: a running server in the terminal.
//!
//! It asks for the figures of `/stats` twice a second, on a thread of its own, so that a server that does not answer
//! keeps no key waiting. `figures` reads an answer, `rates` compares two of them, `history` keeps two minutes,
//! `screen` draws all of it, and `terminal` gives the terminal back as it was.

mod figures;
mod history;
mod rates;
mod screen;
mod terminal;
mod text;

use std::{
    collections::VecDeque,
    env,
    io::{self, IsTerminal},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use ratatui::{buffer::Buffer, layout::Rect};

use self::{
    figures::Figures,
    history::History,
    rates::View,
    screen::{Link, Screen, Theme},
    terminal::{FullScreen, Key, Signals},
};
use crate::{
    ask::{self, AskError},
    config::TopConfig,
};

/// How often the server is asked.
const INTERVAL: Duration = Duration::from_millis(500);
/// How long a key, or an answer, may wait until it is seen.
const RESPONSE: Duration = Duration::from_millis(50);
/// How long the figures are compared over: CPU time is counted in ticks of 10 ms.
const WINDOW_SECONDS: f64 = 5.0;
/// A larger answer is not read: it takes 2 KiB for each worker, and as much for its connections to each counter.
const ANSWER_BYTES_MAX: u64 = 64 << 20;
/// How wide a text is that is printed.
const PRINTED_WIDTH: u16 = 100;
/// The lines of such a text beside its counters and workers.
const PRINTED_LINES: usize = 16;

/// Why nothing can be shown.
#[derive(Debug, thiserror::Error)]
pub enum TopError {
    /// There is no answer.
    #[error("{0}")]
    Unanswered(#[from] AskError),
    /// It answers with another status than 200.
    #[error("it answers {0}")]
    Status(u16),
    /// It answers with something else.
    #[error("its answer is not that of a tallyring server: {0}")]
    NotFigures(serde_json::Error),
    /// A version with other figures.
    #[error("its figures have schema {0}, and this program reads {schema}", schema = figures::SCHEMA)]
    Schema(u64),
    /// The terminal cannot be used.
    #[error("the terminal cannot be used: {0}; --once prints the figures as text")]
    Terminal(#[from] io::Error),
}

impl TopError {
    /// Whether the server may have its figures at another address.
    pub const fn may_be_elsewhere(&self) -> bool {
        matches!(self, Self::Unanswered(_) | Self::Status(_) | Self::NotFigures(_))
    }
}

/// How it was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// By its user.
    ByKey,
    /// By a signal.
    BySignal(i32),
}

/// Whether there is a terminal to show anything on.
pub fn has_terminal() -> bool {
    io::stdout().is_terminal() && env::var_os("TERM").is_some_and(|term| term != "dumb")
}

/// The server as text, after two answers.
///
/// # Errors
/// When it cannot be asked.
pub fn once(config: &TopConfig) -> Result<String, TopError> {
    let mut recent = Recent::default();
    recent.add(ask(config)?);
    // This thread does nothing else.
    #[allow(clippy::disallowed_methods)]
    thread::sleep(INTERVAL);
    recent.add(ask(config)?);
    let Some(view) = recent.view() else { unreachable!("two answers were added") };
    // A table of counters gets a third of the lines.
    let lines = PRINTED_LINES + view.workers.len() + 3 * view.counters.len();
    let area = Rect::new(0, 0, PRINTED_WIDTH, u16::try_from(lines).unwrap_or(u16::MAX));
    let mut buffer = Buffer::empty(area);
    let screen = Screen { link: &Link::Live, history: None, first_worker: 0, theme: Theme::PLAIN };
    let lines = screen.draw(&config.target.to_string(), &view, area, &mut buffer);
    Ok(text::of_lines(&buffer, lines))
}

/// Shows the server until a key or a signal ends it.
///
/// # Errors
/// When it cannot be asked the first time, or the terminal fails.
pub fn show(config: &TopConfig) -> Result<Closed, TopError> {
    let mut recent = Recent::default();
    recent.add(ask(config)?);
    let signals = Signals::register()?;
    let (answers, stop) = ask_repeatedly(config.clone());
    let mut display = Display {
        target: config.target.to_string(),
        recent,
        history: History::default(),
        link: Link::Live,
        first_worker: 0,
        theme: Theme::of_environment(),
    };
    let mut terminal = FullScreen::enter()?;
    loop {
        terminal.draw(|area, buffer| display.draw(area, buffer))?;
        loop {
            if let Some(signal) = signals.received() {
                return Ok(Closed::BySignal(signal));
            }
            let heard = answers.try_iter().map(|answer| display.hear(answer)).count() > 0;
            match terminal::next_key(RESPONSE)? {
                Some(Key::Quit) => {
                    // The thread that asks sees it, once it has its answer.
                    drop(stop);
                    return Ok(Closed::ByKey);
                }
                Some(Key::Scroll(workers)) => display.scroll(workers),
                Some(Key::Other) => {}
                None if heard => {}
                None => continue,
            }
            break;
        }
    }
}

/// Asks once.
fn ask(config: &TopConfig) -> Result<Figures, TopError> {
    let answer = ask::get(&config.target, Instant::now() + config.timeout, ANSWER_BYTES_MAX)?;
    match answer.status {
        200 => Figures::parse(&answer.body),
        status => Err(TopError::Status(status)),
    }
}

type Answers = mpsc::Receiver<Result<Figures, TopError>>;

/// Asks until what is returned is dropped, on a thread of its own.
fn ask_repeatedly(config: TopConfig) -> (Answers, mpsc::Sender<()>) {
    let (tell, answers) = mpsc::channel();
    let (stop, stopped) = mpsc::channel::<()>();
    thread::spawn(move || {
        while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
            if tell.send(ask(&config)).is_err() {
                return;
            }
        }
    });
    (answers, stop)
}

/// What is shown.
struct Display {
    target: String,
    recent: Recent,
    history: History,
    link: Link,
    /// The first worker in the table.
    first_worker: usize,
    theme: Theme,
}

impl Display {
    fn hear(&mut self, answer: Result<Figures, TopError>) {
        match answer {
            Ok(figures) => {
                self.link = Link::Live;
                self.recent.add(figures);
                self.history.add(self.recent.view().as_ref());
            }
            Err(error) => {
                let since = match self.link {
                    Link::Lost { since, .. } => since,
                    Link::Live => Instant::now(),
                };
                self.link = Link::Lost { why: error.to_string(), since };
                self.history.add(None);
            }
        }
    }

    fn scroll(&mut self, workers: isize) {
        let last = self.recent.workers().saturating_sub(1);
        self.first_worker = self.first_worker.saturating_add_signed(workers).min(last);
    }

    fn draw(&self, area: Rect, buffer: &mut Buffer) {
        let screen = Screen {
            link: &self.link,
            history: Some(&self.history),
            first_worker: self.first_worker,
            theme: self.theme,
        };
        if let Some(view) = self.recent.view() {
            screen.draw(&self.target, &view, area, buffer);
        }
    }
}

/// The answers of the last seconds, the newest last. They are of one run of one server.
#[derive(Default)]
struct Recent(VecDeque<Figures>);

impl Recent {
    fn add(&mut self, figures: Figures) {
        if self.0.back().is_some_and(|last| !figures.continues(last)) {
            self.0.clear();
        }
        let oldest = figures.uptime_seconds - WINDOW_SECONDS;
        self.0.push_back(figures);
        // One that is as old as the window stays.
        while self.0.get(1).is_some_and(|second| second.uptime_seconds <= oldest) {
            self.0.pop_front();
        }
    }

    fn workers(&self) -> usize {
        self.0.back().map_or(0, |figures| figures.workers.len())
    }

    fn view(&self) -> Option<View> {
        let newest = self.0.back()?;
        let second_ago = newest.uptime_seconds - 1.0;
        let earlier = self.0.range(..self.0.len() - 1);
        let recent = earlier.clone().rev().find(|figures| figures.uptime_seconds <= second_ago);
        let oldest = earlier.clone().next();
        Some(View::new(newest, recent.or(oldest), oldest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::figures::tests::figures;

    /// The times of the answers that are kept after these.
    #[track_caller]
    fn check(uptimes: &[f64], expected: &[f64]) {
        let mut recent = Recent::default();
        for uptime in uptimes {
            recent.add(Figures { uptime_seconds: *uptime, ..figures() });
        }
        let kept: Vec<_> = recent.0.iter().map(|figures| figures.uptime_seconds).collect();
        assert_eq!(kept, expected);
    }

    #[test]
    fn answers_of_the_last_seconds_are_kept() {
        check(&[1.0, 2.0], &[1.0, 2.0]);
        check(&[1.0, 2.0, 6.0], &[1.0, 2.0, 6.0]);
        check(&[1.0, 2.0, 7.0], &[2.0, 7.0]);
        check(&[1.0, 2.0, 100.0], &[2.0, 100.0]);
        // The server was started again.
        check(&[50.0, 51.0, 0.5], &[0.5]);
    }

    #[test]
    fn a_lost_server_keeps_what_was_seen_and_since_when() {
        let mut display = Display {
            target: String::new(),
            recent: Recent::default(),
            history: History::default(),
            link: Link::Live,
            first_worker: 0,
            theme: Theme::PLAIN,
        };
        let lost_since = |display: &Display| match &display.link {
            Link::Lost { since, why } => (*since, why.clone()),
            Link::Live => panic!("it is live"),
        };
        display.hear(Ok(figures()));
        assert_eq!(display.link, Link::Live);
        display.hear(Err(TopError::Status(404)));
        let (since, why) = lost_since(&display);
        assert_eq!(why, "it answers 404");
        display.hear(Err(TopError::Status(503)));
        assert_eq!(lost_since(&display), (since, String::from("it answers 503")));
        assert!(display.recent.view().is_some());
        display.hear(Ok(figures()));
        assert_eq!(display.link, Link::Live);
    }

    #[test]
    fn the_table_is_not_scrolled_beyond_its_ends() {
        let mut display = Display {
            target: String::new(),
            recent: Recent::default(),
            history: History::default(),
            link: Link::Live,
            first_worker: 0,
            theme: Theme::PLAIN,
        };
        display.scroll(5);
        assert_eq!(display.first_worker, 0);
        display.hear(Ok(figures()));
        display.scroll(5);
        assert_eq!(display.first_worker, figures().workers.len() - 1);
        display.scroll(-9);
        assert_eq!(display.first_worker, 0);
    }
}
