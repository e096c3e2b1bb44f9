//! A JSON string, unescaped where it is needed and into where it is wanted.

use super::Refused;
use super::scan::Scan;

/// A string as it is written.
#[derive(Clone, Copy)]
pub(in crate::serve) struct Text<'a> {
    /// What stands between the quotes; its escapes are well formed.
    raw: &'a [u8],
    has_escapes: bool,
}

impl Text<'_> {
    /// The most bytes that it has as UTF-8.
    pub(in crate::serve) fn longest(&self) -> usize {
        self.raw.len()
    }

    #[inline]
    pub(in crate::serve) fn is(&self, other: &str) -> bool {
        /// An escape takes so many times the bytes of what it stands for, at most.
        const TIMES: usize = 6;
        if !self.has_escapes {
            return self.raw == other.as_bytes();
        }
        self.raw.len() <= TIMES * other.len() && self.read().is_ok_and(|text| text == other)
    }

    /// Its beginning as it is written, for people.
    pub(in crate::serve) fn start(&self) -> String {
        const CHARS: usize = 32;
        let bytes = &self.raw[..self.raw.len().min(4 * CHARS)];
        String::from_utf8_lossy(bytes).chars().take(CHARS).collect()
    }

    /// What it says.
    ///
    /// # Errors
    /// Where it is not Unicode.
    pub(in crate::serve) fn read(&self) -> Result<String, Refused> {
        let mut bytes = Vec::with_capacity(self.raw.len());
        self.append(&mut bytes)?;
        String::from_utf8(bytes).map_err(|_| not_unicode())
    }

    /// Appends what it says, in at most [`Text::longest`] bytes.
    ///
    /// # Errors
    /// Where it is not Unicode.
    pub(in crate::serve) fn append(&self, bytes: &mut Vec<u8>) -> Result<(), Refused> {
        if std::str::from_utf8(self.raw).is_err() {
            return Err(not_unicode());
        }
        if !self.has_escapes {
            bytes.extend_from_slice(self.raw);
            return Ok(());
        }
        let mut rest = self.raw;
        while let Some(plain) = rest.iter().position(|byte| *byte == b'\\') {
            bytes.extend_from_slice(&rest[..plain]);
            rest = &rest[plain + 1..];
            let taken = match rest.first() {
                Some(b'u') => self.code_point(rest, bytes)?,
                Some(escape) => {
                    bytes.push(escaped(*escape));
                    1
                }
                None => 0,
            };
            rest = &rest[taken..];
        }
        bytes.extend_from_slice(rest);
        Ok(())
    }

    /// Appends the character of an escape `uXXXX`, or of two that are one, and says how many bytes they took.
    fn code_point(&self, escape: &[u8], bytes: &mut Vec<u8>) -> Result<usize, Refused> {
        let first = hex(&escape[1..]);
        let second = escape.get(5..7).filter(|next| *next == b"\\u").map(|_| hex(&escape[7..]));
        let (code, taken) = match (first, second) {
            (0xd800..=0xdbff, Some(second @ 0xdc00..=0xdfff)) => {
                (0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00), 11)
            }
            _ => (first, 5),
        };
        let character = char::from_u32(code).ok_or_else(|| {
            Refused::Input(format!(
                "a string has one half of a character, `\\u{code:04x}`, without the other"
            ))
        })?;
        bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        Ok(taken)
    }
}

fn escaped(escape: u8) -> u8 {
    match escape {
        b'b' => 0x08,
        b'f' => 0x0c,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        itself => itself,
    }
}

/// The value of four digits.
fn hex(digits: &[u8]) -> u32 {
    let digits = digits.iter().take(4);
    digits.fold(0, |value, digit| value << 4 | char::from(*digit).to_digit(16).unwrap_or_default())
}

fn not_unicode() -> Refused {
    Refused::Input("a string is not UTF-8; bytes of any kind go into a binary tensor".to_owned())
}

