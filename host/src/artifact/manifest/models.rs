//! The app that model files without a manifest are: one component without code for each.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::tool::encoding_of;
use super::{Component, Encoding, ExecutionTarget, Limits, Manifest, ManifestError, ManifestErrors, Model};
use super::{Source, names};

/// The name of the app.
const APP: &str = "models";

impl Manifest {
    /// An app that serves these model files as they are, each under the name of its file.
    ///
    /// # Errors
    /// Where a file is not of a format that can be told from its name.
    pub fn of_models(paths: &[PathBuf]) -> Result<Manifest, ManifestErrors> {
        let first = paths.first().map_or(Path::new("."), PathBuf::as_path);
        let path = std::path::absolute(first).unwrap_or_else(|_| first.to_owned());
        let mut components = Vec::new();
        let mut errors = Vec::new();
        for path in paths {
            match component(path) {
                Ok(component) => components.push(component),
                Err(message) => errors.push(ManifestError { line: 0, message }),
            }
        }
        if !errors.is_empty() {
            return Err(ManifestErrors { path, errors });
        }
        Ok(Manifest {
            dir: path.parent().unwrap_or(Path::new("/")).to_owned(),
            path,
            name: APP.to_owned(),
            version: None,
            description: None,
            authors: Vec::new(),
            variables: BTreeMap::new(),
            triggers: Vec::new(),
            components,
            warnings: Vec::new(),
        })
    }
}

fn component(path: &Path) -> Result<Component, String> {
    let encoding = encoding_of(path).ok_or_else(|| {
        format!(
            "`{}` is not a model file: ONNX files end in `.onnx`, OpenVINO models in `.xml`; an app is served with \
             `tenon up --from PATH`",
            path.display()
        )
    })?;
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let name = name(&path);
    let model = Model {
        weights: (encoding == Encoding::Openvino).then(|| path.with_extension("bin")),
        path,
        reference: None,
        file_name: None,
        encoding,
        target: ExecutionTarget::Cpu,
        backend: None,
        idle_timeout_s: None,
        precision: None,
        concurrency: None,
        batching: None,
        queue_length: None,
        line: 0,
    };
    Ok(Component {
        id: name.clone(),
        description: None,
        source: Source::Model,
        files: Vec::new(),
        exclude_files: Vec::new(),
        environment: BTreeMap::new(),
        variables: BTreeMap::new(),
        variable_templates: BTreeMap::new(),
        allowed_outbound_hosts: Vec::new(),
        outbound_host_templates: Vec::new(),
        key_value_stores: Vec::new(),
        build: None,
        models: BTreeMap::from([(name, model)]),
        model_name: None,
        limits: Limits::default(),
        samples: Vec::new(),
        has_settings: false,
        line: 0,
    })
}

/// The file's name without its ending, in what a model's name may have.
fn name(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let name: String = stem
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' })
        .take(64)
        .collect();
    if names::is_model(&name) { name } else { "model".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_served_under_their_names() {
        let check = |path: &str, expected: &str| {
            let manifest = Manifest::of_models(&[path.into()]).unwrap();
            let component = &manifest.components[0];
            assert_eq!((component.id.as_str(), &component.source), (expected, &Source::Model));
        };
        check("/m/digits.onnx", "digits");
        check("a b/my model (2).onnx", "my-model--2-");
        check("ir.xml", "ir");
        check(".onnx.onnx", ".onnx");
        let errors = Manifest::of_models(&["a.onnx".into(), "b.pt".into(), "c".into()]).unwrap_err();
        assert_eq!(errors.errors.len(), 2);
        assert!(errors.to_string().contains("`b.pt` is not a model file"));
    }
}
