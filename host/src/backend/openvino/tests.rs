//! The backend against the real library, where there is one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tempfile::TempDir;

use super::source::{Source, is_cached};
use super::*;
use crate::backend::Precision;

const MODELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/models");
const DIGITS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/digits/model/digits.onnx");

/// OpenVINO, or `None` where it is absent and `TENON_REQUIRE` does not ask for it.
fn openvino() -> Option<OpenVino> {
    let explicit = std::env::var_os("TENON_OPENVINO").map(PathBuf::from);
    let backend = OpenVino::new(explicit.as_deref(), &site_packages());
    match backend.status().available {
        Ok(()) => Some(backend),
        Err(reason) => {
            let required = std::env::var("TENON_REQUIRE").unwrap_or_default();
            assert!(
                !required.split(',').any(|name| name.trim() == BACKEND),
                "OpenVINO is required: {reason}"
            );
            eprintln!("skipped: OpenVINO is not available: {reason}");
            None
        }
    }
}

fn site_packages() -> Vec<PathBuf> {
    let venv = std::env::var_os("VIRTUAL_ENV").map(PathBuf::from);
    let pythons =
        venv.and_then(|venv| std::fs::read_dir(venv.join("lib")).ok()).into_iter().flatten().flatten();
    let mut folders: Vec<_> = pythons.map(|python| python.path().join("site-packages")).collect();
    let script =
        "import importlib.util as u; s = u.find_spec('openvino'); print(s.submodule_search_locations[0])";
    if let Ok(output) = Command::new("python3").args(["-c", script]).output()
        && let Ok(package) = String::from_utf8(output.stdout)
    {
        folders.extend(Path::new(package.trim()).parent().map(Path::to_owned));
    }
    folders
}

/// A folder for derived files and the models in it.
struct Bench {
    openvino: OpenVino,
    folder: TempDir,
}

impl Bench {
    fn new() -> Option<Bench> {
        Some(Bench { openvino: openvino()?, folder: tempfile::tempdir().unwrap() })
    }

    fn file(&self, path: impl AsRef<Path>, concurrency: usize) -> ModelFile {
        let path = path.as_ref().to_owned();
        let xml = path.extension().is_some_and(|extension| extension == "xml");
        ModelFile {
            digest: path.file_name().unwrap().to_str().unwrap().replace('.', "-"),
            weights: xml.then(|| path.with_extension("bin")).filter(|weights| weights.exists()),
            encoding: if xml { Encoding::Openvino } else { Encoding::Onnx },
            path,
            target: ExecutionTarget::Cpu,
            precision: Precision::F32,
            concurrency,
            derived: self.folder.path().join("derived"),
        }
    }

    fn stored(&self, name: &str) -> ModelFile {
        self.file(Path::new(MODELS).join(name), 2)
    }

    fn written(&self, name: &str, content: &[u8]) -> ModelFile {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        self.file(path, 2)
    }

    fn load(&self, model: &ModelFile) -> Arc<dyn Graph> {
        self.openvino.load(model).unwrap_or_else(|error| panic!("{}: {error}", model.path.display()))
    }

    fn refusal(&self, model: &ModelFile) -> String {
        match self.openvino.load(model) {
            Ok(_) => panic!("{} was loaded", model.path.display()),
            Err(error) => error.to_string(),
        }
    }

    fn compile(&self, model: &ModelFile) -> sys::Compiled {
        let runtime = Arc::clone(self.openvino.runtime().unwrap());
        Source::new(runtime, model).unwrap().compile().unwrap().0
    }

    /// The one blob of the one model in the cache.
    fn blob(&self) -> PathBuf {
        let mut folders = vec![self.folder.path().join("derived")];
        while let Some(folder) = folders.pop() {
            for file in std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()) {
                match file.extension() {
                    _ if file.is_dir() => folders.push(file),
                    Some(extension) if extension == "blob" => return file,
                    _ => {}
                }
            }
        }
        panic!("no blob in the cache")
    }
}

