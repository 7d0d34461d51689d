use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use adit_lab::Host;
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::on;

/// A public service in the lab's internet, that answers with the address of who asks, or fails as one may.
pub struct Service {
    pub url: String,
    hits: Arc<AtomicUsize>,
}

/// What a service sends back to a caller; `None` keeps silent and holds the connection.
type Reply = fn(IpAddr) -> Option<String>;

impl Service {
    pub fn start(host: &Host, at: &str, reply: Reply) -> Self {
        Self::with(host, at, "http", move |stream, from| talk(stream, from, reply))
    }

    pub fn start_tls(host: &Host, at: &str, config: Arc<ServerConfig>, reply: Reply) -> Self {
        Self::with(host, at, "https", move |stream, from| {
            let session = ServerConnection::new(Arc::clone(&config)).unwrap();
            talk(StreamOwned::new(session, stream), from, reply);
        })
    }

    fn with(
        host: &Host,
        at: &str,
        scheme: &str,
        answer: impl Fn(TcpStream, IpAddr) + Clone + Send + 'static,
    ) -> Self {
        let at: SocketAddr = at.parse().unwrap();
        let listener = on(host, || TcpListener::bind(at).unwrap());
        let hits = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&hits);
        // It ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                counted.fetch_add(1, Ordering::Relaxed);
                let answer = answer.clone();
                thread::spawn(move || {
                    let Ok(from) = stream.peer_addr() else { return };
                    let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
                    answer(stream, from.ip().to_canonical());
                });
            }
        });
        Self { url: format!("{scheme}://{at}/ip"), hits }
    }

    /// How often it was asked.
    pub fn hits(&self) -> usize {
        self.hits.load(Ordering::Relaxed)
    }
}

fn talk(mut stream: impl Read + Write, from: IpAddr, reply: Reply) {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut buffer) {
            Ok(count @ 1..) => head.extend_from_slice(&buffer[..count]),
            _ => return,
        }
    }
    match reply(from) {
        Some(reply) => {
            let _ = stream.write_all(reply.as_bytes());
            let _ = stream.flush();
        }
        None => thread::sleep(Duration::from_secs(20)),
    }
}

/// A whole answer with status 200.
pub fn ok(body: &str) -> Option<String> {
    Some(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()))
}
