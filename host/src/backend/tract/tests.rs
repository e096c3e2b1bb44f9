//! Tests of the built-in backend on the tiny models in `tests/models` and on the digits example.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::*;
use crate::backend::Precision;
use crate::backend::{Port, validate};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn model_file(path: &str) -> ModelFile {
    ModelFile {
        path: root().join(path),
        weights: None,
        encoding: Encoding::Onnx,
        digest: String::new(),
        target: ExecutionTarget::Cpu,
        precision: Precision::F32,
        concurrency: 8,
        derived: PathBuf::new(),
    }
}

fn load(name: &str) -> Result<Arc<dyn Graph>, LoadError> {
    Tract::new().load(&model_file(&format!("tests/models/{name}.onnx")))
}

fn graph(name: &str) -> TractGraph {
    TractGraph::load(&model_file(&format!("tests/models/{name}.onnx"))).unwrap()
}

fn floats(shape: &[usize], values: &[f32]) -> Tensor {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Tensor::new(Datatype::Fp32, shape.to_vec(), data.into()).unwrap()
}

fn longs(shape: &[usize], values: &[i64]) -> Tensor {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Tensor::new(Datatype::Int64, shape.to_vec(), data.into()).unwrap()
}

fn to_floats(tensor: &Tensor) -> Vec<f32> {
    assert_eq!(tensor.datatype(), Datatype::Fp32);
    tensor.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn to_longs(tensor: &Tensor) -> Vec<i64> {
    assert_eq!(tensor.datatype(), Datatype::Int64);
    tensor.data().as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect()
}

fn run(graph: &dyn Graph, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, InferError> {
    graph.run(inputs, &Cancel::default())
}

fn port(name: &str, datatype: Datatype, shape: &[Option<usize>]) -> Port {
    Port { name: name.to_owned(), datatype, shape: Some(shape.to_vec()) }
}

#[test]
fn the_version_is_the_one_in_the_lock_file() {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    assert!(lock.contains(&format!("name = \"tract-onnx\"\nversion = \"{VERSION}\"")));
}

#[test]
fn identity_keeps_every_datatype() {
    let same = |name: &str, tensor: Tensor| {
        let graph = load(&format!("identity_{name}")).unwrap();
        assert_eq!(graph.signature().inputs[0].datatype, tensor.datatype());
        assert_eq!(run(&*graph, vec![tensor.clone()]).unwrap(), [tensor]);
    };
    for (name, datatype) in [
        ("float16", Datatype::Fp16),
        ("float32", Datatype::Fp32),
        ("float64", Datatype::Fp64),
        ("int8", Datatype::Int8),
        ("int16", Datatype::Int16),
        ("int32", Datatype::Int32),
        ("uint8", Datatype::Uint8),
        ("uint16", Datatype::Uint16),
        ("uint32", Datatype::Uint32),
        ("uint64", Datatype::Uint64),
    ] {
        let bytes: Vec<u8> = (0..3 * datatype.size().unwrap()).map(|byte| (byte * 37 + 5) as u8).collect();
        same(name, Tensor::new(datatype, vec![3], bytes.into()).unwrap());
    }
    same("int64", longs(&[3], &[i64::MIN, 1 << 40, i64::MAX]));
    same("bool", Tensor::new(Datatype::Bool, vec![3], Bytes::from_static(&[1, 0, 1])).unwrap());
}

#[test]
fn integers_are_exact() {
    let graph = load("add").unwrap();
    let sum = run(&*graph, vec![longs(&[2], &[1 << 53, -1]), longs(&[2], &[1, 1 << 40])]).unwrap();
    assert_eq!(to_longs(&sum[0]), [(1 << 53) + 1, (1 << 40) - 1]);
}

#[test]
fn outputs_have_the_names_and_order_of_the_model() {
    let graph = load("two_outputs").unwrap();
    let expected = Signature {
        inputs: vec![port("x", Datatype::Fp32, &[None, Some(4)])],
        outputs: vec![
            port("double", Datatype::Fp32, &[None, Some(4)]),
            port("argmax", Datatype::Int64, &[None]),
        ],
    };
    assert_eq!(graph.signature(), &expected);
    let outputs = run(&*graph, vec![floats(&[1, 4], &[1.0, 9.0, 3.0, 4.0])]).unwrap();
    assert_eq!(to_floats(&outputs[0]), [2.0, 18.0, 6.0, 8.0]);
    assert_eq!((outputs[1].shape(), to_longs(&outputs[1])), ([1].as_slice(), vec![1]));
}

#[test]
fn digits_answers_as_it_does_elsewhere() {
    let graph = Tract::new().load(&model_file("examples/digits/model/digits.onnx")).unwrap();
    for batch in [1, 3] {
        let image: Vec<f32> = (0..batch * 64).map(|pixel| (pixel % 64) as f32 / 64.0).collect();
        let outputs = run(&*graph, vec![floats(&[batch, 1, 8, 8], &image)]).unwrap();
        let scores = to_floats(&outputs[0]);
        for (index, score) in scores.iter().enumerate() {
            let reference = RAMP_SCORES[index % 10];
            assert!((score - reference).abs() < 1e-5, "{index}: {score}, expected {reference}");
        }
        assert_eq!(scores.len(), batch * 10);
    }
}

/// What ONNX Runtime 1.28.0 gives for an image whose pixels rise from 0 to 63/64.
const RAMP_SCORES: [f32; 10] = [
    9.8507e-3, 5.57950e-2, 0.294788, 4.46847e-3, 1.32471e-2, 1.2304e-5, 0.621717, 2.9e-7, 1.17923e-4,
    2.4877e-6,
];

#[test]
fn callers_choose_the_dimensions_that_the_model_leaves_open() {
    let graph = graph("dynamic_seq");
    for (batch, seq) in [(1, 3), (2, 5), (4, 1)] {
        let ids: Vec<i64> = (0..batch * seq).map(|id| id as i64 % 100).collect();
        let outputs = run(&graph, vec![longs(&[batch, seq], &ids)]).unwrap();
        assert_eq!(outputs[0].shape(), [batch, 8]);
        let mean = ids[..seq].iter().sum::<i64>() as f32 / seq as f32;
        assert_eq!(to_floats(&outputs[0])[0], mean);
    }
}

#[test]
fn few_plans_are_kept_and_rare_shapes_share_one() {
    let graph = graph("dynamic_seq");
    let plan = |seq: usize| graph.plans.plan(vec![vec![1, seq]]).unwrap();
    let own: Vec<_> = (1..=8).map(plan).collect();
    let shared = plan(9);
    assert!(own.iter().all(|own| !Arc::ptr_eq(own, &shared)));
    assert!(Arc::ptr_eq(&shared, &plan(10)));
    let outputs = run(&graph, vec![longs(&[1, 10], &[7; 10])]).unwrap();
    assert_eq!(to_floats(&outputs[0])[0], 7.0);

    assert!(Arc::ptr_eq(&own[0], &plan(1)));
    for _ in 0..16 {
        plan(9);
    }
    assert!(!Arc::ptr_eq(&shared, &plan(9)), "a shape that comes often gets a plan");
    assert!(Arc::ptr_eq(&own[0], &plan(1)), "the plan that was used last stays");
    assert!(Arc::ptr_eq(&shared, &plan(2)), "the plan that was used longest ago has left");
}

#[test]
fn a_shape_that_many_want_is_specialised_once() {
    let graph = graph("dynamic_seq");
    let barrier = Barrier::new(8);
    let plans: Vec<_> = thread::scope(|scope| {
        let want = || {
            barrier.wait();
            graph.plans.plan(vec![vec![7, 7]]).unwrap()
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(want)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(plans.iter().all(|plan| Arc::ptr_eq(plan, &plans[0])));
}

#[test]
fn dimensions_of_one_name_are_of_one_size() {
    let graph = load("add").unwrap();
    let error = run(&*graph, vec![longs(&[2], &[1, 2]), longs(&[1], &[1])]).unwrap_err();
    assert!(matches!(&error, InferError::InvalidInput(text) if text.contains("`n` is 2")), "{error}");
}

#[test]
fn a_running_inference_can_be_cancelled() {
    let graph = load("slow").unwrap();
    let cancel = Cancel::at(Instant::now() + Duration::from_millis(50));
    let began = Instant::now();
    let outcome = graph.run(vec![floats(&[1], &[0.5])], &cancel);
    assert!(matches!(outcome, Err(InferError::Cancelled)), "{outcome:?} after {:?}", began.elapsed());

    let raised = Cancel::default();
    raised.raise();
    assert!(matches!(graph.run(vec![floats(&[1], &[0.5])], &raised), Err(InferError::Cancelled)));

    let outputs = run(&*graph, vec![floats(&[1], &[0.5])]).unwrap();
    assert!((to_floats(&outputs[0])[0] - 0.5).abs() < 1e-3);
}

#[test]
fn a_panic_is_an_error_and_the_graph_stays_usable() {
    let graph = load("dynamic_seq").unwrap();
    let error = run(&*graph, vec![longs(&[1, 2], &[0, 100])]).unwrap_err();
    assert!(matches!(error, InferError::Failed(_)), "{error}");
    let outputs = run(&*graph, vec![longs(&[1, 2], &[0, 99])]).unwrap();
    assert_eq!(to_floats(&outputs[0])[0], 49.5);
}

#[test]
fn a_division_by_zero_is_an_error() {
    let graph = load("divide").unwrap();
    assert!(run(&*graph, vec![longs(&[1], &[1]), longs(&[1], &[0])]).is_err());
    let outputs = run(&*graph, vec![longs(&[1], &[7]), longs(&[1], &[2])]).unwrap();
    assert_eq!(to_longs(&outputs[0]), [3]);
}

#[test]
fn bad_models_are_refused() {
    let refused = |name: &str, expected: &str| match load(name) {
        Ok(_) => panic!("`{name}` was loaded"),
        Err(error) => assert!(error.to_string().contains(expected), "{name}: {error}"),
    };
    refused("bad_external", "external data");
    refused("deep", "no outputs");
    refused("empty", "no outputs");
    refused("garbage", "not ONNX");
    refused("huge_constant", "cannot load the model");
    refused("identity_bfloat16", "cannot do BF16");
    refused("identity_string", "cannot do BYTES");
    refused("loop_forever", "operator `Loop`");
    refused("negative_dim", "dimension of -5");
    refused("truncated", "cut short");
    refused("unknown_op", "operator `Frobnicate`");
    refused("no_such_file", "cannot be read");
}

#[test]
fn what_tract_cannot_do_is_refused_by_name() {
    let model = || model_file("tests/models/add.onnx");
    let refused = |model: ModelFile, expected: &str| {
        let error = Tract::new().load(&model).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    };
    refused(ModelFile { encoding: Encoding::Openvino, ..model() }, "does not read openvino");
    refused(ModelFile { target: ExecutionTarget::Gpu, ..model() }, "cannot run on `gpu`");
    refused(ModelFile { precision: Precision::Bf16, ..model() }, "not in `bf16`");
}

#[test]
fn a_graph_runs_concurrently() {
    let graph = load("dynamic_seq").unwrap();
    thread::scope(|scope| {
        for id in 0..8 {
            let graph = &graph;
            scope.spawn(move || {
                for _ in 0..50 {
                    let given = vec![("ids".to_owned(), longs(&[1, 2], &[id, id]))];
                    let inputs = validate::inputs(graph.signature(), given, 1024).unwrap();
                    assert_eq!(to_floats(&run(&**graph, inputs).unwrap()[0])[0], id as f32);
                }
            });
        }
    });
}
