//! Our own settings of a component, `[component.<id>.tool.tenon]`: its models, limits and samples.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::artifact::reference::Reference;
use crate::config::document::{self, Table, Value, advice};
use crate::config::{BACKENDS, bounds};

use super::{
    Batching, Component, Encoding, ExecutionTarget, FilesEntry, Limits, ManifestErrors, Model, Precision,
    Reading, files, names,
};

const OURS: &str = "tenon";
const ENCODINGS: [(&str, Encoding); 2] = [("onnx", Encoding::Onnx), ("openvino", Encoding::Openvino)];

/// Reads the `tool` table of `component`; the tables of other tools are theirs.
pub(super) fn read(value: &Value<'_>, component: &mut Component, reading: &mut Reading<'_>) {
    for (name, tool) in value.entries() {
        if name == OURS {
            settings(&tool, component, reading.dir);
        } else if advice(&name, [OURS].into_iter(), "").starts_with("did you mean") {
            // Another tool may have any name, so that a near miss cannot be an error.
            let line = tool.line();
            let path = tool.path();
            reading.warnings.push(format!("line {line}: `{path}` is ignored; did you mean `tool.{OURS}`?"));
        }
    }
}

/// Reads the settings of `component`, wherever they stand; paths in them are relative to `dir`.
pub(super) fn settings(value: &Value<'_>, component: &mut Component, dir: &Path) {
    if component.has_settings {
        value.refuse(&format!(
            "`{}` gives settings to a component that has some already; keep them in one place",
            value.path()
        ));
    }
    component.has_settings = true;
    value.table(|t| tenon(t, component, dir));
}

impl Component {
    /// Reads the `text` of a file of settings, `shown` in messages. Paths in them begin at `/`.
    ///
    /// # Errors
    /// Everything that is wrong with them, at once.
    pub(crate) fn read_settings(&mut self, text: &str, shown: &str) -> Result<(), ManifestErrors> {
        let had_settings = std::mem::replace(&mut self.has_settings, true);
        document::walk(Path::new(shown), text, |t| {
            if had_settings {
                t.refuse_file("the component's trigger has `settings` too; keep them in one place");
            }
            tenon(t, self, Path::new("/"));
        })
    }
}

fn tenon(t: &mut Table<'_>, component: &mut Component, dir: &Path) {
    for (name, value) in t.entries("models") {
        if !names::is_model(&name) {
            value.refuse(&format!(
                "a model cannot be named `{name}`; use 1 to 64 of A-Z, a-z, 0-9, `.`, `_` and `-`"
            ));
        }
        let line = value.line();
        if let Some(model) = value.table(|t| model(t, line, dir)).flatten() {
            component.models.insert(name, model);
        }
    }
    if let Some(value) = t.value("model_name") {
        component.model_name = value.string();
        if component.model_name.as_deref().is_some_and(|name| !names::is_model(name)) {
            value.refuse(&format!(
                "`{}` cannot be a model's name; use 1 to 64 of A-Z, a-z, 0-9, `.`, `_` and `-`",
                value.path()
            ));
        }
    }
    if let Some(limits) = t.table("limits", limits) {
        component.limits = limits;
    }
    for item in t.value("samples").map(|value| value.items()).unwrap_or_default() {
        let Some(source) = item.string() else { continue };
        if let Err(why) = files::check_pattern(&source) {
            item.refuse(&why);
        }
        component.samples.push(FilesEntry { source, destination: None, line: item.line() });
    }
}

fn limits(t: &mut Table<'_>) -> Limits {
    Limits {
        memory_mib: t.number("memory_mib", bounds::MEMORY_MIB, "MiB"),
        deadline_ms: t.number("deadline_ms", bounds::DEADLINE_MS, "ms"),
        concurrency: t.number("concurrency", bounds::CONCURRENCY, ""),
        request_body_mib: t.number("request_body_mib", bounds::BODY_MIB, "MiB"),
        response_body_mib: t.number("response_body_mib", bounds::BODY_MIB, "MiB"),
        response_cache_mib: t.number("response_cache_mib", bounds::CACHE_MIB, "MiB"),
    }
}

