//! Certificates that are made here: which are taken, and when.

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use tempfile::TempDir;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;

use super::certificate::{loose_end, validity};
use super::*;

/// An issuer, by its certificate in PEM and what it signs with.
fn issuer(name: &str) -> (String, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    (params.self_signed(&key).unwrap().pem(), Issuer::new(params, key))
}

/// A certificate for `localhost` and its key, both in PEM.
fn issued(by: &Issuer<'_, KeyPair>, change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    change(&mut params);
    (params.signed_by(&key, by).unwrap().pem(), key.serialize_pem())
}

fn files(folder: &TempDir, certificate: &str, key: &str) -> TlsFiles {
    let path = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    TlsFiles { certificate: path("cert.pem", certificate), key: path("key.pem", key), client_ca: None }
}

fn config(tls: &Tls) -> Arc<ServerConfig> {
    Arc::clone(&tls.current.load().config)
}

#[test]
fn what_is_not_in_order_is_refused_with_advice() {
    let folder = tempfile::tempdir().unwrap();
    let (ca, by) = issuer("ca");
    let (certificate, key) = issued(&by, |_| {});
    let (_, other_key) = issued(&by, |_| {});
    let (old, old_key) = issued(&by, |params| params.not_after = date_time_ymd(2001, 2, 3));
    let (early, early_key) = issued(&by, |params| params.not_before = date_time_ymd(4000, 1, 1));
    let broken = certificate.replace("MII", "M!I");
    let no_certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let no_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let locked = key.replace(" PRIVATE", " ENCRYPTED PRIVATE");
    let locked_of_old = key.replace("KEY-----\nMI", "KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: x\n\nMI");
    let long = format!("{}{certificate}", " ".repeat(1 << 20));
    let check = |certificate: &str, key: &str, expected: &str| {
        let files = files(&folder, certificate, key);
        let error = Tls::read(files).err().unwrap_or_else(|| panic!("taken, but: {expected}")).to_string();
        assert!(error.contains(expected), "{error}");
    };
    check("", &key, "cert.pem` is empty");
    check(&certificate, " \n", "key.pem` is empty");
    check("no pem", &key, "cert.pem` holds no PEM text; convert one in binary form with `openssl x509");
    check(
        &certificate,
        "\u{30}\u{82}",
        "key.pem` holds no PEM text; convert one in binary form with `openssl pkey",
    );
    check(&key, &certificate, "cert.pem` holds no certificate but a private key; are the two exchanged");
    check(
        &certificate,
        &certificate,
        "key.pem` holds no private key but a certificate; are the two exchanged",
    );
    check(&certificate.replace("CERTIFICATE", "X509 CRL"), &key, "cert.pem` holds no certificate; it must");
    check(&certificate, &key.replace("PRIVATE", "SECRET"), "key.pem` holds no private key; it must");
    check(&broken, &key, "cert.pem` is damaged: ");
    check(&certificate[..200], &key, "cert.pem` is damaged: ");
    check(&certificate, &locked, "key.pem` holds a key behind a passphrase");
    check(&certificate, &locked_of_old, "key.pem` holds a key behind a passphrase");
    check(no_certificate, &key, "cert.pem` holds as number 1 a certificate that cannot be used: ");
    check(&certificate, no_key, "key.pem` holds a key that cannot be used: ");
    check(&certificate, &other_key, "cert.pem` does not belong to the key in `");
    check(
        &format!("{ca}{certificate}"),
        &key,
        "cert.pem` does not begin with the certificate of the key, which is number 2",
    );
    check(&old, &old_key, "cert.pem` holds a certificate that expired ");
    check(&early, &early_key, "cert.pem` holds a certificate that is valid only in ");
    check(&long, &key, "cert.pem` is longer than 1 MiB");
    let both = format!("{certificate}{key}{ca}");
    assert!(Tls::read(files(&folder, &both, &both)).is_ok(), "one file may hold everything");
}

#[test]
fn files_that_are_none_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (ca, by) = issuer("ca");
    let (certificate, key) = issued(&by, |_| {});
    let good = files(&folder, &certificate, &key);
    let check = |files: TlsFiles, expected: &str| {
        let error = Tls::read(files).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(TlsFiles { key: folder.path().join("none"), ..good.clone() }, "none` cannot be read: No such file");
    check(TlsFiles { certificate: folder.path().to_owned(), ..good.clone() }, "is not a file");
    check(TlsFiles { certificate: "/dev/zero".into(), ..good.clone() }, "`/dev/zero` is not a file");
    check(
        TlsFiles { client_ca: Some(good.key.clone()), ..good.clone() },
        "holds no certificate but a private key",
    );
    let issuers = folder.path().join("ca.pem");
    std::fs::write(&issuers, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    let mutual = TlsFiles { client_ca: Some(issuers.clone()), ..good };
    check(mutual.clone(), "ca.pem` holds as number 1 a certificate that cannot be used: ");
    std::fs::write(&issuers, ca).unwrap();
    assert!(Tls::read(mutual).is_ok());
}

#[test]
fn keys_of_every_kind_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let files = files(&folder, &certificate.pem(), &key.serialize_pem());
        assert_eq!(Tls::read(files).err().map(|error| error.to_string()), None);
    }
}

