//! The server as a whole: its health, its metadata, and what it says to requests that are none.

use serde_json::{Value, json};
use ureq::http::Method;

use super::check::{Check, Level, Problem, Verdict};
use super::grpc::Grpc;
use super::http::{Answer, Http};

/// A server that is looked at.
pub(super) struct Server {
    pub(super) http: Http,
    /// Its gRPC, or why it is not looked at.
    pub(super) grpc: Result<Grpc, Problem>,
    /// What `/v2` answers.
    pub(super) metadata: Result<Value, Problem>,
    /// Models may be unloaded and loaded again.
    pub(super) may_control: bool,
}

impl Server {
    pub(super) fn announces(&self, extension: &str) -> bool {
        self.extensions().iter().any(|announced| announced == extension)
    }

    pub(super) fn extensions(&self) -> Vec<String> {
        let listed = self.metadata.as_ref().ok().and_then(|metadata| metadata.get("extensions")?.as_array());
        listed.into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)).take(64).collect()
    }

    /// Skips where an endpoint is not there and its extension is not announced.
    pub(super) fn offers(&self, extension: &str, answer: &Answer) -> Verdict {
        if !self.announces(extension) && matches!(answer.status, 404 | 405 | 501) {
            let status = answer.status;
            return Err(Problem::skip(format!(
                "`{extension}` is not announced, and its endpoint answers {status}"
            )));
        }
        Ok(())
    }

    /// The models of the repository's index, `(name, version)`, where there is one.
    pub(super) fn index(&self) -> Result<Vec<(String, String)>, Problem> {
        let answer = self.http.post_json(INDEX, &json!({}))?;
        self.offers("model_repository", &answer)?;
        let index = answer.ok()?.json()?;
        let text = |entry: &Value, name: &str| {
            entry.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let entries = index.as_array().ok_or_else(|| Problem::wrong("an array", index.to_string()))?;
        Ok(entries.iter().map(|entry| (text(entry, "name"), text(entry, "version"))).collect())
    }
}

const INDEX: &str = "/v2/repository/index";

/// A name that no model has.
pub(super) const NO_MODEL: &str = "tenon-conformance-no-such-model";

/// `value` as a person is shown it where it is not what it should be.
fn wrong(expected: &str, value: &Value) -> Problem {
    Problem::wrong(expected, value.to_string())
}

/// The member `name` of `value`, which must be a text.
pub(super) fn text<'v>(value: &'v Value, name: &str) -> Result<&'v str, Problem> {
    value.get(name).and_then(Value::as_str).ok_or_else(|| wrong(&format!("a text `{name}`"), value))
}

