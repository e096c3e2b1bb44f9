//! One table or value of a document, which knows where it stands and reports what is wrong with it.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Problems, advice};

/// The most items of an array or entries of a table whose keys the document chooses.
const MAX_ITEMS: usize = 1024;

/// One table of the document. The keys that a reader asks for are the keys that the table may
/// have: [`Table::finish`] refuses the others.
pub(crate) struct Table<'a> {
    entries: &'a DeTable<'a>,
    path: String,
    offset: Option<usize>,
    asked: Vec<&'static str>,
    ignored: bool,
    problems: &'a Problems,
}

impl<'a> Table<'a> {
    pub(super) fn new(
        entries: &'a DeTable<'a>,
        path: String,
        offset: Option<usize>,
        problems: &'a Problems,
    ) -> Self {
        Self { entries, path, offset, asked: Vec::new(), ignored: false, problems }
    }

    /// Whether `key` is there, without making it a known key.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// The value of `key`, which from now on is a known key of this table.
    pub(crate) fn value(&mut self, key: &'static str) -> Option<Value<'a>> {
        self.asked.push(key);
        let (name, value) = self.entries.get_key_value(key)?;
        Some(Value::new(join(&self.path, key), name.span().start, value, self.problems))
    }

    /// Like [`Table::value`], but a missing key is a problem; `example` shows what to add.
    pub(crate) fn required(&mut self, key: &'static str, example: &str) -> Option<Value<'a>> {
        let value = self.value(key);
        if value.is_none() {
            self.refuse(&format!("{} lacks `{key}`; add `{example}`", self.shown()));
        }
        value
    }

    pub(crate) fn string(&mut self, key: &'static str) -> Option<String> {
        self.value(key)?.string()
    }

    pub(crate) fn boolean(&mut self, key: &'static str) -> Option<bool> {
        self.value(key)?.boolean()
    }

    /// A whole number within `range`, whose ends the message names together with `unit`.
    pub(crate) fn number<N: TryFrom<u64>>(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
        unit: &str,
    ) -> Option<N> {
        self.value(key)?.number(range, unit)
    }

    /// One of the names in `choices`.
    pub(crate) fn choice<T: Clone>(&mut self, key: &'static str, choices: &[(&str, T)]) -> Option<T> {
        self.value(key)?.choice(choices)
    }

    /// The strings of an array; empty where there is none.
    pub(crate) fn strings(&mut self, key: &'static str) -> Vec<String> {
        let items = self.value(key).map(|value| value.items()).unwrap_or_default();
        items.iter().filter_map(Value::string).collect()
    }

    /// A table whose keys the document chooses, in the order of the document.
    pub(crate) fn entries(&mut self, key: &'static str) -> Vec<(String, Value<'a>)> {
        self.value(key).map(|value| value.entries()).unwrap_or_default()
    }

    /// A table of strings whose keys the document chooses.
    pub(crate) fn string_map(&mut self, key: &'static str) -> BTreeMap<String, String> {
        let strings = self.entries(key).into_iter();
        strings.filter_map(|(name, value)| Some((name, value.string()?))).collect()
    }

    /// A table whose keys the reader knows: `read` asks for them, any other is refused.
    pub(crate) fn table<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Table<'a>) -> T,
    ) -> Option<T> {
        self.value(key)?.table(read)
    }

    /// Reports a problem with this table as a whole.
    pub(crate) fn refuse(&self, message: &str) {
        self.problems.add(self.offset, message);
    }

    /// Reports a problem with the file as a whole, or with what was asked of it.
    pub(crate) fn refuse_file(&self, message: &str) {
        self.problems.add(None, message);
    }

    /// Lets the keys that were not asked for pass: the table is refused for another reason.
    pub(crate) fn ignore_rest(&mut self) {
        self.ignored = true;
    }

    /// The table's path, as errors name it.
    pub(crate) fn shown(&self) -> String {
        match self.path.as_str() {
            "" => "the file".to_owned(),
            path => format!("`{path}`"),
        }
    }

    /// Refuses the keys that nobody asked for.
    pub(super) fn finish(self) {
        for name in self.entries.keys() {
            let key: &str = name.get_ref();
            if self.ignored || self.asked.contains(&key) {
                continue;
            }
            // Thousands of wrong keys deserve no thought each.
            let advice = match self.problems.is_full() {
                true => String::new(),
                false => advice(key, self.asked.iter().copied(), "the keys here are"),
            };
            let message = format!("unknown key `{key}` in {}; {advice}", self.shown());
            self.problems.add(Some(name.span().start), &message);
        }
    }
}

/// One value of the document, and where it stands.
#[derive(Clone)]
pub(crate) struct Value<'a> {
    value: &'a DeValue<'a>,
    path: String,
    offset: usize,
    problems: &'a Problems,
}

