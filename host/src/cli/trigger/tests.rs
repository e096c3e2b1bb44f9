//! Spin's side of the protocol, played: its arguments, its environment, and the locked app as Spin writes it.

use clap::{CommandFactory as _, FromArgMatches as _};

use super::*;

fn parse(arguments: &[&str]) -> Result<TriggerArgs, clap::Error> {
    let command = TriggerArgs::augment_args(Command::new(NAME));
    TriggerArgs::from_arg_matches(&command.try_get_matches_from([&[NAME], arguments].concat())?)
}

#[test]
fn as_a_plugin_the_program_is_the_trigger() {
    let named = |arguments: &[&str]| named(arguments.iter().map(OsString::from).collect());
    let check = |arguments: &[&str], expected: &[&str]| assert_eq!(named(arguments), expected);
    check(
        &["/p/trigger-tenon/trigger-tenon", "--quiet"],
        &["/p/trigger-tenon/trigger-tenon", NAME, "--quiet"],
    );
    check(&["trigger-tenon"], &["trigger-tenon", NAME]);
    check(&["/p/trigger-tenon", "vet-model"], &["/p/trigger-tenon", "vet-model"]);
    check(&["/bin/tenon", "up"], &["/bin/tenon", "up"]);
    check(&[], &[]);
    let cli = super::super::Cli::command().try_get_matches_from(named(&[
        "/p/trigger-tenon",
        "--listen",
        "[::1]:1",
    ]));
    assert_eq!(cli.unwrap().subcommand_name(), Some(NAME));
}

#[test]
fn arguments_are_honoured_or_refused_by_name() {
    let check = |arguments: &[&str], expected: Option<&str>| {
        let args = parse(arguments).unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
        let checked = args.refused.check().map_err(|error| error.to_string());
        match expected {
            None => checked.unwrap(),
            Some(expected) => assert!(checked.as_ref().unwrap_err().contains(expected), "{checked:?}"),
        }
    };
    check(&["--listen", "127.0.0.1:80", "-q", "-L", "/l", "--state-dir", "", "--truncate-logs"], None);
    check(&["--variable", "a=b", "--variable", "c=d", "--find-free-port", "--format", "json"], None);
    check(&["--max-instance-reuse-count", "1"], None);
    check(
        &["--max-instance-reuse-count", "1..8"],
        Some("`--max-instance-reuse-count` is not honoured: every call"),
    );
    check(&["--runtime-config-file", "r.toml"], Some("give `--config host.toml`"));
    check(&["--debug-info", "--sqlite", "@m.sql"], Some("`--sqlite` is not honoured"));
    assert!(parse(&["--tls-cert", "c.pem"]).is_err());
    assert!(parse(&["--no-such-flag"]).is_err());
}

#[test]
fn spin_is_told_what_flags_are_honoured() {
    let metadata = launch_metadata();
    let flags = metadata["all_flags"].as_array().unwrap();
    let has = |long: &str| flags.iter().any(|flag| flag["long"] == long);
    assert!(has("--listen") && has("--variable") && has("--quiet"));
    assert!(flags.contains(&json!({ "short": "-L", "long": "--log-dir" })));
    assert!(!has("--runtime-config-file") && !has("--help-args-only"));
}

#[test]
fn times_are_read_as_spin_reads_them() {
    let check = |text: &str, expected: Option<u64>| assert_eq!(milliseconds(text).ok(), expected, "{text}");
    check("30", Some(30_000));
    check("30s", Some(30_000));
    check("500ms", Some(500));
    check("1500us", Some(2));
    check("1ns", Some(1));
    check("0s", None);
    check("", None);
    check("s", None);
    check("99999999999999999999", None);
    check("1h", None);
    assert!(milliseconds("1..8s").unwrap_err().contains("a range of times"));
}

