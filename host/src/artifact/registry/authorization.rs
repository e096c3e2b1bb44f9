//! What a registry is shown so that it lets a request pass: nothing, a password, or a token that a token service gave.
//!
//! A registry says with its 401 which it wants. A password goes to the registry itself, or to the token service that
//! the registry names, and over TLS unless the registry itself is spoken to without; nowhere else.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use http_auth::ChallengeRef;
use reqwest::{RequestBuilder, Url};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::credentials::{self, Found, Secret};
use super::error::{Failure, RegistryError, printable};
use super::http::Client;
use crate::artifact::reference::Reference;

/// The largest answer of a token service that is read, in bytes.
const MAX_TOKEN_BYTES: u64 = 1 << 20;
/// How long a token serves whose service does not say.
const TOKEN_S: u64 = 60;
/// How long credentials and tokens are believed at most.
const MAX_TOKEN_S: u64 = 3600;
/// A program that keeps credentials may ask a service of its own.
const PROGRAM: Duration = Duration::from_secs(30);
/// The most repositories whose tokens are kept.
const MAX_KEPT: usize = 256;

/// What a request wants to do, which is what a token is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Access {
    pub(super) reference: Reference,
    pub(super) is_push: bool,
    /// Repositories of the same registry that are read besides.
    pub(super) sources: Vec<String>,
}

impl Access {
    pub(super) fn pull(reference: &Reference) -> Access {
        Access { reference: reference.clone(), is_push: false, sources: Vec::new() }
    }

    pub(super) fn push(reference: &Reference) -> Access {
        Access { is_push: true, ..Access::pull(reference) }
    }

    pub(super) fn action(&self) -> &'static str {
        if self.is_push { "push to" } else { "pull from" }
    }

    /// The scopes in the words of token services.
    fn scopes(&self) -> Vec<String> {
        let actions = if self.is_push { "pull,push" } else { "pull" };
        let own = format!("repository:{}:{actions}", self.reference.repository());
        let others = self.sources.iter().map(|source| format!("repository:{source}:pull"));
        std::iter::once(own).chain(others).collect()
    }

    fn key(&self) -> String {
        format!("{} {}", self.reference.registry(), self.scopes().join(" "))
    }
}

/// What goes along with requests.
#[derive(Clone)]
pub(super) enum Grant {
    Password { user: String, password: String },
    Token(String),
}

impl Grant {
    pub(super) fn apply(&self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Grant::Password { user, password } => request.basic_auth(user, Some(password)),
            Grant::Token(token) => request.bearer_auth(token),
        }
    }
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Grant")
    }
}

/// What was granted, and what is known of credentials.
#[derive(Default)]
pub(super) struct Authorizations {
    grants: Mutex<HashMap<String, (Grant, Instant)>>,
    found: Mutex<HashMap<String, Option<Found>>>,
}

/// How a registry wants to be asked.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Challenge {
    /// The challenge in the values of `WWW-Authenticate` that can be met; a token before a password.
    pub(super) fn read<'a>(values: impl Iterator<Item = &'a str>) -> Option<Challenge> {
        let parsed: Vec<ChallengeRef<'_>> =
            values.filter_map(|value| http_auth::parse_challenges(value).ok()).flatten().collect();
        let of = |scheme: &str| parsed.iter().find(|challenge| challenge.scheme.eq_ignore_ascii_case(scheme));
        if let Some(bearer) = of("bearer") {
            let value = |name: &str| {
                let mut params = bearer.params.iter();
                params.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_unescaped())
            };
            return Some(Challenge::Bearer { realm: value("realm")?, service: value("service") });
        }
        of("basic").map(|_| Challenge::Basic)
    }
}

impl Client {
    /// What is known to let a request pass, if anything is.
    pub(super) async fn granted(&self, access: &Access) -> Option<Grant> {
        let grants = self.authorizations.grants.lock().await;
        let (grant, until) = grants.get(&access.key())?;
        (Instant::now() < *until).then(|| grant.clone())
    }

    /// Meets a registry's challenge. Answers nothing where there is nothing to meet it with.
    pub(super) async fn authorize(
        &self,
        access: &Access,
        challenge: &Challenge,
    ) -> Result<Option<Grant>, Failure> {
        let found = self.credentials(access).await.map_err(RegistryError::from)?;
        let (grant, lasts_s) = match (challenge, found) {
            (Challenge::Basic, Some(Found { secret: Secret::Password { user, password }, .. })) => {
                (Grant::Password { user, password }, MAX_TOKEN_S)
            }
            (Challenge::Basic, _) => return Ok(None),
            (Challenge::Bearer { realm, service }, found) => {
                match self.token(access, realm, service.as_deref(), found.as_ref()).await? {
                    Some(token) => token,
                    None => return Ok(None),
                }
            }
        };
        let mut grants = self.authorizations.grants.lock().await;
        if grants.len() >= MAX_KEPT {
            grants.clear();
        }
        // A little early, so that it does not end on its way.
        let lasts = Duration::from_secs(lasts_s.clamp(1, MAX_TOKEN_S)).mul_f32(0.9);
        grants.insert(access.key(), (grant.clone(), Instant::now() + lasts));
        Ok(Some(grant))
    }

