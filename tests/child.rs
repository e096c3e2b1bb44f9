//! The `tenon` program, as the tests start it.

use std::process::ExitCode;

fn main() -> ExitCode {
    // First of all, as in the program itself: the setting is read by libraries that are loaded later.
    tenon::backend::onnxruntime::disable_telemetry();
    tenon::cli::run()
}
