//! What the tests in namespaces share: two hosts, tunnels on them, and what crosses the wire between.

// Each test is a program of its own and uses a part of this.
#![allow(dead_code)]

pub mod carried;
pub mod device;
pub mod dhcp;
pub mod drivers;
pub mod internet;
pub mod leak;
pub mod names;
pub mod node;
pub mod peer;
pub mod picture;
pub mod proxied;
pub mod rootless;
pub mod service;
pub mod slow_way;
pub mod terminal;
pub mod tunnel;
pub mod wire;

use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use adit_io::sys::NetNamespace;
use adit_lab::{Content, End, Host, Lab, Link, wait_for};

/// The program under test.
pub const ADIT: &str = env!("CARGO_BIN_EXE_adit");
/// How long to wait for what should happen at once.
pub const SOON: Duration = Duration::from_secs(10);

/// A lab whose agents are those of the program under test.
pub fn lab(prefix: &str) -> Lab {
    Lab::with_agent(prefix, [ADIT, "lab"]).unwrap()
}

/// Two hosts that nothing but one cable joins.
pub struct Pair {
    pub a: Host,
    pub b: Host,
    pub link: Link,
    // The last to go: it ends what the hosts still run.
    pub lab: Lab,
}

/// Hosts `a` and `b` with the addresses of [`outside`] on `eth0`, 1 and 2.
pub fn pair(prefix: &str) -> Pair {
    pair_with_mtu(prefix, 1500)
}

/// Like [`pair`], with a cable that carries larger packets.
pub fn pair_with_mtu(prefix: &str, mtu_bytes: u32) -> Pair {
    let lab = lab(prefix);
    let (a, b) = (lab.host("a").unwrap(), lab.host("b").unwrap());
    let link = lab.connect(outside_end(&a, 1).mtu(mtu_bytes), outside_end(&b, 2).mtu(mtu_bytes)).unwrap();
    Pair { a, b, link, lab }
}

/// `eth0` with the addresses of [`outside`].
pub fn outside_end(host: &Host, number: u8) -> End {
    let [v4, v6] = [Family::V4, Family::V6].map(|family| outside(family, number));
    End::new(host, "eth0").address(format!("{v4}/24")).address(format!("{v6}/64"))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// Where host `number` is outside of the tunnel.
pub fn outside(family: Family, number: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([192, 0, 2, number]),
        Family::V6 => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(number)]),
    }
}

/// The address of host `number` inside the tunnel.
pub fn inside(family: Family, number: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([10, 9, 0, number]),
        Family::V6 => IpAddr::from([0xfd00, 9, 0, 0, 0, 0, 0, u16::from(number)]),
    }
}

/// Runs `action` on a thread in the network of `host`; sockets it makes stay there.
pub fn on<T: Send>(host: &Host, action: impl FnOnce() -> T + Send) -> T {
    let namespace = NetNamespace::open(format!("/run/netns/{}", host.namespace()).as_ref()).unwrap();
    let enter_and_act = move || {
        namespace.enter().unwrap();
        action()
    };
    thread::scope(|scope| scope.spawn(enter_and_act).join().unwrap())
}

/// Sends `count` echo requests as fast as the answers come, and expects each answer.
pub fn flood(host: &Host, address: IpAddr, count: u32) {
    let before = echo_replies(host, address);
    let (number, target) = (count.to_string(), address.to_string());
    let output = host.attempt(["ping", "-n", "-q", "-f", "-W", "5", "-c", &number, &target]).unwrap();
    assert!(output.stdout.contains(&format!("{count} packets transmitted")), "{output:?}");
    // ping waits for the last answer no longer than twice the slowest before; the host counts it all the same.
    wait_for(format!("{count} answers of {address}, while ping says {}", output.stdout), SOON, || {
        (echo_replies(host, address) >= before + u64::from(count)).then_some(())
    })
    .unwrap();
}

/// How many echo replies of the address' family have reached the host.
fn echo_replies(host: &Host, address: IpAddr) -> u64 {
    let counters = host.exec(["cat", "/proc/net/snmp", "/proc/net/snmp6"]).unwrap().stdout;
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let lines: Vec<Vec<String>> = counters.lines().map(words).collect();
    let value = match address {
        IpAddr::V4(_) => {
            let [names, values] =
                [0, 1].map(|n| lines.iter().filter(|line| line[0] == "Icmp:").nth(n).unwrap());
            &values[names.iter().position(|name| name == "InEchoReps").unwrap()]
        }
        IpAddr::V6(_) => &lines.iter().find(|line| line[0] == "Icmp6InEchoReplies").unwrap()[1],
    };
    value.parse().unwrap()
}

/// Downloads `bytes` over HTTP from `server` at `address` to `client`; every byte has to be right.
pub fn download(client: &Host, server: &Host, address: IpAddr, bytes: u64) {
    let place = match address {
        IpAddr::V4(address) => format!("{address}:8080"),
        IpAddr::V6(address) => format!("[{address}]:8080"),
    };
    let mut process = server.agent(["http-server", "--listen", &place]).spawn().unwrap();
    process.wait_for_text("listening", SOON).unwrap();
    let content = Content { seed: bytes ^ 0x5eed, bytes };
    let url = format!("http://{place}/file?bytes={bytes}&seed={}", content.seed);
    let report = client.agent(["http-get", &url, "--sha256"]).exec().unwrap().json().unwrap();
    assert_eq!(report["bytes"], bytes);
    assert_eq!(report["sha256"], content.sha256());
}
