use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use adit_io::carrier::stream::websocket::Side;
use adit_io::carrier::stream::{Connection, Layer, Mark, Tls, prepare};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, NamedGroup, ServerConnection};

use super::trust::{client_config, config_with};
use super::{Certificate, provider};
use crate::config::stream::TlsVerify;

const ROOM: usize = 512 * 1024;

/// What we ask of a gateway.
fn ours() -> Arc<ClientConfig> {
    client_config(TlsVerify::Off, None).unwrap()
}

/// A TLS handshake over loopback: both sessions, and their sockets.
fn shake_hands(asking: Arc<ClientConfig>) -> (ClientConnection, ServerConnection, [TcpStream; 2]) {
    let [mut near, mut far] = sockets();
    let directory = tempfile::tempdir().unwrap();
    let made = Certificate::SelfMade { file: directory.path().join("pem"), name: "a.example".to_owned() };
    let shown = made.load().unwrap();
    let mut client = ClientConnection::new(asking, "a.example".try_into().unwrap()).unwrap();
    let mut server = ServerConnection::new(Arc::clone(&shown.config)).unwrap();
    let shaking = std::thread::spawn(move || {
        server.complete_io(&mut far).unwrap();
        (server, far)
    });
    client.complete_io(&mut near).unwrap();
    let (server, far) = shaking.join().unwrap();
    (client, server, [near, far])
}

fn sockets() -> [TcpStream; 2] {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    [near, listener.accept().unwrap().0]
}

/// Two ends of a connection over loopback, with these layers.
fn ends(tls: bool, websocket: bool) -> [Connection; 2] {
    let ([near, far], sessions) = if tls {
        let (client, server, sockets) = shake_hands(ours());
        (sockets, [Some(Tls::Client(Box::new(client))), Some(Tls::Server(Box::new(server)))])
    } else {
        (sockets(), [None, None])
    };
    let sides = [Side::Client, Side::Server].map(|side| websocket.then_some(side));
    let [client, server] = sessions;
    [(near, client, sides[0]), (far, server, sides[1])].map(|(socket, tls, websocket)| {
        prepare(&socket).unwrap();
        Connection::new(socket, Layer { tls, websocket })
    })
}

const LAYERS: [(bool, bool); 4] = [(false, false), (true, false), (false, true), (true, true)];

/// What arrives until nothing more does, while the sender goes on with what waits.
fn drain(from: &Connection, to: &Connection, at_least: usize) -> Vec<u8> {
    let (mut scratch, mut into) = (vec![0; ROOM / 2], vec![0; ROOM]);
    let mut all = Vec::new();
    let mut idle = 0;
    while all.len() < at_least || from.is_waiting() || idle < 20 {
        from.flush(false, 0).unwrap();
        let received = to.receive(&mut scratch, &mut into).unwrap();
        all.extend_from_slice(&into[..received.len]);
        idle = if received.len > 0 { 0 } else { idle + 1 };
        assert!(idle < 5_000, "{} of {at_least} bytes arrived", all.len());
        if received.len == 0 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    all
}

#[test]
fn batches_of_every_length_around_a_chunk_arrive_whole_by_every_layer() {
    for (tls, websocket) in LAYERS {
        let [client, server] = ends(tls, websocket);
        for (from, to) in [(&client, &server), (&server, &client)] {
            for len in (65_500..65_560).step_by(if tls && websocket { 1 } else { 7 }) {
                let batch: Vec<u8> = (0..len).map(|at| (at ^ len) as u8).collect();
                // Several messages make a chunk of just that length, and then there is one more.
                let ends = [1_000, 30_000, len - 34, len];
                let marks = ends.map(|end| Mark { end, packets: 1, kept: false });
                let dropped = from.send(&batch, &marks, false, 0);
                assert_eq!(dropped.full + dropped.gone, 0, "{len} bytes, {tls} {websocket}: {dropped:?}");
                let arrived = drain(from, to, len);
                assert!(arrived == batch, "{len} bytes, {tls} {websocket}");
            }
        }
    }
}

#[test]
fn where_nothing_is_taken_the_oldest_go_and_the_newest_arrive_by_every_layer() {
    const LEN: usize = 1_400;
    for (tls, websocket) in LAYERS {
        let [client, server] = ends(tls, websocket);
        let (mut sent, mut dropped) = (0_u32, 0);
        while dropped < 200 {
            let batch: Vec<u8> = sent.to_be_bytes().into_iter().cycle().take(LEN).collect();
            let mark = Mark { end: LEN, packets: 1, kept: false };
            let outcome = client.send(&batch, &[mark], false, 0);
            assert_eq!((outcome.gone, outcome.late), (0, 0));
            dropped += outcome.full;
            sent += 1;
            assert!(sent < 100_000, "the kernel takes all");
        }
        let arrived = drain(&client, &server, LEN);
        let numbers: Vec<u32> = arrived
            .chunks_exact(LEN)
            .map(|message| u32::from_be_bytes(*message.first_chunk().unwrap()))
            .collect();
        assert_eq!(numbers.last(), Some(&(sent - 1)), "{tls} {websocket}");
        assert_eq!(numbers.len() as u64 + dropped, u64::from(sent), "{tls} {websocket}");
        let newest = numbers.iter().rev().zip((0..sent).rev()).take_while(|(a, b)| **a == *b).count();
        // Of 64 KiB no more than what is encrypted already is not of the newest.
        assert!(newest * LEN >= 24 * 1024, "{newest} of the newest, {tls} {websocket}");
    }
}

#[test]
fn tls_with_our_gateway_has_a_post_quantum_key_exchange_and_goes_without_for_those_who_have_none() {
    let mut older = (*provider()).clone();
    older.kx_groups.retain(|group| group.name() == NamedGroup::X25519);
    for (provider, expected) in
        [(provider(), NamedGroup::X25519MLKEM768), (Arc::new(older), NamedGroup::X25519)]
    {
        let asking = config_with(provider, TlsVerify::Off, None).unwrap();
        let (client, server, _) = shake_hands(asking);
        let groups = [client.negotiated_key_exchange_group(), server.negotiated_key_exchange_group()];
        assert_eq!(groups.map(|group| group.unwrap().name()), [expected; 2]);
    }
}