fn tensor<const N: usize>(datatype: Datatype, shape: &[usize], values: &[[u8; N]]) -> Tensor {
    Tensor::new(datatype, shape.to_vec(), Bytes::from(values.as_flattened().to_vec())).unwrap()
}

fn floats(shape: &[usize], values: &[f32]) -> Tensor {
    tensor(Datatype::Fp32, shape, &values.iter().map(|value| value.to_le_bytes()).collect::<Vec<_>>())
}

fn ints(shape: &[usize], values: &[i64]) -> Tensor {
    tensor(Datatype::Int64, shape, &values.iter().map(|value| value.to_le_bytes()).collect::<Vec<_>>())
}

fn to_floats(tensor: &Tensor) -> Vec<f32> {
    tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn run(graph: &dyn Graph, inputs: &[&Tensor]) -> Result<Vec<Tensor>, InferError> {
    graph.run(inputs.iter().map(|tensor| (*tensor).clone()).collect(), &Cancel::default())
}

/// `examples/digits/testdata/heldout/0034_6.png`, and what ONNX Runtime 1.28.0 makes of it.
const SIX: [u8; 64] = [
    0, 0, 0, 5, 14, 2, 0, 0, 0, 0, 1, 13, 11, 0, 0, 0, 0, 0, 5, 16, 2, 0, 0, 0, 0, 0, 6, 15, 5, 0, 0, 0, 0,
    1, 15, 16, 15, 11, 1, 0, 0, 2, 13, 14, 1, 12, 9, 0, 0, 0, 4, 16, 7, 13, 9, 0, 0, 0, 0, 5, 16, 15, 3, 0,
];
const SIX_SCORES: [f32; 10] =
    [1.46e-7, 7.99e-7, 9.6e-12, 3.4e-9, 4.88e-8, 5.5e-10, 0.999993, 1.36e-14, 6.26e-6, 4.2e-12];

fn six() -> Tensor {
    floats(&[1, 1, 8, 8], &SIX.map(|value| f32::from(value) / 16.0))
}

fn close(actual: &Tensor, expected: &[f32]) {
    let actual = to_floats(actual);
    assert_eq!(actual.len(), expected.len());
    for (actual, expected) in actual.iter().zip(expected) {
        assert!((actual - expected).abs() < 1e-5, "{actual} is not {expected}");
    }
}

#[test]
fn digits_is_read_in_both_formats() {
    let Some(bench) = Bench::new() else { return };
    for model in [bench.file(DIGITS, 1), bench.stored("digits.xml")] {
        for _ in ["compiled", "from the cache"] {
            let graph = bench.load(&model);
            let shape = Some(vec![None, Some(1), Some(8), Some(8)]);
            let port = |name: &str, shape| Port { name: name.to_owned(), datatype: Datatype::Fp32, shape };
            assert_eq!(graph.signature().inputs, [port("image", shape)]);
            assert_eq!(graph.signature().outputs, [port("scores", Some(vec![None, Some(10)]))]);
            let outputs = run(&*graph, &[&six()]).unwrap();
            assert_eq!(outputs[0].shape(), [1, 10]);
            close(&outputs[0], &SIX_SCORES);
        }
    }
}

#[test]
fn every_datatype_passes() {
    let Some(bench) = Bench::new() else { return };
    let identity = |name: &str, input: Tensor| {
        let graph = bench.load(&bench.stored(&format!("identity_{name}.onnx")));
        let outputs = run(&*graph, &[&input]).unwrap();
        assert!(outputs == [input], "{name} changed");
    };
    identity("bool", tensor(Datatype::Bool, &[3], &[[1], [0], [1]]));
    identity("uint8", tensor(Datatype::Uint8, &[3], &[[0], [255], [7]]));
    identity("int8", tensor(Datatype::Int8, &[3], &[[0x80], [0x7f], [7]]));
    identity("uint16", tensor(Datatype::Uint16, &[2], &[u16::MAX.to_le_bytes(), [0; 2]]));
    identity("int16", tensor(Datatype::Int16, &[2], &[i16::MIN, i16::MAX].map(i16::to_le_bytes)));
    identity("uint32", tensor(Datatype::Uint32, &[2], &[0, i32::MAX as u32].map(u32::to_le_bytes)));
    identity("int32", tensor(Datatype::Int32, &[2], &[i32::MIN, i32::MAX].map(i32::to_le_bytes)));
    identity("uint64", tensor(Datatype::Uint64, &[2], &[0, i32::MAX as u64].map(u64::to_le_bytes)));
    identity("int64", ints(&[2], &[i32::MIN.into(), i32::MAX.into()]));
    identity("float16", tensor(Datatype::Fp16, &[2], &[0x3555u16, 0x7bff].map(u16::to_le_bytes)));
    identity("bfloat16", tensor(Datatype::Bf16, &[2], &[0x3eabu16, 0x7f7f].map(u16::to_le_bytes)));
    identity("float32", floats(&[3], &[0.1, f32::MAX, -f32::MIN_POSITIVE]));
    identity("float64", tensor(Datatype::Fp64, &[2], &[0.5f64, -3.0].map(f64::to_le_bytes)));
    let refusal = bench.refusal(&bench.stored("identity_string.onnx"));
    assert!(refusal.contains("input `x` is of strings (BYTES)"), "{refusal}");
}

#[test]
fn numbers_that_would_change_are_refused() {
    let Some(bench) = Bench::new() else { return };
    let check = |name: &str, input: Tensor| match run(&*bench.load(&bench.stored(name)), &[&input]) {
        Err(InferError::InvalidInput(text)) => {
            assert!(text.contains("input `x` has a value outside"), "{text}")
        }
        other => panic!("{name}: {other:?}"),
    };
    let beyond = i64::from(i32::MAX) + 1;
    check("identity_int64.onnx", ints(&[2], &[0, beyond]));
    check("identity_int64.onnx", ints(&[2], &[-beyond - 1, 0]));
    check("identity_uint64.onnx", tensor(Datatype::Uint64, &[1], &[u64::MAX.to_le_bytes()]));
    check("identity_uint32.onnx", tensor(Datatype::Uint32, &[1], &[u32::MAX.to_le_bytes()]));
    check("identity_float64.onnx", tensor(Datatype::Fp64, &[1], &[1e300f64.to_le_bytes()]));
    let add = bench.load(&bench.stored("add.onnx"));
    let sum = run(&*add, &[&ints(&[2], &[2_000_000_000, -5]), &ints(&[2], &[7, 2])]).unwrap();
    assert_eq!(sum, [ints(&[2], &[2_000_000_007, -3])]);
    match run(&*add, &[&ints(&[1], &[0]), &ints(&[1], &[1 << 40])]) {
        Err(InferError::InvalidInput(text)) => assert!(text.contains("input `b`"), "{text}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn outputs_keep_their_order_types_and_shapes() {
    let Some(bench) = Bench::new() else { return };
    let graph = bench.load(&bench.stored("two_outputs.onnx"));
    let names: Vec<_> = graph.signature().outputs.iter().map(|port| port.name.as_str()).collect();
    assert_eq!(names, ["double", "argmax"]);
    for rows in [1, 3, 2] {
        let values: Vec<f32> = (0..rows * 4).map(|value| value as f32).collect();
        let outputs = run(&*graph, &[&floats(&[rows, 4], &values)]).unwrap();
        assert_eq!(
            outputs[0],
            floats(&[rows, 4], &values.iter().map(|value| value * 2.0).collect::<Vec<_>>())
        );
        assert_eq!(outputs[1], ints(&[rows], &vec![3; rows]));
    }
}

/// OpenVINO gives back the input as `m` and the output as `a`.
#[test]
fn names_are_the_models_own() {
    let Some(bench) = Bench::new() else { return };
    let nodes: [Node; 3] =
        [("Dropout", &["x"], &["m"]), ("Relu", &["m"], &["a"]), ("Identity", &["a"], &["z"])];
    let model = onnx_model(&nodes, &[("x", FLOAT, &[3])], &[("z", FLOAT, &[3])]);
    let graph = bench.load(&bench.written("names.onnx", &model));
    assert_eq!((&*graph.signature().inputs[0].name, &*graph.signature().outputs[0].name), ("x", "z"));
    assert_eq!(run(&*graph, &[&floats(&[3], &[1.0, -1.0, 2.0])]).unwrap(), [floats(&[3], &[1.0, 0.0, 2.0])]);
}

#[test]
fn inputs_are_read_where_they_lie_and_left_alone() {
    let Some(bench) = Bench::new() else { return };
    let nodes: [Node; 2] = [("Relu", &["x"], &["a"]), ("Relu", &["a"], &["z"])];
    let model = onnx_model(&nodes, &[("x", FLOAT, &[-1])], &[("z", FLOAT, &[-1])]);
    let graph = bench.load(&bench.written("relu.onnx", &model));
    let bytes: Vec<u8> =
        [9u8].into_iter().chain([-1f32, 2.0, -3.0].into_iter().flat_map(f32::to_le_bytes)).collect();
    let shared = Bytes::from(bytes.clone());
    // An odd address, as in the middle of a request's body.
    let input = Tensor::new(Datatype::Fp32, vec![3], shared.slice(1..)).unwrap();
    for input in [input, floats(&[3], &[-1.0, 2.0, -3.0])] {
        assert_eq!(run(&*graph, &[&input]).unwrap(), [floats(&[3], &[0.0, 2.0, 0.0])]);
        assert_eq!(input.data(), &bytes[1..]);
    }
}

#[test]
fn concurrent_callers_get_their_own_answers() {
    let Some(bench) = Bench::new() else { return };
    let digits = bench.load(&bench.file(DIGITS, 8));
    let sequence = bench.load(&bench.file(Path::new(MODELS).join("dynamic_seq.onnx"), 8));
    let image =
        |caller: usize| floats(&[1, 1, 8, 8], &SIX.map(|value| f32::from(value) / (16 + caller) as f32));
    let expected: Vec<_> = (0..8).map(|caller| run(&*digits, &[&image(caller)]).unwrap()).collect();
    std::thread::scope(|scope| {
        for caller in 0..8 {
            let (digits, sequence, expected) = (&digits, &sequence, &expected);
            scope.spawn(move || {
                for round in 0..200 {
                    assert!(
                        run(&**digits, &[&image(caller)]).unwrap() == expected[caller],
                        "caller {caller}"
                    );
                    let length = 1 + (caller + round) % 5;
                    let mean =
                        run(&**sequence, &[&ints(&[1, length], &vec![caller as i64; length])]).unwrap();
                    assert_eq!(to_floats(&mean[0])[0], caller as f32);
                }
            });
        }
    });
}

/// The synchronous call would report success here, with the outputs of the run before.
#[test]
fn a_failed_run_never_shows_an_earlier_answer() {
    let Some(bench) = Bench::new() else { return };
    let scatter: [Node; 1] = [("ScatterElements", &["data", "at", "updates"], &["y"])];
    let inputs: [Value; 3] = [("data", FLOAT, &[3]), ("at", INT64, &[2]), ("updates", FLOAT, &[2])];
    let mut model = bench.written("scatter.onnx", &onnx_model(&scatter, &inputs, &[("y", FLOAT, &[3])]));
    for concurrency in [1, 4] {
        model.concurrency = concurrency;
        let graph = bench.load(&model);
        std::thread::scope(|scope| {
            for caller in 0..concurrency {
                let graph = &graph;
                scope.spawn(move || {
                    for round in 0..12 {
                        let value = (caller * 100 + round) as f32;
                        let call = |at| {
                            let (data, updates) = (floats(&[3], &[value; 3]), floats(&[2], &[-value; 2]));
                            run(&**graph, &[&data, &ints(&[2], &[0, at]), &updates])
                        };
                        assert_eq!(call(1).unwrap(), [floats(&[3], &[-value, -value, value])]);
                        assert!(matches!(call(7), Err(InferError::Failed(_))));
                    }
                });
            }
        });
    }
}

/// Run again where the failed run was, the shape that ran before it fails after it.
#[test]
fn a_failed_run_does_not_harm_the_next() {
    let Some(bench) = Bench::new() else { return };
    let nodes: [Node; 2] = [("Softmax", &["a"], &["r"]), ("Add", &["r", "b"], &["y"])];
    let inputs: [Value; 2] = [("a", FLOAT, &[-1, 4]), ("b", FLOAT, &[-1, 4])];
    let mut model = bench.written("rows.onnx", &onnx_model(&nodes, &inputs, &[("y", FLOAT, &[-1, 4])]));
    model.concurrency = 1;
    let graph = bench.load(&model);
    let call = |a: usize, b: usize| {
        run(&*graph, &[&floats(&[a, 4], &vec![1.0; a * 4]), &floats(&[b, 4], &vec![2.0; b * 4])])
    };
    let good = || assert_eq!(call(3, 3).unwrap(), [floats(&[3, 4], &[2.25; 12])]);
    for (a, b) in [(3, 2), (2, 3), (5, 2), (2, 5)] {
        good();
        match call(a, b) {
            Err(InferError::Failed(text)) => {
                assert!(!text.contains('\n') && !text.contains("Exception"), "{text}")
            }
            other => panic!("{other:?}"),
        }
        good();
    }
}

#[test]
fn a_run_can_be_cancelled() {
    let Some(bench) = Bench::new() else { return };
    let slow = bench.load(&bench.stored("slow.onnx"));
    let one = || vec![floats(&[1], &[1.0])];
    for _ in 0..3 {
        let result = slow.run(one(), &Cancel::at(Instant::now() + Duration::from_millis(60)));
        assert!(matches!(result, Err(InferError::Cancelled)), "{result:?}");
    }
    let cancel = Cancel::default();
    let runs = Barrier::new(2);
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| {
            runs.wait();
            slow.run(one(), &cancel)
        });
        runs.wait();
        cancel.raise();
        assert!(matches!(caller.join().unwrap(), Err(InferError::Cancelled)));
    });
    assert!(matches!(slow.run(one(), &cancel), Err(InferError::Cancelled)));
    close(&run(&*slow, &[&floats(&[1], &[0.5])]).unwrap()[0], &[0.5]);
}

