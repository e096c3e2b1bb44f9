//! Tests of rten on the tiny models in `tests/models`.

use std::path::{Path, PathBuf};
use std::thread;

use super::*;
use crate::backend::Precision;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn tiny(name: &str) -> Result<Arc<dyn Graph>, LoadError> {
    Rten::new().load(&ModelFile {
        path: root().join(format!("tests/models/{name}.onnx")),
        weights: None,
        encoding: Encoding::Onnx,
        digest: String::new(),
        target: ExecutionTarget::Cpu,
        precision: Precision::F32,
        concurrency: 8,
        derived: PathBuf::new(),
    })
}

fn floats(shape: &[usize], values: &[f32]) -> Tensor {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Tensor::new(Datatype::Fp32, shape.to_vec(), data.into()).unwrap()
}

fn longs(shape: &[usize], values: &[i64]) -> Tensor {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Tensor::new(Datatype::Int64, shape.to_vec(), data.into()).unwrap()
}

fn run(graph: &dyn Graph, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, InferError> {
    graph.run(inputs, &Cancel::default())
}

#[test]
fn the_version_is_the_one_in_the_lock_file() {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    assert!(lock.contains(&format!("name = \"rten\"\nversion = \"{VERSION}\"")));
}

#[test]
fn identity_keeps_the_datatypes_that_rten_has() {
    for name in ["float32", "int32", "int8", "uint8", "int64", "bool"] {
        let graph = tiny(&format!("identity_{name}")).unwrap();
        let datatype = graph.signature().inputs[0].datatype;
        let data: Vec<u8> = match datatype {
            Datatype::Bool => vec![1, 0, 1],
            Datatype::Int64 => [i64::from(i32::MIN), -1, i64::from(i32::MAX)]
                .into_iter()
                .flat_map(i64::to_le_bytes)
                .collect(),
            other => (0..3 * other.size().unwrap()).map(|byte| (byte * 37 + 5) as u8).collect(),
        };
        let tensor = Tensor::new(datatype, vec![3], data.into()).unwrap();
        assert_eq!(run(&*graph, vec![tensor.clone()]).unwrap(), [tensor]);
    }
    for name in ["float16", "float64", "bfloat16", "int16", "uint16", "uint32", "uint64", "string"] {
        let error = tiny(&format!("identity_{name}")).err().unwrap().to_string();
        assert!(error.contains("cannot do"), "{error}");
    }
}

#[test]
fn an_int64_beyond_32_bits_is_refused() {
    let graph = tiny("add").unwrap();
    let sum = run(&*graph, vec![longs(&[1], &[40]), longs(&[1], &[2])]).unwrap();
    assert_eq!(sum[0], longs(&[1], &[42]));
    let error = run(&*graph, vec![longs(&[1], &[1]), longs(&[1], &[1 << 40])]).unwrap_err();
    assert!(matches!(&error, InferError::InvalidInput(text) if text.contains("`b`")), "{error}");
    let error = run(&*graph, vec![longs(&[1], &[1]), longs(&[2], &[1, 2])]).unwrap_err();
    assert!(matches!(&error, InferError::InvalidInput(text) if text.contains("`n`")), "{error}");
}

#[test]
fn outputs_have_the_names_and_order_of_the_model() {
    let graph = tiny("two_outputs").unwrap();
    let names: Vec<_> = graph.signature().outputs.iter().map(|port| port.name.as_str()).collect();
    assert_eq!(names, ["double", "argmax"]);
    let outputs = run(&*graph, vec![floats(&[1, 4], &[1.0, 9.0, 3.0, 4.0])]).unwrap();
    assert_eq!(outputs, [floats(&[1, 4], &[2.0, 18.0, 6.0, 8.0]), longs(&[1], &[1])]);
}

#[test]
fn callers_run_at_the_same_time_each_on_a_thread_of_its_own() {
    let graph = tiny("dynamic_seq").unwrap();
    thread::scope(|scope| {
        for id in 0..4 {
            let graph = &graph;
            scope.spawn(move || {
                for seq in 1..20 {
                    let outputs = run(&**graph, vec![longs(&[1, seq], &vec![id; seq])]).unwrap();
                    assert_eq!(outputs[0].data()[..4], (id as f32).to_le_bytes());
                }
            });
        }
    });
}

#[test]
fn a_cancelled_run_says_so() {
    let cancel = Cancel::default();
    cancel.raise();
    let outcome = tiny("dynamic_seq").unwrap().run(vec![longs(&[1, 1], &[1])], &cancel);
    assert!(matches!(outcome, Err(InferError::Cancelled)), "{outcome:?}");
}

#[test]
fn a_failed_run_leaves_the_graph_usable() {
    let graph = tiny("dynamic_seq").unwrap();
    let error = run(&*graph, vec![longs(&[1, 2], &[0, 100])]).unwrap_err();
    assert!(matches!(error, InferError::Failed(_)), "{error}");
    assert!(run(&*graph, vec![longs(&[1, 2], &[0, 99])]).is_ok());
}

#[test]
fn bad_models_are_refused() {
    let refused = |name: &str, expected: &str| match tiny(name) {
        Ok(_) => panic!("`{name}` was loaded"),
        Err(error) => assert!(error.to_string().contains(expected), "{name}: {error}"),
    };
    refused("bad_external", "disallowed path");
    refused("deep", "no outputs");
    refused("empty", "no outputs");
    refused("garbage", "not ONNX");
    refused("negative_dim", "dimension of -5");
    refused("truncated", "cut short");
    refused("unknown_op", "Frobnicate");
    assert!(matches!(tiny("no_such_file"), Err(LoadError::Io(_))));
}