impl<'a> Value<'a> {
    fn new(path: String, key_offset: usize, value: &'a Spanned<DeValue<'a>>, problems: &'a Problems) -> Self {
        // A table's own span is not always that of its header; its key is what a person looks for.
        let offset = match value.get_ref() {
            DeValue::Table(_) | DeValue::Array(_) => key_offset,
            _ => value.span().start,
        };
        Self { value: value.get_ref(), path, offset, problems }
    }

    /// The dotted path of keys that leads here, for messages.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// The line of this value, from 1.
    pub(crate) fn line(&self) -> usize {
        self.problems.line(self.offset)
    }

    /// Reports a problem with this value.
    pub(crate) fn refuse(&self, message: &str) {
        self.problems.add(Some(self.offset), message);
    }

    fn refuse_type(&self, expected: &str) {
        let found = self.value.type_str();
        self.refuse(&format!("`{}` must be {expected}, not this {found}", self.path));
    }

    /// Whether the value is an empty array, table or string.
    pub(crate) fn is_empty(&self) -> bool {
        match self.value {
            DeValue::Array(array) => array.is_empty(),
            DeValue::Table(table) => table.is_empty(),
            DeValue::String(string) => string.is_empty(),
            _ => false,
        }
    }

    pub(crate) fn is_table(&self) -> bool {
        self.value.is_table()
    }

    pub(crate) fn is_string(&self) -> bool {
        self.value.is_str()
    }

    /// The value as an integer, without a problem where it is something else.
    pub(crate) fn as_integer(&self) -> Option<i64> {
        let integer = self.value.as_integer()?;
        i64::from_str_radix(integer.as_str(), integer.radix()).ok()
    }

