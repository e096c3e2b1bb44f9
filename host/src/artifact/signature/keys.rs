//! The keys of signatures: private ones in the formats of `cosign` and `openssl`, public ones that a host trusts.

use std::fmt;
use std::io::Read as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crypto_secretbox::aead::{Aead as _, KeyInit as _};
use crypto_secretbox::{Nonce, XSalsa20Poly1305};
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio_rustls::rustls::pki_types::{SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer};
use webpki::RawPublicKeyEntity;

use super::{MAX_SIGNATURE_BYTES, pem};
use crate::artifact::oci::Digest;

/// The largest file of a key, in bytes.
const MAX_FILE_BYTES: u64 = 64 << 10;

const PUBLIC: &str = "PUBLIC KEY";
const PKCS8: &str = "PRIVATE KEY";
const SEC1: &str = "EC PRIVATE KEY";
const ENCRYPTED: &str = "ENCRYPTED SIGSTORE PRIVATE KEY";
/// What cosign wrote before.
const ENCRYPTED_BEFORE: &str = "ENCRYPTED COSIGN PRIVATE KEY";

/// What stands before the 65 bytes of a point in the SubjectPublicKeyInfo of an ECDSA P-256 key.
const P256_INFO: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Ed25519's object identifier, as an AlgorithmIdentifier holds it.
const ED25519: [u8; 5] = [0x06, 0x03, 0x2b, 0x65, 0x70];
/// No SubjectPublicKeyInfo of RSA with 2048 bits is shorter, in bytes.
const RSA_2048_INFO: usize = 290;

/// What cosign makes of each kind of key; for P-384 also what it made before its version 3.
static ALGORITHMS: [&dyn SignatureVerificationAlgorithm; 4] = [
    webpki::ring::ECDSA_P256_SHA256,
    webpki::ring::ECDSA_P384_SHA384,
    webpki::ring::ECDSA_P384_SHA256,
    webpki::ring::RSA_PKCS1_2048_8192_SHA256,
];

/// Why there is no key. Files are named by whoever reads them.
#[derive(Debug, Error)]
pub enum KeyError {
    #[error("the key cannot be read: {0}")]
    Read(#[from] std::io::Error),
    #[error("the file is larger than {} KiB, so it is no key", MAX_FILE_BYTES >> 10)]
    Large,
    #[error("there is no private key in PEM in it; make one with `tenon key generate`")]
    NoPrivate,
    #[error(
        "there is no public key in PEM in it (`-----BEGIN PUBLIC KEY-----`); `tenon key public` shows that of a private key"
    )]
    NoPublic,
    #[error("this is a private key; a host needs only the public one, which `tenon key public` shows")]
    PrivateInstead,
    #[error("there are several keys in it; keep one in each file")]
    Several,
    #[error(
        "the private key is encrypted by openssl; write it anew with `openssl pkcs8 -topk8 -nocrypt`, or encrypt it by `cosign import-key-pair`"
    )]
    OpensslPassword,
    #[error(
        "the private key is not of ECDSA P-256, the only kind that signs here; make one with `tenon key generate`"
    )]
    PrivateKind,
    #[error(
        "the private key of ECDSA P-256 is damaged or lacks its public half; `openssl pkcs8 -topk8 -nocrypt` writes a whole one"
    )]
    Damaged,
    #[error(
        "the public key is of a kind that is not known; it may be of ECDSA P-256 or P-384, or of RSA with 2048 to 8192 bits"
    )]
    PublicKind,
    #[error(
        "the public key is of Ed25519, which cosign uses in a form of its own (Ed25519ph); use a key of ECDSA P-256"
    )]
    Ed25519,
    #[error("the public key of RSA has less than 2048 bits; use a longer one, or one of ECDSA P-256")]
    Short,
    #[error("the encrypted key is not in cosign's format: {0}")]
    Envelope(String),
    #[error("the password is wrong")]
    Password,
    #[error("the key needs a password: set TENON_KEY_PASSWORD or COSIGN_PASSWORD, or run this on a terminal")]
    NoPassword,
    #[error("the system has no random numbers")]
    Random,
}

/// A private key of ECDSA P-256, which signs.
pub struct Key {
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("public", &self.digest()).finish_non_exhaustive()
    }
}

