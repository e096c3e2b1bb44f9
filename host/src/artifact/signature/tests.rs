//! Signatures against those of cosign and openssl, and against whoever wants to pass without one.

use std::path::Path;
use std::process::Command;

use super::image::{self, MAX_SIGNATURES, PAYLOAD, SIGNATURE};
use super::keys::{Key, KeyError, TrustedKey, generate, private_file};
use super::policy::{Demand, Policy};
use super::*;
use crate::artifact::oci::{Descriptor, ImageManifest};
use crate::config;

/// A key that cosign 3.1 made, under the password `correct-horse`.
const COSIGN_KEY: &str = "-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----
eyJrZGYiOnsibmFtZSI6InNjcnlwdCIsInBhcmFtcyI6eyJOIjo2NTUzNiwiciI6
OCwicCI6MX0sInNhbHQiOiJtY3ZmdE9UcmtCK0I3dks0eUdwSm51aG9uUzlGTTMv
RmZLUzIyMW9rUEpFPSJ9LCJjaXBoZXIiOnsibmFtZSI6Im5hY2wvc2VjcmV0Ym94
Iiwibm9uY2UiOiJ2dFVCQXgzeHVOaFJJa29NMEU0QjRyd1NValRwZlo5WSJ9LCJj
aXBoZXJ0ZXh0IjoiVkhRRENSbGIycmRJK2Q3SzZlVzd1Y291STlwWTA3WTB5OUdC
ektNeHFoc3E5WC9iUDFVdEluQ3RxeEFsM1pPcHBsL1V6Yy9SNUVlTWIwNFBLSjY4
dkdNZ2tsMTEveHMwNWRod294MzJQTWpYTmlXaVo4bVJ3bytqdk5iV0hHaHY2WjVD
aFZkdURHUHhjRUc4aUpVdnRoV0t4RUh2MjU5Uzg2M1U1RWNIWTMvaUhObThzSzh1
V3VLdEFwYjdCUTNxSzQ4VkZxUm50WGZwdXc9PSJ9
-----END ENCRYPTED SIGSTORE PRIVATE KEY-----
";
const COSIGN_PUBLIC: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEwHJnnLYKR/5rlpEEXxLBDmFGV/Jo
c1BdFZMmthLeLekVc467Qkzl3jN6J4qm3hEopjPQPo+8M1BpuCDssNT8mw==
-----END PUBLIC KEY-----
";

const REPOSITORY: &str = "registry.example/team/app";

fn none() -> Result<Vec<u8>, KeyError> {
    Err(KeyError::NoPassword)
}

fn new_key() -> Key {
    Key::from_pkcs8(&generate().unwrap()).unwrap()
}

/// What openssl answers, run in `folder`; `None` where it is not installed.
fn openssl(folder: &Path, args: &[&str]) -> Option<std::process::Output> {
    let output = Command::new("openssl").args(args).current_dir(folder).output();
    if output.is_err() {
        assert!(!config::demands("openssl"), "openssl is not installed");
        eprintln!("skipped: openssl is not installed");
    }
    output.ok()
}

