//! The backend on the real library and the models of the repository.

use std::fs;
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tempfile::TempDir;

use super::*;
use crate::tensor::Datatype;

/// The library that the environment names, or that of the Python package; `None` skips the test.
fn backend() -> Option<&'static OnnxRuntime> {
    static BACKEND: OnceLock<OnnxRuntime> = OnceLock::new();
    let backend = BACKEND.get_or_init(|| {
        let named = std::env::var_os("TENON_ONNXRUNTIME").map(PathBuf::from);
        OnnxRuntime::new(named.as_deref(), &python_packages())
    });
    let Err(reason) = backend.status().available else { return Some(backend) };
    let required =
        std::env::var("TENON_REQUIRE").is_ok_and(|names| names.split(',').any(|name| name == NAME));
    assert!(!required, "TENON_REQUIRE demands onnxruntime: {reason}");
    eprintln!("skipped: onnxruntime is not available: {reason}");
    None
}

fn python_packages() -> Vec<PathBuf> {
    let venv = std::env::var_os("VIRTUAL_ENV").map(|venv| PathBuf::from(venv).join("bin/python3"));
    let folders = venv.into_iter().chain([PathBuf::from("python3")]).filter_map(|python| {
        let print = "from importlib.util import find_spec; print(find_spec('onnxruntime').origin)";
        let output = Command::new(python).args(["-c", print]).output().ok()?;
        let package = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
        output.status.success().then(|| package.with_file_name("capi"))
    });
    folders.collect()
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn file(path: &Path, derived: &Path) -> ModelFile {
    ModelFile {
        path: path.to_owned(),
        weights: None,
        encoding: Encoding::Onnx,
        digest: path.file_stem().unwrap().to_string_lossy().into_owned(),
        target: ExecutionTarget::Cpu,
        precision: Precision::F32,
        concurrency: 2,
        derived: derived.to_owned(),
    }
}

/// A graph of `tests/models`, and the folder of its derived files.
fn load(backend: &OnnxRuntime, name: &str) -> (Arc<dyn Graph>, TempDir) {
    let derived = tempfile::tempdir().unwrap();
    let path = repository("tests/models").join(name).with_extension("onnx");
    (backend.load(&file(&path, derived.path())).unwrap(), derived)
}

fn tensor(datatype: Datatype, shape: &[usize], data: impl AsRef<[u8]>) -> Tensor {
    Tensor::new(datatype, shape.to_vec(), Bytes::copy_from_slice(data.as_ref())).unwrap()
}

fn floats(shape: &[usize], values: impl IntoIterator<Item = f32>) -> Tensor {
    tensor(Datatype::Fp32, shape, values.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<_>>())
}

fn to_floats(tensor: &Tensor) -> Vec<f32> {
    tensor.data().chunks(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn run(graph: &dyn Graph, input: &Tensor) -> Vec<Tensor> {
    graph.run(vec![input.clone()], &Cancel::default()).unwrap()
}

fn check_refused(backend: &OnnxRuntime, model: &ModelFile, expected: &str) {
    let Err(error) = backend.load(model) else { panic!("loaded, expected `{expected}`") };
    let text = error.to_string();
    assert!(text.contains(expected) && !text.contains('\n'), "{text}");
    let folder = model.path.parent().unwrap().to_string_lossy().into_owned();
    assert!(!text.contains(&folder), "tells where the host keeps its models: {text}");
}

#[test]
fn status_tells_version_device_and_library() {
    let Some(backend) = backend() else { return };
    let status = backend.status();
    assert!(status.version.starts_with("1."), "{status:?}");
    assert!(backend.version().starts_with(&status.version), "{}", backend.version());
    assert!(status.devices.contains(&ExecutionTarget::Cpu));
    assert_eq!(status.encodings, [Encoding::Onnx]);
    assert!(status.library.is_some_and(|library| library.is_file()));
}

#[test]
fn a_missing_library_is_reported_with_the_remedy() {
    let status = OnnxRuntime::new(Some(Path::new("/absent/libonnxruntime.so")), &[]).status();
    assert!(status.available.unwrap_err().contains("`/absent/libonnxruntime.so` cannot be read"));
    let nowhere = OnnxRuntime::new(None, &[PathBuf::from("/absent")]);
    assert!(nowhere.status().available.unwrap_err().contains("run `tenon backend install onnxruntime`"));
    assert!(nowhere.status().devices.is_empty());
    let model = file(&repository("tests/models/add.onnx"), Path::new("/absent"));
    let Err(LoadError::Unavailable { reason, .. }) = nowhere.load(&model) else { panic!() };
    assert!(reason.contains("was not found"), "{reason}");
}

#[test]
fn one_process_has_one_library() {
    let Some(first) = backend() else { return };
    let library = first.status().library.unwrap();
    let same = OnnxRuntime::new(Some(&library), &[]);
    same.status().available.unwrap();
    let folder = OnnxRuntime::new(library.parent(), &[]);
    folder.status().available.unwrap();
    let other = tempfile::NamedTempFile::new().unwrap();
    let reason = OnnxRuntime::new(Some(other.path()), &[]).status().available.unwrap_err();
    assert!(reason.contains("has loaded") && reason.contains("beside it"), "{reason}");
}

/// Runs the test of this name alone, in a process that has loaded no library yet; true in that process.
fn is_alone(test: &str) -> bool {
    const ALONE: &str = "TENON_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let (_, module) = module_path!().split_once("::").unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", &format!("{module}::{test}")]).env(ALONE, "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    false
}

#[test]
fn a_file_that_is_not_the_library_is_refused_and_the_right_one_still_loads() {
    if !is_alone("a_file_that_is_not_the_library_is_refused_and_the_right_one_still_loads") {
        return;
    }
    let reason = |path: &Path| OnnxRuntime::new(Some(path), &[]).status().available.unwrap_err();
    let folder = tempfile::tempdir().unwrap();
    assert!(reason(folder.path()).contains("there is no `libonnxruntime.so`"));
    let text = folder.path().join("libonnxruntime.so.1.28.0");
    fs::write(&text, "a text").unwrap();
    assert!(reason(&text).contains("cannot be used: failed to load"), "{}", reason(&text));
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let libc =
        maps.lines().find_map(|line| line.contains("/libc.so").then(|| &line[line.find('/').unwrap()..]));
    let reason = reason(Path::new(libc.unwrap()));
    assert!(reason.contains("does not export") && reason.contains("tenon backend install"), "{reason}");
    if let Some(backend) = backend() {
        backend.status().available.unwrap();
    }
}

#[test]
fn digits_are_recognised_as_by_the_python_package() {
    let Some(backend) = backend() else { return };
    let derived = tempfile::tempdir().unwrap();
    let model = file(&repository("examples/digits/model/digits.onnx"), derived.path());
    let graph = backend.load(&model).unwrap();
    let port = |name: &str, shape: &[Option<usize>]| Port {
        name: name.to_owned(),
        datatype: Datatype::Fp32,
        shape: Some(shape.to_vec()),
    };
    assert_eq!(graph.signature().inputs, [port("image", &[None, Some(1), Some(8), Some(8)])]);
    assert_eq!(graph.signature().outputs, [port("scores", &[None, Some(10)])]);
    let image = floats(&[1, 1, 8, 8], (0..64u8).map(|index| f32::from(index) / 64.0));
    let outputs = run(&*graph, &image);
    assert_eq!(outputs[0].shape(), [1, 10]);
    // What onnxruntime 1.28.0 answers in Python.
    let expected = [
        9.850_695e-3,
        5.579_498_4e-2,
        2.947_882_7e-1,
        4.468_47e-3,
        1.324_713_8e-2,
        1.230_4e-5,
        6.217_174e-1,
        2.897_702e-7,
        1.179_227_2e-4,
        2.487_670_8e-6,
    ];
    for (actual, expected) in to_floats(&outputs[0]).into_iter().zip(expected) {
        assert!((actual - expected).abs() < 1e-5, "{actual} instead of {expected}");
    }
}

#[test]
fn every_datatype_passes_unchanged() {
    let Some(backend) = backend() else { return };
    let names = [
        ("bool", Datatype::Bool),
        ("uint8", Datatype::Uint8),
        ("uint16", Datatype::Uint16),
        ("uint32", Datatype::Uint32),
        ("uint64", Datatype::Uint64),
        ("int8", Datatype::Int8),
        ("int16", Datatype::Int16),
        ("int32", Datatype::Int32),
        ("int64", Datatype::Int64),
        ("float16", Datatype::Fp16),
        ("bfloat16", Datatype::Bf16),
        ("float32", Datatype::Fp32),
        ("float64", Datatype::Fp64),
    ];
    for (name, datatype) in names {
        let (graph, _derived) = load(backend, &format!("identity_{name}"));
        assert_eq!(graph.signature().inputs[0].datatype, datatype);
        let size = datatype.size().unwrap() * 5;
        let data: Vec<u8> = match datatype {
            Datatype::Bool => vec![0, 1, 1, 0, 1],
            _ => (0..size).map(|index| (index * 37 + 200) as u8).collect(),
        };
        // Once as it lies, and once at an odd address.
        let shifted = Bytes::from_iter([7].into_iter().chain(data.iter().copied())).slice(1..);
        for data in [Bytes::from(data), shifted] {
            let input = Tensor::new(datatype, vec![5], data).unwrap();
            assert_eq!(run(&*graph, &input), [input], "{name}");
        }
    }
}

#[test]
fn strings_pass_unchanged_and_must_be_utf8() {
    let Some(backend) = backend() else { return };
    let (graph, _derived) = load(backend, "identity_string");
    let words: Vec<&[u8]> = vec![b"seven", b"", "größer".as_bytes(), b"a\0b", &[b'x'; 5000]];
    let input = Tensor::from_elements(vec![5], &words).unwrap();
    assert_eq!(run(&*graph, &input), [input]);
    let input = Tensor::from_elements(vec![2], &[b"a".as_slice(), b"\xff"]).unwrap();
    let Err(InferError::InvalidInput(reason)) = graph.run(vec![input], &Cancel::default()) else { panic!() };
    assert!(reason.contains("element 1 of input `x` is not UTF-8"), "{reason}");
}

#[test]
fn several_outputs_come_in_order() {
    let Some(backend) = backend() else { return };
    let (graph, _derived) = load(backend, "two_outputs");
    let outputs = run(&*graph, &floats(&[2, 4], [1.0, 5.0, 2.0, 0.0, 0.0, 0.0, 0.0, 3.0]));
    assert_eq!(outputs[0], floats(&[2, 4], [2.0, 10.0, 4.0, 0.0, 0.0, 0.0, 0.0, 6.0]));
    assert_eq!(outputs[1], tensor(Datatype::Int64, &[2], [1u64.to_le_bytes(), 3u64.to_le_bytes()].concat()));
}

#[test]
fn concurrent_runs_do_not_mix() {
    let Some(backend) = backend() else { return };
    let (graph, _derived) = load(backend, "dynamic_seq");
    thread::scope(|scope| {
        for caller in 0..8u8 {
            let graph = &graph;
            scope.spawn(move || {
                for round in 1..100usize {
                    let length = 1 + (round + usize::from(caller)) % 7;
                    let ids: Vec<_> =
                        (0..length).flat_map(|_| u64::from(caller * 10).to_le_bytes()).collect();
                    let outputs = run(&**graph, &tensor(Datatype::Int64, &[1, length], ids));
                    let means = (0..8u8).map(|column| f32::from(caller * 10) + f32::from(column) / 8.0);
                    assert_eq!(to_floats(&outputs[0]), means.collect::<Vec<_>>());
                }
            });
        }
    });
}

#[test]
fn a_refused_input_leaves_the_graph_usable() {
    let Some(backend) = backend() else { return };
    let (graph, _derived) = load(backend, "dynamic_seq");
    let ids = |id: u64| tensor(Datatype::Int64, &[1, 1], id.to_le_bytes());
    for _ in 0..5 {
        let error = graph.run(vec![ids(1000)], &Cancel::default()).unwrap_err();
        let InferError::InvalidInput(reason) = error else { panic!("{error:?}") };
        assert!(reason.contains("1000") && !reason.contains("/onnxruntime_src"), "{reason}");
        assert!(to_floats(&run(&*graph, &ids(7))[0])[0] == 7.0);
    }
}

#[test]
fn a_run_is_stopped_and_the_graph_goes_on() {
    let Some(backend) = backend() else { return };
    for name in ["loop_forever", "slow"] {
        let (graph, _derived) = load(backend, name);
        let input = floats(&[1], [0.5]);
        for _ in 0..3 {
            let cancel = Cancel::default();
            let started = Instant::now();
            let outcome = thread::scope(|scope| {
                let running = scope.spawn(|| graph.run(vec![input.clone()], &cancel));
                // Long enough for the run to begin; a run that is stopped earlier is one more case.
                thread::park_timeout(Duration::from_millis(20));
                cancel.raise();
                running.join().unwrap()
            });
            assert!(matches!(outcome, Err(InferError::Cancelled)), "{outcome:?}");
            assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        }
        let raised = Cancel::default();
        raised.raise();
        assert!(matches!(graph.run(vec![input.clone()], &raised), Err(InferError::Cancelled)));
        if name == "slow" {
            assert_eq!(run(&*graph, &input)[0].shape(), [1]);
        }
    }
}

#[test]
fn who_waits_for_a_session_can_be_cancelled() {
    let Some(backend) = backend() else { return };
    let derived = tempfile::tempdir().unwrap();
    let mut model = file(&repository("tests/models/loop_forever.onnx"), derived.path());
    model.concurrency = 1;
    let graph = backend.load(&model).unwrap();
    let cancels = [Cancel::default(), Cancel::default()];
    thread::scope(|scope| {
        let runs = cancels.each_ref().map(|cancel| {
            let graph = &graph;
            scope.spawn(move || graph.run(vec![floats(&[1], [0.5])], cancel))
        });
        cancels.iter().for_each(Cancel::raise);
        for run in runs {
            assert!(matches!(run.join().unwrap(), Err(InferError::Cancelled)));
        }
    });
}

#[test]
fn the_optimised_form_is_used_and_rebuilt_when_damaged() {
    let Some(backend) = backend() else { return };
    let derived = tempfile::tempdir().unwrap();
    let source = repository("examples/digits/model/digits.onnx");
    let model = file(&source, derived.path());
    let image = floats(&[1, 1, 8, 8], (0..64u8).map(f32::from));
    let first = run(&*backend.load(&model).unwrap(), &image);

    let folders = fs::read_dir(derived.path().join("onnxruntime")).unwrap();
    let [folder] = &*folders.map(|entry| entry.unwrap().path()).collect::<Vec<_>>() else { panic!() };
    assert!(folder.ends_with(format!("digits-{}", backend.version())));
    let written = |name: &str| fs::metadata(folder.join(name)).unwrap().modified().unwrap();
    let before = written("model.data");
    assert_eq!(run(&*backend.load(&model).unwrap(), &image), first);
    assert_eq!(written("model.data"), before, "the second load uses what the first wrote");

    for name in ["model.onnx", "model.data", "manifest"] {
        for left in [0, fs::metadata(folder.join(name)).unwrap().len() / 2] {
            let file = fs::OpenOptions::new().write(true).open(folder.join(name)).unwrap();
            file.set_len(left).unwrap();
            assert_eq!(run(&*backend.load(&model).unwrap(), &image), first, "{name} cut to {left}");
            assert!(fs::metadata(folder.join(name)).unwrap().len() > left, "{name} was not rebuilt");
        }
    }
}

#[test]
fn sessions_of_one_graph_load_at_once_and_survive_the_loss_of_the_files() {
    let Some(backend) = backend() else { return };
    let derived = tempfile::tempdir().unwrap();
    let mut model = file(&repository("examples/digits/model/digits.onnx"), derived.path());
    model.concurrency = 8;
    let image = floats(&[1, 1, 8, 8], (0..64u8).map(f32::from));
    let answers = thread::scope(|scope| {
        let loads: Vec<_> =
            (0..4).map(|_| scope.spawn(|| run(&*backend.load(&model).unwrap(), &image))).collect();
        loads.into_iter().map(|load| load.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(answers.iter().all(|answer| *answer == answers[0]));

    let graph = backend.load(&model).unwrap();
    fs::remove_dir_all(derived.path().join("onnxruntime")).unwrap();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    // A session made from the source may add up in another order.
                    let pairs =
                        to_floats(&run(&*graph, &image)[0]).into_iter().zip(to_floats(&answers[0][0]));
                    assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-5));
                }
            });
        }
    });
}