/// A new private key in PKCS#8 (DER).
///
/// # Errors
/// Where the system has no random numbers.
pub fn generate() -> Result<Vec<u8>, KeyError> {
    let random = SystemRandom::new();
    let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random);
    Ok(document.map_err(|_| KeyError::Random)?.as_ref().to_vec())
}

/// A private key in PKCS#8 as a file: in PEM, in cosign's encrypted form where there is a password.
///
/// # Errors
/// Where the system has no random numbers.
pub fn private_file(pkcs8: &[u8], password: Option<&[u8]>) -> Result<String, KeyError> {
    match password {
        None => Ok(pem::block(PKCS8, pkcs8)),
        Some(password) => Ok(pem::block(ENCRYPTED, &encrypt(pkcs8, password)?)),
    }
}

impl Key {
    /// Reads the file of a private key: cosign's, PKCS#8, or openssl's older form for elliptic curves.
    /// `password` is asked for where the key is encrypted.
    ///
    /// # Errors
    /// Where it cannot be read, is no such key, or the password is wrong.
    pub fn read(path: &Path, password: impl FnOnce() -> Result<Vec<u8>, KeyError>) -> Result<Key, KeyError> {
        Key::parse(&text(path)?, password)
    }

    /// The same from the file's text.
    ///
    /// # Errors
    /// As [`Key::read`].
    pub fn parse(text: &str, password: impl FnOnce() -> Result<Vec<u8>, KeyError>) -> Result<Key, KeyError> {
        let known = [PKCS8, SEC1, ENCRYPTED, ENCRYPTED_BEFORE];
        let blocks = pem::blocks(text);
        let mut keys = blocks.iter().filter(|(label, _)| known.contains(&label.as_str()));
        let (label, bytes) = match (keys.next(), keys.next()) {
            (Some(key), None) => key,
            (Some(_), Some(_)) => return Err(KeyError::Several),
            (None, _) => {
                let has = |label: &str| blocks.iter().any(|(found, _)| found == label);
                return Err(match () {
                    () if has("ENCRYPTED PRIVATE KEY") => KeyError::OpensslPassword,
                    () if has("RSA PRIVATE KEY") => KeyError::PrivateKind,
                    () => KeyError::NoPrivate,
                });
            }
        };
        match label.as_str() {
            PKCS8 => Key::from_pkcs8(bytes),
            SEC1 => Key::from_sec1(bytes),
            _ => Key::from_pkcs8(&decrypt(bytes, password)?),
        }
    }

    /// The key of a PKCS#8 document in DER.
    ///
    /// # Errors
    /// Where it is not of ECDSA P-256, or lacks its public half.
    pub fn from_pkcs8(der: &[u8]) -> Result<Key, KeyError> {
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der, &random);
        let p256 = || der.windows(19).any(|window| window == &P256_INFO[4..23]);
        let pair = pair.map_err(|_| if p256() { KeyError::Damaged } else { KeyError::PrivateKind })?;
        Ok(Key { pair, random })
    }

    /// The key of openssl's older form: a version, the private number, the curve, the public point.
    fn from_sec1(der: &[u8]) -> Result<Key, KeyError> {
        let random = SystemRandom::new();
        let inner = element(der, 0x30).ok_or(KeyError::Damaged)?.0;
        let (_, rest) = element(inner, 0x02).ok_or(KeyError::Damaged)?;
        let (private, rest) = element(rest, 0x04).ok_or(KeyError::Damaged)?;
        let (curve, rest) = element(rest, 0xa0).unwrap_or((&[], rest));
        if private.len() != 32 || !(curve.is_empty() || curve == &P256_INFO[13..23]) {
            return Err(KeyError::PrivateKind);
        }
        let (public, _) = element(rest, 0xa1).ok_or(KeyError::Damaged)?;
        let (public, _) = element(public, 0x03).ok_or(KeyError::Damaged)?;
        // Its first byte counts the bits that are not used.
        let public = public.strip_prefix(&[0]).ok_or(KeyError::Damaged)?;
        let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
        let pair = EcdsaKeyPair::from_private_key_and_public_key(algorithm, private, public, &random);
        Ok(Key { pair: pair.map_err(|_| KeyError::Damaged)?, random })
    }

    /// Signs: ECDSA with SHA-256, in ASN.1 (DER).
    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let signature = self.pair.sign(&self.random, message).map_err(|_| KeyError::Random)?;
        Ok(signature.as_ref().to_vec())
    }

    fn info(&self) -> Vec<u8> {
        [&P256_INFO, self.pair.public_key().as_ref()].concat()
    }

    /// The digest of the public key, by which people compare keys: that of its SubjectPublicKeyInfo in DER.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.info())
    }

    /// The file of the public key.
    pub fn public_file(&self) -> String {
        pem::block(PUBLIC, &self.info())
    }

    /// The public key, to verify with.
    pub fn public(&self, name: &str) -> TrustedKey {
        TrustedKey { name: name.to_owned(), info: self.info(), algorithms: vec![ALGORITHMS[0]] }
    }
}

