//! `tenon spin-plugin`: packs this program as Spin's plugins: the one by which it serves `[[trigger.tenon]]`, and the one
//! by which it deploys; with templates.

#![expect(clippy::print_stdout, reason = "what a command answers goes to standard output")]

use std::fs::File;
use std::io::{self, BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use flate2::{Compression, GzBuilder};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use url::Url;

use super::new;
use super::progress::Progress;
use super::trigger::NAME;
use crate::artifact::oci::Digest;

/// The versions of Spin whose protocol of triggers is spoken.
const SPIN: &str = ">=3.0";
const LICENSE: &str = include_str!("../../../LICENSE");

/// What Spin finds of this program. The program knows by its name which one it is.
struct Plugin {
    name: &'static str,
    description: &'static str,
}

/// Started by `spin up`.
const TRIGGER: Plugin = Plugin {
    name: NAME,
    description: "Serves machine-learning model functions: the triggers `[[trigger.tenon]]` of an app.",
};

/// Started by `spin tenon`, and by `spin deploy` where SPIN_DEPLOY_PLUGIN is this name.
const DEPLOY: Plugin = Plugin {
    name: "tenon",
    description: "Deploys apps to Tenon's hosts without downtime, and has Tenon's other commands.",
};

/// Packs this program as Spin's plugins `trigger-tenon`, for `spin up`, and `tenon`, for `spin deploy`, and the templates
/// of `tenon new` for `spin new`.
#[derive(Args)]
pub struct SpinPluginArgs {
    /// The folder to write the plugins' archives and manifests and the templates to
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    output: PathBuf,
    /// Where the archives will be found, if not in that folder: the URL of their folder
    #[arg(long, value_name = "URL")]
    url: Option<Url>,
}

/// Writes the archives and the manifests.
///
/// # Errors
/// Where they cannot be written, or Spin knows no plugins for this kind of machine.
pub fn run(args: &SpinPluginArgs, progress: &Progress) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("cannot find out which program this is")?;
    let mut manifests = Vec::new();
    for plugin in [&TRIGGER, &DEPLOY] {
        let (archive, manifest) = pack(plugin, &program, &args.output, args.url.as_ref())?;
        progress.say("Packed", archive.display());
        progress.say("Wrote", manifest.display());
        manifests.push(manifest);
    }
    new::write_for_spin(&args.output)?;
    progress.say("Wrote", args.output.join("templates").display());
    println!("Install them with");
    for manifest in manifests {
        println!("    spin plugins install --yes --file {}", manifest.display());
    }
    println!("    spin templates install --dir {}", args.output.display());
    println!("`spin deploy` deploys to Tenon's hosts with");
    println!("    export SPIN_DEPLOY_PLUGIN={}", DEPLOY.name);
    Ok(())
}

fn pack(
    plugin: &Plugin,
    program: &Path,
    folder: &Path,
    base: Option<&Url>,
) -> anyhow::Result<(PathBuf, PathBuf)> {
    let own = plugin.name;
    let (os, arch) = machine()?;
    std::fs::create_dir_all(folder).with_context(|| format!("`{}` cannot be made", folder.display()))?;
    let folder = folder.canonicalize()?;
    let name = format!("{own}-{}-{os}-{arch}.tar.gz", env!("CARGO_PKG_VERSION"));
    let (archive, manifest) = (folder.join(&name), folder.join(format!("{own}.json")));
    let cannot = |path: &Path| format!("`{}` cannot be written", path.display());
    write_archive(own, program, &archive).with_context(|| cannot(&archive))?;
    let url = match base {
        None => Url::from_file_path(&archive).ok(),
        Some(base) => base.as_str().trim_end_matches('/').parse::<Url>().ok().and_then(|mut url| {
            url.path_segments_mut().ok()?.push(&name);
            Some(url)
        }),
    };
    let url = url.context(
        "the archive's URL cannot be made; give that of a folder, such as `https://example.com/tenon`",
    )?;
    let described = json!({
        "name": own,
        "description": plugin.description,
        "version": env!("CARGO_PKG_VERSION"),
        "spinCompatibility": SPIN,
        "license": env!("CARGO_PKG_LICENSE"),
        "packages": [{ "os": os, "arch": arch, "url": url.as_str(), "sha256": hash(&archive)?.hex() }],
    });
    std::fs::write(&manifest, format!("{described:#}\n")).with_context(|| cannot(&manifest))?;
    Ok((archive, manifest))
}

