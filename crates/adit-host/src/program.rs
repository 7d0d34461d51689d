use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::error::HostError;

const DIRECTORIES: &[&str] = &[
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
    "/usr/local/sbin",
    "/usr/local/bin",
    "/run/current-system/sw/bin",
];

/// The absolute path of a program, from a fixed list of directories; `PATH` is not asked.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    DIRECTORIES.iter().map(|directory| PathBuf::from(directory).join(name)).find(|path| path.is_file())
}

/// Runs a program without a shell, feeds it `input`, and fails with what it said.
pub(crate) fn run(path: &PathBuf, arguments: &[&str], input: &str, doing: &str) -> Result<(), HostError> {
    run_with(path, arguments, input, doing, Stdio::null()).map(drop)
}

/// Runs a program without a shell and returns what it wrote.
pub(crate) fn ask(path: &PathBuf, arguments: &[&str], doing: &str) -> Result<Vec<u8>, HostError> {
    run_with(path, arguments, "", doing, Stdio::piped())
}

/// Like [`run`], for a program that writes nothing: it holds `lock` until it ends, even when we are killed first.
pub(crate) fn run_locked(
    path: &PathBuf,
    arguments: &[&str],
    input: &str,
    doing: &str,
    lock: &File,
) -> Result<(), HostError> {
    let held = lock.try_clone().map_err(|error| HostError::kernel(doing, error))?;
    run_with(path, arguments, input, doing, Stdio::from(held)).map(drop)
}

fn run_with(
    path: &PathBuf,
    arguments: &[&str],
    input: &str,
    doing: &str,
    stdout: Stdio,
) -> Result<Vec<u8>, HostError> {
    let failed = |said: String| HostError::ProgramFailed {
        doing: doing.to_owned(),
        program: path.display().to_string(),
        said,
    };
    let mut child = Command::new(path)
        .args(arguments)
        .env_clear()
        .env("PATH", DIRECTORIES.join(":"))
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(stdout)
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends without reading its input says why on stderr.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(failed(first_line(&output.stderr, &output.status.to_string()))),
    }
}

fn first_line(stderr: &[u8], otherwise: &str) -> String {
    let text = String::from_utf8_lossy(stderr);
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or(otherwise).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_program_is_reported_with_its_own_words() {
        let sh = find("sh").expect("sh");
        assert!(run(&sh, &["-c", "cat >/dev/null"], "input", "try").is_ok());
        let error = run(&sh, &["-c", "echo no such thing >&2; exit 3"], "", "try").unwrap_err().to_string();
        assert!(error.starts_with("cannot try:") && error.contains("no such thing"), "{error}");
    }

    #[test]
    fn a_program_is_found_only_in_the_fixed_directories() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program-at-all").is_none());
        assert!(find("../../etc/no-such-file").is_none());
    }
}
