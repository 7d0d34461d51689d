//! The shell commands of a wg-quick file. They run as root, so only with `--allow-hooks`.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use adit_io::sys::end_group;
use anyhow::{Context, bail};

use crate::config::wgquick::{Hook, HookTime};

/// How long all hooks of one time may take: until they end, nothing else is done.
pub const LIMIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(5);

/// Runs the hooks of `when` in order and stops at the first that fails. `%i` stands for the interface.
///
/// # Errors
/// A hook failed, or did not end and was killed with what it had started.
pub fn run(hooks: &[Hook], when: HookTime, interface: &str) -> anyhow::Result<()> {
    run_within(LIMIT, hooks, when, interface)
}

fn run_within(limit: Duration, hooks: &[Hook], when: HookTime, interface: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    for hook in hooks.iter().filter(|hook| hook.when == when) {
        let command = hook.command.replace("%i", interface);
        tracing::info!(hook = when.key(), "running: {command}");
        let mut child = Command::new("/bin/sh")
            .args(["-c", &command])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot run /bin/sh for {}", when.key()))?;
        let ended = wait_until(deadline, &mut child);
        let Some(status) = ended.with_context(|| format!("cannot wait for the {} hook", when.key()))? else {
            bail!(
                "the {} hook `{command}` did not end (all hooks of one time have {} s) and was killed; correct it, or \
                 have it start in the background (`&`) what is to go on",
                when.key(),
                limit.as_secs_f32()
            );
        };
        if !status.success() {
            bail!(
                "the {} hook `{command}` failed ({status}); correct it or remove it from the file",
                when.key()
            );
        }
    }
    Ok(())
}

/// `None` for one that had to be killed.
fn wait_until(deadline: Instant, child: &mut Child) -> io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() > deadline {
            // A group of its own: what the shell started goes with it.
            end_group(child.id()).or_else(|_| child.kill())?;
            return child.wait().map(|_| None);
        }
        thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(when: HookTime, command: String) -> Hook {
        Hook { when, command }
    }

    #[test]
    fn hooks_run_in_order_at_their_time_until_one_fails() {
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("out").display().to_string();
        let hooks = [
            hook(HookTime::PostUp, format!("echo first %i >> {out}")),
            hook(HookTime::PreUp, format!("echo early >> {out}")),
            hook(HookTime::PostUp, "exit 3".to_owned()),
            hook(HookTime::PostUp, format!("echo never >> {out}")),
        ];
        let error = run(&hooks, HookTime::PostUp, "adit9").unwrap_err();
        assert!(error.to_string().contains("`exit 3` failed"), "{error}");
        assert_eq!(std::fs::read_to_string(&out).unwrap(), "first adit9\n");
        run(&hooks, HookTime::PreUp, "adit9").unwrap();
        assert_eq!(std::fs::read_to_string(&out).unwrap(), "first adit9\nearly\n");
        run(&hooks, HookTime::PreDown, "adit9").unwrap();
    }

    #[test]
    fn a_hook_that_does_not_end_is_killed_with_what_it_started() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        let hooks = [hook(HookTime::PostUp, format!("sleep 600 & echo $! > {}; wait", file.display()))];
        let started = Instant::now();
        let limit = Duration::from_millis(500);
        let error = run_within(limit, &hooks, HookTime::PostUp, "adit9").unwrap_err().to_string();
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
        assert!(error.contains("PostUp hook `sleep 600 &") && error.contains("did not end"), "{error}");
        let pid = std::fs::read_to_string(&file).unwrap();
        let is_gone = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
            stat.is_err() || stat.is_ok_and(|it| it.contains(") Z "))
        };
        while !is_gone() {
            assert!(started.elapsed() < Duration::from_secs(20), "process {pid} lives");
            thread::sleep(PAUSE);
        }
    }
}
