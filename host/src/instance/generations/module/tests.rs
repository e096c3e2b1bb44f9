//! Small modules, described and not, whole and broken.

use wasmparser::{Parser, Validator};
use wit_component::{StringEncoding, metadata};
use wit_parser::Resolve;

use super::*;
use crate::instance::generations::current;

/// A section of the binary format.
fn section(id: u8, contents: &[u8]) -> Vec<u8> {
    let mut section = vec![id];
    let mut length = contents.len();
    while length >= 0x80 {
        section.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    section.push(length as u8);
    section.extend_from_slice(contents);
    section
}

fn named(name: &str) -> Vec<u8> {
    [&[name.len() as u8], name.as_bytes()].concat()
}

/// A module with a fn of these exported names that answers 7.
fn module(exports: &[&str]) -> Vec<u8> {
    let exported = exports.iter().flat_map(|name| [named(name), vec![0x00, 0x00]].concat());
    let exported: Vec<u8> = std::iter::once(exports.len() as u8).chain(exported).collect();
    [
        b"\0asm\x01\0\0\0".to_vec(),
        section(1, &[1, 0x60, 0, 1, 0x7f]),
        section(3, &[1, 0]),
        section(7, &exported),
        section(10, &[1, 4, 0, 0x41, 7, 0x0b]),
    ]
    .concat()
}

/// What a tool for bindings would leave in it.
fn description(world: &str) -> Vec<u8> {
    let mut resolve = Resolve::default();
    let package =
        resolve.push_str("test.wit", &format!("package test:test;\nworld test {{ {world} }}\n")).unwrap();
    let world = resolve.select_world(&[package], Some("test")).unwrap();
    let data = metadata::encode(&resolve, world, StringEncoding::UTF8, None).unwrap();
    section(0, &[named("component-type:test"), data].concat())
}

fn described() -> Vec<u8> {
    [module(&["run"]), description("export run: func() -> u32;")].concat()
}

#[test]
fn a_module_that_describes_itself_becomes_a_component() {
    let component = current(&described()).unwrap().into_owned();
    assert!(Parser::is_component(&component));
    Validator::new().validate_all(&component).unwrap();
    assert!(component.windows(3).any(|bytes| bytes == b"run"));
}

#[test]
fn what_cannot_become_one_is_told_why() {
    let check = |module: &[u8], expected: &str| {
        let error = current(module).map(|_| ()).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(&module(&["run"]), "wasm32-wasip2");
    check(&module(&["_start"]), "_start");
    check(&module(&["handle-http-request", "canonical_abi_realloc"]), "spin-sdk 1");
    check(&module(&["run"])[..20], "not a valid core module");
    check(&[module(&[]), description("export run: func() -> u32;")].concat(), "run");
    check(&[module(&["run"]), description("export run: func() -> string;")].concat(), "memory");
    check(&[module(&["run"]), description("import a: func(); export run: func() -> u64;")].concat(), "run");
    let long = section(0, &[named("component-type:x"), vec![0; MOST_DESCRIBED + 1]].concat());
    check(&[described(), long].concat(), "4 MiB");
}

#[test]
fn no_broken_module_panics() {
    let whole = described();
    for at in 8..whole.len() {
        for change in [0x01, 0x10, 0x80, 0xff] {
            let mut broken = whole.clone();
            broken[at] ^= change;
            let _ = current(&broken);
        }
        let _ = current(&whole[..at]);
    }
}
