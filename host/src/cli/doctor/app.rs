//! Checks of one app: its manifest, its builds, and the models that it is granted.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{Finding, Setup};
use crate::artifact::manifest::{Component, Encoding, ExecutionTarget, Manifest, Model, Source};
use crate::backend;
use crate::backend::available::Backends;
use crate::cli::build;

/// Everything that can be said of the app at `from`.
pub(super) fn check(from: &Path, profile: Option<&str>, setup: &Setup<'_>) -> Vec<Finding> {
    let manifest = match build::load(from, profile) {
        Ok(manifest) => manifest,
        Err(error) => return vec![Finding::problem(format!("{error:#}"), "correct the app manifest")],
    };
    let mut findings = vec![Finding::good(format!("app manifest `{}`", manifest.path.display()))];
    findings.extend(manifest.warnings.iter().map(|warning| Finding::note(warning, "")));
    findings.extend(targets(&manifest.components, &build::installed_targets));
    for component in &manifest.components {
        findings.extend(source(component, from));
        for (name, model) in &component.models {
            let what = format!("model `{name}` of component `{}`", component.id);
            findings.extend(readable(&what, model, setup.config.models.max_model_mib));
            findings.push(available(&what, model, setup.backends));
        }
    }
    findings.extend(mounts(&manifest));
    findings
}

/// The wasm targets that the build commands name, each asked for where its command runs.
fn targets(components: &[Component], installed: &dyn Fn(&Path) -> Option<String>) -> Vec<Finding> {
    let builds = components.iter().filter_map(|component| component.build.as_ref());
    let commands = builds.flat_map(|build| build.commands.iter().zip(std::iter::repeat(&build.workdir)));
    let wanted: BTreeSet<(&str, &Path)> = commands
        .filter_map(|(command, workdir)| Some((build::wasm_target(command)?, workdir.as_path())))
        .collect();
    let check = |(target, workdir): (&str, &Path)| {
        let Some(list) = installed(workdir) else {
            let text = format!("rustup cannot be asked for the wasm target `{target}`");
            return Finding::note(text, "install Rust with rustup, unless you have the target otherwise");
        };
        if list.lines().any(|line| line.trim() == target) {
            return Finding::good(format!("wasm target `{target}` for `{}`", workdir.display()));
        }
        let text = format!("the wasm target `{target}` is not installed for `{}`", workdir.display());
        Finding::problem(text, format!("(cd {} && rustup target add {target})", workdir.display()))
    };
    wanted.into_iter().map(check).collect()
}

/// Whether the component's wasm is there.
fn source(component: &Component, from: &Path) -> Option<Finding> {
    let Source::Path(path) = &component.source else { return None };
    let (id, shown) = (&component.id, path.display());
    if path.is_file() {
        return Some(Finding::good(format!("component `{id}` in `{shown}`")));
    }
    let mend = match component.build {
        Some(_) => format!("tenon build -f {} -c {id}", from.display()),
        None => format!("put it there, or correct `source` of component `{id}`"),
    };
    Some(Finding::problem(format!("component `{id}` has no `{shown}`"), mend))
}

/// Whether the files of a model are there, may be read and are not too large; `None` if all is well.
fn readable(what: &str, model: &Model, max_mib: u64) -> Option<Finding> {
    let files = std::iter::once(&model.path).chain(&model.weights);
    let mut bytes = 0;
    for path in files {
        match std::fs::File::open(path).and_then(|file| file.metadata()) {
            Ok(metadata) if metadata.is_file() => bytes += metadata.len(),
            Ok(_) => {
                let text = format!("{what}: `{}` is not a file", path.display());
                return Some(Finding::problem(text, "correct its path in the app manifest"));
            }
            Err(error) => {
                let text = format!("{what}: `{}` cannot be read: {error}", path.display());
                return Some(Finding::problem(text, read_advice(path, &error)));
            }
        }
    }
    (bytes > max_mib << 20).then(|| {
        let text = format!("{what} is {} MiB large, and {max_mib} are allowed", bytes.div_ceil(1 << 20));
        Finding::problem(text, "raise `models.max_model_mib` in host.toml")
    })
}

fn read_advice(path: &Path, error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => format!("chmod u+r {}", path.display()),
        _ => {
            "put it there, or correct its path in the app manifest; the model's README may say how it is made"
                .to_owned()
        }
    }
}

/// Which backend serves a model on the device that it asks for.
fn available(what: &str, model: &Model, backends: &Backends) -> Finding {
    let encoding = match model.encoding {
        Encoding::Onnx => backend::Encoding::Onnx,
        Encoding::Openvino => backend::Encoding::Openvino,
    };
    let target = match model.target {
        ExecutionTarget::Cpu => backend::ExecutionTarget::Cpu,
        ExecutionTarget::Gpu => backend::ExecutionTarget::Gpu,
        ExecutionTarget::Npu => backend::ExecutionTarget::Npu,
    };
    let chosen = match backends.choose(model.backend.as_deref(), encoding) {
        Ok(chosen) => chosen,
        Err(error) => {
            // The reason mostly says what to do; what is always right is said here.
            let mend = install_advice(model.backend.as_deref(), encoding);
            return Finding::problem(format!("{what}: {error}"), mend);
        }
    };
    let (name, target) = (chosen.name(), (target, target.name()));
    if chosen.status().devices.contains(&target.0) {
        return Finding::good(format!("{what} on backend `{name}`, {}", target.1));
    }
    let text = format!("{what}: backend `{name}` has no {} on this machine", target.1);
    Finding::problem(text, "install the device's driver, or set `target = \"cpu\"` for the model")
}

