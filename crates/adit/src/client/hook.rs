//! The shell commands of a wg-quick file. They run as root, so only with `--allow-hooks`.

use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::config::wgquick::{Hook, HookTime};

/// Runs the hooks of `when` in order and stops at the first that fails. `%i` stands for the interface.
///
/// # Errors
/// A hook failed.
pub fn run(hooks: &[Hook], when: HookTime, interface: &str) -> anyhow::Result<()> {
    for hook in hooks.iter().filter(|hook| hook.when == when) {
        let command = hook.command.replace("%i", interface);
        tracing::info!(hook = when.key(), "running: {command}");
        let status = Command::new("/bin/sh")
            .args(["-c", &command])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .with_context(|| format!("cannot run /bin/sh for {}", when.key()))?;
        if !status.success() {
            bail!(
                "the {} hook `{command}` failed ({status}); correct it or remove it from the file",
                when.key()
            );
        }
    }
    Ok(())
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
}
