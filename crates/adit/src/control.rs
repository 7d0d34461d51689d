//! The control socket of a running instance: one JSON object per line, asked and answered.
//!
//! ```text
//!   adit status ─┐                        ┌─ instance (main thread)
//!   adit down  ──┼─► HOME/run/adit0.sock ─┤   status | reload | down
//!   peer add  ───┘   {"schema":1,…}\n     └─ answers before the client's patience ends
//! ```

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use serde::{Deserialize, Serialize};

use crate::daemon::{self, PidFile};
use crate::home::Home;
use crate::socket::{Patience, PrivateSocket, Requests, SocketError, answer as send};
use crate::status::{Report, Role};

/// The version of the requests and answers.
pub const SCHEMA: u32 = 1;

/// What an instance can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// How it is.
    Status,
    /// To read its configuration again.
    Reload,
    /// To undo everything and end.
    Down,
    /// To let the processes of a group go beside its tunnel.
    Exclude,
}

/// What an instance answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// How it is.
    Status(Box<Report>),
    /// What it changed.
    Reloaded(Changes),
    /// It is about to end.
    Stopping,
    /// What a process writes its number to, to go beside the tunnel.
    Beside(PathBuf),
    /// It could not do what was asked, and why.
    Failed(String),
}

/// What a reload did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// Peers that are new, by name or key.
    pub added: Vec<String>,
    /// Peers with another setting.
    pub changed: Vec<String>,
    /// Peers that are gone; their sessions are cut.
    pub removed: Vec<String>,
    /// Settings that changed and take effect only with a restart.
    pub needs_restart: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    schema: u32,
    #[serde(flatten)]
    content: T,
}

#[derive(Serialize, Deserialize)]
struct Question {
    request: Verb,
}

/// A question that waits for its answer.
#[derive(Debug)]
pub struct Asked {
    /// What is asked.
    pub verb: Verb,
    reply: Sender<Answer>,
}

impl Asked {
    /// A question, and where its answer will be.
    pub fn new(verb: Verb) -> (Self, Receiver<Answer>) {
        let (reply, answer) = bounded(1);
        (Self { verb, reply }, answer)
    }

    /// Answers; a client that is gone already misses nothing.
    pub fn answer(self, answer: Answer) {
        let _ = self.reply.try_send(answer);
    }
}

/// Why an instance gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens.
    #[error("nothing runs behind {}", path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// Only the owner may ask.
    #[error("{} is for root only; run the same command with sudo", path.display())]
    Forbidden {
        /// The socket.
        path: PathBuf,
    },
    /// It answered with something else, or not in time.
    #[error("{} gave no answer that can be read ({reason}); its log tells more", path.display())]
    NoAnswer {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// Something has stopped its process.
    #[error(
        "the process {pid} of {interface} stands still: a signal has stopped it (`adit verify` does so for a moment). \
         `kill -CONT {pid}` lets it go on; then say this again"
    )]
    StandsStill {
        /// The process.
        pid: u32,
        /// What it runs.
        interface: String,
    },
    /// The instance could not do it.
    #[error("{0}")]
    Refused(String),
}

/// The control socket of `interface`.
pub fn socket_path(home: &Home, interface: &str) -> PathBuf {
    home.run_dir.join(format!("{interface}.sock"))
}

/// The pid file of `interface`.
pub fn pid_path(home: &Home, interface: &str) -> PathBuf {
    home.run_dir.join(format!("{interface}.pid"))
}

/// The journal of what `interface` changed on the host.
pub fn journal_path(home: &Home, interface: &str) -> PathBuf {
    home.state_dir.join(format!("{interface}.journal"))
}

/// The interfaces of `home` that have a control socket, in order.
///
/// # Errors
/// The directory may not be read.
pub fn interfaces(home: &Home) -> io::Result<Vec<String>> {
    names_with(&home.run_dir, ".sock")
}

/// The interfaces of `home` that a process has (or had, when it was killed), in order; a process that
/// is starting or ending has no control socket.
///
/// # Errors
/// The directory may not be read.
pub fn held(home: &Home) -> io::Result<Vec<String>> {
    let mut names = names_with(&home.run_dir, ".pid")?;
    names.extend(interfaces(home)?);
    names.sort();
    names.dedup();
    Ok(names)
}

/// The interfaces of `home` that left a journal, in order.
///
/// # Errors
/// The directory may not be read.
pub fn journals(home: &Home) -> io::Result<Vec<String>> {
    names_with(&home.state_dir, ".journal")
}

