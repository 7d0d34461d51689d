//! Other programs: finding them, running them, ending them in time.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The root of the checkout.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// The cargo that runs us, in the root of the checkout.
pub fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    command
}

/// The directory where cargo puts what it builds.
pub fn target_dir() -> Result<PathBuf> {
    let metadata = metadata(&["--no-deps"])?;
    Ok(metadata["target_directory"].as_str().context("cargo metadata names no target directory")?.into())
}

/// What `cargo metadata` says about the workspace.
pub fn metadata(args: &[&str]) -> Result<serde_json::Value> {
    let mut command = cargo(&["metadata", "--format-version=1", "--locked"]);
    let output = command.args(args).stderr(Stdio::inherit()).output().context("cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed: see above. If Cargo.lock is behind, run `cargo check` and commit it.");
    }
    serde_json::from_slice(&output.stdout).context("cargo metadata wrote something that is no JSON")
}

/// Where a program is, looking where an administrator's shell would.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let always = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    path.split(':').chain(always).filter(|dir| !dir.is_empty()).map(|dir| Path::new(dir).join(program)).find(
        |file| file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0),
    )
}

/// Whether we are root.
pub fn is_root() -> bool {
    let id = Command::new("id").arg("-u").stderr(Stdio::null()).output();
    id.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

/// Runs a command with our terminal and says whether it succeeded.
pub fn succeeds(command: &mut Command) -> Result<bool> {
    let shown = format!("{command:?}");
    Ok(command.stdin(Stdio::null()).status().with_context(|| format!("cannot run {shown}"))?.success())
}

/// Whether a command exists and works, in silence.
pub fn works(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// How a bounded run ended.
pub enum Ending {
    /// By itself.
    Exited(ExitStatus),
    /// It was ended after its deadline.
    TimedOut,
}

/// Runs a command in a process group of its own, its output in `log`, and ends the group after `deadline`.
pub fn run_bounded(command: &mut Command, log: &Path, deadline: Duration) -> Result<(Ending, String)> {
    let shown = format!("{command:?}");
    let out = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let err = out.try_clone()?;
    command.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0);
    let mut child = command.spawn().with_context(|| format!("cannot run {shown}"))?;
    let end = Instant::now() + deadline;
    let ending = loop {
        if let Some(status) = child.try_wait()? {
            break Ending::Exited(status);
        }
        if Instant::now() >= end {
            let group = format!("-{}", child.id());
            works(Command::new("kill").args(["-KILL", "--", &group]));
            child.wait()?;
            break Ending::TimedOut;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let mut bytes = Vec::new();
    File::open(log)?.read_to_end(&mut bytes)?;
    Ok((ending, String::from_utf8_lossy(&bytes).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("xtask-{}-{name}", std::process::id()))
    }

    #[test]
    fn a_bounded_run_keeps_both_outputs_and_the_exit_code() {
        let log = log("both");
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2; exit 3"]);
        let (ending, text) = run_bounded(&mut command, &log, Duration::from_secs(20)).unwrap();
        std::fs::remove_file(log).unwrap();
        assert!(matches!(ending, Ending::Exited(status) if status.code() == Some(3)));
        assert_eq!(text, "out\nerr\n");
    }

    #[test]
    fn a_run_past_its_deadline_is_ended_with_its_children() {
        let log = log("late");
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 100 & echo $!; wait"]);
        let (ending, text) = run_bounded(&mut command, &log, Duration::from_millis(500)).unwrap();
        std::fs::remove_file(log).unwrap();
        assert!(matches!(ending, Ending::TimedOut));
        let child = text.trim().to_owned();
        let gone = (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            let state = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            state.is_empty() || state.contains(") Z ")
        });
        assert!(gone, "the child {child} outlived the deadline");
    }

    #[test]
    fn programs_are_found_by_name_and_only_when_they_exist() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program-as-this").is_none());
    }
}
