//! Whether the calls of a model may be joined: its shapes must allow it, and no row may depend on another.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::join;
use crate::backend::validate::shape_text;
use crate::backend::{Cancel, Graph, InferError, Port, Precision, Signature};
use crate::background::caught;
use crate::tensor::{Datatype, Tensor};

/// Whether every input and output has a first dimension that callers choose.
///
/// # Errors
/// Names the first that has not, and says how to export the model with one.
pub fn check_batchable(signature: &Signature) -> Result<(), String> {
    if signature.inputs.is_empty() {
        return Err("the model has no inputs that could be joined; remove `batching`".to_owned());
    }
    let inputs = signature.inputs.iter().map(|port| ("input", port));
    let outputs = signature.outputs.iter().map(|port| ("output", port));
    for (noun, port) in inputs.chain(outputs) {
        let name = &port.name;
        // What does not even fix the rank may be batched: each run shows whether that is so.
        let Some(shape) = &port.shape else { continue };
        let what = match shape.first() {
            Some(None) => continue,
            Some(Some(size)) => {
                format!("has the shape {}, whose first dimension is always {size}", shape_text(shape))
            }
            None => "is a single number".to_owned(),
        };
        return Err(format!(
            "{noun} `{name}` {what}, so calls cannot be joined; export the model with a free first dimension for every \
             input and output (with torch.onnx.export, `dynamic_axes={{\"{name}\": {{0: \"batch\"}}, ...}}`), or remove \
             `batching`"
        ));
    }
    Ok(())
}

/// The longest that a graph is tried out; what is not known by then passes.
const LIMIT: Duration = Duration::from_secs(5);

/// What the dimensions beyond the first that callers choose are tried with, until the graph takes one: each
/// fits texts or images of some models.
const SIZES: [usize; 4] = [8, 1, 32, 224];

/// The most bytes of one made-up input.
const MAX_BYTES: usize = 16 << 20;

/// Whether two rows in one batch are computed as each alone, on made-up inputs. Blocks for a few runs, which
/// count as one towards the graph's `concurrency`. What cannot be found out passes: a graph whose inputs
/// cannot be made up or that refuses them, and one with BYTES, of whose contents nothing is known.
///
/// # Errors
/// Says what differs.
pub fn rows_are_independent(graph: &dyn Graph, precision: Precision) -> Result<(), String> {
    let cancel = Cancel::at(Instant::now() + LIMIT);
    let run = |inputs: Vec<Tensor>| {
        caught(|| graph.run(inputs, &cancel)).unwrap_or_else(|panic| Err(InferError::Failed(panic)))
    };
    let signature = graph.signature();
    for size in SIZES {
        let mut random = Random(0x7e40);
        let (Some(one), Some(other)) = (row(signature, size, &mut random), row(signature, size, &mut random))
        else {
            return Ok(());
        };
        let Ok(both) = join::join(&[&one, &other]) else { return Ok(()) };
        let (Ok(one), Ok(other)) = (run(one), run(other)) else { continue };
        if cancel.is_raised() {
            return Ok(());
        }
        let both = match run(both) {
            Ok(both) => both,
            Err(InferError::Cancelled) => return Ok(()),
            Err(error) => {
                return Err(format!("a batch of two rows fails, though each alone does not: {error}"));
            }
        };
        let parts = join::split(&both, &[1, 1], &signature.outputs)?;
        return [one, other]
            .iter()
            .zip(&parts)
            .try_for_each(|(alone, part)| same(signature, precision, alone, part));
    }
    Ok(())
}

/// Inputs of one row.
fn row(signature: &Signature, size: usize, random: &mut Random) -> Option<Vec<Tensor>> {
    signature.inputs.iter().map(|port| made_up(port, size, random)).collect()
}

fn made_up(port: &Port, size: usize, random: &mut Random) -> Option<Tensor> {
    let mut shape: Vec<_> = port.shape.as_ref()?.iter().map(|dim| dim.unwrap_or(size)).collect();
    *shape.first_mut()? = 1;
    let elements = crate::tensor::elements(&shape).ok()?;
    if elements.checked_mul(port.datatype.size()?)? > MAX_BYTES {
        return None;
    }
    let mut data = Vec::with_capacity(elements * port.datatype.size()?);
    for _ in 0..elements {
        random.element(port.datatype, &mut data)?;
    }
    Tensor::new(port.datatype, shape, Bytes::from(data)).ok()
}

