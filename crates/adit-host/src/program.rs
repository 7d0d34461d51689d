//! Programs of this host that do a part of the work, each with a limit of its time.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use adit_io::sys::end_group;
use rustix::fs::MemfdFlags;

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

/// For one program. `nft` takes milliseconds; a service manager ends a gateway after half a minute without a word.
const PATIENCE: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(1);
/// A killed process is gone at once, unless the kernel holds it.
const PAUSES_FOR_THE_KILLED: u32 = 500;

/// Runs a program without a shell, feeds it `input`, and fails with what it said.
pub(crate) fn run(path: &Path, arguments: &[&str], input: &str, doing: &str) -> Result<(), HostError> {
    run_within(PATIENCE, path, arguments, input, doing, None).map(drop)
}

/// Runs a program without a shell and returns what it wrote.
pub(crate) fn ask(path: &Path, arguments: &[&str], doing: &str) -> Result<Vec<u8>, HostError> {
    run_within(PATIENCE, path, arguments, "", doing, None)
}

/// Like [`run`], for a program that writes nothing: it holds `lock` until it ends, even when we are killed first.
pub(crate) fn run_locked(
    path: &Path,
    arguments: &[&str],
    input: &str,
    doing: &str,
    lock: &File,
) -> Result<(), HostError> {
    run_within(PATIENCE, path, arguments, input, doing, Some(lock)).map(drop)
}

fn run_within(
    limit: Duration,
    path: &Path,
    arguments: &[&str],
    input: &str,
    doing: &str,
    lock: Option<&File>,
) -> Result<Vec<u8>, HostError> {
    let failed = |said: String| HostError::ProgramFailed {
        doing: doing.to_owned(),
        program: path.display().to_string(),
        said,
    };
    let (mut stdout, mut stderr, ended) = Talk::with(input)
        .and_then(|talk| talk.run(limit, path, arguments, lock))
        .map_err(|error| failed(error.to_string()))?;
    let Some(status) = ended else {
        return Err(HostError::ProgramHung {
            doing: doing.to_owned(),
            program: path.display().to_string(),
            secs: limit.as_secs_f32(),
        });
    };
    match status.success() {
        true => read(&mut stdout).map_err(|error| failed(error.to_string())),
        false => Err(failed(first_line(&read(&mut stderr).unwrap_or_default(), &status.to_string()))),
    }
}

/// What a program reads and writes: files in memory, as nobody has to wait for those.
struct Talk {
    stdin: File,
    stdout: File,
    stderr: File,
}

impl Talk {
    fn with(input: &str) -> io::Result<Talk> {
        let file = || rustix::fs::memfd_create("adit-host", MemfdFlags::CLOEXEC).map(File::from);
        let mut talk = Talk { stdin: file()?, stdout: file()?, stderr: file()? };
        talk.stdin.write_all(input.as_bytes())?;
        talk.stdin.rewind()?;
        Ok(talk)
    }

    /// What it wrote, and how it ended; `None` for one that had to be killed.
    fn run(
        self,
        limit: Duration,
        path: &Path,
        arguments: &[&str],
        lock: Option<&File>,
    ) -> io::Result<(File, File, Option<ExitStatus>)> {
        let deadline = Instant::now() + limit;
        let mut child = Command::new(path)
            .args(arguments)
            .env_clear()
            .env("PATH", DIRECTORIES.join(":"))
            .env("LC_ALL", "C")
            .stdin(self.stdin)
            .stdout(lock.unwrap_or(&self.stdout).try_clone()?)
            .stderr(self.stderr.try_clone()?)
            // What a terminal sends to us is not for it.
            .process_group(0)
            .spawn()?;
        let ended = wait_until(deadline, &mut child)?;
        Ok((self.stdout, self.stderr, ended))
    }
}

fn wait_until(deadline: Instant, child: &mut Child) -> io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() > deadline {
            break;
        }
        thread::sleep(PAUSE);
    }
    // A group of its own: what it started goes with it.
    end_group(child.id()).or_else(|_| child.kill())?;
    for _ in 0..PAUSES_FOR_THE_KILLED {
        if child.try_wait()?.is_some() {
            break;
        }
        thread::sleep(PAUSE);
    }
    Ok(None)
}

fn read(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
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
        assert_eq!(ask(&sh, &["-c", "cat; echo told"], "try").unwrap(), b"told\n");
        assert_eq!(ask(&sh, &["-c", "head -c 300000 /dev/zero"], "try").unwrap().len(), 300_000);
    }

    #[test]
    fn a_program_that_does_not_end_is_killed_with_what_it_started() {
        let sh = find("sh").expect("sh");
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        let script = format!("sleep 600 & echo $! > {}; wait", file.display());
        let started = Instant::now();
        // More than a pipe holds, so that whoever feeds it would wait.
        let input = "x".repeat(200_000);
        let error =
            run_within(Duration::from_millis(500), &sh, &["-c", &script], &input, "try", None).unwrap_err();
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
        assert!(matches!(error, HostError::ProgramHung { .. }), "{error}");
        assert!(error.to_string().contains("did not end in 0.5 s"), "{error}");
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

    #[test]
    fn a_program_that_leaves_something_running_has_ended() {
        let sh = find("sh").expect("sh");
        let started = Instant::now();
        let told = ask(&sh, &["-c", "sleep 600 & echo $!"], "try").unwrap();
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
        let pid = String::from_utf8(told).unwrap();
        assert!(run(&sh, &["-c", &format!("kill {pid}")], "", "end it").is_ok());
    }

    #[test]
    fn a_program_is_found_only_in_the_fixed_directories() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program-at-all").is_none());
        assert!(find("../../etc/no-such-file").is_none());
    }
}
