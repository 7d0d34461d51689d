//! Services asked in turn, until one says an address.

use std::time::Duration;

use super::answer::address_in;
use super::{Failure, Family, Found};
use crate::config::ServiceUrl;
use crate::endpoint::{self, HostPort};
use crate::web::{self, Trust, Way};

/// How long one service may take, from its name to its answer.
const PATIENCE: Duration = Duration::from_secs(3);
const BYTES_MAX: usize = 4096;
const BUFFER_BYTES: usize = 16 * 1024;

/// What services are asked with.
pub(super) struct Asker {
    pub(super) services: Vec<ServiceUrl>,
    pub(super) trust: Result<Trust, String>,
}

impl Asker {
    /// The first address that a service says when asked over `family` by `way`, and those that failed before.
    pub(super) async fn in_turn(
        &self,
        family: Family,
        way: &Way,
        about: &'static str,
    ) -> (Option<Found>, Vec<Failure>) {
        let mut failures = Vec::new();
        for service in &self.services {
            match web::in_time(PATIENCE, self.one(service, family, way)).await {
                Ok(address) => {
                    return (Some(Found { address, source: service.authority() }), failures);
                }
                Err(reason) => {
                    tracing::debug!(%service, %family, about, "{reason}");
                    failures.push(Failure { service: service.authority(), asked: about, reason });
                }
            }
        }
        (None, failures)
    }

    async fn one(&self, service: &ServiceUrl, family: Family, way: &Way) -> Result<std::net::IpAddr, String> {
        let name = HostPort { host: service.host.clone(), port: service.port };
        let resolved = tokio::task::spawn_blocking(move || endpoint::resolve(&name, PATIENCE)).await;
        let addresses = resolved.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        let address = addresses.into_iter().find(|address| Family::of(address.ip()) == family);
        let address = address.ok_or_else(|| format!("it has no {family} address"))?;
        let stream = way.connect(address).await.map_err(|error| match error.kind() {
            std::io::ErrorKind::NetworkUnreachable | std::io::ErrorKind::HostUnreachable => {
                format!("no way there over {family}")
            }
            std::io::ErrorKind::PermissionDenied => "only root may go around the tunnel".to_owned(),
            _ => format!("cannot connect: {error}"),
        })?;
        let request = web::get(&service.authority(), &service.target).map_err(|error| error.to_string())?;
        let answer = if service.is_https {
            let trust = self.trust.as_ref().map_err(Clone::clone)?;
            let stream =
                trust.secure(stream, &service.host).await.map_err(|error| format!("TLS failed: {error}"))?;
            web::send(stream, request, BUFFER_BYTES).await
        } else {
            web::send(stream, request, BUFFER_BYTES).await
        };
        let answer = answer.map_err(|error| format!("it speaks no HTTP: {error}"))?;
        address_in(&web::small_body(answer, BYTES_MAX).await?, family)
    }
}
