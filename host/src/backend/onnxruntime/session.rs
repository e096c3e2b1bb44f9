//! Makes sessions of a model, as many as its callers need at once, and lends them out.

use std::io;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ort::AsPointer as _;
use ort::ep::{self, ExecutionProvider};
use ort::session::Session;
use ort::session::builder::{AutoDevicePolicy, GraphOptimizationLevel, SessionBuilder};

use super::derived::{self, Slot};
use super::library::Runtime;
use super::{contained, one_line};
use crate::backend::{Cancel, ExecutionTarget, InferError, ModelFile};

/// Weights of at least so many bytes go into the file that is mapped.
const MAPPED_BYTES: &str = "1024";
/// How often a waiting caller looks whether it was cancelled.
const CANCEL_CHECK: Duration = Duration::from_millis(10);

/// CUDA's execution provider, which lies in a library of its own beside ONNX Runtime's.
pub(super) struct Cuda;

impl ExecutionProvider for Cuda {
    const NAME: &'static str = "CUDAExecutionProvider";

    #[expect(unsafe_code, reason = "`ort` has a wrapper of its own only with its feature `cuda`")]
    fn register(&self, builder: &mut SessionBuilder) -> ort::Result<()> {
        let api = ort::api();
        let mut options = ptr::null_mut();
        // SAFETY: the options are made, used and released here, and released once; the builder's are its own.
        unsafe {
            ort::Error::result_from_status((api.CreateCUDAProviderOptions)(&raw mut options))?;
            let status = (api.SessionOptionsAppendExecutionProvider_CUDA_V2)(builder.ptr_mut(), options);
            let registered = ort::Error::result_from_status(status);
            (api.ReleaseCUDAProviderOptions)(options);
            registered
        }
    }
}

/// How to make a session of one model; all of them come out alike.
pub(super) struct Recipe {
    runtime: &'static Runtime,
    source: PathBuf,
    /// The optimised form on disk; `None` where there is none.
    derived: Option<Slot>,
    target: ExecutionTarget,
    /// Whether the shapes never vary. ONNX Runtime keeps a memory plan for every shape that it ever saw, so
    /// for others it must make none: a caller could grow them without bound.
    is_static: bool,
}

impl Recipe {
    /// The first session, and the recipe for more. Writes the optimised form where it is missing.
    pub(super) fn new(
        runtime: &'static Runtime,
        model: &ModelFile,
        is_static: bool,
    ) -> Result<(Recipe, Session), String> {
        let source = model.path.clone();
        let mut recipe = Recipe { runtime, source, derived: None, target: model.target, is_static };
        if model.target != ExecutionTarget::Cpu {
            let session = recipe.load_source()?;
            return Ok((recipe, session));
        }
        let slot = Slot::new(&model.derived, &model.digest, &runtime.key);
        let session = match recipe.restore(&slot) {
            Ok(session) => {
                recipe.derived = Some(slot);
                session
            }
            Err(error) => {
                // A model that is itself at fault fails again here, and its error is the one that counts.
                let session = recipe.load_source()?;
                tracing::warn!(
                    backend = super::NAME,
                    digest = model.digest,
                    error,
                    "the optimised model cannot be kept on disk: loads are slow and sessions take more memory"
                );
                session
            }
        };
        Ok((recipe, session))
    }

    /// Another session.
    fn session(&self) -> Result<Session, String> {
        // The files may have been removed or damaged since, while the sessions that map them go on.
        match &self.derived {
            Some(slot) if slot.is_intact() => self.open(&slot.graph()).or_else(|_| self.load_source()),
            _ => self.load_source(),
        }
    }

    /// The session of the optimised form in the slot, which is written where it is missing or damaged.
    fn restore(&self, slot: &Slot) -> Result<Session, String> {
        if slot.is_intact()
            && let Ok(session) = self.open(&slot.graph())
        {
            return Ok(session);
        }
        slot.build(|folder| self.save(folder).map_err(io::Error::other))
            .map_err(|error| error.to_string())?;
        self.open(&slot.graph())
    }

    /// Opens the optimised form: weights stay in the mapped file, laid out as the kernels want them.
    fn open(&self, graph: &Path) -> Result<Session, String> {
        commit(graph, || self.builder(GraphOptimizationLevel::Disable))
    }

    fn load_source(&self) -> Result<Session, String> {
        commit(&self.source, || {
            let mut builder = self.builder(GraphOptimizationLevel::All)?;
            if self.target == ExecutionTarget::Gpu {
                Cuda.register(&mut builder)?;
            }
            Ok(builder)
        })
    }

