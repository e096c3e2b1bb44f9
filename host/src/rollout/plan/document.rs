//! Plans as people and programs write them: read strictly, with everything that is wrong at once.
//!
//! JSON is read by way of TOML, which it is a part of but for `null`: so there is one reader, and one set of texts.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use super::percent::{hundredths, percent};
use super::{
    AnalysisStep, HeaderRoute, MAX_DURATION_S, MAX_SAMPLES, OnFailure, Pause, Plan, ShadowStep, Side, Step,
    Sticky, Strategy, WHOLE, default_steps, objections,
};
use crate::config::document::{Table, Value, advice, walk};
use crate::config::{DocumentErrors, document};
use crate::rollout::analysis::AnalysisSettings;
use crate::rollout::shadow::ShadowSettings;

/// The longest name of a header or cookie, and the longest value of a header, in bytes.
const NAME_BYTES: usize = 128;
const VALUE_BYTES: usize = 512;

const STRATEGIES: [(&str, Strategy); 4] = [
    ("all-at-once", Strategy::AllAtOnce),
    ("canary", Strategy::Canary),
    ("shadow", Strategy::Shadow),
    ("manual", Strategy::Manual),
];

impl Plan {
    /// Reads the plan in a TOML file. `strategy` is what was asked for beside it, where that was said: the file may
    /// leave it out, but not say otherwise.
    pub fn load(path: &Path, strategy: Option<Strategy>) -> Result<Plan, DocumentErrors> {
        Plan::parse_toml(path, &document::read(path)?, strategy)
    }

    /// Reads a plan's TOML; `path` is for messages. See [`Plan::load`].
    pub fn parse_toml(path: &Path, text: &str, strategy: Option<Strategy>) -> Result<Plan, DocumentErrors> {
        walk(path, text, |table| plan(table, strategy))
    }

    /// Reads a plan as JSON. The error holds everything that is wrong with it.
    pub fn from_json(json: Json) -> Result<Plan, String> {
        let json = without_nulls(json, 0)?;
        if !json.is_object() {
            return Err("the plan must be an object".to_owned());
        }
        let text = toml::to_string(&json).map_err(|error| format!("the plan cannot be read: {error}"))?;
        Plan::parse_toml(Path::new("plan"), &text, None).map_err(|errors| {
            let messages: Vec<_> = errors.errors.iter().map(|error| error.message.as_str()).collect();
            format!("the plan is wrong: {}", messages.join(". "))
        })
    }
}

/// How deep a plan's JSON may be nested.
const MAX_DEPTH: usize = 32;

/// The same without entries that are `null`, which say that something is absent.
fn without_nulls(json: Json, depth: usize) -> Result<Json, String> {
    if depth > MAX_DEPTH {
        return Err(format!("the plan is nested deeper than {MAX_DEPTH} levels; make it flatter"));
    }
    Ok(match json {
        Json::Object(entries) => {
            let kept = entries.into_iter().filter(|(_, value)| !value.is_null());
            let kept = kept.map(|(key, value)| Ok((key, without_nulls(value, depth + 1)?)));
            Json::Object(kept.collect::<Result<_, String>>()?)
        }
        Json::Array(items) => {
            let items = items.into_iter().map(|item| without_nulls(item, depth + 1));
            Json::Array(items.collect::<Result<_, _>>()?)
        }
        Json::Null => return Err("the plan holds a `null` in an array; leave it out".to_owned()),
        other => other,
    })
}

