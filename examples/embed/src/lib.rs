//! Embeds sentences with all-MiniLM-L6-v2, or ranks documents by how near they are to a query.

mod tokenizer;

use serde::{Deserialize, Serialize};
use tenon_sdk::{Error, Json, Model, Result, Tensor, scores};

use crate::tokenizer::Tokenizer;

/// What the model was trained with; it takes up to 512.
const TOKENS: usize = 256;
/// At once: a batch is padded to its longest text.
const TEXTS: usize = 64;
const VOCABULARY: &str = "/vocab.txt";

/// Either `sentences`, or `query` and `documents`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    sentences: Option<Vec<String>>,
    query: Option<String>,
    documents: Option<Vec<String>>,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Embeddings(Vec<Vec<f32>>),
    Ranked(Vec<Ranked>),
}

#[derive(Serialize)]
struct Ranked {
    /// The cosine of the angle between query and document: 1 where they mean the same.
    score: f32,
    document: String,
}

#[tenon_sdk::function]
fn embed(request: Json<Request>) -> Result<Json<Answer>> {
    let answer = match request.0 {
        Request { sentences: Some(sentences), query: None, documents: None } => {
            Answer::Embeddings(rows(&embeddings(&sentences)?))
        }
        Request { sentences: None, query: Some(query), documents: Some(documents) } => {
            Answer::Ranked(ranked(query, documents)?)
        }
        _ => return Err(Error::invalid_input("give `sentences`, or `query` and `documents`")),
    };
    Ok(Json(answer))
}

fn rows(embeddings: &Tensor<f32>) -> Vec<Vec<f32>> {
    embeddings.rows().map(<[f32]>::to_vec).collect()
}

/// One row a text, each of length one.
fn embeddings(texts: &[String]) -> Result<Tensor<f32>> {
    if texts.is_empty() || texts.len() > TEXTS {
        return Err(Error::invalid_input(format!("give 1 to {TEXTS} texts, not {}", texts.len())));
    }
    let vocabulary = std::fs::read_to_string(VOCABULARY)
        .map_err(|error| Error::failed(format_args!("{VOCABULARY}: {error}")))?;
    let tokenizer =
        Tokenizer::new(&vocabulary).ok_or_else(|| Error::failed("the vocabulary is not BERT's"))?;
    let ids: Vec<Vec<i64>> = texts.iter().map(|text| tokenizer.encode(text, TOKENS)).collect();
    let (input_ids, attention_mask) = batch(&ids)?;
    let token_type_ids = Tensor::new(input_ids.shape(), vec![0_i64; input_ids.len()])?;
    let inputs =
        [("input_ids", input_ids), ("attention_mask", attention_mask), ("token_type_ids", token_type_ids)];
    Model::named("minilm")?.infer(inputs)?.tensor("sentence_embedding")
}

/// Ids padded to the longest text, and a mask that is 1 where there are ids.
fn batch(ids: &[Vec<i64>]) -> Result<(Tensor<i64>, Tensor<i64>)> {
    let longest = ids.iter().map(Vec::len).max().unwrap_or_default();
    let mut padded = vec![0; ids.len() * longest];
    let mut mask = vec![0; ids.len() * longest];
    for (row, ids) in ids.iter().enumerate() {
        let start = row * longest;
        padded[start..start + ids.len()].copy_from_slice(ids);
        mask[start..start + ids.len()].fill(1);
    }
    Ok((Tensor::new([ids.len(), longest], padded)?, Tensor::new([ids.len(), longest], mask)?))
}

/// The documents, the nearest first.
fn ranked(query: String, documents: Vec<String>) -> Result<Vec<Ranked>> {
    let mut texts = documents;
    texts.push(query);
    let embeddings = embeddings(&texts)?;
    let rows: Vec<&[f32]> = embeddings.rows().collect();
    let Some((query, documents)) = rows.split_last() else { return Ok(Vec::new()) };
    let cosine = |document: &&[f32]| document.iter().zip(*query).map(|(a, b)| a * b).sum();
    let cosines: Vec<f32> = documents.iter().map(cosine).collect();
    let nearest = scores::top_k(&cosines, cosines.len());
    Ok(nearest
        .into_iter()
        .map(|(index, score)| Ranked { score, document: std::mem::take(&mut texts[index]) })
        .collect())
}