/// Run again where a cancelled run was, a model of dynamic shapes fails or answers for another input.
#[test]
fn a_cancelled_run_does_not_harm_the_next() {
    let Some(bench) = Bench::new() else { return };
    for (name, first, rows) in [("dynamic.onnx", -1, [3, 40, 200]), ("fixed.onnx", 80, [80; 3])] {
        let mut model = bench.written(name, &attention_model(first));
        model.concurrency = 1;
        let graph = bench.load(&model);
        let inputs = [0, 1, 2].map(|index: usize| {
            let values: Vec<_> =
                (0..rows[index] * 64).map(|value| ((value * (index + 1)) % 29) as f32 / 29.0).collect();
            floats(&[rows[index], 64], &values)
        });
        let expected = inputs.each_ref().map(|input| run(&*graph, &[input]).unwrap());
        let mut cancelled = 0;
        for round in 0..90 {
            let cancel = Cancel::at(Instant::now() + Duration::from_micros(round as u64 * 37 % 2000));
            match graph.run(vec![inputs[round % 3].clone()], &cancel) {
                Err(InferError::Cancelled) => cancelled += 1,
                other => assert!(other.unwrap() == expected[round % 3]),
            }
            let next = (round / 3) % 3;
            assert!(run(&*graph, &[&inputs[next]]).unwrap() == expected[next], "{name}, round {round}");
        }
        assert!(cancelled > 0);
    }
}

