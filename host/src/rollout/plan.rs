//! How a rollout is to go: its steps, what judges it, and who is sent to the candidate.

mod document;
mod percent;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::analysis::{AnalysisSettings, DEFAULT_STEPS};
use super::shadow::ShadowSettings;

pub use percent::{WHOLE, hundredths, percent};

/// How a rollout is to go.
///
/// Reading one, from a TOML file or as JSON, is strict: unknown keys and numbers out of bounds are refused, all at
/// once. What was read is complete: steps that were left out are those of the strategy.
///
/// What is derived here reads and writes the store, see [`stored`]; the traits below do the rest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct Plan {
    pub strategy: Strategy,
    /// In this order; after the last, all traffic goes to the candidate.
    #[serde(default)]
    pub steps: Vec<Step>,
    #[serde(default)]
    pub analysis: AnalysisSettings,
    /// What becomes of a candidate that was found to be worse.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// What decides which revision a caller is sent to; without it each request is divided by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky: Option<Sticky>,
    /// Requests that go to one revision whatever the weights are. They hold from the rollout's start to its end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub header_routes: Vec<HeaderRoute>,
    /// How copies of live calls are made and compared.
    #[serde(default)]
    pub shadow: ShadowSettings,
    /// How long a step may wait for samples, in seconds, unless it has a `timeout_s` of its own. After that a person
    /// is asked.
    #[serde(default = "defaults::progress_deadline_s")]
    pub progress_deadline_s: u64,
    /// How long the former revision stays in memory after the rollout has succeeded, in seconds.
    #[serde(default = "defaults::rollback_window_s")]
    pub rollback_window_s: u64,
}

/// What kind of rollout a plan is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// All traffic at once.
    AllAtOnce,
    /// A growing share of the traffic, which goes on by itself where nothing speaks against it.
    Canary,
    /// Copies of live calls first; a person lets traffic in.
    Shadow,
    /// A person says when each step begins.
    Manual,
}

/// What becomes of a candidate that was found to be worse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// It takes no more traffic, at once.
    #[default]
    Rollback,
    /// It keeps its weight, and a person decides.
    Pause,
}

/// One step of a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Step {
    /// The candidate's share of the traffic: hundredths of a percent here, percent where it is written.
    SetWeight(#[serde(with = "percent")] u16),
    /// Waits; without a duration, for a person.
    Pause(Pause),
    /// Waits until the candidate has answered enough, and nothing speaks against it.
    Analysis(AnalysisStep),
    /// Gives the candidate copies of live calls, and waits until enough answers were compared.
    Shadow(ShadowStep),
    /// Sends requests with a header to one revision from here on. It takes the place of an earlier one for the same
    /// header and value.
    SetHeaderRoute(HeaderRoute),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pause {
    /// Seconds; for a person where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_s: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnalysisStep {
    /// Answers of the candidate in this step; those of `analysis.min_samples` where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_samples: Option<u64>,
    /// Seconds; the plan's `progress_deadline_s` where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShadowStep {
    /// How many of the live calls are copied: hundredths of a percent here, percent where it is written; the plan's
    /// `shadow.share` where it is not.
    #[serde(with = "percent")]
    pub share: u16,
    /// Compared answers.
    #[serde(default = "defaults::shadow_samples")]
    pub min_samples: u64,
    /// Seconds; the plan's `progress_deadline_s` where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u64>,
}

/// What decides which revision a caller is sent to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Sticky {
    /// The value of this header of the request, in lower case.
    Header(String),
    /// The value of this cookie of the request.
    Cookie(String),
    /// The caller's address.
    Client,
}

/// Requests that go to one revision whatever the weights are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderRoute {
    /// In lower case.
    pub header: String,
    /// The whole value.
    pub value: String,
    #[serde(default)]
    pub revision: Side,
}

/// One of the two revisions of a rollout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    Stable,
    #[default]
    Candidate,
}

impl ShadowStep {
    /// Compared answers, where the plan does not say how many.
    pub const MIN_SAMPLES: u64 = 1000;
}

impl Strategy {
    /// Its name, as plans and commands have it.
    pub fn name(self) -> &'static str {
        match self {
            Strategy::AllAtOnce => "all-at-once",
            Strategy::Canary => "canary",
            Strategy::Shadow => "shadow",
            Strategy::Manual => "manual",
        }
    }
}

mod defaults {
    pub(super) fn progress_deadline_s() -> u64 {
        3600
    }

    pub(super) fn rollback_window_s() -> u64 {
        600
    }

    pub(super) fn shadow_samples() -> u64 {
        super::ShadowStep::MIN_SAMPLES
    }
}

/// The most steps, and the most header routes, also counting those of steps.
const MAX_STEPS: usize = 64;
const MAX_HEADER_ROUTES: usize = 16;

/// The longest time that may be written anywhere, in seconds: 30 days.
pub const MAX_DURATION_S: u64 = 30 * 24 * 3600;

/// The most samples that a step may ask for.
pub const MAX_SAMPLES: u64 = 1_000_000_000;

/// How many of the live calls are copied to the candidate where a shadow is asked for without a plan.
const SHADOW_SHARE: u16 = 1000;

impl Plan {
    /// The plan of a strategy for which nothing else was said.
    pub fn of(strategy: Strategy) -> Plan {
        Plan {
            strategy,
            steps: default_steps(strategy),
            analysis: AnalysisSettings::default(),
            on_failure: OnFailure::default(),
            sticky: None,
            header_routes: Vec::new(),
            shadow: ShadowSettings::default(),
            progress_deadline_s: defaults::progress_deadline_s(),
            rollback_window_s: defaults::rollback_window_s(),
        }
    }

