//! A host that is deployed to while it serves.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{Host, StartError, Surroundings};
use crate::config::Config;
use crate::control::ControlError;
use crate::control::api::listen::{Bound, ListenError, Listening};
use crate::control::controller::restore::Restored;
use crate::control::controller::{Controller, ControllerError};

/// A host with its control plane.
pub struct Controlled {
    pub host: Host,
    pub controller: Arc<Controller>,
    /// Where the control API is served.
    pub control: Listening,
    stop: watch::Sender<bool>,
    driving: JoinHandle<()>,
}

/// Why such a host does not start.
#[derive(Debug, Error)]
pub enum ControlledError {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Controller(#[from] ControllerError),
    #[error("what was served cannot be brought back: {0}")]
    Restore(ControlError),
}

impl Controlled {
    /// Starts a host with the state in `around.state`, and serves what was served. Answers also what came of each app.
    ///
    /// # Errors
    /// Where an address is taken, another host has the state, or it cannot be read. An app that cannot be brought back
    /// keeps nobody else from being served.
    pub async fn start(
        config: Config,
        around: Surroundings,
    ) -> Result<(Controlled, Vec<Restored>), ControlledError> {
        let state = around.state.clone();
        let bound = Bound::bind(&config, &state).await?;
        let host = Host::start(config, around).await?;
        let controller = Controller::open(&host.deployer, &state).await?;
        let restored = controller.restore().await.map_err(ControlledError::Restore)?;
        let (stop, stopping) = watch::channel(false);
        let driving = tokio::spawn(Arc::clone(&controller).drive(stopping));
        let control = bound.serve(Arc::new(Arc::clone(&controller)));
        Ok((Controlled { host, controller, control, stop, driving }, restored))
    }

    /// Stops taking calls and deployments, and finishes what runs. Answers whether all of it ended in time.
    pub async fn drain(self) -> bool {
        let Controlled { host, controller, control, stop, driving } = self;
        control.drain();
        let within = Duration::from_millis(host.deployer.config.limits.drain_ms);
        let ended = host.drain().await;
        let told = control.stop(within).await;
        stop.send_replace(true);
        let _ = driving.await;
        drop(controller);
        ended && told
    }
}
