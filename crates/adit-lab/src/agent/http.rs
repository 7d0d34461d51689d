//! As much of HTTP/1.1 (RFC 9112) as a download needs: GET, Content-Length, byte ranges (RFC 9110 §14), one request
//! per connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use sha2::{Digest, Sha256};

use super::content::{Content, hexadecimal};
use super::{AgentError, Outcome, Words, failed, megabits_per_second};

const CONNECTIONS_MAX: usize = 256;
const HEAD_BYTES_MAX: u64 = 16_384;
const TEXT_BYTES_MAX: u64 = 4_096;
const IDLE: Duration = Duration::from_secs(120);

pub(super) fn serve(words: &mut Words) -> Outcome {
    let address: String = words.required_option("--listen")?;
    words.end()?;
    let listener = TcpListener::bind(&address).map_err(failed(format!("cannot listen on {address}")))?;
    println!("listening on {}", listener.local_addr()?);
    let slots = Arc::new(());
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        if Arc::strong_count(&slots) > CONNECTIONS_MAX {
            continue;
        }
        let slot = Arc::clone(&slots);
        thread::spawn(move || {
            // A caller that goes away is the caller's business.
            let _ = answer(stream);
            drop(slot);
        });
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    let peer = stream.peer_addr()?.ip().to_canonical();
    let head = read_head(&mut BufReader::new(&stream))?;
    let (reply, status) = match Request::parse(&head) {
        Some(request) => (Reply::to(&request, peer), request.target),
        None => (Reply::text(400, "this server knows GET only\n"), String::new()),
    };
    println!("{}", json!({ "peer": peer, "target": status, "status": reply.status }));
    reply.send(&mut stream)
}

/// The lines of a message head, without the empty one that ends it.
fn read_head(reader: &mut impl BufRead) -> io::Result<Vec<String>> {
    let mut reader = reader.take(HEAD_BYTES_MAX);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match line.trim_end() {
            "" => return Ok(lines),
            text => lines.push(text.to_owned()),
        }
    }
}

fn header<'a>(head: &'a [String], name: &str) -> Option<&'a str> {
    let fields = head.iter().skip(1).filter_map(|line| line.split_once(':'));
    fields
        .map(|(key, value)| (key, value.trim()))
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, it)| it)
}

struct Request {
    target: String,
    from: u64,
}

impl Request {
    fn parse(head: &[String]) -> Option<Self> {
        let target = head.first()?.strip_prefix("GET ")?.split_once(' ')?.0.to_owned();
        let from = match header(head, "range") {
            Some(range) => range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()?,
            None => 0,
        };
        Some(Self { target, from })
    }
}

struct Reply {
    status: u16,
    headers: String,
    body: Body,
}

enum Body {
    Text(String),
    File { content: Content, from: u64, kilobytes_per_second: Option<u64> },
}

impl Reply {
    fn to(request: &Request, peer: IpAddr) -> Self {
        let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
        let number = |name: &str| {
            let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.filter(|(key, _)| *key == name).find_map(|(_, value)| value.parse::<u64>().ok())
        };
        match (path, number("bytes")) {
            ("/", _) => Self::text(200, format!("{peer}\n")),
            ("/file", Some(bytes)) if request.from > bytes => {
                Self::text(416, "there is nothing so far behind\n")
            }
            ("/file", Some(bytes)) => {
                let content = Content { seed: number("seed").unwrap_or(0), bytes };
                let from = request.from;
                let headers = match from {
                    0 => String::new(),
                    _ => format!("Content-Range: bytes {from}-{}/{bytes}\r\n", bytes.saturating_sub(1)),
                };
                let status = if from == 0 { 200 } else { 206 };
                Self {
                    status,
                    headers,
                    body: Body::File { content, from, kilobytes_per_second: number("kbps") },
                }
            }
            _ => Self::text(404, "try / or /file?bytes=N&seed=S\n"),
        }
    }

