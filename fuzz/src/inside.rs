//! Inside packets: the header parser, and ECN on leaving the tunnel against RFC 6040 section 4.2.

use adit_proto::packet::{Ecn, InsideHeader, ecn_decapsulate};

/// The first byte is the outside ECN field, the rest an inside packet.
pub fn run(data: &[u8]) {
    let Some((tos, packet)) = data.split_first() else { return };
    let Ok(header) = InsideHeader::parse(packet) else {
        let mut changed = packet.to_vec();
        let _ = ecn_decapsulate(Ecn::from_tos(*tos), &mut changed);
        assert_eq!(changed.len(), packet.len());
        return;
    };
    let is_v4 = packet[0] >> 4 == 4;
    assert!(header.total_len >= if is_v4 { 20 } else { 40 });
    assert!(header.total_len <= packet.len());
    assert_eq!(header.source.is_ipv4(), is_v4);
    assert_eq!(header.destination.is_ipv4(), is_v4);
    check_decapsulation(Ecn::from_tos(*tos), header, packet);
}

fn check_decapsulation(outside: Ecn, header: InsideHeader, packet: &[u8]) {
    let mut changed = packet.to_vec();
    let result = ecn_decapsulate(outside, &mut changed);
    let expected = match (header.ecn, outside) {
        (Ecn::NotEct, Ecn::Ce) => None,
        (Ecn::Ect0 | Ecn::Ect1, Ecn::Ce) => Some(Ecn::Ce),
        (Ecn::Ect0, Ecn::Ect1) => Some(Ecn::Ect1),
        (inside, _) => Some(inside),
    };
    assert_eq!(result.is_ok(), expected.is_some());
    let after = InsideHeader::parse(&changed).expect("the packet was valid before");
    assert_eq!(after, InsideHeader { ecn: expected.unwrap_or(header.ecn), ..header });
    let is_v4 = packet[0] >> 4 == 4;
    for (index, (old, new)) in packet.iter().zip(&changed).enumerate() {
        let may_change = match index {
            1 if is_v4 => 0b11,
            10 | 11 if is_v4 => 0xff,
            1 => 0b11_0000,
            _ => 0,
        };
        assert_eq!((old ^ new) & !may_change, 0, "byte {index} changed");
    }
    if is_v4 && checksum_holds(packet) {
        assert!(checksum_holds(&changed), "the header checksum broke");
    }
}

/// RFC 1071, the obvious way.
fn checksum_holds(packet: &[u8]) -> bool {
    let header_len = usize::from(packet[0] & 0x0f) * 4;
    let Some(header) = packet.get(..header_len) else { return false };
    let mut sum: u32 = header.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(two[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum == 0xffff
}
