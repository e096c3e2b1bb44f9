//! JSON as it is gone through from left to right: no tree, nothing kept but the place.

use super::Refused;
use super::number::Number;
use super::text::Text;

/// Arrays and objects that may stand in each other.
const DEPTH: u32 = 128;

/// A place in a JSON text. A clone goes its own way from there.
#[derive(Clone)]
pub(in crate::serve) struct Scan<'a> {
    pub(super) text: &'a [u8],
    pub(super) at: usize,
    /// Arrays and objects around the place.
    depth: u32,
}

/// What stands at a place. Of arrays and objects only the bracket is taken; what they hold is to be gone through with
/// [`Scan::element`] or [`Scan::key`] to the end, or skipped with [`Scan::leave`].
pub(in crate::serve) enum Value<'a> {
    Null,
    Bool(bool),
    Number(Number<'a>),
    Text(Text<'a>),
    Array,
    Object,
}

impl<'a> Scan<'a> {
    pub(in crate::serve) fn new(text: &'a [u8]) -> Scan<'a> {
        Scan { text, at: 0, depth: 0 }
    }

    /// Whether the whole of a text is JSON.
    ///
    /// # Errors
    /// Says where it is not.
    pub(in crate::serve) fn check(text: &[u8]) -> Result<(), Refused> {
        let mut scan = Scan::new(text);
        scan.skip()?;
        scan.end()
    }

    /// The length of what lies ahead.
    pub(in crate::serve) fn left(&self) -> usize {
        self.text.len() - self.at
    }

    /// Takes the value at the place.
    #[inline]
    pub(in crate::serve) fn value(&mut self) -> Result<Value<'a>, Refused> {
        match self.peek() {
            Some(b'-' | b'0'..=b'9') => self.number().map(Value::Number),
            Some(b'"') => self.string().map(Value::Text),
            Some(b'[') => self.enter().map(|()| Value::Array),
            Some(b'{') => self.enter().map(|()| Value::Object),
            Some(b't') => self.word(b"true", Value::Bool(true)),
            Some(b'f') => self.word(b"false", Value::Bool(false)),
            Some(b'n') => self.word(b"null", Value::Null),
            _ => Err(self.no_value()),
        }
    }

    /// Whether a number begins at the place.
    #[inline]
    pub(super) fn is_number(&mut self) -> bool {
        matches!(self.peek(), Some(b'-' | b'0'..=b'9'))
    }

    /// Goes to the next element of the array that the place is in, and tells whether there is one.
    /// `first` is true before the first one, and false from then on.
    #[inline]
    pub(in crate::serve) fn element(&mut self, first: &mut bool) -> Result<bool, Refused> {
        match self.peek() {
            Some(b']') => {
                self.at += 1;
                self.depth -= 1;
                return Ok(false);
            }
            Some(b',') if !*first => self.at += 1,
            Some(_) if *first => {}
            _ => return Err(self.wrong("expected `,` or `]`")),
        }
        *first = false;
        Ok(true)
    }

    /// Goes to the value of the next key of the object that the place is in.
    #[inline]
    pub(in crate::serve) fn key(&mut self, first: &mut bool) -> Result<Option<Text<'a>>, Refused> {
        match self.peek() {
            Some(b'}') => {
                self.at += 1;
                self.depth -= 1;
                return Ok(None);
            }
            Some(b',') if !*first => self.at += 1,
            Some(_) if *first => {}
            _ => return Err(self.wrong("expected `,` or `}`")),
        }
        *first = false;
        if self.peek() != Some(b'"') {
            return Err(self.wrong("expected a key in quotes"));
        }
        let key = self.string()?;
        if self.peek() != Some(b':') {
            return Err(self.wrong("expected `:`"));
        }
        self.at += 1;
        Ok(Some(key))
    }

    /// Goes past the value at the place.
    pub(in crate::serve) fn skip(&mut self) -> Result<(), Refused> {
        let value = self.value()?;
        self.leave(&value)
    }

    /// Goes past what is left of a value that was begun.
    pub(in crate::serve) fn leave(&mut self, value: &Value<'_>) -> Result<(), Refused> {
        let mut first = true;
        match value {
            // Each level takes a little of the stack, and there are at most `DEPTH`.
            Value::Array => {
                while self.element(&mut first)? {
                    self.skip()?
                }
            }
            Value::Object => {
                while self.key(&mut first)?.is_some() {
                    self.skip()?
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Text(_) => {}
        }
        Ok(())
    }

    /// Says that nothing more may follow.
    pub(in crate::serve) fn end(&mut self) -> Result<(), Refused> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.wrong("more follows its end")),
        }
    }

    /// The next byte that is not white space.
    #[inline]
    fn peek(&mut self) -> Option<u8> {
        loop {
            match self.text.get(self.at).copied() {
                Some(byte) if byte > b' ' => return Some(byte),
                Some(b' ' | b'\n' | b'\t' | b'\r') => self.at += 1,
                byte => return byte,
            }
        }
    }

    fn enter(&mut self) -> Result<(), Refused> {
        if self.depth == DEPTH {
            let what = format!("the body is not JSON that can be read: it nests deeper than {DEPTH} levels");
            return Err(Refused::Input(what));
        }
        self.at += 1;
        self.depth += 1;
        Ok(())
    }

    fn word(&mut self, word: &[u8], value: Value<'a>) -> Result<Value<'a>, Refused> {
        if !self.text[self.at..].starts_with(word) {
            return Err(self.no_value());
        }
        self.at += word.len();
        Ok(value)
    }

    /// No value begins at the place, or goes on there after a minus.
    #[cold]
    pub(super) fn no_value(&self) -> Refused {
        let ahead = &self.text[self.at..];
        if ahead.starts_with(b"NaN") || ahead.starts_with(b"Infinity") {
            return self.wrong("it has no NaN and no Infinity; a binary tensor may hold them");
        }
        self.wrong("expected a value")
    }

    /// The text is not JSON at the place.
    #[cold]
    pub(super) fn wrong(&self, what: &str) -> Refused {
        if self.at >= self.text.len() {
            return Refused::Input(format!("the body is not JSON: {what}, and the body ends"));
        }
        let before = &self.text[..self.at];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let column = before.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
        Refused::Input(format!("the body is not JSON: {what} at line {line}, column {column}"))
    }
}
