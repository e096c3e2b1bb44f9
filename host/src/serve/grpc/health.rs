//! `grpc.health.v1`: whether the host takes calls, for probes and for clients that choose among hosts.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::super::Server;
use super::super::status::{AnswerError, Problem};
use super::framed;
use super::proto::FILES;
use super::proto::health::health_check_response::ServingStatus;
use super::proto::health::{HealthCheckRequest, HealthCheckResponse, HealthListResponse};
use super::stream::{At, Patience, Source, Streamed, refused};
use crate::instance::Deadline;

/// The host as a whole.
const WHOLE: &str = "";

fn services() -> impl Iterator<Item = &'static str> {
    FILES.iter().flat_map(|file| file.services).copied().chain([WHOLE])
}

/// The state of a service: all of them take calls when the host does. `None` where there is no such service.
fn status(server: &Server, service: &str) -> Option<ServingStatus> {
    let is_known = services().any(|known| known == service);
    let status = if server.is_ready() { ServingStatus::Serving } else { ServingStatus::NotServing };
    is_known.then_some(status)
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

/// # Errors
/// Where there is no such service.
pub(super) fn check(
    server: &Server,
    request: &HealthCheckRequest,
) -> Result<HealthCheckResponse, AnswerError> {
    let status = status(server, &request.service);
    status.map(response).ok_or_else(|| AnswerError::ServiceNotFound(request.service.clone()))
}

pub(super) fn list(server: &Server) -> HealthListResponse {
    let state = |service: &str| status(server, service).map(|status| (service.to_owned(), response(status)));
    HealthListResponse { statuses: services().filter_map(state).collect() }
}

/// How often the state is looked at for those who watch it.
const LOOK: Duration = Duration::from_millis(500);

/// The state of a service now, and again whenever it has changed.
pub(super) struct Watch {
    server: Arc<Server>,
    request_id: String,
    service: String,
    told: Option<ServingStatus>,
    clock: Pin<Box<Interval>>,
    patience: Patience,
}

pub(super) fn watch(
    server: &Arc<Server>,
    request: HealthCheckRequest,
    request_id: &str,
    deadline: Option<Deadline>,
) -> Streamed<Watch> {
    let mut clock = interval(LOOK);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let watch = Watch {
        server: Arc::clone(server),
        request_id: request_id.to_owned(),
        service: request.service,
        told: None,
        clock: Box::pin(clock),
        patience: Patience::new(server, deadline),
    };
    Streamed::new(watch)
}

impl Source for Watch {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Vec<Bytes>, Problem>>> {
        loop {
            let status = status(&self.server, &self.service).unwrap_or(ServingStatus::ServiceUnknown);
            if self.told.replace(status) != Some(status) {
                return Poll::Ready(Some(Ok(vec![framed(&response(status))])));
            }
            // Who watches is silent for good, but a host that shuts down waits for nobody.
            let at = if self.server.draining() { At::Rest } else { At::Work };
            if let Poll::Ready(over) = self.patience.poll_over(context, at) {
                return Poll::Ready(Some(Err(refused(&self.server, &self.request_id, &over))));
            }
            ready!(self.clock.poll_tick(context));
        }
    }
}
