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

/// Whether `name` may be a variable's: Spin's snake id in lower case.
pub(super) fn is_variable(name: &str) -> bool {
    is_words(name, '_') && !name.contains(|c: char| c.is_ascii_uppercase())
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
    fn names() {
        let check = |name: &str, expected: [bool; 4]| {
            let found = [is_app(name), is_model(name), is_component(name), is_variable(name)];
            assert_eq!(found, expected, "{name}");
        };
        check("digits", [true, true, true, true]);
        check("hello-2-world", [true, true, true, false]);
        check("hello_2_world", [true, true, false, true]);
        check("HTTP-server", [true, true, true, false]);
        check("API_KEY", [true, true, false, false]);
        check("Http", [true, true, false, false]);
        check(".v1", [false, true, false, false]);
        check("all-MiniLM-L6.v2", [true, true, false, false]);
        check("a--b", [true, true, false, false]);
        check("", [false; 4]);
        check("a b", [false; 4]);
        check("a/b", [false; 4]);
        check(&"a".repeat(65), [false; 4]);
    }
}