/// A sequence of numbers that look random and are the same every time.
struct Random(u64);

impl Random {
    /// Appends an element: a fraction from 0 on, or for whole numbers 0 or 1, which most models can take for
    /// anything.
    fn element(&mut self, datatype: Datatype, data: &mut Vec<u8>) -> Option<()> {
        // The mixing of SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        // So few digits are exact in all formats.
        let fraction = f32::from(u8::try_from(bits >> 56).ok()?) / 256.0;
        match datatype {
            Datatype::Fp16 => data.extend(half::f16::from_f32(fraction).to_le_bytes()),
            Datatype::Bf16 => data.extend(half::bf16::from_f32(fraction).to_le_bytes()),
            Datatype::Fp32 => data.extend(fraction.to_le_bytes()),
            Datatype::Fp64 => data.extend(f64::from(fraction).to_le_bytes()),
            _ => {
                let size = datatype.size()?;
                data.push(u8::from(fraction >= 0.5));
                data.extend(std::iter::repeat_n(0, size - 1));
            }
        }
        Some(())
    }
}

/// Whether a row's outputs are those that it has in a batch.
fn same(
    signature: &Signature,
    precision: Precision,
    alone: &[Tensor],
    part: &[Tensor],
) -> Result<(), String> {
    let differs = |port: &Port, how: String| Err(format!("output `{}` of a row is {how}", port.name));
    for ((port, alone), part) in signature.outputs.iter().zip(alone).zip(part) {
        if (alone.datatype(), alone.shape()) != (part.datatype(), part.shape()) {
            return differs(port, format!("{alone:?} alone, and {part:?} in a batch of two"));
        }
        let (Some(alone_values), Some(part_values)) = (floats(alone), floats(part)) else {
            if alone == part {
                continue;
            }
            return differs(port, "other numbers alone than in a batch of two".to_owned());
        };
        let relative = relative(port.datatype, precision);
        let is_far = |(one, other): &(f64, f64)| !is_near(*one, *other, relative);
        if let Some((one, other)) = alone_values.zip(part_values).find(is_far) {
            return differs(port, format!("{one} alone, and {other} in a batch of two"));
        }
    }
    Ok(())
}

/// How far two results of the same computation in another order may differ.
fn relative(datatype: Datatype, precision: Precision) -> f64 {
    match (datatype, precision) {
        (Datatype::Bf16, _) | (_, Precision::Bf16) => 5e-2,
        (Datatype::Fp16, _) => 1e-2,
        _ => 1e-3,
    }
}

fn is_near(one: f64, other: f64, relative: f64) -> bool {
    let bound = relative.mul_add(one.abs().max(other.abs()), relative / 10.0);
    one == other || (one.is_nan() && other.is_nan()) || (one - other).abs() <= bound
}

