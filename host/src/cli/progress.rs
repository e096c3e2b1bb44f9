//! Tells on standard error what a command does: one line a step, with its time when it is done.

use std::fmt::Display;
use std::io::{IsTerminal as _, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::artifact::registry::is_harmless;

/// The column in which verbs end.
const VERB_WIDTH: usize = 12;
const GREEN: &str = "\x1b[1;32m";
const YELLOW: &str = "\x1b[1;33m";
const RED: &str = "\x1b[1;31m";
const RESET: &str = "\x1b[0m";
const NO_WRAP: &str = "\x1b[?7l";
const WRAP: &str = "\x1b[?7h";

/// Where the steps of one command are shown. Clones show them in the same place.
#[derive(Clone)]
pub struct Progress {
    out: Arc<Mutex<Out>>,
    /// A step is shown when it begins, and its line completed when it ends.
    is_live: bool,
    is_coloured: bool,
}

struct Out {
    write: Box<dyn Write + Send>,
    /// The number of the step whose line has no end yet.
    open: Option<u64>,
    steps: u64,
    /// How many lines there are below everything else, to be replaced.
    below: usize,
}

impl Progress {
    /// On standard error; in colour if that is a terminal, unless `no_color`.
    pub fn stderr(no_color: bool) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        Self::to(Box::new(std::io::stderr()), is_terminal, is_terminal && !no_color)
    }

    pub(super) fn to(write: Box<dyn Write + Send>, is_live: bool, is_coloured: bool) -> Self {
        let out = Out { write, open: None, steps: 0, below: 0 };
        Self { out: Arc::new(Mutex::new(out)), is_live, is_coloured }
    }

    /// Whether it is a terminal that shows this, where lines can be replaced.
    pub fn is_live(&self) -> bool {
        self.is_live
    }

    /// Shows these lines, verb and text, below everything else, in place of those that this showed before. Only a
    /// terminal shows them, and only until something else is printed.
    pub fn show_below(&self, lines: &[(&str, String)]) {
        if !self.is_live {
            return;
        }
        let mut text = String::new();
        for (verb, line) in lines {
            // A line that is too long is cut by the terminal: one that wraps could not be replaced.
            text += &format!("{NO_WRAP}{} {line}{WRAP}\n", self.verb(verb, GREEN));
        }
        self.print(&text);
        self.lock().below = lines.len();
    }

    /// A line that takes no time, or whose own output follows: `say("Building", "digits: cargo build")`.
    pub fn say(&self, verb: &str, text: impl Display) {
        self.print(&format!("{} {}\n", self.verb(verb, GREEN), harmless(&text)));
    }

    /// Something that is not as it should be, but stops nothing.
    pub fn warn(&self, text: impl Display) {
        self.print(&format!("{} {}\n", self.verb("Warning", YELLOW), harmless(&text)));
    }

    /// Something that went wrong; what to do about it is said at the end of the command.
    pub fn trouble(&self, verb: &str, text: impl Display) {
        self.print(&format!("{} {}\n", self.verb(verb, RED), harmless(&text)));
    }

    /// Begins a step that prints nothing itself. A terminal shows it at once, a file when it is done.
    #[must_use = "a step that is dropped has failed"]
    pub fn step(&self, verb: &str, text: impl Display) -> Step<'_> {
        let line = format!("{} {}", self.verb(verb, GREEN), harmless(&text));
        if self.is_live {
            self.print(&line);
        }
        let mut out = self.lock();
        out.steps += 1;
        let number = out.steps;
        out.open = self.is_live.then_some(number);
        Step { progress: self, line, number, start: Instant::now(), is_done: false }
    }

    fn verb(&self, verb: &str, colour: &str) -> String {
        match self.is_coloured {
            true => format!("{colour}{verb:>VERB_WIDTH$}{RESET}"),
            false => format!("{verb:>VERB_WIDTH$}"),
        }
    }

    /// Prints on a line of its own. Nobody can be told that standard error is closed.
    fn print(&self, text: &str) {
        let mut out = self.lock();
        let end = if out.open.take().is_some() { "\n" } else { "" };
        let clear = match std::mem::take(&mut out.below) {
            0 => String::new(),
            // Up, and away with all that is below.
            lines => format!("\x1b[{lines}A\r\x1b[J"),
        };
        let _ = write!(out.write, "{end}{clear}{text}");
        let _ = out.write.flush();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Out> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A text that may be out of an artifact or from a guest, as a terminal may show it: nothing in it moves the cursor.
pub fn harmless(text: &impl Display) -> String {
    let text = text.to_string();
    text.chars().map(|c| if matches!(c, '\n' | '\t') || is_harmless(c) { c } else { '?' }).collect()
}

/// A step in hand.
pub struct Step<'p> {
    progress: &'p Progress,
    line: String,
    number: u64,
    start: Instant,
    is_done: bool,
}

