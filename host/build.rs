//! Embeds what `tenon new` writes: the templates, and the sources of the SDK with its WIT; and compiles what is said over
//! gRPC.

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

#[path = "build/grpc.rs"]
mod grpc;

/// Files and folders of the repository. Tests of the SDK stay behind: they need its workspace.
const EMBEDDED: [&str; 7] = [
    "guest-sdk/Cargo.toml",
    "guest-sdk/README.md",
    "guest-sdk/macros/Cargo.toml",
    "guest-sdk/macros/src",
    "guest-sdk/src",
    "templates",
    "wit",
];
/// What a build or an editor leaves in a folder.
const SKIPPED: [&str; 3] = ["target", "Cargo.lock", ".DS_Store"];

fn main() -> Result<(), Box<dyn Error>> {
    let host = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let root = host.parent().ok_or("the host has no folder above it")?;
    let mut files = Vec::new();
    for name in EMBEDDED {
        let path = root.join(name);
        // A file that is named but absent would have cargo run this every time.
        if path.exists() {
            println!("cargo:rerun-if-changed={}", path.display());
            collect(&path, &mut files)?;
        }
    }
    files.sort();
    let mut list = String::from("&[\n");
    for file in &files {
        let name = file.strip_prefix(root)?.to_str().ok_or("the name of a file is not UTF-8")?;
        writeln!(list, "    ({name:?}, include_bytes!({file:?})),")?;
    }
    list.push_str("]\n");
    println!("cargo:rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("embedded.rs"), list)?;
    grpc::compile(&host.join("proto"), &out)
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if path.is_file() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        if !SKIPPED.iter().any(|name| path.ends_with(name)) {
            collect(&path, files)?;
        }
    }
    Ok(())
}
