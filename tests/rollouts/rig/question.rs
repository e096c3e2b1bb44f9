//! Questions to the candidate function with their right answers, and what was answered.

use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

use super::reference::{Answer, CLASSES, FEATURES, classify, scramble};

/// One call's input, and what is right.
pub(crate) struct Question {
    pub(crate) x: [f32; FEATURES],
    /// The input as a body of the Open Inference Protocol.
    pub(crate) body: String,
    pub(crate) answer: Answer,
}

/// So many questions, all different; the same for the same seed.
pub(crate) fn questions(count: usize, seed: u64) -> Arc<[Question]> {
    (0..count as u64).map(|index| Question::of(scramble(seed ^ (index << 20)))).collect()
}

impl Question {
    /// Multiples of 1/16 of at most 8, drawn from the bits.
    fn of(bits: u64) -> Question {
        let element = |index: u64| (scramble(bits ^ index) % 257) as f32 / 16.0 - 8.0;
        let x = std::array::from_fn(|index| element(index as u64));
        let input = json!({ "name": "x", "datatype": "FP32", "shape": [FEATURES], "data": x });
        Question { x, body: json!({ "inputs": [input] }).to_string(), answer: classify(&x) }
    }

    /// Checks an answer to the question; the label of the revision that says that it gave it.
    ///
    /// # Errors
    /// Where the answer is another than the right one, or does not say whose it is.
    pub(crate) fn check(&self, body: &[u8], version: Option<u64>) -> anyhow::Result<u32> {
        let told: Value = serde_json::from_slice(body).context("the answer is not JSON")?;
        let label = told["parameters"]["revision"].as_str().and_then(|label| label.parse().ok());
        let label = label.with_context(|| format!("no revision has signed {told}"))?;
        if let (Some(version), Some(told)) = (version, told["model_version"].as_str()) {
            ensure!(told == version.to_string(), "model_version is {told}, the header says {version}");
        }
        let data = |name: &str| {
            let outputs = told["outputs"].as_array().into_iter().flatten();
            outputs.into_iter().find(|output| output["name"] == name).map(|output| &output["data"])
        };
        let (Some(scores), Some(classes)) = (data("scores"), data("label")) else {
            bail!("outputs are missing in {told}");
        };
        let right = self.answer;
        // The shortest digits that are read as this number, and not the number to its last digit.
        let same = |score: &Value, right: f32| score.as_f64().map(|score| score as f32) == Some(right);
        let scores_fit = scores.as_array().is_some_and(|scores| {
            scores.len() == CLASSES
                && scores.iter().zip(right.scores).all(|(score, right)| same(score, right))
        });
        ensure!(scores_fit, "scores are {scores}, not {:?}", right.scores);
        ensure!(*classes == json!([right.label]), "the label is {classes}, not {}", right.label);
        Ok(label)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(question: &Question, scores: Value, label: i64) -> Vec<u8> {
        let outputs = json!([
            { "name": "scores", "datatype": "FP32", "shape": [CLASSES], "data": scores },
            { "name": "label", "datatype": "INT64", "shape": [1], "data": [label] },
        ]);
        let parameters = json!({ "revision": "7" });
        let _ = question;
        json!({ "model_name": "f", "model_version": "3", "outputs": outputs, "parameters": parameters })
            .to_string()
            .into_bytes()
    }

    #[test]
    fn only_the_right_answer_passes() {
        for question in questions(100, 1).iter() {
            let right = question.answer;
            let check =
                |scores: Value, label, version| question.check(&told(question, scores, label), version);
            assert_eq!(check(json!(right.scores), right.label, Some(3)).unwrap(), 7);
            assert_eq!(check(json!(right.scores), right.label, None).unwrap(), 7);
            assert!(check(json!(right.scores), right.label, Some(4)).is_err());
            assert!(check(json!(right.scores), (right.label + 1) % 10, Some(3)).is_err());
            let mut scores = right.scores;
            scores[9] += 1.0 / 256.0;
            assert!(check(json!(scores), right.label, Some(3)).is_err());
            assert!(check(json!(right.scores[1..]), right.label, Some(3)).is_err());
            assert!(check(json!(vec![Value::Null; CLASSES]), right.label, Some(3)).is_err());
        }
        assert!(questions(1, 1)[0].check(b"{}", None).is_err());
        assert!(questions(1, 1)[0].check(b"", None).is_err());
    }

    #[test]
    fn questions_are_all_different_and_of_every_class() {
        let questions = questions(2_000, 5);
        let mut bodies: Vec<_> = questions.iter().map(|question| &question.body).collect();
        bodies.sort();
        bodies.dedup();
        assert_eq!(bodies.len(), 2_000);
        for class in 0..CLASSES as i64 {
            let of_class = questions.iter().filter(|question| question.answer.label == class).count();
            assert!(of_class > 20, "class {class} has {of_class}");
        }
    }
}
