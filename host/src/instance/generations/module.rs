//! Core modules for wasm32-wasip1 that describe their imports and exports in WIT become components.

use std::panic::catch_unwind;

use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
};
use wasmparser::{Parser, Payload, Validator};
use wit_component::ComponentEncoder;

use super::GenerationError;

/// What tools for bindings leave in a module: a section for each of them.
const DESCRIPTION: &str = "component-type";

/// Bytes of all descriptions together. Those of spin-sdk 5 have 80 KiB.
const MOST_DESCRIBED: usize = 4 << 20;

/// What modules of spin-sdk 1 export, and what they import beside WASI.
const FIRST_EXPORTS: [&str; 2] = ["handle-http-request", "handle-redis-message"];
const FIRST_IMPORTS: [&str; 4] = ["spin-config", "wasi-outbound-http", "outbound-redis", "key-value"];

/// What there is to know before a module is taken apart.
#[derive(Default)]
struct Facts {
    described: usize,
    starts: bool,
    of_first_sdk: Option<String>,
}

/// The component of a core module, with WASI's preview 1 carried over to what came after it.
pub(super) fn componentize(module: &[u8]) -> Result<Vec<u8>, GenerationError> {
    let facts = facts(module).map_err(|error| GenerationError::Invalid(error.to_string()))?;
    if facts.described > MOST_DESCRIBED {
        return Err(GenerationError::TooLong(MOST_DESCRIBED >> 20));
    }
    match facts {
        Facts { described: 0, of_first_sdk: Some(name), .. } => return Err(GenerationError::FirstSdk(name)),
        Facts { starts: true, .. } => return Err(GenerationError::Program),
        Facts { described: 0, .. } => return Err(GenerationError::Undescribed),
        _ => {}
    }
    // What comes next trusts that the module is one.
    Validator::new().validate_all(module).map_err(|error| GenerationError::Invalid(error.to_string()))?;
    // It says so itself: a description that makes no sense may find an assertion.
    let made = catch_unwind(|| encode(module));
    made.unwrap_or_else(|_| Err("its description makes no sense".to_owned()))
        .map_err(GenerationError::Componentize)
}

fn encode(module: &[u8]) -> Result<Vec<u8>, String> {
    let encoder = ComponentEncoder::default().module(module).and_then(|encoder| {
        encoder.adapter(WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER)
    });
    encoder.and_then(|mut encoder| encoder.encode()).map_err(|error| {
        let causes: Vec<_> = error.chain().map(|cause| cause.to_string().replace('\n', " ")).collect();
        causes.join(": ")
    })
}

fn facts(module: &[u8]) -> wasmparser::Result<Facts> {
    let mut facts = Facts::default();
    for payload in Parser::new(0).parse_all(module) {
        match payload? {
            Payload::CustomSection(section) if section.name().starts_with(DESCRIPTION) => {
                facts.described = facts.described.saturating_add(section.data().len());
            }
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    let import = import?;
                    if FIRST_IMPORTS.contains(&import.module) {
                        facts.of_first_sdk = Some(import.module.to_owned());
                    }
                }
            }
            Payload::ExportSection(exports) => {
                for export in exports {
                    let export = export?;
                    facts.starts |= export.name == "_start";
                    if FIRST_EXPORTS.contains(&export.name) {
                        facts.of_first_sdk = Some(export.name.to_owned());
                    }
                }
            }
            _ => {}
        }
    }
    Ok(facts)
}

#[cfg(test)]
mod tests;