/// OpenVINO does not look at a cancellation inside a Loop.
#[test]
fn a_run_that_cannot_be_stopped_frees_its_caller() {
    let Some(bench) = Bench::new() else { return };
    let mut model = bench.written("loop.onnx", &loop_model());
    model.concurrency = 1;
    let graph = bench.load(&model);
    let call = |rounds, cancel: &Cancel| graph.run(vec![ints(&[], &[rounds]), floats(&[1], &[1.0])], cancel);
    assert_eq!(call(3, &Cancel::default()).unwrap(), [floats(&[1], &[-1.0])]);
    let soon = Cancel::at(Instant::now() + Duration::from_millis(1));
    assert!(matches!(call(1_000_000, &soon), Err(InferError::Cancelled)));
    // The loop goes on for a second or more.
    loop {
        match call(3, &Cancel::default()) {
            Err(InferError::Failed(text)) => assert!(text.contains("cannot be stopped"), "{text}"),
            other => break assert_eq!(other.unwrap(), [floats(&[1], &[-1.0])]),
        }
        std::thread::yield_now();
    }
    // A graph that goes in the midst of a run leaves it behind.
    let soon = Cancel::at(Instant::now() + Duration::from_millis(1));
    assert!(matches!(call(1_000_000, &soon), Err(InferError::Cancelled)));
    drop(graph);
}

