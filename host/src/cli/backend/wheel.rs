//! What of a Python package is a backend's library: which wheel is asked for, and which of its files are kept.

use std::path::{Component, Path};

use anyhow::bail;

use super::install::Library;

/// The CPython whose wheel is asked for, whatever the user's Python is: the library in it is the same for all,
/// and so there is one file, of which the sum is known.
pub(super) const PYTHON: &str = "3.12";
pub(super) const ABI: &str = "cp312";

/// Kinds of Linux that a wheel may be made for, beside the pinned one's.
const PLATFORMS: [&str; 6] = [
    "manylinux2014",
    "manylinux_2_27",
    "manylinux_2_28",
    "manylinux_2_31",
    "manylinux_2_34",
    "manylinux_2_35",
];
/// The largest library that is unpacked, in bytes.
const MAX_BYTES: u64 = 4 << 30;

/// A wheel whose content is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pin {
    pub(super) version: &'static str,
    pub(super) platform: &'static str,
    arch: &'static str,
    /// SHA-256 of the wheel.
    pub(super) sum: &'static str,
}

const ONNXRUNTIME: [Pin; 2] = [
    Pin {
        // The last one without telemetry.
        version: "1.28.0",
        platform: "manylinux_2_28",
        arch: "x86_64",
        sum: "0a83bdb70d143cede762b677789bf2a7acca54b3fb82565601d5c30695aa933c",
    },
    Pin {
        version: "1.28.0",
        platform: "manylinux_2_28",
        arch: "aarch64",
        sum: "4e81a23df16e7acb9d51b06d30cc098e49315ef9180f97bc2221d167b4b04d9c",
    },
];

const OPENVINO: [Pin; 2] = [
    Pin {
        version: "2026.4.1",
        platform: "manylinux_2_28",
        arch: "x86_64",
        sum: "6b4375c17ddcac83a5180349e2e2bb811185c261066e2a920659892d58ef0e3b",
    },
    Pin {
        version: "2026.4.1",
        platform: "manylinux_2_35",
        arch: "aarch64",
        sum: "82efccb2f9f1bdc7e5a1996e05a3b719ebff9232dd54b44150d6d2e983a86b7d",
    },
];

/// The pinned wheel for processors of `arch`; `None` where there is none.
pub(super) fn pin(library: Library, arch: &str) -> Option<Pin> {
    let pins = match library {
        Library::Onnxruntime => ONNXRUNTIME,
        Library::Openvino => OPENVINO,
    };
    pins.into_iter().find(|pin| pin.arch == arch)
}

/// The values of pip's `--platform`: for the pinned version its own, for another any that may fit.
pub(super) fn platforms(pin: Pin, version: &str) -> Vec<String> {
    let platforms = if version == pin.version { &[pin.platform][..] } else { &PLATFORMS };
    platforms.iter().map(|platform| format!("{platform}_{}", pin.arch)).collect()
}

/// Those of a wheel's files that make up the library and its licences.
///
/// # Errors
/// The library itself is not among them, or one has a path that leads elsewhere or is too large.
pub(super) fn kept(library: Library, entries: Vec<(String, u64)>) -> anyhow::Result<Vec<String>> {
    let kept: Vec<_> = entries.into_iter().filter(|(name, _)| is_kept(library, name)).collect();
    let is_relative = |name: &str| {
        Path::new(name).components().all(|part| matches!(part, Component::Normal(_))) && !name.contains('\n')
    };
    if let Some((name, _)) = kept.iter().find(|(name, _)| !is_relative(name)) {
        bail!("the wheel has a file `{}` outside its folder; it is not used", name.escape_debug());
    }
    let bytes = kept.iter().fold(0_u64, |bytes, (_, size)| bytes.saturating_add(*size));
    if bytes > MAX_BYTES {
        bail!(
            "the library in the wheel is {} MiB large; at most {} are unpacked",
            bytes >> 20,
            MAX_BYTES >> 20
        );
    }
    let main = main_file(library);
    if !kept.iter().any(|(name, _)| name.starts_with(main)) {
        bail!("the wheel has no `{main}*`; choose another version with `--version`");
    }
    Ok(kept.into_iter().map(|(name, _)| name).collect())
}

