//! The QUIC accept loop: who the handshake let in gets a session; all sessions share one driver.

use crate::driver::{Driver, DriverError, Parts};
use crate::home::{Home, HomeError, split_address};
use crate::operator;
use crate::roster::{Roster, RosterGate, SharedRoster};
use crate::session::{self, MAX_UPLOADS, Shared};
use crate::spool::Spool;
use crate::store::{Store, StoreError};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::Semaphore;
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
}

impl Coordinator {
    /// Opens the state of `home` and listens. Must be called inside the runtime.
    pub fn start(home: &Home) -> Result<Self, ListenError> {
        let config = home.config()?;
        let authority = home.authority()?;
        let credentials = home.credentials("coordinator")?;
        let store = Store::open(&home.path("state"))?;
        let spool = home.path("spool");
        std::fs::create_dir_all(&spool).map_err(ListenError::Spool)?;
        let roster: SharedRoster = Arc::new(Roster::of(store.sites()?).into());
        let gate = Arc::new(RosterGate(roster.clone()));
        let tls = tls::server_config(&credentials, &authority, gate).map_err(ListenError::Tls)?;
        let listen_error = |source| ListenError::Listen { address: config.listen, source };
        let endpoint = transport::listen(config.listen, tls, &credentials.identity.derived_secret("restart"))
            .map_err(listen_error)?;
        let address = endpoint.local_addr().map_err(listen_error)?;
        let public_address = match split_address(&config.public_address)? {
            (host, 0) => format!("{host}:{}", address.port()),
            _ => config.public_address.clone(),
        };
        home.note_address(address)?;
        let authority_key = home.authority_key()?;
        let Credentials { chain, identity } = credentials;
        let certificate = chain[0].clone();
        let spool = Spool::new(spool);
        let parts = Parts {
            store,
            spool: spool.clone(),
            roster,
            authority_key,
            authority,
            identity,
            certificate,
            public_address,
        };
        let (driver, inbox) = Driver::restore(parts)?;
        let shared = Arc::new(Shared { inbox, uploads: Semaphore::new(MAX_UPLOADS), spool });
        Ok(Self { endpoint, driver, shared, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Runs until the state can no longer be saved. Dropping the future ends it safely at any point.
    pub async fn run(self) -> Result<(), ListenError> {
        let Self { endpoint, driver, shared, .. } = self;
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
                        Peer::Site(_) | Peer::Enrolling { .. } => {
                            session::serve(connection, peer, session, shared).await
                        }
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
        }
    }
}