#[test]
fn the_second_load_comes_from_the_cache() {
    let Some(bench) = Bench::new() else { return };
    for model in [bench.file(DIGITS, 2), bench.stored("digits.xml")] {
        let first = run(&*bench.load(&model), &[&six()]).unwrap();
        assert!(is_cached(&bench.compile(&model)), "{}", model.path.display());
        assert_eq!(run(&*bench.load(&model), &[&six()]).unwrap(), first);
    }
}

#[test]
fn a_damaged_cache_is_made_again() {
    let Some(bench) = Bench::new() else { return };
    for (model, garble) in [bench.file(DIGITS, 1), bench.stored("digits.xml")]
        .iter()
        .flat_map(|model| GARBLES.map(|garble| (model, garble)))
    {
        let expected = run(&*bench.load(model), &[&six()]).unwrap();
        let blob = bench.blob();
        let mut content = std::fs::read(&blob).unwrap();
        garble(&mut content);
        std::fs::write(&blob, content).unwrap();
        assert!(!is_cached(&bench.compile(model)), "the damaged blob was used");
        assert!(is_cached(&bench.compile(model)), "the new blob was not used");
        assert_eq!(run(&*bench.load(model), &[&six()]).unwrap(), expected);
        std::fs::remove_dir_all(bench.folder.path().join("derived")).unwrap();
    }
}