fn plan(table: &mut Table<'_>, asked: Option<Strategy>) -> Plan {
    let said = table.value("strategy").and_then(|value| {
        let strategy = value.choice(&STRATEGIES)?;
        if let Some(asked) = asked.filter(|asked| *asked != strategy) {
            let (asked, strategy) = (asked.name(), strategy.name());
            value.refuse(&format!(
                "`strategy` is `{strategy}` here, and `{asked}` was asked for beside the file; say it once"
            ));
        }
        Some(strategy)
    });
    let strategy = asked.or(said).unwrap_or(Strategy::Canary);
    let written = table.value("steps");
    let items = written.as_ref().map(|value| value.items()).unwrap_or_default();
    let on_failure =
        table.choice("on_failure", &[("rollback", OnFailure::Rollback), ("pause", OnFailure::Pause)]);
    let analysis = table.value("analysis").and_then(|value| {
        described(&value, &|settings: &AnalysisSettings| {
            settings.check().map_err(|text| format!("`analysis` is wrong: {text}"))
        })
    });
    let sticky = table.value("sticky").and_then(|value| sticky(&value));
    let routes = table.value("header_routes").map(|value| value.items()).unwrap_or_default();
    let header_routes: Vec<_> = routes.iter().filter_map(header_route).collect();
    let shadow = table.value("shadow").and_then(|value| described(&value, &ShadowSettings::check));
    let shadow = shadow.unwrap_or_default();
    let whole = Plan::of(strategy);
    let progress_deadline_s = table.number("progress_deadline_s", 1..=MAX_DURATION_S, "seconds");
    let rollback_window_s = table.number("rollback_window_s", 0..=MAX_DURATION_S, "seconds");
    let read: Vec<_> = items.iter().map(|item| (item, step(item, &shadow))).collect();
    let is_array = written.as_ref().is_none_or(|value| value.is_empty() || !items.is_empty());
    // What does not fit together is only told where each part is right.
    let complete =
        is_array && read.iter().all(|(_, step)| step.is_some()) && header_routes.len() == routes.len();
    let steps = match &written {
        Some(_) => read.iter().filter_map(|(_, step)| step.clone()).collect(),
        None => default_steps(strategy),
    };
    if complete {
        for (step, text) in objections(strategy, &steps, &header_routes) {
            match step.and_then(|step| read.get(step)) {
                Some((item, _)) => item.refuse(&text),
                None => table.refuse_file(&text),
            }
        }
    }
    Plan {
        strategy,
        steps,
        analysis: analysis.unwrap_or(whole.analysis),
        on_failure: on_failure.unwrap_or(whole.on_failure),
        sticky,
        header_routes,
        shadow,
        progress_deadline_s: progress_deadline_s.unwrap_or(whole.progress_deadline_s),
        rollback_window_s: rollback_window_s.unwrap_or(whole.rollback_window_s),
    }
}

fn step(item: &Value<'_>, settings: &ShadowSettings) -> Option<Step> {
    let entries = if item.is_table() { item.entries().len() } else { 1 };
    let names = "`set_weight`, `pause`, `analysis`, `shadow` or `set_header_route`";
    if entries == 0 {
        item.refuse(&format!("this step says nothing; give it one of {names}"));
    }
    if entries > 1 {
        item.refuse(&format!("a step is one of {names}; make this one several steps"));
    }
    let step = item.table(|table| {
        let weight = table.value("set_weight").and_then(|value| share(&value, 0.0));
        let pause = table.table("pause", |pause| Pause {
            duration_s: pause.number("duration_s", 1..=MAX_DURATION_S, "seconds"),
        });
        let analysis = table.table("analysis", |analysis| AnalysisStep {
            min_samples: analysis.number("min_samples", 1..=MAX_SAMPLES, "answers"),
            timeout_s: analysis.number("timeout_s", 1..=MAX_DURATION_S, "seconds"),
        });
        let shadow = table.table("shadow", |shadow| {
            let share = match shadow.value("share") {
                Some(value) => share(&value, 0.01),
                None => {
                    let usual = hundredths((settings.share * 100.0).round() / 100.0);
                    let usual = usual.filter(|share| *share > 0);
                    if usual.is_none() {
                        shadow.refuse("this step copies no calls; give it a share, such as `share = 10`");
                    }
                    usual
                }
            };
            let samples = shadow.number("min_samples", 1..=MAX_SAMPLES, "answers");
            let timeout_s = shadow.number("timeout_s", 1..=MAX_DURATION_S, "seconds");
            let min_samples = samples.unwrap_or(ShadowStep::MIN_SAMPLES);
            share.map(|share| ShadowStep { share, min_samples, timeout_s })
        });
        let route = table.value("set_header_route").and_then(|value| header_route(&value));
        weight
            .map(Step::SetWeight)
            .or(pause.map(Step::Pause))
            .or(analysis.map(Step::Analysis))
            .or(shadow.flatten().map(Step::Shadow))
            .or(route.map(Step::SetHeaderRoute))
    });
    step.flatten().filter(|_| entries == 1)
}

/// Percent of the traffic, at least so many.
fn share(value: &Value<'_>, least: f64) -> Option<u16> {
    let written = value.decimal(least..=percent(WHOLE), "percent")?;
    let share = hundredths(written);
    if share.is_none() {
        value.refuse(&format!("`{}` may have two decimals, and {written} has more; round it", value.path()));
    }
    share
}

