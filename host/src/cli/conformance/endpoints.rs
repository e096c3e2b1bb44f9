//! What is asked of a model beside inference: metadata, readiness, configuration, statistics, loading.

use serde_json::{Value, json};

use super::check::{Check, Level, Problem, Verdict};
use super::http::Answer;
use super::message::{self, Post};
use super::model::Model;
use super::server::{NO_MODEL, is_json, status, text};
use super::tensor::{Datatype, Port};

/// A version that no model has.
const NO_VERSION: &str = "tenon-conformance-no-such-version";

const METADATA: &str = "Model Metadata";
/// Where the statistics of a model count inferences.
const SUCCESS: &str = "/inference_stats/success/count";
const FAIL: &str = "/inference_stats/fail/count";
const READY: &str = "Model Ready";

pub(super) const CHECKS: &[Check<Model>] = &[
    Check {
        id: "model.metadata",
        level: Level::Required,
        section: METADATA,
        says: "the metadata has `name`, `platform`, and named inputs and outputs",
        run: |model| {
            let metadata = model.metadata.clone()?;
            if text(&metadata, "name")? != model.name {
                return Err(Problem::wrong(format!("the name `{}`", model.name), metadata.to_string()));
            }
            text(&metadata, "platform")?;
            ["inputs", "outputs"].iter().try_for_each(|which| ports(&metadata, which))
        },
    },
    Check {
        id: "model.metadata.datatypes",
        level: Level::Required,
        section: "Tensor Data Types",
        says: "the metadata's datatypes are the protocol's, its dimensions whole numbers or -1",
        run: |model| {
            let metadata = model.metadata.clone().map_err(|problem| problem.elsewhere())?;
            let mut ports = model.ports("inputs");
            ports.extend(model.ports("outputs"));
            let is_good = |port: &&Port| {
                Datatype::of(&port.datatype).is_some() && port.shape.iter().all(|dim| *dim >= -1)
            };
            match ports.iter().all(|port| is_good(&port)) {
                true => Ok(()),
                false => Err(Problem::wrong(
                    "datatypes of the protocol, and -1 for a free dimension",
                    metadata.to_string(),
                )),
            }
        },
    },
    Check {
        id: "model.metadata.type",
        level: Level::Advised,
        section: METADATA,
        says: "the metadata has the content type application/json",
        run: |model| is_json(&model.server.http.get(&model.path)?.ok()?),
    },
    Check {
        id: "model.metadata.version",
        level: Level::Required,
        section: METADATA,
        says: "each version that the metadata lists can be asked for by name",
        run: |model| {
            each_version(model, |version| {
                model.server.http.get(&model.versioned(version, ""))?.ok().map(drop)
            })
        },
    },
    Check {
        id: "model.metadata.unknown",
        level: Level::Required,
        section: METADATA,
        says: "the metadata of a model that is not there is an error status with {\"error\"}",
        run: |model| model.server.http.get(&format!("/v2/models/{NO_MODEL}"))?.refusal(),
    },
    Check {
        id: "model.metadata.unknown.404",
        level: Level::Advised,
        section: METADATA,
        says: "a model or version that is not there is answered with 404",
        run: |model| {
            status(&model.server.http.get(&format!("/v2/models/{NO_MODEL}"))?, &[404])?;
            status(&model.server.http.get(&model.versioned(NO_VERSION, ""))?, &[404])
        },
    },
    Check {
        id: "model.metadata.version.unknown",
        level: Level::Required,
        section: METADATA,
        says: "the metadata of a version that is not there is an error status with {\"error\"}",
        run: |model| model.server.http.get(&model.versioned(NO_VERSION, ""))?.refusal(),
    },
    Check {
        id: "model.ready",
        level: Level::Required,
        section: READY,
        says: "a ready model answers 200, also by its versions",
        run: |model| {
            model.server.http.get(&format!("{}/ready", model.path))?.ok()?;
            let ready =
                |version: &str| model.server.http.get(&model.versioned(version, "/ready"))?.ok().map(drop);
            model.versions().iter().try_for_each(|version| ready(version))
        },
    },
    Check {
        id: "model.ready.body",
        level: Level::Advised,
        section: READY,
        says: "the answer is {\"name\": …, \"ready\": true}: the text has it, the OpenAPI file has no body",
        run: |model| {
            let answer = model.server.http.get(&format!("{}/ready", model.path))?.ok()?;
            let body = answer.json().unwrap_or_default();
            match (body["name"] == json!(model.name), &body["ready"]) {
                (true, Value::Bool(true)) => Ok(()),
                _ => Err(Problem::wrong(
                    json!({ "name": model.name, "ready": true }).to_string(),
                    answer.told(),
                )),
            }
        },
    },
    Check {
        id: "model.ready.unknown",
        level: Level::Required,
        section: READY,
        says: "a model that is not there, or a version, is not ready: the status is 4xx or 5xx",
        run: |model| {
            for path in [format!("/v2/models/{NO_MODEL}/ready"), model.versioned(NO_VERSION, "/ready")] {
                let answer = model.server.http.get(&path)?;
                if !(400..600).contains(&answer.status) {
                    return Err(Problem::wrong("an error status", answer.told()));
                }
            }
            Ok(())
        },
    },
    Check {
        id: "model.config",
        level: Level::Extension,
        section: "Model Configuration extension",
        says: "the configuration names the model, its inputs and its outputs as the metadata does",
        run: config,
    },
    Check {
        id: "model.statistics",
        level: Level::Extension,
        section: "Statistics extension",
        says: "the statistics have every member, and count an inference that went well",
        run: statistics,
    },
    Check {
        id: "model.statistics.fail",
        level: Level::Extension,
        section: "Statistics extension",
        says: "an inference that was refused is not counted among those that went well",
        run: |model| {
            let (before, after) = around_refusal(model)?;
            match counted(&after, SUCCESS)? == counted(&before, SUCCESS)? {
                true => Ok(()),
                false => Err(Problem::wrong("`success` not to grow", after.to_string())),
            }
        },
    },
    Check {
        id: "model.statistics.refused",
        level: Level::Advised,
        section: "Statistics extension",
        says: "`fail` counts all inferences that failed, also those that were refused at once",
        run: |model| {
            let (before, after) = around_refusal(model)?;
            match counted(&after, FAIL)? > counted(&before, FAIL)? {
                true => Ok(()),
                false => Err(Problem::wrong("`fail` to grow", after["inference_stats"].to_string())),
            }
        },
    },
    Check {
        id: "model.control",
        level: Level::Extension,
        section: "Model Repository extension",
        says: "an unloaded model is not ready; loaded again, it is and answers as before",
        run: control,
    },
];

