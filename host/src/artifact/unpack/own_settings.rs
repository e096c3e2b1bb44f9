//! Tenon's settings of a component that Spin carried: its file `tenon.toml`, or the body of its `[[trigger.tenon]]`.
//! Paths in them are those under which the guest finds the files.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Component as Part, Path, PathBuf};

use super::{Contents, UnpackError};
use crate::artifact::manifest::{Component, FileMount, Files, named_in_sample};
use crate::artifact::settings::FILE_NAME;

/// The largest file of settings that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Reads the settings of `component`, if it has any, and finds the models and samples that they name.
pub(super) fn find(
    component: &mut Component,
    mounts: &[FileMount],
    contents: &dyn Contents,
    files: &mut Files,
) -> Result<(), UnpackError> {
    let by_path: BTreeMap<&str, &PathBuf> =
        mounts.iter().map(|mount| (mount.destination.as_str(), &mount.source)).collect();
    if let Some(file) = by_path.get(format!("/{FILE_NAME}").as_str()) {
        let text = text(&component.id, file)?;
        component.read_settings(&text, &format!("`{FILE_NAME}` of component `{}`", component.id))?;
    }
    let id = component.id.clone();
    let find = |what: String, path: &Path| {
        let guest = guest_path(path);
        let among = guest.as_deref().and_then(|guest| by_path.get(guest));
        let found = among.map(|file| (*file).clone()).or_else(|| contents.elsewhere(path));
        found.ok_or_else(|| {
            let path = path.display().to_string();
            UnpackError::NoSuchFile { what, id: id.clone(), path }
        })
    };
    for (name, model) in &mut component.models {
        if model.reference.is_none() {
            model.path = find(format!("model `{name}`"), &model.path)?;
            let weights = model.weights.take();
            let weights = weights.map(|weights| find(format!("the weights of model `{name}`"), &weights));
            model.weights = weights.transpose()?;
        }
    }
    if !component.samples.is_empty() {
        let names = by_path.keys().map(|path| path.trim_start_matches('/'));
        let chosen = component.chosen_samples(names)?;
        let mut samples = BTreeMap::new();
        for name in chosen {
            let file = by_path[format!("/{name}").as_str()];
            samples.insert(name.to_owned(), file.clone());
            for named in named_in_sample(name, file) {
                let what = format!("the file that sample `{name}` names");
                let file = find(what, &Path::new("/").join(&named))?;
                samples.insert(named, file);
            }
        }
        files.samples.insert(component.id.clone(), samples);
    }
    Ok(())
}

fn text(id: &str, path: &Path) -> Result<String, UnpackError> {
    let failed =
        |error: std::io::Error| UnpackError::Read { path: path.to_owned(), reason: error.to_string() };
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(failed)?.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        let reason = format!("`{FILE_NAME}` of component `{id}` is larger than 1 MiB");
        return Err(UnpackError::Read { path: path.to_owned(), reason });
    }
    String::from_utf8(bytes).map_err(|_| UnpackError::NotText { id: id.to_owned() })
}

/// The path in the one form that mounts have; `None` where it leads above the guest's root.
fn guest_path(path: &Path) -> Option<String> {
    let mut guest = String::new();
    for part in path.components() {
        match part {
            Part::RootDir | Part::CurDir => {}
            Part::Normal(name) => {
                guest.push('/');
                guest.push_str(name.to_str()?);
            }
            Part::ParentDir | Part::Prefix(_) => return None,
        }
    }
    Some(guest)
}
