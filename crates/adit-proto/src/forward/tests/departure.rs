use super::*;
use crate::path::MAX_STAGED_PACKETS;

#[test]
fn a_packet_departs_by_the_longest_prefix() {
    let lane = Lane::new(Suite::Aes256Gcm, true).open();
    let Departure::Seal(keypair, endpoint) = lane.depart(NOW, 2) else { panic!() };
    assert!(Arc::ptr_eq(&keypair, &lane.keypair));
    assert_eq!(endpoint, home());
    assert!(matches!(lane.depart(NOW, 64), Departure::Drop(DropReason::NoEndpoint)));
    assert!(matches!(lane.depart(NOW, 128), Departure::Seal(..)), "just behind the longer prefix");
    lane.other.set_endpoint(Some(elsewhere()));
    let Departure::Stage(path) = lane.depart(NOW, 64) else { panic!() };
    assert!(Arc::ptr_eq(&path, &lane.other));
    assert_eq!(lane.dropped_in_all(), 1);
}

#[test]
fn a_packet_to_nobody_is_dropped_and_counted() {
    let lane = Lane::new(Suite::Aes256Gcm, true).open();
    for destination in [[10, 0, 1, 2], [0; 4], [255; 4]] {
        let header = InsideHeader::parse(&packet([10, 0, 0, 1], destination, 0)).unwrap();
        assert!(matches!(lane.forwarding.depart(NOW, &header), Departure::Drop(DropReason::NoRoute)));
    }
    assert_eq!(lane.dropped(DropReason::NoRoute), 3);
}

#[test]
fn a_packet_is_staged_before_the_session_and_after_it() {
    let lane = Lane::new(Suite::Aes256Gcm, true);
    assert!(matches!(lane.depart(NOW, 2), Departure::Stage(_)));
    let lane = lane.open();
    let last = later(REJECT_AFTER_TIME - core::time::Duration::from_nanos(1));
    assert!(matches!(lane.depart(last, 2), Departure::Seal(..)));
    assert!(matches!(lane.depart(later(REJECT_AFTER_TIME), 2), Departure::Stage(_)));
    lane.keypair.retire();
    assert!(matches!(lane.depart(NOW, 2), Departure::Stage(_)));
    assert_eq!(lane.dropped_in_all(), 0);
}

#[test]
fn staging_asks_for_a_keypair_once() {
    let lane = Lane::new(Suite::Aes256Gcm, true);
    let mut notices = Vec::new();
    for _ in 0..10 {
        assert!(lane.forwarding.stage(NOW, &lane.path, &from_peer(2), &mut notices));
    }
    assert_eq!(kinds(&notices), ["need keypair"]);
    assert_eq!(lane.path.staged_len(), 10);
    lane.forwarding.notice_lost(&notices[0]);
    assert!(lane.forwarding.stage(NOW, &lane.path, &from_peer(2), &mut notices));
    assert_eq!(kinds(&notices), ["need keypair", "need keypair"], "asked again, as the first got lost");
    assert_eq!(lane.dropped(DropReason::QueueFull), 1);
}

#[test]
fn the_oldest_staged_packet_makes_room_and_is_counted() {
    let lane = Lane::new(Suite::ChaCha20Poly1305, true);
    for n in 0..MAX_STAGED_PACKETS + 3 {
        let packet = packet([10, 0, 9, 9], [10, 0, 0, 2], n);
        assert!(lane.forwarding.stage(NOW, &lane.path, &packet, &mut Vec::new()));
    }
    assert_eq!(lane.dropped(DropReason::StagedOverflow), 3);
    let staged = lane.path.take_staged_or_publish(&lane.keypair, false);
    let sizes: Vec<_> = staged.iter().map(|packet| packet.len() - 20).collect();
    assert_eq!(sizes, (3..MAX_STAGED_PACKETS + 3).collect::<Vec<_>>());
}

#[test]
fn nothing_is_staged_once_there_is_a_session() {
    let lane = Lane::new(Suite::ChaCha20Poly1305, true).open();
    let mut notices = Vec::new();
    assert!(!lane.forwarding.stage(NOW, &lane.path, &from_peer(2), &mut notices));
    assert!(notices.is_empty());
    assert!(lane.forwarding.stage(later(REJECT_AFTER_TIME), &lane.path, &from_peer(2), &mut notices));
    assert_eq!(kinds(&notices), ["need keypair"], "but it is when the session is over");
}

#[test]
fn sending_awaits_a_reply_once_for_each_timer() {
    let lane = Lane::new(Suite::ChaCha20Poly1305, true).open();
    let mut notices = Vec::new();
    for _ in 0..3 {
        lane.forwarding.sent(NOW, &lane.keypair, 2, 300, &mut notices);
    }
    assert_eq!(kinds(&notices), ["awaiting reply"]);
    assert_eq!((lane.path.traffic.packets(), lane.path.traffic.bytes()), ((0, 6), (0, 900)));
    lane.forwarding.notice_lost(&notices[0]);
    lane.forwarding.sent(NOW, &lane.keypair, 1, 100, &mut notices);
    assert_eq!(kinds(&notices), ["awaiting reply"; 2], "the first got lost");
    lane.arrive(&lane.sealed(b""));
    lane.forwarding.sent(NOW, &lane.keypair, 1, 100, &mut notices);
    assert_eq!(kinds(&notices), ["awaiting reply"; 2], "a reply came in between, but the timer runs");
    assert_eq!(lane.path.activity.awaiting_timer_ended(), Some(NOW));
    lane.forwarding.sent(NOW, &lane.keypair, 1, 100, &mut notices);
    assert_eq!(kinds(&notices), ["awaiting reply"; 2], "the timer saw that");
    lane.arrive(&lane.sealed(b""));
    assert_eq!(lane.path.activity.awaiting_timer_ended(), None);
    lane.forwarding.sent(NOW, &lane.keypair, 1, 100, &mut notices);
    assert_eq!(kinds(&notices), ["awaiting reply"; 3], "no timer runs any more");
}

#[test]
fn the_initiator_asks_for_a_rekey_once_when_it_is_due() {
    let lane = Lane::new(Suite::ChaCha20Poly1305, true).open();
    let mut notices = Vec::new();
    let sent = |now, notices: &mut Vec<Notice>| lane.forwarding.sent(now, &lane.keypair, 1, 100, notices);
    sent(later(REKEY_AFTER_TIME - core::time::Duration::from_nanos(1)), &mut notices);
    notices.clear();
    for _ in 0..3 {
        sent(later(REKEY_AFTER_TIME), &mut notices);
    }
    assert_eq!(kinds(&notices), ["rekey"]);
    lane.forwarding.notice_lost(&notices[0]);
    sent(later(REKEY_AFTER_TIME), &mut notices);
    assert_eq!(kinds(&notices), ["rekey"; 2]);

    let responder = Lane::new(Suite::ChaCha20Poly1305, false).open();
    let mut notices = Vec::new();
    responder.forwarding.sent(later(REKEY_AFTER_TIME), &responder.keypair, 1, 100, &mut notices);
    assert_eq!(kinds(&notices), ["awaiting reply"]);
}
