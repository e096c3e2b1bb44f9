//! wasmtime-wasi-nn beside our own wasi:nn: the same guest, the same graphs, the same answers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use tenon::artifact::manifest::{Encoding, ExecutionTarget, Model as Declared};
use tenon::backend::batch::Call;
use tenon::backend::residency::Model;
use tenon::backend::stock::{Stock, StockGraph};
use tenon::backend::{Backend as _, ModelFile, Priority};
use tenon::tensor::{Datatype, Tensor};
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, Linker, ResourceTable, ResourceType};
use wasmtime::{Config, Engine, Store};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::{
    Error as HttpError, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView,
};
use wasmtime_wasi_nn::backend::{BackendError, BackendFromDir, BackendInner};
use wasmtime_wasi_nn::wit::{ExecutionTarget as StockTarget, GraphEncoding, WasiNnCtx, WasiNnView};
use wasmtime_wasi_nn::{Graph, GraphRegistry, Registry};

use crate::harness::{TestHost, app, guest, repository, run};
use crate::raw::{backends, call, call_request, grant, grants, le, model, only, raw};

/// A guest on wasmtime with the stock implementation of wasi:nn, put together as its documentation says.
struct StockHost {
    guest: ProxyPre<State>,
    graphs: HashMap<String, Graph>,
}

struct State {
    table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    egress: NoEgress,
    nn: WasiNnCtx,
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.egress }
    }
}

struct NoEgress;

type Sent =
    Result<(http::Response<WasiBody>, Box<dyn Future<Output = Result<(), HttpError>> + Send>), HttpError>;

impl WasiHttpHooks for NoEgress {
    fn send_request(
        &mut self,
        _: http::Request<WasiBody>,
        _: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<(), HttpError>> + Send>,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        Box::new(async { Err(HttpError::HttpRequestDenied) })
    }
}

struct Graphs(HashMap<String, Graph>);

impl GraphRegistry for Graphs {
    fn get(&self, name: &str) -> Option<&Graph> {
        self.0.get(name)
    }

    fn get_mut(&mut self, name: &str) -> Option<&mut Graph> {
        self.0.get_mut(name)
    }
}