fn sticky(value: &Value<'_>) -> Option<Sticky> {
    if value.is_string() {
        return value.choice(&[("client", Sticky::Client)]);
    }
    let entries = if value.is_table() { value.entries().len() } else { 1 };
    let sticky = value.table(|table| {
        let header = table.value("header").and_then(|value| name(&value, "header"));
        let cookie = table.value("cookie").and_then(|value| name(&value, "cookie"));
        header.map(|name| Sticky::Header(name.to_ascii_lowercase())).or(cookie.map(Sticky::Cookie))
    });
    if entries != 1 {
        value.refuse(
            "`sticky` is one of `{ header = \"...\" }`, `{ cookie = \"...\" }` and `\"client\"`; keep one of them",
        );
    }
    sticky.flatten()
}

/// The name of a header or a cookie.
fn name(value: &Value<'_>, what: &str) -> Option<String> {
    let name = value.string()?;
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || name.len() > NAME_BYTES || !name.bytes().all(token) {
        value.refuse(&format!(
            "`{}` is not the name of a {what}: 1 to {NAME_BYTES} letters, digits and signs such as `-`",
            value.path()
        ));
        return None;
    }
    Some(name)
}

fn header_route(value: &Value<'_>) -> Option<HeaderRoute> {
    let route = value.table(|table| {
        let header = table.required("header", "header = \"x-tester\"");
        let header = header.and_then(|value| name(&value, "header"));
        let text = table.required("value", "value = \"yes\"").and_then(|value| {
            let text = value.string()?;
            let printable = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
            if text.is_empty() || text.len() > VALUE_BYTES || !printable || text.trim() != text {
                value.refuse(&format!(
                    "`{}` is not the value of a header: 1 to {VALUE_BYTES} characters of ASCII, without spaces \
                     around them",
                    value.path()
                ));
                return None;
            }
            Some(text)
        });
        let sides = [("candidate", Side::Candidate), ("stable", Side::Stable)];
        let revision = table.choice("revision", &sides).unwrap_or_default();
        Some(HeaderRoute { header: header?.to_ascii_lowercase(), value: text?, revision })
    });
    route.flatten()
}

/// Settings whose keys are those of their type, with what it refuses itself.
fn described<T: DeserializeOwned>(value: &Value<'_>, check: &dyn Fn(&T) -> Result<(), String>) -> Option<T> {
    let error = match T::deserialize(value.json()?) {
        Ok(settings) => {
            if let Err(text) = check(&settings) {
                value.refuse(&text);
            }
            return Some(settings);
        }
        Err(error) => error,
    };
    // Each setting is tried alone, so that every wrong one is told, in its own line.
    let mut told = 0;
    let read = |json: Json| T::deserialize(json).map(drop).map_err(|error| error.to_string());
    alone(value, &read, 0, &mut told);
    if told == 0 {
        value.refuse(&explained(&error.to_string(), value.path()));
    }
    None
}

/// How deep settings lie within others.
const SETTING_DEPTH: usize = 4;

/// Reads every entry of a table as if it were the only one.
fn alone(value: &Value<'_>, read: &dyn Fn(Json) -> Result<(), String>, depth: usize, told: &mut usize) {
    for (key, inner) in value.entries() {
        let within = |json: Json| read(Json::Object([(key.clone(), json)].into_iter().collect()));
        let Some(json) = inner.json() else {
            *told += 1;
            continue;
        };
        let Err(error) = within(json) else { continue };
        let told_before = *told;
        // What is wrong even where the table is empty is its own name.
        let empty = || within(Json::Object(serde_json::Map::new()));
        if inner.is_table() && depth < SETTING_DEPTH && empty().is_ok() {
            alone(&inner, &within, depth + 1, told);
        }
        if *told == told_before && !error.starts_with("missing field") {
            let path = if error.starts_with("unknown ") { value.path() } else { inner.path() };
            inner.refuse(&explained(&error, path));
            *told += 1;
        }
    }
}

/// An error of serde in our words, with the near miss of an unknown name.
fn explained(error: &str, path: &str) -> String {
    let mut quoted = error.split('`').skip(1).step_by(2);
    match quoted.next() {
        Some(name) if error.starts_with("unknown ") => {
            let advice = advice(name, quoted, "the keys here are");
            format!("unknown key `{name}` in `{path}`; {advice}")
        }
        _ => format!("`{path}` is wrong: {error}"),
    }
}
