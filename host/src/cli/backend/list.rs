//! `tenon backend list`: each backend, whether it can be used, and why not.

use std::fmt::Write as _;

use serde_json::json;

use super::Place;
use crate::backend::Status;
use crate::backend::available::Backends;
use crate::config::{BACKENDS, Config};

#[derive(clap::Args, Debug)]
pub struct ListArgs {
    /// How to print
    #[arg(long, value_enum, default_value = "plain")]
    pub format: Format,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Plain,
    Json,
}

/// A backend as the operator sees it.
struct Row {
    name: &'static str,
    /// `Err` says why not, and what to do about it.
    usable: Result<(), String>,
    version: String,
    formats: Vec<&'static str>,
    devices: Vec<&'static str>,
    library: Option<String>,
}

pub(super) fn run(args: &ListArgs, config: &Config, place: &Place<'_>) -> anyhow::Result<()> {
    let rows = rows(&(place.find)(), &config.inference.backends);
    match args.format {
        Format::Plain => print!("{}", plain(&rows)),
        Format::Json => println!("{:#}", json(&rows)),
    }
    Ok(())
}

/// Those built in, in the order of preference, and then those that could be.
fn rows(backends: &Backends, preference: &[String]) -> Vec<Row> {
    let mut rows: Vec<_> =
        backends.iter().map(|backend| row(backend.name(), backend.status(), preference)).collect();
    for name in BACKENDS {
        if !rows.iter().any(|row| row.name == name) {
            let usable = Err(format!("not built into this host; build it with `--features {name}`"));
            let (formats, devices) = (Vec::new(), Vec::new());
            rows.push(Row { name, usable, version: String::new(), formats, devices, library: None });
        }
    }
    rows
}

fn row(name: &'static str, status: Status, preference: &[String]) -> Row {
    let is_listed = preference.iter().any(|listed| listed == name);
    let left_out = "left out of `inference.backends` in host.toml; add it there";
    Row {
        name,
        usable: status.available.and(if is_listed { Ok(()) } else { Err(left_out.to_owned()) }),
        version: status.version,
        formats: status.encodings.iter().map(|encoding| encoding.name()).collect(),
        devices: status.devices.iter().map(|device| device.name()).collect(),
        library: status.library.map(|library| library.display().to_string()),
    }
}

/// A table, and below it what to do about the backends that are not available.
fn plain(rows: &[Row]) -> String {
    let header = ["BACKEND", "AVAILABLE", "VERSION", "FORMATS", "DEVICES", "LIBRARY"].map(str::to_owned);
    let cells = rows.iter().map(|row| {
        let available = if row.usable.is_ok() { "yes" } else { "no" };
        // What has no library of its own is part of the host.
        let library = row.library.clone().unwrap_or_else(|| match row.usable {
            Ok(()) => "built in".to_owned(),
            Err(_) => String::new(),
        });
        let lists = [&row.formats, &row.devices].map(|list| list.join(", "));
        let [formats, devices] = lists;
        [row.name.to_owned(), available.to_owned(), row.version.clone(), formats, devices, library]
    });
    let lines: Vec<_> = std::iter::once(header).chain(cells).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..6).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths).map(|(cell, width)| match cell.as_str() {
            "" => format!("{:width$}  ", "-"),
            cell => format!("{cell:width$}  "),
        });
        let _ = writeln!(text, "{}", cells.collect::<String>().trim_end());
    }
    for row in rows {
        if let Err(reason) = &row.usable {
            let _ = writeln!(text, "\n{}: {reason}", row.name);
        }
    }
    text
}

fn json(rows: &[Row]) -> serde_json::Value {
    rows.iter()
        .map(|row| {
            json!({
                "name": row.name,
                "available": row.usable.is_ok(),
                "reason": row.usable.as_ref().err(),
                "version": Some(&row.version).filter(|version| !version.is_empty()),
                "formats": row.formats,
                "devices": row.devices,
                "library": row.library,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::backend::{Backend, Encoding, ExecutionTarget, Graph, LoadError, ModelFile};

    struct Fake(&'static str, Result<(), String>);

    impl Backend for Fake {
        fn name(&self) -> &'static str {
            self.0
        }

        fn status(&self) -> Status {
            let is_available = self.1.is_ok();
            Status {
                available: self.1.clone(),
                version: if is_available { "1.2.3".to_owned() } else { String::new() },
                encodings: vec![Encoding::Onnx, Encoding::Openvino],
                devices: if is_available { vec![ExecutionTarget::Cpu] } else { Vec::new() },
                library: (is_available && self.0 != "tract").then(|| "/l/x.so".into()),
            }
        }

        fn version(&self) -> String {
            String::new()
        }

        fn load(&self, _: &ModelFile) -> Result<Arc<dyn Graph>, LoadError> {
            unreachable!("listing loads no model")
        }
    }

    fn found() -> Vec<Row> {
        let fake = |name: &'static str, available: Result<(), &str>| -> Arc<dyn Backend> {
            Arc::new(Fake(name, available.map_err(str::to_owned)))
        };
        let backends = Backends::of(vec![
            fake("openvino", Ok(())),
            fake("onnxruntime", Err("its library was not found; run `tenon backend install onnxruntime`")),
            fake("tract", Ok(())),
        ]);
        rows(&backends, &["openvino".to_owned(), "onnxruntime".to_owned(), "tract".to_owned()])
    }

    #[test]
    fn the_table_tells_all() {
        let expected = "\
BACKEND      AVAILABLE  VERSION  FORMATS         DEVICES  LIBRARY
openvino     yes        1.2.3    onnx, openvino  cpu      /l/x.so
onnxruntime  no         -        onnx, openvino  -        -
tract        yes        1.2.3    onnx, openvino  cpu      built in
rten         no         -        -               -        -

onnxruntime: its library was not found; run `tenon backend install onnxruntime`

rten: not built into this host; build it with `--features rten`
";
        assert_eq!(plain(&found()), expected);
    }

    #[test]
    fn json_tells_the_same() {
        let json = json(&found());
        assert_eq!(json[0]["library"], "/l/x.so");
        assert_eq!((&json[0]["reason"], &json[0]["devices"]), (&json!(null), &json!(["cpu"])));
        assert_eq!((&json[1]["available"], &json[1]["version"]), (&json!(false), &json!(null)));
        assert_eq!(json.as_array().unwrap().len(), 4);
    }

    #[test]
    fn what_the_operator_left_out_is_not_available() {
        let backends = Backends::of(vec![Arc::new(Fake("tract", Ok(())))]);
        let rows = rows(&backends, &["rten".to_owned()]);
        assert!(rows[0].usable.as_ref().unwrap_err().contains("inference.backends"));
    }
}