/// A public key whose signatures count.
pub struct TrustedKey {
    /// As the operator calls it.
    pub name: String,
    /// SubjectPublicKeyInfo in DER.
    info: Vec<u8>,
    algorithms: Vec<&'static dyn SignatureVerificationAlgorithm>,
}

impl fmt::Debug for TrustedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustedKey({}, {})", self.name, self.digest())
    }
}

impl TrustedKey {
    /// Reads the file of a public key: SubjectPublicKeyInfo in PEM, as cosign and openssl write it.
    ///
    /// # Errors
    /// Where it cannot be read, or is no such key.
    pub fn read(name: &str, path: &Path) -> Result<TrustedKey, KeyError> {
        TrustedKey::parse(name, &text(path)?)
    }

    /// The same from the file's text.
    ///
    /// # Errors
    /// As [`TrustedKey::read`].
    pub fn parse(name: &str, text: &str) -> Result<TrustedKey, KeyError> {
        let blocks = pem::blocks(text);
        if blocks.iter().any(|(label, _)| label.ends_with(PKCS8)) {
            return Err(KeyError::PrivateInstead);
        }
        let mut keys = blocks.into_iter().filter(|(label, _)| label == PUBLIC);
        let info = match (keys.next(), keys.next()) {
            (Some((_, info)), None) => info,
            (Some(_), Some(_)) => return Err(KeyError::Several),
            (None, _) => return Err(KeyError::NoPublic),
        };
        let outer = element(&info, 0x30).filter(|(_, rest)| rest.is_empty()).ok_or(KeyError::PublicKind)?;
        let (algorithm, _) = element(outer.0, 0x30).ok_or(KeyError::PublicKind)?;
        let fits =
            |known: &&dyn SignatureVerificationAlgorithm| known.public_key_alg_id().as_ref() == algorithm;
        let algorithms: Vec<_> = ALGORITHMS.into_iter().filter(fits).collect();
        let is_rsa = algorithms.len() == 1 && fits(&ALGORITHMS[3]);
        if algorithms.is_empty() {
            return Err(if algorithm == ED25519 { KeyError::Ed25519 } else { KeyError::PublicKind });
        }
        if is_rsa && info.len() < RSA_2048_INFO {
            return Err(KeyError::Short);
        }
        RawPublicKeyEntity::try_from(&SubjectPublicKeyInfoDer::from(info.as_slice()))
            .map_err(|_| KeyError::PublicKind)?;
        Ok(TrustedKey { name: name.to_owned(), info, algorithms })
    }

    /// Whether `signature` is this key's over `message`.
    pub fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let info = SubjectPublicKeyInfoDer::from(self.info.as_slice());
        let Ok(key) = RawPublicKeyEntity::try_from(&info) else { return false };
        let short = signature.len() <= MAX_SIGNATURE_BYTES;
        short && self.algorithms.iter().any(|known| key.verify_signature(*known, message, signature).is_ok())
    }

    /// The digest by which people compare keys: that of its SubjectPublicKeyInfo in DER.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.info)
    }

    /// The key's file.
    pub fn file(&self) -> String {
        pem::block(PUBLIC, &self.info)
    }
}

