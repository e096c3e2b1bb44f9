//! Starts of the servers, each with one model.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::request::{Model, Protocol};
use crate::{Server, free_address, load, repository};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Tenon,
    MlServer,
    BentoMl,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Tenon => "tenon",
            Kind::MlServer => "MLServer",
            Kind::BentoMl => "BentoML",
        }
    }

    pub fn protocols(self) -> &'static [Protocol] {
        match self {
            Kind::Tenon => &[Protocol::Json, Protocol::Binary, Protocol::Grpc],
            Kind::MlServer => &[Protocol::Json, Protocol::Grpc],
            Kind::BentoMl => &[Protocol::NestedJson],
        }
    }
}

/// Where the programs are.
pub struct Programs {
    pub tenon: PathBuf,
    pub onnxruntime: PathBuf,
    pub peers: PathBuf,
}

/// A server that has answered its first call.
pub struct Peer {
    server: Server,
    grpc: SocketAddr,
    /// From the start of its process.
    pub first_answer: Duration,
}

impl Peer {
    /// Starts it and calls it until it answers.
    ///
    /// # Errors
    /// Where it does not answer within two minutes.
    pub fn start(
        kind: Kind,
        programs: &Programs,
        model: &Model,
        batching: &str,
        cache: Option<&Path>,
    ) -> anyhow::Result<Peer> {
        let (address, mut grpc) = (free_address()?, free_address()?);
        let folder = tempfile::tempdir()?;
        let mut command = match kind {
            Kind::Tenon => {
                grpc = address;
                tenon(programs, model, batching, cache, address, folder.path())?
            }
            Kind::MlServer => mlserver(programs, model, address, grpc, folder.path()),
            Kind::BentoMl => bentoml(programs, address),
        };
        command.env("PEER_MODEL", &model.path).env("PEER_THREADS", model.threads.to_string());
        let request = kind.protocols()[0].request(model);
        let started = Instant::now();
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.with_context(|| format!("cannot start {command:?}"))?;
        let server = Server { child, address, _app: Some(folder) };
        let mut peer = Peer { server, grpc, first_answer: Duration::ZERO };
        while !load::answered(address, &request) {
            anyhow::ensure!(started.elapsed() < Duration::from_secs(120), "no answer from {command:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
        peer.first_answer = started.elapsed();
        Ok(peer)
    }

    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    pub fn address(&self, protocol: Protocol) -> SocketAddr {
        if protocol == Protocol::Grpc { self.grpc } else { self.server.address }
    }

    /// Resident memory of all its processes in KiB.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn memory(&self) -> anyhow::Result<u64> {
        load::tree(self.pid())?.iter().map(|(pid, _)| Ok(load::process_memory(*pid)?.0)).sum()
    }
}

impl Drop for Peer {
    /// Ends its workers too, the supervisor first so that it starts none anew.
    fn drop(&mut self) {
        let pids = load::tree(self.pid()).unwrap_or_default();
        let pids = pids.iter().map(|(pid, _)| pid.to_string());
        let _ = Command::new("kill").arg("-9").args(pids).stderr(Stdio::null()).status();
    }
}

fn tenon(
    programs: &Programs,
    model: &Model,
    batching: &str,
    cache: Option<&Path>,
    address: SocketAddr,
    folder: &Path,
) -> anyhow::Result<Command> {
    let manifest = format!(
        "spin_manifest_version = 2\n[application]\nname = \"bench\"\n[component.model.tool.tenon.models.model]\n\
         path = {:?}\nbackend = \"onnxruntime\"\n{batching}\n",
        model.path
    );
    std::fs::write(folder.join("spin.toml"), manifest)?;
    let cache = cache.map(|cache| format!("[cache]\ndir = {cache:?}\n")).unwrap_or_default();
    let config = format!(
        "[listen]\nhttp = \"{address}\"\nadmin = \"off\"\n{cache}[inference.onnxruntime]\nlibrary = {:?}\n",
        programs.onnxruntime
    );
    std::fs::write(folder.join("host.toml"), config)?;
    let mut command = Command::new(&programs.tenon);
    command.arg("--config").arg(folder.join("host.toml")).args(["up", "-f"]).arg(folder);
    Ok(command)
}

fn mlserver(
    programs: &Programs,
    model: &Model,
    address: SocketAddr,
    grpc: SocketAddr,
    folder: &Path,
) -> Command {
    let mut command = Command::new(programs.peers.join("mlserver/bin/python"));
    command.arg(repository().join("benches/peers/serve_mlserver.py"));
    command.args([address.port().to_string(), grpc.port().to_string()]).arg(&model.path);
    command.current_dir(folder);
    command
}

fn bentoml(programs: &Programs, address: SocketAddr) -> Command {
    let mut command = Command::new(programs.peers.join("bentoml/bin/bentoml"));
    command.args(["serve", "service:Model", "--host", "127.0.0.1", "--port", &address.port().to_string()]);
    command.current_dir(repository().join("benches/peers")).env("BENTOML_DO_NOT_TRACK", "True");
    // Its workers start `python` by name.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{path}", programs.peers.join("bentoml/bin").display()));
    command
}
