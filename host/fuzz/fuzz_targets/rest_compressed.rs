//! Compressed bodies. The first byte chooses the coding, the rest is the body.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use rest::Asked;
use rest::serve::oip::compression::{self, Coding};

const LIMIT: usize = 64 << 10;

fuzz_target!(|data: &[u8]| {
    let Some((choice, body)) = data.split_first() else { return };
    let coding = if choice % 2 == 0 { Coding::Gzip } else { Coding::Deflate };
    let mut asked = Asked::default();
    let inflated = compression::inflate(body, coding, LIMIT, &mut |more| asked.more(more));
    assert!(asked.0 <= LIMIT);
    if let Ok(inflated) = &inflated {
        assert!(inflated.len() <= LIMIT);
    }
    let whole = Bytes::copy_from_slice(body);
    let compressed = compression::compress(std::slice::from_ref(&whole), coding);
    let again = compression::inflate(&compressed, coding, body.len(), &mut |_| true);
    assert_eq!(again, Ok(whole));
    let _ = compression::of_request([body]);
    let _ = compression::of_answer([body], body.len(), true);
});