    fn text(status: u16, text: impl Into<String>) -> Self {
        Self { status, headers: String::new(), body: Body::Text(text.into()) }
    }

    fn send(&self, stream: &mut TcpStream) -> io::Result<()> {
        let (length, kind) = match &self.body {
            Body::Text(text) => (text.len() as u64, "text/plain"),
            Body::File { content, from, .. } => (content.bytes - from, "application/octet-stream"),
        };
        let status = self.status;
        let reason = match status {
            200 => "OK",
            206 => "Partial Content",
            404 => "Not Found",
            416 => "Range Not Satisfiable",
            _ => "Bad Request",
        };
        let mut message = format!(
            "HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{}Connection: close\r\n\r\n",
            self.headers
        );
        match &self.body {
            Body::Text(text) => {
                message += text;
                stream.write_all(message.as_bytes())
            }
            Body::File { content, from, kilobytes_per_second } => {
                stream.write_all(message.as_bytes())?;
                send_content(stream, *content, *from, *kilobytes_per_second)
            }
        }
    }
}

/// Paced in steps of 20 ms; after a pause of the network it does not catch up, so a paced file takes the longer.
fn send_content(stream: &mut TcpStream, content: Content, from: u64, kbps: Option<u64>) -> io::Result<()> {
    const STEP: Duration = Duration::from_millis(20);
    let chunk = kbps.map_or(131_072, |kbps| (kbps * 1_000 / 50).clamp(1, 1_048_576)) as usize;
    let mut buffer = vec![0; chunk];
    let mut offset = from;
    while let length @ 1.. = content.read_at(offset, &mut buffer) {
        stream.write_all(&buffer[..length])?;
        offset += length as u64;
        if kbps.is_some() {
            thread::sleep(STEP);
        }
    }
    Ok(())
}

pub(super) fn get(words: &mut Words) -> Outcome {
    let hashed = words.flag("--sha256");
    let resume = Duration::from_secs(words.option("--resume-seconds")?.unwrap_or(0));
    let patience = Duration::from_secs(words.option("--patience-seconds")?.unwrap_or(10));
    let url = Url::parse(&words.required::<String>("URL")?)?;
    words.end()?;
    let mut download = Download::new();
    let mut resumed = 0;
    while let Err(error) = download.fetch(&url, patience) {
        if !error.1 || download.last_byte.elapsed() > resume {
            return Err(AgentError::Failed(format!(
                "{}: {} after {} bytes",
                url.host, error.0, download.bytes
            )));
        }
        resumed += 1;
        thread::sleep(Duration::from_millis(100));
    }
    let seconds = download.started.elapsed().as_secs_f64();
    let text = String::from_utf8(download.text).ok().filter(|_| download.bytes <= TEXT_BYTES_MAX);
    let report = json!({
        "status": download.status,
        "bytes": download.bytes,
        "seconds": seconds,
        "mbits_per_second": megabits_per_second(download.bytes, seconds),
        "longest_pause_seconds": download.longest_pause.as_secs_f64(),
        "resumed": resumed,
        "sha256": hashed.then(|| hexadecimal(&download.hash.finalize())),
        "text": text,
    });
    println!("{report}");
    match download.status {
        200 | 206 => Ok(()),
        status => Err(AgentError::Failed(format!("{} answered with status {status}", url.host))),
    }
}

struct Url {
    host: String,
    address: String,
    path: String,
}

impl Url {
    fn parse(text: &str) -> Outcome<Self> {
        let rest = text
            .strip_prefix("http://")
            .ok_or_else(|| AgentError::Usage(format!("{text:?} does not start with http://")))?;
        let (host, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let address = if has_port { host.to_owned() } else { format!("{host}:80") };
        Ok(Self { host: host.to_owned(), address, path: path.to_owned() })
    }
}

struct Download {
    started: Instant,
    last_byte: Instant,
    longest_pause: Duration,
    bytes: u64,
    status: u16,
    hash: Sha256,
    text: Vec<u8>,
}

/// What went wrong, and whether another attempt may go on from here.
struct Broken(String, bool);

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock => Self("no byte came for too long".to_owned(), true),
            _ => Self(error.to_string(), true),
        }
    }
}