    /// The value as a string, without a problem where it is something else.
    pub(crate) fn as_str(&self) -> Option<&'a str> {
        self.value.as_str()
    }

    pub(crate) fn string(&self) -> Option<String> {
        let string = self.value.as_str();
        if string.is_none() {
            self.refuse_type("a string");
        }
        string.map(str::to_owned)
    }

    pub(crate) fn boolean(&self) -> Option<bool> {
        let boolean = self.value.as_bool();
        if boolean.is_none() {
            self.refuse_type("true or false");
        }
        boolean
    }

    pub(crate) fn number<N: TryFrom<u64>>(&self, range: RangeInclusive<u64>, unit: &str) -> Option<N> {
        let number = self.as_integer().and_then(|number| u64::try_from(number).ok());
        let number = number.filter(|number| range.contains(number));
        if number.is_none() {
            let (low, high) = range.into_inner();
            let unit = if unit.is_empty() { String::new() } else { format!(" {unit}") };
            self.refuse(&format!("`{}` must be a whole number from {low} to {high}{unit}", self.path));
        }
        N::try_from(number?).ok()
    }

    /// A number within `range`, with or without a fraction.
    pub(crate) fn decimal(&self, range: RangeInclusive<f64>, unit: &str) -> Option<f64> {
        let float = self.value.as_float().and_then(|float| float.as_str().parse().ok());
        let number = float.or_else(|| self.as_integer().map(|number| number as f64));
        let number = number.filter(|number| range.contains(number));
        if number.is_none() {
            let (low, high) = range.into_inner();
            let unit = if unit.is_empty() { String::new() } else { format!(" {unit}") };
            self.refuse(&format!("`{}` must be a number from {low} to {high}{unit}", self.path));
        }
        number
    }

    /// The value as JSON, for those who read it by a type's own description.
    pub(crate) fn json(&self) -> Option<serde_json::Value> {
        use serde_json::Value as Json;
        let json = match self.value {
            DeValue::String(string) => Json::from(&**string),
            DeValue::Boolean(boolean) => Json::from(*boolean),
            DeValue::Integer(_) => self.as_integer()?.into(),
            DeValue::Float(float) => {
                let number = float.as_str().parse().ok().and_then(serde_json::Number::from_f64);
                let Some(number) = number else {
                    self.refuse(&format!("`{}` must be a finite number", self.path));
                    return None;
                };
                Json::Number(number)
            }
            DeValue::Array(_) => self.items().iter().map(Value::json).collect::<Option<Vec<_>>>()?.into(),
            DeValue::Table(_) => {
                let entries = self.entries().into_iter().map(|(key, value)| Some((key, value.json()?)));
                Json::Object(entries.collect::<Option<_>>()?)
            }
            DeValue::Datetime(_) => {
                self.refuse_type("a number, a string, true or false, an array or a table");
                return None;
            }
        };
        Some(json)
    }

    pub(crate) fn choice<T: Clone>(&self, choices: &[(&str, T)]) -> Option<T> {
        let name = self.string()?;
        let choice = choices.iter().find(|(choice, _)| *choice == name);
        if choice.is_none() {
            let advice = advice(&name, choices.iter().map(|(name, _)| *name), "it may be");
            self.refuse(&format!("`{}` cannot be `{name}`; {advice}", self.path));
        }
        choice.map(|(_, value)| value.clone())
    }

    /// The items of an array, each with its own place.
    pub(crate) fn items(&self) -> Vec<Value<'a>> {
        let Some(array) = self.value.as_array() else {
            self.refuse_type("an array");
            return Vec::new();
        };
        self.check_length(array.len());
        let items = array.iter().take(MAX_ITEMS);
        items.map(|item| Value::new(self.path.clone(), item.span().start, item, self.problems)).collect()
    }

    fn check_length(&self, length: usize) {
        if length > MAX_ITEMS {
            self.refuse(&format!("`{}` has more than {MAX_ITEMS} entries; make it shorter", self.path));
        }
    }

    /// The entries of a table, in the order of the document.
    pub(crate) fn entries(&self) -> Vec<(String, Value<'a>)> {
        let Some(table) = self.value.as_table() else {
            self.refuse_type("a table");
            return Vec::new();
        };
        self.check_length(table.len());
        let mut entries: Vec<_> = table.iter().take(MAX_ITEMS).collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        let named = entries.into_iter().map(|(name, value)| {
            let key: &str = name.get_ref();
            let path = join(&self.path, key);
            (key.to_owned(), Value::new(path, name.span().start, value, self.problems))
        });
        named.collect()
    }

    /// The table that this value is: `read` asks for its keys, any other is refused.
    pub(crate) fn table<T>(&self, read: impl FnOnce(&mut Table<'a>) -> T) -> Option<T> {
        let Some(entries) = self.value.as_table() else {
            self.refuse_type("a table");
            return None;
        };
        let mut table = Table::new(entries, self.path.clone(), Some(self.offset), self.problems);
        let result = read(&mut table);
        table.finish();
        Some(result)
    }
}

fn join(path: &str, key: &str) -> String {
    match path {
        "" => key.to_owned(),
        path => format!("{path}.{key}"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::walk;

    #[test]
    fn the_line_is_that_of_the_key_or_value() {
        let text = "[a]\nx = 1\n\n[[b.c]]\ny = [\n  1,\n  'z',\n]\n\n[[b.c]]\n";
        let errors = walk(Path::new("f.toml"), text, |t| {
            t.table("a", |_| ());
            t.table("b", |b| {
                for item in b.value("c").unwrap().items() {
                    item.table(|c| {
                        c.required("y", "y = []");
                        c.strings("y");
                    });
                }
            });
        });
        let errors = errors.unwrap_err();
        let lines: Vec<_> = errors.errors.iter().map(|error| error.line).collect();
        assert_eq!(lines, [2, 6, 10], "{errors}");
    }
}