#[test]
fn settings_of_the_operator_give_way_to_arguments() {
    let settled = |arguments: &[&str], others: &[&str]| {
        let mut config = Config::default();
        let others = others.iter().map(|kind| (*kind).to_owned()).collect();
        settle(&mut config, &parse(arguments).unwrap(), others).map(|()| config)
    };
    let config = settled(&["--listen", "127.0.0.1:8080", "--request-timeout", "2s"], &["redis"]).unwrap();
    assert_eq!((config.listen.http.port(), config.limits.deadline_ms), (8080, 2000));
    let config = settled(&["--max-instance-memory", "10485760"], &[]).unwrap();
    assert_eq!((config.limits.memory_mib, config.listen.http), (10, Config::default().listen.http));
    let error = settled(&["--listen", "127.0.0.1:8080"], &["http"]).unwrap_err().to_string();
    assert!(error.contains("--tenon-listen"), "{error}");
    let config =
        settled(&["--listen", "127.0.0.1:8080", "--tenon-listen", "127.0.0.1:8081"], &["http"]).unwrap();
    assert_eq!(config.listen.http.port(), 8081);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let holder = std::net::TcpListener::bind(taken).unwrap();
    let config = settled(&["--listen", &taken.to_string(), "--find-free-port"], &[]).unwrap();
    assert!(config.listen.http.port() > taken.port());
    drop(holder);
}

#[test]
fn logs_go_where_they_are_meant_to() {
    let handover = |local_app_dir: Option<&str>| Handover {
        locked_url: String::new(),
        working_dir: "/work".into(),
        local_app_dir: local_app_dir.map(PathBuf::from),
    };
    let check = |arguments: &[&str], local: Option<&str>, expected: &str| {
        let args = parse(arguments).unwrap();
        let logs = logs(&args, &Config::default(), &state(&args, &handover(local))).unwrap();
        assert_eq!(logs, Path::new(expected), "{arguments:?}");
    };
    check(&[], Some("/app"), "/app/.tenon/logs");
    check(&[], None, "/work/.tenon/logs");
    check(&["--state-dir", "/state"], Some("/app"), "/state/logs");
    check(&["--state-dir", ""], Some("/app"), "/app/.tenon/logs");
    check(&["--state-dir", "/state", "--log-dir", "/logs"], Some("/app"), "/logs");
    assert!(logs(&parse(&["--log-dir", ""]).unwrap(), &Config::default(), Path::new("state")).is_err());
}

#[test]
fn an_app_of_spins_is_read_with_its_tenon_triggers() {
    let folder = tempfile::tempdir().unwrap();
    let wasm = folder.path().join("a b.wasm");
    std::fs::write(&wasm, b"\0asm\x0d\0\x01\0").unwrap();
    let url = |path: &Path| url::Url::from_file_path(path).unwrap().to_string();
    let lock = folder.path().join("spin.lock");
    let app = json!({
        "spin_lock_version": 0,
        "metadata": { "name": "app", "origin": url(&folder.path().join("spin.toml")), "triggers": { "tenon": {} } },
        "triggers": [
            { "id": "one", "trigger_type": "tenon", "trigger_config": { "component": "one", "route": "/one" } },
            { "id": "two", "trigger_type": "redis", "trigger_config": { "component": "two", "channel": "c" } },
        ],
        "components": [
            { "id": "one", "source": { "content_type": "application/wasm", "source": url(&wasm) } },
            { "id": "two", "source": { "content_type": "application/wasm", "source": url(&wasm) } },
        ],
    });
    std::fs::write(&lock, format!("{app:#}")).unwrap();
    let handover =
        Handover { locked_url: url(&lock), working_dir: folder.path().to_owned(), local_app_dir: None };
    let unpacked = super::app(&parse(&[]).unwrap(), &Config::default(), &handover, "app").unwrap();
    assert_eq!(unpacked.manifest.components.len(), 1);
    assert_eq!(unpacked.manifest.triggers[0].route.as_deref(), Some("/one"));
    assert!(precompose(&handover, Some("three")).unwrap_err().to_string().contains("no component `three`"));
    assert!(file("http://127.0.0.1/spin.lock").is_err());
}
