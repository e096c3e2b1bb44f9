//! The control API as any client speaks it: JSON over HTTP, by nothing but its description.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpStream, UnixStream};

use super::image::Image;

/// No command takes this long.
const LONGEST: Duration = Duration::from_secs(60);

/// Where a host takes commands.
#[derive(Clone, Debug)]
pub(crate) enum To {
    /// With a token.
    Address(SocketAddr, String),
    Socket(PathBuf),
}

/// A client of one host.
#[derive(Clone, Debug)]
pub(crate) struct Control {
    pub(crate) to: To,
}

/// What a host has said to a command.
#[derive(Debug)]
pub(crate) enum Reply {
    Done(Value),
    /// It did not do it: the status, and why.
    Refused(u16, Value),
}

/// A revision that can take traffic.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Prepared {
    pub(crate) revision: u64,
    pub(crate) digest: String,
    pub(crate) unchanged: bool,
    pub(crate) live: bool,
}

impl Reply {
    /// What was done.
    ///
    /// # Errors
    /// Where it was refused.
    pub(crate) fn done(self) -> anyhow::Result<Value> {
        match self {
            Reply::Done(value) => Ok(value),
            Reply::Refused(status, problem) => bail!("refused with {status}: {problem}"),
        }
    }

    /// What is worth a line of a log.
    pub(crate) fn brief(&self) -> String {
        match self {
            Reply::Done(value) => format!("done: {} at {}", value["phase"], value["weight"]),
            Reply::Refused(status, problem) => format!("refused with {status}: {}", problem["detail"]),
        }
    }
}

impl Control {
    /// One request.
    ///
    /// # Errors
    /// Where there is no answer that can be read: nobody knows then what was done.
    pub(crate) async fn send(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<(u16, Bytes)> {
        let exchange = async {
            match &self.to {
                To::Address(address, token) => {
                    let stream = TcpStream::connect(address).await.context("the control API is not there")?;
                    exchange(stream, method, path, Some(token), body).await
                }
                To::Socket(path_of_socket) => {
                    let stream = UnixStream::connect(path_of_socket).await;
                    exchange(stream.context("the control socket is not there")?, method, path, None, body)
                        .await
                }
            }
        };
        let answer = tokio::time::timeout(LONGEST, exchange).await;
        answer.with_context(|| format!("no answer to {path} within {LONGEST:?}"))?
    }

    /// A command or a question whose answer is JSON.
    ///
    /// # Errors
    /// Where nobody knows what was done.
    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Reply> {
        let body = body.map_or_else(Bytes::new, |body| body.to_string().into());
        let (status, body) = self.send(method, path, body).await?;
        let value = match body.is_empty() {
            true => Value::Null,
            false => serde_json::from_slice(&body).with_context(|| {
                format!("{path} is answered by {status} {}", String::from_utf8_lossy(&body))
            })?,
        };
        Ok(if (200..300).contains(&status) { Reply::Done(value) } else { Reply::Refused(status, value) })
    }

    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.ask(Method::GET, path, None).await?.done().with_context(|| path.to_owned())
    }

    /// One app, or `None` where it is not there.
    pub(crate) async fn app(&self, app: &str) -> anyhow::Result<Option<Value>> {
        match self.ask(Method::GET, &format!("/v1/apps/{app}"), None).await? {
            Reply::Done(status) => Ok(Some(status)),
            Reply::Refused(404, _) => Ok(None),
            refused @ Reply::Refused(..) => refused.done().map(Some),
        }
    }

