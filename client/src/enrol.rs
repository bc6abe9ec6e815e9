//! Joining: the site makes its key, shows an invite once, and gets its certificate. Nothing stands in
//! the home folder until all of it is there; a join that was cut off is repeated with the same key.

use crate::home::{self, Home, HomeError, NewConfig};
use crate::session::{ConnectError, connect, resolve};
use std::path::{Path, PathBuf};
use std::time::Duration;
use weighhouse_shared::config::write_private;
use weighhouse_shared::identity::Identity;
use weighhouse_shared::ids::SiteId;
use weighhouse_shared::invite::Invite;
use weighhouse_shared::tls::{self, Credentials, Trust};
use weighhouse_shared::wire::messages::{CoordinatorToSite, Enrol, SiteToCoordinator};
use weighhouse_shared::wire::stream;

/// Why joining failed.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The home is taken.
    #[error("{folder} already exists; a home belongs to one site: choose another folder with --home")]
    Taken {
        /// The folder.
        folder: PathBuf,
    },
    /// A file cannot be written or read.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The coordinator cannot be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The coordinator did not take the invite.
    #[error(
        "the coordinator refused the invite: it is used, expired or unknown; ask the operator for a new one"
    )]
    Refused,
    /// A certificate cannot be made.
    #[error("cannot make the enrolment certificate")]
    Certificate(#[source] rcgen::Error),
}

/// A site that has joined.
#[derive(Debug, Clone)]
pub struct Joined {
    /// The name the operator gave it.
    pub name: String,
    /// Its identity.
    pub site: SiteId,
}

/// Joins with `invite`, making the home at `folder`. `settings` is given the name and the coordinator's
/// address and returns the rest of client.toml.
pub async fn join(
    folder: &Path,
    invite: &Invite,
    settings: impl FnOnce(String, String) -> NewConfig,
) -> Result<Joined, EnrolError> {
    if folder.exists() {
        return Err(EnrolError::Taken { folder: folder.into() });
    }
    let mut draft = folder.as_os_str().to_owned();
    draft.push(".joining");
    let draft = PathBuf::from(draft);
    let home = Home::at(&draft);
    let write_error = |path: &Path| {
        let path = path.to_owned();
        |source| EnrolError::Home(HomeError::Write { path, source })
    };
    let key_path = home.path("site.key");
    if !key_path.exists() {
        std::fs::create_dir_all(&draft).map_err(write_error(&draft))?;
        Identity::generate().and_then(|key| key.save_new(&key_path)).map_err(HomeError::from)?;
    }
    let outcome = enrol(&home, invite).await;
    let (name, certificate, authority) = match outcome {
        Ok(enrolled) => enrolled,
        Err(error) => {
            // The key is of no use unless the coordinator may have signed it already.
            if !matches!(error, EnrolError::Connect(ConnectError::Lost(_))) {
                let _ = std::fs::remove_dir_all(&draft);
            }
            return Err(error);
        }
    };
    let config = settings(name.clone(), invite.address.clone());
    let files = [
        ("site.crt", tls::to_pem(&certificate)),
        ("authority.crt", tls::to_pem(&authority)),
        ("client.toml", config.to_toml()),
        (home::POLICY, config.to_policy()),
    ];
    for (file, text) in files {
        let path = home.path(file);
        let _ = std::fs::remove_file(&path);
        write_private(&path, text.as_bytes()).map_err(write_error(&path))?;
    }
    let site = home.identity()?.site();
    std::fs::rename(&draft, folder).map_err(write_error(folder))?;
    Ok(Joined { name, site })
}

async fn enrol(home: &Home, invite: &Invite) -> Result<(String, Vec<u8>, Vec<u8>), EnrolError> {
    let identity = home.identity()?;
    let certificate =
        tls::enrolment_certificate(&identity, &invite.id, &invite.secret).map_err(EnrolError::Certificate)?;
    let credentials = Credentials { chain: vec![certificate], identity };
    let address = resolve(&invite.address).await?;
    let trust = Trust::Fingerprint(invite.authority);
    let (endpoint, connection) = connect(address, &credentials, trust).await?;
    let lost = |error: stream::StreamError| match ConnectError::from_stream(error) {
        ConnectError::CertificateRefused => EnrolError::Refused,
        error => error.into(),
    };
    let (mut send, mut receive) =
        connection.open_bi().await.map_err(|error| lost(stream::StreamError::Connection(error)))?;
    stream::send(&mut send, &SiteToCoordinator::Enrol(Enrol {})).await.map_err(lost)?;
    let answer = stream::receive::<CoordinatorToSite>(&mut receive).await.map_err(lost)?;
    connection.close(0u8.into(), b"enrolled");
    // Long enough for the goodbye to leave; the coordinator does not depend on it.
    let _ = tokio::time::timeout(Duration::from_millis(10), endpoint.wait_idle()).await;
    match answer {
        Some(CoordinatorToSite::Enrolled(enrolled)) => {
            Ok((enrolled.name, enrolled.certificate, enrolled.authority))
        }
        _ => Err(EnrolError::Refused),
    }
}