impl<'a> Scan<'a> {
    /// Takes the string at the place, which begins with a quote.
    pub(super) fn string(&mut self) -> Result<Text<'a>, Refused> {
        self.at += 1;
        let start = self.at;
        let mut has_escapes = false;
        loop {
            self.plain();
            match self.text.get(self.at) {
                Some(b'"') => {
                    let raw = &self.text[start..self.at];
                    self.at += 1;
                    return Ok(Text { raw, has_escapes });
                }
                Some(b'\\') => {
                    has_escapes = true;
                    self.escape()?;
                }
                Some(_) => return Err(self.wrong("a string has a control character that is not escaped")),
                None => return Err(self.wrong("a string has no end")),
            }
        }
    }

    /// Goes to the next byte that does not stand for itself.
    #[inline]
    fn plain(&mut self) {
        let is_special = |byte: &u8| *byte < 0x20 || *byte == b'"' || *byte == b'\\';
        // Many at once, without a branch for each: strings may be long files in base64.
        let (chunks, _) = self.text[self.at..].as_chunks::<32>();
        let plain =
            chunks.iter().take_while(|chunk| !chunk.iter().fold(false, |any, byte| any | is_special(byte)));
        self.at += 32 * plain.count();
        let rest = &self.text[self.at..];
        self.at += rest.iter().position(is_special).unwrap_or(rest.len());
    }

    fn escape(&mut self) -> Result<(), Refused> {
        let length = match self.text.get(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
            Some(b'u') => 6,
            _ => return Err(self.wrong("a string has an escape that there is not")),
        };
        let digits = self.text.get(self.at + 2..self.at + length);
        if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
            return Err(self.wrong("a string has an escape that there is not"));
        }
        self.at += length;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::scan::Value;
    use super::*;

    /// The first string of a text, and whether the text is JSON at all.
    fn read(text: &[u8]) -> Result<String, String> {
        let mut scan = Scan::new(text);
        let read = match scan.value() {
            Ok(Value::Text(text)) => scan.end().and_then(|()| text.read()),
            Ok(_) => panic!("it is not a string"),
            Err(refused) => Err(refused),
        };
        read.map_err(|refused| format!("{refused:?}"))
    }

    #[test]
    fn strings_say_what_serde_json_reads_in_them() {
        for text in [
            r#""""#,
            r#""plain""#,
            r#""é \u00e9 \u00E9 \ud83d\ude00 😀 \" \\ \/ \b\f\n\r\t""#,
            r#""\u0000""#,
            r#""a long one, so that more than thirty-two bytes are looked at at once \n and then some more of them""#,
        ] {
            assert_eq!(read(text.as_bytes()).unwrap(), serde_json::from_str::<String>(text).unwrap());
        }
    }

    #[test]
    fn keys_are_known_however_they_are_written() {
        let check = |text: &str, other: &str, expected: bool| {
            let Ok(Value::Text(text)) = Scan::new(text.as_bytes()).value() else { panic!("it is no string") };
            assert_eq!(text.is(other), expected, "{other}");
        };
        check(r#""data""#, "data", true);
        check(r#""data""#, "date", false);
        check(r#""\u0064at\u0061""#, "data", true);
        check(r#""\u0064\u0061\u0074\u0061""#, "data", true);
        check(r#""\u0064\u0061\u0074\u0061\u0061""#, "data", false);
        check(r#""\ud800""#, "data", false);
    }

    #[test]
    fn strings_that_are_none_are_refused() {
        let check = |text: &[u8], expected: &str| {
            let error = read(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        check(b"\"", "has no end");
        check(br#""\"#, "escape that there is not");
        check(br#""\x""#, "escape that there is not");
        check(br#""\u12""#, "escape that there is not");
        check(br#""\u12g4""#, "escape that there is not");
        check(b"\"\n\"", "control character");
        check(br#""\ud800""#, "one half of a character, `\\\\ud800`");
        check(br#""\udc00\ud800""#, "one half of a character");
        check(br#""\ud800\u0041""#, "one half of a character");
        check(b"\"\xff\"", "not UTF-8");
    }
}
