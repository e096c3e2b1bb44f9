//! References: how people name an artifact in a registry.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::oci::Digest;

/// Where a short name such as `acme/digits` is meant to be, as Docker and Spin have it.
const DOCKER_HUB: &str = "docker.io";
/// Further names of it.
const DOCKER_HUB_ALIASES: [&str; 2] = ["index.docker.io", "registry-1.docker.io"];
/// What a reference without a tag and without a digest means.
const DEFAULT_TAG: &str = "latest";

const MAX_REPOSITORY_BYTES: usize = 255;
const MAX_TAG_BYTES: usize = 128;
/// A registry's name is a host's, with a port.
const MAX_REGISTRY_BYTES: usize = 255 + 6;

/// The name of an artifact: `registry/repository:tag@digest`, of which the registry, the tag and the digest may be
/// left out. What it shows is written out: `digits` is `docker.io/library/digits:latest`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is no reference.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "`{text}` does not name an artifact: {reason}; write `registry/repository:tag`, such as `ghcr.io/acme/digits:1.0`"
)]
pub struct NotAReference {
    text: String,
    reason: String,
}

impl Reference {
    /// The registry's host, with its port if it has one; in lower case.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path within the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag. There is one where there is no digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest that the artifact's manifest must have.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The host that answers for the registry: Docker Hub's is not the one by which people know it.
    pub fn host(&self) -> &str {
        match self.registry.as_str() {
            DOCKER_HUB => "registry-1.docker.io",
            registry => registry,
        }
    }

    /// The same repository, at a digest alone.
    #[must_use]
    pub fn at(&self, digest: Digest) -> Reference {
        Reference { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// The same repository, at a tag alone.
    ///
    /// # Errors
    /// Where it is not a tag.
    pub fn tagged(&self, tag: &str) -> Result<Reference, NotAReference> {
        let name = format!("{}/{}:{tag}", self.registry, self.repository);
        check_tag(tag).map_err(|reason| NotAReference { text: shortened(&name), reason })?;
        Ok(Reference { tag: Some(tag.to_owned()), digest: None, ..self.clone() })
    }

    /// The part that a registry is asked for: the digest, which decides, else the tag.
    pub(super) fn selector(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => DEFAULT_TAG.to_owned(),
        }
    }
}

impl FromStr for Reference {
    type Err = NotAReference;

    fn from_str(text: &str) -> Result<Reference, NotAReference> {
        parse(text).map_err(|reason| NotAReference { text: shortened(text), reason })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// A text as a message may show it.
fn shortened(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).take(300).collect()
}

fn parse(text: &str) -> Result<Reference, String> {
    if let Some((scheme, _)) = text.split_once("://") {
        return Err(format!("it is no address; leave out `{}://`", shortened(scheme)));
    }
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(digest.parse::<Digest>().map_err(|error| error.to_string())?)),
        None => (text, None),
    };
    let path = name.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match name[path..].find(':') {
        Some(colon) => (&name[..path + colon], Some(&name[path + colon + 1..])),
        None => (name, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest)) if is_registry(first) => (first.to_ascii_lowercase(), rest.to_owned()),
        _ => (DOCKER_HUB.to_owned(), name.to_owned()),
    };
    check_registry(&registry)?;
    check_repository(&repository)?;
    let is_docker_hub = registry == DOCKER_HUB || DOCKER_HUB_ALIASES.contains(&registry.as_str());
    let (registry, repository) = match (is_docker_hub, repository.contains('/')) {
        (true, true) => (DOCKER_HUB.to_owned(), repository),
        (true, false) => (DOCKER_HUB.to_owned(), format!("library/{repository}")),
        (false, _) => (registry, repository),
    };
    let tag = tag.or(digest.is_none().then_some(DEFAULT_TAG)).map(str::to_owned);
    Ok(Reference { registry, repository, tag, digest })
}

/// Docker's rule: what looks like a host is one.
fn is_registry(first: &str) -> bool {
    first.contains(['.', ':', '[']) || first == "localhost"
}

fn check_registry(registry: &str) -> Result<(), String> {
    let wrong = || format!("`{}` is not a host, with or without a port", shortened(registry));
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or_else(wrong)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
            (None, port)
        }
        None => registry
            .find(':')
            .map_or((Some(registry), ""), |colon| (Some(&registry[..colon]), &registry[colon..])),
    };
    let label = |label: &str| {
        let inner = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        !label.is_empty() && label.len() < 64 && inner && !label.starts_with('-') && !label.ends_with('-')
    };
    let port = match port.strip_prefix(':') {
        Some(digits) => {
            digits.bytes().all(|byte| byte.is_ascii_digit())
                && digits.parse() != Ok(0u16)
                && digits.parse::<u16>().is_ok()
        }
        None => port.is_empty(),
    };
    match port && host.is_none_or(|host| host.split('.').all(label)) && registry.len() <= MAX_REGISTRY_BYTES {
        true => Ok(()),
        false => Err(wrong()),
    }
}

