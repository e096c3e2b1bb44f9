//! A closed loop of HTTP/1.1 callers, and what they saw.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A request that is sent again and again.
#[derive(Clone)]
pub struct Request {
    bytes: Vec<u8>,
}

impl Request {
    pub fn get(path: &str) -> Request {
        Request { bytes: format!("GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n").into_bytes() }
    }

    pub fn post(path: &str, content_type: &str, body: &[u8]) -> Request {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        Request { bytes: [head.as_bytes(), body].concat() }
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
    let cpu = process_cpu(server)?;
    let started = Instant::now();
    let (mut latencies, failed) = burst(address, request, callers, time).await?;
    let took = started.elapsed();
    let cpu = process_cpu(server)?.saturating_sub(cpu);
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
        tasks.spawn(caller(address, request.clone(), end));
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
    request: Request,
    end: Instant,
) -> anyhow::Result<(Vec<Duration>, usize)> {
    let mut stream = TcpStream::connect(address).await.context("cannot connect to the server")?;
    stream.set_nodelay(true)?;
    let (mut latencies, mut failed) = (Vec::new(), 0);
    let mut buffer = vec![0; 64 << 10];
    while Instant::now() < end {
        let started = Instant::now();
        stream.write_all(&request.bytes).await?;
        if answer(&mut stream, &mut buffer).await? != 200 {
            failed += 1;
        }
        latencies.push(started.elapsed());
    }
    Ok((latencies, failed))
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

/// Processor time that a process has used.
pub fn process_cpu(pid: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 =
        fields.get(11).context("utime")?.parse::<u64>()? + fields.get(12).context("stime")?.parse::<u64>()?;
    // Linux counts in hundredths of a second on every machine that this runs on.
    Ok(Duration::from_millis(ticks * 10))
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
