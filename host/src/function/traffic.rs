//! How the calls of one app are divided among its revisions.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use http::header::COOKIE;
use http::{HeaderMap, HeaderName};
use sha2::{Digest, Sha256};

use super::{Function, Release};

/// Weights are so many parts of a whole.
pub const WHOLE: u16 = 10_000;

/// Which revisions of an app are called, and by whom.
#[derive(Clone)]
pub struct Traffic {
    /// What takes every call that nothing else is said of.
    pub stable: Arc<Release>,
    pub candidate: Option<Candidate>,
    /// Revisions that take the calls alone that name their version.
    pub others: Vec<Arc<Release>>,
    pub rules: Arc<Rules>,
    pub division: Arc<Division>,
}

/// A way of dividing an app's calls among its revisions, for as long as it lasts. Calls that begin and end within one can
/// be compared: each revision then has its share of those that are over soon and of those that take their time.
#[derive(Debug, Default)]
pub struct Division {
    is_over: AtomicBool,
}

impl Division {
    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// A revision that is tried out.
#[derive(Clone)]
pub struct Candidate {
    pub release: Arc<Release>,
    /// Of [`WHOLE`].
    pub weight: u16,
}

/// What decides beside the weight.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// What keeps a caller with one revision; without, or where a request has none, each request is divided by itself.
    pub sticky: Option<Sticky>,
    /// The first that matches decides, whatever the weight.
    pub header_routes: Vec<HeaderRoute>,
}

/// What callers are told apart by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sticky {
    Header(HeaderName),
    Cookie(String),
    /// The address that the request comes from.
    Client,
}

/// Requests with this header go to one side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderRoute {
    pub header: HeaderName,
    pub value: String,
    pub to_candidate: bool,
}

/// Who asks, as far as it decides between revisions.
#[derive(Clone, Copy)]
pub struct Asker<'a> {
    pub headers: &'a HeaderMap,
    pub client: IpAddr,
}

/// The revision that answers a request.
#[derive(Clone, Copy)]
pub struct Chosen<'a> {
    pub release: &'a Arc<Release>,
    /// Absent where something else than the weight decided. Such calls cannot be compared: who asks for a revision, or is
    /// sent to one, may ask for something else than the others do.
    pub division: Option<&'a Arc<Division>>,
}

impl Traffic {
    /// All of it to one revision.
    pub fn all(stable: Arc<Release>) -> Traffic {
        Traffic {
            stable,
            candidate: None,
            others: Vec::new(),
            rules: Arc::default(),
            division: Arc::default(),
        }
    }

    /// The revision that answers a request.
    pub fn choose(&self, asker: &Asker<'_>) -> Chosen<'_> {
        let Some(candidate) = &self.candidate else {
            return Chosen { release: &self.stable, division: None };
        };
        let routed = self.rules.routed(asker.headers);
        let to_candidate = routed.unwrap_or_else(|| match candidate.weight {
            0 => false,
            WHOLE.. => true,
            weight => self.point(asker, &candidate.release) < weight,
        });
        let release = if to_candidate { &candidate.release } else { &self.stable };
        Chosen { release, division: routed.is_none().then_some(&self.division) }
    }

    /// Whether calls are divided as before, between the same revisions.
    pub(super) fn divides_as(&self, former: &Traffic) -> bool {
        let same = match (&self.candidate, &former.candidate) {
            (Some(one), Some(other)) => {
                Arc::ptr_eq(&one.release, &other.release) && one.weight == other.weight
            }
            (None, None) => true,
            _ => false,
        };
        same && Arc::ptr_eq(&self.stable, &former.stable) && self.rules == former.rules
    }

    /// Where the request lies among [`WHOLE`]: as long as a candidate is tried out, all of a caller's at one point, so
    /// that a larger weight keeps whom a smaller one had.
    fn point(&self, asker: &Asker<'_>, candidate: &Release) -> u16 {
        let app = self.stable.app.name.as_str();
        match &self.rules.sticky {
            None => at_random(),
            Some(Sticky::Header(name)) => match asker.headers.get(name) {
                Some(value) => sticky_point(app, &candidate.digest, value.as_bytes()),
                None => at_random(),
            },
            Some(Sticky::Cookie(name)) => match cookie(asker.headers, name) {
                Some(value) => sticky_point(app, &candidate.digest, value),
                None => at_random(),
            },
            Some(Sticky::Client) => {
                sticky_point(app, &candidate.digest, asker.client.to_canonical().to_string().as_bytes())
            }
        }
    }

    /// The revisions that calls may reach, the stable one first.
    pub fn releases(&self) -> impl Iterator<Item = &Arc<Release>> {
        let candidate = self.candidate.iter().map(|candidate| &candidate.release);
        std::iter::once(&self.stable).chain(candidate).chain(&self.others)
    }

    /// Whether a call that names its version may be answered by this revision: a candidate only once it takes calls.
    fn is_open(&self, release: &Arc<Release>) -> bool {
        match &self.candidate {
            Some(candidate) if Arc::ptr_eq(&candidate.release, release) => {
                candidate.weight > 0 || self.rules.header_routes.iter().any(|route| route.to_candidate)
            }
            _ => true,
        }
    }

    /// What the Open Inference Protocol calls `name`, at the versions that can be asked for; the stable one first.
    pub fn versions<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Arc<Function>> {
        let open = self.releases().filter(|release| self.is_open(release));
        open.filter_map(move |release| release.models.get(name))
    }
}

impl Rules {
    fn routed(&self, headers: &HeaderMap) -> Option<bool> {
        let matched = self.header_routes.iter().find(|route| {
            headers.get_all(&route.header).iter().any(|value| value.as_bytes() == route.value.as_bytes())
        });
        matched.map(|route| route.to_candidate)
    }
}

/// The point of a caller, by a hash of fixed definition: the first 8 bytes of the SHA-256 of app, digest of the
/// candidate and key, with a line feed between them, as a big-endian number, modulo [`WHOLE`].
pub fn sticky_point(app: &str, candidate: &str, key: &[u8]) -> u16 {
    let mut hash = Sha256::new();
    for part in [app.as_bytes(), b"\n", candidate.as_bytes(), b"\n", key] {
        hash.update(part);
    }
    let hash = hash.finalize();
    let number = hash.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    within(number)
}

fn within(number: u64) -> u16 {
    u16::try_from(number % u64::from(WHOLE)).expect("the rest is smaller than WHOLE")
}

/// A number below [`WHOLE`], each as often as any other.
pub(crate) fn at_random() -> u16 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    // SplitMix64: neighbouring numbers come to points that look nothing alike, and each point comes equally often.
    let mut x = NEXT.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    within(x ^ (x >> 31))
}

