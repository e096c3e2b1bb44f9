//! Hosts to test, and what stories about them need: guests, libraries, a client.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tenon::artifact::manifest::{FILE_NAME, Manifest, Options};
use tenon::config::{self, Config};
use tenon::host::{Host, Surroundings};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::ChildStderr;

/// The program that tries models out, and that tests of the command line start.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_tenon-child");

/// No story takes this long: one that does hangs.
const STORY: Duration = Duration::from_secs(120);

/// How long [`eventually`] waits for an event.
const EVENT: Duration = Duration::from_secs(30);

/// The environment that the tests read, all of it.
fn environment(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Runs a story on a runtime like the program's.
pub(crate) fn run<T>(story: impl Future<Output = T>) -> T {
    // A story's time is its own: the first one in a fresh checkout does not pay for what all of them need.
    guests();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .thread_stack_size(tenon::backend::pool::STACK_BYTES)
        .event_interval(4)
        .build()
        .expect("the system has threads");
    let told = runtime.block_on(async { tokio::time::timeout(STORY, story).await });
    runtime.shutdown_background();
    told.expect("the story hangs")
}

/// Waits until `holds` answers true.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < EVENT, "not within {EVENT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Reads until what was read is as wanted.
pub(crate) async fn until(stream: &mut TcpStream, wanted: impl Fn(&str) -> bool) -> String {
    let mut text = String::new();
    while !wanted(&text) {
        let mut buffer = [0; 4096];
        let length = stream.read(&mut buffer).await.unwrap();
        assert!(length > 0, "closed after {text:?}");
        text.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    text
}

/// The folder of this repository.
pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this package lies in the repository")
}

/// The folder of the compiled guests. They are built when first asked for.
pub(crate) fn guests() -> &'static Path {
    static GUESTS: LazyLock<PathBuf> = LazyLock::new(|| {
        for workspace in ["examples", "tests/guests"] {
            build(&repository().join(workspace));
        }
        repository().join("target/guests/wasm32-wasip2/release")
    });
    &GUESTS
}

/// The path of one compiled guest, such as `typed_echo`.
pub(crate) fn guest(name: &str) -> String {
    guests().join(format!("{name}.wasm")).display().to_string()
}

/// Builds a workspace of guests as a person does, without what the cargo that runs the tests has set.
pub(crate) fn build(workspace: &Path) {
    let cargo = environment("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--release", "--quiet"]).current_dir(workspace);
    let kept = ["CARGO_HOME", "CARGO_HTTP_CAINFO", "CARGO_NET_OFFLINE", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN"];
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let set =
            ["CARGO", "RUST", "LD_LIBRARY_PATH", "LLVM_PROFILE"].iter().any(|set| text.starts_with(set));
        if set && !kept.contains(&text.as_ref()) {
            command.env_remove(&name);
        }
    }
    let built = command.output().unwrap_or_else(|error| panic!("cargo does not start: {error}"));
    let told = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "the guests in `{}` do not build:\n{told}", workspace.display());
}

/// The library of a native backend, `onnxruntime` or `openvino`; `None` where the test is to be skipped.
pub(crate) fn needs(backend: &str) -> Option<PathBuf> {
    let (variable, module, folder, file) = match backend {
        "onnxruntime" => ("TENON_ONNXRUNTIME", "onnxruntime", "capi", "libonnxruntime.so"),
        "openvino" => ("TENON_OPENVINO", "openvino", "libs", "libopenvino_c.so"),
        _ => panic!("`{backend}` has no library"),
    };
    let found = environment(variable)
        .map(PathBuf::from)
        .or_else(|| newest(&repository().join("target/libraries"), file, 6))
        .or_else(|| newest(&python_package(module)?.join(folder), file, 1));
    available(backend, found, &format!("set {variable}, or `pip install {module}`"))
}

/// What a test needs, where it is there. Where it is not, the test is skipped, or fails where TENON_REQUIRE says.
pub(crate) fn available(name: &str, found: Option<PathBuf>, how: &str) -> Option<PathBuf> {
    let found = found.filter(|path| path.exists());
    if found.is_none() {
        assert!(!config::demands(name), "TENON_REQUIRE demands {name}, which is not here: {how}");
        eprintln!("skipped: {name} is not here: {how}");
    }
    found
}