impl Download {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            started: now,
            last_byte: now,
            longest_pause: Duration::ZERO,
            bytes: 0,
            status: 0,
            hash: Sha256::new(),
            text: Vec::new(),
        }
    }

    fn fetch(&mut self, url: &Url, patience: Duration) -> Result<(), Broken> {
        let mut addresses = url.address.to_socket_addrs()?;
        let address = addresses.next().ok_or_else(|| Broken("the name has no address".to_owned(), true))?;
        let stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        let range = if self.bytes > 0 { format!("Range: bytes={}-\r\n", self.bytes) } else { String::new() };
        let (path, host) = (&url.path, &url.host);
        (&stream).write_all(
            format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{range}User-Agent: adit-lab\r\nConnection: close\r\n\r\n")
                .as_bytes(),
        )?;
        let mut reader = BufReader::with_capacity(131_072, &stream);
        let head = read_head(&mut reader)?;
        let status = head.first().and_then(|line| line.split(' ').nth(1)?.parse().ok());
        self.status = status.ok_or_else(|| Broken("the answer is not HTTP".to_owned(), false))?;
        let length = header(&head, "content-length").and_then(|length| length.parse::<u64>().ok());
        let length = length.ok_or_else(|| Broken("the answer has no Content-Length".to_owned(), false))?;
        if self.bytes > 0 && self.status != 206 {
            return Err(Broken("the server does not resume".to_owned(), false));
        }
        self.read_body(&mut reader.take(length), length)
    }

    fn read_body(&mut self, reader: &mut impl Read, length: u64) -> Result<(), Broken> {
        let mut buffer = vec![0; 131_072];
        let end = self.bytes + length;
        while self.bytes < end {
            let read = reader.read(&mut buffer)?;
            if read == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            self.longest_pause = self.longest_pause.max(self.last_byte.elapsed());
            self.last_byte = Instant::now();
            self.hash.update(&buffer[..read]);
            let room = (TEXT_BYTES_MAX as usize).saturating_sub(self.text.len());
            self.text.extend_from_slice(&buffer[..read.min(room)]);
            self.bytes += read as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_request_is_its_target_and_where_to_start() {
        let request = Request::parse(&lines("GET /file?bytes=9 HTTP/1.1\nRange: bytes=4-")).unwrap();
        assert_eq!((request.target.as_str(), request.from), ("/file?bytes=9", 4));
        assert!(Request::parse(&lines("POST / HTTP/1.1")).is_none());
        assert!(Request::parse(&lines("GET / HTTP/1.1\nrange: bytes=1-2")).is_none());
        assert!(Request::parse(&[]).is_none());
    }

    #[test]
    fn a_file_beyond_its_end_is_refused_and_the_rest_of_it_is_not() {
        let status = |from| {
            let request = Request { target: "/file?bytes=10&seed=3".to_owned(), from };
            Reply::to(&request, IpAddr::from([127, 0, 0, 1])).status
        };
        assert_eq!([0, 4, 10, 11].map(status), [200, 206, 206, 416]);
    }

    #[test]
    fn urls_have_a_port_or_get_the_usual_one() {
        let address = |text| Url::parse(text).unwrap().address;
        assert_eq!(address("http://10.0.0.1/x"), "10.0.0.1:80");
        assert_eq!(address("http://10.0.0.1:8080"), "10.0.0.1:8080");
        assert_eq!(address("http://[fd00::1]/x"), "[fd00::1]:80");
        assert_eq!(address("http://[fd00::1]:81/x"), "[fd00::1]:81");
        assert!(Url::parse("https://10.0.0.1/").is_err());
    }
}
