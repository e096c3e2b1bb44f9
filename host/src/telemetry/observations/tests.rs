//! Calls are counted once each, whatever they answer, by many threads at a time.

use std::collections::BTreeMap;

use super::*;
use crate::tensor::Datatype;

fn watched() -> Observations {
    let observations = Observations::new();
    observations.watch(true);
    observations
}

fn tensor(datatype: Datatype, shape: &[usize], data: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Tensor {
    let data: Vec<u8> = data.into_iter().flat_map(|bytes| bytes.as_ref().to_vec()).collect();
    Tensor::new(datatype, shape.to_vec(), data.into()).unwrap()
}

fn floats(shape: &[usize], values: &[f32]) -> Tensor {
    tensor(Datatype::Fp32, shape, values.iter().map(|value| value.to_le_bytes()))
}

/// What is counted of one answer.
fn counted(tensor: &Tensor) -> Distribution {
    let observations = watched();
    observations.output("out", tensor);
    observations.read().outputs.remove("out").unwrap()
}

#[test]
fn nothing_is_counted_until_somebody_watches() {
    let observations = Observations::new();
    observations.record(Outcome::Success, Duration::from_millis(1), None);
    observations.output("out", &floats(&[1], &[1.0]));
    assert!(!observations.watched());
    assert_eq!(observations.read(), Tally::default());
    observations.watch(true);
    observations.record(Outcome::Trap, Duration::from_millis(1), None);
    observations.watch(false);
    observations.record(Outcome::Trap, Duration::from_millis(1), None);
    assert_eq!((observations.read().requests, observations.read().traps), (1, 1));
}

#[test]
fn calls_are_counted_by_how_they_end() {
    let observations = watched();
    let millisecond = Duration::from_millis(1);
    for (outcome, times) in [
        (Outcome::Success, 5),
        (Outcome::Raised, 4),
        (Outcome::Error, 3),
        (Outcome::Trap, 2),
        (Outcome::LimitKill, 1),
        (Outcome::Left, 7),
    ] {
        (0..times).for_each(|_| observations.record(outcome, millisecond, Some(1 << 20)));
    }
    // An answer that was kept.
    observations.record(Outcome::Success, Duration::ZERO, None);
    let tally = observations.read();
    assert_eq!(
        (
            tally.requests,
            tally.success,
            tally.raised,
            tally.errors,
            tally.traps,
            tally.limit_kills,
            tally.left
        ),
        (23, 6, 4, 3, 2, 1, 7)
    );
    assert_eq!(tally.latency, Histogram::from(vec![(bucket(1_000_000), 5)]));
    assert_eq!(tally.memory, Histogram::from(vec![(160, 22)]));
    assert_eq!(tally.memory_peak_bytes, 1 << 20);
}

#[test]
fn a_count_begins_anew() {
    let observations = watched();
    let record = || observations.record(Outcome::Success, Duration::from_millis(1), None);
    record();
    observations.output("out", &floats(&[1], &[1.0]));
    observations.begin();
    assert_eq!(observations.read().requests, 0);
    record();
    let tally = observations.read();
    assert_eq!((tally.requests, tally.latency.total(), tally.outputs["out"].finite), (1, 1, 0));
}

#[test]
fn buckets_are_sixteen_to_a_power_of_two() {
    for (value, expected) in [(0, 0), (1023, 0), (1024, 0), (2048, 16), (1 << 20, 160), (u64::MAX, 511)] {
        assert_eq!(bucket(value), expected, "{value}");
    }
    for value in [1500u64, 8_000_000, 3_000_000_000] {
        let found = bucket(value);
        assert!(lower_edge(found) <= value as f64 && (value as f64) < lower_edge(found + 1), "{value}");
        // Twice as much is one power of two further.
        assert_eq!(bucket(2 * value), found + BUCKETS_PER_DOUBLING);
    }
    let ordered = [f64::NEG_INFINITY, -1e9, -3.0, -1e-3, 0.0, 1e-12, 1e-3, 3.0, 1e9, f64::INFINITY];
    assert!(ordered.is_sorted_by_key(|value| signed_bucket(*value)));
    assert_eq!((signed_bucket(0.0), signed_bucket(1e-12), signed_bucket(f64::NAN)), (0, 0, 0));
    for value in [-7.5, -1e-3, 1.0, 123.0] {
        let edge = signed_lower_edge(signed_bucket(value));
        assert!(edge.abs() <= value.abs() && value.abs() < 1.05 * edge.abs(), "{value}: {edge}");
    }
}

#[test]
fn an_answer_counts_once_whatever_its_datatype() {
    let check = |tensor: Tensor, class: Option<u16>, value: Option<f64>| {
        let counted = counted(&tensor);
        assert_eq!((counted.finite, counted.non_finite), (1, 0), "{tensor:?}");
        assert_eq!(counted.classes, class.map(|class| (class, 1)).into_iter().collect(), "{tensor:?}");
        let value = value.map(|value| (signed_bucket(value), 1)).into_iter().collect::<Vec<_>>();
        assert_eq!(counted.values, Histogram::from(value), "{tensor:?}");
    };
    let same = |datatype, one: &[u8], value| {
        check(tensor(datatype, &[3], [one; 3]), Some(value as u16), Some(value));
    };
    check(floats(&[], &[2.5]), None, Some(2.5));
    check(floats(&[2, 1], &[2.5, 2.5]), None, Some(2.5));
    check(floats(&[2, 3], &[2.5, 2.6, 2.5, 2.5, 2.6, 2.5]), Some(1), Some(2.55));
    check(floats(&[2, 0], &[]), Some(EMPTY), None);
    same(Datatype::Bool, &[1], 1.0);
    same(Datatype::Uint8, &[200], 200.0);
    same(Datatype::Uint16, &300u16.to_le_bytes(), 300.0);
    same(Datatype::Uint32, &300u32.to_le_bytes(), 300.0);
    same(Datatype::Uint64, &300u64.to_le_bytes(), 300.0);
    same(Datatype::Int8, &7i8.to_le_bytes(), 7.0);
    same(Datatype::Int16, &300i16.to_le_bytes(), 300.0);
    same(Datatype::Int32, &300i32.to_le_bytes(), 300.0);
    same(Datatype::Int64, &300i64.to_le_bytes(), 300.0);
    let halves = [half::f16::from_f32(1.0), half::f16::from_f32(1.02)].map(half::f16::to_le_bytes);
    check(tensor(Datatype::Fp16, &[1, 2], halves), Some(1), Some(1.01));
    let halves = [half::bf16::from_f32(1.0), half::bf16::from_f32(1.01)].map(half::bf16::to_le_bytes);
    check(tensor(Datatype::Bf16, &[1, 2], halves), Some(1), Some(1.0));
    check(tensor(Datatype::Fp64, &[1, 2], [1.0f64, 1.01].map(f64::to_le_bytes)), Some(1), Some(1.0));
}

#[test]
fn large_numbers_and_texts_are_told_apart_by_hashes() {
    let class = |tensor: &Tensor| *counted(tensor).classes.keys().next().unwrap();
    let number = |number: i64| class(&tensor(Datatype::Int64, &[1], [number.to_le_bytes()]));
    let text = |text: &str| class(&Tensor::from_elements(vec![1], &[text]).unwrap());
    assert_eq!((number(-5), text("yes")), (number(-5), text("yes")));
    for class in [number(-5), number(1024), text("yes"), text("")] {
        assert!((HASHED..EMPTY).contains(&class));
    }
    let distinct: std::collections::BTreeSet<_> = ["yes", "no", "maybe", "never"].map(text).into();
    assert!(distinct.len() > 2);
    assert_eq!(
        counted(&Tensor::from_elements(vec![1], &["seven"]).unwrap()).values.quantile(1.0),
        Some(signed_bucket(5.0))
    );
}

#[test]
fn numbers_that_are_not_finite_are_found_in_small_tensors_at_once_and_in_large_ones_soon() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let found = counted(&floats(&[2, 2], &[1.0, 2.0, value, 3.0]));
        assert_eq!((found.finite, found.non_finite, found.values.total()), (0, 1, 0));
    }
    let observations = watched();
    let mut values = vec![1.0f32; 20_000];
    values[12_345] = f32::NAN;
    let tensor = floats(&[20_000], &values);
    (0..200).for_each(|_| observations.output("out", &tensor));
    let found = &observations.read().outputs["out"];
    assert!(found.non_finite > 20 && found.finite > 20, "{found:?}");
}

