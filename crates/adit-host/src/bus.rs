//! Calls on the system bus (the D-Bus specification, "Message Protocol" and "Authentication Protocol"): one at a time,
//! over a socket of their own, each with an answer or an error in time.

mod value;

use std::env;
use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

pub(crate) use self::value::Value;
use self::value::{Reader, Writer};

/// For one call, and for being let in. Whoever is asked runs on this machine, and `down` waits for us.
const PATIENCE: Duration = Duration::from_secs(5);
/// What we ask for is far smaller.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
const DEFAULT_SOCKET: &str = "/run/dbus/system_bus_socket";

const CALL: u8 = 1;
const ANSWER: u8 = 2;
const ERROR: u8 = 3;

/// The codes of header fields.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// An object of a service, by one of its interfaces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Object {
    pub(crate) service: &'static str,
    pub(crate) path: &'static str,
    pub(crate) interface: &'static str,
}

const DRIVER: Object = Object {
    service: "org.freedesktop.DBus",
    path: "/org/freedesktop/DBus",
    interface: "org.freedesktop.DBus",
};

/// Why a call has no answer.
#[derive(Debug)]
pub(crate) enum BusError {
    /// There is no bus, or it did not speak as it should.
    Io(io::Error),
    /// The service said no.
    Refused { name: String, text: String },
}

impl From<io::Error> for BusError {
    fn from(error: io::Error) -> BusError {
        BusError::Io(error)
    }
}

impl fmt::Display for BusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BusError::Io(error) => write!(f, "{error}"),
            BusError::Refused { name, text } if text.is_empty() => write!(f, "{name}"),
            BusError::Refused { text, .. } => write!(f, "{text}"),
        }
    }
}

/// A connection to the system bus.
#[derive(Debug)]
pub(crate) struct Bus {
    stream: UnixStream,
    serial: u32,
    /// When what is under way must have its answer.
    deadline: Instant,
}

impl Bus {
    pub(crate) fn open() -> Result<Bus, BusError> {
        let deadline = Instant::now() + PATIENCE;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // Also for a bus that lets nobody in.
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.connect(&SockAddr::unix(socket_path())?)?;
        let mut bus = Bus { stream: UnixStream::from(OwnedFd::from(socket)), serial: 0, deadline };
        // Who we are the bus learns from the socket.
        bus.stream.write_all(b"\0AUTH EXTERNAL\r\nDATA\r\n")?;
        for expected in ["DATA", "OK "] {
            let line = bus.line()?;
            if !line.starts_with(expected) {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the bus turns us away").into());
            }
        }
        bus.stream.write_all(b"BEGIN\r\n")?;
        bus.ask(DRIVER, "Hello", &[])?;
        Ok(bus)
    }

    /// Whether somebody answers to this name.
    pub(crate) fn has(&mut self, service: &str) -> bool {
        let answer = self.call(DRIVER, "NameHasOwner", &[Value::from(service)]);
        matches!(answer.as_deref(), Ok([Value::Bool(true)]))
    }

    /// Calls a method and waits for what it returns.
    pub(crate) fn call(
        &mut self,
        object: Object,
        method: &str,
        arguments: &[Value],
    ) -> Result<Vec<Value>, BusError> {
        self.deadline = Instant::now() + PATIENCE;
        self.ask(object, method, arguments)
    }