/// This machine as Spin's manifests have it.
fn machine() -> anyhow::Result<(&'static str, &'static str)> {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "aarch64",
        "arm" => "arm",
        other => bail!("Spin knows no plugins for `{other}`"),
    };
    Ok((std::env::consts::OS, arch))
}

/// The program and its license, the same bytes for the same program.
fn write_archive(name: &str, program: &Path, archive: &Path) -> io::Result<()> {
    let writer = BufWriter::new(File::create(archive)?);
    let mut tar = tar::Builder::new(GzBuilder::new().write(writer, Compression::default()));
    let mut program = File::open(program)?;
    let size = program.metadata()?.len();
    append(&mut tar, name, 0o755, size, &mut program)?;
    append(&mut tar, &format!("{name}.license"), 0o644, LICENSE.len() as u64, &mut LICENSE.as_bytes())?;
    tar.into_inner()?.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

fn append<W: io::Write>(
    tar: &mut tar::Builder<W>,
    name: &str,
    mode: u32,
    size: u64,
    content: &mut dyn io::Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    tar.append_data(&mut header, name, content)
}

fn hash(path: &Path) -> io::Result<Digest> {
    let (mut file, mut hash, mut buffer) = (File::open(path)?, Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Digest::from_hash(hash)),
            read => hash.write_all(&buffer[..read])?,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_plugins_unpack_to_programs_that_run() {
        check(&TRIGGER);
        check(&DEPLOY);
    }

    fn check(plugin: &Plugin) {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("tenon");
        std::fs::write(&program, "#!/bin/sh\necho it runs\n").unwrap();
        let (archive, manifest) = pack(plugin, &program, &folder.path().join("out 1"), None).unwrap();
        let (other, _) = pack(plugin, &program, &folder.path().join("out 2"), None).unwrap();
        assert_eq!(std::fs::read(&archive).unwrap(), std::fs::read(&other).unwrap());
        // What Spin does with it.
        let manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap();
        assert_eq!(manifest["name"], plugin.name);
        assert!(semver::VersionReq::parse(manifest["spinCompatibility"].as_str().unwrap()).is_ok());
        let package = &manifest["packages"][0];
        let path = Url::parse(package["url"].as_str().unwrap()).unwrap().to_file_path().unwrap();
        assert_eq!(path, archive);
        assert_eq!(package["sha256"], Digest::of(&std::fs::read(&path).unwrap()).hex());
        let plugins = folder.path().join("plugins").join(plugin.name);
        let mut unpacking = tar::Archive::new(flate2::read::GzDecoder::new(File::open(&path).unwrap()));
        unpacking.set_preserve_permissions(true);
        std::fs::create_dir_all(&plugins).unwrap();
        unpacking.unpack(&plugins).unwrap();
        let installed = plugins.join(plugin.name);
        assert_eq!(installed.metadata().unwrap().permissions().mode() & 0o777, 0o755);
        let output = std::process::Command::new(installed).output().unwrap();
        assert_eq!(output.stdout, b"it runs\n");
        assert!(plugins.join(format!("{}.license", plugin.name)).is_file());
    }

    #[test]
    fn a_plugin_may_be_published_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("tenon");
        std::fs::write(&program, "").unwrap();
        let base = Url::parse("https://example.com/tenon/").unwrap();
        let (archive, manifest) = pack(&TRIGGER, &program, folder.path(), Some(&base)).unwrap();
        let name = archive.file_name().unwrap().to_str().unwrap();
        let manifest = std::fs::read_to_string(manifest).unwrap();
        assert!(manifest.contains(&format!("\"https://example.com/tenon/{name}\"")), "{manifest}");
    }
}