    /// Writes the optimised form into the folder.
    fn save(&self, folder: &Path) -> Result<(), String> {
        let prefix = "session.optimized_model_external_initializers";
        let session = commit(&self.source, || {
            let builder = self
                .builder(GraphOptimizationLevel::All)?
                .with_optimized_model_path(folder.join(derived::GRAPH))?
                .with_config_entry(format!("{prefix}_file_name"), derived::WEIGHTS)?
                .with_config_entry(format!("{prefix}_min_size_in_bytes"), MAPPED_BYTES)?
                .with_config_entry("session.save_external_prepacked_constant_initializers", "1")?;
            Ok(builder)
        });
        session.map(drop)
    }

    /// One thread a session: requests are what runs in parallel.
    fn builder(&self, level: GraphOptimizationLevel) -> ort::Result<SessionBuilder> {
        let builder = SessionBuilder::new(&self.runtime.environment)?
            .with_auto_device(AutoDevicePolicy::PreferCPU)?
            .with_execution_providers([ep::CPU::default()
                .with_arena_allocator(true)
                .build()
                .error_on_failure()])?
            .with_memory_pattern(self.is_static)?
            .with_parallel_execution(false)?
            .with_intra_threads(1)?
            .with_inter_threads(1)?
            .with_optimization_level(level)?;
        Ok(builder)
    }
}

/// Whether a session with the CUDA provider could be made, apart from the model.
pub(super) fn check_cuda(runtime: &Runtime) -> Result<(), String> {
    contained(|| Cuda.register(&mut SessionBuilder::new(&runtime.environment)?))
        .and_then(|registered| registered.map_err(|error| one_line(error.message())))
}

/// Loads the file. `ort` panics on types of inputs that it does not know.
fn commit(path: &Path, builder: impl FnOnce() -> ort::Result<SessionBuilder>) -> Result<Session, String> {
    let session = contained(|| builder()?.commit_from_file(path))?;
    session.map_err(|error| {
        let message = error.message().replace(&*path.to_string_lossy(), "the model");
        let folder = path.parent().unwrap_or(path).to_string_lossy();
        one_line(&message.replace(&*folder, ""))
    })
}

/// The sessions of one graph: made when needed, up to a limit, and then kept.
pub(super) struct Pool {
    recipe: Recipe,
    limit: usize,
    state: Mutex<State>,
    returned: Condvar,
}

struct State {
    /// The last one used comes first: its memory is warm.
    free: Vec<Session>,
    made: usize,
    /// Only who waits needs a wake-up, which is a call into the kernel.
    waiting: usize,
}

impl Pool {
    pub(super) fn new(recipe: Recipe, first: Session, limit: usize) -> Pool {
        let state = Mutex::new(State { free: vec![first], made: 1, waiting: 0 });
        Pool { recipe, limit: limit.max(1), state, returned: Condvar::new() }
    }

    /// Lends a session. Waits where as many run as may, but not longer than somebody waits for the run.
    pub(super) fn take(&self, cancel: &Cancel) -> Result<Lease<'_>, InferError> {
        let mut state = self.state();
        loop {
            if cancel.is_raised() {
                return Err(InferError::Cancelled);
            }
            if let Some(session) = state.free.pop() {
                return Ok(Lease { pool: self, session: Some(session) });
            }
            if state.made < self.limit {
                state.made += 1;
                break;
            }
            state.waiting += 1;
            let waited = self.returned.wait_timeout(state, CANCEL_CHECK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.waiting -= 1;
        }
        drop(state);
        let session = self.recipe.session().map_err(|reason| {
            self.state().made -= 1;
            InferError::Failed(format!("no further session of the model can be made: {reason}"))
        })?;
        Ok(Lease { pool: self, session: Some(session) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session that goes back to its pool when dropped.
pub(super) struct Lease<'a> {
    pool: &'a Pool,
    session: Option<Session>,
}

impl Deref for Lease<'_> {
    type Target = Session;

    fn deref(&self) -> &Session {
        self.session.as_ref().expect("only `drop` takes the session")
    }
}

impl DerefMut for Lease<'_> {
    fn deref_mut(&mut self) -> &mut Session {
        self.session.as_mut().expect("only `drop` takes the session")
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut state = self.pool.state();
        state.free.extend(self.session.take());
        let wake = state.waiting > 0;
        drop(state);
        if wake {
            self.pool.returned.notify_one();
        }
    }
}
