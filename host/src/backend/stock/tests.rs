//! Tests of both directions: a backend of wasmtime-wasi-nn's that doubles, and a graph of ours behind its traits.

use std::path::{Path, PathBuf};

use wasmtime_wasi_nn::backend::{BackendFromDir, BackendInner};

use super::*;

/// Doubles FP32; panics on a negative number.
struct Double;

impl BackendInner for Double {
    fn encoding(&self) -> GraphEncoding {
        GraphEncoding::Onnx
    }

    fn load(&mut self, builders: &[&[u8]], _: StockTarget) -> Result<wasmtime_wasi_nn::Graph, BackendError> {
        assert!(!builders[0].is_empty());
        let graph: Box<dyn BackendGraph> = Box::new(Double);
        Ok(graph.into())
    }

    fn as_dir_loadable(&mut self) -> Option<&mut dyn BackendFromDir> {
        None
    }
}

impl BackendGraph for Double {
    fn init_execution_context(&self) -> Result<wasmtime_wasi_nn::ExecutionContext, BackendError> {
        let context: Box<dyn BackendExecutionContext> = Box::new(Double);
        Ok(context.into())
    }
}

impl BackendExecutionContext for Double {
    fn set_input(&mut self, _: Id, _: &StockTensor) -> Result<(), BackendError> {
        unreachable!("inputs come by name")
    }

    fn get_output(&mut self, _: Id) -> Result<StockTensor, BackendError> {
        unreachable!("outputs go by name")
    }

    fn compute(
        &mut self,
        inputs: Option<Vec<NamedTensor>>,
    ) -> Result<Option<Vec<NamedTensor>>, BackendError> {
        let mut inputs = inputs.unwrap();
        for bytes in inputs[0].tensor.data.as_chunks_mut::<4>().0 {
            let number = f32::from_le_bytes(*bytes);
            assert!(number >= 0.0, "negative");
            *bytes = (number * 2.0).to_le_bytes();
        }
        inputs[0].name = "0".to_owned();
        Ok(Some(inputs))
    }
}

fn model(name: &str) -> ModelFile {
    ModelFile {
        path: Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/models/{name}.onnx")),
        weights: None,
        encoding: Encoding::Onnx,
        digest: String::new(),
        target: ExecutionTarget::Cpu,
        precision: Precision::F32,
        concurrency: 1,
        derived: PathBuf::new(),
    }
}

fn stock() -> Stock {
    Stock::new("double", "1".to_owned(), Double.into())
}

fn floats(values: &[f32]) -> Tensor {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Tensor::new(Datatype::Fp32, vec![values.len()], data.into()).unwrap()
}

#[test]
fn a_stock_backend_serves_as_one_of_ours() {
    let stock = stock();
    assert_eq!(stock.status().encodings, [Encoding::Onnx]);
    let graph = stock.load(&model("identity_float32")).unwrap();
    assert_eq!(graph.signature().inputs[0].name, "x");
    let run = |tensor| graph.run(vec![tensor], &Cancel::default());
    assert_eq!(run(floats(&[1.0, 2.5])).unwrap(), [floats(&[2.0, 5.0])]);
    let error = run(floats(&[-1.0])).unwrap_err();
    assert!(error.to_string().contains("panicked: negative"), "{error}");
    assert_eq!(run(floats(&[3.0])).unwrap(), [floats(&[6.0])]);
}

#[test]
fn what_stock_backends_cannot_do_is_refused_by_name() {
    let refused = |stock: Stock, model: ModelFile, expected: &str| {
        let error = stock.load(&model).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    };
    refused(stock(), model("identity_bool"), "wasi-nn has no BOOL");
    refused(stock(), model("garbage"), "not ONNX");
    let gpu = ModelFile { target: ExecutionTarget::Gpu, ..model("identity_float32") };
    refused(stock(), gpu, "cannot run on `gpu`");
    let openvino = ModelFile { encoding: Encoding::Openvino, ..model("identity_float32") };
    refused(stock(), openvino, "does not read openvino");
    let unknown = stock().with_signatures(|_| Err("no such model".to_owned()));
    refused(unknown, model("identity_float32"), "no such model");
}

#[test]
fn a_graph_of_ours_serves_behind_the_traits_of_wasmtime() {
    let graph = StockGraph::wrap(stock().load(&model("identity_float32")).unwrap());
    let mut context = graph.init_execution_context().unwrap();
    let tensor = || named("x", &floats(&[1.0])).unwrap().tensor;
    let outputs =
        context.compute_with_io(vec![NamedTensor { name: "x".to_owned(), tensor: tensor() }]).unwrap();
    assert_eq!(outputs[0].name, "y");
    assert_eq!(from_stock(outputs[0].tensor.clone()).unwrap(), floats(&[2.0]));

    context.set_input(Id::Name("x".to_owned()), &tensor()).unwrap();
    assert!(context.get_output(Id::Index(0)).is_err());
    context.compute().unwrap();
    assert_eq!(from_stock(context.get_output(Id::Name("y".to_owned())).unwrap()).unwrap(), floats(&[2.0]));
    assert!(context.set_input(Id::Index(1), &tensor()).is_err());
    let wrong = vec![NamedTensor { name: "z".to_owned(), tensor: tensor() }];
    assert!(context.compute_with_io(wrong).is_err());
}
