//! `tenon conformance`: checks a server of the Open Inference Protocol point by point, and reports what it found.
//!
//! Any server may be checked, so nothing of this host's own side of the protocol is used, and nothing that the
//! server says is trusted.

mod binary;
mod check;
mod compression;
mod endpoints;
mod grpc;
mod http;
mod infer;
mod message;
mod model;
mod refusal;
mod report;
mod server;
mod tensor;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::progress::Progress;
use check::{Check, Finding, Problem, excerpt};
use grpc::Grpc;
use http::Http;
use model::Model;
use report::Report;
use server::Server;
use tensor::Tensor;

pub use report::Format;

/// The most models that are checked where none are named.
const MAX_MODELS: usize = 64;

/// Check a server of the Open Inference Protocol point by point, and report what it does otherwise
#[derive(clap::Args, Debug)]
pub struct ConformanceArgs {
    /// The server's address, such as `http://127.0.0.1:3000`
    #[arg(value_name = "URL")]
    pub url: String,
    /// The address of its gRPC; without it, that of the URL is tried
    #[arg(long, value_name = "HOST:PORT")]
    pub grpc: Option<String>,
    /// A model to check; without it, those of the repository's index
    #[arg(long = "model", value_name = "NAME")]
    pub models: Vec<String>,
    /// An inference request in JSON that the model takes, where it refuses what is made from its metadata
    #[arg(long = "request", value_name = "MODEL=FILE")]
    pub requests: Vec<String>,
    /// Unload each model and load it again
    #[arg(long)]
    pub control: bool,
    /// How long the server may take for an answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub timeout: u64,
    /// The form of the report
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Write the report to this file
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Fail also where a check fails that the core protocol does not require
    #[arg(long)]
    pub strict: bool,
}

/// Checks the server, and prints the report or writes it to a file.
///
/// # Errors
/// No server answers, there are no models to check, or checks failed that may not.
pub fn run(args: &ConformanceArgs, progress: &Progress) -> anyhow::Result<()> {
    let report = examine(args, progress)?;
    write(&report.shown(args.format), args.output.as_deref())?;
    match report.failures(args.strict) {
        0 => Ok(()),
        1 => bail!("a check failed"),
        failures => bail!("{failures} checks failed"),
    }
}

/// Runs every check.
fn examine(args: &ConformanceArgs, progress: &Progress) -> anyhow::Result<Report> {
    let given = requests(&args.requests)?;
    let server = Arc::new(connect(args)?);
    let names = models(args, &given, &server)?;
    let mut findings = Vec::new();
    let mut step = |what: &str, check: &dyn Fn() -> Vec<Finding>| {
        let step = progress.step("Checking", excerpt(what));
        let found = check();
        step.done_with(tally(&found));
        findings.extend(found);
    };
    let server_checks: [&[Check<Server>]; 2] = [server::CHECKS, grpc::server::CHECKS];
    step("server", &|| server_checks.iter().flat_map(|checks| check::run(checks, &*server, None)).collect());
    let mut facts = Vec::new();
    for name in &names {
        let model = Model::new(Arc::clone(&server), name, given.get(name).cloned());
        step(name, &|| {
            MODEL_CHECKS.iter().flat_map(|checks| check::run(checks, &model, Some(name))).collect()
        });
        facts.push(report::Model::of(&model));
    }
    let after: [&[Check<Server>]; 2] = [server::AFTER, grpc::server::AFTER];
    step("server once more", &|| {
        after.iter().flat_map(|checks| check::run(checks, &*server, None)).collect()
    });
    Ok(Report::new(&server, facts, findings))
}

/// What is checked of each model, in this order: what breaks a server comes after what it is for.
const MODEL_CHECKS: [&[Check<Model>]; 7] = [
    endpoints::CHECKS,
    infer::CHECKS,
    binary::CHECKS,
    compression::CHECKS,
    grpc::infer::CHECKS,
    grpc::refusal::CHECKS,
    refusal::CHECKS,
];

fn tally(findings: &[Finding]) -> String {
    let failed = findings.iter().filter(|finding| finding.has_failed()).count();
    format!("{} of {} failed", failed, findings.len())
}

/// The server at the URL, which must answer.
fn connect(args: &ConformanceArgs) -> anyhow::Result<Server> {
    let timeout = Duration::from_secs(args.timeout);
    let http = Http::new(&args.url, timeout)?;
    if let Err(Problem::Wrong { got, .. } | Problem::Skip(got)) = http.get("/v2/health/live") {
        bail!("no server answers at {}: {got}", args.url);
    }
    let metadata = http.get("/v2").and_then(http::Answer::ok).and_then(|answer| answer.json());
    let grpc = match (&args.grpc, http.base().strip_prefix("http://")) {
        (Some(address), _) => Ok(Grpc::connect(address, timeout)?),
        (None, Some(authority)) if !authority.contains('/') => Grpc::connect(authority, timeout)
            .map_err(|_| Problem::skip("there is no gRPC at the URL; name its address with --grpc")),
        _ => Err(Problem::skip("no address for gRPC was given with --grpc")),
    };
    Ok(Server { http, grpc, metadata, may_control: args.control })
}

/// The models to check.
fn models(
    args: &ConformanceArgs,
    given: &BTreeMap<String, Vec<Tensor>>,
    server: &Server,
) -> anyhow::Result<Vec<String>> {
    let mut names = args.models.clone();
    if names.is_empty() {
        let index = server.index().unwrap_or_default();
        names.extend(index.into_iter().map(|(name, _)| name).filter(|name| !name.is_empty()));
        names.sort_unstable();
        names.truncate(MAX_MODELS);
    }
    names.extend(given.keys().cloned());
    let mut known = std::collections::HashSet::new();
    names.retain(|name| known.insert(name.clone()));
    if names.is_empty() {
        bail!("the server has no repository index with models: name those to check with --model");
    }
    Ok(names)
}

