//! `adit down`: the end of a tunnel or gateway, also of one that was killed.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;

use super::{hook, interface_of};
use crate::control::{self, Answer, ControlError, Verb};
use crate::daemon::PidFile;
use crate::home::Home;
use crate::{device, lockdown, privilege, verify};

/// Ends the instance of `name` (an interface or a `.conf` file; the only one there is when not given) and
/// puts the host back, from the journal when its process was killed.
///
/// # Errors
/// Nothing is up, or the host could not be put back.
pub fn down(home: &Home, name: Option<&str>) -> anyhow::Result<ExitCode> {
    privilege::require_root("down")?;
    verify::mend_leftovers(home);
    let interface = match name {
        Some(name) if name.ends_with(".conf") => interface_of(Path::new(name))?.to_string(),
        Some(name) => name.to_owned(),
        None => the_only_one(home)?,
    };
    let pid_path = control::pid_path(home, &interface);
    match control::request(home, &interface, Verb::Down) {
        Ok(Answer::Stopping) => {}
        Ok(other) => bail!("{interface} was asked to end and said {other:?}"),
        Err(ControlError::NotRunning { .. }) => {
            if let Some(pid) = PidFile::holder(&pid_path) {
                bail!("process {pid} runs {interface} and does not answer; end it with `kill {pid}`");
            }
            return clean_up(home, &interface);
        }
        // It may have ended by itself while it was asked.
        Err(ControlError::NoAnswer { .. }) if ends_soon(&pid_path) => {}
        Err(error) => return Err(error.into()),
    }
    let deadline = Instant::now() + STOP_TIMEOUT;
    while let Some(pid) = PidFile::holder(&pid_path) {
        if Instant::now() > deadline {
            bail!(
                "process {pid} of {interface} did not end in {} s; end it with `kill -9 {pid}`, \
                 then run `adit down {interface}{}` again",
                STOP_TIMEOUT.as_secs(),
                home.flag()
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    device::clean_up_after(&control::journal_path(home, &interface))?;
    eprintln!("{interface} is down");
    Ok(ExitCode::SUCCESS)
}

fn ends_soon(pid_path: &Path) -> bool {
    (0..50).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        PidFile::holder(pid_path).is_none()
    })
}

/// Hooks before and after, and between them a service of the host that keeps us waiting.
const STOP_TIMEOUT: Duration = Duration::from_secs(20 + 2 * hook::LIMIT.as_secs());

fn the_only_one(home: &Home) -> anyhow::Result<String> {
    let mut names = control::interfaces(home)?;
    names.extend(control::journals(home)?);
    names.sort();
    names.dedup();
    match names.as_slice() {
        [name] => Ok(name.clone()),
        [] => bail!("nothing is up here; `adit up FILE.conf{}` brings a tunnel up", home.flag()),
        names => {
            bail!("several are up: {}; name one: `adit down {}{}`", names.join(", "), names[0], home.flag())
        }
    }
}

fn clean_up(home: &Home, interface: &str) -> anyhow::Result<ExitCode> {
    let journal = control::journal_path(home, interface);
    let socket = control::socket_path(home, interface);
    if !journal.exists() && !socket.exists() {
        bail!("{interface} is not up; `adit status{}` lists what is", home.flag());
    }
    lockdown::resume(home, interface)?;
    let report = device::clean_up_after(&journal)?;
    lockdown::forget(home, interface);
    for leftover in [socket, control::pid_path(home, interface)] {
        let _ = std::fs::remove_file(leftover);
    }
    eprintln!("{interface} had been killed; {} changes to this host were undone", report.undone.len());
    for line in report.left_alone.iter().chain(&report.warnings) {
        eprintln!("warning: {line}");
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn down_without_a_name_needs_exactly_one_to_mean() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::new(Some(directory.path())).unwrap();
        home.create().unwrap();
        assert!(the_only_one(&home).unwrap_err().to_string().contains("nothing is up"));
        std::fs::write(home.run_dir.join("a.sock"), "").unwrap();
        std::fs::write(home.state_dir.join("a.journal"), "").unwrap();
        assert_eq!(the_only_one(&home).unwrap(), "a");
        std::fs::write(home.run_dir.join("b.sock"), "").unwrap();
        assert!(the_only_one(&home).unwrap_err().to_string().contains("a, b"));
    }
}