    /// Waits until nothing of an app changes without a command, and answers its status.
    ///
    /// # Errors
    /// Where it goes on and on.
    pub(crate) async fn settled(&self, app: &str) -> anyhow::Result<Option<Value>> {
        let started = Instant::now();
        loop {
            let told = self.app(app).await?;
            if told.as_ref().is_none_or(rests) {
                return Ok(told);
            }
            ensure!(started.elapsed() < LONGEST, "the rollout does not settle: {told:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Uploads what the host lacks of an image.
    ///
    /// # Errors
    /// Where the host takes one of its blobs not.
    pub(crate) async fn upload(&self, image: &Image) -> anyhow::Result<()> {
        for (digest, bytes) in image.blobs() {
            let path = format!("/v1/blobs/{digest}");
            let (status, _) = self.send(Method::HEAD, &path, Bytes::new()).await?;
            if status == 200 {
                continue;
            }
            ensure!(status == 404, "HEAD {path} is answered by {status}");
            let (status, body) = self.send(Method::PUT, &path, bytes.clone()).await?;
            let text = String::from_utf8_lossy(&body).into_owned();
            ensure!((200..300).contains(&status), "PUT {path} is answered by {status} {text}");
        }
        Ok(())
    }

    /// Has an uploaded image made ready; `more` are further members of the request.
    ///
    /// # Errors
    /// Where nobody knows what was done.
    pub(crate) async fn prepare(
        &self,
        digest: &str,
        more: &Value,
    ) -> anyhow::Result<Result<Prepared, Value>> {
        let mut body = json!({ "source": { "uploaded": digest } });
        if let (Some(body), Some(more)) = (body.as_object_mut(), more.as_object()) {
            body.extend(more.clone());
        }
        let (status, answer) = self.send(Method::POST, "/v1/revisions", body.to_string().into()).await?;
        let text = std::str::from_utf8(&answer).context("the progress is not text")?;
        let last = text.trim_end().lines().last().unwrap_or_default();
        let last: Value = serde_json::from_str(last).with_context(|| format!("{status}: {text}"))?;
        if status >= 400 {
            return Ok(Err(last));
        }
        match last["event"].as_str() {
            Some("ready") => {
                let prepared = &last["prepared"];
                let revision = prepared["revision"].as_u64().context("a revision has a number")?;
                let told = prepared["digest"].as_str().unwrap_or_default().to_owned();
                ensure!(told == digest, "{told} was made ready, not {digest}");
                let is = |name: &str| prepared[name].as_bool().unwrap_or_default();
                Ok(Ok(Prepared { revision, digest: told, unchanged: is("unchanged"), live: is("live") }))
            }
            Some("failed") => Ok(Err(last["error"].clone())),
            // The stream broke off.
            _ => bail!("the progress ends with {last}"),
        }
    }

    /// Uploads an image and has it made ready.
    ///
    /// # Errors
    /// Where it is not ready.
    pub(crate) async fn ready(&self, image: &Image) -> anyhow::Result<Prepared> {
        self.upload(image).await?;
        match self.prepare(&image.digest, &json!({})).await? {
            Ok(prepared) => Ok(prepared),
            Err(problem) => bail!("not ready: {problem}"),
        }
    }

    /// Starts a rollout.
    ///
    /// # Errors
    /// Where nobody knows what was done.
    pub(crate) async fn start(&self, app: &str, revision: u64, plan: &Value) -> anyhow::Result<Reply> {
        let body = json!({ "revision": revision, "plan": plan });
        self.ask(Method::POST, &format!("/v1/apps/{app}/rollout"), Some(&body)).await
    }

    /// `promote`, `pause`, `resume` or `rollback`, with the members of the command.
    ///
    /// # Errors
    /// Where nobody knows what was done.
    pub(crate) async fn command(&self, app: &str, verb: &str, command: Value) -> anyhow::Result<Reply> {
        self.ask(Method::POST, &format!("/v1/apps/{app}/rollout/{verb}"), Some(&command)).await
    }

    /// Removes an app.
    ///
    /// # Errors
    /// Where nobody knows what was done.
    pub(crate) async fn remove(&self, app: &str) -> anyhow::Result<Reply> {
        self.ask(Method::DELETE, &format!("/v1/apps/{app}"), None).await
    }
}

/// The phase of the app's rollout; empty where there was none.
pub(crate) fn phase(told: &Value) -> &str {
    told["rollout"]["phase"].as_str().unwrap_or_default()
}

/// Whether nothing of the app changes without a command.
pub(crate) fn rests(told: &Value) -> bool {
    matches!(phase(told), "" | "succeeded" | "rolled_back" | "paused" | "inconclusive")
}

async fn exchange(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    method: Method,
    path: &str,
    token: Option<&String>,
    body: Bytes,
) -> anyhow::Result<(u16, Bytes)> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
    request = request.header("content-type", "application/json");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let answer = async {
        let answer = sender.send_request(request.body(Full::new(body))?).await?;
        let status = answer.status().as_u16();
        anyhow::Ok((status, answer.into_body().collect().await?.to_bytes()))
    };
    let answer = answer.await;
    connection.abort();
    answer
}