/// The value of the cookie `name`, as it was sent.
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let all =
        headers.get_all(COOKIE).into_iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    all.map(<[u8]>::trim_ascii).find_map(|pair| {
        let value = pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        Some(value).filter(|value| !value.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::function::App;

    fn release(revision: u64, digest: &str) -> Arc<Release> {
        let app = App { name: "digits".to_owned(), version: None };
        Arc::new(Release { app, revision, digest: digest.to_owned(), ..Release::default() })
    }

    fn traffic(weight: u16, rules: Rules) -> Traffic {
        let candidate = Some(Candidate { release: release(2, "sha256:2"), weight });
        Traffic { candidate, rules: Arc::new(rules), ..Traffic::all(release(1, "sha256:1")) }
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).expect("a header value"))
        });
        pairs.collect()
    }

    fn chosen(traffic: &Traffic, headers: &HeaderMap, client: [u8; 4]) -> u64 {
        traffic.choose(&Asker { headers, client: client.into() }).release.revision
    }

    #[test]
    fn the_hash_is_defined_for_good() {
        assert_eq!(sticky_point("digits", "sha256:2", b"ada"), 2850);
        assert_eq!(sticky_point("digits", "sha256:2", b"bob"), 4197);
    }

    #[test]
    fn a_larger_weight_keeps_whom_a_smaller_one_had() {
        let header = HeaderName::from_static("x-user");
        for sticky in [Sticky::Header(header), Sticky::Cookie("user".to_owned()), Sticky::Client] {
            let rules = Rules { sticky: Some(sticky.clone()), header_routes: Vec::new() };
            let mut before = 0;
            let mut had: Vec<u32> = Vec::new();
            for weight in [0, 100, 500, 2500, 5000, WHOLE] {
                let traffic = traffic(weight, rules.clone());
                let has: Vec<u32> = (0..2000_u32)
                    .filter(|user| {
                        let name = format!("user-{user}");
                        let cookies = format!("a=b; user={name}; userx=1");
                        let headers = headers(&[("x-user", &name), ("cookie", &cookies)]);
                        chosen(&traffic, &headers, user.to_be_bytes()) == 2
                    })
                    .collect();
                assert!(had.iter().all(|user| has.contains(user)), "{sticky:?} {weight}");
                let share = has.len() * 5;
                assert!(share.abs_diff(usize::from(weight)) < 400, "{sticky:?} {weight}: {share}");
                assert!(has.len() > before || weight == 0);
                (before, had) = (has.len(), has);
            }
        }
    }

    #[test]
    fn without_a_key_each_request_is_divided_by_itself() {
        let header = HeaderName::from_static("x-user");
        for sticky in [None, Some(Sticky::Header(header)), Some(Sticky::Cookie("user".to_owned()))] {
            let traffic = traffic(2500, Rules { sticky, header_routes: Vec::new() });
            let empty = headers(&[("cookie", "user=")]);
            let candidates = (0..20_000).filter(|_| chosen(&traffic, &empty, [127, 0, 0, 1]) == 2).count();
            assert!(candidates.abs_diff(5000) < 300, "{candidates}");
        }
    }

    #[test]
    fn a_header_decides_before_the_weight() {
        let route = |value: &str, to_candidate| HeaderRoute {
            header: HeaderName::from_static("x-tester"),
            value: value.to_owned(),
            to_candidate,
        };
        let rules = Rules { sticky: None, header_routes: vec![route("new", true), route("old", false)] };
        let check = |weight, value: &str, expected| {
            let headers = headers(&[("x-tester", value)]);
            assert_eq!(chosen(&traffic(weight, rules.clone()), &headers, [1; 4]), expected);
        };
        check(0, "new", 2);
        check(WHOLE, "old", 1);
        check(0, "other", 1);
        check(WHOLE, "other", 2);
    }
}
