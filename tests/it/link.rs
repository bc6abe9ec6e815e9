//! The wire between a site and its coordinator: datagrams pass unchanged, are counted, and stop when the link is cut;
//! the site may appear at another address. Knows nothing of what they say.

use crate::federation::Federation;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use tokio::net::UdpSocket;

/// The longest datagram.
const DATAGRAM_LEN: usize = 1 << 16;

/// Which way datagrams go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the site.
    Up,
    /// To the site.
    Down,
}

#[derive(Debug, Default)]
struct State {
    cut: AtomicBool,
    /// Bytes that passed, up and down.
    passed: [AtomicU64; 2],
    /// At so many bytes of that way the link is cut by itself.
    cut_at: [AtomicU64; 2],
    /// Long headers from sites: of handshakes only.
    handshakes: AtomicU64,
    /// Where the coordinator sees each site.
    backs: Mutex<BTreeMap<SocketAddr, Arc<UdpSocket>>>,
}

/// A link.
pub struct Link {
    runtime: tokio::runtime::Runtime,
    state: Arc<State>,
    /// Tells when the link was cut by itself.
    pub was_cut: mpsc::Receiver<Way>,
}

impl State {
    /// Whether a datagram may pass; counts it.
    fn passes(&self, way: Way, len: usize, cut: &mpsc::Sender<Way>) -> bool {
        if self.cut.load(Ordering::SeqCst) {
            return false;
        }
        let passed = self.passed[way as usize].fetch_add(len as u64, Ordering::SeqCst) + len as u64;
        let limit = self.cut_at[way as usize].load(Ordering::SeqCst);
        if limit > 0 && passed >= limit {
            self.cut_at[way as usize].store(0, Ordering::SeqCst);
            self.cut.store(true, Ordering::SeqCst);
            let _ = cut.send(way);
        }
        true
    }
}

impl Link {
    /// Lies between `federation` and the site in `home`, whose settings then name this end of it.
    pub fn lay(federation: &Federation, home: &Path) -> Self {
        let to: SocketAddr =
            std::fs::read_to_string(federation.home().join("address")).unwrap().parse().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let front = Arc::new(runtime.block_on(UdpSocket::bind("127.0.0.1:0")).unwrap());
        let address = front.local_addr().unwrap().to_string();
        let (news, was_cut) = mpsc::channel();
        let state = Arc::new(State::default());
        runtime.spawn(carry(front, to, state.clone(), news));
        let settings = home.join("client.toml");
        let text = std::fs::read_to_string(&settings).unwrap().replace(&to.to_string(), &address);
        assert!(text.contains(&address), "the site must call over the link");
        std::fs::write(&settings, text).unwrap();
        Self { runtime, state, was_cut }
    }

    /// Nothing passes any more.
    pub fn cut(&self) {
        self.state.cut.store(true, Ordering::SeqCst);
    }

    /// Cuts the link by itself once `bytes` more have passed `way`.
    pub fn cut_after(&self, way: Way, bytes: u64) {
        self.state.cut_at[way as usize].store(self.passed(way) + bytes, Ordering::SeqCst);
    }

    /// All passes again.
    pub fn mend(&self) {
        self.state.cut.store(false, Ordering::SeqCst);
    }

    /// Bytes that passed so far, with all headers.
    pub fn passed(&self, way: Way) -> u64 {
        self.state.passed[way as usize].load(Ordering::SeqCst)
    }

    /// Datagrams of handshakes from the site so far.
    pub fn handshakes(&self) -> u64 {
        self.state.handshakes.load(Ordering::SeqCst)
    }

    /// The site appears at another address from now on, as after a router's restart.
    pub fn move_site(&self) {
        let _inside = self.runtime.enter();
        self.state.backs.lock().unwrap().clear();
    }
}

async fn carry(front: Arc<UdpSocket>, to: SocketAddr, state: Arc<State>, news: mpsc::Sender<Way>) {
    let mut datagram = vec![0; DATAGRAM_LEN];
    loop {
        let Ok((len, site)) = front.recv_from(&mut datagram).await else { continue };
        if datagram[0] & 0x80 != 0 {
            state.handshakes.fetch_add(1, Ordering::SeqCst);
        }
        let known = state.backs.lock().unwrap().get(&site).cloned();
        let back = match known {
            Some(back) => back,
            None => {
                let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                back.connect(to).await.unwrap();
                tokio::spawn(carry_back(back.clone(), front.clone(), site, state.clone(), news.clone()));
                state.backs.lock().unwrap().insert(site, back.clone());
                back
            }
        };
        if state.passes(Way::Up, len, &news) {
            // A coordinator that is not there refuses it; the site tries again.
            let _ = back.send(&datagram[..len]).await;
        }
    }
}

async fn carry_back(
    back: Arc<UdpSocket>,
    front: Arc<UdpSocket>,
    site: SocketAddr,
    state: Arc<State>,
    news: mpsc::Sender<Way>,
) {
    let mut datagram = vec![0; DATAGRAM_LEN];
    loop {
        let Ok(len) = back.recv(&mut datagram).await else { continue };
        if state.passes(Way::Down, len, &news) {
            let _ = front.send_to(&datagram[..len], site).await;
        }
    }
}
