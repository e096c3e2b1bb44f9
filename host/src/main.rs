//! The `tenon` program.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // First of all, while this is the only thread: the setting is read by libraries that are loaded later.
    #[cfg(feature = "onnxruntime")]
    tenon::backend::onnxruntime::disable_telemetry();
    tenon::cli::run()
}
