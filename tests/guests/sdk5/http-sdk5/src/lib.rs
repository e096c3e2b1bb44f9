//! An HTTP component of spin-sdk 5 that behaves as its path says.

use spin_sdk::http::{IntoResponse, Request, Response};
use spin_sdk::http_component;

#[http_component]
async fn handle(request: Request) -> anyhow::Result<impl IntoResponse> {
    let (path, query) = (request.path().to_owned(), request.query().to_owned());
    let behaviour = path.rsplit('/').find(|part| !part.is_empty()).unwrap_or("hello");
    let body = match behaviour {
        "echo" => request.body().to_vec(),
        "headers" => headers(&request).into(),
        "env" => std::env::vars().map(|(key, value)| format!("{key}={value}\n")).collect::<String>().into(),
        "file" => std::fs::read(&query).unwrap_or_else(|error| format!("{:?}", error.kind()).into_bytes()),
        "write" => format!("{:?}", std::fs::write(&query, "x").map_err(|error| error.kind())).into(),
        "time" => format!("{}", std::time::SystemTime::now() > std::time::UNIX_EPOCH).into(),
        "random" => format!("{}", random()).into(),
        "fetch" => fetch(&query).await.into(),
        "print" => print(&query),
        "panic" => panic!("as asked"),
        "trap" => core::arch::wasm32::unreachable(),
        _ => b"hello\n".to_vec(),
    };
    Ok(Response::builder().status(200).header("content-type", "text/plain").body(body).build())
}

fn headers(request: &Request) -> String {
    let line = |(name, value): (&str, &spin_sdk::http::HeaderValue)| {
        format!("{name}: {}\n", value.as_str().unwrap_or_default())
    };
    request.headers().map(line).collect()
}

async fn fetch(url: &str) -> String {
    match spin_sdk::http::send::<_, Response>(Request::get(url)).await {
        Ok(answer) => format!("{} {}", answer.status(), String::from_utf8_lossy(answer.body())),
        Err(error) => format!("error: {error:?}"),
    }
}

fn random() -> u64 {
    std::hash::BuildHasher::hash_one(&std::collections::hash_map::RandomState::new(), 1)
}

fn print(line: &str) -> Vec<u8> {
    println!("out {line}");
    eprintln!("err {line}");
    b"printed\n".to_vec()
}
