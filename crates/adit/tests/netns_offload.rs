//! The kernel's offloads, used or not: both ends say what is in use, and everything passes.

mod common;

use adit_lab::{Content, Host};

use common::internet::{
    Internet, admit, finish_download, init, start_gateway, status, stop_gateway, succeed,
};

/// What `status` says about offloads.
fn offload(host: &Host) -> String {
    let status = status(host);
    status["offload"].as_str().unwrap_or_else(|| panic!("{status}")).to_owned()
}

fn downloads(net: &Internet, client: &Host) {
    let content = Content { seed: 11, bytes: 3_000_000 };
    finish_download(net.start_download(client, content, 20_000), content);
}

#[test]
fn offloads_are_off_on_either_side_when_told_so_and_status_says_it() {
    let net = Internet::new("offload", 2);
    let [usual, without] = &net.clients[..] else { panic!("two clients") };
    init(&net.gateway);
    let gateway = start_gateway(&net.gateway);
    succeed(usual, &["up", &admit(&net.gateway, "tun-0", usual, &[])]);
    succeed(without, &["up", &admit(&net.gateway, "tun-1", without, &[]), "--offload", "off"]);
    for host in [&net.gateway, usual] {
        let said = offload(host);
        assert!(said.contains("checksum") && said.contains("udp: segmentation"), "{said}");
    }
    assert_eq!(offload(without), "tun: off; udp: off");
    net.clients.iter().for_each(|client| downloads(&net, client));
    stop_gateway(gateway);
}
