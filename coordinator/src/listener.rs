//! The QUIC accept loop: who the handshake let in gets a session; all sessions share one driver.

use crate::driver::{Driver, DriverError, Parts};
use crate::home::{Home, HomeError, split_address};
use crate::operator;
use crate::roster::{Roster, RosterGate, SharedRoster};
use crate::session::{self, Shared, Uploads};
use crate::spool::Spool;
use crate::store::{Store, StoreError};
use quinn::crypto::rustls::QuicServerConfig;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tracing::Instrument;
use weighhouse_shared::clock;
use weighhouse_shared::telemetry::{self, CoordinatorMetrics};
use weighhouse_shared::tls::{self, Credentials, Peer, UnknownCertificate, connected_peer};
use weighhouse_shared::wire::transport;

/// The most connections at a time, with those still in their handshake.
const MAX_CONNECTIONS: usize = 20_000;
/// The most handshakes under way at a time. What comes beyond them is dropped unseen; an honest peer tries again.
const MAX_HANDSHAKES: usize = 256;
/// The most handshakes under way from one address: behind one there may be a whole site, or many.
const MAX_HANDSHAKES_OF_ADDRESS: usize = 64;
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The most connections of one key: a site has one, and others while they are not yet known to be gone; an operator
/// has one a command.
const MAX_CONNECTIONS_OF_KEY: usize = 16;

/// With what one more connection of a key is closed.
const TOO_MANY: u8 = 1;
/// What the peer may show.
const TOO_MANY_REASON: &[u8] =
    b"too many connections of one key at a time: end some, or try again in half a minute";

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
        let shared = Arc::new(Shared { inbox, uploads: Uploads::new(spool), roster });
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
        let (handshakes, connected) = (Counts::<IpAddr>::default(), Counts::<[u8; 32]>::default());
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
                // Nothing is kept, and no key touched, for a peer that has not shown to be where it says it is.
                if !incoming.remote_address_validated() {
                    let _ = incoming.retry();
                    continue;
                }
                let address = incoming.remote_address().ip();
                let room = endpoint.open_connections() < MAX_CONNECTIONS && handshakes.all() < MAX_HANDSHAKES;
                let Some(handshake) =
                    handshakes.one_more(address, MAX_HANDSHAKES_OF_ADDRESS).filter(|_| room)
                else {
                    incoming.ignore();
                    continue;
                };
                sessions += 1;
                let (shared, session, connected) = (shared.clone(), sessions, connected.clone());
                tokio::spawn(async move {
                    // Whoever fails in the handshake has seen our certificate and nothing else.
                    let Ok(Ok(connection)) = tokio::time::timeout(HANDSHAKE, incoming).await else { return };
                    drop(handshake);
                    let Ok(key) = connected_key(&connection) else { return };
                    let Some(_one) = connected.one_more(key, MAX_CONNECTIONS_OF_KEY) else {
                        return connection.close(TOO_MANY.into(), TOO_MANY_REASON);
                    };
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

fn connected_key(connection: &quinn::Connection) -> Result<[u8; 32], UnknownCertificate> {
    tls::public_key_of(&tls::connected_certificate(connection)?)
}

/// How many there are of each, and of all.
#[derive(Debug)]
struct Counts<K>(Arc<Mutex<BTreeMap<K, usize>>>);

/// One of them, until it is dropped.
#[derive(Debug)]
struct One<K: Ord> {
    of: K,
    counts: Counts<K>,
}

impl<K> Clone for Counts<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Ord + Copy> Counts<K> {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<K, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all(&self) -> usize {
        self.lock().values().sum()
    }

    /// One more of `of`, if there are fewer than `most`.
    fn one_more(&self, of: K, most: usize) -> Option<One<K>> {
        let mut counts = self.lock();
        let count = counts.entry(of).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(One { of, counts: self.clone() })
    }
}

impl<K: Ord> Drop for One<K> {
    fn drop(&mut self) {
        let mut counts = self.counts.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.of);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_allowed_of_one_and_what_is_gone_makes_room() {
        let counts = Counts::<u8>::default();
        let first = counts.one_more(1, 2).unwrap();
        let _second = counts.one_more(1, 2).unwrap();
        assert!(counts.one_more(1, 2).is_none());
        let _other = counts.one_more(2, 2).unwrap();
        assert_eq!(counts.all(), 3);
        drop(first);
        assert_eq!(counts.all(), 2);
        assert!(counts.one_more(1, 2).is_some());
        assert_eq!(counts.lock().len(), 2);
    }
}