#[test]
fn a_change_is_taken_when_it_rests() {
    let folder = tempfile::tempdir().unwrap();
    let (_, by) = issuer("ca");
    let (certificate, key) = issued(&by, |_| {});
    let tls = Tls::read(files(&folder, &certificate, &key)).unwrap();
    let first = config(&tls);
    assert!(matches!(tls.look(), Look::Unchanged));
    let (renewed, renewed_key) = issued(&by, |_| {});
    std::fs::write(folder.path().join("cert.pem"), &renewed).unwrap();
    assert!(matches!(tls.look(), Look::Unsettled), "the key is still to come");
    std::fs::write(folder.path().join("key.pem"), &renewed_key).unwrap();
    assert!(matches!(tls.look(), Look::Unsettled));
    assert!(Arc::ptr_eq(&config(&tls), &first));
    assert!(matches!(tls.look(), Look::Renewed));
    assert!(matches!(tls.look(), Look::Unchanged));
    assert!(!Arc::ptr_eq(&config(&tls), &first));
}

#[test]
fn a_change_for_the_worse_is_told_once_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (_, by) = issuer("ca");
    let (certificate, key) = issued(&by, |_| {});
    let tls = Tls::read(files(&folder, &certificate, &key)).unwrap();
    let first = config(&tls);
    let path = folder.path().join("key.pem");
    let worse: [&dyn Fn(); 3] = [
        &|| std::fs::write(&path, issued(&by, |_| {}).1).unwrap(),
        &|| std::fs::write(&path, "").unwrap(),
        &|| std::fs::remove_file(&path).unwrap(),
    ];
    for change in worse {
        change();
        assert!(matches!(tls.look(), Look::Unsettled));
        assert!(matches!(tls.look(), Look::Refused(_)));
        assert!(matches!(tls.look(), Look::Unchanged));
        assert!(Arc::ptr_eq(&config(&tls), &first));
    }
    std::fs::write(&path, &key).unwrap();
    assert!(matches!(tls.look(), Look::Unsettled));
    assert!(matches!(tls.look(), Look::Renewed));
}

/// As Kubernetes mounts a secret: the files are links through a link that is swapped for another.
#[test]
fn a_swap_of_links_is_a_change() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().unwrap();
    let (_, by) = issuer("ca");
    let mounted = |name: &str| folder.path().join(name);
    for version in ["..1", "..2"] {
        let (certificate, key) = issued(&by, |_| {});
        std::fs::create_dir(mounted(version)).unwrap();
        std::fs::write(mounted(version).join("cert.pem"), certificate).unwrap();
        std::fs::write(mounted(version).join("key.pem"), key).unwrap();
    }
    symlink("..1", mounted("..data")).unwrap();
    symlink("..data/cert.pem", mounted("cert.pem")).unwrap();
    symlink("..data/key.pem", mounted("key.pem")).unwrap();
    let files = TlsFiles { certificate: mounted("cert.pem"), key: mounted("key.pem"), client_ca: None };
    let tls = Tls::read(files).unwrap();
    let first = config(&tls);
    symlink("..2", mounted("..new")).unwrap();
    std::fs::rename(mounted("..new"), mounted("..data")).unwrap();
    std::fs::remove_dir_all(mounted("..1")).unwrap();
    assert!(matches!(tls.look(), Look::Unsettled));
    assert!(matches!(tls.look(), Look::Renewed));
    assert!(!Arc::ptr_eq(&config(&tls), &first));
}

#[test]
fn the_time_of_a_certificate_is_read() {
    let (_, by) = issuer("ca");
    let (certificate, _) = issued(&by, |params| {
        (params.not_before, params.not_after) = (date_time_ymd(2001, 2, 3), date_time_ymd(2101, 2, 3));
    });
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    let (not_before, not_after) = validity(&certificate).unwrap();
    assert_eq!((not_before.as_secs(), not_after.as_secs()), (981_158_400, 4_136_832_000));
}

#[test]
fn the_end_of_a_certificate_is_told_a_week_ahead_once_a_day() {
    let folder = tempfile::tempdir().unwrap();
    let (_, by) = issuer("ca");
    let (certificate, key) = issued(&by, |_| {});
    let tls = Tls::read(files(&folder, &certificate, &key)).unwrap();
    assert_eq!(tls.expires_soon(), None);
    let expire = |not_after| tls.current.store(Arc::new(Current { config: config(&tls), not_after }));
    expire(since_epoch() + SOON * 2);
    assert_eq!(tls.expires_soon(), None);
    expire(since_epoch() + SOON / 2);
    assert!(tls.expires_soon().is_some_and(|left| left <= SOON / 2));
    assert_eq!(tls.expires_soon(), None);
}

#[test]
fn a_chain_is_looked_through_for_strangers() {
    let (root, by) = issuer("root");
    let (stranger, _) = issuer("stranger");
    let (own, _) = issued(&by, |_| {});
    let check = |chain: &[&String], expected: Option<usize>| {
        let parsed = chain.iter().map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap());
        assert_eq!(loose_end(&parsed.collect::<Vec<_>>()), expected);
    };
    check(&[&own], None);
    check(&[&own, &root], None);
    check(&[&own, &stranger], Some(2));
    check(&[&own, &root, &stranger], Some(3));
}

#[test]
fn times_are_told_as_a_person_would() {
    let check = |seconds: u64, expected: &str| {
        assert_eq!(roughly(Duration::from_secs(seconds)), expected);
    };
    check(1, "1 second");
    check(119, "119 seconds");
    check(120, "2 minutes");
    check(7199, "119 minutes");
    check(7200, "2 hours");
    check(172_800, "2 days");
    check(2 * 366 * 86_400, "732 days");
}
