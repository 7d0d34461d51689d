use std::io;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::error::HostError;

/// `RTNLGRP_*` of linux/rtnetlink.h: links, addresses and routes, of IPv4 and of IPv6.
const GROUPS: [u32; 5] = [1, 5, 7, 9, 11];
const ENOBUFS: i32 = 105;

/// Calls `changed` whenever a link, an address or a route of this network namespace changes, from a thread of its own,
/// until it returns `false`. What changed is for whoever is called to find out.
pub fn watch_ways(changed: impl Fn() -> bool + Send + 'static) -> Result<(), HostError> {
    let doing = "watch links, addresses and routes";
    let open = || {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        GROUPS.iter().try_for_each(|group| socket.add_membership(*group))?;
        Ok(socket)
    };
    let socket: Socket = open().map_err(|error: io::Error| HostError::kernel(doing, error))?;
    let thread = std::thread::Builder::new().name("watch-ways".to_owned());
    let spawned = thread.spawn(move || {
        loop {
            match socket.recv_from_full() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // More happened than could be told.
                Err(error) if error.raw_os_error() == Some(ENOBUFS) => {}
                Err(error) => return tracing::warn!("links and routes are no longer watched: {error}"),
            }
            if !changed() {
                return;
            }
        }
    });
    spawned.map(drop).map_err(|error| HostError::kernel(doing, error))
}
