//! A go-between that keeps a book: a site's daemon takes it for its coordinator, the coordinator for the
//! site. What either says is passed on unchanged; what left the site is written down, as soon as the
//! first byte of it is there.

use crate::federation::Federation;
use quinn::Connection;
use rustls::pki_types::CertificateDer;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use tokio::sync::watch;
use weighhouse_client::session::connect;
use weighhouse_shared::ids::{ContentHash, JobId, RoundId};
use weighhouse_shared::ledger::ReleaseKind;
use weighhouse_shared::tls::{self, Credentials, Gate, Peer, Trust};
use weighhouse_shared::wire::messages::{CoordinatorToSite, SiteToCoordinator};
use weighhouse_shared::wire::{codec, stream, transport};

/// What the go-between saw pass.
#[derive(Debug)]
pub enum Seen {
    /// The site is connected.
    Connected,
    /// A message from the site.
    FromSite(SiteToCoordinator),
    /// A message for the site.
    ToSite(CoordinatorToSite),
    /// An update from the site is whole.
    Update,
    /// A model for the site is whole.
    Model,
    /// The daemon with this number has ended: said by who started it.
    Ended(u32),
}

/// What the go-between passes on. What it keeps back it still writes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Pass {
    /// Everything.
    Everything,
    /// Everything but what the site contributes.
    NoContributions,
    /// Everything but the news that a job has ended.
    NoEnds,
}

/// What an item that left is for.
pub type Purpose = (JobId, RoundId, ReleaseKind);

/// What left the site: by purpose and the hash it was announced by, the bytes of each copy as far as they came.
pub type Book = BTreeMap<Purpose, BTreeMap<ContentHash, Vec<Vec<u8>>>>;

#[derive(Debug)]
struct Desk {
    book: Mutex<Book>,
    seen: mpsc::Sender<Seen>,
    /// A [`Pass`].
    pass: AtomicU8,
    /// The last round whose start is passed on; a later one waits.
    until: watch::Sender<RoundId>,
}

/// The go-between.
pub struct GoBetween {
    _runtime: tokio::runtime::Runtime,
    desk: Arc<Desk>,
    /// What it sees.
    pub seen: mpsc::Receiver<Seen>,
}

#[derive(Debug)]
struct AnyPeer;

impl Gate for AnyPeer {
    fn admits(&self, _peer: &Peer) -> bool {
        true
    }
}

impl GoBetween {
    /// Stands between `federation` and the site in `home`, whose settings then name the go-between.
    pub fn start(federation: &Federation, home: &Path) -> Self {
        let hq = weighhouse_coordinator::home::Home::at(&federation.home());
        let (authority, server) = (hq.authority().unwrap(), hq.credentials("coordinator").unwrap());
        let (_, client) = weighhouse_client::home::Home::at(home).credentials().unwrap();
        let to: SocketAddr =
            std::fs::read_to_string(federation.home().join("address")).unwrap().parse().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (sender, seen) = mpsc::channel();
        let (pass, until) = (AtomicU8::new(Pass::Everything as u8), watch::Sender::new(RoundId(u32::MAX)));
        let desk = Desk { book: Mutex::default(), seen: sender, pass, until };
        let (desk, client) = (Arc::new(desk), Arc::new(client));
        let tls = tls::server_config(
            &server,
            &authority,
            vec![hq.issuer().unwrap().certificate],
            Arc::new(AnyPeer),
        )
        .unwrap();
        let endpoint = {
            let _inside = runtime.enter();
            transport::listen(([127, 0, 0, 1], 0).into(), tls, &[7; 32]).unwrap()
        };
        let address = endpoint.local_addr().unwrap().to_string();
        runtime.spawn({
            let desk = desk.clone();
            async move {
                while let Some(incoming) = endpoint.accept().await {
                    let (desk, client, authority) = (desk.clone(), client.clone(), authority.clone());
                    tokio::spawn(async move {
                        let Ok(site) = incoming.await else { return };
                        // Either end may go at any time; the site comes back by itself, and the coordinator
                        // then closes the old connection.
                        let _ = relay(site, to, &client, authority, &desk).await;
                    });
                }
            }
        });
        let settings = home.join("client.toml");
        let text = std::fs::read_to_string(&settings).unwrap().replace(&to.to_string(), &address);
        assert!(text.contains(&address), "the site must call the go-between");
        std::fs::write(&settings, text).unwrap();
        Self { _runtime: runtime, desk, seen }
    }

    /// What is passed on from now on.
    pub fn pass(&self, pass: Pass) {
        self.desk.pass.store(pass as u8, Ordering::SeqCst);
    }