impl StockHost {
    fn new(wasm: &str, graphs: HashMap<String, Graph>) -> wasmtime::Result<StockHost> {
        let engine = Engine::new(Config::new().wasm_component_model(true))?;
        let mut linker = Linker::<State>::new(&engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
        wasmtime_wasi_nn::wit::add_to_linker(&mut linker, |state| {
            WasiNnView::new(&mut state.table, &mut state.nn)
        })?;
        let component = Component::from_file(&engine, wasm)?;
        without_ours(&mut linker, &component)?;
        Ok(StockHost { guest: ProxyPre::new(linker.instantiate_pre(&component)?)?, graphs })
    }

    /// What the guest answers to a call of [`raw::call`](call): status and text.
    async fn call(&self, query: &str, data: &[u8]) -> wasmtime::Result<(u16, String)> {
        let registry = Registry::from(Graphs(self.graphs.clone()));
        let state = State {
            table: ResourceTable::new(),
            wasi: WasiCtx::builder().build(),
            http: WasiHttpCtx::new(),
            egress: NoEgress,
            nn: WasiNnCtx::new(Vec::new(), registry),
        };
        let mut store = Store::new(self.guest.engine(), state);
        let request = call_request("raw", query, data);
        let request = store.data_mut().http().new_incoming_request(Scheme::Http, request)?;
        let (head, answered) = tokio::sync::oneshot::channel();
        let out = store.data_mut().http().new_response_outparam(head)?;
        let guest = self.guest.clone();
        let guest = tokio::spawn(async move {
            let proxy = guest.instantiate_async(&mut store).await?;
            proxy.wasi_http_incoming_handler().call_handle(store, request, out).await
        });
        let (parts, body) = answered.await.expect("the guest answers")?.into_parts();
        let body = body.collect().await.expect("the guest's body is whole").to_bytes();
        guest.await.expect("the guest ends")?;
        Ok((parts.status.as_u16(), String::from_utf8_lossy(&body).into_owned()))
    }
}

/// Links what the guest imports of ours, for its way through tenon-sdk, as functions that fail: no story goes there.
fn without_ours(linker: &mut Linker<State>, component: &Component) -> wasmtime::Result<()> {
    let engine = component.engine();
    for (name, import) in component.component_type().imports(engine) {
        let ComponentItem::ComponentInstance(interface) = import.ty else { continue };
        if !name.starts_with("tenon:") {
            continue;
        }
        let mut linked = linker.instance(name)?;
        for (name, item) in interface.exports(engine) {
            match item.ty {
                ComponentItem::ComponentFunc(_) => {
                    linked
                        .func_new(name, |_, _, _, _| Err(wasmtime::format_err!("this host is not ours")))?;
                }
                ComponentItem::Resource(_) => {
                    linked.resource(name, ResourceType::host::<StockHost>(), |_, _| Ok(()))?;
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// A model as a deployment on `host` admits it.
async fn admitted(host: &TestHost, path: &str) -> Model {
    let declared = Declared {
        reference: None,
        path: path.into(),
        weights: None,
        file_name: None,
        encoding: Encoding::Onnx,
        target: ExecutionTarget::Cpu,
        backend: None,
        idle_timeout_s: None,
        precision: None,
        concurrency: None,
        batching: None,
        queue_length: None,
        line: 1,
    };
    host.host.deployer.intake.admit(&declared, "app").await.expect("the model is good").model
}

/// Images of 8x8 pixels, 0 to 1 in sixteenths as in the data set, the same on every run.
fn images(count: usize) -> Vec<u8> {
    let mut state = 7_u32;
    let mut pixel = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from(u8::try_from(state >> 28).expect("four bits")) / 16.0
    };
    (0..count * 64).flat_map(|_| pixel().to_le_bytes()).collect()
}

#[test]
fn stock_and_ours_give_equal_answers() {
    let digits = repository().join("examples/digits/model/digits.onnx").display().to_string();
    for backend in backends() {
        run(async {
            let names = ["two_outputs", "add", "dynamic_seq"];
            let granted = [grant("digits", &digits, ""), grants(&names)].concat();
            let ours = TestHost::of(app(&[raw("raw", &granted)])).config(only(backend)).start().await;
            let mut graphs = HashMap::new();
            for (name, path) in
                names.map(|name| (name, model(name))).into_iter().chain([("digits", digits.clone())])
            {
                let model = admitted(&ours, &path).await;
                assert_eq!(model.backend.name(), backend);
                let graph = model.backend.load(&model.file).expect("it was tried out");
                graphs.insert(name.to_owned(), StockGraph::wrap(graph));
            }
            let stock = StockHost::new(&guest("nn-raw"), graphs).expect("the guest links");
            let check = async |query: &str, data: &[u8]| {
                let (status, text) = stock.call(query, data).await.expect("the guest runs");
                let answer = call(&ours, "raw", query, data).await;
                assert_eq!((answer.status.as_u16(), answer.text()), (status, text), "{backend} {query}");
                assert_eq!(status, 200);
            };
            for count in 1..=8 {
                check(&format!("model=digits&input=image:FP32:{count},1,8,8"), &images(count)).await;
            }
            check("model=two_outputs&input=x:FP32:1,4", &le![1_f32, 5_f32, 3_f32, 2_f32]).await;
            check("model=add&input=a:I64:1&input=b:I64:1", &le![40_i64, 2_i64]).await;
            check("model=dynamic_seq&times=3&input=ids:I64:1,2", &le![1_i64, 2_i64]).await;
            // What they answer to mistakes differs in the code: the stock one has no better.
            let mistake = "model=digits&input=image:FP32:1,1,8,7";
            assert_eq!(stock.call(mistake, &[]).await.expect("the guest runs").0, 500);
            assert_eq!(call(&ours, "raw", mistake, &[]).await.status, 500);
            let (status, text) = stock.call("model=nowhere", &[]).await.expect("the guest runs");
            assert!(status == 500 && text.contains("NotFound"), "{text}");
        });
    }
}

/// A backend written for wasmtime-wasi-nn. To have a real engine inside, it is one of ours in disguise.
struct Disguised(Model);

impl BackendInner for Disguised {
    fn encoding(&self) -> GraphEncoding {
        GraphEncoding::Onnx
    }

    fn load(&mut self, parts: &[&[u8]], _: StockTarget) -> Result<Graph, BackendError> {
        let same = std::fs::read(&self.0.file.path).is_ok_and(|file| parts == [file.as_slice()]);
        assert!(same, "the model's own bytes come");
        let loaded = self.0.backend.load(&self.0.file);
        loaded
            .map(StockGraph::wrap)
            .map_err(|error| BackendError::BackendAccess(wasmtime::format_err!("{error}")))
    }

    fn as_dir_loadable(&mut self) -> Option<&mut dyn BackendFromDir> {
        None
    }
}

#[test]
fn a_stock_backend_serves_as_one_of_ours() {
    run(async {
        let host = TestHost::of(app(&[raw("none", "")])).config(only("tract")).start().await;
        let real = admitted(&host, &model("two_outputs")).await;
        let backend = Stock::new("disguised", "1".to_owned(), Disguised(real.clone()).into());
        let disguised = Model { backend: Arc::new(backend), ..real.clone() };
        let call =
            || Call { deadline: Instant::now() + Duration::from_secs(30), priority: Priority::default() };
        let tensor = |values: &[f32]| {
            let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            Tensor::new(Datatype::Fp32, vec![1, values.len()], data.into()).expect("it is a tensor")
        };
        let residency = &host.host.residency;
        let lease = residency.acquire(&disguised).await.expect("it loads");
        assert_eq!(lease.backend(), "disguised");
        let input = || vec![("x".to_owned(), tensor(&[1.0, 5.0, 3.0, 2.0]))];
        let outputs = lease.infer(input(), call()).await.expect("it runs");
        let expected = residency.acquire(&real).await.expect("it loads").infer(input(), call()).await;
        assert_eq!(outputs.outputs, expected.expect("it runs").outputs);
        // Our checks stand in front of it as well.
        let wrong = lease.infer(vec![("x".to_owned(), tensor(&[1.0]))], call()).await;
        assert!(wrong.expect_err("the shape is wrong").to_string().contains("takes the shape [-1, 4]"));
        let missing = lease.infer(Vec::new(), call()).await;
        assert!(missing.expect_err("an input is missing").to_string().contains("`x` is missing"));
    });
}

#[test]
fn a_stock_backend_is_not_asked_for_what_it_cannot_do() {
    run(async {
        let host = TestHost::of(app(&[raw("none", "")])).config(only("tract")).start().await;
        let real = admitted(&host, &model("identity_int8")).await;
        let stock = Stock::new("disguised", "1".to_owned(), Disguised(real.clone()).into());
        let error = stock.load(&real.file).err().expect("wasi-nn has no such type").to_string();
        assert!(error.contains("INT8"), "{error}");
        let gpu = ModelFile { target: tenon::backend::ExecutionTarget::Gpu, ..real.file };
        let error = stock.load(&gpu).err().expect("it may take the processor in silence").to_string();
        assert!(error.contains("gpu"), "{error}");
    });
}