    /// Where the credentials for a repository come from, once they were looked for.
    pub(super) async fn source_of(&self, access: &Access) -> Option<String> {
        let found = self.authorizations.found.lock().await;
        found.get(&credentials_key(access)).cloned().flatten().map(|found| found.source)
    }

    async fn credentials(&self, access: &Access) -> Result<Option<Found>, credentials::CredentialError> {
        // One search at a time: several layers must not start a program each.
        let mut known = self.authorizations.found.lock().await;
        let key = credentials_key(access);
        if let Some(found) = known.get(&key) {
            return Ok(found.clone());
        }
        let found = credentials::find(&self.options.credentials, &access.reference, PROGRAM).await?;
        if known.len() >= MAX_KEPT {
            known.clear();
        }
        known.insert(key, found.clone());
        Ok(found)
    }

    /// Has a token service give a token, and says for how many seconds it serves. Nothing where it refuses.
    async fn token(
        &self,
        access: &Access,
        realm: &str,
        service: Option<&str>,
        found: Option<&Found>,
    ) -> Result<Option<(Grant, u64)>, Failure> {
        let registry = access.reference.registry();
        let mut url = Url::parse(realm).map_err(|_| RegistryError::NotARegistry {
            host: registry.to_owned(),
            registry: registry.to_owned(),
            what: "a request".to_owned(),
            found: format!("a token service at `{}`", printable(realm, 100)),
        })?;
        let may_be_plain = self.is_plain(&access.reference);
        if url.scheme() != "https" && !(may_be_plain && url.scheme() == "http") {
            let realm = origin(&url);
            return Err(RegistryError::Realm { registry: registry.to_owned(), realm }.into());
        }
        let mut wanted: Vec<(&str, String)> =
            access.scopes().into_iter().map(|scope| ("scope", scope)).collect();
        wanted.extend(service.map(|service| ("service", service.to_owned())));
        let request = match found.map(|found| &found.secret) {
            Some(Secret::IdentityToken(token)) => {
                let own = [("grant_type", "refresh_token"), ("refresh_token", token), ("client_id", "tenon")];
                let own = own.iter().map(|(name, value)| (*name, (*value).to_owned()));
                let mut form = Url::parse("form:").expect("a constant");
                form.query_pairs_mut().extend_pairs(own.chain(wanted));
                self.http(&url)
                    .post(url.clone())
                    .header("Content-Type", "application/x-www-form-urlencoded")
                    .body(form.query().unwrap_or_default().to_owned())
            }
            secret => {
                url.query_pairs_mut().extend_pairs(&wanted);
                let request = self.http(&url).get(url.clone());
                match secret {
                    Some(Secret::Password { user, password }) => request.basic_auth(user, Some(password)),
                    _ => request,
                }
            }
        };
        let what = format!("the token service at `{}`", origin(&url));
        let response = self.perform(request, registry, &what).await?;
        match response.status().as_u16() {
            200 => {}
            400..=499 if response.status().as_u16() != 429 => return Ok(None),
            _ => return Err(self.unexpected(response, registry, &what).await),
        }
        let body = self.body(response, MAX_TOKEN_BYTES, registry, &what).await?;
        let token: Option<Token> = serde_json::from_slice(&body).ok();
        let lasts_s = token.as_ref().and_then(|token| token.expires_in).unwrap_or(TOKEN_S);
        let token =
            token.and_then(|token| token.token.or(token.access_token)).filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| RegistryError::NotARegistry {
            host: origin(&url),
            registry: registry.to_owned(),
            what: "the request for a token".to_owned(),
            found: "no token".to_owned(),
        })?;
        Ok(Some((Grant::Token(token), lasts_s)))
    }
}

fn credentials_key(access: &Access) -> String {
    format!("{}/{}", access.reference.registry(), access.reference.repository())
}

/// The part of an address that holds no secret.
pub(super) fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let check = |values: &[&str], expected: Option<Challenge>| {
            assert_eq!(Challenge::read(values.iter().copied()), expected, "{values:?}");
        };
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) })
        };
        check(
            &[r#"Bearer realm="https://a.b/token",service="s",scope="repository:x:pull""#],
            bearer("https://a.b/token", Some("s")),
        );
        check(&[r#"bearer Realm="https://a.b""#], bearer("https://a.b", None));
        check(&[r#"Basic realm="x""#, r#"Bearer realm="r""#], bearer("r", None));
        check(&[r#"Basic realm="x""#], Some(Challenge::Basic));
        check(&["Bearer"], None);
        check(&[r#"Digest realm="x""#], None);
        check(&["\u{1}", "x=y="], None);
        check(&[], None);
    }

    #[test]
    fn scopes_are_in_the_words_of_token_services() {
        let reference: Reference = "a.b/c/d".parse().unwrap();
        assert_eq!(Access::pull(&reference).scopes(), ["repository:c/d:pull"]);
        let push = Access { sources: vec!["x".to_owned()], ..Access::push(&reference) };
        assert_eq!(push.scopes(), ["repository:c/d:pull,push", "repository:x:pull"]);
    }

    #[test]
    fn nothing_secret_is_shown() {
        let grant = Grant::Password { user: "u".to_owned(), password: "p".to_owned() };
        assert_eq!(format!("{grant:?}"), "Grant");
    }
}
