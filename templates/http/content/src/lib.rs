//! Adds two lists of numbers from a request's query: an HTTP function with a model, to start from.

use serde::Serialize;
use spin_sdk::http::{IntoResponse, Json, Request, StatusCode};
use spin_sdk::http_service;
use tenon_sdk::{Error, Model, Result, Tensor};

#[derive(Serialize)]
struct Sum {
    sum: Vec<i64>,
}

#[derive(Serialize)]
struct Failure {
    error: String,
}

#[http_service]
async fn handle(request: Request) -> impl IntoResponse {
    match sum(request.uri().query().unwrap_or_default()) {
        Ok(sum) => (StatusCode::OK, Json(Sum { sum })).into_response(),
        Err(error) => {
            let status = error.status().and_then(|status| StatusCode::from_u16(status).ok());
            let status = status.unwrap_or(StatusCode::BAD_GATEWAY);
            (status, Json(Failure { error: error.to_string() })).into_response()
        }
    }
}

/// The sum of `a` and `b` in a query such as `a=1,2&b=10,20`.
fn sum(query: &str) -> Result<Vec<i64>> {
    let (a, b) = (numbers(query, "a")?, numbers(query, "b")?);
    if a.len() != b.len() {
        return Err(Error::invalid_input(format!("`a` has {} numbers and `b` {}", a.len(), b.len())));
    }
    // The manifest grants the model under this name.
    let outputs = Model::named("add")?.infer([("a", Tensor::from(a)), ("b", Tensor::from(b))])?;
    Ok(outputs.tensor("sum")?.into_vec())
}

fn numbers(query: &str, name: &str) -> Result<Vec<i64>> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let wrong = || Error::invalid_input(format!("`{name}` must be whole numbers, as in `{name}=1,2,3`"));
    let numbers = value.ok_or_else(wrong)?.split(',').map(|number| number.parse().map_err(|_| wrong()));
    numbers.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tenon_sdk::{IntoTensor, testing};

    /// Stands in for the model, so that `cargo test` needs no host.
    fn grant_add() {
        testing::grant("add", |mut inputs| {
            let b: Tensor<i64> = inputs.remove(1).1.typed()?;
            let a: Tensor<i64> = inputs.remove(0).1.typed()?;
            let sum: Tensor<i64> = a.iter().zip(b.iter()).map(|(a, b)| a + b).collect();
            Ok(vec![("sum".to_owned(), sum.into_tensor()?)])
        });
    }

    #[test]
    fn lists_of_one_length_are_added() {
        grant_add();
        assert_eq!(sum("a=1,2,3&b=10,20,30").unwrap(), [11, 22, 33]);
    }

    #[test]
    fn what_is_no_list_of_numbers_is_refused() {
        for query in ["", "a=1", "a=1&b=x", "a=1,2&b=3"] {
            assert_eq!(sum(query).unwrap_err().status(), Some(400), "{query}");
        }
    }
}
