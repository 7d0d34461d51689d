//! What a web browser finds where the tunnel is: a plain page, a directory, or another web server.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;

use super::http::{Head, accept_of};
use crate::config::stream::Web;

const PAGE: &str =
    "<!DOCTYPE html>\n<html><head><title>It works!</title></head><body><h1>It works!</h1></body></html>\n";

/// Whether a visitor wants a WebSocket where ours is.
pub(super) fn wants_websocket(head: &Head, path: &str) -> bool {
    head.request() == Some(("GET", path))
        && head.lists("upgrade", "websocket")
        && head.lists("connection", "upgrade")
        && head.header("sec-websocket-version") == Some("13")
        && head.header("sec-websocket-key").is_some()
}

/// Lets a visitor in by the WebSocket.
pub(super) async fn upgrade(stream: &mut (impl AsyncWrite + Unpin), head: &Head) -> io::Result<()> {
    let accept = accept_of(head.header("sec-websocket-key").unwrap_or_default());
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.flush().await
}

/// Answers one request, and no more.
pub(super) async fn answer(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    head: &Head,
    web: &Web,
    from: IpAddr,
) -> io::Result<()> {
    let Some((method, path)) = head.request() else { return refuse(stream).await };
    if let Web::Upstream(address) = web {
        return pass_on(stream, head, method, address, from).await;
    }
    let body = method == "GET";
    if !matches!(method, "GET" | "HEAD") {
        return send(stream, "405 Method Not Allowed", "text/html", b"", true).await;
    }
    let found = match web {
        Web::Directory(root) => {
            let (root, path) = (root.clone(), path.to_owned());
            tokio::task::spawn_blocking(move || file_at(&root, &path)).await.ok().flatten()
        }
        _ if matches!(path, "/" | "/index.html") => {
            return send(stream, "200 OK", "text/html", PAGE.as_bytes(), body).await;
        }
        _ => None,
    };
    match found {
        Some(found) => send_file(stream, found, body).await,
        None => send(stream, "404 Not Found", "text/html", b"<h1>Not Found</h1>\n", body).await,
    }
}

/// What a web server says to what is no request.
pub(super) async fn refuse(stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    send(stream, "400 Bad Request", "text/html", b"<h1>Bad Request</h1>\n", true).await
}

async fn send(
    stream: &mut (impl AsyncWrite + Unpin),
    status: &str,
    kind: &str,
    contents: &[u8],
    with_body: bool,
) -> io::Result<()> {
    stream.write_all(head_of(status, kind, contents.len() as u64).as_bytes()).await?;
    if with_body {
        stream.write_all(contents).await?;
    }
    stream.shutdown().await
}

fn head_of(status: &str, kind: &str, bytes: u64) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {bytes}\r\nConnection: close\r\n\r\n"
    )
}

/// A file that a visitor may see.
struct Found {
    file: File,
    bytes: u64,
    kind: &'static str,
}

/// What is in memory of a file for a visitor who may never take it.
const PIECE: u64 = 16 * 1024;

async fn send_file(stream: &mut (impl AsyncWrite + Unpin), found: Found, with_body: bool) -> io::Result<()> {
    let Found { file, bytes, kind } = found;
    stream.write_all(head_of("200 OK", kind, bytes).as_bytes()).await?;
    let file = Arc::new(file);
    let mut at = if with_body { 0 } else { bytes };
    while at < bytes {
        let (file, len) = (Arc::clone(&file), (bytes - at).min(PIECE));
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; len as usize];
            file.read_at(&mut piece, at).map(|read| {
                piece.truncate(read);
                piece
            })
        });
        let piece = read.await.map_err(io::Error::other)??;
        if piece.is_empty() {
            // It became shorter, and what was promised cannot be had.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        stream.write_all(&piece).await?;
        at += piece.len() as u64;
    }
    stream.shutdown().await
}

/// Larger files are not for this server.
const FILE_MAX: u64 = 8 << 20;

fn file_at(root: &Path, path: &str) -> Option<Found> {
    let mut wanted = PathBuf::from(root);
    for part in Path::new(path.trim_start_matches('/')).components() {
        match part {
            Component::Normal(name) if !name.as_encoded_bytes().starts_with(b".") => wanted.push(name),
            _ => return None,
        }
    }
    if wanted.is_dir() {
        wanted.push("index.html");
    }
    let real = wanted.canonicalize().ok()?;
    // A pipe would make us wait.
    if !real.starts_with(root.canonicalize().ok()?) || !real.is_file() {
        return None;
    }
    let file = File::open(&real).ok()?;
    let about = file.metadata().ok()?;
    if !about.is_file() || about.len() > FILE_MAX {
        return None;
    }
    let kind = match real.extension().and_then(|it| it.to_str()) {
        Some("html" | "htm") => "text/html",
        Some("css") => "text/css",
        Some("js") => "text/javascript",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("jpg" | "jpeg") => "image/jpeg",
        Some("txt") => "text/plain",
        _ => "application/octet-stream",
    };
    Some(Found { file, bytes: about.len(), kind })
}

/// Headers by which web servers believe who a visitor is.
const FORWARDED: [&str; 3] = ["X-Forwarded-For", "Forwarded", "X-Real-IP"];