/// The checks of the server's health, metadata, repository and statistics.
pub(super) const CHECKS: &[Check<Server>] = &[
    Check {
        id: "server.live",
        level: Level::Required,
        section: "Server Live",
        says: "GET /v2/health/live answers 200",
        run: |server| server.http.get("/v2/health/live")?.ok().map(drop),
    },
    Check {
        id: "server.live.body",
        level: Level::Advised,
        section: "Server Live",
        says: "the answer is {\"live\": true}: clients read it, though the OpenAPI file has no body",
        run: |server| is_true(server.http.get("/v2/health/live")?, "live"),
    },
    Check {
        id: "server.ready",
        level: Level::Required,
        section: "Server Ready",
        says: "GET /v2/health/ready answers 200",
        run: |server| server.http.get("/v2/health/ready")?.ok().map(drop),
    },
    Check {
        id: "server.ready.body",
        level: Level::Advised,
        section: "Server Ready",
        says: "the answer is {\"ready\": true}: clients read it, though the OpenAPI file has no body",
        run: |server| is_true(server.http.get("/v2/health/ready")?, "ready"),
    },
    Check {
        id: "server.metadata",
        level: Level::Required,
        section: "Server Metadata",
        says: "GET /v2 answers `name`, `version` and the list `extensions`",
        run: |server| metadata(&server.metadata.clone()?),
    },
    Check {
        id: "server.metadata.type",
        level: Level::Advised,
        section: "Server Metadata",
        says: "metadata has the content type application/json",
        run: |server| is_json(&server.http.get("/v2")?.ok()?),
    },
    Check {
        id: "server.metadata.slash",
        level: Level::Advised,
        section: "Server Metadata",
        says: "GET /v2/, as the OpenAPI file has it, answers as GET /v2 does",
        run: |server| metadata(&server.http.get("/v2/")?.ok()?.json()?),
    },
    Check {
        id: "server.path.unknown",
        level: Level::Advised,
        section: "HTTP",
        says: "a path of no endpoint answers 404",
        run: |server| status(&server.http.get("/v2/tenon-conformance-no-such-path")?, &[404]),
    },
    Check {
        id: "server.path.odd",
        level: Level::Advised,
        section: "HTTP",
        says: "names of models that climb folders or hold zero bytes are refused with 400 or 404",
        run: |server| {
            let names = ["..%2f..%2f..%2fetc%2fpasswd", "%00", "%ff%fe", "%2e%2e"];
            let ask = |name: &&str| status(&server.http.get(&format!("/v2/models/{name}"))?, &[400, 404]);
            names.iter().try_for_each(ask)
        },
    },
    Check {
        id: "server.method",
        level: Level::Advised,
        section: "HTTP",
        says: "a method that an endpoint does not have answers 405, with `Allow`, or 404",
        run: |server| {
            let ask = |(method, path): (Method, &str)| {
                let answer = server.http.send(method, path, &[], Vec::new())?;
                status(&answer, &[404, 405])?;
                let names_none = answer.status == 405 && answer.header("allow").is_empty();
                if names_none { Err(Problem::wrong("a header `Allow`", answer.told())) } else { Ok(()) }
            };
            [(Method::DELETE, "/v2"), (Method::POST, "/v2/health/live"), (Method::PUT, "/v2/models/x/infer")]
                .into_iter()
                .try_for_each(ask)
        },
    },
    Check {
        id: "repository.index",
        level: Level::Extension,
        section: "Model Repository extension",
        says: "POST /v2/repository/index lists models with `name` and `state`",
        run: |server| {
            let answer = server.http.post_json(INDEX, &json!({}))?;
            server.offers("model_repository", &answer)?;
            index_form(&answer.ok()?.json()?)
        },
    },
    Check {
        id: "repository.index.empty",
        level: Level::Extension,
        section: "Model Repository extension",
        says: "the index is answered also without a body, as clients ask for it",
        run: |server| {
            server.index().map_err(|problem| problem.elsewhere())?;
            index_form(&server.http.post(INDEX, &[], "")?.ok()?.json()?)
        },
    },
    Check {
        id: "repository.index.ready",
        level: Level::Extension,
        section: "Model Repository extension",
        says: "with {\"ready\": true} the index holds ready models alone",
        run: |server| {
            server.index().map_err(|problem| problem.elsewhere())?;
            let index = server.http.post_json(INDEX, &json!({ "ready": true }))?.ok()?.json()?;
            index_form(&index)?;
            let is_ready = |entry: &Value| entry["state"].as_str() == Some("READY");
            match index.as_array().is_some_and(|entries| entries.iter().all(is_ready)) {
                true => Ok(()),
                false => Err(wrong("entries with the state READY alone", &index)),
            }
        },
    },
    Check {
        id: "repository.load.unknown",
        level: Level::Extension,
        section: "Model Repository extension",
        says: "loading and unloading a model that is not there are refused with {\"error\"}",
        run: |server| {
            server.index().map_err(|problem| problem.elsewhere())?;
            ["load", "unload"].iter().try_for_each(|verb| {
                server.http.post(&format!("/v2/repository/models/{NO_MODEL}/{verb}"), &[], "")?.refusal()
            })
        },
    },
    Check {
        id: "statistics.all",
        level: Level::Extension,
        section: "Statistics extension",
        says: "GET /v2/models/stats answers a list `model_stats`",
        run: |server| {
            let answer = server.http.get("/v2/models/stats")?;
            server.offers("statistics", &answer)?;
            let stats = answer.ok()?.json()?;
            if stats["model_stats"].is_array() { Ok(()) } else { Err(wrong("a list `model_stats`", &stats)) }
        },
    },
];

/// The checks that come last: what all the others left of the server.
pub(super) const AFTER: &[Check<Server>] = &[
    Check {
        id: "after.live",
        level: Level::Required,
        section: "Server Live",
        says: "after all that it was sent, the server is still live and ready",
        run: |server| {
            server.http.get("/v2/health/live")?.ok()?;
            server.http.get("/v2/health/ready")?.ok().map(drop)
        },
    },
    Check {
        id: "after.metadata",
        level: Level::Required,
        section: "Server Metadata",
        says: "after all that it was sent, the server's metadata is the same",
        run: |server| {
            let before = server.metadata.clone().map_err(|problem| problem.elsewhere())?;
            let after = server.http.get("/v2")?.ok()?.json()?;
            if before == after { Ok(()) } else { Err(wrong(&before.to_string(), &after)) }
        },
    },
];

fn metadata(value: &Value) -> Verdict {
    text(value, "name")?;
    text(value, "version")?;
    let extensions = value.get("extensions").and_then(Value::as_array);
    match extensions.is_some_and(|names| names.iter().all(Value::is_string)) {
        true => Ok(()),
        false => Err(wrong("a list of texts `extensions`", value)),
    }
}

fn is_true(answer: Answer, member: &str) -> Verdict {
    let answer = answer.ok()?;
    match answer.json().ok().and_then(|value| value.get(member)?.as_bool()) {
        Some(true) => Ok(()),
        _ => Err(Problem::wrong(format!("{{\"{member}\": true}}"), answer.told())),
    }
}

/// The answer's content type must be JSON's.
pub(super) fn is_json(answer: &Answer) -> Verdict {
    let kind = answer.header("content-type");
    match kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json")) {
        true => Ok(()),
        false => Err(Problem::wrong("the content type application/json", format!("`{kind}`"))),
    }
}

/// The answer must have one of these.
pub(super) fn status(answer: &Answer, expected: &[u16]) -> Verdict {
    if expected.contains(&answer.status) {
        return Ok(());
    }
    let expected: Vec<String> = expected.iter().map(u16::to_string).collect();
    Err(Problem::wrong(format!("status {}", expected.join(" or ")), answer.told()))
}

fn index_form(index: &Value) -> Verdict {
    let entries = index.as_array().ok_or_else(|| wrong("an array", index))?;
    entries.iter().try_for_each(|entry| text(entry, "name").and(text(entry, "state")).map(drop))
}
