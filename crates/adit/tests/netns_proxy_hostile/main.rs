//! What others try with `adit proxy`: each refusal with the same thing done right beside it.
//!
//! | what is tried | the test |
//! |---|---|
//! | X-01, X-02: a listener for everybody | `a_listener_beyond_loopback_…` |
//! | X-03, X-04: the far side's own machine, by address, by name, by a name that changes | `targets_on_the_far_sides_own_machine_…`, `a_name_that_changes_…` |
//! | X-05: a page in a browser that does not use the proxy | `a_web_page_…` |
//! | X-06: two requests in one, two hosts, line ends in names | `http_requests_are_written_anew_…`, `answers_with_two_lengths_…` |
//! | X-07: lengths that lie, associations of others | `socks_clients_that_lie_…`, `an_association_serves_…` |
//! | X-08: guessing the password, and keeping others out | `who_guesses_…`, `ten_thousand_strangers_…` |
//! | X-09: no tunnel | `when_the_tunnel_is_down_…`, `a_tunnel_that_ends_…` |
//! | X-10: a sandbox that forbids the program its own listeners | `every_listener_opens_without_privilege` |
//! | slow heads, half-open connections, floods | `who_says_nothing_…`, `ten_thousand_…`, `a_flood_…` |

#[path = "../common/mod.rs"]
mod common;
mod floods;
mod listeners;
mod requests;
mod targets;

use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::time::Duration;

use adit_lab::Capture;

use common::internet::{GATEWAY, WEB, WEB6};
use common::on;
use common::proxied::{HTTP, SOCKS, World, echo_server, socks_address};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn status_of(answer: &[u8]) -> String {
    String::from_utf8_lossy(answer).split(' ').nth(1).unwrap_or_default().to_owned()
}

#[test]
fn a_tunnel_that_ends_while_it_carries_takes_its_connections_along() {
    let mut world = World::new("cut");
    let _proxy = world.proxy(&[]);
    echo_server(&world.web, 7);
    let mut stream = on(&world.client, || TcpStream::connect(SOCKS).unwrap());
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(&[&[5, 1, 0, 5, 1, 0], &socks_address(WEB, 7)[..], b"ping"].concat()).unwrap();
    let mut answer = [0; 16];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!((&answer[2..4], &answer[12..]), (&[5, 0][..], &b"ping"[..]));
    let capture = Capture::start(&world.client, "eth0").unwrap();
    world.stop_gateway();
    stream.write_all(b"secret that must not go around the tunnel").unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    assert!(stream.read(&mut [0; 64]).map_or(true, |read| read == 0), "nobody can answer");
    let gateway: IpAddr = GATEWAY.parse().unwrap();
    let packets = common::wire::ip_packets(&capture.stop().unwrap());
    let around = packets.iter().filter(|it| it.destination != gateway && it.source != gateway);
    assert_eq!(around.filter(|it| ![1, 58, 0].contains(&it.protocol)).count(), 0);
    assert!(packets.iter().any(|it| it.destination == gateway), "it was tried through the tunnel");
}

#[test]
fn when_the_tunnel_is_down_everything_is_refused_and_nothing_goes_around_it() {
    let mut world = World::new("down");
    let proxy = world.proxy(&[]);
    let connect = |world: &World| world.socks_reply(1, &socks_address(WEB, 80));
    assert_eq!(connect(&world), Some(0));
    drop(proxy);
    world.stop_gateway();
    let capture = Capture::start(&world.client, "eth0").unwrap();
    let _proxy = world.proxy(&[]);
    for host in [WEB, WEB6, "web.example"] {
        assert_eq!(world.socks_reply(1, &socks_address(host, 80)), Some(3), "{host}");
    }
    assert_eq!(world.socks_reply(3, &socks_address("0.0.0.0", 0)), Some(3), "nor for datagrams");
    let answer = world.say(HTTP, format!("GET http://{WEB}/ HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
    assert_eq!(status_of(&answer), "504");
    let packets = common::wire::ip_packets(&capture.stop().unwrap());
    let gateway: IpAddr = GATEWAY.parse().unwrap();
    let around: Vec<_> = packets
        .iter()
        .filter(|it| it.destination != gateway && it.source != gateway)
        .filter(|it| ![1, 58, 0].contains(&it.protocol))
        .collect();
    assert!(around.is_empty(), "{around:?}");
    assert!(packets.iter().any(|it| it.destination == gateway), "handshakes were tried");
}