/// The inputs of the requests that were given, by model.
fn requests(given: &[String]) -> anyhow::Result<BTreeMap<String, Vec<Tensor>>> {
    let read = |given: &String| {
        let (name, path) = given
            .split_once('=')
            .with_context(|| format!("`{given}` names no file: write --request model=request.json"))?;
        let text = std::fs::read(path).with_context(|| format!("`{path}` cannot be read"))?;
        let request: Value =
            serde_json::from_slice(&text).with_context(|| format!("`{path}` is not JSON"))?;
        let inputs = request.get("inputs").and_then(Value::as_array);
        let inputs = inputs.filter(|inputs| !inputs.is_empty());
        let inputs =
            inputs.with_context(|| format!("`{path}` is no inference request: it has no `inputs`"))?;
        let inputs: Result<Vec<_>, _> = inputs.iter().map(Tensor::read_json).collect();
        let inputs = inputs.map_err(|told| anyhow::anyhow!("`{path}`: {told}"))?;
        Ok((name.to_owned(), inputs))
    };
    given.iter().map(read).collect()
}

fn write(text: &str, output: Option<&Path>) -> anyhow::Result<()> {
    match output {
        None => print!("{text}"),
        Some(path) => {
            std::fs::write(path, text).with_context(|| format!("`{}` cannot be written", path.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn ids_are_unique() {
        let mut ids: Vec<&str> =
            MODEL_CHECKS.iter().flat_map(|checks| checks.iter()).map(|check| check.id).collect();
        let servers = [server::CHECKS, server::AFTER, grpc::server::CHECKS, grpc::server::AFTER];
        ids.extend(servers.iter().flat_map(|checks| checks.iter()).map(|check| check.id));
        let count = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), count);
    }

    /// The report on a server that answers everything with this.
    fn examined(status: u16, body: &'static str) -> Report {
        use std::io::{BufRead as _, BufReader, Read as _, Write as _};

        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = BufReader::new(stream.unwrap());
                let lines = stream.by_ref().lines().map_while(Result::ok);
                let lines = lines.take_while(|line| !line.is_empty()).map(|line| line.to_ascii_lowercase());
                let lengths = lines.filter_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
                let length: u64 = lengths.last().unwrap_or(0);
                _ = stream.by_ref().take(length).read_to_end(&mut Vec::new());
                let length = body.len();
                let head =
                    format!("HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
                _ = stream.get_mut().write_all((head + body).as_bytes());
            }
        });
        let arguments = Arguments::parse_from(["conformance", &url, "--model", "m", "--timeout", "2"]);
        examine(&arguments.args, &Progress::stderr(true)).unwrap()
    }

    #[derive(clap::Parser)]
    struct Arguments {
        #[command(flatten)]
        args: ConformanceArgs,
    }

    #[test]
    fn a_server_that_answers_nonsense_fails() {
        let check = |status: u16, body: &'static str| {
            let report = examined(status, body);
            let failures = report.failures(false);
            assert!((3..70).contains(&failures), "{failures} failures:\n{}", report.shown(Format::Text));
        };
        check(200, "{}");
        check(500, "\x1b[31m no");
        check(
            200,
            r#"{"name":"m","version":"1","platform":"p","extensions":[],
            "inputs":[{"name":"x","datatype":"FP32","shape":[4611686018427387904,4611686018427387904]}],
            "outputs":[{"name":"y","datatype":"FP32","shape":[1000000000000],"data":[]}]}"#,
        );
        check(
            200,
            r#"{"name":"m","model_name":"m","version":"1","platform":"p","extensions":["statistics"],
            "inputs":[{"name":"x","datatype":"FP32","shape":[]}],
            "outputs":[{"name":"y","datatype":"FP32","shape":[1],"data":[1]}]}"#,
        );
    }

    #[test]
    fn a_server_that_is_not_there_is_said_so() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let told = |arguments: &[&str]| {
            let arguments = Arguments::parse_from([&["conformance"], arguments].concat());
            examine(&arguments.args, &Progress::stderr(true)).err().unwrap().to_string()
        };
        assert!(told(&[&url]).contains("no server answers"));
        assert!(told(&["127.0.0.1:1"]).contains("http://host:port"));
    }

    #[test]
    fn requests_come_from_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.json");
        let check = |text: &str, expected: Result<usize, &str>| {
            std::fs::write(&path, text).unwrap();
            match (requests(&[format!("m={}", path.display())]), expected) {
                (Ok(given), Ok(inputs)) => assert_eq!(given["m"].len(), inputs),
                (Err(error), Err(expected)) => assert!(format!("{error:#}").contains(expected), "{error:#}"),
                (given, expected) => panic!("{given:?}, not {expected:?}"),
            }
        };
        check(r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1]}]}"#, Ok(1));
        check(r#"{"inputs":[]}"#, Err("no `inputs`"));
        check("{", Err("not JSON"));
        check(r#"{"inputs":[{"name":"x"}]}"#, Err("`x`"));
        assert!(requests(&["m".to_owned()]).unwrap_err().to_string().contains("--request"));
        assert!(requests(&["m=/no/such".to_owned()]).unwrap_err().to_string().contains("/no/such"));
    }
}
