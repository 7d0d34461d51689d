//! Descriptors that go from one process to another (unix(7), `SCM_RIGHTS`).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// The most descriptors of one message.
pub const DESCRIPTORS_MAX: usize = 64;

/// Room for the header and the descriptors of one control message, aligned as the kernel wants it.
#[repr(align(8))]
struct Control([MaybeUninit<u8>; 24 + DESCRIPTORS_MAX * size_of::<RawFd>()]);

/// Sends copies of `descriptors`, with one byte of data.
///
/// # Errors
/// More than [`DESCRIPTORS_MAX`], or the other end is closed.
pub fn send_descriptors(socket: &UnixStream, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    if descriptors.len() > DESCRIPTORS_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one message"));
    }
    let mut byte = [0u8; 1];
    let mut data = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    let mut control = Control([MaybeUninit::zeroed(); _]);
    let mut message = empty_message(&mut data);
    let len = size_of_val(descriptors);
    // SAFETY: `control` is aligned and has room for a header and DESCRIPTORS_MAX descriptors, of which there are no
    // more; every pointer in `message` outlives the call.
    let sent = unsafe {
        if len > 0 {
            message.msg_control = control.0.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(len as u32) as _;
            let header = &mut *libc::CMSG_FIRSTHDR(&raw const message);
            header.cmsg_level = libc::SOL_SOCKET;
            header.cmsg_type = libc::SCM_RIGHTS;
            header.cmsg_len = libc::CMSG_LEN(len as u32) as _;
            let place = libc::CMSG_DATA(header).cast::<RawFd>();
            for (at, descriptor) in descriptors.iter().enumerate() {
                place.add(at).write_unaligned(descriptor.as_raw_fd());
            }
        }
        libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Waits for what one [`send_descriptors`] sent. They are closed by an `exec`.
///
/// # Errors
/// `UnexpectedEof` when the other end closed instead.
pub fn receive_descriptors(socket: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut byte = [0u8; 1];
    let mut data = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    let mut control = Control([MaybeUninit::zeroed(); _]);
    let mut message = empty_message(&mut data);
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = size_of::<Control>() as _;
    let received = loop {
        // SAFETY: every pointer in `message` is valid for the length that stands beside it.
        let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        let error = io::Error::last_os_error();
        if received >= 0 {
            break received;
        }
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    };
    let mut descriptors = Vec::new();
    // SAFETY: the kernel filled `control` with whole messages, which the macros walk; each descriptor is new and ours.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while let Some(it) = header.as_ref() {
            if it.cmsg_level == libc::SOL_SOCKET && it.cmsg_type == libc::SCM_RIGHTS {
                // It is a u32 with musl.
                #[allow(clippy::unnecessary_cast)]
                let len = (it.cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
                let place = libc::CMSG_DATA(header).cast::<RawFd>();
                for at in 0..len / size_of::<RawFd>() {
                    descriptors.push(OwnedFd::from_raw_fd(place.add(at).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    if received == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(descriptors) }
}

fn empty_message(data: &mut libc::iovec) -> libc::msghdr {
    // SAFETY: all zeros is a valid msghdr without address, data or control.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = data;
    message.msg_iovlen = 1;
    message
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn descriptors_arrive_in_order_and_work() {
        let (near, far) = UnixStream::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        let null = File::open("/dev/null").unwrap();
        send_descriptors(&near, &[writer.as_fd(), null.as_fd()]).unwrap();
        let mut received = receive_descriptors(&far).unwrap();
        assert_eq!(received.len(), 2);
        drop(writer);
        let mut writer = File::from(received.remove(0));
        writer.write_all(b"through").unwrap();
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }

    #[test]
    fn as_many_as_allowed_fit_and_one_more_is_refused() {
        let (near, far) = UnixStream::pair().unwrap();
        let null = File::open("/dev/null").unwrap();
        send_descriptors(&near, &[null.as_fd(); DESCRIPTORS_MAX]).unwrap();
        assert_eq!(receive_descriptors(&far).unwrap().len(), DESCRIPTORS_MAX);
        assert!(send_descriptors(&near, &[null.as_fd(); DESCRIPTORS_MAX + 1]).is_err());
        send_descriptors(&near, &[]).unwrap();
        assert!(receive_descriptors(&far).unwrap().is_empty());
    }

    #[test]
    fn a_closed_end_is_no_message() {
        let (near, far) = UnixStream::pair().unwrap();
        drop(near);
        assert_eq!(receive_descriptors(&far).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
