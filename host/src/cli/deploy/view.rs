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
        let mut now = self.shown.lock();
        let since = match &now[self.host] {
            Some(now) if now.verb == verb => now.since,
            _ => Some(Instant::now()),
        };
        now[self.host] = Some(Now { verb, text, since: since.filter(|_| is_step) });
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
        self.shown.progress.warn(self.before(text));
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

    fn name(&self) -> Option<&str> {
        Some(self.shown.names[self.host].as_str()).filter(|_| self.shown.names.len() > 1)
    }

    fn on(&self, text: &str) -> String {
        self.name().map_or_else(|| text.to_owned(), |name| format!("{text} on {name}"))
    }

    fn before(&self, text: &str) -> String {
        self.name().map_or_else(|| text.to_owned(), |name| format!("{name}: {text}"))
    }
}

impl Shown {
    fn lock(&self) -> MutexGuard<'_, Vec<Option<Now>>> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn draw(&self) {
        if !self.progress.is_live() {
            return;
        }
        // With the lock held: an older drawing must not come after a newer one.
        let now = self.lock();
        let lines = now.iter().zip(&self.names).filter_map(|(now, name)| {
            let Now { verb, text, since } = now.as_ref()?;
            let host = if self.names.len() > 1 { format!("{name}: ") } else { String::new() };
            let time = since.map_or_else(String::new, |since| format!(" ({})", elapsed(since.elapsed())));
            Some((*verb, format!("{host}{text}{time}")))
        });
        self.progress.show_below(&lines.collect::<Vec<_>>());
    }
}
