use std::fs::{self, File};
use std::io::{IoSliceMut, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType, recv, recvmsg,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeSpec, TimeVal, TimeValLike};
use socket2::{SockFilter, SockRef};

use super::{AgentError, Outcome, Words, failed};
use crate::pcap::{LinkType, write_frame, write_header};

/// As large as the largest superpacket with its link header.
const FRAME_BYTES_MAX: usize = 262_144;
const KERNEL_BUFFER_BYTES: usize = 32 << 20;
/// How long frames are taken after the order to stop.
const PATIENCE: Duration = Duration::from_millis(300);

/// Writes every frame of an interface to a file until standard input closes (packet(7)).
pub(super) fn capture(words: &mut Words) -> Outcome {
    let interface: String = words.required("INTERFACE")?;
    let path: String = words.required("FILE")?;
    words.end()?;
    let mut file = File::create(&path).map_err(failed(format!("cannot create {path}")))?;
    write_header(&mut file, link_type(&interface)?)?;
    let socket = packet_socket(&interface)?;
    let mut frame = vec![0; FRAME_BYTES_MAX];
    // Frames of other interfaces, from before the filter was in place.
    while recv(socket.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT).is_ok() {}
    println!("capturing on {interface}");
    let closed = input_closed();
    let mut end = None;
    loop {
        // On a wire that is never silent the end is a matter of time.
        if end.is_some_and(|end| Instant::now() > end) {
            return Ok(());
        }
        if end.is_none() && closed.load(Ordering::Relaxed) {
            end = Some(Instant::now() + PATIENCE);
        }
        match receive(&socket, &mut frame) {
            Ok((length, time)) => {
                let time = match time {
                    Some(time) => Duration::from(time),
                    None => SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?,
                };
                write_frame(&mut file, time, &frame[..length])?;
            }
            Err(Errno::EAGAIN) if closed.load(Ordering::Relaxed) => return Ok(()),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(AgentError::Failed(format!("capturing on {interface}: {error}"))),
        }
    }
}

/// One frame, and when the kernel had it: a busy machine lets us see it late.
fn receive(socket: &OwnedFd, frame: &mut [u8]) -> nix::Result<(usize, Option<TimeSpec>)> {
    let mut room = nix::cmsg_space!(TimeSpec);
    let mut parts = [IoSliceMut::new(frame)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut room), MsgFlags::empty())?;
    let time = message.cmsgs()?.find_map(|it| match it {
        ControlMessageOwned::ScmTimestampns(time) => Some(time),
        _ => None,
    });
    Ok((message.bytes, time))
}

fn packet_socket(interface: &str) -> Outcome<OwnedFd> {
    let index: u32 = property(interface, "ifindex")?;
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    SockRef::from(&socket).attach_filter(&only_of(index)).map_err(failed("cannot filter"))?;
    // Best effort: without the right to exceed the system's limit the usual buffer stays.
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &KERNEL_BUFFER_BYTES);
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50))?;
    Ok(socket)
}

/// Lets pass the frames of one interface. A filter, because binding to it takes an address that devices without
/// hardware address, such as TUN, do not have in any safe interface (Linux, Documentation/networking/filter.rst).
fn only_of(interface_index: u32) -> [SockFilter; 4] {
    let interface_of_frame = (libc::SKF_AD_OFF + libc::SKF_AD_IFINDEX) as u32;
    let instruction = |code: u32, skip_if_false, k| SockFilter::new(code as u16, 0, skip_if_false, k);
    [
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, interface_of_frame),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, interface_index),
        instruction(libc::BPF_RET | libc::BPF_K, 0, FRAME_BYTES_MAX as u32),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0),
    ]
}

fn link_type(interface: &str) -> Outcome<LinkType> {
    const ETHERNET: u32 = 1;
    const LOOPBACK: u32 = 772;
    let number = property(interface, "type")?;
    Ok(if [ETHERNET, LOOPBACK].contains(&number) { LinkType::Ethernet } else { LinkType::Raw })
}

fn property(interface: &str, name: &str) -> Outcome<u32> {
    let path = format!("/sys/class/net/{interface}/{name}");
    let text = fs::read_to_string(&path).map_err(failed(format!("there is no interface {interface}")))?;
    Ok(text.trim().parse()?)
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