/// The elements of a tensor of fractions; `None` for other datatypes.
fn floats(tensor: &Tensor) -> Option<Box<dyn Iterator<Item = f64> + '_>> {
    let data = tensor.data();
    let halves = || data.as_chunks::<2>().0.iter();
    Some(match tensor.datatype() {
        Datatype::Fp16 => Box::new(halves().map(|bytes| half::f16::from_le_bytes(*bytes).into())),
        Datatype::Bf16 => Box::new(halves().map(|bytes| half::bf16::from_le_bytes(*bytes).into())),
        Datatype::Fp32 => {
            Box::new(data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes).into()))
        }
        Datatype::Fp64 => Box::new(data.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes))),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn port(name: &str, datatype: Datatype, shape: &[Option<usize>]) -> Port {
        Port { name: name.to_owned(), datatype, shape: Some(shape.to_vec()) }
    }

    #[test]
    fn every_first_dimension_must_be_free() {
        let check = |inputs: &[Port], outputs: &[Port], expected: Result<(), &str>| {
            let signature = Signature { inputs: inputs.to_vec(), outputs: outputs.to_vec() };
            match (check_batchable(&signature), expected) {
                (Ok(()), Ok(())) => {}
                (Err(error), Err(expected)) => assert!(error.contains(expected), "{error}"),
                (actual, expected) => panic!("{actual:?}, expected {expected:?}"),
            }
        };
        let free = port("x", Datatype::Fp32, &[None, Some(3)]);
        let fixed = port("y", Datatype::Fp32, &[Some(1), None]);
        let scalar = port("z", Datatype::Fp32, &[]);
        let unknown = Port { shape: None, ..free.clone() };
        check(&[free.clone(), unknown.clone()], &[free.clone(), unknown], Ok(()));
        check(
            std::slice::from_ref(&fixed),
            &[],
            Err("input `y` has the shape [1, -1], whose first dimension"),
        );
        check(std::slice::from_ref(&free), &[fixed], Err("output `y` has the shape [1, -1]"));
        check(std::slice::from_ref(&free), &[scalar], Err("output `z` is a single number"));
        check(&[], &[free], Err("no inputs"));
    }

    /// Multiplies what it is given, in its own way.
    struct Fake {
        signature: Signature,
        work: fn(&[f32], usize) -> Vec<f32>,
        runs: AtomicUsize,
    }

    impl Graph for Fake {
        fn signature(&self) -> &Signature {
            &self.signature
        }

        fn run(&self, inputs: Vec<Tensor>, _: &Cancel) -> Result<Vec<Tensor>, InferError> {
            self.runs.fetch_add(1, Ordering::SeqCst);
            let input = &inputs[0];
            let values: Vec<_> = floats(input).unwrap().map(|value| value as f32).collect();
            let values = (self.work)(&values, input.shape()[0]);
            let shape = vec![values.len() / input.shape()[1], input.shape()[1]];
            let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            Ok(vec![Tensor::new(Datatype::Fp32, shape, data.into()).unwrap()])
        }
    }

    fn check(work: fn(&[f32], usize) -> Vec<f32>, expected: Result<(), &str>) {
        let signature = Signature {
            inputs: vec![port("x", Datatype::Fp32, &[None, None])],
            outputs: vec![port("y", Datatype::Fp32, &[None, None])],
        };
        let fake = Fake { signature, work, runs: AtomicUsize::new(0) };
        match (rows_are_independent(&fake, Precision::F32), expected) {
            (Ok(()), Ok(())) => {}
            (Err(error), Err(expected)) => assert!(error.contains(expected), "{error}"),
            (actual, expected) => panic!("{actual:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn rows_that_depend_on_each_other_are_found_out() {
        check(|values, _| values.to_vec(), Ok(()));
        check(|values, rows| values.iter().map(|value| value * (1.0 + rows as f32 * 1e-5)).collect(), Ok(()));
        check(
            |values, rows| values.iter().map(|value| value * (1.0 + rows as f32 * 1e-2)).collect(),
            Err("`y`"),
        );
        // As a quantisation does that looks at the whole tensor.
        check(
            |values, _| {
                let most = values.iter().copied().fold(0.0, f32::max);
                values.iter().map(|value| value / most).collect()
            },
            Err("of a row is"),
        );
        check(
            |values, rows| values[..values.len() / rows].to_vec(),
            Err("had the shape [1, 8] for a batch of 2"),
        );
        check(
            |values, rows| {
                assert_eq!(rows, 1, "one row only");
                values.to_vec()
            },
            Err("a batch of two rows fails, though each alone does not: the inference failed: "),
        );
        // What refuses everything that can be made up may be good for all.
        check(|_, _| panic!("never content"), Ok(()));
    }

    #[test]
    fn what_cannot_be_made_up_is_not_tried() {
        for port in [
            port("x", Datatype::Bytes, &[None, Some(1)]),
            port("x", Datatype::Fp32, &[None, Some(MAX_BYTES)]),
            Port { name: "x".to_owned(), datatype: Datatype::Fp32, shape: None },
        ] {
            let signature = Signature { inputs: vec![port], outputs: vec![] };
            let fake = Fake { signature, work: |values, _| values.to_vec(), runs: AtomicUsize::new(0) };
            rows_are_independent(&fake, Precision::F32).unwrap();
            assert_eq!(fake.runs.load(Ordering::SeqCst), 0);
        }
    }

    #[test]
    fn made_up_numbers_are_small_and_differ() {
        for datatype in Datatype::ALL {
            let port = port("x", datatype, &[None, Some(64)]);
            let mut random = Random(1);
            let made = (made_up(&port, 8, &mut random), made_up(&port, 8, &mut random));
            let (Some(one), Some(other)) = made else {
                assert_eq!(datatype, Datatype::Bytes);
                continue;
            };
            assert_ne!(one, other);
            assert_eq!(one.shape(), [1, 64]);
            if let Some(mut values) = floats(&one) {
                assert!(values.all(|value| (0.0..1.0).contains(&value)));
            }
        }
    }
}
