//! QUIC as both ends use it: transport limits, socket buffers, endpoints.

use aws_lc_rs::hmac;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Endpoint, EndpointConfig, IdleTimeout, TransportConfig, VarInt};
use quinn_proto::HashedConnectionIdGenerator;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

/// How much one stream's sender may be ahead of its reader, in bytes.
const STREAM_WINDOW: u32 = 4 << 20;
/// How much all streams of a connection together may be ahead, in bytes.
pub const CONNECTION_WINDOW: u32 = 4 << 20;
/// The same towards a coordinator, while the site's upload waits for its turn: what thousands of sites may have it
/// hold stays small.
pub const WAITING_WINDOW: u32 = 128 << 10;
/// Handshakes that wait to be looked at, and the bytes that may come with one and with all of them.
const MAX_INCOMING: usize = 1 << 10;
const INCOMING_BUFFER: u64 = 16 << 10;
const INCOMING_BUFFERS: u64 = 8 << 20;
/// Asked of the system for each socket; bursts of many peers fit. The system may give less.
const SOCKET_BUFFER: usize = 4 << 20;
/// A peer that is silent this long is gone.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Shows the peer, and what stands between, that we are still here; and finds a restarted one.
const KEEP_ALIVE: Duration = Duration::from_secs(3);

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(4))
        .max_concurrent_uni_streams(VarInt::from_u32(4))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(u64::from(CONNECTION_WINDOW))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(IdleTimeout::try_from(IDLE_TIMEOUT).expect("30 s fit the field")))
        .keep_alive_interval(Some(KEEP_ALIVE));
    transport
}

fn socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    let options = socket2::SockRef::from(&socket);
    // Smaller buffers than asked for cost speed, not correctness.
    let _ = options.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = options.set_send_buffer_size(SOCKET_BUFFER);
    Ok(socket)
}

/// The coordinator's endpoint on `address`. Must be called inside the runtime.
///
/// `restart_key` is the same over restarts and secret: from it come connection identifiers and reset tokens
/// (RFC 9000, section 10.3), by which a peer of the process before learns at its next packet that its
/// connection is gone, instead of waiting for silence.
pub fn listen(address: SocketAddr, tls: QuicServerConfig, restart_key: &[u8; 32]) -> io::Result<Endpoint> {
    let runtime = quinn::default_runtime().ok_or_else(|| io::Error::other("no async runtime"))?;
    let (identifiers, _) = restart_key.split_first_chunk::<8>().expect("32 bytes hold 8");
    let identifiers = u64::from_le_bytes(*identifiers);
    let mut endpoint = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, restart_key)));
    endpoint.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(identifiers)));
    Endpoint::new(endpoint, Some(server_config(tls)), socket(address)?, runtime)
}

/// What the coordinator's endpoint answers new connections with.
pub fn server_config(tls: QuicServerConfig) -> quinn::ServerConfig {
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    let mut transport = transport();
    transport.receive_window(VarInt::from_u32(WAITING_WINDOW));
    config
        .transport_config(Arc::new(transport))
        .max_incoming(MAX_INCOMING)
        .incoming_buffer_size(INCOMING_BUFFER)
        .incoming_buffer_size_total(INCOMING_BUFFERS);
    config
}

/// A site's or an operator's endpoint, towards a coordinator at `remote`. Must be called inside the runtime.
pub fn dial(remote: SocketAddr, tls: QuicClientConfig) -> io::Result<Endpoint> {
    let local: SocketAddr = if remote.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let runtime = quinn::default_runtime().ok_or_else(|| io::Error::other("no async runtime"))?;
    let mut endpoint = Endpoint::new(EndpointConfig::default(), None, socket(local)?, runtime)?;
    endpoint.set_default_client_config(client_config(tls));
    Ok(endpoint)
}

/// What a site or an operator connects with.
pub fn client_config(tls: QuicClientConfig) -> quinn::ClientConfig {
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport()));
    config
}
