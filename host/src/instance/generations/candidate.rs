//! WASI's release candidate of spin-sdk 6 under the names of the release.
//!
//! The WIT of 0.3.0-rc-2026-03-15 and that of 0.3.0 say the same, word for word: every type, every fn, every comment.
//! Only the names' versions differ, and one fn of `wasi:cli/exit` has left its feature gate. So a component of the one
//! is a component of the other when the names of its own imports and exports are changed. What is nested in it is bound
//! by position, or by names that both sides of it have, and stays as it is.

use std::collections::BTreeMap;
use std::ops::Range;

use wasmparser::{BinaryReader, ComponentExportSectionReader, ComponentImportSectionReader};

use super::GenerationError;

const CANDIDATE: &str = "@0.3.0-rc-2026-03-15";
const RELEASE: &str = "@0.3.0";

/// The packages whose WIT was compared.
const PACKAGES: [&str; 6] =
    ["wasi:cli/", "wasi:clocks/", "wasi:filesystem/", "wasi:http/", "wasi:random/", "wasi:sockets/"];

/// The head of every component.
const PREAMBLE: usize = 8;

/// Sections, as the binary format numbers them.
const IMPORTS: u8 = 10;
const EXPORTS: u8 = 11;

/// A name of an import or export, and where it stands in its section with its length in front.
struct Named {
    at: Range<usize>,
    name: String,
}

/// The component under the names of the release; `None` where it has none of the candidate's, or is no component that
/// can be read, which the compiler says better.
pub(super) fn released(component: &[u8]) -> Result<Option<Vec<u8>>, GenerationError> {
    let Some(sections) = sections(component) else { return Ok(None) };
    // A quick look: nearly all components have none.
    if !sections.iter().flat_map(|section| &section.names).any(|named| renamed(&named.name).is_some()) {
        return Ok(None);
    }
    let mut taken: [BTreeMap<String, &str>; 2] = Default::default();
    let mut out = component[..PREAMBLE].to_vec();
    for section in &sections {
        let contents = &component[section.contents.clone()];
        let mut changed = Vec::with_capacity(contents.len());
        let mut copied = 0;
        for named in &section.names {
            let name = renamed(&named.name).unwrap_or_else(|| named.name.clone());
            if let Some(other) = taken[usize::from(section.id == EXPORTS)].insert(name.clone(), &named.name) {
                return Err(GenerationError::Both(other.to_owned(), named.name.clone()));
            }
            changed.extend_from_slice(&contents[copied..named.at.start]);
            put_length(&mut changed, name.len());
            changed.extend_from_slice(name.as_bytes());
            copied = named.at.end;
        }
        changed.extend_from_slice(&contents[copied..]);
        out.push(section.id);
        put_length(&mut out, changed.len());
        out.append(&mut changed);
    }
    Ok(Some(out))
}

/// The name of the release for a name of the candidate.
fn renamed(name: &str) -> Option<String> {
    let interface = name.strip_suffix(CANDIDATE)?;
    PACKAGES.iter().any(|package| interface.starts_with(package)).then(|| format!("{interface}{RELEASE}"))
}

struct Section {
    id: u8,
    contents: Range<usize>,
    /// Those of the component itself, if it is a section of imports or exports.
    names: Vec<Named>,
}

fn sections(component: &[u8]) -> Option<Vec<Section>> {
    let mut reader = BinaryReader::new(component.get(PREAMBLE..)?, PREAMBLE);
    let mut sections = Vec::new();
    while !reader.eof() {
        let id = reader.read_u8().ok()?;
        let length = reader.read_var_u32().ok()?;
        let start = reader.original_position();
        let contents = reader.read_bytes(usize::try_from(length).ok()?).ok()?;
        let names = match id {
            IMPORTS => {
                let items = ComponentImportSectionReader::new(BinaryReader::new(contents, 0)).ok()?;
                let items = items.into_iter_with_offsets();
                items.map(|item| named(contents, item.ok()?.0)).collect::<Option<Vec<_>>>()?
            }
            EXPORTS => {
                let items = ComponentExportSectionReader::new(BinaryReader::new(contents, 0)).ok()?;
                let items = items.into_iter_with_offsets();
                items.map(|item| named(contents, item.ok()?.0)).collect::<Option<Vec<_>>>()?
            }
            _ => Vec::new(),
        };
        sections.push(Section { id, contents: start..start + contents.len(), names });
    }
    Some(sections)
}

/// The name of an item that begins at `offset`: behind one byte that says which form of a name it is.
fn named(contents: &[u8], offset: usize) -> Option<Named> {
    let start = offset + 1;
    let mut reader = BinaryReader::new(contents.get(start..)?, start);
    let name = reader.read_string().ok()?.to_owned();
    Some(Named { at: start..reader.original_position(), name })
}

