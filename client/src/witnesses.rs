//! The coordinator's witnesses of this site's ledger, kept beside it in `witnesses.jsonl`, with the certificate
//! whose key signed them in `coordinator.crt`: a ledger put back from an older copy is found out by them, also
//! without the coordinator.

use crate::home::Home;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use weighhouse_shared::config::write_whole;
use weighhouse_shared::ledger::{MAX_WITNESS_LEN, SignedWitness, Witness, WitnessFault, read_witnesses};
use weighhouse_shared::tls::{to_pem, verified_coordinator_key};

/// As much of the file's end as holds its last whole line.
const TAIL_LEN: u64 = 2 * MAX_WITNESS_LEN as u64;

/// A witness says that the ledger was longer, or another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the privacy ledger {ledger} contradicts the coordinator's witness: {fault}; nothing is trained or sent until \
     the newest ledger.jsonl is put back: never delete it, and tell the data-protection officer"
)]
pub struct Contradiction {
    /// The ledger.
    pub ledger: PathBuf,
    /// How it does.
    pub fault: WitnessFault,
}

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the witnesses of the ledger in {path}; is the disk full?")]
pub struct WitnessesError {
    /// The file.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

/// The witnesses of one site's ledger.
#[derive(Debug)]
pub struct Witnesses {
    path: PathBuf,
    file: File,
    certificate_path: PathBuf,
    newest: Option<Witness>,
}

impl Witnesses {
    /// Opens or begins the file of `home` and cuts off a torn last line. Reads its end only: a ledger that
    /// the newest witness fits has everything before it too, since its lines are chained. `authority` must
    /// have signed the coordinator's certificate, valid at `now_s` (seconds since 1970).
    pub fn open(
        home: &Home,
        authority: &CertificateDer<'static>,
        now_s: u64,
    ) -> Result<Self, WitnessesError> {
        let path = home.path("witnesses.jsonl");
        let (file, tail) =
            open_mended(&path).map_err(|source| WitnessesError { path: path.clone(), source })?;
        let certificate_path = home.path("coordinator.crt");
        let certificate = CertificateDer::from_pem_file(&certificate_path).ok();
        let key = certificate.and_then(|certificate| {
            verified_coordinator_key(authority, &certificate, now_s)
                .inspect_err(|error| tracing::warn!(%error, "coordinator.crt is not valid; witnesses are checked once connected"))
                .ok()
        });
        let newest = key.and_then(|key| {
            let witnesses = read_witnesses(&tail, &key).filter_map(Result::ok);
            witnesses.map(|(_, witness)| witness).max_by_key(|witness| witness.head.entries)
        });
        Ok(Self { path, file, certificate_path, newest })
    }

    /// The newest one, signed by the coordinator.
    pub fn newest(&self) -> Option<&Witness> {
        self.newest.as_ref()
    }

    /// Keeps the certificate that the coordinator showed in the handshake.
    pub fn keep_certificate(&self, certificate: &CertificateDer<'_>) -> Result<(), WitnessesError> {
        let (path, text) = (&self.certificate_path, to_pem(certificate));
        if std::fs::read(path).is_ok_and(|known| known == text.as_bytes()) {
            return Ok(());
        }
        write_whole(path, text.as_bytes()).map_err(|source| WitnessesError { path: path.clone(), source })
    }

    /// Appends a witness whose signature was checked, unless it is the newest already. `sync`: it is on disk
    /// on return; else it may be lost in a power cut, and the coordinator tells it again.
    pub fn keep(&mut self, signed: &SignedWitness, sync: bool) -> Result<(), WitnessesError> {
        if self.newest.as_ref() == Some(&signed.witness) {
            return Ok(());
        }
        let written = self.file.write_all(signed.to_line().as_bytes());
        let written = written.and_then(|()| if sync { self.file.sync_data() } else { Ok(()) });
        written.map_err(|source| WitnessesError { path: self.path.clone(), source })?;
        self.newest = Some(signed.witness.clone());
        Ok(())
    }
}

/// The file, ready for appending whole lines, and the whole lines at its end.
fn open_mended(path: &std::path::Path) -> io::Result<(File, Vec<u8>)> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a plain file"));
    }
    let len = file.metadata()?.len();
    let start = len.saturating_sub(TAIL_LEN);
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    Read::by_ref(&mut file).take(TAIL_LEN).read_to_end(&mut tail)?;
    let whole = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    if whole < tail.len() {
        tracing::warn!("cut a torn last line off the witnesses: its writing was interrupted");
        file.set_len(start + whole as u64)?;
    }
    tail.truncate(whole);
    if start > 0 {
        let first = tail.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        tail.drain(..first);
    }
    Ok((file, tail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use weighhouse_shared::identity::Identity;
    use weighhouse_shared::ids::{ContentHash, SiteId};
    use weighhouse_shared::ledger::Head;

    fn signed(entries: u64, key: &Identity) -> SignedWitness {
        let head = Head { entries, hash: ContentHash::of(&entries.to_le_bytes()) };
        let site = SiteId::from_bytes([1; 32]);
        SignedWitness::sign(Witness { site, head, time_s: 1, received: Vec::new() }, key)
    }

    fn open(folder: &Path) -> Witnesses {
        // No certificate is known yet, so the authority is not asked.
        Witnesses::open(&Home::at(folder), &CertificateDer::from(vec![]), 0).unwrap()
    }

    #[test]
    fn a_torn_last_line_is_cut_off_and_the_next_one_stands_whole() {
        let folder = tempfile::tempdir().unwrap();
        let key = Identity::generate().unwrap();
        let path = folder.path().join("witnesses.jsonl");
        open(folder.path()).keep(&signed(1, &key), false).unwrap();
        let first = std::fs::read(&path).unwrap();
        for torn in [1, 20, first.len() - 1] {
            std::fs::write(&path, [first.as_slice(), &first[..torn]].concat()).unwrap();
            let mut witnesses = open(folder.path());
            witnesses.keep(&signed(2, &key), true).unwrap();
            witnesses.keep(&signed(2, &key), true).unwrap();
            let whole = first.iter().chain(signed(2, &key).to_line().as_bytes()).copied().collect::<Vec<_>>();
            assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
    }

    #[test]
    fn only_the_end_of_a_long_file_is_read_and_begins_with_a_whole_line() {
        let folder = tempfile::tempdir().unwrap();
        let key = Identity::generate().unwrap();
        let line = signed(3, &key).to_line();
        let lines = 2 * TAIL_LEN as usize / line.len();
        let path = folder.path().join("witnesses.jsonl");
        std::fs::write(&path, line.repeat(lines)).unwrap();
        let (_, tail) = open_mended(&path).unwrap();
        assert!(tail.len() as u64 <= TAIL_LEN);
        let read: Vec<_> = read_witnesses(&tail, &key.public_key()).collect::<Result<_, _>>().unwrap();
        assert_eq!(read.len(), tail.len() / line.len());
    }
}
