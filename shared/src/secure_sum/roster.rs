//! The sites of one job's secure sums and their keys: fixed once, by the coordinator, among the members that the contract
//! names. Its hash is in every derivation, so that what was made for one roster is nothing under another.

use super::graph::{Graph, GraphError};
use super::keys::SignedKey;
use crate::ids::{ContentHash, JobId, SiteId};

/// What the contract says of a job's secure sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms<'a> {
    /// Who may take part, ascending.
    pub members: &'a [SiteId],
    /// The fewest survivors of a round.
    pub threshold: u32,
    /// Members that may be in league with the coordinator.
    pub colluding: u32,
}

/// Why keys are no roster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RosterError {
    /// Fewer than a round needs.
    #[error("the roster has {got} sites, a round needs {threshold}")]
    TooFew {
        /// How many it has.
        got: usize,
        /// How many are needed.
        threshold: u32,
    },
    /// Not a member of the contract.
    #[error("site {} is not a member by the contract", .0.short())]
    Stranger(SiteId),
    /// Not ascending, or one twice.
    #[error("the roster is out of order at site {}", .0.short())]
    Order(SiteId),
    /// Not signed by the site for this job.
    #[error("the key of site {} is not signed by it for this job", .0.short())]
    Unsigned(SiteId),
    /// They cannot share masks.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

/// Sites with their keys, in the order of their identifiers. A site's number is its place in it.
#[derive(Debug, Clone)]
pub struct Roster {
    job: JobId,
    keys: Vec<SignedKey>,
    sites: Vec<SiteId>,
    hash: [u8; 32],
    graph: Graph,
    threshold: usize,
}

impl Roster {
    /// The roster of `keys`, each checked.
    pub fn new(job: JobId, terms: Terms<'_>, keys: Vec<SignedKey>) -> Result<Self, RosterError> {
        let sites: Vec<SiteId> = keys.iter().map(SignedKey::site).collect();
        if let Some(pair) = sites.windows(2).find(|pair| pair[0] >= pair[1]) {
            return Err(RosterError::Order(pair[1]));
        }
        for (site, key) in sites.iter().zip(&keys) {
            if terms.members.binary_search(site).is_err() {
                return Err(RosterError::Stranger(*site));
            }
            if !key.is_signed_for(job) {
                return Err(RosterError::Unsigned(*site));
            }
        }
        if sites.len() < (terms.threshold as usize).max(1) || terms.threshold <= terms.colluding {
            return Err(RosterError::TooFew { got: sites.len(), threshold: terms.threshold });
        }
        let mut bytes = b"weighhouse secure sum roster v1\0".to_vec();
        bytes.extend_from_slice(job.as_bytes());
        for key in &keys {
            bytes.extend_from_slice(&key.identity);
            bytes.extend_from_slice(&key.key);
        }
        let hash = *ContentHash::of(&bytes).as_bytes();
        let threshold = terms.threshold as usize;
        let graph = Graph::new(sites.len(), threshold, terms.colluding as usize, &hash)?;
        Ok(Self { job, keys, sites, hash, graph, threshold })
    }

    /// The same sites on a graph that is thinner than any that keeps the promises.
    #[cfg(test)]
    pub(super) fn thinned(self, graph: Graph) -> Self {
        Self { graph, ..self }
    }

    /// Whose job it is.
    pub fn job(&self) -> JobId {
        self.job
    }

    /// The keys, as they travel.
    pub fn keys(&self) -> &[SignedKey] {
        &self.keys
    }

    /// The sites, ascending.
    pub fn sites(&self) -> &[SiteId] {
        &self.sites
    }

    /// The number of `site`.
    pub fn number_of(&self, site: SiteId) -> Option<u16> {
        self.sites.binary_search(&site).ok().map(|number| number as u16)
    }

    /// The site with this number.
    pub fn site(&self, number: u16) -> Option<SiteId> {
        self.sites.get(usize::from(number)).copied()
    }

    /// SHA-256 of the job and the keys.
    pub fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    /// Who shares masks with whom.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The fewest survivors of a round.
    pub fn threshold(&self) -> usize {
        self.threshold
    }

    /// Whether `numbers` ascend, are numbers of this roster, and are at least as many as a round needs.
    pub(super) fn is_quorum(&self, numbers: &[u16]) -> bool {
        let known = numbers.last().is_some_and(|last| usize::from(*last) < self.sites.len());
        known && numbers.len() >= self.threshold && numbers.is_sorted_by(|first, second| first < second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    #[test]
    fn a_roster_of_strangers_doubles_forged_keys_or_too_few_is_refused() {
        let job = JobId::from_bytes([1; 32]);
        let mut identities: Vec<Identity> = (0..5).map(|_| Identity::generate().unwrap()).collect();
        identities.sort_by_key(Identity::site);
        let members: Vec<SiteId> = identities[..4].iter().map(Identity::site).collect();
        let terms = Terms { members: &members, threshold: 3, colluding: 1 };
        let keys: Vec<SignedKey> =
            identities.iter().map(|identity| SignedKey::sign(identity, job, [7; 32])).collect();
        let roster = |keys: &[SignedKey]| Roster::new(job, terms, keys.to_vec());
        assert_eq!(roster(&keys[..4]).unwrap().sites(), members);
        assert_eq!(roster(&keys[1..4]).unwrap().number_of(members[1]), Some(0));
        assert_eq!(roster(&keys[..2]).unwrap_err(), RosterError::TooFew { got: 2, threshold: 3 });
        assert_eq!(roster(&keys).unwrap_err(), RosterError::Stranger(identities[4].site()));
        let doubled = [&keys[..4], &keys[3..4]].concat();
        assert_eq!(roster(&doubled).unwrap_err(), RosterError::Order(members[3]));
        let mut forged = keys[..4].to_vec();
        forged[2].key = [8; 32];
        assert_eq!(roster(&forged).unwrap_err(), RosterError::Unsigned(members[2]));
        forged[2].key = [7; 32];
        forged[2].signature = SignedKey::sign(&identities[2], JobId::from_bytes([2; 32]), [7; 32]).signature;
        assert_eq!(roster(&forged).unwrap_err(), RosterError::Unsigned(members[2]));
    }

    #[test]
    fn another_key_or_another_job_is_another_hash() {
        let identities = [0; 3].map(|_| Identity::generate().unwrap());
        let mut members = identities.each_ref().map(Identity::site);
        members.sort_unstable();
        let hash = |job: u8, key: u8| {
            let job = JobId::from_bytes([job; 32]);
            let mut keys = identities.each_ref().map(|identity| SignedKey::sign(identity, job, [key; 32]));
            keys.sort_by_key(SignedKey::site);
            let terms = Terms { members: &members, threshold: 3, colluding: 1 };
            *Roster::new(job, terms, keys.to_vec()).unwrap().hash()
        };
        assert_eq!(hash(1, 1), hash(1, 1));
        assert_ne!(hash(1, 1), hash(2, 1));
        assert_ne!(hash(1, 1), hash(1, 2));
    }
}
