//! A closed loop of HTTP/1.1 or gRPC callers, and what they saw.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A request that is sent again and again.
#[derive(Clone)]
pub struct Request {
    /// All of an HTTP/1.1 request, or the message of a gRPC call behind its prefix.
    bytes: Bytes,
    /// The method's path, of a gRPC call.
    grpc: Option<&'static str>,
}

impl Request {
    pub fn get(path: &str) -> Request {
        Request { bytes: format!("GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n").into(), grpc: None }
    }

    /// With these headers, one a line.
    pub fn get_with(path: &str, headers: &str) -> Request {
        Request {
            bytes: format!("GET {path} HTTP/1.1\r\nhost: bench\r\n{headers}\r\n\r\n").into(),
            grpc: None,
        }
    }

    pub fn post(path: &str, content_type: &str, body: &[u8]) -> Request {
        Request::post_with(path, &format!("content-type: {content_type}"), body)
    }

    /// With these headers, one a line.
    pub fn post_with(path: &str, headers: &str, body: &[u8]) -> Request {
        let length = body.len();
        let head =
            format!("POST {path} HTTP/1.1\r\nhost: bench\r\n{headers}\r\ncontent-length: {length}\r\n\r\n");
        Request { bytes: [head.as_bytes(), body].concat().into(), grpc: None }
    }

    /// A unary gRPC call with a protobuf message.
    pub fn grpc(path: &'static str, message: &[u8]) -> Request {
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
        Request { bytes: [&[0], &length[..], message].concat().into(), grpc: Some(path) }
    }
}

/// What the callers of one run saw.
#[derive(Clone, Debug)]
pub struct Seen {
    pub per_second: f64,
    pub p50: Duration,
    pub p99: Duration,
    pub failed: usize,
    /// Processor time of the server per request.
    pub cpu: Duration,
}

/// Sends the request from `callers` connections for `time`, after a tenth of it to warm up.
///
/// # Errors
/// Where a connection breaks.
pub async fn run(
    address: SocketAddr,
    request: &Request,
    callers: usize,
    time: Duration,
    server: u32,
) -> anyhow::Result<Seen> {
    burst(address, request, callers, time / 10).await?;
    let cpu = tree_cpu(server)?;
    let started = Instant::now();
    let (latencies, failed) = burst(address, request, callers, time).await?;
    let took = started.elapsed();
    seen(latencies, failed, took, tree_cpu(server)?.saturating_sub(cpu))
}

fn seen(mut latencies: Vec<Duration>, failed: usize, took: Duration, cpu: Duration) -> anyhow::Result<Seen> {
    if latencies.is_empty() {
        bail!("no request was answered");
    }
    latencies.sort_unstable();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    let count = latencies.len();
    Ok(Seen {
        per_second: count as f64 / took.as_secs_f64(),
        p50: at(0.5),
        p99: at(0.99),
        failed,
        cpu: cpu / u32::try_from(count).unwrap_or(u32::MAX),
    })
}

async fn burst(
    address: SocketAddr,
    request: &Request,
    callers: usize,
    time: Duration,
) -> anyhow::Result<(Vec<Duration>, usize)> {
    let end = Instant::now() + time;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..callers {
        let request = request.clone();
        tasks.spawn(async move {
            match request.grpc {
                Some(path) => grpc_caller(address, path, &request.bytes, end).await,
                None => caller(address, &request, end).await,
            }
        });
    }
    let (mut latencies, mut failed) = (Vec::new(), 0);
    while let Some(done) = tasks.join_next().await {
        let (mine, mine_failed) = done??;
        latencies.extend(mine);
        failed += mine_failed;
    }
    Ok((latencies, failed))
}

async fn caller(
    address: SocketAddr,
    request: &Request,
    end: Instant,
) -> anyhow::Result<(Vec<Duration>, usize)> {
    let mut caller = Caller::connect(address).await?;
    let (mut latencies, mut failed) = (Vec::new(), 0);
    while Instant::now() < end {
        let (took, status) = caller.call(request).await?;
        failed += usize::from(status != 200);
        latencies.push(took);
    }
    Ok((latencies, failed))
}

/// One HTTP/1.1 connection.
pub struct Caller {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Caller {
    /// # Errors
    /// Where nobody listens.
    pub async fn connect(address: SocketAddr) -> anyhow::Result<Caller> {
        let stream = TcpStream::connect(address).await.context("cannot connect to the server")?;
        stream.set_nodelay(true)?;
        Ok(Caller { stream, buffer: vec![0; 64 << 10] })
    }

