//! Which names may be given to apps, components, variables and models.

/// Whether `name` may be an app's: it is part of paths and of metrics.
pub(super) fn is_app(name: &str) -> bool {
    is_model(name) && name.starts_with(|first: char| first.is_ascii_alphanumeric())
}

/// Whether `name` may be a model's.
pub(super) fn is_model(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=64).contains(&name.len()) && name.chars().all(allowed)
}

/// Whether `name` may be a component's: Spin's kebab id.
pub(super) fn is_component(name: &str) -> bool {
    is_words(name, '-')
}

/// An id for a component that is a file called `title`.
pub(crate) fn component_id(title: &str) -> String {
    let file = title.rsplit('/').next().unwrap_or(title);
    let stem = file.split_once('.').map_or(file, |(stem, _)| stem);
    let letters = stem.chars().take(64).map(|c| c.to_ascii_lowercase());
    let words: String = letters.map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let words: Vec<_> = words.split('-').filter(|word| !word.is_empty()).collect();
    let id = words.join("-");
    if is_component(&id) { id } else { "component".to_owned() }
}

/// Whether `name` may be a variable's: Spin's snake id in lower case.
pub(super) fn is_variable(name: &str) -> bool {
    is_words(name, '_') && !name.contains(|c: char| c.is_ascii_uppercase())
}

/// Whether `name` may be the label of a key-value store: words with `-` or words with `_` between them, each word
/// beginning with a letter.
pub(super) fn is_store(name: &str) -> bool {
    let begins = |word: &str| word.starts_with(|first: char| first.is_ascii_alphabetic());
    (is_words(name, '-') || is_words(name, '_')) && name.split(['-', '_']).all(begins)
}

/// Words of letters and digits, each all lower or all upper case, the first beginning with a letter.
fn is_words(name: &str, separator: char) -> bool {
    let is_word = |word: &str| {
        let mixed = word.contains(|c: char| c.is_ascii_lowercase())
            && word.contains(|c: char| c.is_ascii_uppercase());
        !word.is_empty() && !mixed && word.chars().all(|c| c.is_ascii_alphanumeric())
    };
    let first_is_letter = name.starts_with(|first: char| first.is_ascii_alphabetic());
    first_is_letter && name.len() <= 64 && name.split(separator).all(is_word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_gives_a_component_its_id() {
        let check = |title: &str, expected: &str| assert_eq!(component_id(title), expected, "{title}");
        check("hello.wasm", "hello");
        check("a/b/My_Component.v2.wasm", "my-component");
        check("../../etc/passwd", "passwd");
        check("1.wasm", "component");
        check("..", "component");
        check("", "component");
        check(&"x".repeat(1000), &"x".repeat(64));
    }

    #[test]
    fn names() {
        let check = |name: &str, expected: [bool; 5]| {
            let found = [is_app(name), is_model(name), is_component(name), is_variable(name), is_store(name)];
            assert_eq!(found, expected, "{name}");
        };
        check("digits", [true, true, true, true, true]);
        check("hello-2-world", [true, true, true, false, false]);
        check("hello_2_world", [true, true, false, true, false]);
        check("HTTP-server", [true, true, true, false, true]);
        check("API_KEY", [true, true, false, false, true]);
        check("my_store2", [true, true, false, true, true]);
        check("a-b_c", [true, true, false, false, false]);
        check("Http", [true, true, false, false, false]);
        check(".v1", [false, true, false, false, false]);
        check("all-MiniLM-L6.v2", [true, true, false, false, false]);
        check("a--b", [true, true, false, false, false]);
        check("", [false; 5]);
        check("a b", [false; 5]);
        check("a/b", [false; 5]);
        check(&"a".repeat(65), [false; 5]);
    }
}