const GARBLES: [fn(&mut Vec<u8>); 4] = [
    |blob| blob.truncate(blob.len() / 2),
    |blob| blob.clear(),
    |blob| {
        let middle = blob.len() / 2;
        blob[middle] ^= 1;
    },
    |blob| blob.fill(0xa5),
];

#[test]
fn a_model_runs_without_its_cache() {
    let Some(bench) = Bench::new() else { return };
    let file = bench.folder.path().join("not-a-folder");
    std::fs::write(&file, "").unwrap();
    for mut model in [bench.file(DIGITS, 1), bench.stored("digits.xml")] {
        model.derived = file.join("derived");
        let graph = bench.load(&model);
        assert_eq!(graph.signature().outputs[0].name, "scores");
        close(&run(&*graph, &[&six()]).unwrap()[0], &SIX_SCORES);
    }
}

#[test]
fn bad_models_are_refused_on_one_line() {
    let Some(bench) = Bench::new() else { return };
    let check = |model: ModelFile, expected: &str| {
        let refusal = bench.refusal(&model);
        assert!(refusal.contains(expected), "{}: {refusal}", model.path.display());
        assert!(!refusal.contains('\n') && !refusal.contains(MODELS), "{refusal}");
    };
    check(bench.stored("garbage.onnx"), "it is not an ONNX model");
    check(bench.stored("empty.onnx"), "it is not an ONNX model");
    check(bench.stored("truncated.onnx"), "it is not an ONNX model");
    check(bench.stored("unknown_op.onnx"), "Frobnicate");
    check(bench.stored("bad_external.onnx"), "it keeps weights in other files");
    check(bench.stored("deep.onnx"), "cannot load the model");
    check(bench.stored("absent.onnx"), "cannot be read");
    check(bench.written("text.xml", b"hello"), "it is not an XML file");
    check(bench.written("empty.xml", b""), "it is not an XML file");
    check(
        bench.written("cut.xml", b"<?xml version=\"1.0\"?><net name=\"x\" version=\"11\"><layers>"),
        "cannot load the model",
    );
    let mut relabelled = bench.stored("digits.xml");
    relabelled.encoding = Encoding::Onnx;
    check(relabelled, "it is not an ONNX model");
    let mut cut = bench.stored("digits.xml");
    cut.weights = Some(bench.written("cut.bin", &[0; 100]).path);
    check(cut, "cannot load the model");
}