fn names_with(directory: &Path, suffix: &str) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        if let Some(name) = entry?.file_name().to_str().and_then(|name| name.strip_suffix(suffix)) {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

const CLIENTS_MAX: usize = 16;
const QUESTIONS_MAX: usize = 16;

const SERVER_PATIENCE: Patience =
    Patience { idle: Duration::from_secs(5), request: Duration::from_secs(20), bytes_max: 4096 };

/// An answer lists every peer: a gateway has thousands.
const CLIENT_PATIENCE: Patience =
    Patience { idle: Duration::from_secs(20), request: Duration::from_secs(20), bytes_max: 64 << 20 };

/// Longer than an instance may be at its hooks: what is to end waits for them.
const DOWN_PATIENCE: Duration = Duration::from_secs(45);

/// Opens the control socket of `interface`; questions arrive on the channel.
///
/// # Errors
/// [`SocketError`].
pub fn open(home: &Home, interface: &str) -> Result<(PrivateSocket, Receiver<Asked>), SocketError> {
    let path = socket_path(home, interface);
    let socket = PrivateSocket::bind(&path)?;
    let (sender, questions) = bounded(QUESTIONS_MAX);
    socket
        .serve(CLIENTS_MAX, move |stream| {
            if let Err(error) = talk(&stream, &sender) {
                tracing::debug!(%error, "a conversation on the control socket ended early");
            }
        })
        .map_err(|source| SocketError::System { path, source })?;
    Ok((socket, questions))
}

fn talk(stream: &UnixStream, questions: &Sender<Asked>) -> Result<(), crate::socket::TalkError> {
    let mut requests = Requests::new(stream, b"\n", SERVER_PATIENCE);
    while let Some(line) = requests.next_request()? {
        let answer = match serde_json::from_slice(&line) {
            Ok(Envelope { schema: SCHEMA, content: Question { request } }) => {
                ask_instance(questions, request)
            }
            Ok(Envelope { schema, .. }) => {
                Answer::Failed(format!("this adit speaks schema {SCHEMA}, not {schema}"))
            }
            Err(error) => Answer::Failed(format!("the request cannot be read: {error}")),
        };
        send(stream, SERVER_PATIENCE, &encode(answer))?;
    }
    Ok(())
}

fn ask_instance(questions: &Sender<Asked>, verb: Verb) -> Answer {
    let (asked, answer) = Asked::new(verb);
    let patience = if verb == Verb::Down { DOWN_PATIENCE } else { SERVER_PATIENCE.request };
    let busy = || Answer::Failed("it is busy and did not answer; try again".to_owned());
    match questions.try_send(asked) {
        Ok(()) => match answer.recv_timeout(patience) {
            Ok(answer) => answer,
            // It ended meanwhile, by itself.
            Err(RecvTimeoutError::Disconnected) if verb == Verb::Down => Answer::Stopping,
            Err(_) => busy(),
        },
        Err(_) => busy(),
    }
}

fn encode<T: Serialize>(content: T) -> Vec<u8> {
    let mut line = serde_json::to_vec(&Envelope { schema: SCHEMA, content }).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Asks the instance of `interface`.
///
/// # Errors
/// [`ControlError`].
pub fn request(home: &Home, interface: &str, verb: Verb) -> Result<Answer, ControlError> {
    let path = socket_path(home, interface);
    let no_answer = |reason: String| ControlError::NoAnswer { path: path.clone(), reason };
    let stream = UnixStream::connect(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ControlError::NotRunning { path: path.clone() }
        }
        io::ErrorKind::PermissionDenied => ControlError::Forbidden { path: path.clone() },
        _ => no_answer(error.to_string()),
    })?;
    wait_while_it_stands_still(home, interface)?;
    send(&stream, CLIENT_PATIENCE, &encode(Question { request: verb }))
        .map_err(|error| no_answer(error.to_string()))?;
    let patience = match verb {
        Verb::Down => {
            let longer = DOWN_PATIENCE + SERVER_PATIENCE.idle;
            Patience { idle: longer, request: longer, ..CLIENT_PATIENCE }
        }
        _ => CLIENT_PATIENCE,
    };
    let line = Requests::new(&stream, b"\n", patience)
        .next_request()
        .map_err(|error| no_answer(error.to_string()))?
        .ok_or_else(|| no_answer("it hung up".to_owned()))?;
    match serde_json::from_slice(&line) {
        Ok(Envelope { content: Answer::Failed(reason), .. }) => Err(ControlError::Refused(reason)),
        Ok(Envelope { schema: SCHEMA, content }) => Ok(content),
        Ok(Envelope { schema, .. }) => Err(no_answer(format!("it speaks schema {schema}, not {SCHEMA}"))),
        Err(error) => Err(no_answer(error.to_string())),
    }
}

