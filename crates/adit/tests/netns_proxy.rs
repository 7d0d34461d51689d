//! `adit proxy` as nobody: what browsers and commands do with it, and whom the servers see.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use adit_lab::{Content, Host, wait_for};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use common::internet::{GATEWAY, GATEWAY6, INSIDE, WEB, WEB6};
use common::proxied::{
    HTTP, Recorder, SOCKS, World, echo_server, file_server, pid_of_proxy, resident_kib, socks_address,
};
use common::{SOON, on};

/// Everything a browser does, over both protocols and both IP versions.
fn browse(world: &World) {
    let _proxy = world.proxy(&[]);
    let http = format!("http://{HTTP}");
    let pages = [
        (format!("http://{WEB}/"), GATEWAY),
        (format!("http://[{WEB6}]/"), GATEWAY6),
        ("http://web.example/".to_owned(), GATEWAY),
        ("http://long.example/".to_owned(), GATEWAY),
        ("http://six.example/".to_owned(), GATEWAY6),
    ];
    for (url, seen) in &pages {
        assert_eq!(world.curl(&["--socks5-hostname", SOCKS, url]), *seen, "{url} by SOCKS");
        assert_eq!(world.curl(&["--proxy", &http, url]), *seen, "{url} by HTTP");
        assert_eq!(world.curl(&["--proxy", &http, "--proxytunnel", url]), *seen, "{url} by CONNECT");
    }
    let url = format!("http://{WEB}/file?bytes=3000017&seed=7");
    let content = Content { seed: 7, bytes: 3_000_017 };
    for proxy in [["--socks5-hostname", SOCKS], ["--proxy", &http]] {
        assert_eq!(sha256_of_download(world, &proxy, &url), content.sha256());
    }
    world.assert_only_the_gateway_came();
}

fn sha256_of_download(world: &World, proxy: &[&str], url: &str) -> String {
    let script = "set -e; url=$1; shift; curl -gsS \"$@\" \"$url\" | sha256sum";
    let words = ["sh", "-c", script, "sh", url].into_iter().chain(proxy.iter().copied());
    let output = world.nobody.command(words).deadline(Duration::from_secs(300)).exec().unwrap();
    output.stdout.split(' ').next().unwrap_or_default().to_owned()
}

#[test]
fn curl_reaches_the_web_as_nobody_and_the_server_sees_the_gateway() {
    browse(&World::new("browse"));
}

#[test]
fn curl_reaches_the_web_behind_a_stock_wireguard_go_gateway() {
    browse(&World::behind_wireguard_go("browsego"));
}

#[test]
fn nothing_on_the_host_changes_and_no_name_is_asked_of_it() {
    let world = World::new("untouched");
    let before = common::picture::Picture::of(&world.client);
    let capture = adit_lab::Capture::start(&world.client, "eth0").unwrap();
    let mut proxy = world.proxy(&[]);
    assert_eq!(world.curl(&["--socks5-hostname", SOCKS, "http://web.example/"]), GATEWAY);
    let uid = world.nobody.command(["id", "-u"]).exec().unwrap().stdout;
    assert_eq!(uid.trim(), "65534");
    proxy.terminate();
    assert_eq!(proxy.wait(SOON).unwrap().code(), Some(0), "{}", proxy.stderr());
    before.assert_again(&world.client);
    let datagrams = common::wire::datagrams(&capture.stop().unwrap());
    assert!(datagrams.len() > 10);
    let gateway: SocketAddr = format!("{GATEWAY}:51820").parse().unwrap();
    let strangers: Vec<_> =
        datagrams.iter().filter(|it| it.source != gateway && it.destination != gateway).collect();
    assert!(strangers.is_empty(), "{strangers:?}");
}

#[test]
fn https_and_git_pass_through_the_proxy() {
    https_and_git(&World::new("https"));
}

#[test]
fn https_and_git_pass_behind_a_stock_wireguard_go_gateway() {
    https_and_git(&World::behind_wireguard_go("httpsgo"));
}

