//! A component of spin-sdk 5 that imports what this host has not: Spin's own language models.

use spin_sdk::http::{IntoResponse, Request, Response};
use spin_sdk::{http_component, llm};

#[http_component]
fn handle(request: Request) -> anyhow::Result<impl IntoResponse> {
    let told = llm::infer(llm::InferencingModel::Llama2Chat, request.query())?;
    Ok(Response::new(200, told.text))
}
