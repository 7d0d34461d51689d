//! The Linux TUN driver (Documentation/networking/tuntap.rst in the kernel).

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use socket2::{Domain, Socket, Type};

use super::{Offload, ReadError, TunConfig, VnetHeader};
use crate::sys::check;

/// One queue of a kernel device.
#[derive(Debug)]
pub struct LinuxTun {
    queue: File,
    /// A socket of the namespace the device was created in, for questions about it.
    control: Arc<Socket>,
    name: String,
    index: u32,
    vnet: bool,
    offload: Offload,
}

impl LinuxTun {
    pub(super) fn create(config: &TunConfig) -> io::Result<Vec<Self>> {
        let queues = config.queues.max(1);
        let mut flags = libc::IFF_TUN | libc::IFF_NO_PI;
        if queues > 1 {
            flags |= libc::IFF_MULTI_QUEUE;
        }
        if config.offload {
            flags |= libc::IFF_VNET_HDR;
        }
        let wanted = config.name.as_deref().unwrap_or("tun%d");
        let control = Arc::new(Socket::new(Domain::IPV4, Type::DGRAM.cloexec(), None)?);
        let mut name = wanted.to_owned();
        let mut tuns: Vec<Self> = Vec::with_capacity(queues);
        for number in 0..queues {
            let queue = open()?;
            let mut request = Request::named(&name)?;
            // Without it, a second program of the same name would get queues of the first one's device, and half its
            // packets. A device with one queue protects itself, and may be a persistent one waiting for its program.
            let exclusive = if queues > 1 && number == 0 { libc::IFF_TUN_EXCL } else { 0 };
            request.0.ifr_ifru.ifru_flags = (flags | exclusive) as libc::c_short;
            request
                .ioctl(queue.as_fd(), libc::TUNSETIFF)
                .map_err(|error| explain_create(&error, wanted, queues))?;
            name = request.name();
            tuns.push(Self::attach(queue, control.clone(), name.clone(), config.offload, config.offload)?);
        }
        Ok(tuns)
    }

    pub(super) fn from_fd(fd: OwnedFd, offload: bool) -> io::Result<Self> {
        let control = Socket::new(Domain::IPV4, Type::DGRAM.cloexec(), None)?;
        Self::inherit(fd, control, offload)
    }

    pub(super) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.queue.as_fd(), self.control.as_fd()]
    }

    pub(super) fn from_descriptors([queue, control]: [OwnedFd; 2], offload: bool) -> io::Result<Self> {
        let mut tun = Self::inherit(queue, control.into(), offload)?;
        // The index counts where the device lives. Here it may be that of another interface.
        tun.index = 0;
        Ok(tun)
    }

    fn inherit(fd: OwnedFd, control: Socket, offload: bool) -> io::Result<Self> {
        let queue = File::from(fd);
        let mut request = Request::named("")?;
        request.ioctl(queue.as_fd(), libc::TUNGETIFF).map_err(|error| {
            io::Error::new(error.kind(), format!("the inherited descriptor is no TUN queue: {error}"))
        })?;
        let flags = i32::from(request.flags());
        if flags & libc::IFF_TUN == 0 || flags & libc::IFF_NO_PI == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the inherited TUN queue was not opened with IFF_TUN | IFF_NO_PI",
            ));
        }
        // SAFETY: both calls take and return integers only.
        unsafe {
            let status = check(libc::fcntl(queue.as_raw_fd(), libc::F_GETFL))?;
            check(libc::fcntl(queue.as_raw_fd(), libc::F_SETFL, status | libc::O_NONBLOCK))?;
        }
        Self::attach(queue, Arc::new(control), request.name(), flags & libc::IFF_VNET_HDR != 0, offload)
    }

    fn attach(
        queue: File,
        control: Arc<Socket>,
        name: String,
        vnet: bool,
        offload: bool,
    ) -> io::Result<Self> {
        if vnet {
            let len = VnetHeader::LEN as libc::c_int;
            // SAFETY: the ioctl reads one int.
            check(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &len) })?;
        }
        let offload = negotiate(queue.as_fd(), vnet && offload)?;
        let mut request = Request::named(&name)?;
        // A device that an inherited descriptor names may live in another namespace; it has no index here.
        let index = match request.ioctl(control.as_fd(), libc::SIOCGIFINDEX as _) {
            Ok(()) => request.index(),
            Err(_) => 0,
        };
        Ok(Self { queue, control, name, index, vnet, offload })
    }

    /// The name now, from the queue itself: it works in every namespace.
    pub(super) fn name(&self) -> String {
        let name = Request::named("").and_then(|mut request| {
            request.ioctl(self.queue.as_fd(), libc::TUNGETIFF)?;
            Ok(request.name())
        });
        name.unwrap_or_else(|_| self.name.clone())
    }

    pub(super) fn index(&self) -> u32 {
        self.index
    }

    pub(super) fn mtu(&self) -> io::Result<usize> {
        let mut request = Request::named(&self.name())?;
        request
            .ioctl(self.control.as_fd(), libc::SIOCGIFMTU as _)
            .map_err(|error| self.explain("read", &error))?;
        Ok(request.mtu())
    }

    pub(super) fn set_mtu(&self, mtu_bytes: usize) -> io::Result<()> {
        let mut request = Request::named(&self.name())?;
        request.0.ifr_ifru.ifru_mtu = libc::c_int::try_from(mtu_bytes).unwrap_or(libc::c_int::MAX);
        request
            .ioctl(self.control.as_fd(), libc::SIOCSIFMTU as _)
            .map_err(|error| self.explain(&format!("set {mtu_bytes} as"), &error))
    }

    pub(super) fn offload(&self) -> Offload {
        self.offload
    }

    pub(super) fn read(&mut self, buf: &mut [u8]) -> Result<Option<(VnetHeader, usize)>, ReadError> {
        let mut vnet = [0; VnetHeader::LEN];
        loop {
            let result = if self.vnet {
                self.queue.read_vectored(&mut [IoSliceMut::new(&mut vnet), IoSliceMut::new(buf)])
            } else {
                self.queue.read(buf)
            };
            return match result {
                Ok(len) if self.vnet => match len.checked_sub(VnetHeader::LEN) {
                    Some(len) => Ok(Some((VnetHeader::from_bytes(&vnet), len))),
                    None => Err(ReadError::Malformed),
                },
                Ok(len) => Ok(Some((VnetHeader::NONE, len))),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.raw_os_error() == Some(libc::EBADFD) => Err(ReadError::Gone),
                Err(error) => Err(ReadError::System(error)),
            };
        }
    }

    pub(super) fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<()> {
        let slices = if self.vnet { slices } else { slices.get(1..).unwrap_or_default() };
        loop {
            match self.queue.write_vectored(slices) {
                // The driver takes a packet whole or not at all.
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
        }
    }

    fn explain(&self, what: &str, error: &io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("cannot {what} the MTU of {}: {error}", self.name))
    }
}