#[test]
fn every_element_is_looked_at_now_and_then() {
    let observations = watched();
    let tensor = floats(&[1, 4], &[1.0, 10.0, 100.0, 1000.0]);
    (0..4000).for_each(|_| observations.output("out", &tensor));
    let found = &observations.read().outputs["out"];
    assert_eq!(found.classes, BTreeMap::from([(3, 4000)]));
    assert_eq!(found.values.iter().count(), 4);
    assert!(found.values.iter().all(|(_, count)| (900..1100).contains(&count)), "{found:?}");
}

#[test]
fn outputs_beyond_the_sixteenth_are_left_out() {
    let observations = watched();
    for output in 0..2 * MAX_OUTPUTS {
        observations.output(&format!("out{output:02}"), &floats(&[1], &[1.0]));
    }
    let outputs = observations.read().outputs;
    assert_eq!((outputs.len(), outputs.keys().next_back().unwrap().as_str()), (MAX_OUTPUTS, "out15"));
}

#[test]
fn http_answers_are_counted_by_status_and_length() {
    let observations = watched();
    for (status, bytes) in [(200, 1000), (200, 1000), (503, 0)] {
        observations.body(status, bytes);
    }
    let outputs = observations.read().outputs;
    assert_eq!(outputs["status"].classes, BTreeMap::from([(200, 2), (503, 1)]));
    assert_eq!(outputs["length"].values, Histogram::from(vec![(0, 1), (signed_bucket(1000.0), 2)]));
}

