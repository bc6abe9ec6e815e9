//! The QUIC accept loop: who the handshake let in gets a session; all sessions share one driver.

use crate::driver::{Driver, DriverError, Parts};
use crate::home::{Home, HomeError, split_address};
use crate::operator;
use crate::roster::{Roster, RosterGate, SharedRoster};
use crate::session::{self, MAX_UPLOADS, Shared};
use crate::spool::Spool;
use crate::store::{Store, StoreError};
use quinn::crypto::rustls::QuicServerConfig;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tracing::Instrument;
use weighhouse_shared::clock;
use weighhouse_shared::telemetry::{self, CoordinatorMetrics};
use weighhouse_shared::tls::{self, Credentials, Peer, connected_peer};
use weighhouse_shared::wire::transport;

/// The most connections at a time, with those still in their handshake.
const MAX_CONNECTIONS: usize = 20_000;

/// Why the coordinator cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The home cannot be used.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The state cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The driver stopped.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The keys cannot be used.
    #[error("the coordinator's keys cannot be used; restore the home from a backup")]
    Tls(#[source] rustls::Error),
    /// The port is taken or not allowed.
    #[error(
        "cannot listen on {address}; another program may use that UDP port: stop it, or change `listen` in coordinator.toml"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The spool folder cannot be made.
    #[error("cannot make the spool folder; is the disk full?")]
    Spool(#[source] std::io::Error),
}

/// A coordinator that listens.
pub struct Coordinator {
    endpoint: quinn::Endpoint,
    driver: Driver,
    shared: Arc<Shared>,
    address: SocketAddr,
    home: Home,
    metrics: CoordinatorMetrics,
}

/// How often the coordinator looks whether its own certificates should be renewed.
const RENEWAL_CHECK: Duration = Duration::from_secs(86_400);

/// Renews what is due if the authority's key is here; else says who must. Whether anything was renewed.
fn renew_own_certificates(home: &Home) -> Result<bool, HomeError> {
    let due = home.due(clock::unix_time_s());
    if due.is_empty() {
        return Ok(false);
    }
    let (key, names) = (home.path("authority.key"), due.join(", "));
    if !key.exists() {
        tracing::warn!("certificates should be renewed soon, with the authority's key: {names}");
        return Ok(false);
    }
    home.renew(&key, |name| due.contains(&name))?;
    tracing::info!("renewed certificates: {names}");
    Ok(true)
}

/// When the coordinator's own certificate ends.
fn note_expiry(metrics: &CoordinatorMetrics, home: &Home) {
    let own = home.credentials("coordinator").ok();
    if let Some(validity) = own.and_then(|own| tls::validity_of(&own.chain[0]).ok()) {
        metrics.certificate_expiry.set(validity.not_after_s as i64);
    }
}

fn server_tls(home: &Home, roster: &SharedRoster) -> Result<QuicServerConfig, ListenError> {
    let (authority, credentials) = (home.authority()?, home.credentials("coordinator")?);
    let issuers = vec![home.issuer()?.certificate];
    let gate = Arc::new(RosterGate(roster.clone()));
    tls::server_config(&credentials, &authority, issuers, gate).map_err(ListenError::Tls)
}

impl Coordinator {
    /// Opens the state of `home` and listens. Must be called inside the runtime.
    pub fn start(home: &Home) -> Result<Self, ListenError> {
        let config = home.config()?;
        renew_own_certificates(home)?;
        let authority = home.authority()?;
        let credentials = home.credentials("coordinator")?;
        let store = Store::open(&home.path("state"))?;
        let spool = home.path("spool");
        std::fs::create_dir_all(&spool).map_err(ListenError::Spool)?;
        let roster: SharedRoster = Arc::new(Roster::of(store.sites()?).into());
        let tls = server_tls(home, &roster)?;
        let listen_error = |source| ListenError::Listen { address: config.listen, source };
        let endpoint = transport::listen(config.listen, tls, &credentials.identity.derived_secret("restart"))
            .map_err(listen_error)?;
        let address = endpoint.local_addr().map_err(listen_error)?;
        let public_address = match split_address(&config.public_address)? {
            (host, 0) => format!("{host}:{}", address.port()),
            _ => config.public_address.clone(),
        };
        home.note_address(address)?;
        let Credentials { chain, identity } = credentials;
        let certificate = chain[0].clone();
        let spool = Spool::new(spool);
        let metrics = CoordinatorMetrics::default();
        note_expiry(&metrics, home);
        let parts = Parts {
            store,
            spool: spool.clone(),
            roster: roster.clone(),
            issuer: home.issuer()?,
            authority,
            identity,
            certificate,
            public_address,
            metrics: metrics.clone(),
        };
        let (driver, inbox) = Driver::restore(parts)?;
        let shared = Arc::new(Shared { inbox, uploads: Semaphore::new(MAX_UPLOADS), spool, roster });
        Ok(Self { endpoint, driver, shared, address, home: home.clone(), metrics })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it counts, from now on too.
    pub fn metrics(&self) -> CoordinatorMetrics {
        self.metrics.clone()
    }

    /// Runs until the state can no longer be saved. Dropping the future ends it safely at any point.
    pub async fn run(self) -> Result<(), ListenError> {
        let Self { endpoint, driver, shared, home, metrics, .. } = self;
        let renewals = async {
            let mut days = tokio::time::interval(RENEWAL_CHECK);
            // The first tick is at once, and what was due at the start is renewed.
            days.tick().await;
            loop {
                days.tick().await;
                let renewed = renew_own_certificates(&home).map_err(ListenError::from);
                let renewed = renewed
                    .and_then(|renewed| renewed.then(|| server_tls(&home, &shared.roster)).transpose());
                match renewed {
                    Ok(Some(tls)) => {
                        endpoint.set_server_config(Some(transport::server_config(tls)));
                        note_expiry(&metrics, &home);
                    }
                    Ok(None) => {}
                    Err(error) => tracing::error!(%error, "certificates could not be renewed"),
                }
            }
        };
        let accept = async {
            let mut sessions = 0u64;
            while let Some(incoming) = endpoint.accept().await {
                if endpoint.open_connections() > MAX_CONNECTIONS {
                    incoming.refuse();
                    continue;
                }
                sessions += 1;
                let (shared, session) = (shared.clone(), sessions);
                tokio::spawn(async move {
                    // Whoever fails in the handshake has seen our certificate and nothing else.
                    let Ok(connection) = incoming.await else { return };
                    let Ok(peer) = connected_peer(&connection) else { return };
                    let outcome = match peer {
                        Peer::Operator { .. } => operator::serve(connection, shared).await,
                        Peer::Site(site) => {
                            let span = telemetry::site_span(site);
                            session::serve(connection, peer, session, shared).instrument(span).await
                        }
                        Peer::Enrolling { .. } => session::serve(connection, peer, session, shared).await,
                        Peer::Coordinator => return,
                    };
                    if let Err(error) = outcome {
                        tracing::debug!(%error, "a session ended");
                    }
                });
            }
        };
        tokio::select! {
            outcome = driver.run() => Ok(outcome?),
            () = accept => Ok(()),
            never = renewals => never,
        }
    }
}
