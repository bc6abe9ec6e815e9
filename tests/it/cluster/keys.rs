//! What all sequences share: keys made once a run, and a few jobs signed once.

use rustls::pki_types::CertificateDer;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use tempfile::TempDir;
use weighhouse_client::approvals::Approvals;
use weighhouse_coordinator::authority::{self, Issuer};
use weighhouse_coordinator::driver::Parts;
use weighhouse_coordinator::roster::Roster;
use weighhouse_coordinator::spool::Spool;
use weighhouse_coordinator::store::{MemoryDisk, Store};
use weighhouse_shared::clock;
use weighhouse_shared::identity::{Identity, Purpose};
use weighhouse_shared::ids::{JobId, SiteId};
use weighhouse_shared::job::{JobContract, JobFile};
use weighhouse_shared::policy::{Policy, PolicyText, first_policy};
use weighhouse_shared::privacy::{Delta, Epsilon};
use weighhouse_shared::schema::Schema;
use weighhouse_shared::tls::Role;
use weighhouse_shared::wire::codec;
use weighhouse_shared::wire::messages::SignedContract;

/// Sites of a cluster.
pub const SITES: usize = 3;

/// Sites of a cluster whose jobs are in secure sums by groups.
pub const GROUPED_SITES: usize = 6;

/// A job that operators may submit.
#[derive(Debug, Clone)]
pub struct Job {
    /// Which one.
    pub id: JobId,
    /// As it is signed.
    pub signed: SignedContract,
    /// What it says.
    pub contract: Arc<JobContract>,
    /// Of a secure sum: the members of each group.
    pub groups: Vec<Vec<SiteId>>,
}

/// Keys, certificates and jobs.
pub struct Keys {
    folder: TempDir,
    authority: CertificateDer<'static>,
    pub coordinator_key: [u8; 32],
    pub sites: Vec<SiteId>,
    /// Among the first three sites.
    pub jobs: Vec<Job>,
    /// Among all six.
    pub grouped_jobs: Vec<Job>,
    pub schema: Schema,
    pub policy: Policy,
    pub policy_text: PolicyText,
}

/// A folder in memory where there is one: what is synced there is not slower for it.
pub fn fast_folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

pub fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(Keys::make)
}