/// A length as the binary format writes it: seven bits a byte, the lowest first.
fn put_length(out: &mut Vec<u8>, mut length: usize) {
    while length >= 0x80 {
        out.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.push((length & 0x7f) as u8);
}

#[cfg(test)]
mod tests {
    use wasmparser::{Parser, Payload, Validator};

    use super::*;

    fn section(id: u8, contents: &[u8]) -> Vec<u8> {
        let mut section = vec![id];
        put_length(&mut section, contents.len());
        section.extend_from_slice(contents);
        section
    }

    /// A component that imports instances of these names, and exports the first of them under others.
    fn component(imports: &[&str], exports: &[&str]) -> Vec<u8> {
        let name = |name: &str| {
            let mut bytes = vec![0];
            put_length(&mut bytes, name.len());
            bytes.extend_from_slice(name.as_bytes());
            bytes
        };
        let mut imported = vec![imports.len() as u8];
        imports.iter().for_each(|import| imported.extend([name(import), vec![0x05, 0x00]].concat()));
        let mut exported = vec![exports.len() as u8];
        exports.iter().for_each(|export| exported.extend([name(export), vec![0x05, 0x00, 0x00]].concat()));
        [
            b"\0asm\x0d\0\x01\0".to_vec(),
            section(7, &[1, 0x42, 0]),
            section(IMPORTS, &imported),
            section(0, &[&[4], b"note".as_slice(), b"wasi:http/types@0.3.0-rc-2026-03-15"].concat()),
            section(EXPORTS, &exported),
        ]
        .concat()
    }

    /// Imports, then exports.
    fn names(component: &[u8]) -> Vec<String> {
        let mut names = Vec::new();
        for payload in Parser::new(0).parse_all(component) {
            match payload.unwrap() {
                Payload::ComponentImportSection(items) => {
                    names.extend(items.into_iter().map(|item| item.unwrap().name.name.to_owned()));
                }
                Payload::ComponentExportSection(items) => {
                    names.extend(items.into_iter().map(|item| item.unwrap().name.name.to_owned()));
                }
                _ => {}
            }
        }
        names
    }

    #[test]
    fn names_of_the_candidate_become_those_of_the_release() {
        let imports =
            ["wasi:http/types@0.3.0-rc-2026-03-15", "wasi:io/poll@0.2.6", "spin:variables/variables@3.0.0"];
        let old =
            component(&imports, &["wasi:http/handler@0.3.0-rc-2026-03-15", "a:b/c@0.3.0-rc-2026-03-15"]);
        let new = released(&old).unwrap().unwrap();
        Validator::new().validate_all(&new).unwrap();
        let expected = [
            "wasi:http/types@0.3.0",
            "wasi:io/poll@0.2.6",
            "spin:variables/variables@3.0.0",
            "wasi:http/handler@0.3.0",
            "a:b/c@0.3.0-rc-2026-03-15",
        ];
        assert_eq!(names(&new), expected);
        // Nothing else changes, and nothing does twice.
        assert_eq!(old.len() - new.len(), 2 * (CANDIDATE.len() - RELEASE.len()));
        assert!(released(&new).unwrap().is_none());
    }

    #[test]
    fn what_has_no_such_names_stays_as_it_is() {
        for other in [
            "wasi:http/types@0.3.0",
            "wasi:http/types@0.3.0-rc-2026-01-06",
            "wasi:other/x@0.3.0-rc-2026-03-15",
        ] {
            assert!(released(&component(&[other], &[])).unwrap().is_none(), "{other}");
        }
    }

    #[test]
    fn both_at_once_are_refused() {
        let both = component(&["wasi:http/types@0.3.0", "wasi:http/types@0.3.0-rc-2026-03-15"], &[]);
        let error = released(&both).unwrap_err().to_string();
        assert!(
            error.contains("`wasi:http/types@0.3.0` and `wasi:http/types@0.3.0-rc-2026-03-15`"),
            "{error}"
        );
    }

    #[test]
    fn no_broken_component_panics() {
        let whole =
            component(&["wasi:http/types@0.3.0-rc-2026-03-15"], &["wasi:http/handler@0.3.0-rc-2026-03-15"]);
        for at in 0..whole.len() {
            for change in [0x01, 0x10, 0x7f, 0x80, 0xff] {
                let mut broken = whole.clone();
                broken[at] ^= change;
                let _ = released(&broken);
            }
            let _ = released(&whole[..at]);
        }
    }
}
