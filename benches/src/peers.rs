//! Tenon against other servers of models, with the same ONNX Runtime below all, and against that alone.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::ValueEnum;
use tenon::backend::Cancel;
use tenon::tensor::{Datatype, Tensor};
use tokio::runtime::Runtime;

pub mod request;
mod server;

use request::{Model, Protocol};
use server::{Kind, Peer, Programs};

use crate::load::{self, Seen};
use crate::{With, columns, inference, repository};

const KINDS: [Kind; 3] = [Kind::Tenon, Kind::MlServer, Kind::BentoMl];
const BATCHING: &str = "batching = { max_size = 8, max_delay_us = 500 }";
/// As many as Tenon uses on the machine.
const THREADS: usize = 2;

#[derive(clap::Args)]
pub struct Setup {
    /// ONNX Runtime's library, of the version that the peers have.
    #[arg(long)]
    onnxruntime: PathBuf,
    /// A large model, made by `tests/models/make_mobilenet.py`.
    #[arg(long)]
    mobilenet: PathBuf,
    /// A model that gains from batches, made by `benches/peers/make_dense.py`.
    #[arg(long)]
    dense: Option<PathBuf>,
    /// Where `benches/peers/install` put the peers.
    #[arg(long, default_value = "target/peers")]
    peers: PathBuf,
    /// Only these tables.
    #[arg(long)]
    table: Vec<Table>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Table {
    /// The digits model on every server and protocol.
    Digits,
    /// The large model likewise.
    Large,
    /// Time to the first answer.
    Start,
    /// Batching on and off.
    Batching,
    /// The large model against a bare loop.
    Bare,
    /// Latency at half of the most requests per second.
    Half,
}

/// The tables that are asked for, or all.
///
/// # Errors
/// Where a server does not start or an answer is not what it should be.
pub fn run(with: &With, setup: &Setup, runtime: &Runtime) -> anyhow::Result<()> {
    let programs = Programs {
        tenon: with.tenon.canonicalize()?,
        onnxruntime: setup.onnxruntime.canonicalize()?,
        peers: setup.peers.canonicalize()?,
    };
    let digits = Model {
        name: "digits",
        path: repository().join("examples/digits/model/digits.onnx"),
        shape: vec![1, 1, 8, 8],
        threads: 1,
    };
    let path = setup.mobilenet.canonicalize()?;
    let large = Model { name: "mobilenet", path, shape: vec![1, 3, 224, 224], threads: THREADS };
    let bench = Measurement { with, programs: &programs, runtime };
    let wanted = |table| setup.table.is_empty() || setup.table.contains(&table);
    for (table, model) in [(Table::Digits, &digits), (Table::Large, &large)] {
        if wanted(table) {
            bench.servers(model)?;
        }
    }
    if wanted(Table::Start) {
        bench.starts(&[&digits, &large])?;
    }
    if wanted(Table::Batching) {
        let dense = setup.dense.as_ref().map(|path| path.canonicalize()).transpose()?;
        let dense = dense.map(|path| Model { name: "dense", path, shape: vec![1, 1024], threads: 1 });
        let mut models = vec![(&digits, Protocol::Json), (&large, Protocol::Binary)];
        models.extend(dense.as_ref().map(|dense| (dense, Protocol::Binary)));
        bench.batching(&models)?;
    }
    if wanted(Table::Bare) {
        bench.bare(&large)?;
    }
    if wanted(Table::Half) {
        bench.half_load(&[(&digits, Protocol::Json), (&large, Protocol::Binary)])?;
    }
    Ok(())
}

struct Measurement<'a> {
    with: &'a With,
    programs: &'a Programs,
    runtime: &'a Runtime,
}

/// One protocol of one running server.
struct Row<'a> {
    peer: &'a Peer,
    model: &'a Model,
    protocol: Protocol,
    callers: usize,
}