fn install_advice(wanted: Option<&str>, encoding: backend::Encoding) -> String {
    match (wanted, encoding) {
        (Some(name @ ("tract" | "rten")), _) => format!("build the host with `--features {name}`"),
        (Some("onnxruntime"), _) | (None, backend::Encoding::Onnx) => {
            "tenon backend install onnxruntime".to_owned()
        }
        _ => "tenon backend install openvino".to_owned(),
    }
}

/// What is wrong with the files to mount. That components and models are there has been checked by then.
fn mounts(manifest: &Manifest) -> Vec<Finding> {
    let Err(errors) = manifest.files() else { return Vec::new() };
    let known: Vec<PathBuf> = manifest.components.iter().flat_map(known_files).collect();
    let is_known =
        |message: &str| known.iter().any(|path| message.contains(&format!("`{}`;", path.display())));
    let errors = errors.errors.into_iter().filter(|error| !is_known(&error.message));
    let text = |error: &crate::artifact::manifest::ManifestError| {
        format!("{}:{}: {}", manifest.path.display(), error.line, error.message)
    };
    errors.map(|error| Finding::problem(text(&error), "correct `files` in the app manifest")).collect()
}

fn known_files(component: &Component) -> Vec<PathBuf> {
    let source = match &component.source {
        Source::Path(path) => Some(path),
        Source::Url { .. } | Source::Model => None,
    };
    let models = component.models.values();
    let models = models.flat_map(|model| std::iter::once(&model.path).chain(&model.weights));
    source.into_iter().chain(models).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;
    use crate::config::Config;

    const MANIFEST: &str = "spin_manifest_version = 2\n[application]\nname = \"a\"\n[trigger]\n\
        [component.a]\nsource = \"a.wasm\"\nfiles = [\"gone.txt\"]\n\
        build.command = \"cargo build --target wasm32-wasip2\"\n\
        tool.tenon.models.m.path = \"m.onnx\"\n\
        tool.tenon.models.ir.path = \"ir.xml\"\n[component.b]\nsource = \"b.wasm\"\n";

    fn app(files: &[&str]) -> (tempfile::TempDir, Manifest) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("spin.toml"), MANIFEST).unwrap();
        for file in files {
            std::fs::write(dir.path().join(file), vec![0; 3 << 20]).unwrap();
        }
        let manifest = build::load(dir.path(), None).unwrap();
        (dir, manifest)
    }

    #[test]
    fn targets_are_looked_for() {
        let (_dir, manifest) = app(&[]);
        let check = |installed: Option<&str>, level: Level, expected: &str| {
            let found = targets(&manifest.components, &|_| installed.map(str::to_owned));
            assert_eq!((found.len(), found[0].level), (1, level));
            assert!(format!("{found:?}").contains(expected), "{found:?}");
        };
        check(Some("wasm32-wasip2\nx86_64-unknown-linux-gnu\n"), Level::Good, "wasm target `wasm32-wasip2`");
        check(Some("wasm32-wasip1\n"), Level::Problem, "&& rustup target add wasm32-wasip2)");
        check(None, Level::Note, "install Rust with rustup");
    }

    #[test]
    fn sources_must_be_built() {
        let (_dir, manifest) = app(&["a.wasm"]);
        let found = manifest.components.iter().filter_map(|component| source(component, Path::new("x")));
        let found: Vec<_> = found.map(|found| (found.level, found.mend)).collect();
        assert_eq!(found[0], (Level::Good, String::new()));
        assert_eq!(found[1].0, Level::Problem);
        assert!(found[1].1.contains("correct `source` of component `b`"));
        let (_dir, manifest) = app(&[]);
        assert_eq!(source(&manifest.components[0], Path::new("x")).unwrap().mend, "tenon build -f x -c a");
    }

    #[test]
    fn models_must_be_readable() {
        let (_dir, manifest) = app(&["m.onnx", "ir.xml"]);
        let models = &manifest.components[0].models;
        let check = |name: &str, max_mib: u64, expected: &str| {
            let found = readable(name, &models[name], max_mib).map_or(String::new(), |found| found.text);
            assert!(found.contains(expected) && found.is_empty() == expected.is_empty(), "{found}");
        };
        check("m", 3, "");
        check("m", 2, "m is 3 MiB large, and 2 are allowed");
        check("ir", 9, "ir.bin` cannot be read: No such file");
    }

    #[test]
    fn a_backend_must_be_available() {
        let (_dir, manifest) = app(&[]);
        let mut model = manifest.components[0].models["m"].clone();
        let found = available("m", &model, &Backends::of(Vec::new()));
        assert_eq!((found.level, found.mend.as_str()), (Level::Problem, "tenon backend install onnxruntime"));
        model.backend = Some("tract".to_owned());
        let found = available("m", &model, &Backends::of(Vec::new()));
        assert_eq!(found.mend, "build the host with `--features tract`");
    }

    #[test]
    fn each_problem_is_told_once() {
        let (dir, _) = app(&["a.wasm", "m.onnx"]);
        let setup = Setup {
            config: &Config::default(),
            backends: &Backends::of(Vec::new()),
            python: Path::new("python3"),
            pagemap: &|| Ok(()),
        };
        let found = check(dir.path(), None, &setup);
        let found: Vec<_> = found.iter().map(|found| found.text.as_str()).collect();
        for (part, count) in [("b.wasm", 1), ("ir.xml", 1), ("gone.txt", 1), ("a.wasm", 1)] {
            assert_eq!(found.iter().filter(|text| text.contains(part)).count(), count, "{part}: {found:#?}");
        }
        std::fs::write(dir.path().join("spin.toml"), "x = 1").unwrap();
        let found = check(dir.path(), None, &setup);
        assert_eq!((found.len(), found[0].level), (1, Level::Problem));
    }
}