async fn pass_on(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    head: &Head,
    method: &str,
    address: &str,
    from: IpAddr,
) -> io::Result<()> {
    let Ok(mut upstream) = TcpStream::connect(address).await else {
        return send(stream, "502 Bad Gateway", "text/html", b"<h1>Bad Gateway</h1>\n", true).await;
    };
    let mut request = format!("{method} {} HTTP/1.1\r\n", head.target());
    // A web server of ours in front has said who it is; anybody else could say anything.
    let is_told = from.is_loopback() && head.header(FORWARDED[0]).is_some();
    let is_ours = |name: &str| {
        name.eq_ignore_ascii_case("connection")
            || !is_told && FORWARDED.iter().any(|it| name.eq_ignore_ascii_case(it))
    };
    for (name, value) in head.headers().filter(|(name, _)| !is_ours(name)) {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    if !is_told {
        request.push_str(&format!("{}: {from}\r\n", FORWARDED[0]));
    }
    request.push_str("Connection: close\r\n\r\n");
    upstream.write_all(request.as_bytes()).await?;
    copy_bidirectional(stream, &mut upstream).await.map(drop)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    const SOMEBODY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 9));

    #[test]
    fn the_web_server_behind_is_told_who_visits_and_believes_no_visitor() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let passed_on = |from: IpAddr| {
            runtime.block_on(async {
                let behind = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                let web = Web::Upstream(behind.local_addr().unwrap().to_string());
                let request =
                    b"GET / HTTP/1.1\r\nX-Forwarded-For: 127.0.0.1\r\nforwarded: for=me\r\nA: b\r\n\r\n";
                let head = Head::read(&mut &request[..], b"").await.unwrap();
                let (mut near, _far) = tokio::io::duplex(1 << 16);
                let serve = async {
                    let (mut stream, _) = behind.accept().await.unwrap();
                    Head::read(&mut stream, b"").await.unwrap()
                };
                tokio::select! {
                    seen = serve => seen,
                    _ = answer(&mut near, &head, &web, from) => panic!("nobody was asked"),
                }
            })
        };
        let seen = passed_on(SOMEBODY);
        let said: Vec<_> = seen.headers().collect();
        assert_eq!(said, [("A", "b"), ("X-Forwarded-For", "192.0.2.9"), ("Connection", "close")]);
        let seen = passed_on("127.0.0.1".parse().unwrap());
        assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"), "as the server in front says");
        assert_eq!(seen.header("forwarded"), Some("for=me"));
    }

    fn asked(request: &str, web: &Web) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let head = Head::read(&mut request.as_bytes(), b"").await.unwrap();
            let (mut near, mut far) = tokio::io::duplex(1 << 20);
            answer(&mut near, &head, web, SOMEBODY).await.unwrap();
            drop(near);
            let mut text = String::new();
            far.read_to_string(&mut text).await.unwrap();
            text
        })
    }

    #[test]
    fn visitors_get_a_page_and_nothing_they_can_use() {
        let get = |path: &str| asked(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"), &Web::Page);
        assert!(get("/").starts_with("HTTP/1.1 200 OK\r\n") && get("/").contains("It works!"));
        assert!(get("/secret").starts_with("HTTP/1.1 404 "));
        assert!(!asked("HEAD / HTTP/1.1\r\n\r\n", &Web::Page).contains("<h1>"));
        assert!(asked("POST / HTTP/1.1\r\n\r\n", &Web::Page).starts_with("HTTP/1.1 405 "));
    }

    #[test]
    fn a_directory_shows_what_is_in_it_and_nothing_beside() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("web");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(root.join("index.html"), "hello").unwrap();
        std::fs::write(root.join("sub/a.css"), "body{}").unwrap();
        std::fs::write(root.join(".hidden"), "no").unwrap();
        std::fs::write(directory.path().join("secret"), "no").unwrap();
        std::os::unix::fs::symlink(directory.path().join("secret"), root.join("link")).unwrap();
        let web = Web::Directory(root);
        let get = |path: &str| asked(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"), &web);
        assert!(get("/").ends_with("hello") && get("/sub/a.css").contains("text/css"));
        for path in ["/../secret", "/.hidden", "/link", "/sub/../../secret", "/sub", "//etc/passwd"] {
            assert!(get(path).starts_with("HTTP/1.1 404 "), "{path}");
        }
    }

    #[test]
    fn a_file_of_many_pieces_arrives_whole_through_a_narrow_pipe() {
        let directory = tempfile::tempdir().unwrap();
        let contents: Vec<u8> = (0..5 * PIECE + 7).map(|at| (at % 251) as u8).collect();
        std::fs::write(directory.path().join("long.bin"), &contents).unwrap();
        let web = Web::Directory(directory.path().to_owned());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let got = runtime.block_on(async {
            let head = Head::read(&mut &b"GET /long.bin HTTP/1.1\r\n\r\n"[..], b"").await.unwrap();
            let (mut near, mut far) = tokio::io::duplex(100);
            let answered = async move { answer(&mut near, &head, &web, SOMEBODY).await };
            let mut got = Vec::new();
            let (answered, read) = tokio::join!(answered, far.read_to_end(&mut got));
            answered.and(read.map(drop)).unwrap();
            got
        });
        let body = got.windows(4).position(|it| it == b"\r\n\r\n").unwrap() + 4;
        assert_eq!(got[body..], contents);
    }

    #[test]
    fn a_websocket_is_only_where_it_is() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let wants = |request: &str| {
            let head = runtime.block_on(Head::read(&mut request.as_bytes(), b"")).unwrap();
            wants_websocket(&head, "/abc")
        };
        let upgrade = "Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        assert!(wants(&format!("GET /abc HTTP/1.1\r\n{upgrade}")));
        assert!(!wants(&format!("GET / HTTP/1.1\r\n{upgrade}")));
        assert!(!wants("GET /abc HTTP/1.1\r\nHost: x\r\n\r\n"));
    }
}