fn text(path: &Path) -> Result<String, KeyError> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(KeyError::Large);
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The contents of the DER element with this tag that `bytes` begin with, and what follows it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let rest = bytes.strip_prefix(&[tag])?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        0x81 => (usize::from(*rest.first()?), &rest[1..]),
        0x82 => (usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?])), &rest[2..]),
        _ => return None,
    };
    rest.split_at_checked(length)
}

/// What cosign puts around an encrypted key. Binary values are in base64.
#[derive(Serialize, Deserialize)]
struct Envelope {
    kdf: Kdf,
    cipher: Cipher,
    ciphertext: String,
}

#[derive(Serialize, Deserialize)]
struct Kdf {
    name: String,
    params: KdfParameters,
    salt: String,
}

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq)]
struct KdfParameters {
    #[serde(rename = "N")]
    n: u32,
    r: u32,
    p: u32,
}

#[derive(Serialize, Deserialize)]
struct Cipher {
    name: String,
    nonce: String,
}

const KDF: &str = "scrypt";
const CIPHER: &str = "nacl/secretbox";
/// The binary logarithms of scrypt's cost that cosign takes, the one that it uses in the middle. Others could ask for
/// any amount of memory.
const COSTS: [u8; 3] = [15, 16, 17];
const BLOCK_SIZE: u32 = 8;
const NONCE_BYTES: usize = 24;

fn encrypt(plain: &[u8], password: &[u8]) -> Result<Vec<u8>, KeyError> {
    let (mut salt, mut nonce) = ([0; 32], [0; NONCE_BYTES]);
    let random = SystemRandom::new();
    random.fill(&mut salt).and_then(|()| random.fill(&mut nonce)).map_err(|_| KeyError::Random)?;
    let cost = COSTS[1];
    let sealed = secret_box(password, &salt, cost).encrypt(Nonce::from_slice(&nonce), plain);
    let envelope = Envelope {
        kdf: Kdf {
            name: KDF.to_owned(),
            params: KdfParameters { n: 1 << cost, r: BLOCK_SIZE, p: 1 },
            salt: STANDARD.encode(salt),
        },
        cipher: Cipher { name: CIPHER.to_owned(), nonce: STANDARD.encode(nonce) },
        ciphertext: STANDARD.encode(sealed.expect("a key is short")),
    };
    Ok(serde_json::to_vec(&envelope).expect("strings and numbers are JSON"))
}

fn decrypt(
    envelope: &[u8],
    password: impl FnOnce() -> Result<Vec<u8>, KeyError>,
) -> Result<Vec<u8>, KeyError> {
    let wrong = |what: &str| KeyError::Envelope(what.to_owned());
    let envelope: Envelope =
        serde_json::from_slice(envelope).map_err(|error| KeyError::Envelope(error.to_string()))?;
    if envelope.kdf.name != KDF || envelope.cipher.name != CIPHER {
        return Err(wrong("it is not encrypted by scrypt and NaCl's secretbox"));
    }
    let known = |cost: &u8| envelope.kdf.params == KdfParameters { n: 1 << cost, r: BLOCK_SIZE, p: 1 };
    let cost = COSTS.into_iter().find(known).ok_or_else(|| wrong("scrypt has other parameters"))?;
    let binary = |text: &str| STANDARD.decode(text).map_err(|_| wrong("a value is not base64"));
    let (salt, nonce) = (binary(&envelope.kdf.salt)?, binary(&envelope.cipher.nonce)?);
    let sealed = binary(&envelope.ciphertext)?;
    if nonce.len() != NONCE_BYTES {
        return Err(wrong("the nonce does not have 24 bytes"));
    }
    let opened = secret_box(&password()?, &salt, cost).decrypt(Nonce::from_slice(&nonce), sealed.as_slice());
    opened.map_err(|_| KeyError::Password)
}

fn secret_box(password: &[u8], salt: &[u8], cost: u8) -> XSalsa20Poly1305 {
    let mut key = [0; 32];
    let parameters = scrypt::Params::new(cost, BLOCK_SIZE, 1, key.len()).expect("the costs are in bounds");
    scrypt::scrypt(password, salt, &parameters, &mut key).expect("32 bytes are in bounds");
    XSalsa20Poly1305::new(&key.into())
}
