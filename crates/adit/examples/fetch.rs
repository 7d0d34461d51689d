//! Gets a page through a tunnel that nothing else on this machine uses: no root, no TUN device.
//!
//! ```text
//! cargo run --example fetch -- home.conf example.org /
//! ```

use adit::Tunnel;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The answer of `host` to a request for `path`, through the tunnel of a wg-quick file.
pub async fn fetch(profile: &str, host: &str, path: &str) -> anyhow::Result<String> {
    let tunnel = Tunnel::connect(profile).await?;
    // The name is resolved inside the tunnel too.
    let mut stream = tunnel.tcp_connect(host, 80).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::main(flavor = "current_thread")]
#[allow(dead_code)]
async fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [profile, host, path] = words.as_slice() else {
        anyhow::bail!("usage: fetch FILE.conf HOST PATH");
    };
    print!("{}", fetch(profile, host, path).await?);
    Ok(())
}