fn ports(metadata: &Value, which: &str) -> Verdict {
    let listed = metadata.get(which).and_then(Value::as_array);
    let is_good = listed.is_some_and(|ports| ports.iter().all(|port| Port::read(port).is_some()));
    match is_good {
        true => Ok(()),
        false => Err(Problem::wrong(
            format!("a list `{which}` of name, datatype and shape"),
            metadata.get(which).unwrap_or(metadata).to_string(),
        )),
    }
}

fn each_version(model: &Model, look: impl Fn(&str) -> Verdict) -> Verdict {
    let versions = model.versions();
    if versions.is_empty() {
        return Err(Problem::skip("the metadata lists no versions"));
    }
    versions.iter().try_for_each(|version| look(version))
}

fn config(model: &Model) -> Verdict {
    let answer = model.server.http.get(&format!("{}/config", model.path))?;
    model.server.offers("model_configuration", &answer)?;
    let config = answer.ok()?.json()?;
    let wrong = |expected: &str| Err(Problem::wrong(expected, config.to_string()));
    if text(&config, "name")? != model.name {
        return wrong("the model's name");
    }
    for (member, which) in [("input", "inputs"), ("output", "outputs")] {
        let listed = config.get(member).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let entry = |port: &Port| {
            // The configuration has a name of its own for BYTES.
            let datatype = if port.datatype == "BYTES" { "STRING" } else { &port.datatype };
            listed.iter().find(|entry| {
                entry["name"] == json!(port.name) && entry["data_type"] == json!(format!("TYPE_{datatype}"))
            })
        };
        let ports = model.ports(which);
        if listed.len() != ports.len() || !ports.iter().all(|port| entry(port).is_some()) {
            return wrong(&format!("`{member}` with the names and types of the metadata's `{which}`"));
        }
    }
    Ok(())
}

