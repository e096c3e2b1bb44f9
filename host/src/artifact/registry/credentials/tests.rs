//! Credentials from files and programs.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

const BOUND: Duration = Duration::from_secs(20);

/// `user:NAME` in base64.
fn auth(name: &str) -> String {
    // A few are enough.
    match name {
        "one" => "dXNlcjpvbmU=",
        "two" => "dXNlcjp0d28=",
        "three" => "dXNlcjp0aHJlZQ==",
        _ => panic!("{name}"),
    }
    .to_owned()
}

struct Home {
    folder: tempfile::TempDir,
    files: CredentialFiles,
}

impl Home {
    fn new() -> Home {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let files = CredentialFiles {
            chosen: None,
            docker: Some(at("docker.json")),
            podman: vec![at("session.json"), at("user.json")],
            spin: Some(at("spin.json")),
        };
        Home { folder, files }
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).unwrap();
    }

    async fn find(&self, reference: &str) -> Result<Option<Found>, CredentialError> {
        find(&self.files, &reference.parse().unwrap(), BOUND).await
    }

    async fn check(&self, reference: &str, password: &str, source: &str) {
        let found = self.find(reference).await.unwrap();
        let Some(found) = found else { panic!("nothing for {reference}") };
        let expected = Secret::Password { user: "user".to_owned(), password: password.to_owned() };
        assert_eq!(found.secret, expected, "{reference}");
        assert!(found.source.contains(source), "{found:?}");
        assert!(!format!("{found:?}").contains(password), "{found:?}");
    }
}

#[tokio::test]
async fn the_first_file_that_knows_a_registry_decides() {
    let mut home = Home::new();
    assert_eq!(home.find("a.b/c").await.unwrap(), None);
    home.write("spin.json", &format!(r#"{{"auths": {{"a.b": "{}"}}}}"#, auth("three")));
    home.check("a.b/c", "three", "spin.json").await;
    home.write("user.json", &format!(r#"{{"auths": {{"a.b": {{"auth": "{}"}}}}}}"#, auth("two")));
    home.check("a.b/c", "two", "user.json").await;
    home.write(
        "docker.json",
        &format!(r#"{{"auths": {{"a.b": {{"auth": "{}"}}, "x.y": {{}}}}}}"#, auth("one")),
    );
    home.check("a.b/c", "one", "docker.json").await;
    assert_eq!(home.find("x.y/c").await.unwrap(), None);
    home.files.chosen = Some(home.folder.path().join("user.json"));
    home.check("a.b/c", "two", "user.json").await;
}

#[tokio::test]
async fn the_longest_part_of_a_repository_decides() {
    let home = Home::new();
    let entries = [("a.b", "one"), ("a.b/c", "two"), ("a.b/c/d", "three")]
        .map(|(key, name)| format!(r#""{key}": {{"auth": "{}"}}"#, auth(name)));
    home.write("session.json", &format!(r#"{{"auths": {{{}}}}}"#, entries.join(",")));
    home.check("a.b/c/d", "three", "").await;
    home.check("a.b/c/e", "two", "").await;
    home.check("a.b/cc", "one", "").await;
    assert_eq!(home.find("a.bb/c").await.unwrap(), None);
}

#[tokio::test]
async fn docker_hub_has_several_names() {
    let home = Home::new();
    for key in ["https://index.docker.io/v1/", "docker.io", "index.docker.io"] {
        home.write("docker.json", &format!(r#"{{"auths": {{"{key}": {{"auth": "{}"}}}}}}"#, auth("one")));
        home.check("acme/digits", "one", "").await;
        assert_eq!(home.find("ghcr.io/acme/digits").await.unwrap(), None);
    }
}

#[tokio::test]
async fn identity_tokens_are_told_from_passwords() {
    let home = Home::new();
    home.write("docker.json", r#"{"auths": {"a.b": {"auth": "dXNlcjo=", "identitytoken": "t"}}}"#);
    let found = home.find("a.b/c").await.unwrap().unwrap();
    assert_eq!(found.secret, Secret::IdentityToken("t".to_owned()));
}

#[tokio::test]
async fn what_cannot_be_read_is_named_and_not_shown() {
    let home = Home::new();
    for text in ["", "3", r#"{"auths": "c2VjcmV0"}"#, r#"{"auths": {"a.b": {"auth": "c2VjcmV0"}}}"#] {
        home.write("docker.json", text);
        let error = home.find("a.b/c").await.unwrap_err().to_string();
        assert!(error.contains("docker.json") && !error.contains("c2Vj"), "{error}");
    }
    home.write("docker.json", &format!("{{{}}}", " ".repeat(1 << 20)));
    assert!(home.find("a.b/c").await.unwrap_err().to_string().contains("more than"));
}

/// Programs are found by the PATH, which a test cannot change for itself alone: this one has a folder in its name.
#[tokio::test]
async fn programs_are_asked_within_a_bound() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path.display().to_string()
    };
    let answers =
        write("answers", r#"read server; echo "{\"Username\": \"user\", \"Secret\": \"$1 $server\"}""#);
    assert_eq!(
        program::run(&answers, "a.b\n").await.unwrap(),
        (true, b"{\"Username\": \"user\", \"Secret\": \"get a.b\"}\n".to_vec())
    );
    let nothing = write("nothing", "echo credentials not found in native keychain; exit 1");
    assert!(!program::run(&nothing, "a.b").await.unwrap().0);
    let endless = write("endless", "exec cat /dev/zero");
    let (_, output) = tokio::time::timeout(BOUND, program::run(&endless, "a.b")).await.unwrap().unwrap();
    assert_eq!(output.len(), 64 << 10);
    let hangs = write("hangs", "exec sleep 1000");
    let short = Duration::from_millis(200);
    assert!(tokio::time::timeout(short, program::run(&hangs, "a.b")).await.is_err());
}

#[tokio::test]
async fn a_program_that_does_not_answer_is_named() {
    let home = Home::new();
    let check = async |text: &str, expected: &str| {
        home.write("docker.json", text);
        let error = home.find("a.b/c").await.unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("docker.json"), "{error}");
    };
    let missing = "`docker-credential-tenon-no-such`, which ";
    check(r#"{"credHelpers": {"a.b": "tenon-no-such"}}"#, missing).await;
    check(r#"{"credsStore": "tenon-no-such"}"#, missing).await;
    check(r#"{"credsStore": "tenon-no-such"}"#, "`echo a.b | docker-credential-tenon-no-such get`").await;
    check(r#"{"credsStore": "../../bin/sh"}"#, "names no program").await;
    home.write("docker.json", r#"{"credHelpers": {"x.y": "tenon-no-such"}}"#);
    assert_eq!(home.find("a.b/c").await.unwrap(), None);
}
