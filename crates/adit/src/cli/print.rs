//! The verbs that only print what the program knows about itself.

use std::path::Path;
use std::process::ExitCode;

pub(super) fn version(json: bool) -> anyhow::Result<ExitCode> {
    let version = env!("CARGO_PKG_VERSION");
    if json {
        crate::print_line(&serde_json::json!({"schema": 1, "name": "adit", "version": version}).to_string())?;
    } else {
        crate::print_line(&format!("adit {version}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn completions(shell: clap_complete::Shell) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut super::command(), "adit", &mut script);
    crate::print_line(String::from_utf8_lossy(&script).trim_end())?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn man(all: Option<&Path>) -> anyhow::Result<ExitCode> {
    match all {
        Some(directory) => {
            std::fs::create_dir_all(directory)?;
            clap_mangen::generate_to(super::command(), directory)?;
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(super::command()).render(&mut page)?;
            crate::print_line(String::from_utf8_lossy(&page).trim_end())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
