//! Shows how artifacts move: on a terminal the layers on their way, with bytes and speed; in a file a line a layer.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::progress::{Progress, elapsed};
use crate::artifact::registry::{Layer, Moved, Report, What};

/// How often a terminal is drawn at most.
const REDRAW: Duration = Duration::from_millis(100);
/// The time over which the speed is taken.
const WINDOW: Duration = Duration::from_secs(3);
/// The most layers that are shown on their way; there may be more.
const SHOWN: usize = 8;
const BAR_CHARS: u64 = 20;
/// What is smaller says more of the registry's answers than of the network.
const MIN_SPEED_BYTES: u64 = 64 << 10;

/// Which way artifacts move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Pull,
    Push,
}

impl Way {
    fn verbs(self) -> (&'static str, &'static str) {
        match self {
            Way::Pull => ("Pulling", "Pulled"),
            Way::Push => ("Pushing", "Pushed"),
        }
    }
}

/// One transfer, shown until it is dropped.
pub struct Transfer {
    shown: Arc<Shown>,
    begun: Instant,
}

struct Shown {
    progress: Progress,
    way: Way,
    layers: Mutex<Layers>,
}

#[derive(Default)]
struct Layers {
    active: Vec<Active>,
    drawn: Option<Instant>,
}

/// A layer on its way.
struct Active {
    layer: Layer,
    begun: Instant,
    /// Where it began, and where it is, in bytes.
    from: u64,
    at: u64,
    /// Where it was of late.
    marks: VecDeque<(Instant, u64)>,
}

impl Transfer {
    /// Begins to show a transfer.
    pub fn new(progress: &Progress, way: Way) -> Transfer {
        let shown = Shown { progress: progress.clone(), way, layers: Mutex::default() };
        Transfer { shown: Arc::new(shown), begun: Instant::now() }
    }

    /// What tells this of its layers.
    pub fn report(&self) -> Report {
        let shown = Arc::clone(&self.shown);
        Report::to(move |layer, what| shown.heard(layer, what))
    }

    /// Says what became of it: `Pulled ghcr.io/acme/digits:1.0, 3 layers, 12.0 MiB at 4.0 MiB/s, 1.2 GiB were there`.
    pub fn done(self, reference: impl std::fmt::Display, moved: &Moved) {
        self.shown.clear();
        let time = self.begun.elapsed();
        let layers = match (moved.layers, moved.bytes) {
            (0, _) => "nothing to move".to_owned(),
            (1, sum) => format!("1 layer, {}", at_speed(sum, time)),
            (layers, sum) => format!("{layers} layers, {}", at_speed(sum, time)),
        };
        let present = match moved.present {
            0 => String::new(),
            present => format!(", {} there already", bytes(present)),
        };
        let (_, past) = self.shown.way.verbs();
        self.shown.progress.say(past, format!("{reference}, {layers}{present} ({})", elapsed(time)));
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.shown.clear();
    }
}

impl Shown {
    fn heard(&self, layer: &Layer, what: What) {
        let (_, past) = self.way.verbs();
        let (name, size) = (&layer.name, bytes(layer.size));
        let now = Instant::now();
        // What is printed takes the place of what was drawn.
        let is_drawn_again = !matches!(what, What::At(_));
        match what {
            What::Began(from) => {
                let mut layers = self.lock();
                layers.active.retain(|active| active.layer.digest != layer.digest);
                let marks = VecDeque::from([(now, from)]);
                layers.active.push(Active { layer: layer.clone(), begun: now, from, at: from, marks });
            }
            What::At(at) => {
                let mut layers = self.lock();
                let active = layers.active.iter_mut().find(|active| active.layer.digest == layer.digest);
                if let Some(active) = active {
                    active.move_to(at, now);
                }
            }
            What::Again { reason, wait } => {
                self.progress.warn(format!("{reason}; trying again in {}", elapsed(wait)));
            }
            What::Present => self.progress.say("Present", format!("{name}, {size}")),
            What::Mounted => {
                self.progress.say("Mounted", format!("{name}, {size} from another repository"));
            }
            What::Done => {
                if let Some(active) = self.take(layer) {
                    let time = active.begun.elapsed();
                    let moved = at_speed(layer.size - active.from.min(layer.size), time);
                    let before = match active.from {
                        0 => String::new(),
                        from => format!(", {} there already", bytes(from)),
                    };
                    self.progress.say(past, format!("{name}, {moved}{before} ({})", elapsed(time)));
                }
            }
            // The error that ends the command names it.
            What::Failed => drop(self.take(layer)),
        }
        self.draw(now, is_drawn_again);
    }

