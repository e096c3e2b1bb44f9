//! Adds two lists of numbers: a model function to start from.

use tenon_sdk::{Error, Model, Result, Tensor};

/// The arguments are the inputs, and `sum` is the output: the metadata comes from this signature.
#[tenon_sdk::function(outputs(sum))]
fn add(a: Tensor<i64>, b: Tensor<i64>) -> Result<Tensor<i64>> {
    if a.shape() != b.shape() {
        let message = format!("`a` has {:?} elements and `b` {:?}", a.shape(), b.shape());
        return Err(Error::invalid_input(message));
    }
    // The manifest grants the model under this name. Tensors that are only passed on are not copied.
    Model::named("add")?.infer([("a", a), ("b", b)])?.tensor("sum")
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
        let sum = add(vec![1, 2, 3].into(), vec![10, 20, 30].into()).unwrap();
        assert_eq!(*sum, [11, 22, 33]);
    }

    #[test]
    fn lists_of_different_lengths_are_refused() {
        let error = add(vec![1, 2, 3].into(), vec![10].into()).unwrap_err();
        assert_eq!((error.code(), error.status()), ("invalid-input", Some(400)));
    }
}
