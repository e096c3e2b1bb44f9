//! What a wasm file imports and exports, down to the types of the functions that it exports, without compiling it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use wasmparser::component_types::{ComponentDefinedType, ComponentEntityType, ComponentValType};
use wasmparser::types::TypesRef;
use wasmparser::{Encoding, Parser, Payload, Validator, WasmFeatures};

/// The most imports and exports that are read together.
const MAX_NAMES: usize = 4096;
/// The most functions whose types are read.
const MAX_FUNCTIONS: usize = 4096;
/// How deep a type is shown, and in how many bytes: types may refer to one another in ways that double with each step.
const MAX_DEPTH: usize = 24;
const MAX_TYPE_BYTES: usize = 4096;

/// The outside of a component or of a core module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Outside {
    /// Versions by names such as `wasi:http/types`; empty where there is none.
    pub(super) imports: BTreeMap<String, String>,
    pub(super) exports: BTreeMap<String, String>,
    /// The types of the exported functions: `wasi:http/handler handle`, or `run` alone.
    pub(super) functions: BTreeMap<String, String>,
}

impl Outside {
    /// Reads the bytes of a component or core module. What it does is not looked at.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub(super) fn of(wasm: &[u8]) -> Result<Outside, String> {
        let mut outside = Outside::default();
        // Every proposal that may be told apart without choosing sides: whether it runs is the engine's affair.
        let mut validator = Validator::new_with_features(WasmFeatures::all());
        let (mut depth, mut exports) = (0_usize, Vec::new());
        let mut is_component = false;
        for payload in Parser::new(0).parse_all(wasm) {
            let payload = payload.map_err(|error| error.to_string())?;
            if let Payload::Version { encoding, .. } = &payload
                && depth == 0
            {
                is_component = *encoding == Encoding::Component;
            }
            match &payload {
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) => depth = depth.saturating_sub(1),
                payload if depth == 0 => {
                    outside.add(payload, &mut exports).map_err(|error| error.to_string())?;
                }
                _ => {}
            }
            if outside.imports.len() + exports.len() > MAX_NAMES {
                return Err(format!("it has more than {MAX_NAMES} imports and exports"));
            }
            validator.payload(&payload).map_err(|error| error.to_string())?;
            if is_component
                && depth == 0
                && let Payload::ComponentExportSection(_) = &payload
                && let Some(types) = validator.types(0)
            {
                outside.add_functions(&exports, types);
            }
        }
        Ok(outside)
    }

    fn add(&mut self, payload: &Payload<'_>, exported: &mut Vec<String>) -> wasmparser::Result<()> {
        match payload {
            Payload::ComponentImportSection(section) => {
                for import in section.clone() {
                    add(&mut self.imports, import?.name.name);
                }
            }
            Payload::ComponentExportSection(section) => {
                for export in section.clone() {
                    let name = export?.name.name;
                    add(&mut self.exports, name);
                    exported.push(name.to_owned());
                }
            }
            Payload::ImportSection(section) => {
                for import in section.clone().into_imports() {
                    add(&mut self.imports, import?.module);
                }
            }
            Payload::ExportSection(section) => {
                for export in section.clone() {
                    add(&mut self.exports, export?.name);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn add_functions(&mut self, exports: &[String], types: TypesRef<'_>) {
        for name in exports {
            let Some(item) = types.component_item_for_export(name) else { continue };
            match item.ty {
                ComponentEntityType::Func(_) => self.add_function(name.clone(), item.ty, types),
                ComponentEntityType::Instance(id) => {
                    for (function, item) in &types[id].exports {
                        self.add_function(format!("{} {function}", parted(name).0), item.ty, types);
                    }
                }
                _ => {}
            }
        }
    }

    fn add_function(&mut self, name: String, ty: ComponentEntityType, types: TypesRef<'_>) {
        let ComponentEntityType::Func(id) = ty else { return };
        if self.functions.len() >= MAX_FUNCTIONS {
            return;
        }
        let function = &types[id];
        let mut text = String::from(if function.async_ { "async func(" } else { "func(" });
        for (index, (name, ty)) in function.params.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            let _ = write!(text, "{comma}{name}: ");
            show(&mut text, *ty, types, 0);
        }
        text.push(')');
        if let Some(result) = function.result {
            text.push_str(" -> ");
            show(&mut text, result, types, 0);
        }
        self.functions.insert(name, text);
    }
}

fn add(names: &mut BTreeMap<String, String>, name: &str) {
    let (name, version) = parted(name);
    let versions = names.entry(name.to_owned()).or_default();
    if !version.is_empty() && !versions.split(", ").any(|known| known == version) {
        let comma = if versions.is_empty() { "" } else { ", " };
        let _ = write!(versions, "{comma}{version}");
    }
}

/// A name and its version.
fn parted(name: &str) -> (&str, &str) {
    name.rsplit_once('@').unwrap_or((name, ""))
}

/// Writes a type much as WIT has it, with the names of records' fields and variants' cases.
fn show(text: &mut String, ty: ComponentValType, types: TypesRef<'_>, depth: usize) {
    if depth > MAX_DEPTH || text.len() > MAX_TYPE_BYTES {
        text.push('…');
        return;
    }
    let id = match ty {
        ComponentValType::Primitive(primitive) => return text.push_str(&primitive.to_string()),
        ComponentValType::Type(id) => id,
    };
    let mut list =
        |open: &str, items: &mut dyn Iterator<Item = (&str, Option<ComponentValType>)>, close: &str| {
            text.push_str(open);
            for (index, (name, ty)) in items.enumerate() {
                if index > 0 {
                    text.push_str(", ");
                }
                text.push_str(name);
                if let Some(ty) = ty {
                    text.push_str(if name.is_empty() { "" } else { ": " });
                    show(text, ty, types, depth + 1);
                }
            }
            text.push_str(close);
        };
    let one = |ty: ComponentValType| std::iter::once(("", Some(ty)));
    let maybe = |ty: Option<ComponentValType>| ty.map(|ty| ("", Some(ty))).into_iter();
    match &types[id] {
        ComponentDefinedType::Primitive(primitive) => text.push_str(&primitive.to_string()),
        ComponentDefinedType::Record(record) => {
            list("record { ", &mut record.fields.iter().map(|(name, ty)| (name.as_str(), Some(*ty))), " }");
        }
        ComponentDefinedType::Variant(variant) => {
            list("variant { ", &mut variant.cases.iter().map(|(name, case)| (name.as_str(), case.ty)), " }");
        }
        ComponentDefinedType::Flags(names) => {
            list("flags { ", &mut names.iter().map(|name| (name.as_str(), None)), " }");
        }
        ComponentDefinedType::Enum(names) => {
            list("enum { ", &mut names.iter().map(|name| (name.as_str(), None)), " }");
        }
        ComponentDefinedType::Tuple(tuple) => {
            list("tuple<", &mut tuple.types.iter().map(|ty| ("", Some(*ty))), ">");
        }
        ComponentDefinedType::List { element, .. } => list("list<", &mut one(*element), ">"),
        ComponentDefinedType::Map { key, value, .. } => list("map<", &mut one(*key).chain(one(*value)), ">"),
        ComponentDefinedType::FixedLengthList { element, length, .. } => {
            list("list<", &mut one(*element), &format!(", {length}>"));
        }
        ComponentDefinedType::Option { ty, .. } => list("option<", &mut one(*ty), ">"),
        ComponentDefinedType::Result { ok, err, .. } => {
            let ok = ok.map_or(("_", None), |ty| ("", Some(ty)));
            list("result<", &mut std::iter::once(ok).chain(maybe(*err)), ">");
        }
        ComponentDefinedType::Future { ty, .. } => list("future<", &mut maybe(*ty), ">"),
        ComponentDefinedType::Stream { ty, .. } => list("stream<", &mut maybe(*ty), ">"),
        ComponentDefinedType::Own(_) => text.push_str("resource"),
        ComponentDefinedType::Borrow(_) => text.push_str("borrow<resource>"),
    }
}
