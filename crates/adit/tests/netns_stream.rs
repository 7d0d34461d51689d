//! The tunnel where UDP does not work: a client, a gateway, and what a network does to them.

mod common;

use std::time::{Duration, Instant};

use adit_lab::{Content, Host, Process, wait_for};
use common::SOON;
use common::internet::{
    GATEWAY, INSIDE, Internet, admit, finish_download, home, init, start_gateway, status, stop_gateway,
    succeed,
};
use serde_json::Value;

const FILE: Content = Content { seed: 0xad17, bytes: 4 << 20 };
/// The router as the first client sees it.
const ROUTER: &str = "10.100.0.1";

fn peer(host: &Host) -> Value {
    status(host)["peers"][0].clone()
}

fn wait_for_carrier(host: &Host, wanted: &[&str], within: Duration) {
    let waited = wait_for(format!("the carrier {wanted:?}"), within, || {
        peer(host)["carrier"].as_str().filter(|it| wanted.contains(it)).map(drop)
    });
    waited.unwrap_or_else(|error| panic!("{error}; it is {}", status(host)));
}

fn up(client: &Host, file: &str, settings: &[&str]) {
    succeed(client, &[&["up", file], settings].concat());
}

/// Adds lines below `[gateway]`.
fn configure(gateway: &Host, lines: &str) {
    let path = home(gateway).join("adit.toml");
    let path = if path.exists() { path } else { home(gateway).join("etc/adit.toml") };
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("[gateway]\n", &format!("[gateway]\n{lines}\n"), 1)).unwrap();
}

#[test]
fn a_tunnel_over_any_stream_carries_a_download_byte_for_byte() {
    let internet = Internet::new("stream", 1);
    let client = &internet.clients[0];
    init(&internet.gateway);
    let gateway = start_gateway(&internet.gateway);
    let file = admit(&internet.gateway, "phone", client, &[]);
    internet.router.drop_udp().unwrap();
    for kind in ["tcp", "tls", "wss"] {
        up(client, &file, &["--carrier", kind]);
        wait_for_carrier(client, &[kind], SOON);
        assert_eq!(client.ping(INSIDE, 3).unwrap(), 3);
        finish_download(internet.start_download(client, FILE, 100_000), FILE);
        assert_eq!(peer(&internet.gateway)["carrier"], kind);
        succeed(client, &["down"]);
    }
    stop_gateway(gateway);
}

#[test]
fn a_client_finds_its_way_where_udp_is_dropped_and_comes_back_to_it() {
    let internet = Internet::new("auto", 1);
    let client = &internet.clients[0];
    init(&internet.gateway);
    let gateway = start_gateway(&internet.gateway);
    let file = admit(&internet.gateway, "phone", client, &[]);
    internet.router.drop_udp().unwrap();
    up(client, &file, &[]);
    wait_for_carrier(client, &["tcp", "tls", "wss"], SOON);
    finish_download(internet.start_download(client, FILE, 100_000), FILE);
    let handshakes = peer(client)["last_handshake_secs_ago"].as_u64().unwrap();

    // A download goes on while the carrier changes below it.
    let download = internet.start_download(client, FILE, 300);
    internet.router.drop_nothing().unwrap();
    wait_for_carrier(client, &["udp"], Duration::from_secs(60));
    finish_download(download, FILE);
    assert!(peer(client)["last_handshake_secs_ago"].as_u64().unwrap() >= handshakes, "the session goes on");
    assert_eq!(peer(&internet.gateway)["carrier"], "udp");
    succeed(client, &["down"]);
    stop_gateway(gateway);
}

#[test]
fn a_download_survives_that_udp_dies_below_it() {
    let internet = Internet::new("midway", 1);
    let client = &internet.clients[0];
    init(&internet.gateway);
    let gateway = start_gateway(&internet.gateway);
    let file = admit(&internet.gateway, "phone", client, &[]);
    up(client, &file, &[]);
    wait_for_carrier(client, &["udp"], SOON);
    let download = internet.start_download(client, FILE, 300);
    std::thread::sleep(Duration::from_secs(2));
    let before = peer(client)["last_handshake_secs_ago"].as_u64().unwrap();
    internet.router.drop_udp().unwrap();
    let started = Instant::now();
    wait_for_carrier(client, &["tcp", "tls", "wss"], Duration::from_secs(20));
    let took = started.elapsed();
    println!("moved {} ms after UDP was dropped", took.as_millis());
    finish_download(download, FILE);
    assert!(peer(client)["last_handshake_secs_ago"].as_u64().unwrap() >= before, "the session goes on");
    succeed(client, &["down"]);
    stop_gateway(gateway);
}

