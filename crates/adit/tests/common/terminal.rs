use std::path::PathBuf;
use std::time::Duration;

use adit_lab::{Host, wait_for};

/// A shell on a host, in a terminal that is typed into and read from.
pub struct Terminal {
    host: Host,
    socket: PathBuf,
    pub name: String,
}

const PROMPT: &str = "ready>";
const COLUMNS: &str = "220";
const LINES: &str = "50";

impl Terminal {
    /// A terminal whose shell has `environment` set and is at its prompt.
    pub fn open(host: &Host, name: &str, environment: &[(&str, &str)]) -> Self {
        let socket = host.directory().join(format!("{name}.tmux"));
        let terminal = Self { host: host.clone(), socket, name: name.to_owned() };
        let mut new = host.command(terminal.tmux(&[
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            COLUMNS,
            "-y",
            LINES,
            // Shells that are not interactive forget the variable.
            &format!("PS1='{PROMPT} ' exec bash --norc --noprofile"),
        ]));
        for (key, value) in environment {
            new = new.env(*key, *value);
        }
        new.env("LC_ALL", "C.UTF-8").exec().unwrap();
        terminal.wait_for_prompt(Duration::from_secs(20));
        terminal
    }

    fn tmux(&self, words: &[&str]) -> Vec<String> {
        let socket = self.socket.display().to_string();
        ["tmux", "-S", &socket].iter().chain(words).map(|&word| word.to_owned()).collect()
    }

    /// Types a line and Enter.
    pub fn type_line(&self, line: &str) {
        self.host.exec(self.tmux(&["send-keys", "-l", line])).unwrap();
        self.press("Enter");
    }

    /// Presses a key: `Enter`, `C-c`.
    pub fn press(&self, key: &str) {
        self.host.exec(self.tmux(&["send-keys", key])).unwrap();
    }

    /// What is on the screen.
    pub fn screen(&self) -> String {
        self.host.exec(self.tmux(&["capture-pane", "-p", "-J"])).unwrap().stdout
    }

    /// Waits until `text` is on the screen; the screen then.
    pub fn wait_for(&self, text: &str, limit: Duration) -> String {
        let seen = wait_for(format!("{text:?} on {}", self.name), limit, || {
            Some(self.screen()).filter(|screen| screen.contains(text))
        });
        seen.unwrap_or_else(|error| panic!("{error}; on the screen is\n{}", self.screen()))
    }

    /// Waits until the shell is at its prompt again; the screen then.
    pub fn wait_for_prompt(&self, limit: Duration) -> String {
        let seen = wait_for(format!("the prompt of {}", self.name), limit, || {
            let screen = self.screen();
            let last = screen.trim_end().lines().last().unwrap_or_default().trim_end();
            (last == PROMPT).then_some(screen)
        });
        seen.unwrap_or_else(|error| panic!("{error}; on the screen is\n{}", self.screen()))
    }

    /// Types a line and waits for the prompt after it; what the line printed.
    pub fn run(&self, line: &str, limit: Duration) -> String {
        self.host.exec(self.tmux(&["send-keys", "-R"])).unwrap();
        self.host.exec(self.tmux(&["clear-history"])).unwrap();
        self.type_line(line);
        let shown = wait_for(format!("the end of {line:?}"), limit, || {
            let screen = self.screen();
            let (_, after) = screen.split_once(line)?;
            after.trim_end().ends_with(PROMPT).then(|| after.trim_end().trim_end_matches(PROMPT).to_owned())
        });
        shown.unwrap_or_else(|error| panic!("{error}; on the screen is\n{}", self.screen()))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.host.attempt(self.tmux(&["kill-server"]));
    }
}
