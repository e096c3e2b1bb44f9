//! Registries that want to know who asks, and who must not be told.

use super::hostile::{Asked, Shelf};
use super::*;

/// `user:secret` in base64.
const AUTH: &str = "dXNlcjpzZWNyZXQ=";
const BASIC: &str = "Basic dXNlcjpzZWNyZXQ=";

/// A registry that wants a token from itself, and a token service that wants `BASIC`, or nothing.
async fn token_registry(wants: &'static str) -> Server {
    Server::start(move |asked, _| {
        let host = asked.header("host");
        if asked.path.starts_with("/token") {
            return Some(match asked.header("authorization") == wants {
                true => {
                    let scopes: Vec<_> = asked.path.match_indices("scope=").collect();
                    Reply::new(200, format!(r#"{{"token": "t-{}", "expires_in": 300}}"#, scopes.len()))
                }
                false => Reply::new(401, r#"{"errors": [{"code": "UNAUTHORIZED", "message": "who?"}]}"#),
            });
        }
        let challenge = format!(r#"Bearer realm="http://{host}/token",service="the registry""#);
        let is_let = asked.header("authorization").starts_with("Bearer t-");
        (!is_let).then(|| Reply::new(401, "").header("www-authenticate", challenge))
    })
    .await
}

fn put(server: &Server) -> Vec<u8> {
    let layer = noise(1000, 1);
    server.put(&manifest_of(&[&layer]), &[&layer]);
    layer
}

fn tokens(server: &Server) -> Vec<Asked> {
    server.asked().into_iter().filter(|asked| asked.path.starts_with("/token")).collect()
}

#[tokio::test]
async fn a_token_is_asked_for_once() {
    let server = token_registry("").await;
    put(&server);
    Bench::new().pull(&server).await.unwrap();
    let tokens = tokens(&server);
    assert_eq!(tokens.len(), 1, "{tokens:?}");
    assert_eq!(tokens[0].path, "/token?scope=repository%3Aacme%2Fdigits%3Apull&service=the+registry");
}

#[tokio::test]
async fn a_token_service_is_shown_the_password() {
    let server = token_registry(BASIC).await;
    let layer = put(&server);
    let bench = Bench::new().with_credentials(&server.address, &format!(r#"{{"auth": "{AUTH}"}}"#));
    bench.pull(&server).await.unwrap();
    // The registry itself never sees it.
    let others = server.asked().into_iter().filter(|asked| !asked.path.starts_with("/token"));
    assert!(others.into_iter().all(|asked| asked.header("authorization") != BASIC));
    let manifest = manifest_of(&[&layer]);
    let to = server.reference("new");
    bench.registry().push(&to, &manifest, &bench.blobs(), &Report::none()).await.unwrap();
    assert!(tokens(&server).last().unwrap().path.contains("digits%3Apull%2Cpush"));
}

#[tokio::test]
async fn an_identity_token_is_exchanged() {
    let server = Server::start(|asked, _| {
        let host = asked.header("host");
        if asked.path == "/token" {
            let form = String::from_utf8(asked.body.clone()).unwrap();
            let right =
                form.starts_with("grant_type=refresh_token&refresh_token=i%26d&client_id=tenon&scope=repo");
            assert!(asked.method == "POST" && right, "{form}");
            return Some(Reply::new(200, r#"{"access_token": "t"}"#));
        }
        let challenge = format!(r#"Bearer realm="http://{host}/token""#);
        let is_let = asked.header("authorization") == "Bearer t";
        (!is_let).then(|| Reply::new(401, "").header("www-authenticate", challenge))
    })
    .await;
    put(&server);
    let bench = Bench::new().with_credentials(&server.address, r#"{"identitytoken": "i&d"}"#);
    bench.pull(&server).await.unwrap();
}

#[tokio::test]
async fn a_password_is_shown_where_it_is_asked_for() {
    let server = Server::start(|asked, _| {
        (asked.header("authorization") != BASIC)
            .then(|| Reply::new(401, "").header("www-authenticate", r#"Basic realm="x""#))
    })
    .await;
    put(&server);
    let bench = Bench::new().with_credentials(&server.address, &format!(r#"{{"auth": "{AUTH}"}}"#));
    bench.pull(&server).await.unwrap();
    assert_eq!(server.asked().iter().filter(|asked| asked.header("authorization").is_empty()).count(), 1);
    let error = Bench::new().pull(&server).await.unwrap_err();
    assert_says(&error, &["lets nobody pull from `acme/digits` without a login", "`docker login 127.0.0.1:"]);
}

#[tokio::test]
async fn what_is_refused_says_whose_credentials_were_shown() {
    let server = token_registry("nobody").await;
    put(&server);
    let error = Bench::new().pull(&server).await.unwrap_err();
    assert_says(&error, &["lets nobody pull from", "`podman login "]);
    let bench = Bench::new().with_credentials(&server.address, &format!(r#"{{"auth": "{AUTH}"}}"#));
    let error = bench.pull(&server).await.unwrap_err();
    assert_says(
        &error,
        &["does not let the user of `", "config.json`", "pull from `acme/digits`", "log in anew"],
    );
    assert!(!format!("{error} {error:?}").contains("secret"));
    let forbidding = Server::start(|_, _| {
        Some(Reply::new(403, r#"{"errors": [{"code": "DENIED", "message": "not\nyou\u0007"}]}"#))
    })
    .await;
    let error = Bench::new().pull(&forbidding).await.unwrap_err();
    assert_says(&error, &["lets nobody pull", "(not you?)"]);
}

#[tokio::test]
async fn a_token_that_ends_is_replaced() {
    let server = Server::start(|asked, _| {
        let host = asked.header("host");
        if asked.path.starts_with("/token") {
            return Some(Reply::new(200, format!(r#"{{"token": "t{}", "expires_in": 300}}"#, asked.times)));
        }
        // The second token is for the blobs.
        let wanted = if asked.path.contains("/blobs/") { "Bearer t1" } else { "Bearer t0" };
        let challenge = format!(r#"Bearer realm="http://{host}/token""#);
        (asked.header("authorization") != wanted)
            .then(|| Reply::new(401, "").header("www-authenticate", challenge))
    })
    .await;
    put(&server);
    let mut bench = Bench::new();
    bench.options.settings.transfers = 1;
    bench.pull(&server).await.unwrap();
    assert_eq!(tokens(&server).len(), 2);
}

#[tokio::test]
async fn token_services_that_make_no_sense_are_named() {
    async fn check(challenge: &'static str, token: &'static str, expected: &[&str]) {
        let server = Server::start(move |asked, _| {
            if asked.path.starts_with("/token") {
                return Some(Reply::new(200, token));
            }
            let challenge = challenge.replace("HERE", asked.header("host"));
            Some(Reply::new(401, "").header("www-authenticate", challenge))
        })
        .await;
        let error = Bench::new().pull(&server).await.unwrap_err();
        assert_says(&error, expected);
    }
    let here = r#"Bearer realm="http://HERE/token""#;
    check(here, "{}", &["with something else than a registry does (no token)"]).await;
    check(here, "<html>", &["(no token)"]).await;
    check(here, r#"{"token": "wrong"}"#, &["lets nobody pull"]).await;
    check(r#"Bearer realm="nowhere""#, "", &["a token service at `nowhere`"]).await;
    check(r#"Bearer realm="ftp://x.y/""#, "", &["sends its callers to `ftp://x.y`", "they stay here"]).await;
    check("Negotiate", "", &["lets nobody pull"]).await;
    check("=~,", "", &["lets nobody pull"]).await;
}

/// A registry whose blobs are at another host, which must be told nothing.
#[tokio::test]
async fn another_host_is_shown_no_credentials() {
    let layer = noise(100_000, 1);
    let bytes = layer.clone();
    let storage = Server::start(move |asked, _| {
        assert_eq!(asked.header("authorization"), "");
        Some(match asked.times {
            0 => Reply::new(200, &*bytes).cut(50_000),
            // Its leave ran out.
            1 => Reply::new(403, "signature=secret"),
            _ => hostile::part(&bytes, asked.header("range")),
        })
    })
    .await;
    let at = storage.address.clone();
    let digest = Digest::of(&layer);
    let server = Server::start(move |asked, _| {
        if asked.header("authorization") != BASIC {
            return Some(Reply::new(401, "").header("www-authenticate", r#"Basic realm="x""#));
        }
        let is_layer = asked.is_blob() && asked.path.contains(&digest.to_string());
        is_layer.then(|| Reply::new(307, "").header("location", format!("http://{at}/x?signature=secret")))
    })
    .await;
    server.put(&manifest_of(&[&layer]), &[&layer]);
    let bench = Bench::new().with_credentials(&server.address, &format!(r#"{{"auth": "{AUTH}"}}"#));
    bench.pull(&server).await.unwrap();
    let ranges: Vec<_> = storage.asked().iter().map(|asked| asked.header("range").to_owned()).collect();
    assert_eq!(ranges, ["", "bytes=50000-", "bytes=50000-"]);
    assert!(bench.told().iter().all(|what| !format!("{what:?}").contains("secret")), "{:?}", bench.told());
}

#[tokio::test]
async fn redirects_have_an_end() {
    let around = |asked: &Asked, _: &Shelf| {
        asked.is_manifest().then(|| Reply::new(302, "").header("location", &asked.path))
    };
    let server = Server::start(around).await;
    assert_says(Bench::new().pull(&server).await.unwrap_err(), &["redirected more than 5 times"]);
    assert_eq!(server.asked().len(), 6);
    let nowhere = |asked: &Asked, _: &Shelf| asked.is_manifest().then(|| Reply::new(302, ""));
    let server = Server::start(nowhere).await;
    assert_says(Bench::new().pull(&server).await.unwrap_err(), &["redirected to no address"]);
    let odd = |asked: &Asked, _: &Shelf| {
        asked.is_manifest().then(|| Reply::new(302, "").header("location", "file:///etc/passwd"))
    };
    let server = Server::start(odd).await;
    assert_says(Bench::new().pull(&server).await.unwrap_err(), &["without TLS"]);
}
