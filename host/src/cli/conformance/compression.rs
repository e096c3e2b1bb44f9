//! Compressed requests and answers, as HTTP has them and clients in use ask for them.

use std::io::{Read as _, Write as _};

use flate2::Compression;
use flate2::read::{GzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use serde_json::json;

use super::check::{Check, Level, Problem, Verdict};
use super::http::Answer;
use super::message::{self, HEADER_LENGTH, Post, binary_request, json_request, with};
use super::model::Model;
use super::refusal::is_refused;

const SECTION: &str = "HTTP content coding";

/// The most bytes that an answer may have when it is decompressed.
const MAX_DECODED: u64 = 16 << 20;

pub(super) const CHECKS: &[Check<Model>] = &[
    check("compression.request.gzip", "a request compressed by gzip is answered", |model| {
        request(model, "gzip")
    }),
    check("compression.request.deflate", "a request compressed by deflate is answered", |model| {
        request(model, "deflate")
    }),
    check("compression.request.binary", "a request with binary data may be compressed as a whole", |model| {
        let (head, data) = binary_request(&model.binary_sample()?.inputs);
        offered(model, "gzip")?;
        let post = encoded(Post::binary(&head, &data), "gzip");
        message::read(model.infer(&post)?).map(drop)
    }),
    check("compression.answer.gzip", "an answer comes compressed by gzip to those who accept it", |model| {
        answer(model, "gzip")
    }),
    check(
        "compression.answer.deflate",
        "an answer comes compressed by deflate to those who accept it",
        |model| answer(model, "deflate"),
    ),
    check("compression.answer.binary", "an answer with binary data may be compressed as a whole", |model| {
        let (head, data) = binary_request(&model.binary_sample()?.inputs);
        let head = with(head, "parameters", json!({ "binary_data_output": true }));
        let post = Post::binary(&head, &data).header("accept-encoding", "gzip");
        model.agrees(&message::read(decoded(model.infer(&post)?, "gzip")?)?.tensors())
    }),
    check("compression.refuse.broken", "what only claims to be compressed is refused", |model| {
        offered(model, "gzip")?;
        let plain = Post::json(&json_request(&model.json_sample()?.inputs));
        let mut cut = encoded(plain.clone(), "gzip");
        cut.body.truncate(cut.body.len() / 2);
        [plain.header("content-encoding", "gzip"), cut].iter().try_for_each(|post| is_refused(model, post))
    }),
    check("compression.refuse.unknown", "an encoding that the server does not know is refused", |model| {
        let post = Post::json(&json_request(&model.json_sample()?.inputs));
        is_refused(model, &post.header("content-encoding", "tenon"))
    }),
];

const fn check(id: &'static str, says: &'static str, run: fn(&Model) -> Verdict) -> Check<Model> {
    Check { id, level: Level::Extension, section: SECTION, says, run }
}

fn encoded(mut post: Post, coding: &'static str) -> Post {
    post.body = compress(&post.body, coding);
    post.header("content-encoding", coding)
}

fn compress(body: &[u8], coding: &str) -> Vec<u8> {
    let written = if coding == "gzip" {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(body).and_then(|()| encoder.finish())
    } else {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(body).and_then(|()| encoder.finish())
    };
    written.expect("memory takes what is written to it")
}

/// Skips where the server does not take compressed requests, as it may.
fn offered(model: &Model, coding: &'static str) -> Result<Answer, Problem> {
    let post = encoded(Post::json(&json_request(&model.json_sample()?.inputs)), coding);
    let answer = model.infer(&post)?;
    let refused = matches!(answer.status, 400 | 415 | 422);
    if refused && answer.error().is_some() | (answer.status != 400) {
        return Err(Problem::skip(format!("the server does not take {coding}: status {}", answer.status)));
    }
    Ok(answer)
}

fn request(model: &Model, coding: &'static str) -> Verdict {
    model.agrees(&message::read(offered(model, coding)?)?.tensors())
}

/// Large enough that a server finds compressing it worth its while.
fn answer(model: &Model, coding: &'static str) -> Verdict {
    let head = with(json_request(&model.json_sample()?.inputs), "id", json!("x".repeat(4096)));
    let post = Post::json(&head).header("accept-encoding", coding);
    let answer = decoded(model.infer(&post)?, coding)?;
    model.agrees(&message::read(answer)?.tensors())
}

/// The answer without its compression; a reason to skip where it has none.
fn decoded(answer: Answer, coding: &str) -> Result<Answer, Problem> {
    let mut answer = answer.ok()?;
    match answer.header("content-encoding") {
        "" | "identity" => return Err(Problem::skip("the answer is not compressed, which HTTP allows")),
        used if used != coding => return Err(Problem::wrong(coding, used)),
        _ => {}
    }
    let mut body = Vec::new();
    let read = match coding {
        "gzip" => GzDecoder::new(answer.body.as_slice()).take(MAX_DECODED).read_to_end(&mut body),
        _ => ZlibDecoder::new(answer.body.as_slice()).take(MAX_DECODED).read_to_end(&mut body),
    };
    if let Err(error) = read {
        return Err(Problem::wrong(format!("a body that is {coding}"), error.to_string()));
    }
    // It counts the bytes of the JSON as it is, not as it travels.
    let length = answer.header(HEADER_LENGTH).parse::<usize>();
    if length.is_ok_and(|length| length > body.len()) {
        return Err(Problem::wrong("a header length within the body", answer.header(HEADER_LENGTH)));
    }
    answer.body = body;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use ureq::http::HeaderMap;

    use super::*;

    fn check(coding: &str, body: Vec<u8>, expected: Option<&[u8]>) {
        let mut headers = HeaderMap::new();
        headers.insert("content-encoding", coding.parse().unwrap());
        let answer = decoded(Answer { status: 200, headers, body }, coding);
        assert_eq!(answer.ok().map(|answer| answer.body).as_deref(), expected);
    }

    #[test]
    fn both_codings_go_both_ways() {
        for coding in ["gzip", "deflate"] {
            check(coding, compress(b"tensors", coding), Some(b"tensors"));
            check(coding, b"tensors".to_vec(), None);
        }
        check("identity", b"tensors".to_vec(), None);
    }
}
