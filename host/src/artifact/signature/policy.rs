//! The operator's word on signatures: which repositories' artifacts must be signed, and by whom.

use std::path::PathBuf;

use thiserror::Error;

use super::canonical;
use super::keys::{KeyError, TrustedKey};
use crate::config;

/// What `[signatures]` in host.toml asks for, with its keys read.
#[derive(Debug, Default)]
pub struct Policy {
    keys: Vec<Scoped>,
    all: bool,
    local_apps_refused: bool,
    same_repository: bool,
}

/// A key, and whose artifacts its signatures count for.
#[derive(Debug)]
struct Scoped {
    key: TrustedKey,
    repositories: Vec<String>,
}

/// What an artifact of some repository needs before it is served.
#[derive(Debug)]
pub enum Demand<'p> {
    /// Nothing.
    Nothing,
    /// A signature by one of these keys.
    Signed {
        keys: Vec<&'p TrustedKey>,
        /// Whether the payload must name the repository that the artifact comes from.
        same_repository: bool,
    },
}

/// Why an artifact may not be served, or the policy not be read.
#[derive(Debug, Error)]
pub enum PolicyError {
    #[error("the key `{name}` of `signatures.keys`, `{path}`: {reason}")]
    Key { name: String, path: PathBuf, reason: KeyError },
    #[error(
        "nobody is trusted to sign `{repository}`, and `signatures.required` is \"all\"; \
         name a key for it under `[signatures.keys]` in host.toml"
    )]
    Nobody { repository: String },
    #[error(
        "`{what}` comes from no registry, so nobody signed it, and `signatures.local_apps` is false; \
         push it signed, and serve it by its reference"
    )]
    Local { what: String },
}

impl Policy {
    /// Reads the keys that host.toml names.
    ///
    /// # Errors
    /// Where one of them is not in order: a host that trusts less than its operator believes starts as little as one
    /// that trusts more.
    pub fn load(settings: &config::Signatures) -> Result<Policy, PolicyError> {
        let keys = settings.keys.iter().map(|(name, key)| {
            let failed = |reason| PolicyError::Key { name: name.clone(), path: key.file.clone(), reason };
            let repositories = key.repositories.iter().map(|pattern| canonical_pattern(pattern)).collect();
            Ok(Scoped { key: TrustedKey::read(name, &key.file).map_err(failed)?, repositories })
        });
        Ok(Policy {
            keys: keys.collect::<Result<_, _>>()?,
            all: settings.required == config::Required::All,
            local_apps_refused: !settings.local_apps,
            same_repository: settings.same_repository,
        })
    }

    /// The policy that one of these keys signed whatever comes from a registry.
    pub fn trusting(keys: Vec<TrustedKey>) -> Policy {
        let scoped = |key| Scoped { key, repositories: vec!["*".to_owned()] };
        Policy { keys: keys.into_iter().map(scoped).collect(), all: true, ..Policy::default() }
    }

    /// What an artifact from this repository needs, such as `registry.example/team/app`. What a key is for must be
    /// signed; where nothing is said, `signatures.required` decides.
    ///
    /// # Errors
    /// Where it needs a signature and nobody is trusted to make one.
    pub fn demand(&self, repository: &str) -> Result<Demand<'_>, PolicyError> {
        let named = canonical(repository);
        let trusted = |scoped: &&Scoped| scoped.repositories.iter().any(|pattern| matches(pattern, &named));
        let keys: Vec<_> = self.keys.iter().filter(trusted).map(|scoped| &scoped.key).collect();
        match (keys.is_empty(), self.all) {
            (false, _) => Ok(Demand::Signed { keys, same_repository: self.same_repository }),
            (true, true) => Err(PolicyError::Nobody { repository: repository.to_owned() }),
            (true, false) => Ok(Demand::Nothing),
        }
    }

    /// Whether an app that comes from no registry may be served: a `spin.toml`, a layout, model files.
    ///
    /// # Errors
    /// Where it may not.
    pub fn admit_local(&self, what: &str) -> Result<(), PolicyError> {
        match self.local_apps_refused {
            true => Err(PolicyError::Local { what: what.to_owned() }),
            false => Ok(()),
        }
    }
}

/// Whether a pattern means a repository: the very one, those below it where it ends in `/*`, or all where it is `*`.
fn matches(pattern: &str, repository: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => repository.starts_with(beginning),
        None => repository == pattern,
    }
}

/// A pattern in the form in which repositories are compared.
fn canonical_pattern(pattern: &str) -> String {
    match pattern.strip_suffix("/*") {
        Some(above) => {
            let below = canonical(&format!("{above}/below"));
            format!("{}*", below.strip_suffix("below").unwrap_or(&below))
        }
        None => canonical(pattern),
    }
}