impl Step<'_> {
    /// Completes the line with the time that the step took.
    pub fn done(self) {
        self.done_with("");
    }

    /// Completes the line with what came of the step and the time that it took.
    pub fn done_with(mut self, result: impl Display) {
        self.is_done = true;
        let result = result.to_string();
        let comma = if result.is_empty() { "" } else { ", " };
        self.end(&format!("{comma}{result}"));
    }

    fn end(&self, result: &str) {
        let rest = format!("{result} ({})\n", elapsed(self.start.elapsed()));
        let mut out = self.progress.lock();
        if out.open == Some(self.number) {
            out.open = None;
            let _ = write!(out.write, "{rest}");
            let _ = out.write.flush();
        } else {
            drop(out);
            self.progress.print(&format!("{}{rest}", self.line));
        }
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.end(" failed");
        }
    }
}

/// A time as a person reads it: `3 ms`, `1.20 s`, `2 min 05 s`.
pub fn elapsed(time: Duration) -> String {
    match time.as_secs() {
        0 => format!("{} ms", time.as_millis()),
        1..60 => format!("{:.2} s", time.as_secs_f64()),
        seconds => format!("{} min {:02} s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn check(is_live: bool, act: impl Fn(&Progress), expected: &str) {
        let lines = Lines::default();
        act(&Progress::to(Box::new(lines.clone()), is_live, false));
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        // Whatever time it took.
        let lines = text.lines().map(|line| match line.split_once(" (") {
            Some((line, _)) => format!("{line} (0 ms)\n"),
            None => format!("{line}\n"),
        });
        assert_eq!(lines.collect::<String>(), expected);
    }

    #[test]
    fn steps_are_lines() {
        let quick = |progress: &Progress| progress.step("Compiling", "digits").done();
        check(false, quick, "   Compiling digits (0 ms)\n");
        check(true, quick, "   Compiling digits (0 ms)\n");
        let result = |progress: &Progress| progress.step("Loading", "m").done_with("tract");
        check(true, result, "     Loading m, tract (0 ms)\n");
        let failed = |progress: &Progress| drop(progress.step("Loading", "m"));
        check(true, failed, "     Loading m failed (0 ms)\n");
        check(false, failed, "     Loading m failed (0 ms)\n");
    }

    #[test]
    fn a_line_that_was_interrupted_is_repeated() {
        let act = |progress: &Progress| {
            let step = progress.step("Loading", "m");
            progress.warn("slow");
            step.done();
        };
        check(true, act, "     Loading m\n     Warning slow\n     Loading m (0 ms)\n");
        check(false, act, "     Warning slow\n     Loading m (0 ms)\n");
        let both = |progress: &Progress| {
            let first = progress.step("Loading", "a");
            let second = progress.step("Loading", "b");
            first.done();
            second.done();
        };
        check(false, both, "     Loading a (0 ms)\n     Loading b (0 ms)\n");
        let live = "     Loading a\n     Loading b\n     Loading a (0 ms)\n     Loading b (0 ms)\n";
        check(true, both, live);
    }

    #[test]
    fn lines_below_are_replaced() {
        let lines = Lines::default();
        let progress = Progress::to(Box::new(lines.clone()), true, false);
        progress.show_below(&[("Pulling", "a".to_owned()), ("Pulling", "b".to_owned())]);
        progress.say("Pulled", "a");
        progress.show_below(&[("Pulling", "b".to_owned())]);
        progress.clone().show_below(&[]);
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let shown = |name| format!("\x1b[?7l     Pulling {name}\x1b[?7h\n");
        let (a, b) = (shown("a"), shown("b"));
        assert_eq!(text, format!("{a}{b}\x1b[2A\r\x1b[J      Pulled a\n{b}\x1b[1A\r\x1b[J"));
        let in_file = |progress: &Progress| {
            progress.show_below(&[("Pulling", "a".to_owned())]);
            progress.say("Pulled", "a");
        };
        check(false, in_file, "      Pulled a\n");
    }

    #[test]
    fn colour_is_asked_for() {
        let lines = Lines::default();
        Progress::to(Box::new(lines.clone()), true, true).say("Serving", "x");
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "\x1b[1;32m     Serving\x1b[0m x\n");
    }

    #[test]
    fn times_are_readable() {
        let check = |ms: u64, expected: &str| assert_eq!(elapsed(Duration::from_millis(ms)), expected);
        check(3, "3 ms");
        check(1204, "1.20 s");
        check(125_900, "2 min 05 s");
    }
}
