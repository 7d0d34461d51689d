//! A browser behind `adit proxy` as nobody: one page, fifty resources, one address that the web server sees.

mod common;

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use adit_lab::{Capture, find_tool};

use common::internet::GATEWAY;
use common::proxied::{HTTP, SOCKS, World, file_server};

const PICTURES: usize = 50;

#[test]
fn chromium_loads_a_page_with_fifty_pictures_by_http() {
    look_at_pictures("chromium", World::new, &format!("http://{HTTP}"));
}

#[test]
fn chromium_loads_a_page_with_fifty_pictures_by_socks_behind_a_stock_wireguard_go_gateway() {
    look_at_pictures("chromiumgo", World::behind_wireguard_go, &format!("socks5://{SOCKS}"));
}

/// Debian has Chromium as a package; where it is not to be had (`cargo xtask setup` says so), this says so too.
fn look_at_pictures(name: &str, world: impl FnOnce(&str) -> World, proxy: &str) {
    let Some(chromium) =
        ["chromium", "chromium-browser", "google-chrome"].iter().find(|it| find_tool(it).is_ok())
    else {
        return println!("not run: there is no Chromium on this machine");
    };
    let world = world(name);
    let _proxy = world.proxy(&[]);
    let root = world.web.directory().join("gallery");
    write_gallery(&root);
    let visits = file_server(&world.web, 8000, root);
    let capture = Capture::start(&world.client, "eth0").unwrap();
    let (profile, picture) = (world.nobody.path("chromium"), world.nobody.path("picture.png"));
    let arguments = [
        "--headless",
        // It has a sandbox of its own, which needs what nobody here may.
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--window-size=1300,700",
        "--virtual-time-budget=20000",
        "--dump-dom",
        &format!("--user-data-dir={profile}"),
        &format!("--screenshot={picture}"),
        &format!("--proxy-server={proxy}"),
        "http://web.example:8000/index.html",
    ];
    let words = [*chromium].into_iter().chain(arguments);
    let seen = world.nobody.command(words).deadline(Duration::from_secs(120)).exec().unwrap();
    assert!(seen.stdout.contains(&format!("{PICTURES} of {PICTURES} pictures")), "{}", seen.stdout);

    let visits = visits.lock().unwrap();
    let gateway: IpAddr = GATEWAY.parse().unwrap();
    assert!(visits.iter().all(|(from, _)| *from == gateway), "{visits:?}");
    for number in 0..PICTURES {
        assert!(visits.iter().any(|(_, path)| *path == format!("/{number}.svg")), "{number} of {visits:?}");
    }
    world.assert_only_the_gateway_came();
    let datagrams = common::wire::datagrams(&capture.stop().unwrap());
    assert!(datagrams.len() > PICTURES);
    let ends = datagrams.iter().map(|it| (it.source, it.destination));
    let strangers: Vec<(SocketAddr, SocketAddr)> =
        ends.filter(|(from, to)| from.ip() != gateway && to.ip() != gateway).collect();
    assert!(strangers.is_empty(), "around the tunnel: {strangers:?}");

    let bytes = fs::read(&picture).unwrap();
    assert!(bytes.starts_with(b"\x89PNG") && bytes.len() > 5_000, "{} bytes", bytes.len());
    // For who wants to look at it.
    fs::write(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.png")), bytes).unwrap();
}

fn write_gallery(root: &Path) {
    fs::create_dir_all(root).unwrap();
    let mut images = String::new();
    for number in 0..PICTURES {
        let hue = number * 360 / PICTURES;
        let svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"120\" height=\"120\">\
             <rect width=\"120\" height=\"120\" fill=\"hsl({hue},70%,60%)\"/>\
             <text x=\"60\" y=\"75\" font-size=\"44\" text-anchor=\"middle\">{number}</text></svg>"
        );
        fs::write(root.join(format!("{number}.svg")), svg).unwrap();
        images += &format!("<img src=\"/{number}.svg\" width=\"120\" height=\"120\">");
    }
    let script = "addEventListener('load', () => { const all = [...document.images]; \
                  const there = all.filter(it => it.complete && it.naturalWidth === 120); \
                  document.getElementById('count').textContent = `${there.length} of ${all.length} pictures`; })";
    let page = format!(
        "<!DOCTYPE html><title>gallery</title><script>{script}</script><h1 id=\"count\">none</h1>{images}"
    );
    fs::write(root.join("index.html"), page).unwrap();
}
