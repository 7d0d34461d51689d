//! `adit reload`: running instances read their files again, without dropping a session.

use std::process::ExitCode;

use anyhow::bail;
use serde_json::json;

use crate::control::{self, Answer, ControlError, Verb};
use crate::home::Home;

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
    let (mut pages, mut failures) = (Vec::new(), Vec::new());
    for name in interfaces {
        match control::request(home, &name, Verb::Reload) {
            Ok(Answer::Reloaded(changes)) => {
                if !json {
                    crate::print_line(&format!("{name}: {changes}"))?;
                }
                pages.push(json!({"interface": name, "ok": true, "changes": changes}));
            }
            Ok(other) => failures.push((name, format!("to reload it said {other:?}"))),
            Err(ControlError::NotRunning { .. }) if interface.is_none() => {}
            Err(error) => failures.push((name, error.to_string())),
        }
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
