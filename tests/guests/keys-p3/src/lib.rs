//! Does with key-value stores and variables what its path says, through every interface that spin-sdk 7 has.

use futures::future::join_all;
use http_body_util::Full;
use spin_sdk::experimental::wasi::config::store as config;
use spin_sdk::experimental::wasi::keyvalue::{atomics, batch, store as wasi};
use spin_sdk::http::{IntoResponse, Request, Response, Result, StatusCode};
use spin_sdk::http_service;
use spin_sdk::key_value::{Error, Store};

#[http_service]
async fn handle(request: Request) -> Result<impl IntoResponse> {
    let words: Vec<&str> = request.uri().path().split('/').skip(2).collect();
    let answer = answer(&words).await.unwrap_or_else(|error| format!("refused: {error:?}"));
    Ok(Response::builder().status(StatusCode::OK).body(Full::new(bytes::Bytes::from(answer)))?)
}

async fn answer(words: &[&str]) -> std::result::Result<String, Error> {
    Ok(match words {
        ["set", store, key, value] => {
            Store::open(store).await?.set(key, value).await?;
            "done".to_owned()
        }
        ["get", store, key] => match Store::open(store).await?.get(key).await? {
            Some(value) => String::from_utf8_lossy(&value).into_owned(),
            None => "none".to_owned(),
        },
        ["delete", store, key] => {
            Store::open(store).await?.delete(key).await?;
            "done".to_owned()
        }
        ["exists", store, key] => Store::open(store).await?.exists(key).await?.to_string(),
        ["keys", store] => Store::open(store).await?.get_keys().await.collect().await?.join(","),
        ["some", store] => some(&Store::open(store).await?).await?,
        ["many", store, count] => many(&Store::open(store).await?, count.parse().unwrap_or(0)).await?,
        ["fill", store] => fill(&Store::open(store).await?).await,
        ["lists", store] => lists(&Store::open(store).await?).await,
        ["open", store] => open(store).await,
        ["wasi", store] => wasi(store).unwrap_or_else(|error| error),
        ["variable", name] => match spin_sdk::variables::get(name).await {
            Ok(value) => value,
            Err(error) => format!("refused: {error:?}"),
        },
        ["config", name] => format!("{:?} of {:?}", config::get(name), config::get_all()),
        _ => format!("what is {words:?}?"),
    })
}

/// The first keys only.
async fn some(store: &Store) -> std::result::Result<String, Error> {
    let mut keys = store.get_keys().await;
    let (one, two) = (keys.next().await, keys.next().await);
    let (rest, ended) = keys.into_inner();
    drop(rest);
    ended.await?;
    Ok(format!("{one:?} {two:?}"))
}

/// Sets many keys at once.
async fn many(store: &Store, count: usize) -> std::result::Result<String, Error> {
    let keys: Vec<String> = (0..count).map(|number| format!("many {number:05}")).collect();
    for set in join_all(keys.iter().map(|key| store.set(key, key))).await {
        set?;
    }
    let mut found = 0;
    for got in join_all(keys.iter().map(|key| store.get(key))).await {
        found += got?.map_or(0, |value| value.len());
    }
    let listed = store.get_keys().await.collect().await?;
    let all = keys.iter().all(|key| listed.contains(key));
    Ok(format!("{found} bytes, all listed: {all}"))
}

/// Writes without end.
async fn fill(store: &Store) -> String {
    let value = vec![7; 100 << 10];
    for number in 0_u64.. {
        if let Err(error) = store.set(number.to_string(), &value).await {
            return format!("{number} were set: {error:?}");
        }
    }
    String::new()
}

/// Reads many lists of keys at once.
async fn lists(store: &Store) -> String {
    let lists = join_all((0..20).map(|_| store.get_keys())).await;
    let mut refused = 0;
    for list in lists {
        refused += usize::from(list.collect().await.is_err());
    }
    format!("{refused} of 20 were refused")
}

async fn open(store: &str) -> String {
    let mut stores = Vec::new();
    loop {
        match Store::open(store).await {
            Ok(store) => stores.push(store),
            Err(error) => return format!("{} are open: {error:?}", stores.len()),
        }
    }
}

/// Everything that the drafts of WASI have.
fn wasi(name: &str) -> std::result::Result<String, String> {
    let told = |error: wasi::Error| format!("{error:?}");
    let store = wasi::open(name).map_err(told)?;
    store.set("w", b"1").map_err(told)?;
    batch::set_many(&store, &[("x".to_owned(), b"2".to_vec())]).map_err(told)?;
    let found = batch::get_many(&store, &["w".to_owned(), "x".to_owned(), "?".to_owned()]).map_err(told)?;
    let sum = atomics::increment(&store, "sum", 5).map_err(told)?;
    let cas = atomics::Cas::new(&store, "w").map_err(told)?;
    let current = cas.current().map_err(told)?;
    atomics::swap(cas, b"3").map_err(|error| format!("{error:?}"))?;
    let keys = store.list_keys(None).map_err(told)?.keys;
    let swapped = store.get("w").map_err(told)?;
    batch::delete_many(&store, &keys).map_err(told)?;
    let left = store.list_keys(None).map_err(told)?.keys.len();
    Ok(format!("{found:?} {sum} {current:?} {swapped:?} {keys:?} {left}"))
}