/// The file below `folder` whose name begins with `name`, the last by name where there are several.
fn newest(folder: &Path, name: &str, depth: usize) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let named =
        |path: &PathBuf| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name));
    let below = folders.iter().filter(|_| depth > 1).filter_map(|folder| newest(folder, name, depth - 1));
    files.into_iter().filter(named).chain(below).max()
}

fn python_package(module: &str) -> Option<PathBuf> {
    let code = format!("import importlib.util as u; print(u.find_spec('{module}').origin)");
    let told =
        Command::new("python3").args(["-c", &code]).output().ok().filter(|told| told.status.success())?;
    Path::new(String::from_utf8(told.stdout).ok()?.trim()).parent().map(Path::to_owned)
}

/// An app manifest of these parts; see [`function`].
pub(crate) fn app(parts: &[String]) -> String {
    format!(
        "spin_manifest_version = 2\n[application]\nname = \"app\"\nversion = \"1.0.0\"\n{}",
        parts.concat()
    )
}

/// The part of a manifest for one function: its route, its component's id, the name of its guest, and further
/// settings of the component as lines of TOML, such as `tool.tenon.limits.deadline_ms = 500`.
pub(crate) fn function(route: &str, id: &str, wasm: &str, settings: &str) -> String {
    let source = guest(wasm);
    format!(
        "[[trigger.http]]\nroute = {route:?}\ncomponent = {id:?}\n\
         [component.{id}]\nsource = {source:?}\n{settings}\n"
    )
}

/// A host that is about to start.
pub(crate) struct Setup {
    app: AppIs,
    config: Config,
    files: Vec<(String, Vec<u8>)>,
    variables: BTreeMap<String, String>,
    private_cache: bool,
}

enum AppIs {
    Text(String),
    At(PathBuf),
}

/// A host that serves an app, in this process, on ports of its own.
pub(crate) struct TestHost {
    /// The host itself, for what HTTP does not tell.
    pub(crate) host: Host,
    /// The app's folder, which goes with this.
    pub(crate) folder: tempfile::TempDir,
}

impl TestHost {
    /// A host for the app with this manifest, which [`app`] may have put together.
    pub(crate) fn of(manifest: impl Into<String>) -> Setup {
        Setup::new(AppIs::Text(manifest.into()))
    }

    /// A host for the app of the `spin.toml` at `path`.
    pub(crate) fn at(path: impl Into<PathBuf>) -> Setup {
        Setup::new(AppIs::At(path.into()))
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(request(Method::GET, path, &[], "")).await
    }

    pub(crate) async fn post(&self, path: &str, content_type: &str, body: impl Into<Bytes>) -> Answer {
        self.send(request(Method::POST, path, &[("content-type", content_type)], body)).await
    }

    /// The answer to `request`, on a connection of its own.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        self.try_send(request).await.expect("the host answers")
    }

    /// As [`send`](Self::send), where the host may break off.
    pub(crate) async fn try_send(&self, request: Request<Full<Bytes>>) -> hyper::Result<Answer> {
        exchange(self.host.http, request).await
    }

    /// A bare connection, for what a client would not send.
    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.host.http).await.expect("the host accepts connections")
    }

    /// Sends `bytes` as they are, and reads until the host closes the connection.
    pub(crate) async fn raw(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect().await;
        // A host that has heard enough may close before it has read all.
        let _ = stream.write_all(bytes.as_ref()).await;
        rest(&mut stream).await
    }

    /// What the operator's address answers.
    pub(crate) async fn operator(&self, path: &str) -> Answer {
        let address = self.host.admin.expect("the operator has an address");
        exchange(address, request(Method::GET, path, &[], "")).await.expect("the operator's address answers")
    }

    /// Every metric, in the text form.
    pub(crate) async fn metrics(&self) -> String {
        self.operator("/metrics").await.text()
    }

    /// One metric, such as `tenon_instances` or `tenon_requests_total{function="app/echo"}`, of all revisions together;
    /// 0 where it is not.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let metrics = self.metrics().await;
        let values = metrics.lines().filter_map(|line| {
            let (start, rest) = line.split_once(",revision=\"").unwrap_or((line, ""));
            let rest =
                rest.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix('"').unwrap_or(rest);
            let line = format!("{start}{rest}");
            line.strip_prefix(name)?.strip_prefix(' ')?.parse::<f64>().ok()
        });
        values.sum()
    }

    /// What the component `id` has written to `stdout` or `stderr`.
    pub(crate) fn log(&self, id: &str, stream: &str) -> String {
        let path = self.folder.path().join(format!("logs/{id}_{stream}.txt"));
        std::fs::read_to_string(path).unwrap_or_default()
    }

    /// Deploys the app's manifest once more, as it is now.
    pub(crate) async fn redeploy(&self) -> Result<(), String> {
        let manifest = load(&self.folder.path().join(FILE_NAME), &BTreeMap::new())?;
        let files = manifest.files().map_err(|error| error.to_string())?;
        self.host.deployer.deploy(&manifest, &files, &|_| {}).await.map_err(|error| error.to_string())
    }

    /// Drains the host; answers whether all of it ended in time.
    pub(crate) async fn stop(self) -> bool {
        self.host.drain().await
    }
}

