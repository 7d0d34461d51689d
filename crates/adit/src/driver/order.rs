//! What the engine thread tells a lane, and the sockets that a lane watches.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use adit_io::carrier::{Family, Port, ReceiveBatch};
use adit_io::poll::{Poller, Waker};
use adit_proto::forward::Forwarding;
use adit_proto::reason::DropReason;

use super::stream_edge::StreamEdge;
use super::streams::Stream;

/// What the engine thread tells a lane.
#[derive(Debug)]
pub(super) enum Order {
    /// Use this port from now on.
    UsePort(Port),
    /// Receive from this connection from now on.
    Adopt(Arc<Stream>),
    /// Set the firewall mark of the port.
    Mark(u32),
    /// End.
    Stop,
}

/// Whether the lane goes on.
pub(super) enum Flow {
    Continue,
    End,
}

/// The engine thread's handle of a lane.
#[derive(Clone, Debug)]
pub(super) struct LaneHandle {
    orders: Arc<Mutex<Vec<Order>>>,
    waker: Waker,
}

impl LaneHandle {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { orders: Arc::default(), waker: Waker::new()? })
    }

    pub(super) fn waker(&self) -> &Waker {
        &self.waker
    }

    pub(super) fn order(&self, order: Order) {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).push(order);
        self.waker.wake();
    }

    /// Does what the lane was told, to its port.
    pub(super) fn carry_out(
        &self,
        port: &mut Port,
        poller: &Poller,
        overflow: &mut Overflow,
        streams: &mut StreamEdge,
    ) -> io::Result<Flow> {
        self.waker.clear();
        let orders = std::mem::take(&mut *self.orders.lock().unwrap_or_else(PoisonError::into_inner));
        for order in orders {
            match order {
                Order::UsePort(new) => {
                    *port = new;
                    *overflow = Overflow::default();
                    watch(port, poller)?;
                }
                Order::Adopt(stream) => streams.adopt(stream, poller),
                Order::Mark(fwmark) => port.set_fwmark(fwmark)?,
                Order::Stop => return Ok(Flow::End),
            }
        }
        Ok(Flow::Continue)
    }
}

pub(super) const SOCKET_V4: u64 = 2;
pub(super) const SOCKET_V6: u64 = 3;

/// Has the sockets of a port polled, as [`SOCKET_V4`] and [`SOCKET_V6`].
pub(super) fn watch(port: &Port, poller: &Poller) -> io::Result<()> {
    for (family, socket) in port.sockets() {
        let token = match family {
            Family::V4 => SOCKET_V4,
            Family::V6 => SOCKET_V6,
        };
        poller.add(socket, token)?;
    }
    Ok(())
}

/// What each socket has said it dropped, IPv4 and IPv6.
#[derive(Default)]
pub(super) struct Overflow([u32; 2]);

impl Overflow {
    /// A socket that never dropped anything says nothing, which reads as 0.
    pub(super) fn count(&mut self, family: Family, incoming: &ReceiveBatch, forwarding: &Forwarding) {
        let [v4, v6] = &mut self.0;
        let before = match family {
            Family::V4 => v4,
            Family::V6 => v6,
        };
        let dropped = incoming.overflow();
        if dropped != 0 && dropped != *before {
            forwarding.drops.add(DropReason::ReceiveOverflow, u64::from(dropped.wrapping_sub(*before)));
            *before = dropped;
        }
    }
}
