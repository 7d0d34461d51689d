//! The sans-IO protocol core of adit.
pub mod endpoint;
pub mod packet;
pub mod reason;