impl Measurement<'_> {
    fn start(&self, kind: Kind, model: &Model, batching: &str) -> anyhow::Result<Peer> {
        Peer::start(kind, self.programs, model, batching, None)
    }

    /// Each row in turn, round after round; the medians.
    fn measured(&self, rows: &[Row]) -> anyhow::Result<Vec<Seen>> {
        let time = Duration::from_secs_f64(self.with.seconds);
        let mut rounds: Vec<Vec<Seen>> = vec![Vec::new(); rows.len()];
        for _ in 0..self.with.rounds.max(1) {
            for (row, seen) in rows.iter().zip(&mut rounds) {
                let request = row.protocol.request(row.model);
                let address = row.peer.address(row.protocol);
                let one = load::run(address, &request, row.callers, time, row.peer.pid());
                seen.push(self.runtime.block_on(one)?);
            }
        }
        Ok(rounds.into_iter().map(crate::median).collect())
    }

    fn servers(&self, model: &Model) -> anyhow::Result<()> {
        let peers: Vec<(Kind, Peer)> = KINDS
            .into_iter()
            .map(|kind| Ok((kind, self.start(kind, model, "")?)))
            .collect::<anyhow::Result<_>>()?;
        println!("\n{}:\n", model.name);
        println!(
            "| server | protocol | callers | req/s | p50 us | p99 us | server CPU us/req | failed | req/s, MLServer's REST JSON = 1 |"
        );
        println!("|---|---|---|---|---|---|---|---|---|");
        for callers in [1, 16, 64] {
            let rows: Vec<(Kind, Row)> = peers
                .iter()
                .flat_map(|(kind, peer)| {
                    let row = move |&protocol| (*kind, Row { peer, model, protocol, callers });
                    kind.protocols().iter().map(row)
                })
                .collect();
            let (kinds, rows): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
            let seen = self.measured(&rows)?;
            let base =
                kinds.iter().position(|kind| *kind == Kind::MlServer).map_or(1.0, |at| seen[at].per_second);
            for ((kind, row), seen) in kinds.iter().zip(&rows).zip(&seen) {
                let (name, protocol) = (kind.name(), row.protocol.name());
                println!(
                    "| {name} | {protocol} | {callers} | {} | {:.1} |",
                    columns(seen),
                    seen.per_second / base
                );
            }
        }
        println!("\n| server, after {} | resident MiB |\n|---|---|", model.name);
        for (kind, peer) in &peers {
            println!("| {} | {} |", kind.name(), peer.memory()? >> 10);
        }
        Ok(())
    }

    /// From the start of the process to the first answer: with a model that it has never seen, and again.
    fn starts(&self, models: &[&Model]) -> anyhow::Result<()> {
        println!("\n| server | model | new model, ms | again, ms |\n|---|---|---|---|");
        for model in models {
            for kind in KINDS {
                let (mut new, mut again) = (Vec::new(), Vec::new());
                for _ in 0..self.with.rounds.max(1) {
                    let cache = tempfile::tempdir()?;
                    for times in [&mut new, &mut again] {
                        let peer = Peer::start(kind, self.programs, model, "", Some(cache.path()))?;
                        times.push(peer.first_answer.as_secs_f64() * 1e3);
                    }
                }
                let (kind, new, again) = (kind.name(), median(new), median(again));
                println!("| {kind} | {} | {new:.0} | {again:.0} |", model.name);
            }
        }
        Ok(())
    }

    fn batching(&self, models: &[(&Model, Protocol)]) -> anyhow::Result<()> {
        println!("\n| model | ONNX Runtime alone, rows/s | in batches of 8 | gain |\n|---|---|---|---|");
        for (model, _) in models {
            let (mut one, mut eight) = (Vec::new(), Vec::new());
            for _ in 0..self.with.rounds.max(1) {
                one.push(self.backend(model, 1)?);
                eight.push(self.backend(model, 8)? * 8.0);
            }
            let (one, eight) = (median(one), median(eight));
            println!("| {} | {one:.0} | {eight:.0} | {:.2} |", model.name, eight / one);
        }
        println!(
            "\n| tenon | protocol | callers | req/s | p50 us | p99 us | server CPU us/req | failed | req/s, off = 1 |"
        );
        println!("|---|---|---|---|---|---|---|---|---|");
        for (model, protocol) in models {
            let (off, on) = (self.start(Kind::Tenon, model, "")?, self.start(Kind::Tenon, model, BATCHING)?);
            for callers in [16, 64] {
                let row = |peer| Row { peer, model, protocol: *protocol, callers };
                let seen = self.measured(&[row(&off), row(&on)])?;
                for (state, one) in ["off", "on"].iter().zip(&seen) {
                    let gain = one.per_second / seen[0].per_second;
                    let (model, protocol) = (model.name, protocol.name());
                    println!(
                        "| {model}, batching {state} | {protocol} | {callers} | {} | {gain:.2} |",
                        columns(one)
                    );
                }
            }
        }
        Ok(())
    }

    fn bare(&self, model: &Model) -> anyhow::Result<()> {
        let tenon = self.start(Kind::Tenon, model, "")?;
        let protocols = [Protocol::Binary, Protocol::Grpc];
        let (mut bare, mut served) = (Vec::new(), vec![Vec::new(); protocols.len()]);
        for _ in 0..self.with.rounds.max(1) {
            bare.push(self.backend(model, 1)?);
            for (protocol, served) in protocols.iter().zip(&mut served) {
                let (request, address) = (protocol.request(model), tenon.address(*protocol));
                let time = Duration::from_secs_f64(self.with.seconds);
                let seen = self.runtime.block_on(load::run(address, &request, 16, time, tenon.pid()))?;
                anyhow::ensure!(seen.failed == 0, "tenon did not answer as it should");
                served.push((seen.per_second, seen.cpu.as_secs_f64() * 1e6));
            }
        }
        let bare = median(bare);
        println!(
            "\n| {}, 16 callers | req/s | of the bare loop | server CPU us/req |\n|---|---|---|---|",
            model.name
        );
        println!(
            "| ONNX Runtime in a bare loop of {THREADS} threads | {bare:.1} | | {:.0} |",
            1e6 * THREADS as f64 / bare
        );
        for (protocol, served) in protocols.iter().zip(served) {
            let (rates, cpu): (Vec<_>, Vec<_>) = served.into_iter().unzip();
            let (rate, cpu) = (median(rates), median(cpu));
            let share = rate / bare * 100.0;
            println!("| tenon, {} | {rate:.1} | {share:.1} % | {cpu:.0} |", protocol.name());
        }
        Ok(())
    }

    /// How often the threads run the model in a second, with nothing around it.
    fn backend(&self, model: &Model, rows: usize) -> anyhow::Result<f64> {
        let derived = tempfile::tempdir()?;
        let library = Some(self.programs.onnxruntime.clone());
        let graph = inference::load("onnxruntime", library, &model.path, derived.path(), THREADS)?;
        let shape = [&[rows], &model.shape[1..]].concat();
        let elements: usize = shape.iter().product();
        let input = Tensor::new(Datatype::Fp32, shape, Bytes::from(vec![0; elements * 4]))?;
        let time = Duration::from_secs_f64(self.with.seconds);
        let count = |end: Instant| -> anyhow::Result<usize> {
            let mut count = 0;
            while Instant::now() < end {
                graph.run(vec![input.clone()], &Cancel::default())?;
                count += 1;
            }
            Ok(count)
        };
        count(Instant::now() + time / 10)?;
        let started = Instant::now();
        let counts: anyhow::Result<Vec<usize>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(|| count(started + time))).collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined.map(|count| count.unwrap_or_else(|_| anyhow::bail!("a run failed"))).collect()
        });
        Ok(counts?.iter().sum::<usize>() as f64 / started.elapsed().as_secs_f64())
    }

    fn half_load(&self, models: &[(&Model, Protocol)]) -> anyhow::Result<()> {
        const CALLERS: usize = 16;
        println!(
            "\n| tenon | protocol | req/s at most | req/s here | p50 us | p99 us | failed | p99, p50 = 1 |"
        );
        println!("|---|---|---|---|---|---|---|---|");
        for (model, protocol) in models {
            let peer = self.start(Kind::Tenon, model, "")?;
            let row = Row { peer: &peer, model, protocol: *protocol, callers: CALLERS };
            let most = self.measured(&[row])?.remove(0).per_second;
            let request = protocol.request(model);
            let mut rounds = Vec::new();
            for _ in 0..self.with.rounds.max(1) {
                let time = Duration::from_secs_f64(self.with.seconds);
                rounds.push(load::paced(
                    peer.address(*protocol),
                    &request,
                    CALLERS as u32,
                    most / 2.0,
                    time,
                )?);
            }
            rounds.sort_by_key(|seen| seen.p99);
            let seen = &rounds[rounds.len() / 2];
            let us = |time: Duration| time.as_secs_f64() * 1e6;
            let (p50, p99) = (us(seen.p50), us(seen.p99));
            println!(
                "| {} | {} | {most:.0} | {:.0} | {p50:.0} | {p99:.0} | {} | {:.1} |",
                model.name,
                protocol.name(),
                seen.per_second,
                seen.failed,
                p99 / p50
            );
        }
        Ok(())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
