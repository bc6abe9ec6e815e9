//! A connection to the coordinator, or why there is none: in words for who runs the site.

use super::machine::{Failure, agreed, hello};
use crate::witnesses::Contradiction;
use quinn::{Connection, ConnectionError, Endpoint};
use rustls::pki_types::CertificateDer;
use std::net::SocketAddr;
use weighhouse_shared::tls::{self, COORDINATOR_NAME, Credentials, Trust};
use weighhouse_shared::wire::stream::{self, StreamError};
use weighhouse_shared::wire::{ALPN, OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION, transport};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name has no address.
    #[error("cannot find the address of `{name}`; check `coordinator` in client.toml and the name service")]
    Resolve {
        /// Host and port.
        name: String,
    },
    /// No socket, or no TLS.
    #[error("cannot open a connection")]
    Local(#[source] std::io::Error),
    /// TLS cannot be set up with these keys.
    #[error("the key or certificate of this home cannot be used; join again with a new invite")]
    Tls(#[source] rustls::Error),
    /// No answer.
    #[error("the coordinator at {address} does not answer; is it running, and is UDP to that port allowed?")]
    Unreachable {
        /// Where it should be.
        address: SocketAddr,
        /// What the transport said.
        #[source]
        source: ConnectionError,
    },
    /// The coordinator does not take this site's certificate.
    #[error(
        "the coordinator refuses this site's certificate: it was revoked or has expired; ask the operator for a new invite"
    )]
    CertificateRefused,
    /// The coordinator's certificate is of another federation.
    #[error(
        "the coordinator at {address} is not the one this site joined: its certificate is of another authority"
    )]
    WrongCoordinator {
        /// Where it is.
        address: SocketAddr,
    },
    /// Versions differ.
    #[error(
        "the coordinator speaks protocol version {coordinator}, this release {OLDEST_PROTOCOL_VERSION} to {site}; update the older side"
    )]
    Version {
        /// The coordinator's.
        coordinator: u16,
        /// Ours.
        site: u16,
    },
    /// Not even the handshake has a version in common.
    #[error(
        "the coordinator at {address} does not speak `{}`, the only protocol this release speaks; update the older side",
        String::from_utf8_lossy(ALPN)
    )]
    OtherProtocol {
        /// Where it is.
        address: SocketAddr,
    },
    /// The connection ended.
    #[error("the connection to the coordinator was lost")]
    Lost(#[source] StreamError),
    /// The ledger was set back or rewritten.
    #[error(transparent)]
    Ledger(#[from] Contradiction),
    /// The coordinator said something out of turn.
    #[error("the coordinator does not keep to the protocol")]
    Protocol,
    /// The coordinator took the connection and said nothing.
    #[error("the coordinator is connected but does not answer")]
    Silent,
}

impl ConnectError {
    /// Tells a refused certificate from a lost link.
    pub fn from_stream(error: StreamError) -> Self {
        let connection = match &error {
            StreamError::Connection(error)
            | StreamError::Read(quinn::ReadError::ConnectionLost(error))
            | StreamError::ReadExact(quinn::ReadExactError::ReadError(quinn::ReadError::ConnectionLost(
                error,
            )))
            | StreamError::Write(quinn::WriteError::ConnectionLost(error)) => Some(error),
            _ => None,
        };
        match connection {
            Some(ConnectionError::ConnectionClosed(close)) if is_crypto(close.error_code) => {
                Self::CertificateRefused
            }
            _ => Self::Lost(error),
        }
    }

    /// Whether trying again cannot help.
    pub fn is_final(&self) -> bool {
        !matches!(
            self,
            Self::Resolve { .. } | Self::Unreachable { .. } | Self::Lost(_) | Self::Local(_) | Self::Silent
        )
    }
}

impl From<Failure> for ConnectError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Protocol => Self::Protocol,
            Failure::Version(coordinator) => Self::Version { coordinator, site: PROTOCOL_VERSION },
            Failure::Silent => Self::Silent,
        }
    }
}

/// TLS's alert that no application protocol is common (RFC 7301, section 3.2), as a transport error.
const NO_COMMON_PROTOCOL: u64 = 0x100 + 120;

/// TLS alerts travel as transport errors 0x100 to 0x1ff (RFC 9001, section 4.8).
fn is_crypto(code: quinn::TransportErrorCode) -> bool {
    (0x100..=0x1ff).contains(&u64::from(code))
}

/// The address of `name`, a host and port.
pub async fn resolve(name: &str) -> Result<SocketAddr, ConnectError> {
    let unknown = || ConnectError::Resolve { name: name.to_owned() };
    tokio::net::lookup_host(name).await.map_err(|_| unknown())?.next().ok_or_else(unknown)
}

/// Connects to the coordinator at `address`.
pub async fn connect(
    address: SocketAddr,
    credentials: &Credentials,
    trust: Trust,
) -> Result<(Endpoint, Connection), ConnectError> {
    let tls = tls::client_config(credentials, trust).map_err(ConnectError::Tls)?;
    let endpoint = transport::dial(address, tls).map_err(ConnectError::Local)?;
    let connecting = endpoint
        .connect(address, COORDINATOR_NAME)
        .map_err(|error| ConnectError::Local(std::io::Error::other(error)))?;
    match connecting.await {
        Ok(connection) => Ok((endpoint, connection)),
        Err(ConnectionError::TransportError(error)) if is_crypto(error.code) => {
            Err(ConnectError::WrongCoordinator { address })
        }
        Err(ConnectionError::ConnectionClosed(close))
            if u64::from(close.error_code) == NO_COMMON_PROTOCOL =>
        {
            Err(ConnectError::OtherProtocol { address })
        }
        Err(ConnectionError::ConnectionClosed(close)) if is_crypto(close.error_code) => {
            Err(ConnectError::CertificateRefused)
        }
        Err(source) => Err(ConnectError::Unreachable { address, source }),
    }
}

/// Whether the coordinator at `name`, a host and port, answers and takes this site, without taking part: a running
/// daemon of the site is not disturbed.
pub async fn probe(
    name: &str,
    credentials: &Credentials,
    authority: CertificateDer<'static>,
) -> Result<(), ConnectError> {
    let lost = ConnectError::from_stream;
    let address = resolve(name).await?;
    let (_endpoint, connection) = connect(address, credentials, Trust::Authority(authority)).await?;
    let (mut send, mut receive) = connection.open_bi().await.map_err(|error| lost(error.into()))?;
    stream::send(&mut send, &hello()).await.map_err(lost)?;
    let answer = stream::receive(&mut receive).await.map_err(lost)?.ok_or(ConnectError::Protocol)?;
    connection.close(0u8.into(), b"");
    agreed(&answer)?;
    Ok(())
}