fn model(t: &mut Table<'_>, line: usize, dir: &Path) -> Option<Model> {
    let targets =
        [("cpu", ExecutionTarget::Cpu), ("gpu", ExecutionTarget::Gpu), ("npu", ExecutionTarget::Npu)];
    let backends = BACKENDS.map(|name| (name, name));
    let precisions = [("f32", Precision::F32), ("bf16", Precision::Bf16)];
    let place = place(t, dir);
    let weights = t.value("weights");
    let encoding = t.choice("encoding", &ENCODINGS);
    let target = t.choice("target", &targets).unwrap_or(ExecutionTarget::Cpu);
    let backend = t.choice("backend", &backends);
    let idle_timeout_s = t.number("idle_timeout_s", bounds::IDLE_S, "s");
    let precision = t.choice("precision", &precisions);
    let concurrency = t.number("concurrency", bounds::CONCURRENCY, "");
    let batching = t.table("batching", batching).flatten();
    let queue_length = t.number("queue_length", bounds::QUEUE, "");
    if let (Some(batching), Some(length)) = (&batching, queue_length)
        && length < batching.max_size
    {
        t.refuse(&format!(
            "`queue_length` is {length}, but a batch has up to {} rows: calls that cannot wait cannot be joined",
            batching.max_size
        ));
    }
    let place = place?;
    let encoding = match (encoding, &place) {
        (Some(encoding), _) => encoding,
        (None, Place::File(path)) => inferred(t, path)?,
        (None, Place::Registry(_)) => Encoding::Onnx,
    };
    check_backend(t, backend, encoding, target);
    let (path, weights, reference) = match place {
        Place::File(path) => {
            let weights = read_weights(weights, &path, encoding, dir);
            (path, weights, None)
        }
        Place::Registry(reference) => {
            if let Some(weights) = weights {
                weights.refuse("a model in a registry brings its weights along; remove `weights`");
            }
            (PathBuf::new(), None, Some(reference))
        }
    };
    let backend = backend.map(str::to_owned);
    Some(Model {
        path,
        weights,
        reference,
        file_name: None,
        encoding,
        target,
        backend,
        idle_timeout_s,
        precision,
        concurrency,
        batching,
        queue_length,
        line,
    })
}

/// How long calls wait for others where the author does not say: little beside an inference that is worth joining.
const MAX_DELAY: Duration = Duration::from_micros(500);

fn batching(t: &mut Table<'_>) -> Option<Batching> {
    let max_size = t.required("max_size", "max_size = 8");
    let max_delay_us: Option<u64> = t.number("max_delay_us", bounds::DELAY_US, "us");
    let max_delay = max_delay_us.map_or(MAX_DELAY, Duration::from_micros);
    Some(Batching { max_size: max_size?.number(bounds::BATCH, "")?, max_delay })
}

/// Where a model is.
enum Place {
    File(PathBuf),
    Registry(String),
}

fn place(t: &mut Table<'_>, dir: &Path) -> Option<Place> {
    match (t.value("path"), t.value("reference")) {
        (Some(path), None) => file(&path, dir).map(Place::File),
        (None, Some(reference)) => read_reference(&reference).map(Place::Registry),
        (Some(_), Some(reference)) => {
            reference.refuse("the model has a `path` and a `reference`; remove one of them");
            None
        }
        (None, None) => {
            t.required("path", "path = \"model.onnx\"");
            None
        }
    }
}

/// A reference with a digest: what a tag leads to may be another model tomorrow.
fn read_reference(value: &Value<'_>) -> Option<String> {
    let reference = value.string()?;
    match reference.parse::<Reference>() {
        Ok(parsed) if parsed.digest().is_some() => {}
        Ok(_) => value.refuse(&format!(
            "`{reference}` has no digest, so that it may be another model tomorrow; write \
             `registry/repository:tag@sha256:...`, as `tenon model push` prints it"
        )),
        Err(why) => value.refuse(&why.to_string()),
    }
    Some(reference)
}

fn file(value: &Value<'_>, dir: &Path) -> Option<PathBuf> {
    let path = value.string()?;
    if path.is_empty() {
        value.refuse(&format!("`{}` is empty; give the path of the file", value.path()));
    }
    Some(dir.join(path))
}

/// The encoding by the file's extension, unless the key was there and wrong.
fn inferred(t: &mut Table<'_>, path: &Path) -> Option<Encoding> {
    if t.value("encoding").is_some() {
        return None;
    }
    let encoding = encoding_of(path);
    if encoding.is_none() {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        t.refuse(&format!(
            "the encoding of `{file}` cannot be told from its name; add `encoding = \"onnx\"` or \
             `encoding = \"openvino\"`"
        ));
    }
    encoding
}

/// The encoding that the file's extension stands for.
pub(super) fn encoding_of(path: &Path) -> Option<Encoding> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("onnx") => Some(Encoding::Onnx),
        Some("xml") => Some(Encoding::Openvino),
        _ => None,
    }
}

/// Refuses what no version of the backend could do.
fn check_backend(t: &Table<'_>, backend: Option<&str>, encoding: Encoding, target: ExecutionTarget) {
    let Some(backend) = backend else { return };
    if encoding == Encoding::Openvino && backend != "openvino" {
        t.refuse(&format!("the backend `{backend}` cannot read OpenVINO IR; use `backend = \"openvino\"`"));
    }
    if target != ExecutionTarget::Cpu && matches!(backend, "tract" | "rten") {
        t.refuse(&format!("the backend `{backend}` runs on the CPU alone; use `target = \"cpu\"`"));
    }
}

fn read_weights(weights: Option<Value<'_>>, path: &Path, encoding: Encoding, dir: &Path) -> Option<PathBuf> {
    match (encoding, weights) {
        (Encoding::Openvino, Some(weights)) => file(&weights, dir),
        (Encoding::Openvino, None) => Some(path.with_extension("bin")),
        (Encoding::Onnx, Some(weights)) => {
            weights.refuse(
                "weights beside an ONNX file are not supported yet; save the model as one file and remove `weights`",
            );
            None
        }
        (Encoding::Onnx, None) => None,
    }
}
