//! Answers word by word, and where `behaviour` says so, in ways that no function should.

mod misbehave;

use std::thread::sleep;
use std::time::Duration;

use tenon_sdk::{Outputs, Result, send};

#[derive(Outputs)]
struct Word {
    word: String,
    index: i64,
}

/// Sends each word with its index, `times` times the text, and waits `pause_ms` before each. The last answer
/// is the text and the number of words.
///
/// A behaviour, where one is named, takes its turn after the first word; [`misbehave::behave`] lists them.
#[tenon_sdk::function]
fn words(
    text: String,
    #[parameter(default = 1)] times: usize,
    #[parameter(default = 0)] pause_ms: u64,
    #[parameter(default = "".to_owned())] behaviour: String,
) -> Result<Word> {
    let words = (0..times).flat_map(|_| text.split_whitespace());
    let mut index = 0;
    for word in words {
        sleep(Duration::from_millis(pause_ms));
        let takes_more = send(Word { word: word.to_owned(), index })?;
        if index == 0 && !behaviour.is_empty() {
            misbehave::behave(&behaviour, takes_more)?;
        }
        index += 1;
    }
    Ok(Word { word: text, index })
}
