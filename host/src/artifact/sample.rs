//! Golden samples as an author writes them: a request, the answer that is expected, and what may differ.
//!
//! A sample is a JSON file. The bytes of requests and answers that are no JSON stand in files beside it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

/// The largest sample, in bytes, and so is each file that it names.
pub const MAX_SAMPLE_BYTES: u64 = 16 << 20;
/// The most samples of one function.
pub const MAX_SAMPLES: usize = 1000;
/// The most files of one function's samples, of which each may name two.
pub const MAX_SAMPLE_FILES: usize = 3 * MAX_SAMPLES;
/// The most bytes of one function's samples, each counted as often as it is named: so much is read and parsed.
pub const MAX_SAMPLES_BYTES: u64 = 1 << 30;

/// One golden sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// What people call it; the name of its file unless said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub request: Request,
    /// Absent until it is recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<Response>,
    #[serde(default, skip_serializing_if = "Tolerances::is_empty")]
    pub tolerance: Tolerances,
}

/// What is asked: tensors in the JSON of the Open Inference Protocol, or a body.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inputs: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outputs: Option<Value>,
    /// A file beside the sample.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub json: Option<Value>,
    /// Of HTTP functions: `GET` without a body and `POST` with one unless said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Of HTTP functions: the whole path, with its query; the function's first route unless said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Of HTTP functions.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
}

/// What is expected; only what stands here is compared.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Response {
    /// Tensors in the JSON of the Open Inference Protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outputs: Option<Vec<Value>>,
    /// A file beside the sample.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub json: Option<Value>,
    /// Of HTTP functions: 200 unless said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Of HTTP functions.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// The code of the error that a typed function is to raise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What numbers may differ by.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tolerances {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub absolute: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relative: Option<f64>,
    /// Of single outputs, in place of the two above.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub outputs: BTreeMap<String, OutputTolerance>,
}

/// What the numbers of one output may differ by.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputTolerance {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub absolute: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relative: Option<f64>,
}

impl Tolerances {
    fn is_empty(&self) -> bool {
        *self == Tolerances::default()
    }
}

/// Why a file is no sample.
#[derive(Debug, Error)]
pub enum SampleError {
    #[error("it is not a sample: {0}; docs/samples.md shows the form")]
    Form(String),
    #[error("`{0}` leads away from the sample's folder; put the file beside the sample")]
    Outside(String),
    #[error("its {0} says several of {1}; keep one")]
    Several(&'static str, &'static str),
    #[error("its tolerance {0} is not a number from 0 on")]
    Tolerance(f64),
}

impl Sample {
    /// Reads a sample.
    ///
    /// # Errors
    /// Where the bytes are not JSON of that form, or contradict themselves.
    pub fn parse(bytes: &[u8]) -> Result<Sample, SampleError> {
        let sample: Sample =
            serde_json::from_slice(bytes).map_err(|error| SampleError::Form(error.to_string()))?;
        sample.check()?;
        Ok(sample)
    }

    /// The files that it names, relative to its own folder.
    pub fn files(&self) -> Vec<&str> {
        let response = self.response.as_ref().and_then(|response| response.body_file.as_deref());
        self.request.body_file.as_deref().into_iter().chain(response).collect()
    }

    fn check(&self) -> Result<(), SampleError> {
        for file in self.files() {
            let normal = |component| matches!(component, Component::Normal(_) | Component::CurDir);
            if file.is_empty() || file.contains(['\0', '\\']) || !Path::new(file).components().all(normal) {
                return Err(SampleError::Outside(file.to_owned()));
            }
        }
        let request = &self.request;
        let tensors = request.inputs.is_some() || request.parameters.is_some() || request.outputs.is_some();
        if one_of([tensors, request.body_file.is_some(), request.body.is_some(), request.json.is_some()]) {
            return Err(SampleError::Several("request", "`inputs`, `body_file`, `body` and `json`"));
        }
        if let Some(response) = &self.response
            && one_of([
                response.outputs.is_some(),
                response.body_file.is_some(),
                response.body.is_some(),
                response.json.is_some(),
            ])
        {
            return Err(SampleError::Several("response", "`outputs`, `body_file`, `body` and `json`"));
        }
        let own = [self.tolerance.absolute, self.tolerance.relative];
        let of_outputs = self.tolerance.outputs.values().flat_map(|one| [one.absolute, one.relative]);
        match own
            .into_iter()
            .chain(of_outputs)
            .flatten()
            .find(|tolerance| tolerance.is_nan() || *tolerance < 0.0)
        {
            Some(wrong) => Err(SampleError::Tolerance(wrong)),
            None => Ok(()),
        }
    }
}

