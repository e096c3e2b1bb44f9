//! What compiled models depend on beside the model: OpenVINO's build and the processor.

use std::sync::LazyLock;

use sha2::{Digest, Sha256};

/// A name for both that may be part of a path.
pub(super) fn version(build: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    let build: String = build.chars().map(plain).collect();
    format!("{build}-{}", *PROCESSOR)
}

/// A digest of the processor's model and abilities, as Linux lists them.
static PROCESSOR: LazyLock<String> = LazyLock::new(|| {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    // Every processor of the machine has a paragraph; frequencies and bogomips vary by the minute.
    let first = text.split("\n\n").next().unwrap_or_default();
    let told = ["vendor_id", "model name", "flags", "CPU implementer", "CPU part", "Features"];
    let lines = first.lines().filter(|line| told.iter().any(|field| line.starts_with(field)));
    let mut hash = Sha256::new();
    for line in lines {
        hash.update(line);
    }
    format!("{:x}", hash.finalize()).split_at(16).0.to_owned()
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_a_plain_name() {
        let version = version("2026.4.1-22982-e21-releases/2026/4");
        assert!(version.starts_with("2026.4.1-22982-e21-releases-2026-4-"), "{version}");
        assert!(!version.contains('/'));
    }
}