#[test]
fn a_model_loads_where_nothing_can_be_kept() {
    let Some(backend) = backend() else { return };
    let occupied = tempfile::NamedTempFile::new().unwrap();
    let model = file(&repository("tests/models/add.onnx"), occupied.path());
    let graph = backend.load(&model).unwrap();
    let one = tensor(Datatype::Int64, &[1], 1u64.to_le_bytes());
    let sum = graph.run(vec![one.clone(), one], &Cancel::default()).unwrap();
    assert_eq!(sum, [tensor(Datatype::Int64, &[1], 2u64.to_le_bytes())]);
}

#[test]
fn bad_models_are_refused() {
    let Some(backend) = backend() else { return };
    let derived = tempfile::tempdir().unwrap();
    let check = |name: &str, expected| {
        check_refused(backend, &file(&repository("tests/models").join(name), derived.path()), expected);
    };
    check("garbage.onnx", "it is not an ONNX model");
    check("empty.onnx", "it is not an ONNX model: it has no graph");
    check("truncated.onnx", "it is not an ONNX model");
    check("deep.onnx", "nested too deeply");
    check("unknown_op.onnx", "No Op registered for Frobnicate");
    check("bad_external.onnx", "it keeps weights in other files");
    check("absent.onnx", "the model file cannot be read");
}

