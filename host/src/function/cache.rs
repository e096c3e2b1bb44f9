//! Answers of one function that are kept for the same question, within a bound of bytes.
//!
//! The cache belongs to one deployed function and goes with it, so that no answer outlives its revision.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use lru::LruCache;
use sha2::{Digest, Sha256};

use crate::instance::typed::{Parameter, Reply, Request};

/// What a call is known by: a digest over everything that an answer may depend on.
pub type Key = [u8; 32];

/// The answers of one function, least recently used ones leaving first.
pub struct ResponseCache {
    kept: Mutex<Kept>,
    limit: usize,
}

struct Kept {
    replies: LruCache<Key, Reply>,
    bytes: usize,
}

/// What an entry takes beside its tensors and names.
const ENTRY_BYTES: usize = 256;

impl ResponseCache {
    /// A cache whose entries take at most `limit` bytes together.
    pub fn new(limit: usize) -> ResponseCache {
        ResponseCache { kept: Mutex::new(Kept { replies: LruCache::unbounded(), bytes: 0 }), limit }
    }

    /// The answer to the same question, if it is kept.
    pub fn get(&self, key: &Key) -> Option<Reply> {
        self.lock().replies.get(key).cloned()
    }

    /// Keeps an answer. One that would take more than a quarter of the cache is not kept.
    pub fn put(&self, key: Key, reply: &Reply) {
        let bytes = size(reply);
        if bytes > self.limit / 4 {
            return;
        }
        // What is kept must not hold on to something larger that it is a part of, such as the answer of a batch.
        let outputs = reply.outputs.iter().map(|(name, tensor)| (name.clone(), tensor.copied())).collect();
        let reply = Reply { outputs, parameters: reply.parameters.clone() };
        let mut kept = self.lock();
        if let Some(former) = kept.replies.put(key, reply) {
            kept.bytes -= size(&former);
        }
        kept.bytes += bytes;
        while kept.bytes > self.limit {
            let Some((_, oldest)) = kept.replies.pop_lru() else { break };
            kept.bytes -= size(&oldest);
        }
    }

    /// Bytes that are kept.
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn size(reply: &Reply) -> usize {
    let outputs = reply.outputs.iter();
    let outputs = outputs.map(|(name, tensor)| name.len() + tensor.data().len() + 8 * tensor.shape().len());
    let parameters = reply.parameters.iter().map(|(name, value)| {
        let text = if let Parameter::Text(text) = value { text.len() } else { 0 };
        name.len() + text
    });
    ENTRY_BYTES + outputs.chain(parameters).map(|bytes| bytes + 64).sum::<usize>()
}

/// What the call is known by. Every part goes in with its length, so that no two calls read the same.
pub fn key(request: &Request) -> Key {
    let mut digest = Sha256::new();
    let mut part = |bytes: &[u8]| {
        digest.update((bytes.len() as u64).to_le_bytes());
        digest.update(bytes);
    };
    part(&(request.inputs.len() as u64).to_le_bytes());
    for (name, tensor) in &request.inputs {
        part(name.as_bytes());
        part(tensor.datatype().name().as_bytes());
        let shape = tensor.shape().iter().flat_map(|dim| (*dim as u64).to_le_bytes());
        part(&shape.collect::<Bytes>());
        part(tensor.data());
    }
    part(&(request.parameters.len() as u64).to_le_bytes());
    for (name, value) in &request.parameters {
        part(name.as_bytes());
        match value {
            Parameter::Bool(value) => part(&[0, u8::from(*value)]),
            Parameter::Int64(value) => part(&[&[1][..], &value.to_le_bytes()].concat()),
            Parameter::Uint64(value) => part(&[&[2][..], &value.to_le_bytes()].concat()),
            Parameter::Double(value) => part(&[&[3][..], &value.to_bits().to_le_bytes()].concat()),
            Parameter::Text(value) => part(&[&[4][..], value.as_bytes()].concat()),
        }
    }
    for name in &request.outputs {
        part(name.as_bytes());
    }
    digest.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Datatype, Tensor};

    fn tensor(values: &[u8]) -> Tensor {
        Tensor::new(Datatype::Uint8, vec![values.len()], Bytes::copy_from_slice(values)).unwrap()
    }

    fn request(input: &str, values: &[u8]) -> Request {
        Request { inputs: vec![(input.to_owned(), tensor(values))], ..Request::default() }
    }

    #[test]
    fn calls_that_differ_have_keys_that_differ() {
        let base = request("x", &[1, 2]);
        let mut rows = vec![base.clone(), request("y", &[1, 2]), request("x", &[1, 3]), request("x1", &[2])];
        let parameter = |value| vec![("k".to_owned(), value)];
        for value in [Parameter::Int64(1), Parameter::Uint64(1), Parameter::Bool(true)] {
            rows.push(Request { parameters: parameter(value), ..base.clone() });
        }
        rows.push(Request { outputs: vec!["y".to_owned()], ..base.clone() });
        let flat = Tensor::new(Datatype::Uint8, vec![2, 1], Bytes::from_static(&[1, 2])).unwrap();
        rows.push(Request { inputs: vec![("x".to_owned(), flat)], ..Request::default() });
        let keys: std::collections::HashSet<_> = rows.iter().map(key).collect();
        assert_eq!(keys.len(), rows.len());
        assert_eq!(key(&base), key(&request("x", &[1, 2])));
    }

    #[test]
    fn what_was_used_least_recently_leaves_first() {
        let reply =
            |values: &[u8]| Reply { outputs: vec![("y".to_owned(), tensor(values))], ..Reply::default() };
        let one = size(&reply(&[0; 100]));
        let cache = ResponseCache::new(4 * one);
        let keys: Vec<Key> = (0..5).map(|n| key(&request("x", &[n]))).collect();
        for (n, key) in (0..).zip(&keys[..4]) {
            cache.put(*key, &reply(&[n; 100]));
        }
        assert_eq!(cache.bytes(), 4 * one);
        assert_eq!(cache.get(&keys[0]).unwrap().outputs[0].1.data()[..], [0; 100]);
        cache.put(keys[4], &reply(&[4; 100]));
        assert!(cache.get(&keys[1]).is_none(), "it was used least recently");
        assert!(cache.get(&keys[0]).is_some());
        cache.put(keys[4], &reply(&[5; 100]));
        assert_eq!(cache.bytes(), 4 * one, "an answer takes the place of a former one");
        cache.put(keys[3], &reply(&vec![0; 2 * one]));
        assert_eq!(cache.get(&keys[3]).unwrap().outputs[0].1.len(), 100, "too large to be kept");
    }
}
