//! `tenon diff`: what differs between two apps, and what the second may do more.

#![expect(clippy::print_stdout, reason = "what a command answers goes to standard output")]

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::app::{AppArgs, From, RegistryArgs, Sources};
use super::progress::Progress;
use crate::artifact::difference::{App, Aspect, DescribeError, Difference, Facts, Side, differences};
use crate::artifact::layout;
use crate::artifact::manifest::{self, Manifest};
use crate::artifact::oci::Digest;
use crate::artifact::reference::Reference;
use crate::artifact::unpack::{self, Unpacked, unpack};
use crate::config::Config;

/// How `diff` and its like tell that they could not compare.
pub const TROUBLE: u8 = 2;
/// The width of the column that tells what differs.
const WIDTH: usize = 34;

/// Tells what differs between two apps: code, models, limits, capabilities, sizes.
///
/// Ends with 0 where they are the same, with 1 where they differ, and with 2 where they cannot be compared.
#[derive(Args)]
pub struct DiffArgs {
    /// The one app: a spin.toml, a folder with one, an OCI layout folder, or a reference into a registry.
    before: String,
    /// The other app.
    after: String,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Answers in JSON.
    #[arg(long)]
    json: bool,
}

/// Compares, and answers with the status that the program ends with.
///
/// # Errors
/// Where one of the apps cannot be had; the status is [`TROUBLE`] then.
pub async fn run(args: &DiffArgs, config: &Config, progress: &Progress) -> anyhow::Result<ExitCode> {
    Ok(if compare(args, config, progress).await? { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Prints what differs; answers whether anything does.
async fn compare(args: &DiffArgs, config: &Config, progress: &Progress) -> anyhow::Result<bool> {
    let named: Vec<Reference> =
        [&args.before, &args.after].iter().filter_map(|app| app.parse().ok()).collect();
    let sources = Sources::open(config, &args.registry, progress)?.naming(&named);
    let before = facts(&args.before, args, &sources).await?;
    let after = facts(&args.after, args, &sources).await?;
    let found = differences(&before, &after);
    if args.json {
        let answer = json!({
            "same": found.is_empty(),
            "differences": found,
            "bytes": { "before": before.bytes(), "after": after.bytes(), "to_move": after.bytes_beyond(&before) },
        });
        println!("{answer:#}");
    } else if !found.is_empty() {
        print!("{}", shown(&found));
        println!("{}", summary(&found, &before, &after));
    }
    Ok(!found.is_empty())
}

async fn facts(what: &str, args: &DiffArgs, sources: &Sources<'_>) -> anyhow::Result<Facts> {
    let named = AppArgs {
        from: what.to_owned(),
        profile: None,
        variables: Vec::new(),
        registry: args.registry.clone(),
    };
    let image = match named.source()? {
        From::Manifest(path) => return local(&path),
        From::Layout(folder) => {
            let (blobs, limit) = (sources.blobs(), sources.config.registry.max_artifact_mib);
            let read = move || layout::read(&folder, None, limit, &blobs);
            tokio::task::spawn_blocking(read).await.context("reading the layout failed")??
        }
        // Nothing of it is run, so nobody needs to have signed it.
        From::Registry(reference) => sources.pull_unverified(&reference).await?,
    };
    let (blobs, name) = (sources.blobs(), what.to_owned());
    let max_unpacked_bytes = sources.config.registry.max_artifact_mib << 20;
    let described = move || {
        let options = unpack::Options {
            name: &name,
            // Values of variables are the host's affair, not the app's.
            variables: &BTreeMap::new(),
            environment: &|_| None,
            values_required: false,
            max_unpacked_bytes,
        };
        let Unpacked { manifest, files, interfaces, .. } = unpack(&image.manifest, &blobs, &options)?;
        let app = App { manifest: &manifest, files: &files, interfaces: &interfaces, digest: &digest };
        anyhow::Ok(Facts::of(&app)?)
    };
    let facts = tokio::task::spawn_blocking(described).await.context("unpacking failed")?;
    facts.with_context(|| format!("`{what}` cannot be compared"))
}

fn local(path: &Path) -> anyhow::Result<Facts> {
    let options = manifest::Options {
        profile: None,
        variables: &BTreeMap::new(),
        environment: &|_| None,
        values_required: false,
    };
    let manifest = Manifest::load(path, &options)?;
    let files = manifest.files()?;
    let interfaces = BTreeMap::new();
    Ok(Facts::of(&App { manifest: &manifest, files: &files, interfaces: &interfaces, digest: &digest })?)
}

/// The digest and the bytes of a file, which is read in pieces.
fn digest(path: &Path) -> Result<(Digest, u64), DescribeError> {
    let failed = |error: std::io::Error| DescribeError::Read {
        path: path.display().to_string(),
        reason: error.to_string(),
    };
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let (mut hash, mut size, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        let read = file.read(&mut buffer).map_err(failed)?;
        if read == 0 {
            return Ok((Digest::from_hash(hash), size));
        }
        hash.update(&buffer[..read]);
        size += read as u64;
    }
}

/// The differences, those of each component below its id.
fn shown(found: &[Difference]) -> String {
    let mut text = String::new();
    let mut current = None;
    for difference in found {
        if current != Some(&difference.component) {
            current = Some(&difference.component);
            let title = match &difference.component {
                None => "app".to_owned(),
                Some(id) => format!("component {}", clean(id)),
            };
            text.push_str(&format!("{title}\n"));
        }
        text.push_str(&line(difference));
    }
    text
}

fn line(difference: &Difference) -> String {
    let Difference { before, after, .. } = difference;
    let sign = match (before, after) {
        (None, _) => '+',
        (_, None) => '-',
        _ => '~',
    };
    let what = match difference.aspect {
        Aspect::App => clean(&difference.name),
        Aspect::Component => "the whole component".to_owned(),
        aspect => format!("{} {}", aspect.name(), clean(&difference.name)),
    };
    let value = match (before, after) {
        (Some(before), Some(after)) => match (side(before), side(after)) {
            (before, after) if before.is_empty() && after.is_empty() => "changed".to_owned(),
            (before, after) => format!("{before} -> {after}"),
        },
        (Some(only), None) | (None, Some(only)) => side(only),
        (None, None) => String::new(),
    };
    let grows = if difference.grows { "  + capability" } else { "" };
    format!("  {sign} {:<WIDTH$} {value}{grows}", what.trim_end()).trim_end().to_owned() + "\n"
}

fn side(side: &Side) -> String {
    let text = match side.text.split_once("sha256:") {
        // Enough of a digest to tell it from others; JSON has all of it.
        Some(("", hex)) if hex.len() == 64 => format!("sha256:{}", &hex[..12]),
        _ => clean(&side.text),
    };
    match side.bytes {
        Some(bytes) => format!("{text} ({})", amount(bytes)),
        None => text,
    }
}

/// A text out of an artifact, fit for a terminal.
fn clean(text: &str) -> String {
    let mut clean: String = text
        .chars()
        .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
        .take(200)
        .collect();
    if text.chars().nth(200).is_some() {
        clean.push('…');
    }
    clean
}

fn amount(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    match bytes {
        0..10_240 => format!("{bytes} bytes"),
        10_240..1_048_576 => format!("{} KiB", bytes >> 10),
        _ => format!("{mib:.1} MiB"),
    }
}

fn summary(found: &[Difference], before: &Facts, after: &Facts) -> String {
    let count =
        |count: usize, one: &str, many: &str| format!("{count} {}", if count == 1 { one } else { many });
    let grown = found.iter().filter(|difference| difference.grows).count();
    format!(
        "{}, {}; {} -> {}, of which {} are to be moved",
        count(found.len(), "difference", "differences"),
        count(grown, "of them a capability more", "of them capabilities more"),
        amount(before.bytes()),
        amount(after.bytes()),
        amount(after.bytes_beyond(before)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn apps_are_compared_by_their_files() {
        let folder = tempfile::tempdir().unwrap();
        let app = |name: &str, model: &[u8], limit: u32| {
            let folder = folder.path().join(name);
            std::fs::create_dir(&folder).unwrap();
            std::fs::write(folder.join("m.onnx"), model).unwrap();
            let manifest = format!(
                "spin_manifest_version = 2\n[application]\nname = \"a\"\n[component.m.tool.tenon]\n\
                 models.m = {{ path = \"m.onnx\" }}\nlimits.memory_mib = {limit}\n"
            );
            std::fs::write(folder.join("spin.toml"), manifest).unwrap();
            folder.display().to_string()
        };
        let (one, same, other) = (app("1", b"x", 8), app("2", b"x", 8), app("3", b"longer", 16));
        let mut config = Config::default();
        config.cache.dir = Some(folder.path().join("cache"));
        let progress = Progress::stderr(true);
        let compare = async |before: &str, after: &str| {
            let (before, after) = (before.to_owned(), after.to_owned());
            let registry = RegistryArgs { plain_http: false };
            compare(&DiffArgs { before, after, registry, json: false }, &config, &progress).await
        };
        assert!(!compare(&one, &same).await.unwrap());
        assert!(compare(&one, &other).await.unwrap());
        let error = format!("{:#}", compare(&one, "./Nowhere").await.unwrap_err());
        assert!(error.contains("there is no `./Nowhere`"), "{error}");
        let facts = |app: &str| local(&Path::new(app).join("spin.toml"));
        let (before, after) = (facts(&one).unwrap(), facts(&other).unwrap());
        let found = differences(&before, &after);
        let expected = format!(
            "component m\n  ~ model m                            {} (1 bytes) -> {} (6 bytes)\n  \
             ~ limit memory_mib                   8 -> 16  + capability\n",
            &Digest::of(b"x").to_string()[..19],
            &Digest::of(b"longer").to_string()[..19],
        );
        assert_eq!(shown(&found), expected);
        assert_eq!(
            summary(&found, &before, &after),
            "2 differences, 1 of them a capability more; 1 bytes -> 6 bytes, of which 6 bytes are to be moved"
        );
    }

    #[test]
    fn what_an_artifact_says_does_not_reach_the_terminal_as_it_is() {
        assert_eq!(clean("a\u{1b}[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
        assert_eq!(clean(&"é".repeat(300)).chars().count(), 201);
        assert_eq!(
            (amount(10), amount(20 << 10), amount(3 << 20)),
            ("10 bytes".into(), "20 KiB".into(), "3.0 MiB".into())
        );
    }
}
