//! What clap finds wrong with the arguments and variables, in one line: what was given, and what would be right.

use std::{env, ffi::OsString};

use clap::{
    Arg, Command,
    error::{ContextKind, ContextValue, ErrorKind},
};

use super::error::{one_of, quoted_without_secrets};
use crate::upstream::without_secrets;

/// Says what is wrong. `arguments` are those of the process; the first is its own name.
pub fn explain(error: &clap::Error, command: &Command, arguments: &[OsString]) -> String {
    let line = match error.kind() {
        ErrorKind::ValueValidation | ErrorKind::InvalidValue => value(error, command, arguments),
        ErrorKind::UnknownArgument => unknown_argument(error, command, arguments),
        ErrorKind::TooManyValues => value_of_switch(error, command, arguments),
        ErrorKind::InvalidSubcommand => unknown_command(error),
        // Without a command, what follows a flag is taken for one.
        ErrorKind::ArgumentConflict => text(error, ContextKind::InvalidSubcommand)
            .filter(|name| command.find_subcommand(name).is_none())
            .map(|name| {
                let after_switch = after_switch(&name, command, arguments);
                after_switch
                    .unwrap_or_else(|| format!("{name} is no argument here; see tallyring --help"))
            }),
        _ => None,
    };
    line.unwrap_or_else(|| {
        // clap writes several paragraphs; the first says what is wrong.
        let text = error.to_string();
        let message = text.strip_prefix("error: ").unwrap_or(&text);
        let first = message.split("\n\n").next().unwrap_or(message);
        let words = first.split_whitespace().collect::<Vec<_>>().join(" ");
        format!("{}; see tallyring --help", quoted_without_secrets(&words))
    })
}

/// A value that does not fit, of a flag or of its variable.
fn value(error: &clap::Error, command: &Command, arguments: &[OsString]) -> Option<String> {
    let flag = text(error, ContextKind::InvalidArg)?;
    let flag = flag.split([' ', '=']).next()?;
    let value = text(error, ContextKind::InvalidValue).filter(|value| !value.is_empty())?;
    let problem = match (std::error::Error::source(error), error.get(ContextKind::ValidValue)) {
        (Some(problem), _) => problem.to_string(),
        (None, Some(ContextValue::Strings(words))) => format!("it must be {}", one_of(words)),
        _ => return None,
    };
    let is_given = arguments.iter().any(|argument| {
        let argument = argument.to_string_lossy();
        argument.strip_prefix(flag).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    });
    let variable = variable_of(flag, command, arguments);
    Some(match variable.filter(|_| !is_given) {
        Some(variable) => format!("{variable}={value}: {problem}"),
        None => format!("{flag} {value}: {problem}"),
    })
}

/// A switch that was given a value.
fn value_of_switch(
    error: &clap::Error,
    command: &Command,
    arguments: &[OsString],
) -> Option<String> {
    let flag = text(error, ContextKind::InvalidArg)?;
    let value = text(error, ContextKind::InvalidValue)?;
    about_switch(&flag, command, arguments).map(|about| format!("{flag}={value}: {about}"))
}

/// An argument that follows a switch, as if it were its value.
fn after_switch(argument: &str, command: &Command, arguments: &[OsString]) -> Option<String> {
    let place = arguments.iter().position(|given| given.to_string_lossy() == argument)?;
    let before = arguments.get(place.checked_sub(1)?)?.to_string_lossy();
    let about = about_switch(&before, command, arguments)?;
    Some(format!("{argument} is no argument here; {about}"))
}

/// How a switch is given, if this flag is one.
fn about_switch(flag: &str, command: &Command, arguments: &[OsString]) -> Option<String> {
    let argument = argument_of(flag, command, arguments)?;
    if argument.get_action().takes_values() {
        return None;
    }
    let variable = argument
        .get_env()
        .map(|variable| format!("; its variable {} takes yes or no", variable.to_string_lossy()));
    Some(format!(
        "{flag} takes no value: it is on where it is given, and off without it{}",
        variable.unwrap_or_default()
    ))
}

/// A flag of the called command.
fn argument_of<'a>(flag: &str, command: &'a Command, arguments: &[OsString]) -> Option<&'a Arg> {
    let name = flag.strip_prefix("--")?;
    let mut called = command;
    for name in arguments.iter().skip(1) {
        let Some(named) = called.find_subcommand(name) else { break };
        called = named;
    }
    called.get_arguments().find(|one| one.get_long() == Some(name))
}

/// The variable of a flag of the called command, if it is set.
fn variable_of(flag: &str, command: &Command, arguments: &[OsString]) -> Option<String> {
    let variable = argument_of(flag, command, arguments)?.get_env()?;
    env::var_os(variable).map(|_| variable.to_string_lossy().into_owned())
}

fn unknown_argument(
    error: &clap::Error,
    command: &Command,
    arguments: &[OsString],
) -> Option<String> {
    let argument = text(error, ContextKind::InvalidArg)?;
    if let Some(line) = after_switch(&argument, command, arguments) {
        return Some(line);
    }
    let name = argument.strip_prefix("--");
    let others = command
        .get_subcommands()
        .filter(|other| other.get_arguments().any(|one| name.is_some() && one.get_long() == name));
    let others: Vec<String> =
        others.map(|other| format!("tallyring {}", other.get_name())).collect();
    let hint = match text(error, ContextKind::SuggestedArg) {
        _ if !others.is_empty() => format!("it is a flag of {}", one_of(&others)),
        Some(nearest) => format!("did you mean {nearest}?"),
        None => String::from("see tallyring --help"),
    };
    Some(format!("{argument} is no argument here; {hint}"))
}

fn unknown_command(error: &clap::Error) -> Option<String> {
    let command = text(error, ContextKind::InvalidSubcommand)?;
    let hint = match error.get(ContextKind::SuggestedSubcommand) {
        Some(ContextValue::Strings(nearest)) if !nearest.is_empty() => {
            format!("did you mean {}?", one_of(nearest))
        }
        _ => String::from("see tallyring --help"),
    };
    Some(format!("{command} is no command; {hint}"))
}

/// What clap knows of the error, without secrets: it may be a URL.
fn text(error: &clap::Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(without_secrets(text)),
        _ => None,
    }
}