impl Setup {
    fn new(app: AppIs) -> Setup {
        let mut config = Config::default();
        config.listen.http = ([127, 0, 0, 1], 0).into();
        config.listen.admin = Some(config.listen.http);
        // Fewer slots than in production: many hosts live in this process at once.
        config.limits.concurrency = 32;
        config.limits.function_concurrency = 32;
        config.inference.threads = 2;
        Setup { app, config, files: Vec::new(), variables: BTreeMap::new(), private_cache: false }
    }

    /// Changes the operator's settings.
    pub(crate) fn config(mut self, change: impl FnOnce(&mut Config)) -> Setup {
        change(&mut self.config);
        self
    }

    /// Puts a file into the app's folder.
    pub(crate) fn file(mut self, path: &str, content: impl Into<Vec<u8>>) -> Setup {
        self.files.push((path.to_owned(), content.into()));
        self
    }

    /// Gives an app variable a value.
    pub(crate) fn variable(mut self, name: &str, value: &str) -> Setup {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Uses a cache that nothing else has filled, in place of the one that all tests share.
    pub(crate) fn private_cache(mut self) -> Setup {
        self.private_cache = true;
        self
    }

    /// Starts the host and deploys the app.
    pub(crate) async fn start(self) -> TestHost {
        self.try_start().await.unwrap_or_else(|error| panic!("the host does not start: {error}"))
    }

    /// As [`start`](Self::start), where it may be refused; answers what a person is told.
    pub(crate) async fn try_start(mut self) -> Result<TestHost, String> {
        let folder = tempfile::tempdir().expect("the system has a folder for temporary files");
        if self.config.cache.dir.is_none() {
            self.config.cache.dir = Some(match self.private_cache {
                true => folder.path().join("cache"),
                false => repository().join("target/tests-cache"),
            });
        }
        for (path, content) in &self.files {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a file lies in a folder"))
                .expect("folders can be made");
            std::fs::write(path, content).expect("files can be written");
        }
        let path = match self.app {
            AppIs::At(path) => path,
            AppIs::Text(text) => {
                let path = folder.path().join(FILE_NAME);
                std::fs::write(&path, text).expect("files can be written");
                path
            }
        };
        let manifest = load(&path, &self.variables)?;
        let (logs, state) = (folder.path().join("logs"), folder.path().join("state"));
        let around = Surroundings { program: PROGRAM.into(), logs, state };
        let host = Host::start(self.config, around).await.map_err(|error| error.to_string())?;
        let files = manifest.files().map_err(|error| error.to_string())?;
        host.deployer.deploy(&manifest, &files, &|_| {}).await.map_err(|error| error.to_string())?;
        Ok(TestHost { host, folder })
    }
}

fn load(path: &Path, variables: &BTreeMap<String, String>) -> Result<Manifest, String> {
    let options = Options { profile: None, variables, environment: &|_| None, values_required: true };
    Manifest::load(path, &options).map_err(|error| error.to_string())
}

/// The program `tenon up` in a process of its own.
pub(crate) struct Program {
    pub(crate) process: tokio::process::Child,
    /// Where functions are served.
    pub(crate) address: SocketAddr,
    /// What it says to people from now on.
    pub(crate) says: Lines<BufReader<ChildStderr>>,
}

/// `tenon` with these arguments, about to start. `folder` takes its settings; the cache is that of all tests.
pub(crate) fn tenon(folder: &Path, settings: &str, arguments: &[&str]) -> tokio::process::Command {
    let cache = repository().join("target/tests-cache");
    let config = folder.join("host.toml");
    let own =
        if settings.contains("[cache]") { String::new() } else { format!("[cache]\ndir = {cache:?}\n") };
    let settings = format!("{settings}\n{own}");
    std::fs::write(&config, settings).expect("files can be written");
    let mut command = tokio::process::Command::new(PROGRAM);
    command.args(arguments).arg("--config").arg(config).current_dir(folder).kill_on_drop(true);
    command.env_remove("TENON_LOG").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// `tenon up`, to be given to [`tenon`].
pub(crate) const UP: [&str; 3] = ["up", "--listen", "127.0.0.1:0"];

impl Program {
    /// Serves the app in `folder`, and waits until it does.
    pub(crate) async fn start(folder: &Path, settings: &str) -> Program {
        let settings = format!("{settings}\n[listen]\nadmin = \"off\"\n");
        Program::of(tenon(folder, &settings, &UP)).await.0
    }

    /// Starts `command`, a `tenon up`, and waits until it serves. Answers also what it has said until then.
    pub(crate) async fn of(mut command: tokio::process::Command) -> (Program, String) {
        let mut process = command.spawn().expect("the program starts");
        let stderr = process.stderr.take().expect("standard error is piped");
        let mut says = BufReader::new(stderr).lines();
        let mut said = String::new();
        loop {
            let line = says.next_line().await.expect("the program speaks UTF-8");
            let line = line.unwrap_or_else(|| panic!("the program ended:\n{said}"));
            let address = line.split_once("Serving http://").map(|(_, address)| address.trim().parse());
            if let Some(address) = address {
                return (Program { process, address: address.expect("an address"), says }, said);
            }
            said += &format!("{line}\n");
        }
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let id = self.process.id().and_then(|id| i32::try_from(id).ok()).expect("the program runs");
        let process = rustix::process::Pid::from_raw(id).expect("a process has an id");
        rustix::process::kill_process(process, signal).expect("our own process can be signalled");
    }

    /// Waits until the program says a line with `text`.
    pub(crate) async fn says(&mut self, text: &str) {
        while let Some(line) = self.says.next_line().await.expect("the program speaks UTF-8") {
            if line.contains(text) {
                return;
            }
        }
        panic!("the program ended without a word of `{text}`");
    }

    /// How the program ended, and what it still said.
    pub(crate) async fn ended(mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        while let Some(line) = self.says.next_line().await.expect("the program speaks UTF-8") {
            said += &format!("{line}\n");
        }
        (self.process.wait().await.expect("the program ends").code(), said)
    }
}

/// What a host answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// A header's value; empty where it is not.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("the header is plain"))
    }