/// The model's entry in the statistics.
fn read_statistics(model: &Model) -> Result<Value, Problem> {
    let answer = model.server.http.get(&format!("{}/stats", model.path))?;
    model.server.offers("statistics", &answer)?;
    let statistics = answer.ok()?.json()?;
    let entries = statistics.get("model_stats").and_then(Value::as_array);
    let own = entries.and_then(|entries| entries.iter().find(|entry| entry["name"] == json!(model.name)));
    own.cloned()
        .ok_or_else(|| Problem::wrong("an entry of `model_stats` for the model", statistics.to_string()))
}

fn counted(statistics: &Value, pointer: &str) -> Result<u64, Problem> {
    let count = statistics.pointer(pointer).and_then(Value::as_u64);
    count.ok_or_else(|| Problem::wrong(format!("a whole number at `{pointer}`"), statistics.to_string()))
}

fn statistics(model: &Model) -> Verdict {
    let sample = model.json_sample();
    let before = read_statistics(model)?;
    for pointer in ["/last_inference", "/inference_count", "/execution_count"] {
        counted(&before, pointer)?;
    }
    for part in ["success", "fail", "queue", "compute_input", "compute_infer", "compute_output"] {
        counted(&before, &format!("/inference_stats/{part}/count"))?;
        counted(&before, &format!("/inference_stats/{part}/ns"))?;
    }
    if !before["batch_stats"].is_array() {
        return Err(Problem::wrong("a list `batch_stats`", before.to_string()));
    }
    model.call(&Post::json(&message::json_request(&sample?.inputs)))?;
    let after = read_statistics(model)?;
    for pointer in ["/inference_count", SUCCESS] {
        if counted(&after, pointer)? <= counted(&before, pointer)? {
            return Err(Problem::wrong(format!("`{pointer}` to grow with an inference"), after.to_string()));
        }
    }
    Ok(())
}

/// The statistics before and after a request that was refused.
fn around_refusal(model: &Model) -> Result<(Value, Value), Problem> {
    let before = read_statistics(model).map_err(|problem| problem.elsewhere())?;
    let answer = model.infer(&Post::json(&json!({ "inputs": [] })))?;
    if answer.is_ok() {
        return Err(Problem::skip("the model takes a request without inputs"));
    }
    Ok((before, read_statistics(model)?))
}

fn control(model: &Model) -> Verdict {
    if !model.server.may_control {
        return Err(Problem::skip("models are unloaded and loaded only with --control"));
    }
    let post = |verb: &str| {
        let path = format!("/v2/repository/models/{}/{verb}", super::model::segment(&model.name));
        model.server.http.post(&path, &[], "")
    };
    let ready = || model.server.http.get(&format!("{}/ready", model.path));
    let unloaded = post("unload")?;
    model.server.offers("model_repository", &unloaded)?;
    unloaded.ok()?;
    let after = ready();
    post("load")?.ok()?;
    not_ready(&after?)?;
    ready()?.ok()?;
    let sample = model.json_sample()?;
    model.agrees(&model.call(&Post::json(&message::json_request(&sample.inputs)))?.tensors())
}

fn not_ready(answer: &Answer) -> Verdict {
    match (400..600).contains(&answer.status) {
        true => Ok(()),
        false => Err(Problem::wrong("an unloaded model not to be ready", answer.told())),
    }
}