/// Reads the file of a sample, or one that it names.
///
/// # Errors
/// Where it cannot be read, or is larger than [`MAX_SAMPLE_BYTES`].
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_SAMPLE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_SAMPLE_BYTES {
        let mib = MAX_SAMPLE_BYTES >> 20;
        return Err(io::Error::other(format!("it is larger than the {mib} MiB of a sample's file")));
    }
    Ok(bytes)
}

/// Checks how many files the samples of one function are, and how large together. `files` has them by their names, of
/// which several may lead to one file; what is not there is not counted.
///
/// # Errors
/// What is too much, and what to do about it.
pub fn check_amount(files: &BTreeMap<String, PathBuf>) -> Result<(), String> {
    if files.len() > MAX_SAMPLE_FILES {
        return Err(format!("has more than {MAX_SAMPLE_FILES} files of samples; name fewer"));
    }
    let sizes = files.values().filter_map(|path| path.metadata().ok()).map(|file| file.len());
    let bytes = sizes.fold(0, u64::saturating_add);
    match bytes > MAX_SAMPLES_BYTES {
        true => Err(format!(
            "has samples of {} MiB altogether, more than the {} that are read; name fewer, or smaller ones",
            bytes >> 20,
            MAX_SAMPLES_BYTES >> 20
        )),
        false => Ok(()),
    }
}

/// Whether more than one is there.
fn one_of(there: [bool; 4]) -> bool {
    there.into_iter().filter(|there| *there).count() > 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_bounded_in_number_and_together() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("one");
        let check = |names: usize, bytes: u64, expected: Option<&str>| {
            // Sparse: it takes no room.
            File::create(&path).unwrap().set_len(bytes).unwrap();
            let files = (0..names).map(|name| (format!("{name}.json"), path.clone())).collect();
            match (check_amount(&files), expected) {
                (Ok(()), None) => {}
                (Err(error), Some(expected)) => assert!(error.contains(expected), "{error}"),
                (other, _) => panic!("{names} of {bytes}: {other:?}"),
            }
        };
        check(0, 0, None);
        check(3000, 1, None);
        check(3001, 1, Some("more than 3000 files"));
        check(64, MAX_SAMPLE_BYTES, None);
        check(65, MAX_SAMPLE_BYTES, Some("1040 MiB altogether, more than the 1024"));
    }

    #[test]
    fn samples_are_read_strictly() {
        let check = |text: &str, expected: Option<&str>| match (Sample::parse(text.as_bytes()), expected) {
            (Ok(_), None) => {}
            (Err(error), Some(expected)) => {
                let said = error.to_string();
                assert!(said.contains(expected), "{text}: {said}");
            }
            (other, _) => panic!("{text}: {other:?}"),
        };
        check(r#"{"request": {"inputs": []}, "response": {"outputs": []}}"#, None);
        check(r#"{"request": {"body_file": "seven.png"}, "tolerance": {"absolute": 1e-3}}"#, None);
        check(r#"{"request": {"body_file": "./a/seven.png"}}"#, None);
        check("", Some("not a sample"));
        check("[]", Some("not a sample"));
        check(r#"{"request": {}, "reponse": {}}"#, Some("reponse"));
        check(r#"{"request": {"body_file": "../seven.png"}}"#, Some("leads away"));
        check(r#"{"request": {"body_file": "/etc/passwd"}}"#, Some("leads away"));
        check(r#"{"request": {"body": "a", "json": {}}}"#, Some("several of"));
        check(r#"{"request": {}, "response": {"body": "a", "outputs": []}}"#, Some("several of"));
        check(r#"{"request": {}, "tolerance": {"relative": -1}}"#, Some("-1 is not a number from 0 on"));
    }
}
