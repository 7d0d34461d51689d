//! Programs run by absolute path, with a clean environment and a deadline.

use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::hint_for;
use crate::process::Process;
use crate::{LabError, Result};

const SEARCHED: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const DEADLINE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(2);
/// How long to wait for the pipes of an ended program: a daemon it left behind may hold them open for ever.
const PIPE_GRACE: Duration = Duration::from_millis(200);

/// The absolute path of a system program, looked up in a fixed list of directories.
pub fn find_tool(tool: &str) -> Result<PathBuf> {
    if tool.starts_with('/') && Path::new(tool).exists() {
        return Ok(PathBuf::from(tool));
    }
    SEARCHED
        .split(':')
        .map(|directory| Path::new(directory).join(tool))
        .find(|path| path.is_file())
        .ok_or_else(|| LabError::MissingTool {
            tool: tool.to_owned(),
            searched: SEARCHED,
            package: package_of(tool),
        })
}

fn package_of(tool: &str) -> &'static str {
    match tool {
        "ip" | "tc" | "ss" => "iproute2",
        "nft" => "nftables",
        "ping" => "iputils-ping",
        "wg" | "wg-quick" => "wireguard-tools",
        "tcpdump" => "tcpdump",
        "ethtool" => "ethtool",
        _ => "the package that holds it",
    }
}

/// What a program that ended left behind.
#[derive(Debug, Clone)]
pub struct Output {
    pub command: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Output {
    /// True when the program ended with exit code 0.
    pub fn ok(&self) -> bool {
        self.status.success()
    }

    /// The exit code, if no signal ended the program.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The standard output read as JSON.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.stdout)
            .map_err(|error| LabError::malformed(format!("the output of `{}`", self.command), error))
    }

    /// Itself when the program succeeded, else the error that names the command and shows its stderr.
    pub fn success(self) -> Result<Self> {
        if self.ok() {
            return Ok(self);
        }
        Err(LabError::Failed {
            ended: ending(self.status),
            hint: hint_for(&self.stderr),
            stderr: if self.stderr.trim().is_empty() { self.stdout } else { self.stderr },
            command: self.command,
        })
    }
}

pub(crate) fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended strangely".to_owned(),
    }
}

/// A program about to be run: arguments, environment, input and deadline.
#[derive(Clone)]
pub struct Invocation {
    wrapper: Vec<String>,
    argv: Vec<String>,
    environment: Vec<(String, String)>,
    input: Option<Vec<u8>>,
    deadline: Duration,
    log_directory: PathBuf,
}

impl Invocation {
    /// `argv` run as it is, in the caller's network namespace.
    pub fn new<I, S>(argv: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        Self {
            wrapper: Vec::new(),
            argv: argv.into_iter().map(Into::into).collect(),
            environment: Vec::new(),
            input: None,
            deadline: DEADLINE,
            log_directory: std::env::temp_dir(),
        }
    }

    pub(crate) fn wrapped(mut self, wrapper: Vec<String>, log_directory: &Path) -> Self {
        self.wrapper = wrapper;
        self.log_directory = log_directory.to_owned();
        self
    }

    /// One more argument.
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.argv.push(argument.into());
        self
    }

    /// One more environment variable.
    pub fn env(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.environment.push((key.into(), value.into()));
        self
    }

    /// What the program reads on its standard input; without it the input is empty.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Some(bytes.into());
        self
    }

    /// How long [`Self::attempt`] and [`Self::exec`] wait before they kill the program (20 s unless told).
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Runs to the end; any exit code is fine.
    pub fn attempt(self) -> Result<Output> {
        let started = Instant::now();
        let mut child = self.start(Stdio::piped(), Stdio::piped(), self.input.is_some())?;
        if let (Some(mut pipe), Some(input)) = (child.stdin.take(), self.input.clone()) {
            thread::spawn(move || pipe.write_all(&input));
        }
        let stdout = Collected::from(child.stdout.take());
        let stderr = Collected::from(child.stderr.take());
        let status = loop {
            if let Some(status) = child.try_wait().map_err(LabError::io(format!("wait for `{self}`")))? {
                break status;
            }
            if started.elapsed() > self.deadline {
                let _ = child.kill();
                let _ = child.wait();
                let stderr = stderr.text();
                return Err(LabError::TimedOut { command: self.to_string(), after: self.deadline, stderr });
            }
            thread::sleep(POLL);
        };
        let took = started.elapsed();
        Ok(Output { command: self.to_string(), status, stdout: stdout.text(), stderr: stderr.text(), took })
    }

    /// Runs to the end; anything but exit code 0 is an error.
    pub fn exec(self) -> Result<Output> {
        self.attempt()?.success()
    }

    /// Starts the program and returns; stdout and stderr go to files that are readable while it runs.
    pub fn spawn(self) -> Result<Process> {
        let (out, err) = crate::process::log_files(&self.log_directory, &self.argv)?;
        let open =
            |path: &Path| File::create(path).map_err(LabError::io(format!("create {}", path.display())));
        let child = self.start(open(&out)?.into(), open(&err)?.into(), true)?;
        Ok(Process::new(self.to_string(), child, self.input.as_deref(), out, err))
    }

    fn start(&self, stdout: Stdio, stderr: Stdio, piped_input: bool) -> Result<Child> {
        let words = self.resolved()?;
        let (program, arguments) = words.split_first().expect("an invocation has a program");
        Command::new(program)
            .args(arguments)
            .env_clear()
            .env("PATH", SEARCHED)
            .env("HOME", "/root")
            .env("LC_ALL", "C")
            .envs(std::env::var("RUST_BACKTRACE").ok().map(|value| ("RUST_BACKTRACE", value)))
            .envs(self.environment.iter().map(|(key, value)| (key, value)))
            .stdin(if piped_input { Stdio::piped() } else { Stdio::null() })
            .stdout(stdout)
            .stderr(stderr)
            .process_group(0)
            .spawn()
            .map_err(|source| LabError::NotStarted { command: self.to_string(), source })
    }

    fn resolved(&self) -> Result<Vec<String>> {
        let mut words = Vec::with_capacity(self.wrapper.len() + self.argv.len());
        for part in [&self.wrapper, &self.argv] {
            if let Some((program, arguments)) = part.split_first() {
                words.push(find_tool(program)?.display().to_string());
                words.extend(arguments.iter().cloned());
            }
        }
        Ok(words)
    }
}