    fn take(&self, layer: &Layer) -> Option<Active> {
        let mut layers = self.lock();
        let index = layers.active.iter().position(|active| active.layer.digest == layer.digest)?;
        Some(layers.active.remove(index))
    }

    /// Draws the layers on their way; unless it must be, not where that was done a moment ago.
    fn draw(&self, now: Instant, must_be: bool) {
        if !self.progress.is_live() {
            return;
        }
        let mut layers = self.lock();
        let is_fresh = layers.drawn.is_some_and(|drawn| now.saturating_duration_since(drawn) < REDRAW);
        if is_fresh && !must_be {
            return;
        }
        layers.drawn = Some(now);
        let (present, _) = self.way.verbs();
        let mut lines: Vec<_> =
            layers.active.iter().take(SHOWN).map(|active| (present, active.line(now))).collect();
        if let Some(more) = layers.active.len().checked_sub(SHOWN).filter(|more| *more > 0) {
            lines.push(("", format!("and {more} more")));
        }
        // With the lock held: an older drawing must not come after a newer one.
        self.progress.show_below(&lines);
    }

    fn clear(&self) {
        self.lock().active.clear();
        self.progress.show_below(&[]);
    }

    fn lock(&self) -> MutexGuard<'_, Layers> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Active {
    fn move_to(&mut self, at: u64, now: Instant) {
        if at < self.at {
            // It starts over.
            self.marks.clear();
        }
        self.at = at;
        // A mark now and then is enough for the speed.
        let last = self.marks.back().map(|(last, _)| now.saturating_duration_since(*last));
        if last.is_none_or(|last| last >= REDRAW) {
            self.marks.push_back((now, at));
        }
        while self.marks.len() > 2 && now.saturating_duration_since(self.marks[0].0) > WINDOW {
            self.marks.pop_front();
        }
    }

    /// Bytes in a second, of late.
    fn speed(&self, now: Instant) -> Option<u64> {
        let (since, from) = self.marks.front()?;
        let seconds = now.saturating_duration_since(*since).as_secs_f64();
        (seconds > 0.1).then(|| (self.at.saturating_sub(*from) as f64 / seconds) as u64)
    }

    fn line(&self, now: Instant) -> String {
        let size = self.layer.size;
        let speed = self.speed(now).filter(|speed| *speed > 0);
        let pace = speed.map_or_else(String::new, |speed| {
            let left = Duration::from_secs(size.saturating_sub(self.at) / speed);
            format!(", {}/s, {} left", bytes(speed), seconds(left))
        });
        format!("{} {} of {}{pace}  {}", bar(self.at, size), bytes(self.at), bytes(size), self.layer.name)
    }
}

/// How much of something there is, as a person sees it: `[=====               ]`.
pub(super) fn bar(at: u64, size: u64) -> String {
    let filled = u64::try_from(u128::from(at) * u128::from(BAR_CHARS) / u128::from(size.max(1)));
    let filled = filled.unwrap_or(BAR_CHARS).min(BAR_CHARS) as usize;
    format!("[{}{}]", "=".repeat(filled), " ".repeat(BAR_CHARS as usize - filled))
}

/// So many bytes in that time: `12.0 MiB at 4.0 MiB/s`.
pub(super) fn at_speed(sum: u64, time: Duration) -> String {
    if sum < MIN_SPEED_BYTES {
        return bytes(sum);
    }
    let speed = sum as f64 / time.as_secs_f64().max(0.001);
    format!("{} at {}/s", bytes(sum), bytes(speed as u64))
}