#[test]
fn absent_devices_are_refused_by_name() {
    let Some(bench) = Bench::new() else { return };
    let devices = bench.openvino.status().devices;
    assert!(devices.contains(&ExecutionTarget::Cpu));
    for (target, package) in
        [(ExecutionTarget::Gpu, "intel-opencl-icd"), (ExecutionTarget::Npu, "intel-level-zero-npu")]
    {
        if devices.contains(&target) {
            continue;
        }
        let refusal = bench.refusal(&ModelFile { target, ..bench.file(DIGITS, 1) });
        assert!(refusal.contains(&format!("cannot run on `{}`", target.name())), "{refusal}");
        assert!(refusal.contains(package), "{refusal}");
    }
}

#[test]
fn a_wrong_library_is_a_clear_reason() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("libopenvino_c.so.1");
    std::fs::write(&text, "hello").unwrap();
    let check = |library: Option<&Path>, search: &[PathBuf], expected: &str| {
        let backend = OpenVino::new(library, search);
        let reason = backend.status().available.unwrap_err();
        assert!(reason.contains(expected), "{reason}");
        assert_eq!((backend.version(), backend.status().devices.len()), (String::new(), 0));
    };
    check(Some(&folder.path().join("absent.so")), &[], "cannot be read");
    check(None, &[], "its library was not found; run `tenon backend install openvino`");
    let Some(bench) = Bench::new() else { return };
    // Once a library is loaded there is no other.
    check(Some(&text), &[], "the process already uses");
    let library = bench.openvino.status().library.unwrap();
    assert!(OpenVino::new(Some(&library), &[]).status().available.is_ok());
    assert!(bench.openvino.status().version.starts_with("20"));
}

#[test]
fn what_is_not_openvino_is_not_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("libopenvino_c.so.1");
    std::fs::write(&text, "hello").unwrap();
    assert!(sys::bind(&text).unwrap_err().contains("cannot be opened"));
    let libc = Path::new("/lib/x86_64-linux-gnu/libm.so.6");
    if libc.exists() {
        assert_eq!(sys::bind(libc).unwrap_err(), "it is not OpenVINO's C library");
    }
}

const FLOAT: u64 = 1;
const INT64: u64 = 7;
const BOOL: u64 = 9;

/// Operator, inputs, outputs.
type Node<'a> = (&'a str, &'a [&'a str], &'a [&'a str]);
/// Name, element type, shape with -1 for what a call may choose.
type Value<'a> = (&'a str, u64, &'a [i64]);

