//! What the transport alone can do: the same bytes over the same QUIC settings, and nothing else of a round.

use bytes::Bytes;
use std::sync::Arc;
use weighhouse_coordinator::authority;
use weighhouse_shared::identity::Identity;
use weighhouse_shared::ids::{ContentHash, JobId, RoundId};
use weighhouse_shared::tls::{self, Credentials, Gate, Peer, Role, Trust};
use weighhouse_shared::wire::stream::{self, Content, Taken};
use weighhouse_shared::wire::transport;

#[derive(Debug)]
struct Open;

impl Gate for Open {
    fn admits(&self, _peer: &Peer) -> bool {
        true
    }
}

/// Endpoints on loopback with this project's TLS and transport settings, and nothing else of it.
pub struct Bare {
    runtime: tokio::runtime::Runtime,
    pairs: Vec<(quinn::Connection, quinn::Connection)>,
    _endpoints: Vec<quinn::Endpoint>,
}

impl Bare {
    /// So many pairs.
    pub fn new(sites: usize) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let key = Identity::generate().unwrap();
        let root = authority::authority_certificate(&key).unwrap();
        let now = weighhouse_shared::clock::unix_time_s();
        let credentials = |role| {
            let identity = Identity::generate().unwrap();
            let own = authority::issue(&key, &root, role, "x", &identity.public_key(), now).unwrap();
            Credentials { chain: vec![own, root.clone()], identity }
        };
        let (mut pairs, mut endpoints) = (Vec::new(), Vec::new());
        runtime.block_on(async {
            let server =
                tls::server_config(&credentials(Role::Coordinator), &root, Vec::new(), Arc::new(Open))
                    .unwrap();
            let server = transport::listen(([127, 0, 0, 1], 0).into(), server, &[7; 32]).unwrap();
            let to = server.local_addr().unwrap();
            for _ in 0..sites {
                let client =
                    tls::client_config(&credentials(Role::Site), Trust::Authority(root.clone())).unwrap();
                let client = transport::dial(to, client).unwrap();
                let connecting = client.connect(to, tls::COORDINATOR_NAME).unwrap();
                let (far, near) =
                    tokio::join!(async { server.accept().await.unwrap().await.unwrap() }, connecting);
                far.set_receive_window(quinn::VarInt::from_u32(transport::CONNECTION_WINDOW));
                pairs.push((far, near.unwrap()));
                endpoints.push(client);
            }
            endpoints.push(server);
        });
        Self { runtime, pairs, _endpoints: endpoints }
    }

    /// Sends `bytes` to every site at once, then from every site at once.
    pub fn round(&self, bytes: &Bytes) {
        for upward in [false, true] {
            self.runtime.block_on(async {
                let mut transfers = tokio::task::JoinSet::new();
                for (coordinator, site) in &self.pairs {
                    let (from, to) = if upward { (site, coordinator) } else { (coordinator, site) };
                    let (from, to, bytes) = (from.clone(), to.clone(), bytes.clone());
                    let len = bytes.len();
                    let (job, hash) = (JobId::from_bytes([0; 32]), ContentHash::from_bytes([0; 32]));
                    transfers.spawn(async move {
                        let content = Content { job, round: RoundId(0), base: hash, hash, bytes };
                        stream::send_content(&from, &content, 0, Taken::AtOnce).await.unwrap();
                    });
                    transfers.spawn(async move {
                        let mut received = 0;
                        while received < len {
                            let mut stream = to.accept_uni().await.unwrap();
                            stream::receive_piece(&mut stream).await.unwrap();
                            while let Some(chunk) = stream.read_chunk(usize::MAX, true).await.unwrap() {
                                received += chunk.bytes.len();
                            }
                        }
                    });
                }
                while let Some(done) = transfers.join_next().await {
                    done.unwrap();
                }
            });
        }
    }
}