impl fmt::Display for Invocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, word) in self.wrapper.iter().chain(&self.argv).enumerate() {
            let gap = if position == 0 { "" } else { " " };
            match word.is_empty()
                || word.contains(|c: char| c.is_whitespace() || "'\"$&|;<>()*?#".contains(c))
            {
                true => write!(f, "{gap}'{}'", word.replace('\'', r"'\''"))?,
                false => write!(f, "{gap}{word}")?,
            }
        }
        Ok(())
    }
}

/// Everything a pipe delivers, gathered by a thread so that a full pipe never blocks the program.
struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<thread::JoinHandle<()>>,
}

impl<R: Read + Send + 'static> From<Option<R>> for Collected {
    fn from(pipe: Option<R>) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&bytes);
        let reader = pipe.map(|mut pipe| {
            thread::spawn(move || {
                let mut buffer = [0; 8192];
                while let Ok(length @ 1..) = pipe.read(&mut buffer) {
                    sink.lock().expect("no panic while collecting").extend_from_slice(&buffer[..length]);
                }
            })
        });
        Self { bytes, reader }
    }
}

impl Collected {
    fn text(self) -> String {
        let patience = Instant::now();
        while self.reader.as_ref().is_some_and(|reader| !reader.is_finished())
            && patience.elapsed() < PIPE_GRACE
        {
            thread::sleep(POLL);
        }
        String::from_utf8_lossy(&self.bytes.lock().expect("no panic while collecting")).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_outlives_its_deadline_is_killed_and_one_within_it_is_not() {
        let late = Invocation::new(["sleep", "30"]).deadline(Duration::from_millis(100)).exec().unwrap_err();
        assert!(matches!(late, LabError::TimedOut { .. }), "{late}");
        assert!(Invocation::new(["sleep", "0.05"]).deadline(Duration::from_secs(10)).exec().is_ok());
    }

    #[test]
    fn a_failure_names_the_command_and_shows_what_it_said() {
        let error = Invocation::new(["ls", "/nowhere at all"]).exec().unwrap_err().to_string();
        assert!(error.contains("`ls '/nowhere at all'` ended with exit code 2"), "{error}");
        assert!(error.contains("No such file or directory"), "{error}");
        assert_eq!(Invocation::new(["ls", "/nowhere at all"]).attempt().unwrap().code(), Some(2));
    }

    #[test]
    fn a_missing_program_says_what_to_install() {
        let error = find_tool("wg-quick-of-nobody").unwrap_err().to_string();
        assert!(error.contains("is not installed"), "{error}");
        assert!(find_tool("sh").is_ok());
    }

    #[test]
    fn a_daemon_that_keeps_the_pipes_open_does_not_hold_up_its_starter() {
        let output = Invocation::new(["sh", "-c", "echo started; sleep 3 & exit 0"]).exec().unwrap();
        assert_eq!(output.stdout, "started\n");
        assert!(output.took < Duration::from_secs(2));
    }

    #[test]
    fn input_larger_than_a_pipe_reaches_the_program() {
        let input = vec![b'x'; 300_000];
        let output = Invocation::new(["wc", "-c"]).input(input).exec().unwrap();
        assert_eq!(output.stdout.trim(), "300000");
    }

    #[test]
    fn the_callers_environment_does_not_leak_into_programs() {
        let output = Invocation::new(["env"]).env("ADIT_LAB_TEST", "1").exec().unwrap();
        assert!(output.stdout.contains("ADIT_LAB_TEST=1"));
        assert!(!output.stdout.contains("CARGO"), "{}", output.stdout);
    }
}