#[test]
fn udp_alone_is_what_whoever_asks_for_it_gets() {
    let internet = Internet::new("udponly", 1);
    let client = &internet.clients[0];
    init(&internet.gateway);
    let gateway = start_gateway(&internet.gateway);
    let file = admit(&internet.gateway, "phone", client, &[]);
    internet.router.drop_udp().unwrap();
    up(client, &file, &["--carrier", "udp"]);
    assert_eq!(client.ping(INSIDE, 2).unwrap(), 0);
    internet.router.drop_nothing().unwrap();
    wait_for("an answer over UDP", Duration::from_secs(30), || {
        (client.ping(INSIDE, 1) == Ok(1)).then_some(())
    })
    .unwrap();
    succeed(client, &["down"]);
    stop_gateway(gateway);
}

fn start_nginx(host: &Host, port: u16, path_to: &str) -> Process {
    let directory = host.directory().join("nginx");
    std::fs::create_dir_all(&directory).unwrap();
    let at = directory.display().to_string();
    let [certificate, key] = ["certificate.pem", "key.pem"].map(|name| format!("{at}/{name}"));
    host.exec([
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=vpn.example.org",
        "-keyout",
        &key,
        "-out",
        &certificate,
    ])
    .unwrap();
    let text = format!(
        "daemon off; master_process off; pid {at}/pid; error_log stderr;
events {{}}
http {{
  access_log off; client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi;
  uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' close; }}
  server {{
    listen {port} ssl; ssl_certificate {certificate}; ssl_certificate_key {key};
    location / {{
      proxy_pass {path_to}; proxy_http_version 1.1; proxy_set_header Host $host; proxy_buffering off;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;
      proxy_read_timeout 1h; proxy_send_timeout 1h;
    }}
  }}
}}
"
    );
    let file = host.write("nginx/nginx.conf", text).unwrap().display().to_string();
    let process = host.spawn(["nginx", "-e", "stderr", "-c", &file]).unwrap();
    wait_for("nginx to listen", SOON, || {
        let listening = host.exec(["ss", "-Hltn"]).ok()?.stdout;
        listening.contains(&format!(":{port} ")).then_some(())
    })
    .unwrap();
    process
}

#[test]
fn behind_nginx_the_tunnel_and_the_web_share_port_443() {
    let internet = Internet::new("nginx", 1);
    let (client, host) = (&internet.clients[0], &internet.gateway);
    init(host);
    configure(host, "stream = [\"127.0.0.1:8443\"]");
    let gateway = start_gateway(host);
    let file = admit(host, "phone", client, &[]);
    let nginx = start_nginx(host, 443, "http://127.0.0.1:8443");
    internet.router.drop_udp().unwrap();
    let place = format!("{GATEWAY}:443");
    up(client, &file, &["--carrier", "wss", "--stream-endpoint", &place, "--tls-verify", "off"]);
    wait_for_carrier(client, &["wss"], SOON);
    assert_eq!(client.ping(INSIDE, 3).unwrap(), 3);
    finish_download(internet.start_download(client, FILE, 100_000), FILE);
    assert_eq!(peer(host)["carrier"], "ws", "nginx takes the TLS off");
    let page = host.exec(["curl", "-sk", &format!("https://{GATEWAY}/")]).unwrap().stdout;
    assert!(page.contains("It works!"), "{page}");
    succeed(client, &["down"]);
    drop(nginx);
    stop_gateway(gateway);
}

