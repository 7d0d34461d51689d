//! As much HTTP/1.1 as visitors and WebSockets need: a head with a bound.

use std::io;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Longer heads are refused.
pub(super) const HEAD_MAX: usize = 8 * 1024;

/// The first line and the headers of a request or an answer.
#[derive(Debug)]
pub(super) struct Head {
    first: Vec<String>,
    headers: Vec<(String, String)>,
}

impl Head {
    /// Reads a head that begins with `begun`. Reads nothing behind its end.
    pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin), begun: &[u8]) -> io::Result<Self> {
        let mut bytes = begun.to_vec();
        while !bytes.ends_with(b"\r\n\r\n") {
            if bytes.len() >= HEAD_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            bytes.push(stream.read_u8().await?);
        }
        Self::parse(&bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Reads the head of an answer, as servers write them: lines may end with a newline alone, and one that is no header
    /// is passed over.
    pub(super) async fn read_answer(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") && !bytes.ends_with(b"\n\n") {
            if bytes.len() >= HEAD_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "it speaks no HTTP"));
            }
            match stream.read_u8().await {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(io::Error::new(error.kind(), "it ended the connection without an answer"));
                }
                byte => bytes.push(byte?),
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default().splitn(3, ' ').map(str::to_owned).collect();
        let headers = lines.filter_map(|line| line.split_once(':'));
        let headers = headers.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
        Ok(Self { first, headers })
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        // What one server takes for the end of a line is a part of it for another.
        if text.replace("\r\n", "").contains(|it: char| it.is_ascii_control() && it != '\t') {
            return None;
        }
        let mut lines = text.split("\r\n");
        let first: Vec<String> = lines.next()?.splitn(3, ' ').map(str::to_owned).collect();
        if first.len() < 2 {
            return None;
        }
        let headers = lines
            .take_while(|line| !line.is_empty())
            .map(|line| line.split_once(':').map(|(name, value)| (name.to_owned(), value.trim().to_owned())))
            .collect::<Option<_>>()?;
        Some(Self { first, headers })
    }

    /// The method and the path of a request, if the version is one of ours.
    pub(super) fn request(&self) -> Option<(&str, &str)> {
        match self.first.as_slice() {
            [method, target, version] if version.starts_with("HTTP/1.") => {
                Some((method, target.split(['?', '#']).next().unwrap_or_default()))
            }
            _ => None,
        }
    }

    /// The target of a request as it was written.
    pub(super) fn target(&self) -> &str {
        self.first.get(1).map_or("/", String::as_str)
    }

    /// The status of an answer.
    pub(super) fn status(&self) -> Option<u16> {
        self.first.first().filter(|version| version.starts_with("HTTP/1."))?;
        self.first.get(1)?.parse().ok()
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers.find(|(it, _)| it.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub(super) fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Whether a header that is a list has this word.
    pub(super) fn lists(&self, name: &str, word: &str) -> bool {
        self.header(name)
            .is_some_and(|list| list.split(',').any(|item| item.trim().eq_ignore_ascii_case(word)))
    }
}

/// What a server answers to the key of a WebSocket client (RFC 6455 section 4.2.2).
pub(super) fn accept_of(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    BASE64_STANDARD.encode(hash.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_standard() {
        assert_eq!(accept_of("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn heads_are_read_to_their_end_and_no_further() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut stream =
                &b"ET /a?b HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\n\r\nrest"[..];
            let head = Head::read(&mut stream, b"G").await.unwrap();
            assert_eq!(stream, b"rest");
            assert_eq!(head.request(), Some(("GET", "/a")));
            assert!(head.lists("connection", "upgrade") && !head.lists("connection", "close"));
            assert_eq!(head.header("HOST"), Some("x"));
            let endless = vec![b'a'; HEAD_MAX + 1];
            assert!(Head::read(&mut &endless[..], b"").await.is_err());
            for wrong in [
                "GET / HTTP/1.1\r\nA: b\nC: d\r\n\r\n",
                "GET / HTTP/1.1\r\nA: \0\r\n\r\n",
                "SSH-2.0-x\r\n\r\n",
                "GET /\r\nno header\r\n\r\n",
                "\u{ff}\r\n\r\n",
            ] {
                let head = Head::read(&mut wrong.as_bytes(), b"").await;
                assert!(head.is_err() || head.unwrap().request().is_none(), "{wrong}");
            }
        });
    }

    #[test]
    fn answers_are_read_as_servers_write_them_and_their_absence_is_said() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let read = |text: &[u8]| runtime.block_on(Head::read_answer(&mut &text[..]));
        for text in [
            &b"HTTP/1.1 200 Connection established\r\nProxy-Agent: x\r\n\r\n"[..],
            b"HTTP/1.0 200 OK\n\n",
            b"HTTP/1.1 200 \xe9tabli\r\na line that is no header\r\n\r\n",
        ] {
            assert_eq!(read(text).unwrap().status(), Some(200), "{}", text.escape_ascii());
        }
        assert!(read(b"HTTP/1.1 2").unwrap_err().to_string().contains("without an answer"));
        assert!(read(&[b'x'; HEAD_MAX + 1]).unwrap_err().to_string().contains("no HTTP"));
        assert_eq!(read(b"SSH-2.0-OpenSSH\r\n\r\n").unwrap().status(), None);
    }
}
