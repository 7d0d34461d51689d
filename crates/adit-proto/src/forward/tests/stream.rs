use super::*;
use crate::content::ASIDE_HEADER;

#[test]
fn what_comes_aside_over_a_stream_is_delivered_and_moves_nobody() {
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        let lane = Lane::new(suite, true).open();
        let aside = Endpoint { carrier: Carrier::Tcp(18), ..home() };
        let over_stream = |content: &[u8]| {
            let (mut message, mut notices) = (lane.sealed(content), Vec::new());
            let came = lane.forwarding.arrive_on_stream(NOW, &aside, &mut message, &mut notices);
            (came.is_aside, came.arrived.map(|it| message[it.packet].to_vec()), kinds(&notices))
        };
        let packet = from_peer(2);
        for padding in [0, 13] {
            let content = [&ASIDE_HEADER[..], &packet, &vec![0; padding]].concat();
            let (is_aside, arrived, notices) = over_stream(&content);
            assert_eq!((is_aside, arrived.as_deref()), (true, Some(&packet[..])));
            assert!(!notices.contains(&"roamed"), "{notices:?}");
        }
        for empty in [&ASIDE_HEADER[..], &[&ASIDE_HEADER[..], &[0; 12]].concat()] {
            let (is_aside, arrived, _) = over_stream(empty);
            assert!(is_aside && arrived.is_none());
        }
        assert_eq!(lane.path.endpoint().unwrap(), home());
        assert_eq!(lane.dropped_in_all(), 0);

        let spoofed = [&ASIDE_HEADER[..], &from_peer(70)].concat();
        assert_eq!(over_stream(&spoofed).1, None);
        assert_eq!(lane.dropped(DropReason::SpoofedSource), 1);
        let cut = [&ASIDE_HEADER[..], &packet[..19]].concat();
        assert_eq!(over_stream(&cut).1, None);
        let nested = [&ASIDE_HEADER[..], &ASIDE_HEADER, &packet].concat();
        assert_eq!(over_stream(&nested).1, None);
        assert_eq!(lane.dropped(DropReason::MalformedInside), 2);

        let (delivered, _) = lane.arrive(&lane.sealed(&[&ASIDE_HEADER[..], &packet].concat()));
        assert_eq!((delivered, lane.dropped(DropReason::MalformedInside)), (None, 3), "not over UDP");
        assert_eq!(over_stream(&packet).1, Some(packet.clone()));
        assert_eq!(lane.path.endpoint().unwrap(), aside, "any other packet moves the peer there");
    }
}

#[test]
fn a_message_that_came_by_two_connections_is_delivered_once_and_is_no_replay() {
    let lane = Lane::new(Suite::Aes256Gcm, true).open();
    let packet = from_peer(2);
    let sealed = lane.sealed(&[&ASIDE_HEADER[..], &packet].concat());
    let by = |number: u64| {
        let from = Endpoint { carrier: Carrier::Tcp(number), ..home() };
        let came = lane.forwarding.arrive_on_stream(NOW, &from, &mut sealed.clone(), &mut Vec::new());
        (came.owner.is_some(), came.arrived.is_some())
    };
    assert_eq!(by(18), (true, true));
    assert_eq!(by(19), (false, false));
    assert_eq!((lane.dropped(DropReason::StreamCopy), lane.dropped(DropReason::Replay)), (1, 0));
    assert_eq!(lane.path.endpoint().unwrap(), home(), "neither moves anybody");
    lane.arrive(&sealed);
    assert_eq!(
        (lane.dropped(DropReason::StreamCopy), lane.dropped(DropReason::Replay)),
        (1, 1),
        "by UDP it is one"
    );
}
