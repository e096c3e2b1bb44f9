//! Scores of classes: softmax, the best ones, and their labels.

use std::cmp::Ordering;

/// Logits to probabilities: each in 0..=1, with a sum of 1. Large logits do not overflow. For a batch, call it
/// for each of [`Tensor::rows`](crate::Tensor::rows).
///
/// ```
/// let probabilities = tenon_sdk::scores::softmax(&[1000.0, 1000.0]);
/// assert_eq!(probabilities, [0.5, 0.5]);
/// ```
pub fn softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut scores: Vec<f32> = logits.iter().map(|logit| (logit - largest).exp()).collect();
    let sum: f32 = scores.iter().sum();
    scores.iter_mut().for_each(|score| *score /= sum);
    scores
}

/// The index of the largest score; of several, the first. `None` where there is no score that is a number.
///
/// ```
/// assert_eq!(tenon_sdk::scores::argmax(&[0.1, 0.7, 0.2]), Some(1));
/// ```
pub fn argmax(scores: &[f32]) -> Option<usize> {
    top_k(scores, 1).first().map(|&(index, _)| index)
}

/// The `k` largest scores with their indices, the largest first; fewer where there are fewer. Equal ones stay in
/// order, and what is not a number is left out.
///
/// ```
/// assert_eq!(tenon_sdk::scores::top_k(&[0.1, 0.7, 0.2], 2), [(1, 0.7), (2, 0.2)]);
/// ```
pub fn top_k(scores: &[f32], k: usize) -> Vec<(usize, f32)> {
    let mut best: Vec<(usize, f32)> = Vec::with_capacity(k.min(scores.len()));
    for (index, &score) in scores.iter().enumerate().filter(|(_, score)| !score.is_nan()) {
        if best.len() == k && best.last().is_none_or(|&(_, last)| score <= last) {
            continue;
        }
        if best.len() == k {
            best.pop();
        }
        let place = best.partition_point(|(_, other)| other.total_cmp(&score) != Ordering::Less);
        best.insert(place, (index, score));
    }
    best
}

/// The names of classes, in the order of a model's scores.
///
/// ```
/// use tenon_sdk::scores::Labels;
///
/// let labels = Labels::from_lines("cat\ndog\n");
/// assert_eq!(labels.top_k(&[0.2, 0.8], 1), [("dog", 0.8)]);
/// ```
#[derive(Clone, Debug)]
pub struct Labels<'a> {
    names: Vec<&'a str>,
}

impl<'a> Labels<'a> {
    /// One name a line, as in `include_str!("labels.txt")`.
    pub fn from_lines(lines: &'a str) -> Self {
        Self { names: lines.lines().map(str::trim_end).collect() }
    }

    /// The name of a class; empty for one that has none.
    pub fn name(&self, index: usize) -> &'a str {
        self.names.get(index).copied().unwrap_or_default()
    }

    /// The `k` largest scores with the names of their classes, the largest first.
    pub fn top_k(&self, scores: &[f32], k: usize) -> Vec<(&'a str, f32)> {
        top_k(scores, k).into_iter().map(|(index, score)| (self.name(index), score)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_come_first_and_equal_ones_in_order() {
        assert_eq!(top_k(&[1.0, 3.0, 3.0, 2.0], 3), [(1, 3.0), (2, 3.0), (3, 2.0)]);
        assert_eq!(top_k(&[f32::NAN, 1.0], 5), [(1, 1.0)]);
        assert_eq!(top_k(&[1.0], 0), []);
        assert_eq!(argmax(&[]), None);
        assert_eq!(argmax(&[f32::NEG_INFINITY]), Some(0));
    }

    #[test]
    fn probabilities_sum_to_one() {
        let sum: f32 = softmax(&[-3.0, 0.5, 80.0]).iter().sum();
        assert!((sum - 1.0).abs() < 1e-6);
        assert!(softmax(&[]).is_empty());
    }
}
