//! Compiles what the host says over gRPC: types for its messages, and the descriptions that reflection gives out.
//!
//! All of it in Rust, so that a build needs no `protoc`.

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use prost::Message as _;
use prost_types::{DescriptorProto, FileDescriptorProto, FileDescriptorSet};

/// Files whose messages the host reads and writes.
const FILES: [&str; 3] = ["inference.proto", "health.proto", "reflection.proto"];
/// The first version of reflection, which many tools still ask for first. Its messages are the same.
const FORMER: &str = "reflection_v1alpha.proto";

/// Writes `<package>.rs` for each file of `folder`, and `descriptors.rs`, to `out`.
pub(crate) fn compile(folder: &Path, out: &Path) -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={}", folder.display());
    println!("cargo:rerun-if-changed=build");
    let reflection = fs::read_to_string(folder.join("reflection.proto"))?;
    let former = reflection.replace("package grpc.reflection.v1;", "package grpc.reflection.v1alpha;");
    if former == reflection {
        return Err("reflection.proto is not of the package `grpc.reflection.v1`".into());
    }
    fs::write(out.join(FORMER), former)?;
    let files = protox::compile(FILES.iter().chain([&FORMER]), [folder, out])?;
    fs::write(out.join("descriptors.rs"), descriptors(&files, out)?)?;
    let spoken = files.file.into_iter().filter(|file| file.name() != FORMER);
    prost_build::Config::new()
        // A slice of what was received, rather than a copy.
        .bytes(["."])
        .btree_map(["."])
        // They are written for readers of the files.
        .disable_comments(["."])
        .out_dir(out)
        .compile_fds(FileDescriptorSet { file: spoken.collect() })?;
    Ok(())
}

/// A list of every file: its name, its services, everything that it describes, and itself.
fn descriptors(files: &FileDescriptorSet, out: &Path) -> Result<String, Box<dyn Error>> {
    let mut list = String::from("&[\n");
    for file in &files.file {
        if !file.dependency.is_empty() {
            return Err(format!("{} imports files, which reflection does not follow", file.name()).into());
        }
        let path = out.join(file.name()).with_extension("bin");
        fs::write(&path, FileDescriptorProto { source_code_info: None, ..file.clone() }.encode_to_vec())?;
        let services = file.service.iter().map(|service| format!("{}.{}", file.package(), service.name()));
        let (name, services, symbols) = (file.name(), services.collect::<Vec<_>>(), symbols(file));
        writeln!(list, "    File {{")?;
        writeln!(list, "        name: {name:?},")?;
        writeln!(list, "        services: &{services:?},")?;
        writeln!(list, "        symbols: &{symbols:?},")?;
        writeln!(list, "        bytes: include_bytes!({path:?}),")?;
        writeln!(list, "    }},")?;
    }
    list.push_str("]\n");
    Ok(list)
}

/// The full names of a file's services, methods, messages and enums.
fn symbols(file: &FileDescriptorProto) -> Vec<String> {
    let mut symbols = Vec::new();
    for service in &file.service {
        let name = format!("{}.{}", file.package(), service.name());
        symbols.extend(service.method.iter().map(|method| format!("{name}.{}", method.name())));
        symbols.push(name);
    }
    symbols.extend(file.enum_type.iter().map(|kind| format!("{}.{}", file.package(), kind.name())));
    for message in &file.message_type {
        messages(file.package(), message, &mut symbols);
    }
    symbols.sort();
    symbols
}

fn messages(within: &str, message: &DescriptorProto, symbols: &mut Vec<String>) {
    let name = format!("{within}.{}", message.name());
    symbols.extend(message.enum_type.iter().map(|kind| format!("{name}.{}", kind.name())));
    for inner in &message.nested_type {
        messages(&name, inner, symbols);
    }
    symbols.push(name);
}
