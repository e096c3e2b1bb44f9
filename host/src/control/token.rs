//! Tokens of the control API: which there are, what each may be used for, and whether a caller has one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use ring::hmac;
use ring::rand::SystemRandom;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::config::{Scope, Token, TokenSource};

/// The fewest and the most characters of a token: fewer could be guessed.
const LENGTH: std::ops::RangeInclusive<usize> = 20..=1024;
/// The most bytes of a file with a token.
const MAX_FILE_BYTES: u64 = 4096;
/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// The tokens that are in force.
pub struct Tokens {
    settings: BTreeMap<String, Token>,
    current: ArcSwap<Current>,
    /// Made anew by each process: what it marks can be compared in constant time.
    key: hmac::Key,
}

struct Current {
    known: Vec<Known>,
    /// How the files were when they were read.
    stamps: Vec<Stamp>,
}

/// A token that may be used now.
struct Known {
    name: String,
    /// The mark of the token's SHA-256.
    mark: hmac::Tag,
    scopes: BTreeSet<Scope>,
}

/// Tells one state of a file from another: device, inode, length and times; `None` for one that is not there.
type Stamp = Option<[i64; 7]>;

/// Why tokens cannot be used.
#[derive(Debug, Error)]
pub enum TokenError {
    #[error(
        "the file `{}` of the token `{name}` cannot be read: {source}; check `control.tokens.{name}.token_file` in \
         host.toml, and that the host may read it", path.display()
    )]
    Unreadable { name: String, path: PathBuf, source: io::Error },
    #[error(
        "the file `{}` of the token `{name}` does not hold a token: it must have {} to {} printable characters without \
         spaces, such as `openssl rand -hex 32` prints, and nothing else", path.display(), LENGTH.start(), LENGTH.end()
    )]
    NoToken { name: String, path: PathBuf },
    #[error("the tokens `{0}` and `{1}` of host.toml are the same; give each a secret of its own")]
    Same(String, String),
    #[error("the system gives no random numbers; tokens cannot be compared without")]
    Random,
}

/// Whom a token belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bearer {
    pub name: String,
    scopes: BTreeSet<Scope>,
}

impl Bearer {
    /// Whether it may do what needs `scope`. Who may change what is served may look at it.
    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.range(scope..).next().is_some()
    }
}

impl Tokens {
    /// Reads the tokens of the operator's settings.
    ///
    /// # Errors
    /// Where a file cannot be read or holds no token, or two are the same.
    pub fn load(settings: BTreeMap<String, Token>) -> Result<Tokens, TokenError> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new());
        let key = key.map_err(|_| TokenError::Random)?;
        // Before the files are read: what changes after this is read again.
        let stamps = stamps(&settings);
        let mut known = Vec::new();
        let mut seen: BTreeMap<[u8; 32], &str> = BTreeMap::new();
        for (name, token) in &settings {
            let hash = hash_of(name, &token.source)?;
            if let Some(other) = seen.insert(hash, name) {
                return Err(TokenError::Same(other.to_owned(), name.clone()));
            }
            let mark = hmac::sign(&key, &hash);
            known.push(Known { name: name.clone(), mark, scopes: token.scopes.clone() });
        }
        let current = ArcSwap::from_pointee(Current { known, stamps });
        Ok(Tokens { settings, current, key })
    }

    /// Whether the operator has made no tokens.
    pub fn is_empty(&self) -> bool {
        self.settings.is_empty()
    }

    /// Whom a presented token belongs to. Takes as long whichever of them it is, or none: what it is hashed to is
    /// compared with every token, each in constant time.
    pub fn bearer(&self, presented: &str) -> Option<Bearer> {
        if !LENGTH.contains(&presented.len()) {
            return None;
        }
        let hash: [u8; 32] = Sha256::digest(presented).into();
        let current = self.current.load();
        let mut found = None;
        for known in &current.known {
            if hmac::verify(&self.key, &hash, known.mark.as_ref()).is_ok() {
                found = Some(known);
            }
        }
        found.map(|known| Bearer { name: known.name.clone(), scopes: known.scopes.clone() })
    }

    /// Looks at the files for as long as anybody holds the tokens, and takes what is in order where they have changed:
    /// a token can be replaced, or taken away, while a host runs. Must be called within a tokio runtime.
    pub fn watch(self: &Arc<Self>) {
        if !self.settings.values().any(|token| matches!(token.source, TokenSource::File(_))) {
            return;
        }
        let tokens = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK).await;
                let looking = tokio::task::spawn_blocking({
                    let tokens = Weak::clone(&tokens);
                    move || tokens.upgrade().map(|tokens| tokens.look())
                });
                match looking.await {
                    Ok(Some(())) => {}
                    Ok(None) => return,
                    Err(error) => tracing::error!(%error, "the files of tokens could not be looked at"),
                }
            }
        });
    }

    /// Reads the files anew where one has changed. A token whose file is not in order is not in force.
    fn look(&self) {
        let stamps = stamps(&self.settings);
        if stamps == self.current.load().stamps {
            return;
        }
        let mut known: Vec<Known> = Vec::new();
        for (name, token) in &self.settings {
            let mark = match hash_of(name, &token.source) {
                Ok(hash) => hmac::sign(&self.key, &hash),
                Err(error) => {
                    tracing::warn!("{error}; until then, nobody is let in with this token");
                    continue;
                }
            };
            let same = known.iter().position(|other| other.mark.as_ref() == mark.as_ref());
            if let Some(same) = same {
                // Nobody can say which of the two was meant.
                let other = known.remove(same);
                let error = TokenError::Same(other.name, name.clone());
                tracing::warn!("{error}; until then, nobody is let in with either");
                continue;
            }
            known.push(Known { name: name.clone(), mark, scopes: token.scopes.clone() });
        }
        tracing::info!("the tokens of the control API were read anew: {} are in force", known.len());
        self.current.store(Arc::new(Current { known, stamps }));
    }
}

