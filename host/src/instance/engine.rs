//! The two wasmtime engines, their linkers, and the clock that interrupts guests.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::Duration;

use wasmtime::component::Linker;
use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, WasmBacktraceDetails,
};

use super::state::State;
use crate::backend::pool::STACK_BYTES;
use crate::nn;

/// How guests are interrupted: every tick, each running guest looks at its deadline and yields.
pub const TICK: Duration = Duration::from_millis(1);

/// Which engine a component needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flavor {
    /// Without the component model's concurrency: a call costs a third.
    Plain,
    /// With it, for components that import or export async functions.
    Concurrent,
}

impl Flavor {
    pub fn name(self) -> &'static str {
        match self {
            Flavor::Plain => "plain",
            Flavor::Concurrent => "concurrent",
        }
    }
}

/// What the engines are sized for.
#[derive(Clone, Debug)]
pub struct EngineLimits {
    /// Instances at once, over all functions.
    pub instances: u32,
    /// The most that one linear memory may grow to, in bytes.
    pub memory_bytes: usize,
    pub table_elements: usize,
    /// Memory that a used slot keeps, in bytes, so that its next instance has no page faults. Only where the
    /// kernel tells which pages were written, and nothing is ever swapped out; see [`resets_by_pagemap`].
    pub keep_resident_bytes: usize,
    /// Whether the operator allows the page map to be used at all.
    pub pagemap_scan: bool,
    /// Whether guests' instructions are counted, which makes them slower.
    pub fuel: bool,
}

/// An engine with everything that a component may import.
pub struct Linked {
    pub engine: Engine,
    pub linker: Linker<State>,
}

/// Both engines; the concurrent one is made when the first component needs it.
pub struct Engines {
    limits: EngineLimits,
    plain: Linked,
    concurrent: OnceLock<Linked>,
    ticker: Arc<Ticker>,
}

impl Engines {
    /// # Errors
    /// Where the system refuses the address space that the slots reserve.
    pub fn new(limits: EngineLimits) -> wasmtime::Result<Engines> {
        let plain = link(Flavor::Plain, &limits)?;
        let ticker = Ticker::start(plain.engine.clone())?;
        Ok(Engines { limits, plain, concurrent: OnceLock::new(), ticker })
    }

    /// # Errors
    /// Where the concurrent engine cannot be made.
    pub fn linked(&self, flavor: Flavor) -> wasmtime::Result<&Linked> {
        match flavor {
            Flavor::Plain => Ok(&self.plain),
            Flavor::Concurrent => {
                if let Some(linked) = self.concurrent.get() {
                    return Ok(linked);
                }
                let linked = link(Flavor::Concurrent, &self.limits)?;
                Ok(self.concurrent.get_or_init(|| {
                    // Two first components at once: the loser's engine is dropped, the winner's ticks.
                    let _ = self.ticker.shared.concurrent.set(linked.engine.clone());
                    linked
                }))
            }
        }
    }

    /// Whether guests' instructions are counted.
    pub fn count_fuel(&self) -> bool {
        self.limits.fuel
    }

    /// Keeps the clock ticking for as long as the guard is held.
    pub fn running(&self) -> Running {
        self.ticker.running()
    }
}

/// Whether a used slot can be reset by asking the kernel which of its pages were written.
///
/// wasmtime 48 does not reset a page that was written and then swapped out, so the next instance could read it:
/// the page map is used only where there is no swap at all. Returns why not.
pub fn resets_by_pagemap() -> Result<(), &'static str> {
    if !PoolingAllocationConfig::is_pagemap_scan_available() {
        return Err("the kernel has no PAGEMAP_SCAN (Linux 6.7 and later do)");
    }
    let swaps = std::fs::read_to_string("/proc/swaps").map_err(|_| "/proc/swaps cannot be read")?;
    if swaps.lines().count() > 1 { Err("the system has swap") } else { Ok(()) }
}

