//! Commands to what is rolled out: `tenon promote`, `pause`, `resume`, `rollback`, `remove`, `history` and `shadow`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};

use super::hosts::{HostArgs, app_of, ask_all, in_json};
use super::progress::Progress;
use super::status::{candidate, in_words};
use super::table::{Table, moment};
use crate::artifact::registry::printable;
use crate::config::Config;
use crate::control::client::{Client, ClientError};
use crate::control::wire::{Command, HistoryEntry, RolloutStatus, ShadowStatus};

mod shadow;

/// Names an app on hosts.
#[derive(Args, Clone, Debug)]
struct AppOnHosts {
    /// The app; of APP/FUNCTION, the app is meant as well.
    app: String,
    #[command(flatten)]
    hosts: HostArgs,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

impl AppOnHosts {
    fn app(&self) -> &str {
        app_of(&self.app)
    }

    /// A function that is named must be one of the app's: what is mistyped must not become a command to all of the app.
    ///
    /// # Errors
    /// Where a host has the app, and none has the function.
    async fn check_function(&self, clients: &[Client]) -> anyhow::Result<()> {
        if self.app() == self.app {
            return Ok(());
        }
        let asking = ask_all(clients, |client| {
            let app = self.app().to_owned();
            async move { client.app(&app).await }
        });
        let mut others = BTreeSet::new();
        let until = tokio::time::Instant::now() + CHECK;
        for (_, asked) in asking {
            // What is wrong with a host is told by the command itself, which must not wait for it.
            let Ok(Ok(Ok(app))) = tokio::time::timeout_at(until, asked).await else { continue };
            // What is tried out may have functions that what is live has not.
            if candidate(&app).is_some() {
                return Ok(());
            }
            others.extend(app.functions.into_iter().map(|function| function.function));
        }
        if others.is_empty() || others.contains(&self.app) {
            return Ok(());
        }
        let others: Vec<_> = others.iter().map(|name| format!("`{}`", printable(name, 80))).collect();
        anyhow::bail!("there is no function `{}`; the app has {}", self.app, others.join(", "))
    }
}

/// How long hosts are waited for that are asked whether a function is there.
const CHECK: Duration = Duration::from_secs(2);

/// What stands in the history.
#[derive(Args, Clone, Debug)]
struct Message {
    /// Stands in the history: why.
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
}

/// Lets a rollout go on to its next step.
#[derive(Args, Debug)]
pub struct PromoteArgs {
    #[command(flatten)]
    of: AppOnHosts,
    /// At once to all traffic, past all steps that are left.
    #[arg(long)]
    full: bool,
    #[command(flatten)]
    message: Message,
}

/// Keeps a rollout at the step where it is.
#[derive(Args, Debug)]
pub struct PauseArgs {
    #[command(flatten)]
    of: AppOnHosts,
    #[command(flatten)]
    message: Message,
}

/// Lets a paused rollout go on.
#[derive(Args, Debug)]
pub struct ResumeArgs {
    #[command(flatten)]
    of: AppOnHosts,
    #[command(flatten)]
    message: Message,
}

/// Sends all traffic back to the revision that was there before, at once.
#[derive(Args, Debug)]
pub struct RollbackArgs {
    #[command(flatten)]
    of: AppOnHosts,
    /// The revision to go back to where no rollout is under way; the former one unless said.
    #[arg(long, value_name = "NUMBER")]
    revision: Option<u64>,
    #[command(flatten)]
    message: Message,
}

/// Takes an app out of service, when what runs of it has ended.
#[derive(Args, Debug)]
pub struct RemoveArgs {
    #[command(flatten)]
    of: AppOnHosts,
    /// Only this revision, which takes no traffic: one that was made ready and whose rollout nobody starts, or a former one.
    #[arg(long, value_name = "NUMBER")]
    revision: Option<u64>,
}

/// Shows what happened to an app, and the numbers behind each decision.
#[derive(Args, Debug)]
pub struct HistoryArgs {
    #[command(flatten)]
    of: AppOnHosts,
    /// The most entries, the latest.
    #[arg(long, value_name = "NUMBER", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    /// Only entries before the one with this number.
    #[arg(long, value_name = "NUMBER")]
    before: Option<u64>,
    /// Shows the numbers behind each entry.
    #[arg(long)]
    numbers: bool,
}

/// Shows how far a candidate's answers to copies of live calls agree with the live revision's, and what both cost.
#[derive(Args, Debug)]
pub struct ShadowArgs {
    #[command(flatten)]
    of: AppOnHosts,
}

/// Lets a rollout go on.
///
/// # Errors
/// Where no host is known.
pub async fn promote(args: PromoteArgs, config: &Config, progress: &Progress) -> anyhow::Result<ExitCode> {
    let command = Command { full: args.full, message: args.message.message, ..Command::default() };
    command_all(&args.of, config, progress, command, Verb::Promote).await
}

/// Keeps a rollout where it is.
///
/// # Errors
/// Where no host is known.
pub async fn pause(args: PauseArgs, config: &Config, progress: &Progress) -> anyhow::Result<ExitCode> {
    let command = Command { message: args.message.message, ..Command::default() };
    command_all(&args.of, config, progress, command, Verb::Pause).await
}

/// Lets a paused rollout go on.
///
/// # Errors
/// Where no host is known.
pub async fn resume(args: ResumeArgs, config: &Config, progress: &Progress) -> anyhow::Result<ExitCode> {
    let command = Command { message: args.message.message, ..Command::default() };
    command_all(&args.of, config, progress, command, Verb::Resume).await
}

/// Goes back.
///
/// # Errors
/// Where no host is known.
pub async fn rollback(args: RollbackArgs, config: &Config, progress: &Progress) -> anyhow::Result<ExitCode> {
    let command = Command { revision: args.revision, message: args.message.message, ..Command::default() };
    command_all(&args.of, config, progress, command, Verb::Rollback).await
}

#[derive(Clone, Copy)]
enum Verb {
    Promote,
    Pause,
    Resume,
    Rollback,
}

async fn command_all(
    of: &AppOnHosts,
    config: &Config,
    progress: &Progress,
    command: Command,
    verb: Verb,
) -> anyhow::Result<ExitCode> {
    let app = of.app().to_owned();
    let told = on_all(of, config, progress, move |client| {
        let (app, command) = (app.clone(), command.clone());
        async move {
            match verb {
                Verb::Promote => client.promote(&app, &command).await,
                Verb::Pause => client.pause(&app, &command).await,
                Verb::Resume => client.resume(&app, &command).await,
                Verb::Rollback => client.rollback(&app, &command).await,
            }
        }
    });
    let show = |rollout: &RolloutStatus| in_words(rollout);
    Ok(tell(of, progress, &told.await?, show))
}

/// Takes an app out of service.
///
/// # Errors
/// Where no host is known.
pub async fn remove(args: RemoveArgs, config: &Config, progress: &Progress) -> anyhow::Result<ExitCode> {
    let app = args.of.app().to_owned();
    if args.of.app != app {
        anyhow::bail!(
            "a function goes with its app alone: `tenon remove {app}` takes all of it out of service"
        );
    }
    let (revision, what) = match args.revision {
        Some(revision) => (Some(revision), format!("revision {revision} of {app}")),
        None => (None, app.clone()),
    };
    let told = on_all(&args.of, config, progress, move |client| {
        let app = app.clone();
        async move {
            match revision {
                Some(revision) => client.discard(&app, revision).await,
                None => client.remove(&app).await,
            }
        }
    });
    Ok(tell(&args.of, progress, &told.await?, |()| format!("{what} is removed\n")))
}

/// Shows what happened.
///
/// # Errors
/// Where no host is known.
pub async fn history(args: HistoryArgs, config: &Config, progress: &Progress) -> anyhow::Result<ExitCode> {
    let app = args.of.app().to_owned();
    let (before, limit) = (args.before, usize::from(args.limit));
    let told = on_all(&args.of, config, progress, move |client| {
        let app = app.clone();
        async move { client.history(&app, before, limit).await }
    });
    Ok(tell(&args.of, progress, &told.await?, |entries: &Vec<_>| events(entries, args.numbers)))
}

/// Shows how far answers agree.
///
/// # Errors
/// Where no host is known.
pub async fn shadow(args: ShadowArgs, config: &Config, progress: &Progress) -> anyhow::Result<ExitCode> {
    let function = args.of.app.contains('/').then(|| args.of.app.clone());
    let app = args.of.app().to_owned();
    let told = on_all(&args.of, config, progress, move |client| {
        let (app, function) = (app.clone(), function.clone());
        async move {
            let mut status = client.shadow(&app).await?;
            status.functions.retain(|report| {
                function.as_ref().is_none_or(|name| {
                    *name == report.function || name.ends_with(&format!("/{}", report.function))
                })
            });
            Ok(status)
        }
    });
    Ok(tell(&args.of, progress, &told.await?, |status: &ShadowStatus| shadow::text(status)))
}

/// What a host answered, by its address.
type Told<T> = Vec<(String, Result<T, ClientError>)>;

/// Asks all hosts for the same at once.
async fn on_all<T, F>(
    of: &AppOnHosts,
    config: &Config,
    progress: &Progress,
    ask: impl Fn(Client) -> F,
) -> anyhow::Result<Told<T>>
where
    T: Send + 'static,
    F: Future<Output = Result<T, ClientError>> + Send + 'static,
{
    let clients = of.hosts.clients(config, progress)?;
    of.check_function(&clients).await?;
    let mut told = Vec::new();
    for (host, asked) in ask_all(&clients, ask) {
        told.push((host, asked.await?));
    }
    Ok(told)
}

/// Shows what all hosts answered, and answers whether all did as they were told.
fn tell<T: Serialize>(
    of: &AppOnHosts,
    progress: &Progress,
    told: &Told<T>,
    show: impl Fn(&T) -> String,
) -> ExitCode {
    match of.json {
        true => println!("{:#}", for_programs(told)),
        false => print!("{}", for_people(told, show)),
    }
    let errors: Vec<_> = told.iter().filter_map(|(_, answer)| answer.as_ref().err()).collect();
    for error in &errors {
        progress.fail(error);
    }
    if errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn for_people<T>(told: &Told<T>, show: impl Fn(&T) -> String) -> String {
    let mut text = String::new();
    for (host, answer) in told {
        let Ok(answer) = answer else { continue };
        if told.len() > 1 {
            let _ = writeln!(text, "{}{host}", if text.is_empty() { "" } else { "\n" });
        }
        text += &show(answer);
    }
    text
}

fn for_programs<T: Serialize>(told: &Told<T>) -> Value {
    let hosts = told.iter().map(|(host, answer)| match answer {
        Ok(answer) => json!({ "to": host, "answer": answer }),
        Err(error) => json!({ "to": host, "error": in_json(error) }),
    });
    json!({ "hosts": hosts.collect::<Vec<_>>() })
}

/// The oldest first, as it happened.
fn events(entries: &[HistoryEntry], with_numbers: bool) -> String {
    if entries.is_empty() {
        return "nothing has happened\n".to_owned();
    }
    let mut table = Table::new(&[">number", "time", ">revision", "event", "what"]);
    for entry in entries.iter().rev() {
        table.row(vec![
            entry.id.to_string(),
            moment(entry.time_ms),
            entry.revision.map(|revision| revision.to_string()).unwrap_or_default(),
            entry.event.clone(),
            entry.text.clone(),
        ]);
    }
    let mut text = table.text();
    for entry in entries.iter().rev().filter(|_| with_numbers) {
        if !entry.details.is_null() {
            // JSON leaves no control characters in its texts.
            let details = super::progress::harmless(&format_args!("{:#}", entry.details));
            let _ = writeln!(text, "\n{} {}: {details}", entry.id, printable(&entry.event, 80));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: u64, event: &str, details: Value) -> HistoryEntry {
        HistoryEntry {
            id,
            time_ms: 1_795_338_245_000,
            app: "digits".to_owned(),
            revision: Some(3),
            event: event.to_owned(),
            text: format!("it was {event}"),
            details,
        }
    }

    #[test]
    fn a_history_is_told_as_it_happened() {
        let entries =
            vec![entry(12, "rolled-back", json!({"evidence": 4000.5})), entry(7, "started", Value::Null)];
        let expected = "\
number  time                 revision  event        what
     7  2026-11-22 09:04:05         3  started      it was started
    12  2026-11-22 09:04:05         3  rolled-back  it was rolled-back
";
        assert_eq!(events(&entries, false), expected);
        let numbers = events(&entries, true);
        assert!(numbers.ends_with("\n12 rolled-back: {\n  \"evidence\": 4000.5\n}\n"), "{numbers}");
        assert_eq!(events(&[], true), "nothing has happened\n");
    }

    #[test]
    fn several_hosts_are_told_apart_and_what_failed_is_told_to_programs() {
        let to = "https://b:3002".parse().unwrap();
        let failed = ClientError::Unreachable { to, reason: "gone".to_owned() };
        let told: Told<u32> =
            vec![("a".to_owned(), Ok(1)), ("b".to_owned(), Err(failed)), ("c".to_owned(), Ok(2))];
        assert_eq!(for_people(&told, |number| format!("{number}\n")), "a\n1\n\nc\n2\n");
        let json = for_programs(&told);
        assert_eq!(json["hosts"][2], json!({"to": "c", "answer": 2}));
        assert_eq!(json["hosts"][1]["error"]["title"], "unreachable");
    }
}
