use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::SystemTime;

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::{AgentError, Outcome, Words, failed};
use crate::pcap::{LinkType, write_frame, write_header};

/// As large as the largest superpacket with its link header.
const FRAME_BYTES_MAX: usize = 262_144;
const KERNEL_BUFFER_BYTES: usize = 32 << 20;

/// Writes every frame of an interface to a file until standard input closes (packet(7)).
pub(super) fn capture(words: &mut Words) -> Outcome {
    let interface: String = words.required("INTERFACE")?;
    let path: String = words.required("FILE")?;
    words.end()?;
    let mut file = File::create(&path).map_err(failed(format!("cannot create {path}")))?;
    write_header(&mut file, link_type(&interface)?)?;
    let socket = packet_socket(&interface)?;
    let mut frame = vec![0; FRAME_BYTES_MAX];
    // Frames of other interfaces, from before the socket was bound to this one.
    while recv(socket.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT).is_ok() {}
    println!("capturing on {interface}");
    let closed = input_closed();
    loop {
        match recv(socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
            Ok(length) => {
                let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
                write_frame(&mut file, time, &frame[..length])?;
            }
            Err(Errno::EAGAIN) if closed.load(Ordering::Relaxed) => return Ok(()),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(AgentError::Failed(format!("capturing on {interface}: {error}"))),
        }
    }
}

fn packet_socket(interface: &str) -> Outcome<OwnedFd> {
    let missing = || AgentError::Failed(format!("there is no interface {interface}"));
    let same_name = getifaddrs()?.filter(|found| found.interface_name == interface);
    let address =
        same_name.filter_map(|it| it.address?.as_link_addr().copied()).next().ok_or_else(missing)?;
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    // Best effort: without the right to exceed the system's limit the usual buffer stays.
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &KERNEL_BUFFER_BYTES);
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50))?;
    bind(socket.as_raw_fd(), &address)?;
    Ok(socket)
}

fn link_type(interface: &str) -> Outcome<LinkType> {
    const ETHERNET: &str = "1";
    const LOOPBACK: &str = "772";
    let path = format!("/sys/class/net/{interface}/type");
    let number = fs::read_to_string(&path).map_err(failed(format!("there is no interface {interface}")))?;
    Ok(if [ETHERNET, LOOPBACK].contains(&number.trim()) { LinkType::Ethernet } else { LinkType::Raw })
}

fn input_closed() -> Arc<AtomicBool> {
    let closed = Arc::new(AtomicBool::new(false));
    let setter = Arc::clone(&closed);
    thread::spawn(move || {
        let mut sink = [0; 64];
        while let Ok(1..) = std::io::stdin().read(&mut sink) {}
        setter.store(true, Ordering::Relaxed);
    });
    closed
}
