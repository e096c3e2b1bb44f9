//! What may be asked for: paths, methods, and the scope that each needs. `openapi.json` describes the same for programs,
//! and a test compares the two.

use http::Method;

use crate::artifact::oci::Digest;
use crate::config::Scope;

/// What a caller asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Health,
    Describe,
    Status,
    App,
    Remove,
    Prepare,
    Discard,
    Start,
    Promote,
    Pause,
    Resume,
    Rollback,
    History,
    Shadow,
    HasBlob,
    PutBlob,
}

/// One line of the table.
pub(super) struct Route {
    pub(super) method: Method,
    /// A part in braces stands for any one part of a path.
    pub(super) path: &'static str,
    pub(super) operation: Operation,
    /// `None` where anybody may ask.
    pub(super) scope: Option<Scope>,
}

const READ: Option<Scope> = Some(Scope::Read);
const DEPLOY: Option<Scope> = Some(Scope::Deploy);

const fn on(method: Method, path: &'static str, operation: Operation, scope: Option<Scope>) -> Route {
    Route { method, path, operation, scope }
}

pub(super) static ROUTES: [Route; 16] = [
    on(Method::GET, "/v1/health", Operation::Health, None),
    on(Method::GET, "/v1/openapi.json", Operation::Describe, READ),
    on(Method::GET, "/v1/status", Operation::Status, READ),
    on(Method::POST, "/v1/revisions", Operation::Prepare, DEPLOY),
    on(Method::GET, "/v1/apps/{app}", Operation::App, READ),
    on(Method::DELETE, "/v1/apps/{app}", Operation::Remove, DEPLOY),
    on(Method::DELETE, "/v1/apps/{app}/revisions/{revision}", Operation::Discard, DEPLOY),
    on(Method::POST, "/v1/apps/{app}/rollout", Operation::Start, DEPLOY),
    on(Method::POST, "/v1/apps/{app}/rollout/promote", Operation::Promote, DEPLOY),
    on(Method::POST, "/v1/apps/{app}/rollout/pause", Operation::Pause, DEPLOY),
    on(Method::POST, "/v1/apps/{app}/rollout/resume", Operation::Resume, DEPLOY),
    on(Method::POST, "/v1/apps/{app}/rollout/rollback", Operation::Rollback, DEPLOY),
    on(Method::GET, "/v1/apps/{app}/history", Operation::History, READ),
    on(Method::GET, "/v1/apps/{app}/shadow", Operation::Shadow, READ),
    on(Method::HEAD, "/v1/blobs/{digest}", Operation::HasBlob, DEPLOY),
    on(Method::PUT, "/v1/blobs/{digest}", Operation::PutBlob, DEPLOY),
];

/// What of a path stood where the table has braces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Parameters {
    pub(super) app: String,
    pub(super) revision: u64,
    pub(super) digest: Option<Digest>,
}

/// Where a path leads.
pub(super) enum Found {
    Route(&'static Route, Parameters),
    /// The path is there for these methods.
    OtherMethods(Vec<Method>),
    Nothing,
}

/// Looks a path up. Paths are taken as they are written: nothing in them needs to be encoded.
pub(super) fn find(method: &Method, path: &str) -> Found {
    let mut others = Vec::new();
    for route in &ROUTES {
        let Some(parameters) = matches(route.path, path) else { continue };
        if route.method == method {
            return Found::Route(route, parameters);
        }
        others.push(route.method.clone());
    }
    match others.is_empty() {
        true => Found::Nothing,
        false => Found::OtherMethods(others),
    }
}

fn matches(pattern: &str, path: &str) -> Option<Parameters> {
    let mut parameters = Parameters::default();
    let mut parts = path.split('/');
    for expected in pattern.split('/') {
        let part = parts.next()?;
        match expected {
            "{app}" if is_app(part) => part.clone_into(&mut parameters.app),
            "{revision}" => parameters.revision = revision(part)?,
            "{digest}" => parameters.digest = Some(part.parse().ok()?),
            expected if expected == part => {}
            _ => return None,
        }
    }
    parts.next().is_none().then_some(parameters)
}

/// Whether an app can have this name.
fn is_app(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=64).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(allowed)
}

/// A number from 1, written in one way alone.
fn revision(text: &str) -> Option<u64> {
    let is_number = text.starts_with(|c: char| matches!(c, '1'..='9'));
    text.parse().ok().filter(|_| is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_where_the_table_says() {
        let check = |method: Method, path: &str, expected: Option<(Operation, &str, u64)>| {
            let found = match find(&method, path) {
                Found::Route(route, parameters) => Some((route.operation, parameters)),
                Found::OtherMethods(_) | Found::Nothing => None,
            };
            let found = found.as_ref().map(|(operation, p)| (*operation, p.app.as_str(), p.revision));
            assert_eq!(found, expected, "{method} {path}");
        };
        check(Method::GET, "/v1/health", Some((Operation::Health, "", 0)));
        check(Method::GET, "/v1/apps/digits", Some((Operation::App, "digits", 0)));
        check(Method::DELETE, "/v1/apps/digits", Some((Operation::Remove, "digits", 0)));
        check(Method::DELETE, "/v1/apps/a.b/revisions/12", Some((Operation::Discard, "a.b", 12)));
        check(Method::POST, "/v1/apps/x/rollout", Some((Operation::Start, "x", 0)));
        check(Method::POST, "/v1/apps/rollout/rollout/pause", Some((Operation::Pause, "rollout", 0)));
        for path in [
            "",
            "/",
            "/v1",
            "/v1/health/",
            "//v1/health",
            "/v1//health",
            "/V1/health",
            "/v1/apps",
            "/v1/apps/",
            "/v1/apps/..",
            "/v1/apps/%61",
            "/v1/apps/a/b",
            "/v1/apps/é",
        ] {
            check(Method::GET, path, None);
        }
        for number in ["", "0", "01", "+1", "-1", "1.0", "x", "18446744073709551616"] {
            check(Method::DELETE, &format!("/v1/apps/a/revisions/{number}"), None);
        }
        for digest in ["sha256:0", "0", &format!("sha256:{}", "A".repeat(64)), &"0".repeat(64)] {
            check(Method::PUT, &format!("/v1/blobs/{digest}"), None);
        }
        let digest = Digest::of(b"");
        let Found::Route(route, parameters) = find(&Method::HEAD, &format!("/v1/blobs/{digest}")) else {
            panic!("it is there");
        };
        assert_eq!((route.operation, parameters.digest), (Operation::HasBlob, Some(digest)));
    }

    #[test]
    fn other_methods_are_told() {
        let check = |method: Method, path: &str, expected: &[Method]| match find(&method, path) {
            Found::OtherMethods(methods) => assert_eq!(methods, expected, "{path}"),
            Found::Route(..) | Found::Nothing => assert!(expected.is_empty(), "{path}"),
        };
        check(Method::POST, "/v1/status", &[Method::GET]);
        check(Method::PUT, "/v1/apps/a", &[Method::GET, Method::DELETE]);
        check(Method::GET, &format!("/v1/blobs/{}", Digest::of(b"")), &[Method::HEAD, Method::PUT]);
        check(Method::POST, "/v1/nothing", &[]);
    }
}
