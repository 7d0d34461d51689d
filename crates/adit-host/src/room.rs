use crate::error::HostError;
use crate::netlink::Netlink;
use crate::plan::{Address, Link, Route};
use crate::route::{self, Tables};
use crate::{address, link};

/// Sets up a network namespace that ends with its processes: nothing is written down, because nothing is ever undone.
///
/// Works on the namespace of the calling thread, in the order of the arguments. For a host that lives on, see
/// [`apply`](crate::apply).
pub fn furnish(links: &[Link], addresses: &[Address], routes: &[Route]) -> Result<(), HostError> {
    let mut netlink = Netlink::open()?;
    for wanted in links {
        if let Some(it) = link::prepare(&mut netlink, wanted)? {
            link::make(&mut netlink, &it)?;
        }
    }
    for wanted in addresses {
        if let Some(it) = address::prepare(&mut netlink, wanted)? {
            address::make(&mut netlink, &it)?;
        }
    }
    let tables = Tables::list(&mut netlink)?;
    for wanted in routes {
        if let Some(it) = route::prepare(&mut netlink, &tables, wanted)? {
            route::make(&mut netlink, &it)?;
        }
    }
    Ok(())
}
