//! Hosts, links and captures in network namespaces of one Linux machine.
//!
//! A [`Lab`] owns everything it makes and removes it when dropped, also after a panic. The root namespace's routes,
//! rules, firewall and sysctls are never touched. Everything needs root.
//!
//! ```no_run
//! use adit_lab::{End, Lab};
//!
//! # fn main() -> Result<(), adit_lab::LabError> {
//! let lab = Lab::new("example")?;
//! let (left, right) = (lab.host("left")?, lab.host("right")?);
//! lab.connect(End::new(&left, "eth0").address("10.0.0.1/24"), End::new(&right, "eth0").address("10.0.0.2/24"))?;
//! left.exec(["ping", "-c", "1", "10.0.0.2"])?;
//! # Ok(())
//! # }
//! ```

mod agent;
mod capture;
mod command;
mod error;
mod firewall;
mod host;
mod lab;
mod link;
pub mod pcap;
mod process;

pub use agent::{Content, SequenceReport, agent_main};
pub use capture::Capture;
pub use command::{Invocation, Output, find_tool};
pub use error::LabError;
pub use firewall::NatTimeouts;
pub use host::Host;
pub use lab::{Lab, wait_for};
pub use link::{End, Link};
pub use process::Process;

/// What every fallible call of this crate returns.
pub type Result<T, E = LabError> = std::result::Result<T, E>;