    /// How long a call took, and the status that it was answered with.
    ///
    /// # Errors
    /// Where the connection breaks.
    pub async fn call(&mut self, request: &Request) -> anyhow::Result<(Duration, u16)> {
        let started = Instant::now();
        self.stream.write_all(&request.bytes).await?;
        let status = answer(&mut self.stream, &mut self.buffer).await?;
        Ok((started.elapsed(), status))
    }
}

/// One connection and one call at a time, as the HTTP/1.1 callers have.
async fn grpc_caller(
    address: SocketAddr,
    path: &str,
    message: &Bytes,
    end: Instant,
) -> anyhow::Result<(Vec<Duration>, usize)> {
    let stream = TcpStream::connect(address).await.context("cannot connect to the server")?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let (mut latencies, mut failed) = (Vec::new(), 0);
    while Instant::now() < end {
        let request = hyper::Request::post(format!("http://{address}{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(message.clone()))?;
        let started = Instant::now();
        let answer = sender.send_request(request).await?;
        let refused = answer.headers().get("grpc-status").cloned();
        let answer = answer.into_body().collect().await?;
        let status = answer.trailers().and_then(|trailers| trailers.get("grpc-status").cloned()).or(refused);
        latencies.push(started.elapsed());
        if status.is_none_or(|status| status != "0") {
            failed += 1;
        }
    }
    drop(sender);
    connection.abort();
    Ok((latencies, failed))
}

/// Sends the HTTP/1.1 request `per_second` times a second, evenly, from `callers` connections that take turns.
/// A call that had to wait for its connection counts from when it was due.
///
/// # Errors
/// Where a connection breaks.
pub fn paced(
    address: SocketAddr,
    request: &Request,
    callers: u32,
    per_second: f64,
    time: Duration,
) -> anyhow::Result<Seen> {
    let gap = Duration::from_secs_f64(1.0 / per_second);
    let started = Instant::now();
    // Threads and not tasks: tokio's timer counts in whole milliseconds.
    let done: anyhow::Result<Vec<_>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..callers)
            .map(|index| {
                scope.spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                    let first = started + gap * index;
                    runtime.block_on(paced_caller(address, request, first, gap * callers, started + time))
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| bail!("a caller failed"))).collect()
    });
    let (mut latencies, mut failed) = (Vec::new(), 0);
    for (mine, mine_failed) in done? {
        latencies.extend(mine);
        failed += mine_failed;
    }
    seen(latencies, failed, started.elapsed(), Duration::ZERO)
}

async fn paced_caller(
    address: SocketAddr,
    request: &Request,
    first: Instant,
    gap: Duration,
    end: Instant,
) -> anyhow::Result<(Vec<Duration>, usize)> {
    let mut stream = TcpStream::connect(address).await.context("cannot connect to the server")?;
    stream.set_nodelay(true)?;
    let (mut latencies, mut failed) = (Vec::new(), 0);
    let mut buffer = vec![0; 64 << 10];
    let mut due = first;
    while due < end {
        let early = due.saturating_duration_since(Instant::now());
        std::thread::sleep(early);
        let started = if early.is_zero() { due } else { Instant::now() };
        stream.write_all(&request.bytes).await?;
        if answer(&mut stream, &mut buffer).await? != 200 {
            failed += 1;
        }
        latencies.push(started.elapsed());
        due += gap;
    }
    Ok((latencies, failed))
}

/// Whether an HTTP/1.1 request is answered with 200 by now.
pub fn answered(address: SocketAddr, request: &Request) -> bool {
    use std::io::{Read, Write};
    let attempt = || -> std::io::Result<bool> {
        let mut stream = std::net::TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(&request.bytes)?;
        let mut head = [0; 12];
        stream.read_exact(&mut head)?;
        Ok(head.ends_with(b" 200"))
    };
    attempt().unwrap_or(false)
}

/// Reads one answer whole; its status.
async fn answer(stream: &mut TcpStream, buffer: &mut [u8]) -> anyhow::Result<u16> {
    let mut filled = 0;
    let head = loop {
        let read = stream.read(&mut buffer[filled..]).await?;
        if read == 0 {
            bail!("the server closed the connection");
        }
        filled += read;
        if let Some(end) = buffer[..filled].windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let text = std::str::from_utf8(&buffer[..head])?.to_ascii_lowercase();
    let status = text.split(' ').nth(1).context("no status")?.parse()?;
    let header = |name: &str| text.lines().find_map(|line| line.strip_prefix(name).map(str::trim));
    if let Some(length) = header("content-length:") {
        let total = head + length.parse::<usize>()?;
        while filled < total {
            filled += stream.read(&mut buffer[filled..]).await?;
        }
        return Ok(status);
    }
    while !buffer[..filled].ends_with(b"0\r\n\r\n") {
        let read = stream.read(&mut buffer[filled..]).await?;
        if read == 0 {
            bail!("the server closed the connection in a body");
        }
        filled += read;
    }
    Ok(status)
}

/// Processor time that a process and its descendants have used.
fn tree_cpu(pid: u32) -> anyhow::Result<Duration> {
    // Linux counts in hundredths of a second on every machine that this runs on.
    Ok(tree(pid)?.iter().map(|&(_, ticks)| Duration::from_millis(ticks * 10)).sum())
}

/// A process and its descendants: their ids and processor time in ticks.
///
/// # Errors
/// Where the process is not there.
pub fn tree(root: u32) -> anyhow::Result<Vec<(u32, u64)>> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    let mut ticks = HashMap::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let field = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
        let (Some(parent), Some(user), Some(system)) = (field(1), field(11), field(12)) else { continue };
        children.entry(u32::try_from(parent)?).or_default().push(pid);
        ticks.insert(pid, user + system);
    }
    let mut found = vec![(root, *ticks.get(&root).context("the server has ended")?)];
    let mut next = 0;
    while next < found.len() {
        let of = children.get(&found[next].0).map(Vec::as_slice).unwrap_or_default();
        found.extend(of.iter().filter_map(|pid| Some((*pid, *ticks.get(pid)?))));
        next += 1;
    }
    Ok(found)
}

/// Resident and private memory of a process, in KiB.
pub fn process_memory(pid: u32) -> anyhow::Result<(u64, u64)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| -> anyhow::Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such field")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    };
    Ok((field("VmRSS:")?, field("RssAnon:")?))
}