impl Keys {
    fn make() -> Self {
        let folder = fast_folder();
        let save = |identity: &Identity, name: &str| identity.save_new(&folder.path().join(name)).unwrap();
        let authority_key = Identity::generate().unwrap();
        let authority = authority::authority_certificate(&authority_key).unwrap();
        let coordinator = Identity::generate().unwrap();
        // In the order of their identifiers, so that a seed means the same in every run.
        let mut sites: Vec<Identity> = (0..GROUPED_SITES).map(|_| Identity::generate().unwrap()).collect();
        sites.sort_by_key(Identity::site);
        sites.iter().enumerate().for_each(|(number, site)| save(site, &format!("site-{number}")));
        save(&authority_key, "authority");
        save(&coordinator, "coordinator");
        let schema: Schema = toml::from_str(
            "name = \"test\"\ncustomer = \"id\"\nlabel = { column = \"y\", kind = \"binary\" }\n\
             features = [{ column = \"a\", min = 0.0, max = 1.0 }]",
        )
        .unwrap();
        let operator = Identity::generate().unwrap();
        let now_s = clock::unix_time_s();
        let issued =
            authority::issue(&authority_key, &authority, Role::Operator, "x", &operator.public_key(), now_s);
        let certificate = issued.unwrap().to_vec();
        // Fewest sites, rounds, rounds between evaluations, and what else a job may ask for.
        let shapes = [
            (1, 2, 0, "strategy = \"fedavg\""),
            (2, 3, 2, "min_time_s = 5"),
            (3, 2, 1, "strategy = \"fedadam\""),
            (1, 3, 2, "strategy = \"fedavgm\"\nmax_idle_s = 20"),
            (2, 2, 0, "max_idle_s = 5"),
            (2, 4, 3, "strategy = \"fedadam\"\nmax_time_s = 60"),
            (2, 3, 2, "strategy = \"fedmedian\""),
            (2, 4, 0, "schedule = \"buffered\""),
            (3, 3, 1, "schedule = \"buffered\"\nbuffer_size = 2\nstrategy = \"fedavgm\""),
            (3, 2, 0, "mode = \"secure_sum\""),
            (2, 3, 2, "mode = \"secure_sum\"\ncolluding_sites = 0\nmax_idle_s = 5"),
            (2, 10, 0, "mode = \"secure_sum\"\ncolluding_sites = 0\nstrategy = \"fedadam\"\nmax_time_s = 60"),
        ];
        let grouped_shapes = [
            (2, 3, 2, "groups = 2\ncolluding_sites = 0\nmax_idle_s = 5"),
            (3, 10, 0, "groups = 2\nstrategy = \"fedmedian\"\nmax_time_s = 60"),
        ];
        let grouped_shapes = grouped_shapes.map(|(fewest, rounds, every, more)| {
            (fewest, rounds, every, format!("mode = \"secure_sum\"\n{more}"))
        });
        let members: Vec<SiteId> = sites.iter().map(Identity::site).collect();
        let job = |number: usize,
                   (min_sites, rounds, every, more): (u32, u32, u32, &str),
                   members: &[SiteId]| {
            let file: JobFile = toml::from_str(&format!(
                "name = \"test\"\nschema = \"x\"\n[privacy]\nnoise_multiplier = 8.0\ndelta = 1e-4\n\
                 [training]\nrounds = {rounds}\n[evaluation]\nevery = {every}\nbins = 2\n\
                 [federation]\nmin_sites = {min_sites}\n{more}"
            ))
            .unwrap();
            let contract = file.contract_among(schema.clone(), [number as u8; 16], members).unwrap();
            let bytes = codec::encode(&contract);
            let signature = operator.sign(Purpose::JobContract, &bytes).to_vec();
            let signed = SignedContract { contract: bytes, certificate: certificate.clone(), signature };
            Job { id: contract.id(), signed, groups: contract.grouped_members(), contract: contract.into() }
        };
        let jobs = (0..).zip(shapes).map(|(number, shape)| job(number, shape, &members[..SITES])).collect();
        let grouped_jobs = (100..).zip(&grouped_shapes).map(|(number, (fewest, rounds, every, more))| {
            job(number, (*fewest, *rounds, *every, more.as_str()), &members)
        });
        let grouped_jobs = grouped_jobs.collect();
        let text = first_policy(Epsilon::new(50.0).unwrap(), Delta::new(1e-4).unwrap());
        Self {
            authority,
            coordinator_key: coordinator.public_key(),
            sites: sites.iter().map(Identity::site).collect(),
            jobs,
            grouped_jobs,
            schema,
            policy: Policy::parse(&text).unwrap(),
            policy_text: PolicyText::unsigned(text),
            folder,
        }
    }

    fn identity(&self, name: &str) -> Identity {
        Identity::load(&self.folder.path().join(name)).unwrap()
    }

    /// A site's key, read as a daemon does.
    pub fn site_key(&self, site: usize) -> Identity {
        self.identity(&format!("site-{site}"))
    }

    /// The federation's authority.
    pub fn authority(&self) -> &CertificateDer<'static> {
        &self.authority
    }

    /// Approvals that nobody asks for.
    pub fn approvals(&self) -> Approvals {
        Approvals::at(&self.folder.path().join("approvals"))
    }

    /// What a coordinator on `disk` is made of.
    pub fn parts(&self, disk: &MemoryDisk) -> Parts {
        Parts {
            store: Store::in_memory(disk).unwrap(),
            // Updates are too short to get there, but for those that are compared.
            spool: Spool::new(self.folder.path().into()),
            roster: Arc::new(Roster::default().into()),
            issuer: Issuer { key: self.identity("authority"), certificate: self.authority.clone() },
            authority: self.authority.clone(),
            identity: self.identity("coordinator"),
            certificate: self.authority.clone(),
            public_address: "localhost:1".into(),
            metrics: Default::default(),
        }
    }
}