    /// Whether the plan is one that could have been read.
    ///
    /// # Errors
    /// Everything that is wrong with it, in one text.
    pub fn check(&self) -> Result<(), String> {
        let json = serde_json::to_value(self).map_err(|error| error.to_string())?;
        Plan::from_json(json).map(|_| ())
    }
}

fn default_steps(strategy: Strategy) -> Vec<Step> {
    let weights = DEFAULT_STEPS.iter().filter_map(|(weight, samples)| Some((hundredths(*weight)?, *samples)));
    let canary = weights.flat_map(|(weight, min_samples)| {
        let analysis = AnalysisStep { min_samples: Some(min_samples), timeout_s: None };
        [Step::SetWeight(weight), Step::Analysis(analysis)]
    });
    let shadow = ShadowStep { share: SHADOW_SHARE, min_samples: ShadowStep::MIN_SAMPLES, timeout_s: None };
    match strategy {
        Strategy::AllAtOnce => Vec::new(),
        Strategy::Canary => canary.collect(),
        Strategy::Shadow => {
            [Step::Shadow(shadow), Step::Pause(Pause::default())].into_iter().chain(canary).collect()
        }
        Strategy::Manual => canary.filter(|step| matches!(step, Step::SetWeight(_))).collect(),
    }
}

/// What does not fit together in a plan whose parts are right: each with the step that it is about.
fn objections(strategy: Strategy, steps: &[Step], routes: &[HeaderRoute]) -> Vec<(Option<usize>, String)> {
    let mut objections = Vec::new();
    let mut object = |step: Option<usize>, text: String| objections.push((step, text));
    match strategy {
        Strategy::AllAtOnce if !steps.is_empty() => {
            object(
                None,
                "`all-at-once` has no steps; leave them out, or say `strategy = \"canary\"`".to_owned(),
            );
        }
        Strategy::AllAtOnce => {}
        _ if steps.is_empty() => {
            object(None, format!("`{}` needs steps; leave `steps` out for the usual ones", strategy.name()));
        }
        Strategy::Shadow if !steps.iter().any(|step| matches!(step, Step::Shadow(_))) => {
            object(None, "`shadow` needs a `shadow` step; add `{ shadow = { share = 10 } }`".to_owned());
        }
        _ => {}
    }
    if steps.len() > MAX_STEPS {
        object(
            Some(MAX_STEPS),
            format!("a plan may have {MAX_STEPS} steps; leave this one and those after it out"),
        );
        return objections;
    }
    let routed = steps.iter().filter(|step| matches!(step, Step::SetHeaderRoute(_))).count();
    if routes.len() + routed > MAX_HEADER_ROUTES {
        object(
            None,
            format!(
                "a plan may have {MAX_HEADER_ROUTES} header routes, those of steps included; leave some out"
            ),
        );
    }
    for (index, route) in routes.iter().enumerate() {
        if routes[..index].iter().any(|other| (&other.header, &other.value) == (&route.header, &route.value))
        {
            let HeaderRoute { header, value, .. } = route;
            object(None, format!("`header_routes` has `{header}: {value}` twice; keep one of the two"));
        }
    }
    objections.extend(objections_to_order(strategy, steps));
    objections
}

/// What does not fit together in the order of the steps.
fn objections_to_order(strategy: Strategy, steps: &[Step]) -> Vec<(Option<usize>, String)> {
    let mut objections = Vec::new();
    let mut object = |step: usize, text: String| objections.push((Some(step), text));
    // By its weight: calls of header routes are answered, and not counted.
    let mut reached = false;
    let mut weight: Option<(usize, u16)> = None;
    let mut waited = true;
    for (index, step) in steps.iter().enumerate() {
        match step {
            Step::SetWeight(new) => {
                if let Some((_, old)) = weight.filter(|(_, old)| new <= old) {
                    let (old, new) = (percent(old), percent(*new));
                    object(
                        index,
                        format!("the weight does not rise here, from {old} to {new} %; weights go up"),
                    );
                }
                if *new == WHOLE {
                    let text = "after the last step all traffic goes to the candidate by itself; leave \
                                `set_weight = 100` out";
                    object(index, text.to_owned());
                }
                if let Some((before, _)) = weight.filter(|_| !waited && strategy != Strategy::Manual) {
                    object(before, AT_ONCE.to_owned());
                }
                weight = Some((index, *new));
                reached |= *new > 0;
                waited = false;
            }
            Step::SetHeaderRoute(_) => {}
            Step::Analysis(_) if !reached => {
                let text = "no traffic goes to the candidate by its weight here, and what header routes send to it is \
                            not counted, so that this step would wait in vain; put a `set_weight` above 0 before it";
                object(index, text.to_owned());
                waited = true;
            }
            Step::Pause(_) | Step::Analysis(_) | Step::Shadow(_) => waited = true,
        }
    }
    if let Some((last, _)) = weight.filter(|_| !waited && strategy != Strategy::Manual) {
        object(last, AT_ONCE.to_owned());
    }
    objections
}

const AT_ONCE: &str =
    "nothing happens at this weight before the next; put an `analysis` or a `pause` step after it";

impl Serialize for Plan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Plan::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for Plan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Plan, D::Error> {
        let json = serde_json::Value::deserialize(deserializer)?;
        Plan::from_json(json).map_err(serde::de::Error::custom)
    }
}

/// A plan that was read strictly once. Bounds of today do not make a plan of yesterday unreadable.
pub mod stored {
    use serde::{Deserializer, Serializer};

    use super::Plan;

    pub fn serialize<S: Serializer>(plan: &Plan, serializer: S) -> Result<S::Ok, S::Error> {
        Plan::serialize(plan, serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Plan, D::Error> {
        Plan::deserialize(deserializer)
    }
}

#[cfg(test)]
mod tests;