impl AsFd for LinuxTun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

fn open() -> io::Result<File> {
    const PATH: &str = "/dev/net/tun";
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(PATH).map_err(
        |error| {
            let advice = match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
                    "the kernel has no TUN driver here; load it with `modprobe tun`, or give the container the device /dev/net/tun"
                }
                Some(libc::EPERM | libc::EACCES) => "permission denied; run as root, or allow the container to use the device",
                _ => "is the device usable?",
            };
            io::Error::new(error.kind(), format!("cannot open {PATH}: {error}: {advice}"))
        },
    )
}

fn explain_create(error: &io::Error, name: &str, queues: usize) -> io::Error {
    let why = match error.raw_os_error() {
        Some(libc::EBUSY) => "an interface of that name exists already or another process holds it; choose another name, or delete it with `ip link del`".to_owned(),
        Some(libc::EPERM) => "not allowed; run as root or with CAP_NET_ADMIN".to_owned(),
        Some(libc::EINVAL) if queues > 1 => {
            "the name is not valid, or an interface of that name exists that is no TUN device with several queues".to_owned()
        }
        Some(libc::EINVAL) => "the name is not valid, or an interface of that name exists that is no such TUN device".to_owned(),
        _ => error.to_string(),
    };
    io::Error::new(error.kind(), format!("cannot create the TUN device {name}: {why}"))
}

/// Sets what the kernel may leave unfinished. The mask belongs to the device and outlives a process on a persistent
/// one, so it is cleared too.
fn negotiate(queue: BorrowedFd<'_>, wanted: bool) -> io::Result<Offload> {
    let set = |mask: libc::c_uint| {
        // SAFETY: the ioctl takes the mask by value.
        check(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(mask)) })
    };
    let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    let levels = [
        (Offload::TcpUdp, tcp | libc::TUN_F_USO4 | libc::TUN_F_USO6),
        (Offload::Tcp, tcp),
        (Offload::Checksum, libc::TUN_F_CSUM),
    ];
    if wanted {
        for (offload, mask) in levels {
            if set(mask).is_ok() {
                return Ok(offload);
            }
        }
    }
    set(0)?;
    Ok(Offload::None)
}

/// An interface request (netdevice(7)).
struct Request(libc::ifreq);

impl Request {
    fn named(name: &str) -> io::Result<Self> {
        // SAFETY: all zeros is a valid ifreq: an empty name and zero in every member of the union.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        if name.len() >= request.ifr_name.len()
            || name.contains(['\0', '/'])
            || name.contains(char::is_whitespace)
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{name:?} is no interface name: at most 15 bytes, without spaces or slashes"),
            ));
        }
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        Ok(Self(request))
    }

    fn ioctl(&mut self, fd: BorrowedFd<'_>, operation: libc::Ioctl) -> io::Result<()> {
        // SAFETY: every operation used here reads and writes one ifreq, which `self` is.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), operation, &raw mut self.0) }).map(drop)
    }

    fn name(&self) -> String {
        // SAFETY: the kernel ends names with a zero, and so does `named`.
        unsafe { CStr::from_ptr(self.0.ifr_name.as_ptr()) }.to_string_lossy().into_owned()
    }

    fn flags(&self) -> libc::c_short {
        // SAFETY: any bytes are a valid integer; `named` initialised the union.
        unsafe { self.0.ifr_ifru.ifru_flags }
    }

    fn index(&self) -> u32 {
        // SAFETY: as above.
        unsafe { self.0.ifr_ifru.ifru_ifindex }.unsigned_abs()
    }

    fn mtu(&self) -> usize {
        // SAFETY: as above.
        usize::try_from(unsafe { self.0.ifr_ifru.ifru_mtu }).unwrap_or(0)
    }
}