#[test]
fn a_forward_proxy_that_asks_for_a_password_is_enough() {
    let internet = Internet::new("proxyvia", 1);
    let (client, host) = (&internet.clients[0], &internet.gateway);
    init(host);
    configure(host, "stream = [\"same\", \":443\"]");
    let gateway = start_gateway(host);
    let file = admit(host, "phone", client, &[]);
    let settings = "Port 3128\nListen 10.100.0.1\nTimeout 600\nMaxClients 20\nAllow 10.100.0.0/16\nConnectPort 443\n\
                    BasicAuth me secret\nLogLevel Warning\n";
    let config = internet.router.write("tinyproxy.conf", settings).unwrap().display().to_string();
    let proxy = internet.router.spawn(["tinyproxy", "-d", "-c", &config]).unwrap();
    wait_for("the proxy to listen", SOON, || {
        internet.router.exec(["ss", "-Hltn"]).ok()?.stdout.contains(":3128 ").then_some(())
    })
    .unwrap();
    // Nothing of the client passes the router itself.
    internet
        .router
        .nft("table inet cage { chain forward { type filter hook forward priority 0; ip saddr 10.100.0.2 drop; } }")
        .unwrap();
    let via = format!("http://me@{ROUTER}:3128");
    let place = format!("{GATEWAY}:443");
    let password = client.write("password", "secret\n").unwrap().display().to_string();
    let wrong = client.write("wrong", "guess\n").unwrap().display().to_string();
    let settings = |password: &str| {
        ["--via", &via, "--stream-endpoint", &place, "--via-password", &format!("file:{password}")]
            .map(str::to_owned)
    };
    for (kind, file_of_password) in [("tls", &password), ("wss", &password)] {
        let settings = settings(file_of_password);
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        up(client, &file, &[&settings[..], &["--carrier", kind]].concat());
        wait_for_carrier(client, &[kind], SOON);
        assert_eq!(client.ping(INSIDE, 3).unwrap(), 3);
        finish_download(internet.start_download(client, FILE, 100_000), FILE);
        succeed(client, &["down"]);
    }
    let settings = settings(&wrong);
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    up(client, &file, &[&settings[..], &["--carrier", "tls"]].concat());
    assert_eq!(client.ping(INSIDE, 2).unwrap(), 0, "the proxy refuses a wrong password");
    let log = std::fs::read_to_string(home(client).join("state/phone.log"))
        .or_else(|_| std::fs::read_to_string(home(client).join("phone.log")))
        .unwrap_or_default();
    assert!(!log.contains("guess"), "no password in the log");
    succeed(client, &["down"]);
    drop(proxy);
    stop_gateway(gateway);
}

#[test]
fn visitors_find_a_plain_web_server_and_scanners_nothing() {
    let internet = Internet::new("visitor", 1);
    let (client, host) = (&internet.clients[0], &internet.gateway);
    init(host);
    let gateway = start_gateway(host);
    let https = format!("https://{GATEWAY}:51820");
    let curl = |arguments: &[&str]| {
        client.attempt([&["curl", "-s", "-m", "10", "-k"], arguments].concat()).unwrap().stdout
    };
    assert!(curl(&[&format!("{https}/")]).contains("It works!"));
    assert!(curl(&[&format!("http://{GATEWAY}:51820/")]).contains("It works!"));
    assert!(curl(&["-i", &format!("{https}/admin")]).starts_with("HTTP/1.1 404"));
    assert!(curl(&["-i", "-X", "POST", &format!("{https}/")]).starts_with("HTTP/1.1 405"));
    assert!(curl(&["--tls-max", "1.2", &format!("{https}/")]).is_empty(), "TLS 1.2 is not spoken");
    let place = format!("{GATEWAY}:51820");
    let shown = client
        .command(["openssl", "s_client", "-connect", &place, "-alpn", "http/1.1"])
        .input("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .attempt()
        .unwrap();
    assert!(
        shown.stdout.contains("TLSv1.3") && shown.stdout.contains("ALPN protocol: http/1.1"),
        "{shown:?}"
    );
    // Whoever shows nothing is let go after the same time, whatever they send.
    for greeting in ["SSH-2.0-OpenSSH_9.6\r\n", "\0\u{1}\0\0", "\r\n\r\n", "EHLO x\r\n"] {
        let started = Instant::now();
        let said = client
            .command(["timeout", "20", "socat", "-t", "15", "-", &format!("TCP:{place}")])
            .input(greeting)
            .attempt()
            .unwrap();
        let took = started.elapsed();
        let is_http = greeting.starts_with('E');
        assert!(is_http || said.stdout.is_empty(), "{greeting:?} was answered: {said:?}");
        assert!(took < Duration::from_secs(16), "{greeting:?}: {took:?}");
        assert!(is_http || took > Duration::from_secs(3), "{greeting:?}: {took:?}");
    }
    assert_eq!(status(host)["peers"].as_array().map(Vec::len), Some(0));
    stop_gateway(gateway);
}