    /// Rounds after `last` do not begin here until this is called again with a later one.
    pub fn pass_until(&self, last: u32) {
        self.desk.until.send_replace(RoundId(last));
    }

    /// Where to say that a daemon has ended.
    pub fn news(&self) -> mpsc::Sender<Seen> {
        self.desk.seen.clone()
    }

    /// What left the site so far.
    pub fn book(&self) -> Book {
        self.desk.book.lock().unwrap().clone()
    }
}

type Relayed = Result<(), Box<dyn std::error::Error + Send + Sync>>;

async fn relay(
    site: Connection,
    to: SocketAddr,
    credentials: &Credentials,
    authority: CertificateDer<'static>,
    desk: &Desk,
) -> Relayed {
    let (_endpoint, hq) = connect(to, credentials, Trust::Authority(authority)).await?;
    let (mut to_site, mut from_site) = site.accept_bi().await?;
    let (mut to_hq, mut from_hq) = hq.open_bi().await?;
    desk.seen.send(Seen::Connected)?;
    let up = async {
        while let Some(message) = stream::receive::<SiteToCoordinator>(&mut from_site).await? {
            let contributes = matches!(message, SiteToCoordinator::Evaluation(_));
            if let SiteToCoordinator::Evaluation(evaluation) = &message {
                let bytes: Vec<u8> =
                    evaluation.histogram.iter().flat_map(|count| count.to_le_bytes()).collect();
                let purpose = (evaluation.job, evaluation.round, ReleaseKind::Evaluation);
                desk.begin(purpose, ContentHash::of(&bytes), &bytes);
            }
            if !(contributes && desk.keeps(Pass::NoContributions)) {
                stream::send(&mut to_hq, &message).await?;
            }
            desk.seen.send(Seen::FromSite(message))?;
        }
        Relayed::Ok(())
    };
    let down = async {
        while let Some(message) = stream::receive::<CoordinatorToSite>(&mut from_hq).await? {
            if let CoordinatorToSite::RoundStart(start) = &message {
                desk.until.subscribe().wait_for(|last| start.round <= *last).await?;
            }
            let ends = matches!(message, CoordinatorToSite::JobEnded(_));
            if !(ends && desk.keeps(Pass::NoEnds)) {
                stream::send(&mut to_site, &message).await?;
            }
            desk.seen.send(Seen::ToSite(message))?;
        }
        Relayed::Ok(())
    };
    tokio::select! {
        ended = up => ended,
        ended = down => ended,
        ended = contents(&site, &hq, desk, true) => ended,
        ended = contents(&hq, &site, desk, false) => ended,
    }
}

/// Passes on what comes on streams of its own; what comes `from_site` is written down.
async fn contents(from: &Connection, to: &Connection, desk: &Desk, from_site: bool) -> Relayed {
    loop {
        let mut stream = from.accept_uni().await?;
        let piece = stream::receive_piece(&mut stream).await?;
        let purpose = (piece.job, piece.round, ReleaseKind::Update);
        if from_site && piece.offset == 0 {
            desk.begin(purpose, piece.content, &[]);
        }
        let mut bytes = Vec::new();
        while bytes.len() < piece.len as usize {
            let Some(chunk) = stream.read_chunk(piece.len as usize - bytes.len(), true).await? else { break };
            if from_site {
                desk.add(purpose, piece.content, &chunk.bytes);
            }
            bytes.extend_from_slice(&chunk.bytes);
        }
        if !(from_site && desk.keeps(Pass::NoContributions)) {
            let mut onward = to.open_uni().await?;
            let header = codec::encode(&piece);
            onward.write_all(&(header.len() as u16).to_le_bytes()).await?;
            onward.write_all(&header).await?;
            onward.write_all(&bytes).await?;
            let _ = onward.finish();
        }
        desk.seen.send(if from_site { Seen::Update } else { Seen::Model })?;
    }
}

impl Desk {
    fn keeps(&self, pass: Pass) -> bool {
        self.pass.load(Ordering::SeqCst) == pass as u8
    }

    /// Something begins to come: its first piece, or all of it.
    fn begin(&self, purpose: Purpose, content: ContentHash, bytes: &[u8]) {
        let mut book = self.book.lock().unwrap();
        book.entry(purpose).or_default().entry(content).or_default().push(bytes.to_vec());
    }

    /// More of the copy begun last.
    fn add(&self, purpose: Purpose, content: ContentHash, bytes: &[u8]) {
        let mut book = self.book.lock().unwrap();
        let copies = book.entry(purpose).or_default().entry(content).or_default();
        if let Some(copy) = copies.last_mut() {
            copy.extend_from_slice(bytes);
        }
    }
}