#[test]
fn a_difference_is_what_came_since() {
    let observations = watched();
    let call = |status| {
        observations.record(Outcome::Success, Duration::from_millis(3), Some(5000));
        observations.body(status, 10);
    };
    (0..3).for_each(|_| call(200));
    let earlier = observations.read();
    (0..2).for_each(|_| call(404));
    let now = observations.read();
    let since = now.since(&earlier);
    assert_eq!((since.requests, since.latency.total(), since.memory.total()), (2, 2, 2));
    assert_eq!(since.outputs["status"].classes, BTreeMap::from([(404, 2)]));
    let mut sum = earlier;
    sum.add(&since);
    assert_eq!(sum, now);
    let text = serde_json::to_string(&now).unwrap();
    assert_eq!(serde_json::from_str::<Tally>(&text).unwrap(), now);
    assert_eq!(serde_json::to_string(&Tally::default()).unwrap(), "{}");
}

#[test]
fn threads_lose_nothing_and_what_is_read_meanwhile_agrees() {
    const CALLS: u64 = 2000;
    let observations = watched();
    std::thread::scope(|scope| {
        for thread in 0..4u16 {
            let observations = &observations;
            scope.spawn(move || {
                for _ in 0..CALLS {
                    observations.record(Outcome::Success, Duration::from_millis(1), None);
                    observations.output(&format!("out{thread}"), &floats(&[1], &[1.0]));
                    observations.output("all", &floats(&[1], &[1.0]));
                }
            });
        }
        for _ in 0..100 {
            let tally = observations.read();
            assert_eq!(tally.requests, tally.success + tally.traps);
        }
    });
    let tally = observations.read();
    assert_eq!((tally.requests, tally.outputs.len(), tally.outputs["all"].finite), (4 * CALLS, 5, 4 * CALLS));
    assert!((0..4).all(|thread| tally.outputs[&format!("out{thread}")].finite == CALLS));
}
