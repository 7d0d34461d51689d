use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ExitStatus};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::ending;
use crate::{LabError, Result, wait_for};

const TERM_GRACE: Duration = Duration::from_secs(3);

/// A running program; ended (SIGTERM, then SIGKILL) when dropped.
#[derive(Debug)]
pub struct Process {
    command: String,
    child: Child,
    /// Held open because agents end when their standard input closes.
    input: Option<ChildStdin>,
    out: PathBuf,
    err: PathBuf,
    detached: bool,
}

impl Process {
    pub(crate) fn new(
        command: String,
        mut child: Child,
        input: Option<&[u8]>,
        out: PathBuf,
        err: PathBuf,
    ) -> Self {
        let mut pipe = child.stdin.take();
        if let Some(bytes) = input {
            // A program that does not read its input has chosen not to.
            let _ = pipe.take().map(|mut pipe| pipe.write_all(bytes));
        }
        Self { command, child, input: pipe, out, err, detached: false }
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The command line it was started with.
    pub fn command(&self) -> &str {
        &self.command
    }

    /// Everything written to standard output so far.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.out).unwrap_or_default()).into_owned()
    }

    /// Everything written to standard error so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.err).unwrap_or_default()).into_owned()
    }

    /// How it ended, or `None` while it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits until standard output or standard error contains `text`; fails at once if the program ends without it.
    pub fn wait_for_text(&mut self, text: &str, deadline: Duration) -> Result<()> {
        let what = format!("`{}` to say {text:?}", self.command);
        let started = Instant::now();
        loop {
            let ended = self.ended();
            let (out, err) = (self.stdout(), self.stderr());
            if out.contains(text) || err.contains(text) {
                return Ok(());
            }
            if let Some(status) = ended {
                let (command, ended) =
                    (self.command.clone(), format!("{} before it said {text:?}", ending(status)));
                return Err(LabError::Failed {
                    command,
                    ended,
                    hint: crate::error::hint_for(&err),
                    stderr: err,
                });
            }
            if started.elapsed() > deadline {
                return Err(LabError::NeverHappened { what, after: deadline, detail: format!("{out}{err}") });
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the end; any exit code is fine. On a timeout the program goes on running.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        wait_for(format!("`{}` to end", self.command), deadline, || self.child.try_wait().ok().flatten())
    }

    /// Waits for the end and returns standard output; anything but exit code 0 is an error with its stderr.
    pub fn finish(&mut self, deadline: Duration) -> Result<String> {
        let status = self.wait(deadline)?;
        if status.success() {
            return Ok(self.stdout());
        }
        let stderr = self.stderr();
        let hint = crate::error::hint_for(&stderr);
        Err(LabError::Failed { command: self.command.clone(), ended: ending(status), stderr, hint })
    }

    /// Writes to its standard input, which stays open.
    pub fn send_input(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        let what = format!("write to `{}`", self.command);
        let written = match &mut self.input {
            Some(pipe) => pipe.write_all(bytes.as_ref()),
            None => Err(std::io::ErrorKind::BrokenPipe.into()),
        };
        written.map_err(LabError::io(what))
    }

    /// Closes its standard input, which tells an agent to finish its work.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// SIGTERM: asks it to end.
    pub fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// SIGKILL, as a crash would end it; returns when it is gone.
    pub fn crash(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Leaves it running when this guard is dropped.
    pub fn detach(&mut self) {
        self.detached = true;
    }

    /// SIGTERM, then SIGKILL after 3 s; returns when it is gone.
    pub fn end(&mut self) {
        if self.ended().is_some() {
            return;
        }
        self.terminate();
        if self.wait(TERM_GRACE).is_err() {
            self.crash();
        }
    }

    fn signal(&self, signal: Signal) {
        // An unreaped child keeps its id, so this cannot reach a stranger.
        let _ = kill(Pid::from_raw(self.child.id() as i32), signal);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.detached {
            self.end();
        }
    }
}

/// Fresh names for the output of `argv`: `NAME-COUNT.out` and `.err`.
pub(crate) fn log_files(directory: &Path, argv: &[String]) -> Result<(PathBuf, PathBuf)> {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let program = argv.first().map(Path::new).and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    let stem = format!("{program}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
    Ok((directory.join(format!("{stem}.out")), directory.join(format!("{stem}.err"))))
}
