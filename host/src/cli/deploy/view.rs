//! Shows what happens on each host: a line for each step with its time, and on a terminal what is under way below them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::cli::progress::{Progress, elapsed};

/// How often a terminal is drawn.
const REDRAW: Duration = Duration::from_millis(100);

/// Shown until it is dropped.
pub(super) struct View {
    shown: Arc<Shown>,
    ticker: Option<tokio::task::JoinHandle<()>>,
}

struct Shown {
    progress: Progress,
    /// One for each host.
    names: Vec<String>,
    /// What each host is at.
    now: Mutex<Vec<Option<Now>>>,
}

struct Now {
    verb: &'static str,
    text: String,
    /// Stands on a line of its own.
    more: Option<String>,
    /// Its time is shown where there is one.
    since: Option<Instant>,
}

impl View {
    pub(super) fn new(progress: &Progress, names: Vec<String>) -> View {
        let now = Mutex::new(names.iter().map(|_| None).collect());
        let shown = Arc::new(Shown { progress: progress.clone(), names, now });
        let ticker = progress.is_live().then(|| {
            let shown = Arc::clone(&shown);
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(REDRAW).await;
                    shown.draw();
                }
            })
        });
        View { shown, ticker }
    }

    /// The same, for a task of its own.
    pub(super) fn of(&self, host: usize) -> HostView {
        HostView { shown: Arc::clone(&self.shown), host }
    }

    pub(super) fn progress(&self) -> &Progress {
        &self.shown.progress
    }

    /// Whether there are several hosts, so that it must be said which one is meant.
    pub(super) fn has_many(&self) -> bool {
        self.shown.names.len() > 1
    }

    /// Whether lines can be replaced.
    pub(super) fn is_live(&self) -> bool {
        self.shown.progress.is_live()
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if let Some(ticker) = &self.ticker {
            ticker.abort();
        }
        self.shown.lock().iter_mut().for_each(|now| *now = None);
        self.shown.progress.show_below(&[]);
    }
}

/// What happens on one host.
#[derive(Clone)]
pub(super) struct HostView {
    shown: Arc<Shown>,
    host: usize,
}

impl HostView {
    /// Shows what the host is at; with its time if it is a step.
    pub(super) fn at(&self, verb: &'static str, text: String, is_step: bool) {
        self.at_with(verb, text, None, is_step);
    }

    /// As [`at`](HostView::at), with a second line.
    pub(super) fn at_with(&self, verb: &'static str, text: String, more: Option<String>, is_step: bool) {
        let mut now = self.shown.lock();
        let since = match &now[self.host] {
            Some(now) if now.text == text => now.since,
            _ => Some(Instant::now()),
        };
        now[self.host] = Some(Now { verb, text, more, since: since.filter(|_| is_step) });
        drop(now);
        self.shown.draw();
    }

    /// Nothing is under way on the host.
    pub(super) fn rest(&self) {
        self.shown.lock()[self.host] = None;
        self.shown.draw();
    }

    /// Says what was done, with its time.
    pub(super) fn done(&self, verb: &str, text: &str, took: Duration) {
        self.say(verb, &format!("{} ({})", self.on(text), elapsed(took)));
    }

    /// Says something of the host.
    pub(super) fn note(&self, verb: &str, text: &str) {
        self.say(verb, &self.on(text));
    }

    pub(super) fn warn(&self, text: &str) {
        self.shown.progress.warn(self.on(text));
        self.shown.draw();
    }

    /// Says that something failed.
    pub(super) fn failed(&self, text: &str, took: Duration) {
        self.shown.progress.trouble("Failed", format!("{} ({})", self.on(text), elapsed(took)));
        self.shown.draw();
    }

    fn say(&self, verb: &str, text: &str) {
        self.shown.progress.say(verb, text);
        self.shown.draw();
    }

    fn on(&self, text: &str) -> String {
        self.shown.on(self.host, text)
    }
}

impl Shown {
    /// Where there are several hosts, their names stand in a column of their own.
    fn on(&self, host: usize, text: &str) -> String {
        let width = self.names.iter().map(|name| name.chars().count()).max().unwrap_or_default();
        match self.names.len() {
            1 => text.to_owned(),
            _ => format!("{:<width$}  {text}", self.names[host]),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<Now>>> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn draw(&self) {
        if !self.progress.is_live() {
            return;
        }
        // With the lock held: an older drawing must not come after a newer one.
        let now = self.lock();
        let lines = now.iter().enumerate().flat_map(|(host, now)| {
            let line = now.as_ref().map(|Now { verb, text, since, .. }| {
                let time = since.map_or_else(String::new, |since| format!(" ({})", elapsed(since.elapsed())));
                (*verb, format!("{}{time}", self.on(host, text)))
            });
            let more = now.as_ref().and_then(|now| Some(("", self.on(host, now.more.as_ref()?))));
            line.into_iter().chain(more)
        });
        self.progress.show_below(&lines.collect::<Vec<_>>());
    }
}
