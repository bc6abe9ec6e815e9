//! The coordinator's home folder: one commented `coordinator.toml`, the authority's, the coordinator's and
//! the operator's keys, the state.

use crate::authority::{self, AuthorityError};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use weighhouse_shared::config::{self, ConfigError, write_private, write_whole};
use weighhouse_shared::identity::{Identity, IdentityError};
use weighhouse_shared::tls::{Credentials, Role, to_pem};

/// `coordinator.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoordinatorConfig {
    /// Address and UDP port to listen on.
    pub listen: SocketAddr,
    /// Host and port at which sites reach it.
    pub public_address: String,
}

/// Why a home folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// The configuration is missing or wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The folder is no home.
    #[error(
        "{folder} is not a coordinator's home: there is no coordinator.toml; make one with `weighhouse coordinator init --home {folder}`"
    )]
    NotAHome {
        /// The folder.
        folder: PathBuf,
    },
    /// The home is taken.
    #[error("{folder} already exists; a home holds one federation: choose another folder with --home")]
    Taken {
        /// The folder.
        folder: PathBuf,
    },
    /// The public address is no host and port.
    #[error("`public_address` must be a host and a port, such as shop.example:7443, got `{got}`")]
    PublicAddress {
        /// What it is.
        got: String,
    },
    /// A key is missing or damaged.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A certificate cannot be made.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// A certificate is missing or damaged.
    #[error("{path} does not hold a certificate; restore it from a backup")]
    Certificate {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A coordinator's home folder.
#[derive(Debug, Clone)]
pub struct Home {
    folder: PathBuf,
}

impl Home {
    /// The home at `folder`; nothing is read yet.
    pub fn at(folder: &Path) -> Self {
        Self { folder: folder.into() }
    }

    /// Makes a new home: keys, certificates, settings. All of it stands, or nothing.
    pub fn init(folder: &Path, listen: SocketAddr, public_address: &str) -> Result<Self, HomeError> {
        if folder.exists() {
            return Err(HomeError::Taken { folder: folder.into() });
        }
        split_address(public_address)?;
        let mut draft = folder.as_os_str().to_owned();
        draft.push(format!(".{}.new", std::process::id()));
        let draft = Self { folder: draft.into() };
        let written = draft.write_new(listen, public_address).and_then(|()| {
            std::fs::rename(&draft.folder, folder)
                .map_err(|source| HomeError::Write { path: folder.into(), source })
        });
        if written.is_err() {
            let _ = std::fs::remove_dir_all(&draft.folder);
        }
        written.map(|()| Self::at(folder))
    }

    fn write_new(&self, listen: SocketAddr, public_address: &str) -> Result<(), HomeError> {
        let write = |path: PathBuf, text: &str| {
            write_private(&path, text.as_bytes()).map_err(|source| HomeError::Write { path, source })
        };
        std::fs::create_dir_all(&self.folder)
            .map_err(|source| HomeError::Write { path: self.folder.clone(), source })?;
        let authority_key = Identity::generate()?;
        let authority_certificate = authority::authority_certificate(&authority_key)?;
        for (name, role) in [("coordinator", Role::Coordinator), ("operator", Role::Operator)] {
            let key = Identity::generate()?;
            let certificate = authority::issue(
                &authority_key,
                &authority_certificate,
                role,
                name,
                &key.public_key(),
                weighhouse_shared::clock::unix_time_s(),
            )?;
            key.save_new(&self.path(&format!("{name}.key")))?;
            write(self.path(&format!("{name}.crt")), &to_pem(&certificate))?;
        }
        authority_key.save_new(&self.path("authority.key"))?;
        write(self.path("authority.crt"), &to_pem(&authority_certificate))?;
        let text = format!(
            "# This coordinator's settings. Restart it after a change.\n\
             \n\
             # Address and UDP port to listen on.\n\
             listen = \"{listen}\"\n\
             # Host and UDP port at which sites reach it; goes into invites.\n\
             public_address = {public}\n",
            public = toml::Value::from(public_address)
        );
        write(self.path("coordinator.toml"), &text)
    }

    /// A file or folder in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Reads `coordinator.toml`.
    pub fn config(&self) -> Result<CoordinatorConfig, HomeError> {
        let path = self.path("coordinator.toml");
        if !path.exists() {
            return Err(HomeError::NotAHome { folder: self.folder.clone() });
        }
        let config: CoordinatorConfig = config::load(&path)?;
        split_address(&config.public_address)?;
        Ok(config)
    }

    /// The authority's certificate.
    pub fn authority(&self) -> Result<CertificateDer<'static>, HomeError> {
        let path = self.path("authority.crt");
        CertificateDer::from_pem_file(&path).map_err(|_| HomeError::Certificate { path })
    }

    /// The authority's key.
    pub fn authority_key(&self) -> Result<Identity, HomeError> {
        Ok(Identity::load(&self.path("authority.key"))?)
    }

    /// Key and certificates of `coordinator` or `operator`.
    pub fn credentials(&self, name: &str) -> Result<Credentials, HomeError> {
        let path = self.path(&format!("{name}.crt"));
        let own = CertificateDer::from_pem_file(&path).map_err(|_| HomeError::Certificate { path })?;
        let identity = Identity::load(&self.path(&format!("{name}.key")))?;
        Ok(Credentials { chain: vec![own, self.authority()?], identity })
    }

    /// Notes where the running coordinator listens, for operators on this machine.
    pub fn note_address(&self, address: SocketAddr) -> Result<(), HomeError> {
        let path = self.path("address");
        write_whole(&path, address.to_string().as_bytes()).map_err(|source| HomeError::Write { path, source })
    }

    /// Where the coordinator that last ran from this home listens; else where it is configured to.
    pub fn noted_address(&self) -> Result<SocketAddr, HomeError> {
        let noted = std::fs::read_to_string(self.path("address")).ok().and_then(|text| text.parse().ok());
        let mut address: SocketAddr = match noted {
            Some(address) => address,
            None => self.config()?.listen,
        };
        if address.ip().is_unspecified() {
            address.set_ip(if address.is_ipv4() {
                [127, 0, 0, 1].into()
            } else {
                [0u16, 0, 0, 0, 0, 0, 0, 1].into()
            });
        }
        Ok(address)
    }
}

/// Host and port of a public address.
pub fn split_address(address: &str) -> Result<(&str, u16), HomeError> {
    let parts = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let parts = parts.filter(|(host, _)| !host.is_empty() && host.len() <= 255);
    parts.ok_or_else(|| HomeError::PublicAddress { got: address.chars().take(80).collect() })
}
