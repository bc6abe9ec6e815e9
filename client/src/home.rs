//! A site's home folder: a commented `client.toml` for who runs it, `policy.toml` for its data-protection
//! officer, its key and certificates, its ledger, its outbox.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use std::io;
use std::path::{Path, PathBuf};
use weighhouse_shared::config::{self, ConfigError};
use weighhouse_shared::identity::{Identity, IdentityError};
use weighhouse_shared::model::DeviceChoice;
use weighhouse_shared::policy::{Policy, PolicyText, first_policy};
use weighhouse_shared::privacy::{Delta, Epsilon};
use weighhouse_shared::schema::{Schema, SchemaError};
use weighhouse_shared::telemetry::LoopbackAddress;
use weighhouse_shared::tls::Credentials;

/// `client.toml`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    /// What the operator calls this site.
    pub name: String,
    /// Host and port of the coordinator.
    pub coordinator: String,
    /// Where metrics are served; None for nowhere.
    pub metrics: Option<LoopbackAddress>,
    /// The site's records.
    pub data: DataConfig,
    /// What models learn on: `auto`, `cpu`, `cuda:N` or `metal`.
    #[serde(default)]
    pub device: DeviceChoice,
}

/// `[data]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// CSV files, relative to the home folder.
    pub files: Vec<PathBuf>,
    /// The schema file, relative to the home folder.
    pub schema: PathBuf,
    /// Share of customers held out for measuring quality, 0 to 0.9.
    pub holdout: f64,
}

/// Why a home folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// A configuration file is missing or wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The folder is no home.
    #[error(
        "{folder} is not a site's home: there is no client.toml; join first with `weighhouse client join INVITE --home {folder}`"
    )]
    NotAHome {
        /// The folder.
        folder: PathBuf,
    },
    /// The share held out is impossible.
    #[error("`data.holdout` in client.toml must be from 0 to 0.9, got {got}")]
    Holdout {
        /// What it says.
        got: f64,
    },
    /// The policy is missing or wrong.
    #[error("{path} is not a valid policy: {reason}")]
    Policy {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The schema file is wrong.
    #[error("{path} is not a valid schema")]
    Schema {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: SchemaError,
    },
    /// The key is missing or damaged.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A certificate is missing or damaged.
    #[error("{path} does not hold a certificate; join again with a new invite")]
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

/// The policy's file in a home.
pub const POLICY: &str = "policy.toml";

/// A site's home folder.
#[derive(Debug, Clone)]
pub struct Home {
    folder: PathBuf,
}

impl Home {
    /// The home at `folder`; nothing is read yet.
    pub fn at(folder: &Path) -> Self {
        Self { folder: folder.into() }
    }

    /// A file or folder in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The privacy ledger.
    pub fn ledger(&self) -> PathBuf {
        self.path("ledger.jsonl")
    }

    /// Reads and checks `client.toml`.
    pub fn config(&self) -> Result<ClientConfig, HomeError> {
        let path = self.path("client.toml");
        if !path.exists() {
            return Err(HomeError::NotAHome { folder: self.folder.clone() });
        }
        let config: ClientConfig = config::load(&path)?;
        if !(0.0..=0.9).contains(&config.data.holdout) {
            return Err(HomeError::Holdout { got: config.data.holdout });
        }
        Ok(config)
    }

    /// Reads and checks the schema that `config` names.
    pub fn schema(&self, config: &ClientConfig) -> Result<Schema, HomeError> {
        load_schema(&self.folder.join(&config.data.schema))
    }

    /// The files with the site's records.
    pub fn data_files(&self, config: &ClientConfig) -> Vec<PathBuf> {
        config.data.files.iter().map(|file| self.folder.join(file)).collect()
    }

    /// The policy's exact text, with the officer's signature if there is one.
    pub fn policy(&self) -> Result<(PolicyText, Policy), HomeError> {
        load_policy(&self.path(POLICY))
    }

    /// The folder of jobs that the site's people decide about.
    pub fn approvals(&self) -> PathBuf {
        self.path("approvals")
    }

    /// The site's key.
    pub fn identity(&self) -> Result<Identity, HomeError> {
        Ok(Identity::load(&self.path("site.key"))?)
    }

    /// The authority's certificate, and what the site shows the coordinator.
    pub fn credentials(&self) -> Result<(CertificateDer<'static>, Credentials), HomeError> {
        let certificate = |name| {
            let path = self.path(name);
            CertificateDer::from_pem_file(&path).map_err(|_| HomeError::Certificate { path })
        };
        let (own, authority) = (certificate("site.crt")?, certificate("authority.crt")?);
        let credentials = Credentials { chain: vec![own, authority.clone()], identity: self.identity()? };
        Ok((authority, credentials))
    }
}

/// Reads and checks a schema file.
pub fn load_schema(path: &Path) -> Result<Schema, HomeError> {
    let schema: Schema = config::load(path)?;
    schema.validate().map_err(|source| HomeError::Schema { path: path.into(), source })?;
    Ok(schema)
}

/// Reads and checks a policy file, with the signature beside it if there is one.
pub fn load_policy(path: &Path) -> Result<(PolicyText, Policy), HomeError> {
    let text = config::load_text(path)?;
    let wrong = |reason: String| HomeError::Policy { path: path.into(), reason };
    let policy = Policy::parse(&text).map_err(|error| wrong(error.to_string()))?;
    let signature = match std::fs::read_to_string(signature_path(path)) {
        Ok(signature) => Some(signature.trim().to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(wrong(format!("its signature cannot be read: {error}"))),
    };
    Ok((PolicyText { text, signature }, policy))
}

/// Where the officer's signature of the policy at `path` stands, in hexadecimal.
pub fn signature_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".sig");
    name.into()
}

