//! `tenon status`: what hosts serve, and whether it is the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::hosts::{HostArgs, ask_all};
use super::progress::Progress;
use super::table::{Table, moment, number, percent, short};
use crate::artifact::registry::printable;
use crate::config::Config;
use crate::control::client::{Client, ClientError};
use crate::control::wire::{AppStatus, HostStatus, RevisionStatus, RolloutStatus};

/// Shows what hosts serve, and where they differ: the exit code is 1 if they do.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Only this app, with its functions, all its revisions and the numbers of its rollout.
    app: Option<String>,
    #[command(flatten)]
    hosts: HostArgs,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// What one host answered.
struct Found {
    host: String,
    answer: Result<HostStatus, ClientError>,
}

impl Found {
    fn apps(&self) -> &[AppStatus] {
        self.answer.as_ref().map_or(&[], |status| &status.apps)
    }

    fn app(&self, name: &str) -> Option<&AppStatus> {
        self.apps().iter().find(|app| app.app == name)
    }
}

/// Asks all hosts at once.
///
/// # Errors
/// Where no host is known, or none has the app that was named.
pub async fn run(args: &StatusArgs, config: &Config, progress: &Progress) -> anyhow::Result<ExitCode> {
    let clients = args.hosts.clients(config, progress)?;
    let only = args.app.as_deref().map(super::hosts::app_of);
    let mut found = ask(&clients).await;
    if let Some(only) = only {
        for status in found.iter_mut().filter_map(|found| found.answer.as_mut().ok()) {
            status.apps.retain(|app| app.app == only);
        }
    }
    let differing = differing(&found);
    match args.json {
        true => println!("{:#}", for_programs(&found, &differing)),
        false => print!("{}", for_people(&found, &differing, only.is_some())),
    }
    let mut all_well = differing.is_empty();
    for Found { answer, .. } in &found {
        if let Err(error) = answer {
            all_well = false;
            progress.fail(error);
        }
    }
    let nobody_has_it = found.iter().all(|found| found.answer.is_ok() && found.apps().is_empty());
    if let Some(only) = only.filter(|_| nobody_has_it) {
        progress.fail(format_args!("there is no app `{only}`; `tenon status` lists what there is"));
        all_well = false;
    }
    Ok(if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn ask(clients: &[Client]) -> Vec<Found> {
    let mut found = Vec::new();
    for (host, asked) in ask_all(clients, |client| async move { client.status().await }) {
        // A task that panicked has told so itself.
        found.extend(asked.await.ok().map(|answer| Found { host, answer }));
    }
    found
}

/// What tells one host's idea of an app from another's: the digests of what takes its calls.
fn digests(app: &AppStatus) -> [Option<&str>; 2] {
    let digest = |revision: u64| {
        app.revisions.iter().find(|known| known.revision == revision).map(|known| known.digest.as_str())
    };
    let candidate = candidate(app).map(|rollout| rollout.candidate);
    [app.stable.and_then(digest), candidate.and_then(digest)]
}

/// The rollout of an app, where it is under way.
pub(super) fn candidate(app: &AppStatus) -> Option<&RolloutStatus> {
    app.rollout.as_ref().filter(|rollout| !matches!(rollout.phase.as_str(), "succeeded" | "rolled_back"))
}

/// The apps of which those hosts that answered do not all have the same.
fn differing(found: &[Found]) -> BTreeSet<String> {
    let answered: Vec<_> = found.iter().filter(|found| found.answer.is_ok()).collect();
    let names: BTreeSet<_> = answered.iter().flat_map(|found| found.apps()).map(|app| &app.app).collect();
    let differs = |name: &&&String| {
        let mut seen = answered.iter().map(|found| found.app(name).map(digests));
        let first = seen.next();
        seen.any(|other| Some(other) != first)
    };
    names.iter().filter(differs).map(|name| (*name).clone()).collect()
}

fn for_people(found: &[Found], differing: &BTreeSet<String>, in_full: bool) -> String {
    let several = found.len() > 1;
    let mut text = revisions(found, differing, in_full);
    for Found { host, answer } in found {
        let on = if several { format!(" on {host}") } else { String::new() };
        let Ok(status) = answer else { continue };
        for app in &status.apps {
            let rollout = if in_full { app.rollout.as_ref() } else { candidate(app) };
            if let Some(rollout) = rollout {
                let _ = write!(text, "\n{}{on}: {}", printable(&app.app, 80), in_words(rollout));
                if in_full && !rollout.measurements.is_empty() {
                    let _ = write!(text, "\n{}", measurements(rollout));
                }
            }
        }
    }
    // Where hosts are the same, one of them tells for all.
    let mut told: BTreeMap<&str, bool> = BTreeMap::new();
    for app in found.iter().flat_map(Found::apps).filter(|_| in_full) {
        if told.insert(&app.app, true).is_none() && !app.functions.is_empty() {
            let _ = write!(text, "\n{}", functions(app));
        }
    }
    text
}

fn revisions(found: &[Found], differing: &BTreeSet<String>, in_full: bool) -> String {
    let mut table = Table::new(&[
        "app",
        "host",
        ">revision",
        "digest",
        "version",
        ">traffic",
        "warm",
        "deployed",
        "same",
        "from",
    ]);
    let names: BTreeSet<_> = found.iter().flat_map(Found::apps).map(|app| &app.app).collect();
    for name in names {
        let same = if differing.contains(name) { "DIFFERS" } else { "" };
        for Found { host, answer } in found {
            let host = if found.len() > 1 { host.as_str() } else { "" };
            let Ok(status) = answer else { continue };
            let Some(app) = status.apps.iter().find(|app| app.app == *name) else {
                let missing = [name.as_str(), host, "", "", "", "", "", "", same, "not there"];
                table.row(missing.map(str::to_owned).to_vec());
                continue;
            };
            let candidate = candidate(app).map(|rollout| rollout.candidate);
            // Those that take calls, and those in memory that could at once: one that waits, or the former one.
            let matters = |revision: &&RevisionStatus| {
                let number = Some(revision.revision);
                in_full || number == app.stable || number == candidate || revision.weight > 0 || revision.warm
            };
            for revision in app.revisions.iter().filter(matters) {
                table.row(vec![
                    name.clone(),
                    host.to_owned(),
                    revision.revision.to_string(),
                    short(&revision.digest),
                    revision.version.clone().unwrap_or_default(),
                    percent(revision.weight),
                    if revision.warm { "yes" } else { "no" }.to_owned(),
                    moment(revision.created_ms),
                    same.to_owned(),
                    revision.reference.clone().unwrap_or_else(|| "an upload".to_owned()),
                ]);
            }
        }
    }
    if table.is_empty() {
        let is_heard = found.iter().any(|found| found.answer.is_ok());
        return if is_heard { "nothing is deployed\n".to_owned() } else { String::new() };
    }
    table.text()
}

/// How far a rollout is, as a sentence and its reason.
pub(super) fn in_words(rollout: &RolloutStatus) -> String {
    let RolloutStatus { candidate, step, steps, weight, .. } = rollout;
    let phase = rollout.phase.replace('_', " ");
    let at = match rollout.phase.as_str() {
        "succeeded" | "rolled_back" => String::new(),
        _ if *steps == 0 => format!(", takes {} of the traffic", percent(*weight)),
        _ => {
            format!(", takes {} of the traffic, step {} of {steps}", percent(*weight), (step + 1).min(*steps))
        }
    };
    let reason = match rollout.reason.is_empty() {
        true => String::new(),
        false => format!(": {}", printable(&rollout.reason, 1000)),
    };
    format!("revision {candidate} {}{at}{reason}\n", printable(&phase, 40))
}

fn measurements(rollout: &RolloutStatus) -> String {
    let mut table = Table::new(&[
        "function",
        "metric",
        "phase",
        ">stable",
        ">candidate",
        ">stable calls",
        ">candidate calls",
        ">evidence",
        ">needed",
        "",
    ]);
    for measured in &rollout.measurements {
        let phase =
            if measured.dry_run { format!("{} (dry run)", measured.phase) } else { measured.phase.clone() };
        table.row(vec![
            measured.function.clone(),
            measured.metric.clone(),
            phase,
            number(measured.stable),
            number(measured.candidate),
            measured.stable_samples.to_string(),
            measured.candidate_samples.to_string(),
            number(Some(measured.evidence)),
            number(Some(measured.needed)),
            measured.text.clone(),
        ]);
    }
    table.text()
}

fn functions(app: &AppStatus) -> String {
    let mut table = Table::new(&["function", "model name", "kind", "component", "models"]);
    for function in &app.functions {
        let models = function.models.iter().map(|(name, digest)| format!("{name} {}", short(digest)));
        table.row(vec![
            function.function.clone(),
            function.model.clone(),
            function.kind.clone(),
            short(&function.component),
            models.collect::<Vec<_>>().join(", "),
        ]);
    }
    let mut text = table.text();
    if !app.routes.is_empty() {
        let _ = writeln!(text, "\nroutes: {}", printable(&app.routes.join(", "), 4000));
    }
    text
}

fn for_programs(found: &[Found], differing: &BTreeSet<String>) -> Value {
    let hosts = found.iter().map(|Found { host, answer }| match answer {
        Ok(status) => json!({ "to": host, "status": status }),
        Err(error) => json!({ "to": host, "error": super::hosts::in_json(error) }),
    });
    json!({ "hosts": hosts.collect::<Vec<_>>(), "differing": differing })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::client::To;
    use crate::control::wire::FunctionStatus;
    use crate::rollout::plan::{Plan, Strategy};

    fn digest(letter: char) -> String {
        format!("sha256:{}", letter.to_string().repeat(64))
    }

    fn revision(number: u64, letter: char, weight: u16) -> RevisionStatus {
        RevisionStatus {
            revision: number,
            digest: digest(letter),
            reference: (number == 1).then(|| "registry.example/team/digits:1".to_owned()),
            version: Some(format!("{number}.0")),
            weight,
            warm: weight > 0,
            created_ms: 1_795_338_245_000,
        }
    }

    fn rollout(candidate: u64) -> RolloutStatus {
        RolloutStatus {
            id: 1,
            stable: Some(1),
            candidate,
            phase: "progressing".to_owned(),
            step: 1,
            steps: 6,
            reason: "waits for 500 answers".to_owned(),
            weight: 500,
            started_ms: 0,
            changed_ms: 0,
            plan: Plan::of(Strategy::Canary),
            measurements: Vec::new(),
        }
    }

    fn app(name: &str, revisions: Vec<RevisionStatus>, rollout: Option<RolloutStatus>) -> AppStatus {
        let function = FunctionStatus {
            function: format!("{name}/digits"),
            model: "digits".to_owned(),
            kind: "typed".to_owned(),
            component: digest('c'),
            models: BTreeMap::from([("mnist".to_owned(), digest('d'))]),
        };
        let routes = vec!["/digits".to_owned()];
        AppStatus {
            app: name.to_owned(),
            stable: Some(1),
            revisions,
            rollout,
            routes,
            functions: vec![function],
        }
    }

    fn on(host: &str, apps: Vec<AppStatus>) -> Found {
        Found { host: host.to_owned(), answer: Ok(HostStatus { version: "1".to_owned(), apps }) }
    }

    fn canary() -> AppStatus {
        let revisions = vec![revision(3, 'b', 500), revision(2, 'f', 0), revision(1, 'a', 9500)];
        app("digits", revisions, Some(rollout(3)))
    }

    #[test]
    fn a_host_is_shown_as_a_table() {
        let found = [on("unix:/s", vec![canary()])];
        let expected = "\
app     revision  digest        version  traffic  warm  deployed             from
digits         3  bbbbbbbbbbbb  3.0          5 %  yes   2026-11-22 09:04:05  an upload
digits         1  aaaaaaaaaaaa  1.0         95 %  yes   2026-11-22 09:04:05  registry.example/team/digits:1

digits: revision 3 progressing, takes 5 % of the traffic, step 2 of 6: waits for 500 answers
";
        assert_eq!(for_people(&found, &differing(&found), false), expected);
        let full = for_people(&found, &differing(&found), true);
        for expected in [
            "ffffffffffff",
            "digits/digits  digits      typed  cccccccccccc  mnist dddddddddddd",
            "routes: /digits",
        ] {
            assert!(full.contains(expected), "{full}");
        }
        let nothing = [on("unix:/s", Vec::new())];
        assert_eq!(for_people(&nothing, &BTreeSet::new(), false), "nothing is deployed\n");
    }

    #[test]
    fn hosts_that_differ_are_marked() {
        let one = |letter| app("digits", vec![revision(1, letter, 10_000)], None);
        let check = |apps: [Vec<AppStatus>; 2], expected: &[&str]| {
            let [first, second] = apps;
            let found = [on("https://a:3002", first), on("https://b:3002", second)];
            let differs = differing(&found);
            assert_eq!(differs.iter().map(String::as_str).collect::<Vec<_>>(), expected);
            let text = for_people(&found, &differs, false);
            assert_eq!(text.contains("DIFFERS"), !expected.is_empty(), "{text}");
            let json = for_programs(&found, &differs);
            assert_eq!(json["differing"], json!(expected));
            text
        };
        check([vec![one('a')], vec![one('a')]], &[]);
        check([vec![one('a')], vec![one('b')]], &["digits"]);
        let text = check([vec![one('a')], Vec::new()], &["digits"]);
        assert!(text.contains("not there"), "{text}");
        // Another weight is no other digest; another candidate is one.
        let further = AppStatus { rollout: Some(RolloutStatus { weight: 2000, ..rollout(3) }), ..canary() };
        check([vec![canary()], vec![further]], &[]);
        let ended = AppStatus {
            rollout: Some(RolloutStatus { phase: "rolled_back".to_owned(), ..rollout(3) }),
            ..canary()
        };
        check([vec![canary()], vec![ended]], &["digits"]);
    }

    #[test]
    fn a_host_that_does_not_answer_differs_from_none() {
        let to: To = "https://b:3002".parse().unwrap();
        let error = ClientError::Unreachable { to, reason: "gone".to_owned() };
        let found = [
            on("https://a:3002", vec![canary()]),
            Found { host: "https://b:3002".to_owned(), answer: Err(error) },
        ];
        assert!(differing(&found).is_empty());
        let json = for_programs(&found, &BTreeSet::new());
        assert_eq!(json["hosts"][1]["error"]["title"], "unreachable");
        assert_eq!(json["hosts"][0]["status"]["apps"][0]["app"], "digits");
    }
}