/// A moment of that is a test's; nobody waits for more.
fn wait_while_it_stands_still(home: &Home, interface: &str) -> Result<(), ControlError> {
    let Some(pid) = PidFile::holder(&pid_path(home, interface)) else { return Ok(()) };
    let patience = Instant::now() + STANDSTILL;
    while daemon::stands_still(pid) {
        if Instant::now() > patience {
            return Err(ControlError::StandsStill { pid, interface: interface.to_owned() });
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

const STANDSTILL: Duration = Duration::from_secs(4);

/// Tells the gateway of `home` behind `interface` to read its configuration again; `None` when no gateway
/// runs there.
///
/// # Errors
/// [`ControlError`].
pub fn reload(home: &Home, interface: &str) -> Result<Option<Changes>, ControlError> {
    match request(home, interface, Verb::Status) {
        Ok(Answer::Status(report)) if report.role == Role::Client => return Ok(None),
        Err(ControlError::NotRunning { path }) => {
            return match PidFile::holder(&pid_path(home, interface)) {
                None => Ok(None),
                Some(pid) => Err(ControlError::NoAnswer {
                    path,
                    reason: format!("process {pid} runs, but nobody listens"),
                }),
            };
        }
        // What it cannot tell about itself, it may still do.
        _ => {}
    }
    match request(home, interface, Verb::Reload) {
        Ok(Answer::Reloaded(changes)) => Ok(Some(changes)),
        Ok(other) => {
            let path = socket_path(home, interface);
            Err(ControlError::NoAnswer { path, reason: format!("to reload it said {other:?}") })
        }
        Err(ControlError::NotRunning { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Changes {
    /// Whether the reload had nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl std::fmt::Display for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_empty() {
            return f.write_str("nothing changed");
        }
        let kinds = [
            ("added", &self.added),
            ("changed", &self.changed),
            ("removed", &self.removed),
            ("after a restart only", &self.needs_restart),
        ];
        let mut separator = "";
        for (kind, names) in kinds.into_iter().filter(|(_, names)| !names.is_empty()) {
            write!(f, "{separator}{kind}: {}", names.join(", "))?;
            separator = "; ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn home() -> (tempfile::TempDir, Home) {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::new(Some(directory.path())).unwrap();
        home.create().unwrap();
        (directory, home)
    }

    fn changes() -> Changes {
        Changes { added: vec!["laptop".to_owned()], ..Changes::default() }
    }

    fn serve(home: &Home) -> PrivateSocket {
        let (socket, questions) = open(home, "adit7").unwrap();
        std::thread::spawn(move || {
            for asked in questions {
                let answer = match asked.verb {
                    Verb::Reload => Answer::Reloaded(changes()),
                    Verb::Down => Answer::Stopping,
                    Verb::Status | Verb::Exclude => Answer::Failed("not today".to_owned()),
                };
                asked.answer(answer);
            }
        });
        socket
    }

    #[test]
    fn an_instance_answers_what_it_is_asked() {
        let (_directory, home) = home();
        assert!(reload(&home, "adit7").unwrap().is_none());
        let _socket = serve(&home);
        assert_eq!(interfaces(&home).unwrap(), ["adit7"]);
        assert_eq!(held(&home).unwrap(), ["adit7"]);
        assert_eq!(reload(&home, "adit7").unwrap(), Some(changes()));
        assert_eq!(request(&home, "adit7", Verb::Down).unwrap(), Answer::Stopping);
        assert!(
            matches!(request(&home, "adit7", Verb::Status), Err(ControlError::Refused(reason)) if reason == "not today")
        );
    }

    #[test]
    fn a_process_that_runs_without_a_socket_is_not_taken_for_none() {
        let (_directory, home) = home();
        let pid_file = PidFile::lock_of(&home, "adit7").unwrap();
        assert_eq!(held(&home).unwrap(), ["adit7"]);
        assert!(matches!(reload(&home, "adit7"), Err(ControlError::NoAnswer { .. })));
        drop(pid_file);
        assert!(reload(&home, "adit7").unwrap().is_none());
    }

    #[test]
    fn nonsense_is_answered_and_a_flood_without_a_line_is_cut_off() {
        let (_directory, home) = home();
        let socket = serve(&home);
        let ask = |text: &[u8]| {
            let mut stream = UnixStream::connect(socket.path()).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let _ = stream.write_all(text);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer);
            answer
        };
        assert!(ask(b"hello\n").contains("cannot be read"));
        assert!(ask(b"{\"schema\":2,\"request\":\"status\"}\n").contains("schema 1"));
        assert_eq!(ask(&[b'x'; 100_000]), "");
        assert!(ask(b"{\"schema\":1,\"request\":\"down\"}\n").contains("stopping"));
    }

    #[test]
    fn changes_read_as_a_sentence() {
        assert_eq!(Changes::default().to_string(), "nothing changed");
        let mut some = changes();
        some.needs_restart.push("network".to_owned());
        assert_eq!(some.to_string(), "added: laptop; after a restart only: network");
    }
}