#[test]
fn a_signature_is_verified_for_its_artifact_and_key_alone() {
    let (key, digest) = (new_key(), Digest::of(b"artifact"));
    let (ours, other) = (key.public("ours"), new_key().public("other"));
    let signed = sign(&key, REPOSITORY, digest).unwrap();
    let found = verify(&[&other, &ours], digest, std::slice::from_ref(&signed), Some(REPOSITORY)).unwrap();
    assert_eq!(found.name, "ours");
    let check = |keys: &[&TrustedKey], digest, signed: Signed, repository, expected: &str| {
        let error = verify(keys, digest, &[signed], repository).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(&[&other], digest, signed.clone(), None, "signature 1 is of another key");
    check(&[], digest, signed.clone(), None, "is of another key");
    check(&[&ours], Digest::of(b"other"), signed.clone(), None, &format!("of `ours` is for {digest}"));
    let elsewhere = "is for the repository `registry.example/team/app`";
    check(&[&ours], digest, signed.clone(), Some("registry.example/team/application"), elsewhere);
    let mut altered = signed.clone();
    altered.payload.push(b' ');
    check(&[&ours], digest, altered, None, "is of another key");
    let mut altered = signed;
    altered.signature.truncate(10);
    check(&[&ours], digest, altered, None, "is of another key");
    assert_eq!(verify(&[&ours], digest, &[], None).unwrap_err(), SignatureError::None { digest });
}

#[test]
fn what_a_trusted_key_signed_must_be_about_the_artifact() {
    let (key, digest) = (new_key(), Digest::of(b"artifact"));
    let public = key.public("ours");
    let whole = String::from_utf8(sign(&key, REPOSITORY, digest).unwrap().payload).unwrap();
    let check = |payload: &str, expected: Result<(), &str>| {
        let signed = Signed { payload: payload.into(), signature: key.sign(payload.as_bytes()).unwrap() };
        let found =
            verify(&[&public], digest, &[signed], None).map(|_| ()).map_err(|error| error.to_string());
        match (&found, expected) {
            (Ok(()), Ok(())) => {}
            (Err(found), Err(expected)) if found.contains(expected) => {}
            _ => panic!("{payload}: {found:?}"),
        }
    };
    check(&whole, Ok(()));
    check(&whole.replace("null", r#"{"creator": "someone", "depth": [[[]]]}"#), Ok(()));
    check(&whole.replace(r#","optional":null"#, ""), Ok(()));
    check("", Err("something else than a simple-signing document"));
    check("[]", Err("something else than a simple-signing document"));
    check(&"[".repeat(60_000), Err("something else than a simple-signing document"));
    check(
        &whole.replace("cosign container image", "atomic container"),
        Err("is a `atomic container signature`"),
    );
    check(&whole.replace("sha256:", r"sha256:\u001b[2J"), Err(r"is for sha256:\u{1b}[2J"));
    let twice = whole.replace(r#""image":"#, r#""image":{"docker-manifest-digest":"sha256:0"},"image":"#);
    check(&twice, Err("duplicate field"));
}

#[test]
fn cosign_and_tenon_take_each_others_keys_and_signatures() {
    let public = TrustedKey::parse("cosign", COSIGN_PUBLIC).unwrap();
    let digest = Digest::of(b"x");
    let payload = format!(
        r#"{{"critical":{{"identity":{{"docker-reference":"{REPOSITORY}"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"cosign container image signature"}},"optional":null}}"#
    );
    // By `cosign sign-blob` over the same bytes.
    let signature =
        "MEUCIHKW0xiwQVtuVY6jvbNYkafFuuNvo9zN2v0vW2vV+RaTAiEAye8w7VDYOzJaS8UHgPwWeUF55HY0XwBpfiyx9jM05Zk=";
    let layer = cosign_layer(payload.as_bytes(), signature);
    let signed = image::signed(&layer, payload.clone().into_bytes()).unwrap();
    assert_eq!(verify(&[&public], digest, &[signed], Some(REPOSITORY)).unwrap().name, "cosign");
    let key = Key::parse(COSIGN_KEY, || Ok(b"correct-horse".to_vec())).unwrap();
    assert_eq!(key.public_file(), COSIGN_PUBLIC);
    let signed = sign(&key, REPOSITORY, digest).unwrap();
    assert_eq!(String::from_utf8(signed.payload.clone()).unwrap(), payload);
    assert!(verify(&[&public], digest, &[signed], None).is_ok());
    let wrong = Key::parse(COSIGN_KEY, || Ok(b"correct-house".to_vec()));
    assert!(matches!(wrong, Err(KeyError::Password)));
    assert!(matches!(Key::parse(COSIGN_KEY, none), Err(KeyError::NoPassword)));
}

fn cosign_layer(payload: &[u8], signature: &str) -> Descriptor {
    let mut layer = Descriptor::new(PAYLOAD, Digest::of(payload), payload.len() as u64);
    layer.annotations.insert(SIGNATURE.to_owned(), signature.to_owned());
    layer
}

#[test]
fn a_private_key_comes_back_from_its_file() {
    let pkcs8 = generate().unwrap();
    let digest = Key::from_pkcs8(&pkcs8).unwrap().digest();
    let plain = private_file(&pkcs8, None).unwrap();
    assert_eq!(Key::parse(&plain, none).unwrap().digest(), digest);
    for password in ["", "päss"] {
        let file = private_file(&pkcs8, Some(password.as_bytes())).unwrap();
        assert!(file.starts_with("-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n"));
        let key = Key::parse(&file, || Ok(password.as_bytes().to_vec())).unwrap();
        assert_eq!(key.digest(), digest);
        assert!(matches!(Key::parse(&file, || Ok(b"x".to_vec())), Err(KeyError::Password)));
    }
    assert!(!format!("{:?}", Key::from_pkcs8(&pkcs8).unwrap()).contains("pair"));
}

#[test]
fn what_is_no_private_key_is_refused() {
    let check = |text: &str, expected: &str| {
        let error = Key::parse(text, || Ok(Vec::new())).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    };
    let file = |label, bytes: &[u8]| pem::block(label, bytes);
    let plain = private_file(&generate().unwrap(), None).unwrap();
    check("", "no private key");
    check(COSIGN_PUBLIC, "no private key");
    check(&plain.replace("END PRIVATE", "END PUBLIC"), "no private key");
    check(&format!("{plain}{plain}"), "several keys");
    check(&file("ENCRYPTED PRIVATE KEY", b"x"), "encrypted by openssl");
    check(&file("RSA PRIVATE KEY", b"x"), "not of ECDSA P-256");
    check(&file("PRIVATE KEY", b"x"), "not of ECDSA P-256");
    let pkcs8 = generate().unwrap();
    check(&file("PRIVATE KEY", &pkcs8[..pkcs8.len() - 5]), "damaged");
    for length in [0, 1, 3] {
        check(&file("EC PRIVATE KEY", &[0x30, 0x82, 0xff, 0xff][..length]), "damaged");
    }
    let encrypted = |json: &str| file("ENCRYPTED SIGSTORE PRIVATE KEY", json.as_bytes());
    let envelope = |n: &str, salt: &str, nonce: &str, cipher: &str| {
        format!(
            r#"{{"kdf":{{"name":"scrypt","params":{{"N":{n},"r":8,"p":1}},"salt":"{salt}"}},"cipher":{{"name":"{cipher}","nonce":"{nonce}"}},"ciphertext":"eA=="}}"#
        )
    };
    let nonce = "A".repeat(32);
    check(&encrypted("{}"), "not in cosign's format");
    check(&encrypted(&envelope("32768", "", &nonce, "aes")), "not encrypted by scrypt");
    // These would take the machine's memory.
    check(&encrypted(&envelope("1073741824", "", &nonce, "nacl/secretbox")), "other parameters");
    check(&encrypted(&envelope("-1", "", &nonce, "nacl/secretbox")), "not in cosign's format");
    check(&encrypted(&envelope("32768", "é", &nonce, "nacl/secretbox")), "not base64");
    check(&encrypted(&envelope("32768", "", "AAAA", "nacl/secretbox")), "24 bytes");
    check(&encrypted(&envelope("32768", "", &nonce, "nacl/secretbox")), "password is wrong");
}

#[test]
fn what_is_no_public_key_is_refused() {
    let check = |text: &str, expected: &str| {
        let error = TrustedKey::parse("k", text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    };
    check("", "no public key");
    check(&private_file(&generate().unwrap(), None).unwrap(), "this is a private key");
    check(COSIGN_KEY, "this is a private key");
    check(&format!("{COSIGN_PUBLIC}{COSIGN_PUBLIC}"), "several keys");
    check(&pem::block("PUBLIC KEY", b""), "of a kind that is not known");
    check(&pem::block("PUBLIC KEY", &[0x30, 0x84, 1, 1, 1, 1]), "of a kind that is not known");
    let ed25519 =
        [[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00].as_slice(), &[7; 32]];
    check(&pem::block("PUBLIC KEY", &ed25519.concat()), "Ed25519");
}

#[test]
fn openssl_verifies_what_tenon_signs() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let pkcs8 = generate().unwrap();
    let key = Key::from_pkcs8(&pkcs8).unwrap();
    let signed = sign(&key, REPOSITORY, Digest::of(b"artifact")).unwrap();
    std::fs::write(folder.join("tenon.pub"), key.public_file()).unwrap();
    std::fs::write(folder.join("tenon.key"), private_file(&pkcs8, None).unwrap()).unwrap();
    std::fs::write(folder.join("payload"), &signed.payload).unwrap();
    std::fs::write(folder.join("signature"), &signed.signature).unwrap();
    let verify = ["dgst", "-sha256", "-verify", "tenon.pub", "-signature", "signature", "payload"];
    let Some(output) = openssl(folder, &verify) else { return };
    assert!(output.status.success() && output.stdout.starts_with(b"Verified OK"), "{output:?}");
    let public = openssl(folder, &["pkey", "-in", "tenon.key", "-pubout"]).unwrap();
    assert_eq!(String::from_utf8_lossy(&public.stdout), key.public_file());
    std::fs::write(folder.join("payload"), b"another").unwrap();
    assert!(!openssl(folder, &verify).unwrap().status.success());
}

#[test]
fn tenon_verifies_what_openssl_signs() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let digest = Digest::of(b"artifact");
    let payload = sign(&new_key(), REPOSITORY, digest).unwrap().payload;
    std::fs::write(folder.join("payload"), &payload).unwrap();
    let ec = |curve: &'static str| {
        let curve = if curve == "P-256" { "ec_paramgen_curve:P-256" } else { "ec_paramgen_curve:P-384" };
        vec!["genpkey", "-algorithm", "EC", "-pkeyopt", curve, "-out", "key"]
    };
    let rsa = |bits| vec!["genpkey", "-algorithm", "RSA", "-pkeyopt", bits, "-out", "key"];
    let (rsa, short) = (rsa("rsa_keygen_bits:2048"), rsa("rsa_keygen_bits:1024"));
    let ed25519 = vec!["genpkey", "-algorithm", "ED25519", "-out", "key"];
    let check = |generate: &[&str], hash: &str, expected: Result<(), &str>| {
        let Some(output) = openssl(folder, generate) else { return };
        assert!(output.status.success(), "{output:?}");
        let public = openssl(folder, &["pkey", "-in", "key", "-pubout"]).unwrap().stdout;
        let public = match TrustedKey::parse("openssl", &String::from_utf8(public).unwrap()) {
            Ok(public) => public,
            Err(error) => return assert!(error.to_string().contains(expected.unwrap_err()), "{error}"),
        };
        let output =
            openssl(folder, &["dgst", hash, "-sign", "key", "-out", "signature", "payload"]).unwrap();
        assert!(output.status.success(), "{output:?}");
        let signature = std::fs::read(folder.join("signature")).unwrap();
        let signed = Signed { payload: payload.clone(), signature };
        let found =
            verify(&[&public], digest, &[signed], None).map(|_| ()).map_err(|error| error.to_string());
        assert_eq!(found.is_ok(), expected.is_ok(), "{generate:?} {hash}: {found:?}");
    };
    check(&ec("P-256"), "-sha256", Ok(()));
    check(&ec("P-256"), "-sha384", Err(""));
    check(&ec("P-384"), "-sha384", Ok(()));
    check(&ec("P-384"), "-sha256", Ok(()));
    check(&rsa, "-sha256", Ok(()));
    check(&rsa, "-sha512", Err(""));
    check(&short, "-sha256", Err("less than 2048 bits"));
    check(&ed25519, "", Err("Ed25519"));
}

#[test]
fn openssls_private_keys_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let older = ["ecparam", "-name", "prime256v1", "-genkey", "-out", "key"];
    let Some(output) = openssl(folder, &older) else { return };
    assert!(output.status.success(), "{output:?}");
    let text = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    assert!(text("key").contains("BEGIN EC PARAMETERS"));
    let key = Key::parse(&text("key"), none).unwrap();
    openssl(folder, &["pkcs8", "-topk8", "-nocrypt", "-in", "key", "-out", "pkcs8"]).unwrap();
    assert_eq!(Key::parse(&text("pkcs8"), none).unwrap().digest(), key.digest());
    let public = openssl(folder, &["pkey", "-in", "key", "-pubout"]).unwrap().stdout;
    assert_eq!(key.public_file().as_bytes(), public);
    let check = |curve: &str| {
        openssl(folder, &["ecparam", "-name", curve, "-genkey", "-out", "key"]).unwrap();
        assert!(matches!(Key::parse(&text("key"), none), Err(KeyError::PrivateKind)), "{curve}");
        openssl(folder, &["pkcs8", "-topk8", "-nocrypt", "-in", "key", "-out", "pkcs8"]).unwrap();
        assert!(matches!(Key::parse(&text("pkcs8"), none), Err(KeyError::PrivateKind)), "{curve}");
    };
    check("secp384r1");
    check("secp256k1");
}

#[test]
fn signatures_gather_in_one_image_without_piling_up() {
    let digest = Digest::of(b"artifact");
    assert_eq!(image::tag(digest), format!("sha256-{}.sig", &digest.to_string()[7..]));
    let (one, two) = (new_key(), new_key());
    let add = |image: Option<&ImageManifest>, key: &Key| {
        image::add(image, &key.public(""), &sign(key, REPOSITORY, digest).unwrap()).unwrap()
    };
    let first = add(None, &one).unwrap().manifest;
    // As a registry gives it back.
    let first = ImageManifest::parse(&first.bytes()).unwrap();
    assert!(add(Some(&first), &one).is_none());
    let both = add(Some(&first), &two).unwrap();
    assert_eq!(both.manifest.config.digest, Digest::of(&both.config));
    assert_eq!(both.manifest.layers.len(), 2);
    assert!(add(Some(&both.manifest), &one).is_none() && add(Some(&both.manifest), &two).is_none());
    let signatures: Vec<_> = image::layers(&both.manifest)
        .into_iter()
        .map(|layer| image::signed(layer, both.payload.clone()).unwrap())
        .collect();
    for key in [&one, &two] {
        assert!(verify(&[&key.public("k")], digest, &signatures, Some(REPOSITORY)).is_ok());
    }
    let mut full = both.manifest.clone();
    full.layers = vec![first.layers[0].clone(); MAX_SIGNATURES];
    let third = new_key();
    assert!(image::add(Some(&full), &third.public(""), &sign(&third, REPOSITORY, digest).unwrap()).is_err());
}

#[test]
fn layers_that_cannot_be_signatures_are_not_fetched() {
    let key = new_key();
    let signed = sign(&key, REPOSITORY, Digest::of(b"artifact")).unwrap();
    let mut image = image::add(None, &key.public(""), &signed).unwrap().unwrap().manifest;
    let good = image.layers[0].clone();
    let check = |change: &dyn Fn(&mut Descriptor), there: bool| {
        let mut image = image.clone();
        change(&mut image.layers[0]);
        assert_eq!(image::layers(&image).len(), usize::from(there));
    };
    check(&|_| {}, true);
    check(&|layer| layer.size = 1 << 40, false);
    check(&|layer| layer.media_type = "application/wasm".into(), false);
    check(&|layer| layer.annotations.clear(), false);
    check(
        &|layer| {
            layer.annotations.insert(SIGNATURE.into(), "A".repeat(1 << 20));
        },
        false,
    );
    assert_eq!(image::signed(&good, b"another payload".to_vec()), None);
    let mut bad = good.clone();
    bad.annotations.insert(SIGNATURE.into(), "no base64".into());
    assert_eq!(image::signed(&bad, signed.payload), None);
    image.layers = vec![good; 2 * MAX_SIGNATURES];
    assert_eq!(image::layers(&image).len(), MAX_SIGNATURES);
}

#[test]
fn repositories_are_compared_in_one_form() {
    let check = |reference: &str, expected: &str| assert_eq!(canonical(reference), expected, "{reference}");
    check("registry.example/team/app", "registry.example/team/app");
    check("Registry.Example:443/team/app:v1", "registry.example/team/app");
    check("registry.example./team/app", "registry.example/team/app");
    check("registry.example:5000/app:v1@sha256:00", "registry.example:5000/app");
    check("index.docker.io/library/app", "docker.io/library/app");
    check("localhost:5000", "localhost:5000");
    check("", "");
    assert_eq!(identity("docker.io/library/app"), "index.docker.io/library/app");
}

#[test]
fn the_policy_says_who_must_have_signed() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, new_key().public_file()).unwrap();
        path
    };
    let key = |name: &str, repositories: &[&str]| {
        let repositories = repositories.iter().map(|pattern| (*pattern).to_owned()).collect();
        (name.to_owned(), config::SigningKey { file: file(name), repositories })
    };
    let keys = [
        key("old", &["registry.example/team/*"]),
        key("new", &["Registry.example:443/team/*", "docker.io/*"]),
        key("release", &["registry.example/other/app"]),
    ];
    let settings = config::Signatures { keys: keys.into(), ..config::Signatures::default() };
    let demanded = |policy: &Policy, repository: &str| match policy.demand(repository).unwrap() {
        Demand::Nothing => Vec::new(),
        Demand::Signed { keys, .. } => keys.iter().map(|key| key.name.clone()).collect(),
    };
    let policy = Policy::load(&settings).unwrap();
    let check = |repository: &str, expected: &[&str]| {
        assert_eq!(demanded(&policy, repository), expected, "{repository}");
    };
    check("registry.example/team/app", &["new", "old"]);
    check("registry.example/team/below/app", &["new", "old"]);
    check("registry.example/team", &[]);
    check("registry.example/teammate/app", &[]);
    check("registry.example/other/app", &["release"]);
    check("registry.example/other/application", &[]);
    check("index.docker.io/library/app", &["new"]);
    check("docker.io.example/library/app", &[]);
    assert!(policy.admit_local("spin.toml").is_ok());
    let strict =
        config::Signatures { required: config::Required::All, local_apps: false, ..settings.clone() };
    let strict = Policy::load(&strict).unwrap();
    assert_eq!(demanded(&strict, "registry.example/team/app"), ["new", "old"]);
    let error = strict.demand("registry.example/elsewhere").unwrap_err().to_string();
    assert!(error.contains("nobody is trusted to sign `registry.example/elsewhere`"), "{error}");
    assert!(
        strict
            .admit_local("spin.toml")
            .unwrap_err()
            .to_string()
            .contains("`spin.toml` comes from no registry")
    );
    let mut broken = settings;
    broken.keys.insert(
        "gone".into(),
        config::SigningKey { file: "/nowhere.pub".into(), repositories: vec!["*".into()] },
    );
    let error = Policy::load(&broken).unwrap_err().to_string();
    assert!(error.contains("`gone`") && error.contains("/nowhere.pub"), "{error}");
}