    fn ask(&mut self, object: Object, method: &str, arguments: &[Value]) -> Result<Vec<Value>, BusError> {
        self.serial += 1;
        self.stream.write_all(&call(self.serial, object, method, arguments))?;
        loop {
            let message = self.message()?;
            if message.replies_to != Some(self.serial) {
                continue;
            }
            match message.kind {
                ANSWER => return Ok(message.body),
                ERROR => {
                    let text = message.body.into_iter().next().and_then(Value::into_text);
                    return Err(BusError::Refused {
                        name: message.error_name,
                        text: text.unwrap_or_default(),
                    });
                }
                _ => {}
            }
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        let mut byte = [0];
        while !line.ends_with(b"\r\n") {
            if line.len() > 1024 {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.fill(&mut byte)?;
            line.push(byte[0]);
        }
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    /// Also who sends, but never what was asked for, does so until the deadline only.
    fn fill(&mut self, mut into: &mut [u8]) -> io::Result<()> {
        let late = || {
            let text = format!("no answer on the system bus within {} s", PATIENCE.as_secs());
            io::Error::new(io::ErrorKind::TimedOut, text)
        };
        while !into.is_empty() {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(late());
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(into) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => into = &mut into[read..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(late()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn message(&mut self) -> io::Result<Message> {
        let malformed = || io::Error::new(io::ErrorKind::InvalidData, "a malformed message on the bus");
        let mut start = [0; 16];
        self.fill(&mut start)?;
        let word = |at: usize| u32::from_le_bytes([start[at], start[at + 1], start[at + 2], start[at + 3]]);
        let (body, fields) = (word(4) as usize, word(12) as usize);
        // The bus passes on each message as it was sent, and those we ask run on this machine.
        let is_ours = start[0] == b'l' && body <= MESSAGE_BYTES_MAX && fields <= MESSAGE_BYTES_MAX;
        if !is_ours {
            return Err(malformed());
        }
        let mut rest = vec![0; fields.next_multiple_of(8) + body];
        self.fill(&mut rest)?;
        let whole = [&start[..], &rest].concat();
        Message::parse(&whole, body).ok_or_else(malformed)
    }
}

struct Message {
    kind: u8,
    replies_to: Option<u32>,
    error_name: String,
    body: Vec<Value>,
}

impl Message {
    fn parse(whole: &[u8], body_bytes: usize) -> Option<Message> {
        let mut message =
            Message { kind: *whole.get(1)?, replies_to: None, error_name: String::new(), body: Vec::new() };
        let mut signature = String::new();
        let mut header = Reader::new(whole.get(12..)?, 12);
        let Value::Array(_, fields) = header.value("a(yv)")? else { return None };
        for field in fields {
            let Value::Struct(parts) = field else { return None };
            let [Value::Byte(code), Value::Variant(value)] = &parts[..] else { return None };
            match (*code, &**value) {
                (REPLY_SERIAL, Value::UInt(serial)) => message.replies_to = Some(*serial),
                (ERROR_NAME, Value::Text(name)) => message.error_name = name.clone(),
                (SIGNATURE, Value::Signature(text)) => signature = text.clone(),
                _ => {}
            }
        }
        let body = whole.get(whole.len().checked_sub(body_bytes)?..)?;
        message.body = Reader::new(body, 0).values(&signature)?;
        Some(message)
    }
}

fn call(serial: u32, object: Object, method: &str, arguments: &[Value]) -> Vec<u8> {
    let mut body = Writer::default();
    arguments.iter().for_each(|it| body.write(it));
    let signature: String = arguments.iter().map(Value::signature).collect();
    let field = |code: u8, value: Value| Value::Struct(vec![Value::Byte(code), Value::Variant(value.into())]);
    let mut fields = vec![
        field(PATH, Value::Path(object.path.to_owned())),
        field(INTERFACE, Value::from(object.interface)),
        field(MEMBER, Value::from(method)),
        field(DESTINATION, Value::from(object.service)),
    ];
    if !arguments.is_empty() {
        fields.push(field(SIGNATURE, Value::Signature(signature)));
    }
    let mut message = Writer::default();
    for byte in [b'l', CALL, 0, 1] {
        message.write(&Value::Byte(byte));
    }
    message.write(&Value::UInt(body.bytes().len() as u32));
    message.write(&Value::UInt(serial));
    message.write(&Value::Array("(yv)".to_owned(), fields));
    message.align(8);
    [message.bytes(), body.bytes()].concat()
}

fn socket_path() -> PathBuf {
    let address = env::var("DBUS_SYSTEM_BUS_ADDRESS").unwrap_or_default();
    let told = address.strip_prefix("unix:path=").and_then(|rest| rest.split([',', ';']).next());
    PathBuf::from(told.unwrap_or(DEFAULT_SOCKET))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_written_as_the_specification_says() {
        let bytes = call(1, DRIVER, "Hello", &[]);
        assert_eq!(&bytes[..16], b"l\x01\0\x01\0\0\0\0\x01\0\0\0\x6d\0\0\0");
        assert_eq!(bytes.len(), 128);
        let object = b"\x01\x01o\0\x15\0\0\0/org/freedesktop/DBus\0";
        assert_eq!(&bytes[16..16 + object.len()], object);
    }

    #[test]
    fn an_error_is_read_with_its_name_and_its_text() {
        let mut body = Writer::default();
        body.write(&Value::from("no such link"));
        let field = |code, value: Value| Value::Struct(vec![Value::Byte(code), Value::Variant(value.into())]);
        let mut header = Writer::default();
        for byte in [b'l', ERROR, 0, 1] {
            header.write(&Value::Byte(byte));
        }
        header.write(&Value::UInt(body.bytes().len() as u32));
        header.write(&Value::UInt(9));
        let fields = vec![
            field(ERROR_NAME, Value::from("org.example.No")),
            field(REPLY_SERIAL, Value::UInt(7)),
            field(SIGNATURE, Value::Signature("s".into())),
        ];
        header.write(&Value::Array("(yv)".into(), fields));
        header.align(8);
        let whole = [header.bytes(), body.bytes()].concat();
        let message = Message::parse(&whole, body.bytes().len()).unwrap();
        assert_eq!((message.replies_to, message.error_name.as_str()), (Some(7), "org.example.No"));
        assert_eq!(message.body, [Value::from("no such link")]);
        for cut in 0..whole.len() {
            let _ = Message::parse(&whole[..cut], body.bytes().len());
        }
    }
}
