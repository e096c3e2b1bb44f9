//! How a revision differs from a good one, as its environment says.

use std::hint::black_box;
use std::time::Duration;

use crate::fetch;
use crate::reference::{Answer, CLASSES, best};

/// One habit of a revision. Where it has a number `one_in`, it shows in one of so many inputs, always in the same.
enum Habit {
    /// Takes so many times as long.
    Slower {
        times: f64,
        one_in: u64,
    },
    /// Takes up to so many times as long, anew for each input.
    Uneven {
        times: u64,
    },
    Trap {
        one_in: u64,
    },
    /// Raises an error of its own.
    Raise {
        one_in: u64,
    },
    /// Answers the next class in place of this one.
    Wrong {
        class: i64,
    },
    Nan {
        one_in: u64,
    },
    /// Adds this to the score of each class but the first, and so answers the first one more seldom or more often.
    Drift {
        by: f32,
    },
    /// Takes memory until there is no more.
    Leak {
        one_in: u64,
    },
    /// Needs an answer from elsewhere.
    Fetch {
        url: String,
    },
}

/// How a revision behaves: how long a call takes, and what is odd about it.
pub(crate) struct Behaviour {
    /// Turns of an empty loop.
    work: u64,
    /// How long it waits, without work.
    wait: Duration,
    habits: Vec<Habit>,
}

impl Behaviour {
    /// That of `WORK` (turns of a loop), `WAIT_US` and `BEHAVIOUR`, such as `trap:200 slower:3:50`.
    pub(crate) fn of_environment() -> Result<Behaviour, String> {
        let text = |name: &str| std::env::var(name).unwrap_or_default();
        let number = |name: &str| match text(name).as_str() {
            "" => Ok(0),
            text => text.parse().map_err(|_| format!("{name} is no number: `{text}`")),
        };
        let behaviour = text("BEHAVIOUR");
        let habits = behaviour.split_whitespace().map(|word| {
            habit(word).ok_or_else(|| format!("BEHAVIOUR has a word that says nothing: `{word}`"))
        });
        Ok(Behaviour {
            work: number("WORK")?,
            wait: Duration::from_micros(number("WAIT_US")?),
            habits: habits.collect::<Result<_, _>>()?,
        })
    }

    /// Does what a call of the input with this fingerprint does, and changes the right answer to what is answered. An
    /// error where the function raises one.
    pub(crate) fn show(&self, fingerprint: u64, answer: &mut Answer) -> Result<(), String> {
        let mut times = 1.0;
        for (index, habit) in self.habits.iter().enumerate() {
            // Each habit has its own share of the inputs.
            let draw = crate::reference::scramble(fingerprint ^ (index as u64) << 56);
            let falls = |one_in: u64| draw.is_multiple_of(one_in.max(1));
            match habit {
                Habit::Slower { times: factor, one_in } if falls(*one_in) => times *= factor,
                Habit::Uneven { times: most } => times *= (1 + draw % most.max(&1)) as f64,
                Habit::Trap { one_in } if falls(*one_in) => core::arch::wasm32::unreachable(),
                Habit::Raise { one_in } if falls(*one_in) => return Err("raised on purpose".to_owned()),
                Habit::Wrong { class } if answer.label == *class => mistake(answer),
                Habit::Nan { one_in } if falls(*one_in) => {
                    answer.scores[(draw >> 32) as usize % CLASSES] = f32::NAN
                }
                Habit::Drift { by } => {
                    answer.scores.iter_mut().skip(1).for_each(|score| *score += by);
                    answer.label = best(&answer.scores);
                }
                Habit::Leak { one_in } if falls(*one_in) => leak(),
                Habit::Fetch { url } => fetch::status(url).map(drop)?,
                _ => {}
            }
        }
        turn((self.work as f64 * times) as u64);
        if !self.wait.is_zero() {
            std::thread::sleep(self.wait.mul_f64(times));
        }
        Ok(())
    }
}

fn habit(word: &str) -> Option<Habit> {
    let (name, argument) = word.split_once(':').unwrap_or((word, ""));
    let one_in = || argument.parse().ok();
    Some(match name {
        "slower" => {
            let (times, one_in) = argument.split_once(':').unwrap_or((argument, "1"));
            Habit::Slower { times: times.parse().ok()?, one_in: one_in.parse().ok()? }
        }
        "uneven" => Habit::Uneven { times: argument.parse().ok()? },
        "trap" => Habit::Trap { one_in: one_in()? },
        "raise" => Habit::Raise { one_in: one_in()? },
        "wrong" => Habit::Wrong { class: argument.parse().ok()? },
        "nan" => Habit::Nan { one_in: one_in()? },
        "drift" => Habit::Drift { by: argument.parse().ok()? },
        "leak" => Habit::Leak { one_in: one_in()? },
        "fetch" => Habit::Fetch { url: argument.to_owned() },
        _ => return None,
    })
}

/// The next class is the best one, by the scores as well.
fn mistake(answer: &mut Answer) {
    let right = answer.label as usize;
    let next = (right + 1) % CLASSES;
    answer.scores.swap(right, next);
    answer.label = next as i64;
}

fn turn(times: u64) {
    let mut state = 0_u64;
    for _ in 0..times {
        state = black_box(state.wrapping_add(1));
    }
}

fn leak() {
    let mut held = Vec::new();
    loop {
        held.push(black_box(vec![1_u8; 1 << 20]));
    }
}