#[test]
fn a_run_that_asks_for_too_much_memory_fails() {
    let Some(backend) = backend() else { return };
    let (graph, _derived) = load(backend, "huge_constant");
    let error = graph.run(vec![floats(&[1], [0.5])], &Cancel::default()).unwrap_err();
    assert!(matches!(error, InferError::Failed(_)), "{error:?}");
}

/// A protobuf field with a length; enough to write small models by hand.
fn field(number: u8, content: impl AsRef<[u8]>) -> Vec<u8> {
    let content = content.as_ref();
    let length = content.len();
    [&[number << 3 | 2, (length & 0x7f) as u8 | 0x80, (length >> 7) as u8], content].concat()
}

/// A model of one node, as `onnx.proto3` numbers its fields.
fn one_node(op: &str, x: &[u8], y: &[u8]) -> Vec<u8> {
    let node = [field(1, "x"), field(2, "y"), field(4, op)].concat();
    let port = |name: &str, kind: &[u8]| [field(1, name), field(2, kind)].concat();
    let graph = [field(1, node), field(2, "g"), field(11, port("x", x)), field(12, port("y", y))].concat();
    [&[8, 8][..], &field(7, graph), &field(8, [16, 17])].concat()
}

#[test]
fn unusual_types_are_refused_by_name_and_unknown_ranks_kept() {
    let Some(backend) = backend() else { return };
    let folder = tempfile::tempdir().unwrap();
    let model = |bytes: &[u8]| {
        let number = fs::read_dir(folder.path()).unwrap().count();
        let path = folder.path().join(format!("hand-{number}.onnx"));
        fs::write(&path, bytes).unwrap();
        file(&path, folder.path())
    };
    let unranked = field(1, [8, 1]);
    let sequence = field(4, field(1, &unranked));
    check_refused(
        backend,
        &model(&one_node("SequenceConstruct", &unranked, &sequence)),
        "its input or output `y` is a sequence;",
    );
    let optional = field(9, field(1, &sequence));
    check_refused(backend, &model(&one_node("Identity", &optional, &optional)), "`x` is an optional value");

    let graph = backend.load(&model(&one_node("Identity", &unranked, &unranked))).unwrap();
    assert_eq!(graph.signature().inputs[0].shape, None);
    let input = floats(&[1, 2, 1], [1.0, 2.0]);
    assert_eq!(run(&*graph, &input), [input]);

    let scalar = field(1, [&[8, 1][..], &field(2, [])].concat());
    let graph = backend.load(&model(&one_node("Neg", &scalar, &scalar))).unwrap();
    assert_eq!(graph.signature().inputs[0].shape, Some(vec![]));
    assert_eq!(run(&*graph, &floats(&[], [1.0])), [floats(&[], [-1.0])]);

    // By ONNX Runtime as `tensor(complex64)`, or where it reads the model, by us as `Tensor<c64>`.
    let complex = field(1, [8, 14]);
    check_refused(backend, &model(&one_node("Identity", &complex, &complex)), "64");
}

#[test]
fn what_the_backend_has_not_is_refused_by_name() {
    let Some(backend) = backend() else { return };
    let derived = tempfile::tempdir().unwrap();
    let model = file(&repository("tests/models/add.onnx"), derived.path());
    let with = |change: fn(&mut ModelFile)| {
        let mut model = model.clone();
        change(&mut model);
        model
    };
    check_refused(
        backend,
        &with(|model| model.encoding = Encoding::Openvino),
        "does not read openvino models",
    );
    check_refused(backend, &with(|model| model.target = ExecutionTarget::Npu), "cannot run on `npu`");
    check_refused(backend, &with(|model| model.precision = Precision::Bf16), "no precision `bf16`");
    if !backend.status().devices.contains(&ExecutionTarget::Gpu) {
        check_refused(backend, &with(|model| model.target = ExecutionTarget::Gpu), "`onnxruntime-gpu`");
    }
}
