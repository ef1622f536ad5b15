//! Flags made from the table of options, so that the command line, the file and the environment never differ.

use std::collections::BTreeMap;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use pagoda_backends::options::{Group, Kind, OPTIONS, OptionSpec};

/// Flags of a command; `SERVER` adds the HTTP server's.
#[derive(Clone, Debug, Default)]
pub struct Flags<const SERVER: bool> {
    /// Option key to value, only what was given.
    pub values: BTreeMap<&'static str, String>,
}

impl<const SERVER: bool> Flags<SERVER> {
    fn options() -> impl Iterator<Item = &'static OptionSpec> {
        OPTIONS.iter().filter(|spec| spec.key != "model" && (SERVER || spec.group != Group::Server))
    }
}

fn heading(group: Group) -> &'static str {
    match group {
        Group::Backend => "Backend",
        Group::Server => "Server",
        Group::Log => "Logging",
        Group::Engine => "Engine",
        Group::HuggingFace => "Backend huggingface",
        Group::VllmRemote => "Backend vllm_remote",
        Group::RemoteOpenai => "Backend remote_openai",
    }
}

fn argument(spec: &'static OptionSpec) -> Arg {
    let mut help = spec.help.to_string();
    match (spec.kind, spec.default) {
        (Kind::Choice(words), _) => help.push_str(&format!(" [{}]", words.join(", "))),
        (Kind::Text, Some(default)) | (Kind::Count(..) | Kind::Number(..), Some(default)) => help.push_str(&format!(" [{default}]")),
        _ => {}
    }
    if let Some(env) = spec.env {
        help.push_str(&format!(" (${env})"));
    }
    let flag = spec.flag().trim_start_matches("--").to_string();
    let argument = Arg::new(spec.key).long(flag).help(help).help_heading(heading(spec.group));
    match spec.kind {
        Kind::Switch => argument.action(ArgAction::SetTrue),
        _ => argument.value_name(value_name(spec.kind)).allow_hyphen_values(true).action(ArgAction::Append),
    }
}

fn value_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Count(..) | Kind::Number(..) => "N",
        Kind::Choice(_) => "WORD",
        Kind::Text | Kind::Switch => "TEXT",
    }
}

impl<const SERVER: bool> Args for Flags<SERVER> {
    fn augment_args(command: Command) -> Command {
        command.args(Self::options().map(argument))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<const SERVER: bool> FromArgMatches for Flags<SERVER> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Flags::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for spec in Self::options() {
            let value = match spec.kind {
                // The flag turns the default around: `--no-prefix-caching`, `--restart-on-failure`.
                Kind::Switch => matches.get_flag(spec.key).then(|| (spec.default != Some("true")).to_string()),
                // Given twice: the last one counts, except for keys and names, which add up.
                _ => matches.get_many::<String>(spec.key).and_then(|values| {
                    let values: Vec<&str> = values.map(String::as_str).collect();
                    if matches!(spec.key, "api_key" | "served_model_name") {
                        return Some(values.join(","));
                    }
                    values.last().map(|value| (*value).to_string())
                }),
            };
            if let Some(value) = value {
                self.values.insert(spec.key, value);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> BTreeMap<&'static str, String> {
        let command = Flags::<true>::augment_args(Command::new("pagoda").no_binary_name(true));
        let matches = command.try_get_matches_from(arguments).expect("arguments");
        Flags::<true>::from_arg_matches(&matches).expect("flags").values
    }

    #[test]
    fn flags_become_option_values() {
        let check = |arguments: &[&str], expected: &[(&'static str, &str)]| {
            let expected: BTreeMap<&'static str, String> = expected.iter().map(|(key, value)| (*key, value.to_string())).collect();
            assert_eq!(parse(arguments), expected, "{arguments:?}");
        };
        check(&[], &[]);
        check(&["--port", "1", "--port=2"], &[("port", "2")]);
        check(&["--api-key", "a", "--api-key", "b"], &[("api_key", "a,b")]);
        check(&["--no-prefix-caching", "--restart-on-failure"], &[("prefix_caching", "false"), ("restart_on_failure", "true")]);
        check(&["--port", "-5"], &[("port", "-5")]);
    }
}
