//! Golden samples in files: which of a component's files are samples, and what they hold.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::{Golden, NotRunnable};
use crate::artifact::sample::{self, Sample};

/// The files that are samples: JSON that no other sample names as a body.
pub fn among(files: &BTreeMap<String, PathBuf>) -> Vec<(&String, &PathBuf)> {
    let documents: Vec<_> = files.iter().filter(|(name, _)| name.ends_with(".json")).collect();
    let bodies: BTreeSet<String> = documents
        .iter()
        .filter_map(|(name, path)| Some((name, Sample::parse(&sample::read(path).ok()?).ok()?)))
        .flat_map(|(name, sample)| {
            sample.files().into_iter().map(|file| beside(name, file)).collect::<Vec<_>>()
        })
        .collect();
    documents.into_iter().filter(|(name, _)| !bodies.contains(*name)).collect()
}

/// What people call a sample that does not say: its file's name.
pub fn title(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.strip_suffix(".json").unwrap_or(file).to_owned()
}

/// Reads the sample `name`, which is the file at `path`, with those of `files` that it names.
///
/// # Errors
/// Where a file cannot be read, or it is no sample.
pub fn open(name: &str, path: &Path, files: &BTreeMap<String, PathBuf>) -> Result<Golden, NotRunnable> {
    let bytes = sample::read(path).map_err(|error| NotRunnable::Unreadable(error.to_string()))?;
    let read = |file: &str| {
        let named = files.get(&beside(name, file))?;
        sample::read(named).ok().map(Bytes::from)
    };
    Golden::read(&title(name), &bytes, &read)
}

/// The name of a file beside a sample.
fn beside(sample: &str, file: &str) -> String {
    let folder = sample.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
    format!("{folder}{}", file.trim_start_matches("./"))
}
