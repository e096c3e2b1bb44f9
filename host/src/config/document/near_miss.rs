//! What a name that is not known was probably meant to be.

use std::fmt::Write as _;

/// The most names that are compared, and the most that are listed.
const MAX_COMPARED: usize = 256;
const MAX_LISTED: usize = 32;

/// What to do about the wrong name `name`: the near miss, or else the names there are.
pub(crate) fn advice<'n>(name: &str, known: impl Iterator<Item = &'n str> + Clone, list: &str) -> String {
    if let Some(near) = near_miss(name, known.clone()) {
        return format!("did you mean `{near}`?");
    }
    let mut advice = list.to_owned();
    for (index, name) in known.take(MAX_LISTED).enumerate() {
        let separator = if index == 0 { " " } else { ", " };
        let _ = write!(advice, "{separator}`{name}`");
    }
    advice
}

/// The name among `known` that `name` was probably meant to be.
fn near_miss<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let name: Vec<char> = name.chars().take(65).flat_map(char::to_lowercase).collect();
    let allowed = match name.len() {
        0..=2 => 1,
        3..=5 => 2,
        6..=64 => 3,
        _ => return None,
    };
    let distances = known.take(MAX_COMPARED).map(|known| {
        let letters: Vec<char> = known.chars().flat_map(char::to_lowercase).collect();
        // More than half of a short name changed is another name.
        let bound = allowed.min(letters.len() / 2);
        (edits(&name, &letters), bound, known)
    });
    let near = distances.filter(|(distance, bound, _)| distance <= bound);
    near.min_by_key(|(distance, ..)| *distance).map(|(.., known)| known)
}

/// How many letters to insert, remove, replace or swap with a neighbour to turn `a` into `b`.
fn edits(a: &[char], b: &[char]) -> usize {
    let mut before = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_misses() {
        let check = |name: &str, expected: Option<&str>| {
            let known = ["source", "files", "description", "gpu", "cpu", "a"];
            assert_eq!(near_miss(name, known.into_iter()), expected, "{name}");
        };
        check("sorce", Some("source"));
        check("Soruce", Some("source"));
        check("decsription", Some("description"));
        check("cpuu", Some("cpu"));
        check("zebra", None);
        check("", None);
        check(&"x".repeat(100_000), None);
    }
}