fn main_file(library: Library) -> &'static str {
    match library {
        Library::Onnxruntime => "onnxruntime/capi/libonnxruntime.so",
        Library::Openvino => "openvino/libs/libopenvino_c.so",
    }
}

fn is_kept(library: Library, name: &str) -> bool {
    let begins = |starts: &[&str]| starts.iter().any(|start| name.starts_with(start));
    match library {
        Library::Onnxruntime => begins(&[
            main_file(library),
            "onnxruntime/LICENSE",
            "onnxruntime/Privacy.md",
            "onnxruntime/ThirdPartyNotices.txt",
        ]),
        Library::Openvino => {
            let licence =
                name.split_once(".dist-info/licenses/").is_some_and(|(wheel, _)| !wheel.contains('/'));
            licence
                || begins(&[
                    "openvino/libs/cache.json",
                    "openvino/libs/libhwloc.so",
                    "openvino/libs/libopenvino.so",
                    "openvino/libs/libopenvino_arm_cpu_plugin.so",
                    "openvino/libs/libopenvino_c.so",
                    "openvino/libs/libopenvino_intel_cpu_plugin.so",
                    "openvino/libs/libopenvino_intel_gpu_plugin.so",
                    "openvino/libs/libopenvino_intel_npu_plugin.so",
                    "openvino/libs/libopenvino_ir_frontend.so",
                    "openvino/libs/libopenvino_onnx_frontend.so",
                    "openvino/libs/libtbb.so",
                    "openvino/libs/libtbbbind",
                    "openvino/libs/libtbbmalloc.so",
                ])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_and_its_licences_are_kept() {
        let check = |library: Library, name: &str, expected: bool| {
            assert_eq!(is_kept(library, name), expected, "{name}");
        };
        use Library::{Onnxruntime, Openvino};
        check(Onnxruntime, "onnxruntime/capi/libonnxruntime.so.1.28.0", true);
        check(Onnxruntime, "onnxruntime/LICENSE", true);
        check(Onnxruntime, "onnxruntime/capi/onnxruntime_pybind11_state.so", false);
        check(Onnxruntime, "onnxruntime/__init__.py", false);
        check(Openvino, "openvino/libs/libopenvino_c.so.2641", true);
        check(Openvino, "openvino/libs/libopenvino_intel_gpu_plugin.so", true);
        check(Openvino, "openvino-2026.4.1.dist-info/licenses/licensing/x.txt", true);
        check(Openvino, "openvino/libs/libopenvino_pytorch_frontend.so.2641", false);
        check(Openvino, "openvino/libs/libtbbmalloc_proxy.so.2", false);
        check(Openvino, "a/openvino-1.dist-info/licenses/x", false);
    }

    #[test]
    fn a_hostile_wheel_is_refused() {
        let check = |names: &[&str], bytes: u64, expected: &str| {
            let entries = names.iter().map(|name| ((*name).to_owned(), bytes)).collect();
            let kept = kept(Library::Onnxruntime, entries);
            match kept {
                Ok(kept) => assert_eq!(kept.join(" "), expected),
                Err(error) => assert!(error.to_string().contains(expected), "{error}"),
            }
        };
        let library = "onnxruntime/capi/libonnxruntime.so.1";
        check(&[library, "setup.py"], 1, library);
        check(&["setup.py"], 1, "has no `onnxruntime/capi/libonnxruntime.so*`");
        check(&[library, "onnxruntime/LICENSE/../../../etc/x"], 1, "outside its folder");
        check(&[library, "onnxruntime/LICENSE\n"], 1, "outside its folder");
        check(&[library], 5 << 30, "5120 MiB large");
        check(&[library, "onnxruntime/LICENSE"], u64::MAX, "MiB large");
    }

    #[test]
    fn pins_are_complete() {
        for library in [Library::Onnxruntime, Library::Openvino] {
            for arch in ["x86_64", "aarch64"] {
                let pin = pin(library, arch).unwrap();
                assert!(pin.sum.len() == 64 && pin.sum.bytes().all(|c| c.is_ascii_hexdigit()));
                assert_eq!(platforms(pin, pin.version), [format!("{}_{arch}", pin.platform)]);
                assert!(platforms(pin, "9.9").len() > 3);
            }
            assert_eq!(pin(library, "riscv64"), None);
        }
    }
}
