//! Recipes of the README whose blocks are no commands: what they say is put where they say, and has to work.

mod common;

use std::fs;
use std::path::Path;

use adit_lab::{Host, wait_for};

use common::SOON;
use common::internet::{
    GATEWAY, INSIDE, Internet, admit, home, init, start_gateway, status, stop_gateway, succeed,
};

/// The block of this language in the README that has this line.
fn block(language: &str, line: &str) -> String {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().join("README.md");
    let text = fs::read_to_string(readme).unwrap();
    let fence = format!("```{language}\n");
    let blocks = text.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap_or_default());
    let found: Vec<_> = blocks.filter(|block| block.contains(line)).collect();
    assert_eq!(found.len(), 1, "{line}");
    found[0].to_owned()
}

fn configure(gateway: &Host, lines: &str) {
    let path = home(gateway).join("adit.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replacen("[gateway]\n", &format!("[gateway]\n{lines}"), 1)).unwrap();
}

#[test]
fn the_tunnel_passes_through_nginx_as_the_recipe_says() {
    let net = Internet::new("recipenginx", 1);
    let (gateway, client) = (&net.gateway, &net.clients[0]);
    init(gateway);
    configure(gateway, &block("toml", "stream_path"));
    let directory = gateway.directory().join("nginx");
    fs::create_dir_all(&directory).unwrap();
    let at = directory.display();
    let request =
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let (key, certificate) = (format!("{at}/key.pem"), format!("{at}/cert.pem"));
    let names = [
        "-days",
        "1",
        "-subj",
        "/CN=www.example.org",
        "-addext",
        "subjectAltName=DNS:www.example.org",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
    ];
    let files = ["-keyout", &key, "-out", &certificate];
    gateway.exec(request.iter().chain(&names).chain(&files).copied()).unwrap();
    let location = block("nginx", "location = /tunnel");
    let server = format!(
        "daemon off; pid {at}/pid; error_log {at}/error.log; events {{}}\nhttp {{ access_log {at}/access.log;\n\
         client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fcgi;\n\
         uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n\
         server {{ listen 443 ssl; ssl_protocols TLSv1.2 TLSv1.3; ssl_certificate {certificate}; ssl_certificate_key {key};\n{location}\n\
         location / {{ return 200 'the site'; }} }} }}\n"
    );
    let file = gateway.write("nginx.conf", server).unwrap().display().to_string();
    let running = start_gateway(gateway);
    let _nginx = gateway.spawn(["nginx", "-e", &format!("{at}/first.log"), "-c", &file]).unwrap();
    wait_for("nginx", SOON, || {
        gateway.exec(["ss", "-ltnH", "sport = :443"]).ok().filter(|it| !it.stdout.is_empty())
    })
    .unwrap();
    let profile = admit(gateway, "laptop", client, &[]);
    net.router.drop_udp().unwrap();
    // The command of the recipe, for a name and an authority that this lab has.
    let resolve = format!("{GATEWAY} www.example.org\n");
    let hosts = client.write("hosts", resolve).unwrap().display().to_string();
    let authority =
        client.write("authority.pem", fs::read(&certificate).unwrap()).unwrap().display().to_string();
    let command =
        block("sh", "--stream-endpoint").trim().replace("sudo adit up", "\"$ADIT\" --home \"$H\" up \"$P\"");
    let script = format!("mount --bind {hosts} /etc/hosts && {command}");
    let up = client
        .command(["unshare", "--mount", "sh", "-c", &script])
        .env("ADIT", common::ADIT)
        .env("H", home(client).display().to_string())
        .env("P", &profile)
        .env("SSL_CERT_FILE", &authority)
        .attempt()
        .unwrap();
    assert!(up.ok(), "{}{}", up.stdout, up.stderr);
    wait_for("the carrier wss", SOON, || (status(client)["peers"][0]["carrier"] == "wss").then_some(()))
        .unwrap_or_else(|error| {
            let told = fs::read_to_string(directory.join("error.log")).unwrap_or_default();
            panic!("{error}: {} {told} {}", status(client), up.stderr)
        });
    assert_eq!(client.ping(INSIDE, 3).unwrap(), 3);
    assert_eq!(net.seen_from(client)[0], GATEWAY);
    let site = net.web.exec(["curl", "-sk", &format!("https://{GATEWAY}/")]).unwrap().stdout;
    assert_eq!(site, "the site", "others see a web site");
    succeed(client, &["down"]);
    stop_gateway(running);
}

#[test]
fn what_the_recipes_put_into_the_file_is_valid() {
    let net = Internet::new("recipetoml", 0);
    init(&net.gateway);
    configure(&net.gateway, &block("toml", "stream_path"));
    succeed(&net.gateway, &["check"]);
    let sites = block("toml", "name = \"branch\"");
    let key =
        net.gateway.exec(["sh", "-c", &format!("{0} genkey | {0} pubkey", common::ADIT)]).unwrap().stdout;
    let (gateway, peer) = sites.split_once("[[peer]]").unwrap();
    configure(&net.gateway, gateway.strip_prefix("[gateway]\n").unwrap());
    let path = home(&net.gateway).join("adit.toml");
    let peer = peer.replace("\"...\"", &format!("\"{}\"", key.trim()));
    let text = fs::read_to_string(&path).unwrap() + "\n[[peer]]" + &peer;
    fs::write(&path, text.replace("branch.example.org", "192.0.2.9")).unwrap();
    succeed(&net.gateway, &["check"]);
}