/// What `client join` writes into a new home's `client.toml` and `policy.toml`.
#[derive(Debug, Clone)]
pub struct NewConfig {
    /// What the operator calls this site.
    pub name: String,
    /// Host and port of the coordinator.
    pub coordinator: String,
    /// CSV files.
    pub files: Vec<PathBuf>,
    /// The schema file.
    pub schema: PathBuf,
    /// The cap.
    pub cap_epsilon: Epsilon,
    /// The cap's delta.
    pub cap_delta: Delta,
}

impl NewConfig {
    /// The commented file.
    pub fn to_toml(&self) -> String {
        let quoted = |text: &str| toml::Value::from(text).to_string();
        let files: Vec<String> = self.files.iter().map(|file| quoted(&file.display().to_string())).collect();
        format!(
            "# This site's settings. Restart the daemon after a change.\n\
             \n\
             # What the operator calls this site.\n\
             name = {name}\n\
             # Host and UDP port of the coordinator.\n\
             coordinator = {coordinator}\n\
             # What models learn on: \"cpu\", or an accelerator if this program was built for one, \"cuda:0\" or\n\
             # \"metal\"; \"auto\" takes one if the machine has it. There a customer's gradient may depend in its last\n\
             # bits on who else is in the batch, which on the processor it provably does not.\n\
             device = \"cpu\"\n\
             # Serve metrics for a local Prometheus agent; loopback only. Off unless set.\n\
             # metrics = \"127.0.0.1:9464\"\n\
             \n\
             [data]\n\
             # CSV files with a header, relative to this folder. They never leave this machine.\n\
             files = [{files}]\n\
             # Which columns are the customer, the features with their public bounds, and the label.\n\
             schema = {schema}\n\
             # Share of customers held out for measuring quality, 0 to 0.9. Fixed once the ledger begins.\n\
             holdout = 0.15\n",
            name = quoted(&self.name),
            coordinator = quoted(&self.coordinator),
            files = files.join(", "),
            schema = quoted(&self.schema.display().to_string()),
        )
    }

    /// The commented first policy.
    pub fn to_policy(&self) -> String {
        first_policy(self.cap_epsilon, self.cap_delta)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_that_join_writes_reads_back() {
        let new = NewConfig {
            name: "branch \"7\"".into(),
            coordinator: "127.0.0.1:7443".into(),
            files: vec!["data/a.csv".into()],
            schema: "schema.toml".into(),
            cap_epsilon: Epsilon::new(8.0).unwrap(),
            cap_delta: Delta::new(1e-5).unwrap(),
        };
        let config: ClientConfig = toml::from_str(&new.to_toml()).unwrap();
        assert_eq!((&config.name, &config.data.files), (&new.name, &new.files));
        assert_eq!(Policy::parse(&new.to_policy()).unwrap().cap.delta, new.cap_delta);
    }
}
