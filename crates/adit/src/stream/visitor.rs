//! What a web browser finds where the tunnel is: a plain page, a directory, or another web server.

use std::io;
use std::path::{Component, Path, PathBuf};

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
) -> io::Result<()> {
    let Some((method, path)) = head.request() else { return refuse(stream).await };
    if let Web::Upstream(address) = web {
        return pass_on(stream, head, method, address).await;
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
        _ if matches!(path, "/" | "/index.html") => Some((PAGE.as_bytes().to_vec(), "text/html")),
        _ => None,
    };
    match found {
        Some((contents, kind)) => send(stream, "200 OK", kind, &contents, body).await,
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
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        contents.len()
    );
    stream.write_all(head.as_bytes()).await?;
    if with_body {
        stream.write_all(contents).await?;
    }
    stream.shutdown().await
}

/// Larger files are not for this server.
const FILE_MAX: u64 = 8 << 20;

fn file_at(root: &Path, path: &str) -> Option<(Vec<u8>, &'static str)> {
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
    let about = real.metadata().ok()?;
    if !real.starts_with(root.canonicalize().ok()?) || !about.is_file() || about.len() > FILE_MAX {
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
    Some((std::fs::read(&real).ok()?, kind))
}

async fn pass_on(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    head: &Head,
    method: &str,
    address: &str,
) -> io::Result<()> {
    let Ok(mut upstream) = TcpStream::connect(address).await else {
        return send(stream, "502 Bad Gateway", "text/html", b"<h1>Bad Gateway</h1>\n", true).await;
    };
    let mut request = format!("{method} {} HTTP/1.1\r\n", head.target());
    for (name, value) in head.headers().filter(|(name, _)| !name.eq_ignore_ascii_case("connection")) {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("Connection: close\r\n\r\n");
    upstream.write_all(request.as_bytes()).await?;
    copy_bidirectional(stream, &mut upstream).await.map(drop)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    fn asked(request: &str, web: &Web) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let head = Head::read(&mut request.as_bytes(), b"").await.unwrap();
            let (mut near, mut far) = tokio::io::duplex(1 << 20);
            answer(&mut near, &head, web).await.unwrap();
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
