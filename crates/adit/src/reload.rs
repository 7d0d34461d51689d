//! `adit reload`: running instances read their files again, without dropping a session.

use std::process::ExitCode;

use anyhow::bail;
use serde_json::json;

use crate::control::{self, Answer, Asked, Changes, ControlError, Verb};
use crate::home::Home;

/// What an instance says about having read its files again: to its log, and to whoever asked.
pub fn tell(asked: Option<Asked>, outcome: anyhow::Result<Changes>) {
    match &outcome {
        Ok(changes) => tracing::info!("configuration read again: {changes}"),
        Err(error) => tracing::error!("the configuration stays as it was: {error:#}"),
    }
    if let Some(asked) = asked {
        let failed = |error: anyhow::Error| Answer::Failed(format!("{error:#}"));
        asked.answer(outcome.map_or_else(failed, Answer::Reloaded));
    }
}

/// Lets the instance of `interface`, or every one of `home`, read its configuration again.
///
/// # Errors
/// One could not, or none runs; whoever could not goes on as it was.
pub fn run(home: &Home, interface: Option<&str>, json: bool) -> anyhow::Result<ExitCode> {
    let interfaces = match interface {
        Some(interface) => vec![interface.to_owned()],
        None => control::held(home)?,
    };
    if interfaces.is_empty() {
        bail!("nothing is running here, so there is nobody to read a file again");
    }
    let (mut pages, mut failures, mut silent) = (Vec::new(), Vec::new(), Vec::new());
    for name in interfaces {
        match control::request(home, &name, Verb::Reload) {
            Ok(Answer::Reloaded(changes)) => {
                if !json {
                    crate::print_line(&format!("{name}: {changes}"))?;
                }
                pages.push(json!({"interface": name, "ok": true, "changes": changes}));
            }
            Ok(other) => failures.push((name, format!("to reload it said {other:?}"))),
            Err(ControlError::NotRunning { .. }) if interface.is_none() => silent.push(name),
            Err(error) => failures.push((name, error.to_string())),
        }
    }
    if pages.is_empty() {
        // One that ended while others were asked is nobody's fault; when it was the only one, nothing was reloaded.
        let ended = |name| (name, "it was killed, so nothing reads the file again; start it anew".to_owned());
        failures.extend(silent.into_iter().map(ended));
    }
    if json {
        pages.extend(
            failures.iter().map(|(name, error)| json!({"interface": name, "ok": false, "error": error})),
        );
        crate::print_line(&json!({"schema": 1, "instances": pages}).to_string())?;
        return Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    match failures.as_slice() {
        [] => Ok(ExitCode::SUCCESS),
        failures => {
            let lines: Vec<String> =
                failures.iter().map(|(name, error)| format!("{name}: {error}")).collect();
            bail!("{}", lines.join("\n"))
        }
    }
}