fn https_and_git(world: &World) {
    let _proxy = world.proxy(&[]);
    let directory = world.web.directory().to_owned();
    let (key, certificate) = (directory.join("key.pem"), directory.join("cert.pem"));
    let (key, certificate) = (key.display().to_string(), certificate.display().to_string());
    let request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
    let rest = ["-nodes", "-days", "1", "-subj", "/CN=web.example", "-keyout", &key, "-out", &certificate];
    world.web.exec(request.iter().chain(&rest).copied()).unwrap();
    let listen = format!("OPENSSL-LISTEN:443,fork,reuseaddr,cert={certificate},key={key},verify=0");
    let script = "while read -r line && [ ${#line} -gt 1 ]; do :; done\n\
                  printf 'HTTP/1.0 200 OK\\r\\n\\r\\n%s' \"$SOCAT_PEERADDR\"\n";
    let page = format!("EXEC:/bin/sh {}", world.web.write("page.sh", script).unwrap().display());
    let _server = world.web.spawn(["socat", &listen, &page]).unwrap();
    wait_for("the web server", SOON, || {
        world.web.exec(["ss", "-ltnH", "sport = :443"]).ok().filter(|it| !it.stdout.is_empty())
    })
    .unwrap();
    let http = format!("http://{HTTP}");
    for proxy in [["--proxy", &http], ["--socks5-hostname", SOCKS]] {
        assert_eq!(world.curl(&["-k", proxy[0], proxy[1], "https://web.example/"]), GATEWAY);
    }

    let script = "set -e; cd \"$1\"; git init -q work; cd work; head -c 300000 /dev/urandom > file; git add file; \
                  git -c user.name=a -c user.email=a@example commit -qm one; cd ..; \
                  git clone -q --bare work repository.git; git -C repository.git update-server-info; \
                  sha256sum < work/file";
    let made = world.web.exec(["sh", "-c", script, "sh", &directory.display().to_string()]).unwrap().stdout;
    file_server(&world.web, 8000, directory);
    for proxy in [http.clone(), format!("socks5h://{SOCKS}")] {
        let script = "set -e; rm -rf \"$HOME/clone\"; git -c http.proxy=\"$1\" clone -q http://web.example:8000/repository.git \
                      \"$HOME/clone\"; sha256sum < \"$HOME/clone/file\"";
        let cloned = world.nobody.command(["sh", "-c", script, "sh", &proxy]).exec().unwrap().stdout;
        assert_eq!(cloned, made, "by {proxy}");
    }
    world.assert_only_the_gateway_came();
}

/// Passes the datagrams of one local program through an association of the proxy.
fn socks_for_datagrams(client: &Host, to: SocketAddr, seconds: u64) -> SocketAddr {
    on(client, move || {
        let mut control = TcpStream::connect(SOCKS).unwrap();
        control.write_all(&[5, 1, 0, 5, 3, 0, 1, 0, 0, 0, 0, 0, 0]).unwrap();
        let mut answer = [0; 12];
        control.read_exact(&mut answer).unwrap();
        assert_eq!((&answer[..2], answer[3], answer[5]), (&[5, 0][..], 0, 1), "{answer:?}");
        let proxy = SocketAddr::from(([127, 0, 0, 1], u16::from_be_bytes([answer[10], answer[11]])));
        let inside = UdpSocket::bind("127.0.0.1:0").unwrap();
        let outside = UdpSocket::bind("127.0.0.1:0").unwrap();
        let here = inside.local_addr().unwrap();
        for socket in [&inside, &outside] {
            socket.set_read_timeout(Some(Duration::from_secs(seconds))).unwrap();
        }
        thread::spawn(move || {
            let mut buffer = [0; 2_048];
            while let Ok((read, program)) = inside.recv_from(&mut buffer) {
                let header = [&[0, 0, 0], &socks_address(&to.ip().to_string(), to.port())[..]].concat();
                outside.send_to(&[&header, &buffer[..read]].concat(), proxy).unwrap();
                let mut answer = [0; 2_048];
                let Ok((read, _)) = outside.recv_from(&mut answer) else { continue };
                assert_eq!(answer[..header.len()], header);
                inside.send_to(&answer[header.len()..read], program).unwrap();
            }
            drop(control);
        });
        here
    })
}

#[test]
fn dig_asks_through_an_association() {
    dig(&World::new("dig"));
}

#[test]
fn dig_asks_behind_a_stock_wireguard_go_gateway() {
    dig(&World::behind_wireguard_go("diggo"));
}

fn dig(world: &World) {
    let _proxy = world.proxy(&[]);
    for server in [format!("{WEB}:53"), format!("[{WEB6}]:53")] {
        let here = socks_for_datagrams(&world.client, server.parse().unwrap(), 10);
        let port = here.port().to_string();
        let argv =
            ["dig", "+short", "+tries=1", "+time=5", "+noedns", "@127.0.0.1", "-p", &port, "web.example"];
        assert_eq!(world.nobody.command(argv).exec().unwrap().stdout.trim(), WEB, "{server}");
    }
    world.assert_only_the_gateway_came();
}