/// An ONNX file of opset 17.
fn onnx_model(nodes: &[Node], inputs: &[Value], outputs: &[Value]) -> Vec<u8> {
    let mut graph = field(2, b"g");
    for (operator, inputs, outputs) in nodes {
        graph.extend(field(1, &node(operator, inputs, outputs)));
    }
    graph.extend(inputs.iter().flat_map(|input| field(11, &value(input))));
    graph.extend(outputs.iter().flat_map(|output| field(12, &value(output))));
    [number(1, 8), field(8, &number(2, 17)), field(7, &graph)].concat()
}

/// 24 times `softmax(x x^T x)`, on as many rows of 64 as `rows` says.
fn attention_model(rows: i64) -> Vec<u8> {
    let names: Vec<[String; 4]> =
        (0..24).map(|block| ["t", "p", "q", "x"].map(|name| format!("{name}{block}"))).collect();
    let mut graph = field(2, b"g");
    let mut add =
        |operator, inputs: &[&str], output| graph.extend(field(1, &node(operator, inputs, &[output])));
    let mut x = "x";
    for [transposed, product, sum, next] in &names {
        add("Transpose", &[x], transposed);
        add("MatMul", &[x, transposed], product);
        add("MatMul", &[product, x], sum);
        add("Softmax", &[sum], next);
        x = next;
    }
    graph.extend(field(11, &value(&("x", FLOAT, &[rows, 64]))));
    graph.extend(field(12, &value(&(x, FLOAT, &[rows, 64]))));
    [number(1, 8), field(8, &number(2, 17)), field(7, &graph)].concat()
}

/// Negates `x` as often as `rounds` says.
fn loop_model() -> Vec<u8> {
    let values = |number, values: &[Value]| -> Vec<u8> {
        values.iter().flat_map(|described| field(number, &value(described))).collect()
    };
    let body = [
        field(2, b"body"),
        field(1, &node("Identity", &["on"], &["still_on"])),
        field(1, &node("Neg", &["before"], &["after"])),
        values(11, &[("round", INT64, &[]), ("on", BOOL, &[]), ("before", FLOAT, &[1])]),
        values(12, &[("still_on", BOOL, &[]), ("after", FLOAT, &[1])]),
    ];
    let attribute = [field(1, b"body"), field(6, &body.concat()), number(20, 5)].concat();
    let rounds = [node("Loop", &["rounds", "", "x"], &["y"]), field(5, &attribute)].concat();
    let graph = [
        field(2, b"g"),
        field(1, &rounds),
        values(11, &[("rounds", INT64, &[]), ("x", FLOAT, &[1])]),
        values(12, &[("y", FLOAT, &[1])]),
    ];
    [number(1, 8), field(8, &number(2, 17)), field(7, &graph.concat())].concat()
}

fn node(operator: &str, inputs: &[&str], outputs: &[&str]) -> Vec<u8> {
    let mut node: Vec<u8> = inputs.iter().flat_map(|name| field(1, name.as_bytes())).collect();
    node.extend(outputs.iter().flat_map(|name| field(2, name.as_bytes())));
    node.extend(field(4, operator.as_bytes()));
    node
}

fn value((name, element, shape): &Value) -> Vec<u8> {
    let dim = |dim: &i64| match u64::try_from(*dim) {
        Ok(dim) => field(1, &number(1, dim)),
        Err(_) => field(1, &field(2, b"n")),
    };
    let shape: Vec<u8> = shape.iter().flat_map(dim).collect();
    let tensor = [number(1, *element), field(2, &shape)].concat();
    [field(1, name.as_bytes()), field(2, &field(1, &tensor))].concat()
}

fn field(number: u64, content: &[u8]) -> Vec<u8> {
    [varint(number << 3 | 2), varint(content.len() as u64), content.to_vec()].concat()
}

fn number(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value > 0x7f {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}
