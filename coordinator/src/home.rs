//! The coordinator's home folder: one commented `coordinator.toml`, the keys and certificates of coordinator,
//! operator and issuer, the authority's certificate and, unless it is kept elsewhere, its key, the state.

use crate::authority::{self, AuthorityError, Issuer, Use, VOUCHED_FOR};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use weighhouse_shared::clock;
use weighhouse_shared::config::{self, ConfigError, write_private, write_whole};
use weighhouse_shared::identity::{Identity, IdentityError};
use weighhouse_shared::telemetry::LoopbackAddress;
use weighhouse_shared::tls::{self, Credentials, to_pem};

/// `coordinator.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoordinatorConfig {
    /// Address and UDP port to listen on.
    pub listen: SocketAddr,
    /// Host and port at which sites reach it.
    pub public_address: String,
    /// Where metrics are served; None for nowhere.
    pub metrics: Option<LoopbackAddress>,
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
    /// Nobody has signed the certificates yet.
    #[error(
        "{folder} waits for its certificates: have its .csr files signed by your authority, then run `weighhouse coordinator install`"
    )]
    NotSigned {
        /// The folder.
        folder: PathBuf,
    },
    /// A key that is not the authority's.
    #[error("{path} is not the key of this federation's authority (authority.crt)")]
    NotTheAuthority {
        /// The key file.
        path: PathBuf,
    },
    /// A certificate is missing among those to install.
    #[error(
        "none of the certificates is the one for {name}.csr: signed by the given authority itself, for that key, with the request's subject, names and usages, and valid now"
    )]
    NoCertificate {
        /// Whose.
        name: &'static str,
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

/// Whose signature makes a federation's certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authority {
    /// The federation's own, made with the home.
    Own,
    /// Another organisation's: requests are made, for it to sign.
    External,
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
    pub fn init(
        folder: &Path,
        listen: SocketAddr,
        public_address: &str,
        authority: Authority,
    ) -> Result<Self, HomeError> {
        if folder.exists() {
            return Err(HomeError::Taken { folder: folder.into() });
        }
        split_address(public_address)?;
        let mut draft = folder.as_os_str().to_owned();
        draft.push(format!(".{}.new", std::process::id()));
        let draft = Self { folder: draft.into() };
        let written = draft.write_new(listen, public_address, authority).and_then(|()| {
            std::fs::rename(&draft.folder, folder)
                .map_err(|source| HomeError::Write { path: folder.into(), source })
        });
        if written.is_err() {
            let _ = std::fs::remove_dir_all(&draft.folder);
        }
        written.map(|()| Self::at(folder))
    }

    fn write_new(
        &self,
        listen: SocketAddr,
        public_address: &str,
        authority: Authority,
    ) -> Result<(), HomeError> {
        let write = |path: PathBuf, text: &str| {
            write_private(&path, text.as_bytes()).map_err(|source| HomeError::Write { path, source })
        };
        std::fs::create_dir_all(&self.folder)
            .map_err(|source| HomeError::Write { path: self.folder.clone(), source })?;
        for (name, holder) in VOUCHED_FOR {
            let key = Identity::generate()?;
            key.save_new(&self.path(&format!("{name}.key")))?;
            if authority == Authority::External {
                write(self.path(&format!("{name}.csr")), &authority::request(&key, holder, name)?)?;
            }
        }
        if authority == Authority::Own {
            let key = Identity::generate()?;
            key.save_new(&self.path("authority.key"))?;
            write(self.path("authority.crt"), &to_pem(&authority::authority_certificate(&key)?))?;
            self.renew(&self.path("authority.key"), |_| true)?;
        }
        let text = format!(
            "# This coordinator's settings. Restart it after a change.\n\
             \n\
             # Address and UDP port to listen on.\n\
             listen = \"{listen}\"\n\
             # Host and UDP port at which sites reach it; goes into invites.\n\
             public_address = {public}\n\
             # Serve metrics for a local Prometheus agent; loopback only. Off unless set.\n\
             # metrics = \"127.0.0.1:9464\"\n",
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
        if !path.exists() && self.path("issuer.csr").exists() {
            return Err(HomeError::NotSigned { folder: self.folder.clone() });
        }
        CertificateDer::from_pem_file(&path).map_err(|_| HomeError::Certificate { path })
    }

    /// What signs certificates of sites.
    pub fn issuer(&self) -> Result<Issuer, HomeError> {
        let Credentials { chain, identity } = self.credentials("issuer")?;
        Ok(Issuer { key: identity, certificate: chain[0].clone() })
    }

    /// The certificates for which `is_due` says so are made anew with the authority's key at `key`, for the keys they
    /// have; their names come out.
    pub fn renew(&self, key: &Path, is_due: impl Fn(&str) -> bool) -> Result<Vec<&'static str>, HomeError> {
        let (authority_key, authority) = (Identity::load(key)?, self.authority()?);
        if tls::public_key_of(&authority).ok() != Some(authority_key.public_key()) {
            return Err(HomeError::NotTheAuthority { path: key.into() });
        }
        let mut renewed = Vec::new();
        for (name, holder) in VOUCHED_FOR.into_iter().filter(|(name, _)| is_due(name)) {
            let public_key = Identity::load(&self.path(&format!("{name}.key")))?.public_key();
            let now_s = clock::unix_time_s();
            let certificate = authority::sign(&authority_key, &authority, holder, name, &public_key, now_s)?;
            self.write_certificate(name, &certificate)?;
            renewed.push(name);
        }
        Ok(renewed)
    }

    /// The certificates that should be renewed at `now_s`.
    pub fn due(&self, now_s: u64) -> Vec<&'static str> {
        let is_due = |name: &&str| {
            let own = CertificateDer::from_pem_file(self.path(&format!("{name}.crt")));
            let validity = own.ok().and_then(|own| tls::validity_of(&own).ok());
            validity.is_none_or(|validity| validity.renewal_is_due(now_s))
        };
        VOUCHED_FOR.into_iter().map(|(name, _)| name).filter(is_due).collect()
    }

    /// Puts certificates that another organisation's `authority` signed for this home's requests in their places: all
    /// three, or none.
    pub fn install(
        &self,
        authority: &CertificateDer<'static>,
        certificates: &[CertificateDer<'static>],
    ) -> Result<(), HomeError> {
        let now_s = clock::unix_time_s();
        let found = VOUCHED_FOR.map(|(name, holder): (_, Use)| {
            let key = Identity::load(&self.path(&format!("{name}.key")))?;
            let fitting = |certificate: &&CertificateDer<'static>| {
                authority::fits(authority, certificate, &key, holder, now_s)
            };
            let found = certificates.iter().find(fitting).ok_or(HomeError::NoCertificate { name })?;
            Ok::<_, HomeError>((name, found))
        });
        let found = found.into_iter().collect::<Result<Vec<_>, _>>()?;
        self.write_certificate("authority", authority)?;
        found.into_iter().try_for_each(|(name, certificate)| self.write_certificate(name, certificate))
    }

    fn write_certificate(&self, name: &str, certificate: &CertificateDer<'_>) -> Result<(), HomeError> {
        let path = self.path(&format!("{name}.crt"));
        write_whole(&path, to_pem(certificate).as_bytes()).map_err(|source| HomeError::Write { path, source })
    }

    /// Key and certificates of `coordinator`, `operator` or `issuer`.
    pub fn credentials(&self, name: &str) -> Result<Credentials, HomeError> {
        let authority = self.authority()?;
        let path = self.path(&format!("{name}.crt"));
        let own = CertificateDer::from_pem_file(&path).map_err(|_| HomeError::Certificate { path })?;
        let identity = Identity::load(&self.path(&format!("{name}.key")))?;
        Ok(Credentials { chain: vec![own, authority], identity })
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
