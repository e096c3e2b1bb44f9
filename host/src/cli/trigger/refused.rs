//! Arguments of Spin's triggers that Tenon cannot honour, and what to do instead.

use clap::{Arg, ArgAction, ArgMatches, Args, Command};

/// Each with the variable of the environment that means the same, whether it takes a value, the only value of it that
/// is as Tenon does anyway, and why others are refused.
const REFUSED: [(&str, Option<&str>, Value, &str); 14] = [
    (
        "runtime-config-file",
        Some("RUNTIME_CONFIG_FILE"),
        Value::Any,
        "Spin's runtime configuration is not read; Tenon's settings are host.toml: give `--config host.toml`",
    ),
    ("sqlite", None, Value::Any, "there are no SQLite databases"),
    ("follow", None, Value::Any, "what functions print goes to files; follow them with `tail -f`"),
    (
        "max-instance-reuse-count",
        None,
        Value::Only("1"),
        "every call has an instance of its own; give 1, or leave it out",
    ),
    (
        "max-instance-concurrent-reuse-count",
        None,
        Value::Only("1"),
        "every call has an instance of its own; give 1, or leave it out",
    ),
    ("idle-instance-timeout", None, Value::Any, "no instance is kept once its call has ended"),
    ("http1-max-buf-size", Some("SPIN_HTTP1_MAX_BUF_SIZE"), Value::Any, "its bounds are those of host.toml"),
    (
        "cache",
        Some("WASMTIME_CACHE_FILE"),
        Value::Any,
        "`cache.dir` in host.toml says where compiled code is kept",
    ),
    ("disable-cache", None, Value::None, "compiled code is always kept; `tenon cache prune` removes it"),
    ("disable-pooling", None, Value::None, "instances are always pooled"),
    ("debug-info", None, Value::None, "functions cannot be run in a debugger"),
    ("allow-transient-write", None, Value::None, "functions cannot write to their files"),
    ("experimental-wasi-otel", None, Value::None, "functions cannot send traces"),
    (
        "experimental-wasm-feature",
        None,
        Value::Any,
        "WebAssembly's proposals are those that the host always has",
    ),
];

#[derive(Clone, Copy)]
enum Value {
    /// It takes none.
    None,
    Any,
    /// This one is taken.
    Only(&'static str),
}

/// Those that were given, each with what to tell.
#[derive(Default)]
pub(super) struct Refused(Vec<String>);

impl Refused {
    /// Fails where any was given.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        match self.0.is_empty() {
            true => Ok(()),
            false => anyhow::bail!("{}", self.0.join("\n")),
        }
    }
}

impl Args for Refused {
    fn augment_args(command: Command) -> Command {
        command.args(REFUSED.iter().map(|(name, variable, value, _)| {
            let argument = Arg::new(*name).long(*name).hide(true);
            let argument = match value {
                Value::None => argument.action(ArgAction::SetTrue),
                Value::Any | Value::Only(_) => argument.action(ArgAction::Append),
            };
            match variable {
                Some(variable) => argument.env(*variable),
                None => argument,
            }
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for Refused {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Refused, clap::Error> {
        let given = REFUSED.iter().filter(|(name, _, value, _)| match value {
            Value::None => matches.get_flag(name),
            Value::Any | Value::Only(_) => {
                let values = matches.get_many::<String>(name).into_iter().flatten();
                let is_as_always = |given: &String| matches!(value, Value::Only(only) if only == given);
                values.filter(|given| !given.is_empty() && !is_as_always(given)).count() > 0
            }
        });
        let tell = |(name, variable, _, why): &(&str, Option<&str>, Value, &str)| match variable {
            Some(variable) => format!("`--{name}` (or {variable}) is not honoured: {why}"),
            None => format!("`--{name}` is not honoured: {why}"),
        };
        Ok(Refused(given.map(tell).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
