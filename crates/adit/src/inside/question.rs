//! The asking side of the inside API.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::Deserialize;

use crate::limits::LimitsReport;
use crate::web::{self, Way};

const PATIENCE: Duration = Duration::from_secs(2);
const BYTES_MAX: usize = 4096;
const BUFFER_BYTES: usize = 16 * 1024;

/// Who the gateway says we are.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct WhoAmI {
    /// Our name at the gateway.
    pub name: String,
    /// Our lease.
    pub inside: Vec<IpAddr>,
    /// Where the gateway sends what is for us.
    pub outside: Option<SocketAddr>,
    /// How it is carried.
    pub carrier: Option<String>,
    /// The suite.
    pub suite: String,
    /// What we may use; `None` is without limits.
    #[serde(default)]
    pub limits: Option<LimitsReport>,
}

/// Asks the first of `apis` that answers, through `interface` only; also which one that was.
///
/// # Errors
/// None answers; the text is for people.
pub async fn whoami(interface: &str, apis: &[SocketAddr]) -> Result<(SocketAddr, WhoAmI), String> {
    let way = Way { mark: 0, interface: Some(interface.to_owned()) };
    let mut reasons = Vec::new();
    for api in apis {
        match web::in_time(PATIENCE, whoami_at(&way, *api)).await {
            Ok(told) => return Ok((*api, told)),
            Err(reason) => reasons.push(format!("{api}: {reason}")),
        }
    }
    match reasons.is_empty() {
        true => Err("the file of the tunnel does not say where the inside API of the gateway is".to_owned()),
        false => Err(reasons.join("; ")),
    }
}

async fn whoami_at(way: &Way, api: SocketAddr) -> Result<WhoAmI, String> {
    let stream = way.connect(api).await.map_err(|error| error.to_string())?;
    let request = web::get(&api.to_string(), "/v1/whoami").map_err(|error| error.to_string())?;
    let answer = web::send(stream, request, BUFFER_BYTES).await.map_err(|error| error.to_string())?;
    let body = web::small_body(answer, BYTES_MAX).await?;
    serde_json::from_slice(&body).map_err(|error| format!("its answer cannot be read: {error}"))
}
