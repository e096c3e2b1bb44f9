//! Does with key-value stores and variables what its path says, through the sync interfaces.

use bindings::fermyon::spin::key_value::{Error, Store};
use bindings::fermyon::spin::variables;
use config::wasi::config::store as settings;
use keyvalue::wasi::keyvalue::atomics::{self, Cas, CasError};
use keyvalue::wasi::keyvalue::{batch, store};
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

#[allow(clippy::all, clippy::allow_attributes_without_reason, unsafe_code, reason = "generated")]
mod bindings {
    wit_bindgen::generate!({ path: "../../../wit/deps/fermyon-spin", world: "imports" });
}
#[allow(clippy::all, clippy::allow_attributes_without_reason, unsafe_code, reason = "generated")]
mod keyvalue {
    wit_bindgen::generate!({ path: "../../../wit/deps/wasi-keyvalue", world: "imports" });
}
#[allow(clippy::all, clippy::allow_attributes_without_reason, unsafe_code, reason = "generated")]
mod config {
    wit_bindgen::generate!({ path: "../../../wit/deps/wasi-config", world: "imports" });
}

struct Component;

wasip2::http::proxy::export!(Component);

impl Guest for Component {
    fn handle(request: IncomingRequest, outparam: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        let words: Vec<&str> = path.split('/').skip(2).collect();
        let told = answer(&words).unwrap_or_else(|error| format!("refused: {error:?}"));
        let response = OutgoingResponse::new(Fields::new());
        let body = response.body().expect("a response has one body");
        ResponseOutparam::set(outparam, Ok(response));
        let stream = body.write().expect("a body has one stream");
        for chunk in told.as_bytes().chunks(4096) {
            let _ = stream.blocking_write_and_flush(chunk);
        }
        drop(stream);
        let _ = OutgoingBody::finish(body, None);
    }
}

fn answer(words: &[&str]) -> Result<String, Error> {
    Ok(match words {
        ["set", name, key, value] => {
            Store::open(name)?.set(key, value.as_bytes())?;
            "done".to_owned()
        }
        ["get", name, key] => match Store::open(name)?.get(key)? {
            Some(value) => String::from_utf8_lossy(&value).into_owned(),
            None => "none".to_owned(),
        },
        ["delete", name, key] => {
            Store::open(name)?.delete(key)?;
            "done".to_owned()
        }
        ["exists", name, key] => Store::open(name)?.exists(key)?.to_string(),
        ["keys", name] => Store::open(name)?.get_keys()?.join(","),
        ["fill", name] => fill(&Store::open(name)?),
        ["open", name] => open(name),
        ["wasi", name] => wasi(name).unwrap_or_else(|error| format!("refused: {error:?}")),
        ["cas", name] => compare(name).unwrap_or_else(|error| format!("refused: {error:?}")),
        ["variable", name] => match variables::get(name) {
            Ok(value) => value,
            Err(error) => format!("refused: {error:?}"),
        },
        ["config", name] => format!("{:?} of {:?}", settings::get(name), settings::get_all()),
        _ => format!("what is {words:?}?"),
    })
}

/// Writes without end.
fn fill(store: &Store) -> String {
    let value = vec![7; 100 << 10];
    for number in 0_u64.. {
        if let Err(error) = store.set(&number.to_string(), &value) {
            return format!("{number} were set: {error:?}");
        }
    }
    String::new()
}

fn open(name: &str) -> String {
    let mut stores = Vec::new();
    loop {
        match Store::open(name) {
            Ok(store) => stores.push(store),
            Err(error) => return format!("{} are open: {error:?}", stores.len()),
        }
    }
}

/// Lists keys page by page, and changes several at once.
fn wasi(name: &str) -> Result<String, store::Error> {
    let bucket = store::open(name)?;
    let entries: Vec<_> = (0..2500).map(|number| (format!("wasi {number:05}"), vec![number as u8])).collect();
    batch::set_many(&bucket, &entries)?;
    let keys: Vec<String> = entries.iter().map(|(key, _)| key.clone()).collect();
    let found = batch::get_many(&bucket, &keys)?;
    let right = found
        .into_iter()
        .zip(entries)
        .all(|((key, found), (name, value))| key == name && found == Some(value));
    let (mut listed, mut cursor, mut pages) = (Vec::new(), None, 0);
    loop {
        let page = bucket.list_keys(cursor.as_deref())?;
        listed.extend(page.keys);
        pages += 1;
        cursor = page.cursor;
        if cursor.is_none() {
            break;
        }
    }
    let all = listed == keys;
    let foreign = bucket.list_keys(Some("17"));
    batch::delete_many(&bucket, &listed)?;
    let left = bucket.list_keys(None)?.keys.len();
    Ok(format!("right: {right}, all: {all} on {pages} pages, foreign: {foreign:?}, left: {left}"))
}

/// Compares and swaps, with and without somebody in between.
fn compare(name: &str) -> Result<String, store::Error> {
    let bucket = store::open(name)?;
    let sums = [atomics::increment(&bucket, "sum", 10)?, atomics::increment(&bucket, "sum", -15)?];
    bucket.set("k", b"one")?;
    let cas = Cas::new(&bucket, "k")?;
    bucket.set("k", b"two")?;
    // What was seen last counts.
    let seen = cas.current()?;
    let first = atomics::swap(cas, b"three").is_ok();
    let cas = Cas::new(&bucket, "k")?;
    bucket.set("k", b"four")?;
    let second = match atomics::swap(cas, b"five") {
        Err(CasError::CasFailed(newer)) => (newer.current()?, atomics::swap(newer, b"six").is_ok()),
        other => return Ok(format!("{other:?}")),
    };
    let absent = Cas::new(&bucket, "absent")?;
    let made = atomics::swap(absent, b"made").is_ok();
    let last = bucket.get("k")?;
    Ok(format!("{sums:?} {seen:?} {first} {second:?} {made} {last:?}"))
}
