use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::error::HostError;

const DUMP_ATTEMPTS: usize = 8;

/// A blocking rtnetlink socket of the calling thread's network namespace.
///
/// The kernel has queued its answer before `send` returns, so there is nothing to wait for and no runtime to wait with.
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    pub(crate) fn open() -> Result<Netlink, HostError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(Netlink { socket, sequence: 0 })
        };
        open().map_err(|error| HostError::kernel("open a netlink socket", error))
    }

    /// Creates; fails with `AlreadyExists` when the same thing is there.
    pub(crate) fn create(&mut self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.exchange(message, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    /// Creates, in the place of what is there.
    pub(crate) fn replace(&mut self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.exchange(message, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE).map(drop)
    }

    /// Changes or deletes.
    pub(crate) fn set(&mut self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.exchange(message, NLM_F_ACK).map(drop)
    }

    /// Asks for one thing.
    pub(crate) fn get(&mut self, message: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
        let answer = self.exchange(message, NLM_F_ACK)?;
        answer.items.into_iter().next().ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Asks for everything of a kind. Items the parser does not understand are left out.
    pub(crate) fn dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMP_ATTEMPTS {
            let answer = self.exchange(message.clone(), NLM_F_DUMP)?;
            if !answer.interrupted {
                return Ok(answer.items);
            }
        }
        Err(io::Error::other("the kernel's tables kept changing while they were read"))
    }

    fn exchange(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Answer> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;

        let mut answer = Answer::default();
        loop {
            let (datagram, _) = match self.socket.recv_from_full() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                received => received?,
            };
            if answer.read(&datagram, self.sequence)? {
                return Ok(answer);
            }
        }
    }
}

#[derive(Default)]
struct Answer {
    items: Vec<RouteNetlinkMessage>,
    /// Something changed during the dump, so items may be missing or doubled.
    interrupted: bool,
}

impl Answer {
    /// Reads one datagram; `true` when it held the end of the answer.
    fn read(&mut self, datagram: &[u8], sequence: u32) -> io::Result<bool> {
        let mut rest = datagram;
        while !rest.is_empty() {
            let length = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?.length() as usize;
            let parsed = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest);
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            let message = match parsed {
                Ok(message) => message,
                Err(error) => {
                    tracing::debug!(%error, "left out a netlink item");
                    continue;
                }
            };
            if message.header.sequence_number != sequence {
                continue;
            }
            self.interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
            match message.payload {
                NetlinkPayload::InnerMessage(item) => self.items.push(item),
                NetlinkPayload::Done(done) if done.code < 0 => {
                    return Err(io::Error::from_raw_os_error(-done.code));
                }
                NetlinkPayload::Done(_) => return Ok(true),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Error(_) => return Ok(true),
                NetlinkPayload::Overrun(_) => return Err(io::Error::other("a netlink answer was cut short")),
                _ => {}
            }
        }
        Ok(false)
    }
}
