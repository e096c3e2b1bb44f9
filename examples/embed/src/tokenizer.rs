//! Text to token ids as BERT's uncased models want them: normalise, split, and cut words into known pieces.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use unicode_categories::UnicodeCategories;
use unicode_normalization::UnicodeNormalization;

/// A longer word is unknown as a whole.
const WORD_CHARS: usize = 100;

/// Pieces by id, one a line.
pub(crate) struct Tokenizer<'a> {
    ids: HashMap<&'a str, i64, BuildHasherDefault<Fnv>>,
    start: i64,
    end: i64,
    unknown: i64,
}

impl<'a> Tokenizer<'a> {
    /// `None` where the vocabulary lacks BERT's own tokens.
    pub(crate) fn new(vocabulary: &'a str) -> Option<Self> {
        let mut ids = HashMap::with_capacity_and_hasher(32_000, BuildHasherDefault::default());
        ids.extend(vocabulary.lines().zip(0..));
        let id = |token| ids.get(token).copied();
        let (start, end, unknown) = (id("[CLS]")?, id("[SEP]")?, id("[UNK]")?);
        Some(Self { ids, start, end, unknown })
    }

    /// The ids of a text with start and end, at most `limit` of them. Text that looks like one of BERT's own
    /// tokens, such as `[SEP]`, stays text.
    pub(crate) fn encode(&self, text: &str, limit: usize) -> Vec<i64> {
        let mut ids = vec![self.start];
        for word in words(&normalised(text)) {
            if ids.len() + 1 >= limit {
                break;
            }
            self.cut(word, &mut ids);
        }
        ids.truncate(limit.saturating_sub(1));
        ids.push(self.end);
        ids
    }

    /// The longest known piece first, then the longest that continues it.
    fn cut(&self, word: &str, ids: &mut Vec<i64>) {
        let first = ids.len();
        let mut rest = word;
        let mut continued = String::new();
        let known_length = word.chars().count() <= WORD_CHARS;
        while !rest.is_empty() {
            let ends = rest.char_indices().map(|(at, char)| at + char.len_utf8()).rev();
            let piece = ends.map(|end| &rest[..end]).find_map(|piece| {
                let id = match ids.len() == first {
                    true => self.ids.get(piece),
                    false => {
                        continued.clear();
                        continued.push_str("##");
                        continued.push_str(piece);
                        self.ids.get(continued.as_str())
                    }
                };
                id.map(|&id| (id, piece.len()))
            });
            let Some((id, bytes)) = piece.filter(|_| known_length) else {
                ids.truncate(first);
                ids.push(self.unknown);
                return;
            };
            ids.push(id);
            rest = &rest[bytes..];
        }
    }
}

/// Lowercase without accents or control characters, ideographs apart.
fn normalised(text: &str) -> String {
    let mut spaced = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '\t' | '\n' | '\r' => spaced.push(' '),
            '\0' | '\u{fffd}' => {}
            _ if char.is_other() => {}
            _ if char.is_whitespace() => spaced.push(' '),
            _ if is_ideograph(char) => spaced.extend([' ', char, ' ']),
            _ => spaced.push(char),
        }
    }
    spaced.nfd().filter(|char| !char.is_mark_nonspacing()).flat_map(char::to_lowercase).collect()
}

/// Words, and each punctuation mark by itself.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let marks = |word: &'_ str| {
        let mut ends: Vec<usize> = Vec::new();
        for (at, mark) in word.char_indices().filter(|&(_, char)| is_punctuation(char)) {
            ends.extend([at, at + mark.len_utf8()]);
        }
        ends.push(word.len());
        ends
    };
    text.split_whitespace().flat_map(move |word| {
        let mut start = 0;
        marks(word).into_iter().filter_map(move |end| {
            let part = &word[start..end];
            start = end;
            (!part.is_empty()).then_some(part)
        })
    })
}

fn is_punctuation(char: char) -> bool {
    char.is_ascii_punctuation() || UnicodeCategories::is_punctuation(char)
}

/// The blocks that BERT counts as Chinese characters.
fn is_ideograph(char: char) -> bool {
    matches!(char,
        '\u{4E00}'..='\u{9FFF}' | '\u{3400}'..='\u{4DBF}' | '\u{20000}'..='\u{2A6DF}' | '\u{2A700}'..='\u{2B73F}'
        | '\u{2B740}'..='\u{2B81F}' | '\u{2B920}'..='\u{2CEAF}' | '\u{F900}'..='\u{FAFF}'
        | '\u{2F800}'..='\u{2FA1F}')
}

/// FNV-1a: the table is built anew for each request, from a file that no caller chooses.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_cut_into_the_longest_pieces() {
        let tokenizer = Tokenizer::new("[CLS]\n[SEP]\n[UNK]\nun\n##aff\n##able\n!\ncafe\n中").unwrap();
        let check = |text: &str, expected: &[i64]| assert_eq!(tokenizer.encode(text, 9), expected, "{text}");
        check("Unaffable!", &[0, 3, 4, 5, 6, 1]);
        check("CAFÉ \u{0}中中", &[0, 7, 8, 8, 1]);
        check("unknown", &[0, 2, 1]);
        check("", &[0, 1]);
        check("! ! ! ! ! ! ! ! !", &[0, 6, 6, 6, 6, 6, 6, 6, 1]);
        check(&"a".repeat(101), &[0, 2, 1]);
    }

    #[test]
    fn ids_are_those_of_the_reference() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/model/");
        let Ok(vocabulary) = std::fs::read_to_string(format!("{folder}vocab.txt")) else {
            eprintln!("skipped: {folder}vocab.txt is not made");
            return;
        };
        let reference = std::fs::read_to_string(format!("{folder}reference.json")).unwrap();
        let tokenizer = Tokenizer::new(&vocabulary).unwrap();
        for row in serde_json::from_str::<Vec<serde_json::Value>>(&reference).unwrap() {
            let ids: Vec<i64> = serde_json::from_value(row["ids"].clone()).unwrap();
            let sentence = row["sentence"].as_str().unwrap();
            assert_eq!(tokenizer.encode(sentence, 256), ids, "{sentence}");
        }
    }
}