fn link(flavor: Flavor, limits: &EngineLimits) -> wasmtime::Result<Linked> {
    let engine = Engine::new(
        config(flavor, limits.fuel).allocation_strategy(InstanceAllocationStrategy::Pooling(slots(limits))),
    )?;
    let mut linker = Linker::new(&engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    nn::add_to_linker(&mut linker)?;
    super::outgoing::bound_p2(&mut linker)?;
    if flavor == Flavor::Concurrent {
        wasmtime_wasi::p3::add_to_linker(&mut linker)?;
        wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
        super::outgoing::bound_p3(&mut linker)?;
    }
    super::spin::add_to_linker(&mut linker, flavor)?;
    Ok(Linked { engine, linker })
}

/// The settings of an engine that compiles. It has no slots to run in: its code runs on an engine that has them.
pub fn config(flavor: Flavor, fuel: bool) -> Config {
    let mut config = Config::new();
    config
        .wasm_component_model(true)
        .concurrency_support(flavor == Flavor::Concurrent)
        .epoch_interruption(true)
        .consume_fuel(fuel)
        .memory_init_cow(true)
        // A short inference runs on the guest's fiber, below the guest's own frames.
        .async_stack_size(STACK_BYTES + (1 << 20))
        .max_wasm_stack(512 << 10)
        // Results must not depend on the processor.
        .relaxed_simd_deterministic(true)
        .wasm_backtrace_details(WasmBacktraceDetails::Disable);
    config
}

/// What one component may consist of. A Rust component has one memory, one or two tables and up to a dozen core
/// instances, most of which are the shims between it and its imports.
const CORE_INSTANCES: u32 = 32;
const MEMORIES: u32 = 2;
const TABLES: u32 = 8;

fn slots(limits: &EngineLimits) -> PoolingAllocationConfig {
    let n = limits.instances;
    let mut slots = PoolingAllocationConfig::new();
    slots
        .total_component_instances(n)
        // Every instance may have its most at once: no component can use up what others need.
        .total_core_instances(n.saturating_mul(CORE_INSTANCES))
        .total_memories(n.saturating_mul(MEMORIES))
        .total_tables(n.saturating_mul(TABLES))
        .total_stacks(n.saturating_mul(2))
        .max_memory_size(limits.memory_bytes)
        .max_core_instances_per_component(CORE_INSTANCES)
        .max_memories_per_component(MEMORIES)
        .max_tables_per_component(TABLES)
        .table_elements(limits.table_elements);
    if limits.pagemap_scan && resets_by_pagemap().is_ok() {
        slots
            .pagemap_scan(Enabled::Yes)
            .linear_memory_keep_resident(limits.keep_resident_bytes)
            .table_keep_resident(64 << 10);
    }
    slots
}

/// A thread that ticks while guests run, and sleeps while none does.
struct Ticker {
    shared: Arc<TickerShared>,
    thread: Thread,
}

struct TickerShared {
    running: AtomicUsize,
    closed: std::sync::atomic::AtomicBool,
    concurrent: OnceLock<Engine>,
}

/// The number of ticks without a guest after which the ticker sleeps: under load it must not be woken for
/// every request.
const IDLE_TICKS: u32 = 20;

impl Ticker {
    fn start(plain: Engine) -> wasmtime::Result<Arc<Ticker>> {
        let shared = Arc::new(TickerShared {
            running: AtomicUsize::new(0),
            closed: false.into(),
            concurrent: OnceLock::new(),
        });
        let ticking = Arc::clone(&shared);
        let thread = thread::Builder::new().name("ticker".to_owned()).spawn(move || ticking.tick(&plain))?;
        Ok(Arc::new(Ticker { shared, thread: thread.thread().clone() }))
    }

    fn running(self: &Arc<Self>) -> Running {
        // The ticker may be asleep only when the count was zero. Unparking a thread that is awake is cheap.
        if self.shared.running.fetch_add(1, Ordering::SeqCst) == 0 {
            self.thread.unpark();
        }
        Running(Arc::clone(self))
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

impl TickerShared {
    fn tick(&self, plain: &Engine) {
        let mut idle = 0;
        while !self.closed.load(Ordering::SeqCst) {
            if self.running.load(Ordering::SeqCst) > 0 {
                idle = 0;
            } else if idle < IDLE_TICKS {
                idle += 1;
            } else {
                thread::park();
                idle = 0;
                continue;
            }
            thread::sleep(TICK);
            plain.increment_epoch();
            if let Some(concurrent) = self.concurrent.get() {
                concurrent.increment_epoch();
            }
        }
    }
}

/// A guest that runs: the clock ticks for it.
pub struct Running(Arc<Ticker>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.shared.running.fetch_sub(1, Ordering::SeqCst);
    }
}