    /// The answer, which must have this status.
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Answer {
        assert_eq!(self.status.as_u16(), status, "{:?}: {}", self.headers, self.text());
        self
    }

    /// The error's detail; the answer must be problem details with this status and name.
    #[track_caller]
    pub(crate) fn problem(self, status: u16, name: &str) -> String {
        let answer = self.expect(status);
        assert_eq!(answer.header("content-type"), "application/problem+json", "{}", answer.text());
        let problem = answer.json();
        assert_eq!((&problem["title"], &problem["status"]), (&name.into(), &status.into()), "{problem}");
        problem["detail"].as_str().expect("a problem has a detail").to_owned()
    }
}

/// A request as a client sends it.
pub(crate) fn request(
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri(path).header("host", "tenon.test");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::new(body.into())).expect("the request is one")
}

/// One request on a connection of its own.
pub(crate) async fn exchange(address: SocketAddr, request: Request<Full<Bytes>>) -> hyper::Result<Answer> {
    let stream = TcpStream::connect(address).await.expect("the address accepts connections");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await;
    let answer = match response {
        Ok(response) => {
            let (parts, body) = response.into_parts();
            body.collect().await.map(|body| Answer {
                status: parts.status,
                headers: parts.headers,
                body: body.to_bytes(),
            })
        }
        Err(error) => Err(error),
    };
    connection.abort();
    answer
}

/// Everything up to the end of the connection.
pub(crate) async fn rest(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    // A reset ends it as well.
    let _ = stream.read_to_end(&mut text).await;
    String::from_utf8_lossy(&text).into_owned()
}

/// An input or output tensor in the JSON form of the Open Inference Protocol.
pub(crate) fn tensor(
    name: &str,
    datatype: &str,
    shape: &[usize],
    data: impl Into<serde_json::Value>,
) -> serde_json::Value {
    serde_json::json!({ "name": name, "datatype": datatype, "shape": shape, "data": data.into() })
}
