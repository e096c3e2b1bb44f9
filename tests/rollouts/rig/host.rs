//! `tenon serve` as a process of its own, which can be killed and started again on what it kept.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use http::Method;

use super::api::{Control, To};
use super::image::digest_of;

/// No host takes so long to start.
const LONGEST: Duration = Duration::from_secs(60);
/// The only token of these hosts.
const TOKEN: &str = "proof-0123456789abcdef0123456789abcdef";

/// Something that lives, serves and can be killed: a host, or what stands in for one.
pub(crate) trait Life {
    /// Lives from here on, with what it kept.
    async fn start(&mut self) -> anyhow::Result<()>;
    /// Dies at once, in the middle of whatever it does.
    async fn kill(&mut self) -> anyhow::Result<()>;
    fn control(&self) -> Control;
    /// Where functions are served.
    fn address(&self) -> SocketAddr;
}

/// A host with a folder, a state and ports of its own.
pub(crate) struct Host {
    program: PathBuf,
    folder: PathBuf,
    address: SocketAddr,
    control: SocketAddr,
    /// Commands go to the socket, and not to the address with a token.
    by_socket: bool,
    process: Option<Child>,
}

impl Host {
    /// A host that is about to start, with further settings for `host.toml`. `folder` takes all that it keeps; the
    /// cache may be shared.
    ///
    /// # Errors
    /// Where the folder cannot be written.
    pub(crate) fn new(program: &Path, folder: &Path, cache: &Path, settings: &str) -> anyhow::Result<Host> {
        std::fs::create_dir_all(folder)?;
        let (address, control) = (free_address()?, free_address()?);
        let hash = digest_of(TOKEN.as_bytes());
        let hash = hash.trim_start_matches("sha256:");
        let settings = format!(
            "{settings}\n[listen]\nhttp = \"{address}\"\nadmin = \"off\"\n[cache]\ndir = {cache:?}\n\
             [control]\nlisten = \"{control}\"\n\
             [control.tokens.proof]\nsha256 = \"{hash}\"\nscopes = [\"read\", \"deploy\"]\n"
        );
        std::fs::write(folder.join("host.toml"), settings)?;
        let program = program.canonicalize().with_context(|| format!("no {}", program.display()))?;
        let folder = folder.to_owned();
        Ok(Host { program, folder, address, control, by_socket: false, process: None })
    }

    /// The same, with commands by the socket.
    pub(crate) fn by_socket(mut self) -> Host {
        self.by_socket = true;
        self
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.folder.join("host.toml")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// The id of the process.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// What it has said to people, its last life last.
    pub(crate) fn said(&self) -> String {
        let said = std::fs::read(self.folder.join("said")).unwrap_or_default();
        String::from_utf8_lossy(&said[said.len().saturating_sub(64 << 10)..]).into_owned()
    }

    /// Whether it takes commands and calls.
    async fn is_up(&self) -> bool {
        let health = self.control().send(Method::GET, "/v1/health", bytes::Bytes::new()).await;
        let listens = tokio::net::TcpStream::connect(self.address).await.is_ok();
        listens && health.is_ok_and(|(status, _)| status == 200)
    }
}

impl Life for Host {
    async fn start(&mut self) -> anyhow::Result<()> {
        ensure!(self.process.is_none(), "the host is alive");
        let said = std::fs::File::options().create(true).append(true).open(self.folder.join("said"))?;
        let mut command = Command::new(&self.program);
        command.args(["serve", "--config"]).arg(self.config()).arg("--state").arg(self.state());
        command.current_dir(&self.folder).env_remove("TENON_LOG").stdin(Stdio::null());
        let process = command.stdout(Stdio::null()).stderr(said).spawn();
        self.process = Some(process.context("the program does not start")?);
        let started = Instant::now();
        while !self.is_up().await {
            let process = self.process.as_mut().context("the host was killed")?;
            if let Some(status) = process.try_wait()? {
                bail!("the host ended with {status}:\n{}", self.said());
            }
            ensure!(started.elapsed() < LONGEST, "not up within {LONGEST:?}:\n{}", self.said());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    async fn kill(&mut self) -> anyhow::Result<()> {
        let mut process = self.process.take().context("the host is not alive")?;
        process.kill()?;
        process.wait()?;
        Ok(())
    }

    fn control(&self) -> Control {
        Control {
            to: match self.by_socket {
                true => To::Socket(self.state().join("tenon.sock")),
                false => To::Address(self.control, TOKEN.to_owned()),
            },
        }
    }

    fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