fn stamps(settings: &BTreeMap<String, Token>) -> Vec<Stamp> {
    let stamp = |token: &Token| {
        let TokenSource::File(path) = &token.source else { return None };
        let file = path.metadata().ok()?;
        let [dev, ino, len] = [file.dev(), file.ino(), file.len()].map(u64::cast_signed);
        Some([dev, ino, len, file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec()])
    };
    settings.values().map(stamp).collect()
}

fn hash_of(name: &str, source: &TokenSource) -> Result<[u8; 32], TokenError> {
    let path = match source {
        TokenSource::Sha256(hash) => return Ok(*hash),
        TokenSource::File(path) => path,
    };
    let text = read(path).map_err(|source| TokenError::Unreadable {
        name: name.to_owned(),
        path: path.clone(),
        source,
    })?;
    let token = text.trim_ascii();
    let is_token = LENGTH.contains(&token.len()) && token.iter().all(u8::is_ascii_graphic);
    match is_token {
        true => Ok(Sha256::digest(token).into()),
        false => Err(TokenError::NoToken { name: name.to_owned(), path: path.clone() }),
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CI: &str = "a-token-of-the-continuous-integration";
    const EYES: &str = "a-token-for-somebody-who-looks-only";

    fn token(source: TokenSource, scopes: &[Scope]) -> Token {
        Token { source, scopes: scopes.iter().copied().collect() }
    }

    fn by_hash(text: &str, scopes: &[Scope]) -> Token {
        token(TokenSource::Sha256(Sha256::digest(text).into()), scopes)
    }

    fn named(tokens: impl IntoIterator<Item = (&'static str, Token)>) -> BTreeMap<String, Token> {
        tokens.into_iter().map(|(name, token)| (name.to_owned(), token)).collect()
    }

    #[test]
    fn a_token_is_known_by_its_hash_and_allows_what_its_scopes_say() {
        let both = [("ci", by_hash(CI, &[Scope::Deploy])), ("eyes", by_hash(EYES, &[Scope::Read]))];
        let tokens = Tokens::load(named(both)).unwrap();
        let check = |presented: &str, expected: Option<(&str, [bool; 2])>| {
            let found = tokens.bearer(presented);
            let found =
                found.as_ref().map(|b| (b.name.as_str(), [Scope::Read, Scope::Deploy].map(|s| b.may(s))));
            assert_eq!(found, expected, "{presented}");
        };
        check(CI, Some(("ci", [true, true])));
        check(EYES, Some(("eyes", [true, false])));
        check("", None);
        check(&CI[..CI.len() - 1], None);
        check(&format!("{CI} "), None);
        check(&CI.to_uppercase(), None);
        check(&"x".repeat(1 << 20), None);
    }

    #[test]
    fn no_files_and_no_tokens_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let check = |text: Option<&str>, expected: &str| {
            let path = dir.path().join("token");
            let _ = std::fs::remove_file(&path);
            if let Some(text) = text {
                std::fs::write(&path, text).unwrap();
            }
            let loaded = Tokens::load(named([("ci", token(TokenSource::File(path), &[Scope::Read]))]));
            let error = loaded.map(drop).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        };
        check(None, "cannot be read");
        check(Some(""), "does not hold a token");
        check(Some("hunter2"), "does not hold a token");
        check(Some("hunter2 with spaces in between"), "does not hold a token");
        check(Some(&"hunter2".repeat(1000)), "does not hold a token");
        let twice = [("a", by_hash(CI, &[Scope::Read])), ("b", by_hash(CI, &[Scope::Deploy]))];
        let error = Tokens::load(named(twice)).map(drop).unwrap_err().to_string();
        assert!(error.contains("`a` and `b` of host.toml are the same"), "{error}");
    }

    #[test]
    fn a_file_that_changes_is_read_anew_and_one_that_goes_is_no_token_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, format!("{CI}\n")).unwrap();
        let settings = named([
            ("ci", token(TokenSource::File(path.clone()), &[Scope::Deploy])),
            ("eyes", by_hash(EYES, &[Scope::Read])),
        ]);
        let tokens = Tokens::load(settings).unwrap();
        let check = |presented: &str, expected: Option<&str>| {
            tokens.look();
            assert_eq!(tokens.bearer(presented).map(|bearer| bearer.name).as_deref(), expected);
        };
        let new = format!("{CI}-of-today");
        check(CI, Some("ci"));
        std::fs::write(&path, &new).unwrap();
        check(CI, None);
        check(&new, Some("ci"));
        std::fs::write(&path, EYES).unwrap();
        check(&new, None);
        check(EYES, None);
        std::fs::remove_file(&path).unwrap();
        check(&new, None);
        check(EYES, Some("eyes"));
        std::fs::write(&path, CI).unwrap();
        check(CI, Some("ci"));
    }
}
