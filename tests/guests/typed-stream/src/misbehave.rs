//! Answers that break the function's own promise, and functions that do not end with their caller.

use std::hint::black_box;

use tenon_sdk::bindings::tenon::function::responses;
use tenon_sdk::bindings::tenon::function::tensors::{Datatype, NamedTensor, Tensor};
use tenon_sdk::{Error, Outputs, Result, send};

use crate::Word;

#[derive(Outputs)]
struct NotDescribed {
    secret: i64,
}

#[derive(Outputs)]
struct WrongDatatype {
    index: f32,
}

#[derive(Outputs)]
struct WrongShape {
    word: Vec<String>,
}

#[derive(Outputs)]
struct Part {
    word: String,
}

/// What `behaviour` names, `name` or `name:argument`; `takes_more` is whether the caller takes several
/// answers.
///
/// - `takes-more` raises an error that says whether it does;
/// - `part` sends one of the two outputs, `nothing` an answer without any;
/// - `undescribed`, `wrong-datatype`, `wrong-shape`, `twice` send what the function does not describe;
/// - `large:<MiB>` sends one word as long as that;
/// - `raise`, `panic`, `loop` do so between two answers;
/// - `until-gone` sends until the caller has gone, tries ten times more, and writes to standard error how it
///   went, where the host lets it live so long;
/// - `endless` sends, whatever comes of it.
pub(crate) fn behave(behaviour: &str, takes_more: bool) -> Result<()> {
    let (name, argument) = behaviour.split_once(':').unwrap_or((behaviour, ""));
    let sent = match name {
        "takes-more" => Err(raised(format!("takes more: {takes_more}"))),
        "part" => send(Part { word: "part".to_owned() }),
        "nothing" => Ok(send_raw(Vec::new())),
        "undescribed" => send(NotDescribed { secret: 7 }),
        "wrong-datatype" => send(WrongDatatype { index: 0.5 }),
        "wrong-shape" => send(WrongShape { word: vec!["two".to_owned(), "words".to_owned()] }),
        "twice" => Ok(send_raw(vec![index(1)?, index(2)?])),
        "large" => send(Part { word: "x".repeat(argument.parse().unwrap_or(64) << 20) }),
        "raise" => Err(raised("an error on purpose".to_owned())),
        "panic" => panic!("asked to panic"),
        "loop" => endless(|_| true),
        "until-gone" => until_gone(),
        "endless" => endless(|index| send(word(index)).is_ok()),
        _ => Err(raised(format!("there is no behaviour `{name}`"))),
    };
    sent.map(drop)
}

fn raised(message: String) -> Error {
    Error::new("asked-for", message)
}

fn word(index: i64) -> Word {
    Word { word: "again".to_owned(), index }
}

fn endless(mut turn: impl FnMut(i64) -> bool) -> ! {
    let mut index = 0_i64;
    loop {
        black_box(turn(black_box(index)));
        index = index.wrapping_add(1);
    }
}

fn until_gone() -> Result<bool> {
    let mut sent = 0;
    let gone = loop {
        match send(word(sent)) {
            Ok(true) => sent += 1,
            Ok(false) => return Ok(false),
            Err(gone) => break gone,
        }
    };
    let still_gone = (0..10).filter(|&index| send(word(index)).is_err()).count();
    eprintln!("{} after {sent} answers, and {still_gone} of 10 times more", gone.code());
    Err(gone)
}

/// Past the SDK, which sends no such answers.
fn send_raw(outputs: Vec<NamedTensor>) -> bool {
    responses::send(outputs).is_ok()
}

fn index(index: i64) -> Result<NamedTensor> {
    let tensor = Tensor::create(Datatype::Int64, &[1], &index.to_le_bytes()).map_err(Error::failed)?;
    Ok(NamedTensor { name: "index".to_owned(), tensor })
}
