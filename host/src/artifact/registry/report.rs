//! What is told of a transfer while it goes on.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::error::printable;
use crate::artifact::oci::{Descriptor, Digest};

/// How long a layer's name may be where it is shown.
const NAME_CHARS: usize = 60;

/// Whom a transfer tells of its layers. It is called from several threads, often: whoever listens must be quick.
#[derive(Clone, Default)]
pub struct Report(Option<Arc<Listener>>);

type Listener = dyn Fn(&Layer, What) + Send + Sync;

/// A layer, or the config, on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    pub digest: Digest,
    /// Its title, else its kind: bounded, and fit for a terminal whatever the manifest says.
    pub name: String,
    /// Bytes.
    pub size: u64,
}

/// What becomes of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// It is where it should be already; nothing is moved.
    Present,
    /// The registry took it from another repository of its own.
    Mounted,
    /// It begins, or goes on where it was: so many bytes are there.
    Began(u64),
    /// So many of its bytes are there now. Fewer than before where it had to start over.
    At(u64),
    /// It failed and is tried again after a wait.
    Again { reason: String, wait: Duration },
    /// It is there whole.
    Done,
    /// It failed for good.
    Failed,
}

impl Report {
    /// Tells nobody.
    pub fn none() -> Report {
        Report(None)
    }

    /// Tells `listener`.
    pub fn to(listener: impl Fn(&Layer, What) + Send + Sync + 'static) -> Report {
        Report(Some(Arc::new(listener)))
    }

    pub(super) fn tell(&self, layer: &Layer, what: What) {
        if let Some(listener) = &self.0 {
            listener(layer, what);
        }
    }
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Report")
    }
}

impl Layer {
    pub(super) fn of(blob: &Descriptor) -> Layer {
        let name = match blob.title() {
            Some(title) if !title.trim().is_empty() => printable(title, NAME_CHARS),
            _ => kind(&blob.media_type),
        };
        Layer { digest: blob.digest, name, size: blob.size }
    }
}

/// How messages name it: by what people know it, and by what a registry knows it.
impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layer `{}` ({})", self.name, self.digest)
    }
}

/// What a layer without a title is called.
fn kind(media_type: &str) -> String {
    let last = media_type.rsplit('.').next().unwrap_or(media_type);
    match media_type {
        _ if media_type.contains("config") => "config".to_owned(),
        "application/wasm" => "component".to_owned(),
        _ if last.ends_with("+wasm") => "component".to_owned(),
        _ => printable(media_type, NAME_CHARS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_have_names_that_can_be_shown() {
        let check = |media_type: &str, title: &str, expected: &str| {
            let mut blob = Descriptor::new(media_type, Digest::of(b""), 0);
            if !title.is_empty() {
                blob = blob.titled(title);
            }
            assert_eq!(Layer::of(&blob).name, expected);
        };
        check("application/wasm", "", "component");
        check("application/vnd.wasm.content.layer.v1+wasm", "", "component");
        check("application/vnd.oci.image.config.v1+json", "", "config");
        check("application/vnd.wasm.content.layer.v1+data", "", "application/vnd.wasm.content.layer.v1+data");
        check("x", "models/a.onnx", "models/a.onnx");
        check("x", " ", "x");
        check("x", "../\u{1b}[2J", "../?[2J");
        check("x", &"y".repeat(100), &format!("{}…", "y".repeat(60)));
    }
}