#[tokio::test]
async fn the_cache_stands_in_for_a_registry_that_cannot_be_asked() {
    use crate::artifact::blobs::Blobs;
    use crate::artifact::registry::{Options, Registry};
    use transfer::{VerifyError, verified};

    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("cache")).unwrap();
    let blobs = Blobs::open(&folder.path().join("cache"), 0).unwrap();
    let (ours, other) = (new_key(), new_key());
    let digest = Digest::of(b"artifact");
    let artifact = "127.0.0.1:1/team/app:v1".parse().unwrap();
    let policy = Policy::trusting(vec![ours.public("ours")]);
    let settings = config::Registry { retries: 0, stall_ms: 500, ..config::Registry::default() };
    let unreachable = Registry::new(Options::new(&settings, true)).unwrap();
    let nobody = Policy::default();
    let stranger = Policy::trusting(vec![other.public("other")]);
    let ask = async |registry, policy| verified(registry, &blobs, &artifact, digest, policy).await;

    assert!(matches!(ask(None, &policy).await, Err(VerifyError::Offline { .. })));
    assert!(matches!(ask(Some(&unreachable), &policy).await, Err(VerifyError::Registry { .. })));
    assert!(ask(None, &nobody).await.unwrap().is_none());
    // As the last verification left it.
    let signed = sign(&ours, "127.0.0.1:1/team/app", digest).unwrap();
    let image = image::add(None, &ours.public(""), &signed).unwrap().unwrap();
    blobs.put(&image.payload).unwrap();
    let manifest = blobs.put(&image.manifest.bytes()).unwrap();
    blobs.remember(&transfer::reference(&artifact, digest).to_string(), &manifest).unwrap();
    for registry in [None, Some(&unreachable)] {
        assert_eq!(ask(registry, &policy).await.unwrap().unwrap().name, "ours");
        assert!(ask(registry, &stranger).await.is_err());
        let elsewhere = verified(registry, &blobs, &artifact, Digest::of(b"other"), &policy).await;
        assert!(elsewhere.is_err());
    }
    std::fs::write(blobs.path(&Digest::of(&image.payload)), b"damaged").unwrap();
    assert!(ask(None, &policy).await.is_err());
}
