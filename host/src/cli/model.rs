//! `tenon model`: a model alone, to and from registries as a ModelPack.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use super::app::{RegistryArgs, Sources};
use super::progress::Progress;
use super::push;
use crate::artifact::manifest::Encoding;
use crate::artifact::modelpack::{self, ModelFiles};
use crate::artifact::reference::Reference;
use crate::config::Config;

#[derive(Args)]
pub struct ModelArgs {
    #[command(subcommand)]
    command: ModelCommand,
}

#[derive(Subcommand)]
enum ModelCommand {
    /// Pushes a model file as a ModelPack.
    Push(PushArgs),
    /// Pulls a ModelPack, and writes the model's files to a folder.
    Pull(PullArgs),
}

#[derive(Args)]
struct PushArgs {
    /// Where to: such as `ghcr.io/acme/models/digits:1.0`.
    #[arg(value_name = "REFERENCE")]
    reference: Reference,
    /// The model: an ONNX file, or the `.xml` of an OpenVINO model.
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The weights of an OpenVINO model, unless they are the `.bin` beside it.
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    #[command(flatten)]
    registry: RegistryArgs,
}

#[derive(Args)]
struct PullArgs {
    #[arg(value_name = "REFERENCE")]
    reference: Reference,
    /// Where the model's files are written; without it they go into the cache alone.
    #[arg(short = 'o', long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Runs the command that the arguments name.
///
/// # Errors
/// Where the model or the registry is not as it should be.
pub async fn run(args: &ModelArgs, config: Config, progress: &Progress) -> anyhow::Result<()> {
    match &args.command {
        ModelCommand::Push(args) => send(args, config, progress).await,
        ModelCommand::Pull(args) => fetch(args, config, progress).await,
    }
}

async fn send(args: &PushArgs, config: Config, progress: &Progress) -> anyhow::Result<()> {
    let sources = Sources::open(&config, &args.registry, progress)?.naming([&args.reference]);
    let ending = args.model.extension().and_then(|ending| ending.to_str());
    let weights = match (ending, &args.weights) {
        (Some("onnx"), None) => None,
        (Some("onnx"), Some(_)) => bail!("an ONNX model is one file; leave `--weights` out"),
        (Some("xml"), None) => Some(args.model.with_extension("bin")),
        (Some("xml"), Some(weights)) => Some(weights.clone()),
        _ => bail!(
            "`{}` is not a model file: ONNX files end in `.onnx`, OpenVINO models in `.xml`",
            args.model.display()
        ),
    };
    let (blobs, model) = (sources.blobs(), args.model.clone());
    let step = sources.progress.step("Packaging", model.display());
    let pack = move || modelpack::pack(&model, weights.as_deref(), &blobs);
    let packed = tokio::task::spawn_blocking(pack).await.context("packing failed")??;
    step.done();
    push::send(&sources, &args.reference, &packed).await?;
    let name = args.model.file_stem().unwrap_or_default().to_string_lossy();
    let reference = args.reference.at(packed.digest);
    sources.progress.say("Use", format!("models.{name} = {{ reference = \"{reference}\" }} in spin.toml"));
    Ok(())
}

async fn fetch(args: &PullArgs, config: Config, progress: &Progress) -> anyhow::Result<()> {
    let sources = Sources::open(&config, &args.registry, progress)?.naming([&args.reference]);
    let pulled = sources.pull(&args.reference).await?;
    let (blobs, manifest) = (sources.blobs(), pulled.manifest.clone());
    let limit = config.registry.max_artifact_mib << 20;
    let unpack = move || {
        let onnx = modelpack::unpack(&manifest, Encoding::Onnx, &blobs, limit);
        onnx.or_else(|first| {
            modelpack::unpack(&manifest, Encoding::Openvino, &blobs, limit).map_err(|_| first)
        })
    };
    let files = tokio::task::spawn_blocking(unpack).await.context("unpacking failed")??;
    if let Some(folder) = &args.output {
        let folder = folder.clone();
        let written =
            tokio::task::spawn_blocking(move || write(&files, &folder)).await.context("writing failed")??;
        for path in written {
            sources.progress.say("Wrote", path.display());
        }
    }
    println!("{}", args.reference.at(pulled.digest));
    Ok(())
}

/// Copies the model's files. Existing ones are left alone.
fn write(files: &ModelFiles, folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the folder `{}`", folder.display()))?;
    // A name out of an artifact is no path.
    let name = Path::new(&files.name).file_name().context("the model's file has no name")?;
    let model = folder.join(name);
    let mut written = Vec::new();
    let weights = files.weights.as_deref().map(|weights| (weights, model.with_extension("bin")));
    for (from, to) in std::iter::once((files.path.as_path(), model.clone())).chain(weights) {
        let mut source = std::fs::File::open(from)?;
        let mut target = std::fs::File::create_new(&to).with_context(|| {
            format!("cannot write `{}`; move it away, or choose another folder", to.display())
        })?;
        std::io::copy(&mut source, &mut target)
            .with_context(|| format!("cannot write `{}`", to.display()))?;
        written.push(to);
    }
    Ok(written)
}