fn seconds(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds => format!("{} min {:02} s", seconds / 60, seconds % 60),
    }
}

/// A number of bytes as a person reads it: `17 B`, `1.5 KiB`, `12.3 MiB`.
pub fn bytes(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (unit, shift) in units {
        if bytes >= 1 << shift {
            return format!("{:.1} {unit}", bytes as f64 / (1u64 << shift) as f64);
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::artifact::oci::Digest;

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

    fn layer(name: &str, size: u64) -> Layer {
        Layer { digest: Digest::of(name.as_bytes()), name: name.to_owned(), size }
    }

    /// What is shown of these events, without speeds and times.
    fn shown(is_live: bool, events: Vec<(Layer, What)>) -> String {
        let lines = Lines::default();
        let transfer = Transfer::new(&Progress::to(Box::new(lines.clone()), is_live, false), Way::Pull);
        for (layer, what) in events {
            transfer.shown.heard(&layer, what);
        }
        transfer.done("a.b/c:d", &Moved { bytes: 3 << 20, present: 1 << 30, layers: 2 });
        String::from_utf8(lines.0.lock().unwrap().clone()).unwrap()
    }

    fn story() -> Vec<(Layer, What)> {
        let (a, b, c) = (layer("a", 2 << 20), layer("b", 4 << 20), layer("c", 1 << 30));
        let again = What::Again { reason: "it broke".to_owned(), wait: Duration::from_secs(2) };
        vec![
            (c, What::Present),
            (a.clone(), What::Began(0)),
            (b.clone(), What::Began(3 << 20)),
            (a.clone(), What::At(1 << 20)),
            (b.clone(), again),
            (b, What::Done),
            (a, What::Done),
        ]
    }

    #[test]
    fn a_file_gets_a_line_a_layer() {
        let text = shown(false, story());
        let lines: Vec<_> = text.lines().map(|line| line.split(" at ").next().unwrap()).collect();
        let expected = [
            "     Present c, 1.0 GiB",
            "     Warning it broke; trying again in 2.00 s",
            "      Pulled b, 1.0 MiB",
            "      Pulled a, 2.0 MiB",
            "      Pulled a.b/c:d, 2 layers, 3.0 MiB",
        ];
        assert_eq!(lines, expected);
        assert!(text.contains(", 3.0 MiB there already ("), "{text}");
        assert!(text.contains(", 1.0 GiB there already ("), "{text}");
    }

    #[test]
    fn a_terminal_shows_what_is_on_its_way_until_it_is_there() {
        let text = shown(true, story());
        assert!(
            text.contains("     Pulling [               ") && text.contains("] 0 B of 2.0 MiB  a"),
            "{text}"
        );
        // What is left at the end: nothing below the last line.
        let (_, after) = text.rsplit_once("Pulled a.b/c:d").unwrap();
        assert!(!after.contains("Pulling"), "{text}");
        assert!(text.contains("[===============     ] 3.0 MiB of 4.0 MiB"), "{text}");
    }

    #[test]
    fn speed_is_that_of_late() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let marks = VecDeque::from([(start, 0)]);
        let mut active = Active { layer: layer("a", 1000), begun: start, from: 0, at: 0, marks };
        for second in 1..=10 {
            active.move_to(second * 10, at(second));
        }
        active.move_to(400, at(11));
        assert_eq!(active.speed(at(11)), Some(106));
        assert!(
            active.line(at(11)).ends_with("400 B of 1000 B, 106 B/s, 5 s left  a"),
            "{}",
            active.line(at(11))
        );
        // It starts over.
        active.move_to(0, at(12));
        assert_eq!(active.speed(at(12)), None);
        assert!(active.marks.len() < 10);
    }

    #[test]
    fn numbers_of_bytes_are_readable() {
        let check = |number: u64, expected: &str| assert_eq!(bytes(number), expected);
        check(17, "17 B");
        check(1536, "1.5 KiB");
        check(12 << 20, "12.0 MiB");
        check(3 << 40, "3.0 TiB");
        check(u64::MAX, "16777216.0 TiB");
    }
}
