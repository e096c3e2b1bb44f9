//! Tests of outlines, and the components that other tests are made of.

use super::*;

/// The bytes of an empty core module.
pub(in crate::artifact) const MODULE: &[u8] = b"\0asm\x01\0\0\0";

/// The bytes of a component that imports and exports empty instances of these names.
pub(in crate::artifact) fn component(imports: &[&str], exports: &[&str]) -> Vec<u8> {
    let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
    let mut section = |id: u8, items: &[Vec<u8>]| {
        let body: Vec<u8> =
            std::iter::once(u8::try_from(items.len()).unwrap()).chain(items.concat()).collect();
        bytes.push(id);
        bytes.extend(leb(body.len()));
        bytes.extend(body);
    };
    // One type: an instance without anything in it.
    section(7, &[vec![0x42, 0]]);
    let name = |name: &str| [vec![0], leb(name.len()), name.as_bytes().to_vec()].concat();
    let imported: Vec<_> = imports.iter().map(|import| [name(import), vec![5, 0]].concat()).collect();
    section(10, &imported);
    // An instance made of no exports, which is exported under each of the names.
    section(5, &[vec![1, 0]]);
    let instance = u8::try_from(imports.len()).unwrap();
    let exported: Vec<_> =
        exports.iter().map(|export| [name(export), vec![5, instance, 0]].concat()).collect();
    section(11, &exported);
    bytes
}

fn leb(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(number & 0x7f).unwrap();
        number >>= 7;
        bytes.push(if number == 0 { low } else { low | 0x80 });
        if number == 0 {
            return bytes;
        }
    }
}

#[test]
fn components_and_modules_are_told_apart() {
    let bytes = component(&["wasi:nn/graph@0.2.0-rc-2024-10-28", "wasi:io/poll@0.2.6"], &["a:b/c@1.0.0"]);
    let outline = Outline::of(&bytes).unwrap();
    assert!(outline.is_component);
    assert_eq!(outline.imports, ["wasi:nn/graph@0.2.0-rc-2024-10-28", "wasi:io/poll@0.2.6"]);
    assert_eq!(outline.exports, ["a:b/c@1.0.0"]);
    assert_eq!(outline.models_import(), Some("wasi:nn/graph@0.2.0-rc-2024-10-28"));
    let outline = Outline::of(MODULE).unwrap();
    assert!(!outline.is_component && outline.models_import().is_none());
    // A module that imports `f` of `m` twice and exports it as `e`.
    let module =
        b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x02\x0d\x02\x01m\x01f\0\0\x01m\x01f\0\0\x07\x05\x01\x01e\0\0";
    let outline = Outline::of(module).unwrap();
    assert_eq!((outline.imports, outline.exports), (vec!["m".to_owned()], vec!["e".to_owned()]));
}

#[test]
fn nothing_that_is_not_wasm_passes_or_panics() {
    for bytes in [&b""[..], b"\0asm", b"#!/bin/sh", b"\0asm\x09\0\0\0", b"\x7fELF\x02\x01\x01\0\0"] {
        assert!(Outline::of(bytes).is_err());
    }
    let bytes = component(&["a:b/c"], &["d:e/f"]);
    for at in 0..bytes.len() {
        let _ = Outline::of(&bytes[..at]);
        for byte in [0, 1, 0x7f, 0x80, 0xff] {
            let mut bytes = bytes.clone();
            bytes[at] = byte;
            let _ = Outline::of(&bytes);
        }
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = Outline::of_file(file.path()).unwrap_err().to_string();
    assert!(error.contains("is not WebAssembly"), "{error}");
}