#[test]
fn ports_lead_both_ways() {
    let world = World::new("ports");
    let outside = "8081:web.example:80";
    let inside = "7000:127.0.0.1:7001";
    let _proxy = world.proxy(&["-L", outside, "-R", inside]);
    assert_eq!(world.curl(&["http://127.0.0.1:8081/"]), GATEWAY);
    let _answers = Recorder::start(&world.client, 7001, b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello");
    let address = "10.86.0.2";
    let page =
        world.internet.gateway.exec(["curl", "-sS", "--max-time", "10", &format!("http://{address}:7000/")]);
    assert_eq!(page.unwrap().stdout, "hello");
    let closed = world.internet.gateway.attempt([
        "curl",
        "-sS",
        "--max-time",
        "10",
        &format!("http://{address}:7002/"),
    ]);
    assert_eq!(closed.unwrap().code(), Some(7), "connection refused");
    assert_eq!(world.internet.gateway.ping(address, 2).unwrap(), 2);
    assert_eq!(world.curl(&["--socks5-hostname", SOCKS, &format!("http://{WEB}/")]), GATEWAY, "{INSIDE}");
}

#[test]
fn a_thousand_connections_at_a_time_all_carry_and_take_little_memory() {
    a_thousand_connections(&World::new("thousand"));
}

#[test]
fn a_thousand_connections_at_a_time_all_carry_behind_a_stock_wireguard_go_gateway() {
    a_thousand_connections(&World::behind_wireguard_go("thousandgo"));
}

fn a_thousand_connections(world: &World) {
    const COUNT: usize = 1_000;
    let proxy = world.proxy(&[]);
    echo_server(&world.web, 7);
    adit_io::sys::raise_descriptor_limit().unwrap();
    let pid = pid_of_proxy(world);
    assert_eq!(world.curl(&["--socks5-hostname", SOCKS, "http://web.example/"]), GATEWAY);
    let before = resident_kib(pid);
    let after = on(&world.client, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut tasks = tokio::task::JoinSet::new();
            for number in 0..COUNT {
                tasks.spawn(async move {
                    let mut stream = connect_by_socks(WEB, 7).await;
                    echo(&mut stream, number).await;
                    stream
                });
            }
            let mut streams = tasks.join_all().await;
            let after = resident_kib(pid);
            for (number, stream) in streams.iter_mut().enumerate() {
                echo(stream, number).await;
            }
            after
        })
    });
    let each = (after - before) as f64 / COUNT as f64;
    println!("{each:.1} KiB for each idle connection");
    assert!(each <= 32.0, "{each} KiB for each idle connection");
    world.assert_only_the_gateway_came();
    drop(proxy);
}

async fn connect_by_socks(host: &str, port: u16) -> tokio::net::TcpStream {
    let mut stream = tokio::net::TcpStream::connect(SOCKS).await.unwrap();
    let request = [&[5, 1, 0, 5, 1, 0], &socks_address(host, port)[..]].concat();
    stream.write_all(&request).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!((&answer[..2], answer[3]), (&[5, 0][..], 0), "{answer:?}");
    stream
}

async fn echo(stream: &mut tokio::net::TcpStream, number: usize) {
    let message = format!("{number:064}");
    stream.write_all(message.as_bytes()).await.unwrap();
    let mut back = [0; 64];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(back, message.as_bytes());
}

#[test]
fn a_download_of_a_gibibyte_arrives_whole_and_so_does_an_upload() {
    large(&World::new("large"));
}

#[test]
fn a_download_of_a_gibibyte_arrives_whole_behind_a_stock_wireguard_go_gateway_and_so_does_an_upload() {
    large(&World::behind_wireguard_go("largego"));
}

fn large(world: &World) {
    let _proxy = world.proxy(&[]);
    let content = Content { seed: 128, bytes: 1 << 30 };
    let url = format!("http://{WEB}/file?bytes={}&seed={}", content.bytes, content.seed);
    assert_eq!(sha256_of_download(world, &["--socks5-hostname", SOCKS], &url), content.sha256());

    echo_server(&world.web, 7);
    on(&world.client, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut reader, mut writer) = connect_by_socks("web.example", 7).await.into_split();
            let content = Content { seed: 9, bytes: 16 << 20 };
            let sent = tokio::spawn(async move {
                let (mut offset, mut buffer) = (0, vec![0; 65_536]);
                while let length @ 1.. = content.read_at(offset, &mut buffer) {
                    writer.write_all(&buffer[..length]).await.unwrap();
                    offset += length as u64;
                }
                writer.shutdown().await.unwrap();
            });
            let mut back = Vec::new();
            reader.read_to_end(&mut back).await.unwrap();
            sent.await.unwrap();
            let mut expected = vec![0; content.bytes as usize];
            content.read_at(0, &mut expected);
            assert!(back == expected, "{} of {} bytes came back", back.len(), content.bytes);
        });
    });
    world.assert_only_the_gateway_came();
}