fn check_repository(repository: &str) -> Result<(), String> {
    if repository.is_empty() {
        return Err("it has no repository".to_owned());
    }
    if repository.len() > MAX_REPOSITORY_BYTES {
        return Err(format!("its repository has more than {MAX_REPOSITORY_BYTES} characters"));
    }
    if repository.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err("the names of repositories are in lower case".to_owned());
    }
    match repository.split('/').all(is_path_component) {
        true => Ok(()),
        false => {
            Err("each part of its repository is of lower-case letters and digits, with single `.` or `_`, \
                      `__` or any number of `-` between them"
                .to_owned())
        }
    }
}

/// Letters and digits, with one separator between two runs of them: `.`, `_`, `__`, or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends = bytes.first().zip(bytes.last()).is_some_and(|(a, b)| alphanumeric(*a) && alphanumeric(*b));
    let mut separators = component.split(|c: char| c.is_ascii() && alphanumeric(c as u8));
    ends && separators
        .all(|between| matches!(between, "" | "." | "_" | "__") || between.bytes().all(|b| b == b'-'))
}

fn check_tag(tag: &str) -> Result<(), String> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let first = tag.bytes().next().is_some_and(word);
    let rest = tag.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-');
    match first && rest && tag.len() <= MAX_TAG_BYTES {
        true => Ok(()),
        false => Err(format!(
            "a tag has up to {MAX_TAG_BYTES} letters, digits, `_`, `.` and `-`, and begins with none of the last two"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn references_are_written_out() {
        let check = |text: &str, expected: &str| {
            let reference: Reference = text.parse().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(reference.to_string(), expected, "{text}");
            assert_eq!(expected.parse(), Ok(reference), "{text}");
        };
        check("digits", "docker.io/library/digits:latest");
        check("acme/digits:1.0", "docker.io/acme/digits:1.0");
        check("index.docker.io/digits", "docker.io/library/digits:latest");
        check("registry-1.docker.io/acme/digits", "docker.io/acme/digits:latest");
        check("ghcr.io/acme/digits", "ghcr.io/acme/digits:latest");
        check("GHCR.io/acme/digits:V1", "ghcr.io/acme/digits:V1");
        check("localhost/digits", "localhost/digits:latest");
        check("localhost:5000/a/b/c:x", "localhost:5000/a/b/c:x");
        check("test:5000/repo", "test:5000/repo:latest");
        check("test.com:5000", "docker.io/library/test.com:5000");
        check("[::1]:5000/digits", "[::1]:5000/digits:latest");
        check("127.0.0.1:5000/digits", "127.0.0.1:5000/digits:latest");
        check("a.b/a-b/c--d/e.f/g_h/i__j:_x.-", "a.b/a-b/c--d/e.f/g_h/i__j:_x.-");
        check(&format!("a.b/c@{DIGEST}"), &format!("a.b/c@{DIGEST}"));
        check(&format!("a.b/c:d@{DIGEST}"), &format!("a.b/c:d@{DIGEST}"));
    }

    #[test]
    fn what_is_no_reference_is_told_why() {
        let check = |text: &str, expected: &str| {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("write `registry/"), "{text}: {error}");
        };
        check("", "no repository");
        check("ghcr.io/", "no repository");
        check("oci://ghcr.io/a", "leave out `oci://`");
        check("ghcr.io/Acme/digits", "lower case");
        check("ghcr.io/acme//digits", "each part");
        check("ghcr.io/../digits", "each part");
        check("ghcr.io/a/./b", "each part");
        check("ghcr.io/a-/b", "each part");
        check("ghcr.io/a..b", "each part");
        check("ghcr.io/a___b", "each part");
        check("ghcr.io/a%2fb", "each part");
        check("ghcr.io/a?x=y", "each part");
        check("ghcr.io/ä", "each part");
        check("ghcr.io/a:", "a tag has");
        check("ghcr.io/a:.b", "a tag has");
        check(&format!("ghcr.io/a:{}", "x".repeat(129)), "a tag has");
        check(&format!("ghcr.io/{}", "x".repeat(256)), "more than 255");
        check("ghcr.io/a@sha256:12", "not a digest");
        check("ghcr.io/a@sha512:12", "not a digest");
        check("a..b/c", "not a host");
        check("-a.b/c", "not a host");
        check("a.b:0/c", "not a host");
        check("a.b:65536/c", "not a host");
        check("a.b:+5/c", "not a host");
        check("user@a.b/c", "not a digest");
        check("a.b:x/c", "not a host");
        check("[::1/c", "not a host");
        check("[::1]x/c", "not a host");
        check(&format!("{}.b/c", "a".repeat(300)), "not a host");
    }

    #[test]
    fn the_same_repository_has_other_tags_and_digests() {
        let reference: Reference = "ghcr.io/acme/digits:1.0".parse().unwrap();
        let digest: Digest = DIGEST.parse().unwrap();
        assert_eq!(reference.at(digest).to_string(), format!("ghcr.io/acme/digits@{DIGEST}"));
        assert_eq!(reference.at(digest).tagged("x").unwrap().to_string(), "ghcr.io/acme/digits:x");
        assert!(reference.tagged("a/b").is_err());
        assert_eq!(reference.selector(), "1.0");
        assert_eq!(
            format!("ghcr.io/acme/digits:1.0@{DIGEST}").parse::<Reference>().unwrap().selector(),
            DIGEST
        );
        assert_eq!("digits".parse::<Reference>().unwrap().host(), "registry-1.docker.io");
    }
}
