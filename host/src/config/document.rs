//! Reads a TOML document so that everything wrong in it is reported at once, each with its line.

mod near_miss;
mod table;

use std::cell::{Cell, RefCell};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

pub(crate) use near_miss::advice;
pub(crate) use table::{Table, Value};

/// The largest document that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;
/// Problems beyond this number are counted, not listed.
const MAX_LISTED: usize = 100;
/// A message is cut here, in characters: names in it come from the document.
const MAX_MESSAGE: usize = 600;
/// How deep tables and arrays may be nested.
const MAX_DEPTH: usize = 32;
/// The stack of the thread that parses, in bytes.
const PARSER_STACK: usize = 64 << 20;

/// Everything that is wrong with one file, in the order of its lines.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.report())]
pub struct DocumentErrors {
    /// The file.
    pub path: PathBuf,
    /// At least one.
    pub errors: Vec<DocumentError>,
}

/// One thing that is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentError {
    /// From 1; 0 where the problem is the file as a whole.
    pub line: usize,
    /// What is wrong and what to do about it.
    pub message: String,
}

impl DocumentErrors {
    fn of_file(path: &Path, message: String) -> Self {
        let errors = vec![DocumentError { line: 0, message }];
        Self { path: path.to_owned(), errors }
    }

    fn report(&self) -> String {
        let path = self.path.display();
        let lines = self.errors.iter().map(|error| match error.line {
            0 => format!("{path}: {}", error.message),
            line => format!("{path}:{line}: {}", error.message),
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// Reads the text of a document of at most 1 MiB.
pub(crate) fn read(path: &Path) -> Result<String, DocumentErrors> {
    let refuse = |message: &str| DocumentErrors::of_file(path, message.to_owned());
    let cannot = |error: std::io::Error| refuse(&format!("cannot be read: {error}"));
    // Asked before it is opened: to open a pipe would wait for a writer.
    let metadata = path.metadata().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => refuse("there is no such file; check the path"),
        _ => cannot(error),
    })?;
    if !metadata.is_file() {
        return Err(refuse("is not a file; give the path of the TOML file itself"));
    }
    let file = std::fs::File::open(path).map_err(cannot)?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(refuse("is larger than 1 MiB, the most that is read; make it smaller"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        let message = "is not valid UTF-8 here; save the file as UTF-8".to_owned();
        DocumentErrors { path: path.to_owned(), errors: vec![DocumentError { line, message }] }
    })
}

/// Parses `text` and hands its top-level table to `walk`.
///
/// What `walk` returns is returned only if it met no problem, so a reader may put any default
/// in the place of a wrong value. Where the text is not TOML, its syntax errors are all that is
/// reported.
pub(crate) fn walk<T>(
    path: &Path,
    text: &str,
    walk: impl FnOnce(&mut Table<'_>) -> T,
) -> Result<T, DocumentErrors> {
    let problems = Problems::new(text);
    let parsed = parse(text).map_err(|error| {
        DocumentErrors::of_file(path, format!("cannot be parsed, for want of a thread: {error}"))
    })?;
    let mut result = None;
    match &parsed {
        Ok(root) => {
            let mut table = Table::new(root, String::new(), None, &problems);
            result = Some(walk(&mut table));
            table.finish();
        }
        Err(syntax) => {
            syntax.iter().for_each(|(offset, message)| problems.add(*offset, message));
        }
    }
    match (result, problems.into_errors()) {
        (Some(result), errors) if errors.is_empty() => Ok(result),
        (_, errors) => Err(DocumentErrors { path: path.to_owned(), errors }),
    }
}

/// Syntax errors, each with its offset.
type Syntax = Vec<(Option<usize>, String)>;

/// Parses `text` where a nesting that is too deep overflows no stack.
///
/// The parser bounds the nesting of values and the length of dotted keys, but not their product,
/// and a value of thousands of levels is dropped recursively.
fn parse(text: &str) -> std::io::Result<Result<DeTable<'_>, Syntax>> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(PARSER_STACK);
        let parser = thread.spawn_scoped(scope, || {
            let (root, errors) = DeTable::parse_recoverable(text);
            if !errors.is_empty() {
                return Err(errors.iter().map(|error| syntax(text, error)).collect());
            }
            if root.get_ref().values().any(|value| deeper_than(value.get_ref(), MAX_DEPTH)) {
                let message = format!("is nested deeper than {MAX_DEPTH} levels; make it flatter");
                return Err(vec![(None, message)]);
            }
            Ok(root.into_inner())
        })?;
        Ok(parser.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn syntax(text: &str, error: &toml::de::Error) -> (Option<usize>, String) {
    let span = error.span();
    let quoted = span.clone().and_then(|span| text.get(span)).unwrap_or_default();
    let message = match error.message() {
        "duplicate key" => format!("duplicate key `{quoted}`; keep one of the two"),
        // What was read instead is not shown: it may be a secret that lacks its quotes.
        message => format!("is not TOML: {message}"),
    };
    (span.map(|span| span.start), message)
}

fn deeper_than(value: &DeValue<'_>, levels: usize) -> bool {
    let deeper = |value: &Spanned<DeValue<'_>>| levels == 0 || deeper_than(value.get_ref(), levels - 1);
    match value {
        DeValue::Array(array) => array.iter().any(deeper),
        DeValue::Table(table) => table.values().any(deeper),
        _ => false,
    }
}

/// The problems met so far, in any order.
struct Problems {
    /// The offset of every line's end.
    line_ends: Vec<usize>,
    found: RefCell<Vec<DocumentError>>,
    unlisted: Cell<usize>,
}

impl Problems {
    fn new(text: &str) -> Self {
        let line_ends = text.match_indices('\n').map(|(offset, _)| offset).collect();
        Self { line_ends, found: RefCell::default(), unlisted: Cell::default() }
    }

    fn add(&self, offset: Option<usize>, message: &str) {
        if self.is_full() {
            self.unlisted.update(|count| count + 1);
            return;
        }
        let line = offset.map_or(0, |offset| self.line(offset));
        let mut shown = String::new();
        for char in message.chars().take(MAX_MESSAGE) {
            // A name in the document must not reach the terminal as a control sequence.
            match char.is_control() {
                true => shown.extend(char.escape_default()),
                false => shown.push(char),
            }
        }
        let error = DocumentError { line, message: shown };
        let mut found = self.found.borrow_mut();
        // A value that is read twice is wrong twice.
        if !found.contains(&error) {
            found.push(error);
        }
    }

    /// Whether further problems are only counted.
    fn is_full(&self) -> bool {
        self.found.borrow().len() >= MAX_LISTED
    }

    fn line(&self, offset: usize) -> usize {
        1 + self.line_ends.partition_point(|end| *end < offset)
    }

    fn into_errors(self) -> Vec<DocumentError> {
        let mut errors = self.found.into_inner();
        errors.sort_by_key(|error| error.line);
        if self.unlisted.get() > 0 {
            let message = format!("{} further problems are not listed", self.unlisted.get());
            errors.push(DocumentError { line: 0, message });
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nested_document_is_bounded_and_a_control_character_shown() {
        let keys = vec!["a"; 79].join(".");
        let deep = format!("x={}1{}", format!("{{{keys}=").repeat(79), "}".repeat(79));
        let errors = walk(Path::new("f.toml"), &deep, |_| ()).unwrap_err();
        assert!(errors.to_string().contains("deeper than 32"), "{errors}");
        for text in ["x=[".repeat(1 << 18), "x.".repeat(1 << 19), "{".repeat(1 << 20)] {
            assert!(walk(Path::new("f.toml"), &text, |_| ()).is_err());
        }
        let errors = walk(Path::new("f.toml"), "\"\\u001b[31m\" = 1", |_| ()).unwrap_err();
        assert!(!errors.to_string().contains('\u{1b}'), "{errors}");
    }

    #[test]
    fn an_unreadable_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let check = |name: &str, bytes: Option<Vec<u8>>, line: usize, expected: &str| {
            let path = dir.path().join(name);
            if let Some(bytes) = bytes {
                std::fs::write(&path, bytes).unwrap();
            }
            let errors = read(&path).unwrap_err();
            assert_eq!(errors.errors[0].line, line);
            assert!(errors.to_string().contains(expected), "{errors}");
        };
        check("absent.toml", None, 0, "no such file");
        check("", None, 0, "is not a file");
        check("binary.toml", Some(b"a = 1\n\xff".to_vec()), 2, "UTF-8");
        check("large.toml", Some(vec![b'#'; (1 << 20) + 1]), 0, "1 MiB");
    }
}
