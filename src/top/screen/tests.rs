//! The whole screen, from values, in several sizes.

use std::time::Duration;

use ratatui::{Terminal, backend::TestBackend};

use super::*;
use crate::top::{
    figures::{Figures, tests::figures},
    text,
};

/// A busy server with so many workers.
fn busy(workers: usize) -> View {
    let earlier = with_workers(workers);
    let mut later = earlier.clone();
    later.uptime_seconds += 4.0;
    later.totals.visits.welcomed = 4_938_268;
    later.totals.visits.erred = 12;
    later.totals.erred_by_cause.insert(String::from("timeout"), 12);
    later.totals.durations.buckets[2] = 4_938_280;
    for worker in &mut later.workers {
        worker.counts.visits.welcomed = 400_000;
        worker.counts.durations.buckets[2] = 400_000;
        worker.upstreams[0].connections = 64;
    }
    later.counters[0].upstream.last_call_seconds = Some(0.000_12);
    View::new(&later, Some(&earlier), Some(&earlier))
}

fn with_workers(count: usize) -> Figures {
    let mut all = figures();
    let first = all.workers[0].clone();
    all.workers = (0..count)
        .map(|worker| {
            let mut one = first.clone();
            (one.worker, one.core) = (worker, worker);
            one
        })
        .collect();
    all
}

/// What a terminal of this size shows.
fn shown(
    view: &View,
    link: &Link,
    first_worker: usize,
    (width, height): (u16, u16),
) -> Vec<String> {
    let mut history = History::default();
    (0..50).for_each(|_| history.add(Some(view)));
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    let screen =
        Screen { link, history: Some(&history), first_worker, theme: Theme { colored: true } };
    terminal
        .draw(|frame| {
            let area = frame.area();
            screen.draw("http://127.0.0.1:9300/stats", view, area, frame.buffer_mut());
        })
        .unwrap();
    let text = text::of_lines(terminal.backend().buffer(), height);
    text.lines().map(str::to_owned).collect()
}

/// The numbers of the workers that are shown, from the lines under the headings.
fn workers_in(lines: &[String]) -> Vec<usize> {
    let heading = lines.iter().position(|line| line.contains("worker core")).expect("a table");
    let rows = lines[heading + 1..].iter().take_while(|line| line.contains("io_uring"));
    let rows: Vec<_> = rows.collect();
    let tables = lines[heading].matches("worker core").count();
    let mut workers = Vec::new();
    for table in 0..tables {
        workers.extend(rows.iter().filter_map(|row| {
            let text: String = row.chars().skip(table * 82).take(6).collect();
            text.trim().parse::<usize>().ok()
        }));
    }
    workers
}

#[test]
fn all_is_in_80_columns() {
    let lines = shown(&busy(2), &Link::Live, 0, (80, 24));
    for (place, expected) in [
        (0, "tallyring 0.1.0  http://127.0.0.1:9300  up 1m 4s"),
        (1, "live"),
        (2, "visits/s 1,234,570  in flight 0  p50 192us  p99 255us  CPU 0%  CPU/visit 0us"),
        (3, "welcomed 4,938,268 (1,234,567/s)  erred 12 (3.0/s)  refused 0  abandoned 0"),
        (4, "clients 0  accepted/s 0  evicted 0  bad requests 0  panics 0  memory 20.0 MiB"),
        (5, "erred by  timeout 12"),
        (7, "visits/s, max 1,234  failed/s, max 3.0   p99, max 255us       CPU, max 0%"),
        (12, "counter               state        conns  idle queue   last    p50    p99 wait99"),
        (13, "10.0.0.5:3001         ok               0     0     0  120us      -      -      -"),
        (15, "worker core visits/s flight client user  sys    p50    p99 upstr queue driver"),
        (16, "     0    0  100,000      0      0   0%   0%  192us  255us    64     0 io_uring"),
        (17, "     1    1  100,000      0      0   0%   0%  192us  255us    64     0 io_uring"),
        (23, "q quit   arrows scroll the workers"),
    ] {
        assert_eq!(lines[place], expected, "line {place} of {lines:#?}");
    }
    // The bars of 25 seconds, on the right.
    assert!(lines[10].starts_with("               ████  "), "{lines:#?}");
}

#[test]
fn all_workers_are_on_a_large_screen() {
    let lines = shown(&busy(64), &Link::Live, 0, (200, 60));
    assert_eq!(workers_in(&lines), (0..64).collect::<Vec<_>>(), "{lines:#?}");
    assert!(lines.iter().all(|line| line.chars().count() <= 200));
}

#[test]
fn a_small_screen_scrolls_to_the_last_worker() {
    let view = busy(64);
    let first = workers_in(&shown(&view, &Link::Live, 0, (80, 24)));
    assert_eq!(first, (0..first.len()).collect::<Vec<_>>());
    assert!((5..64).contains(&first.len()), "{first:?}");
    let last = workers_in(&shown(&view, &Link::Live, 63, (80, 24)));
    assert_eq!(last.last(), Some(&63));
    assert_eq!(last.len(), first.len());
    assert_eq!(workers_in(&shown(&view, &Link::Live, 3, (80, 24)))[0], 3);
}

#[test]
fn no_size_is_too_small() {
    let view = busy(64);
    for width in [0, 1, 7, 40, 79, 81, 500] {
        for height in [0, 1, 2, 3, 7, 8, 19, 20, 200] {
            shown(&view, &Link::Live, 9, (width, height));
        }
    }
}

#[test]
fn what_is_wrong_is_in_the_second_line_and_stands_out() {
    let mut wrong = with_workers(2);
    wrong.workers[1].silent_seconds = Some(7.0);
    wrong.counters[0].upstream.failing = 2;
    let view = View::new(&wrong, None, None);
    let lines = shown(&view, &Link::Live, 0, (80, 24));
    assert_eq!(lines[1], "worker 1 is silent for 7 s; the counter 10.0.0.5:3001 fails");
    assert!(lines.iter().any(|line| line.contains("fails 2/2")), "{lines:#?}");
    assert!(lines.iter().any(|line| line.ends_with("0 silent")), "{lines:#?}");
    let since = Instant::now().checked_sub(Duration::from_secs(65)).unwrap();
    let lost = Link::Lost { why: String::from("it does not answer: Connection refused"), since };
    let lines = shown(&view, &lost, 0, (80, 24));
    assert_eq!(lines[1], "LOST for 65 s: it does not answer: Connection refused");
}

#[test]
fn colours_are_left_out_where_they_are_not_wanted() {
    let mut wrong = with_workers(2);
    wrong.workers[1].silent_seconds = Some(7.0);
    let view = View::new(&wrong, None, None);
    let area = Rect::new(0, 0, 80, 24);
    let draw = |theme| {
        let mut buffer = Buffer::empty(area);
        let screen = Screen { link: &Link::Live, history: None, first_worker: 0, theme };
        screen.draw("", &view, area, &mut buffer);
        buffer
    };
    let colors = |buffer: &Buffer| buffer.content.iter().any(|cell| cell.fg != Color::Reset);
    let plain = draw(Theme::PLAIN);
    assert!(!colors(&plain) && colors(&draw(Theme { colored: true })));
    assert!(plain[(0, 1)].modifier.contains(Modifier::REVERSED), "an alarm stands out");
}
