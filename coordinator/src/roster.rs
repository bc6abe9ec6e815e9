//! Who may come in: invites, joined sites, revocations. Kept in memory for the handshake's question and
//! in the store for good.

use crate::store::{InviteRecord, SiteRecord};
use rustls::pki_types::CertificateDer;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, RwLock};
use tokio::sync::watch;
use weighhouse_shared::clock;
use weighhouse_shared::ids::SiteId;
use weighhouse_shared::tls::{Gate, Peer, enrolment_proof_holds};
use weighhouse_shared::wire::messages::{SiteStatus, SiteSummary};

/// The longest name of a site, in bytes.
const MAX_NAME_LEN: usize = 64;
/// The most sites a roster holds.
const MAX_SITES: usize = 100_000;

/// Why the roster refuses. Shown to the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RosterError {
    /// The name is taken.
    #[error("there is a site named `{name}` already; choose another name, or revoke it first")]
    Taken {
        /// The name.
        name: String,
    },
    /// The name cannot be used.
    #[error("a site's name has 1 to {MAX_NAME_LEN} letters, digits, dots, dashes and underscores")]
    Name,
    /// There is no such site.
    #[error("there is no site named `{name}`; `weighhouse site list` shows all")]
    Unknown {
        /// The name.
        name: String,
    },
    /// There is no room.
    #[error("a coordinator keeps at most {MAX_SITES} sites")]
    Full,
    /// The invite is used, expired or unknown, or the proof is wrong.
    #[error("the invite is used, expired or unknown")]
    Invite,
}

/// All sites by name.
#[derive(Debug, Default)]
pub struct Roster {
    sites: BTreeMap<String, SiteRecord>,
    /// How often a site was revoked since this coordinator started.
    revocations: watch::Sender<u64>,
}

impl Roster {
    /// The roster of stored records.
    pub fn of(sites: Vec<SiteRecord>) -> Self {
        let sites = sites.into_iter().map(|site| (site.name.clone(), site)).collect();
        Self { sites, revocations: watch::Sender::default() }
    }

    /// A new site that may join with `invite`. An unused or revoked entry of that name is replaced.
    pub fn invite(&mut self, name: &str, invite: InviteRecord) -> Result<SiteRecord, RosterError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if name.is_empty() || name.len() > MAX_NAME_LEN || !name.chars().all(allowed) {
            return Err(RosterError::Name);
        }
        match self.sites.get(name) {
            Some(known) if known.public_key.is_some() && !known.revoked => {
                return Err(RosterError::Taken { name: name.into() });
            }
            None if self.sites.len() >= MAX_SITES => return Err(RosterError::Full),
            _ => {}
        }
        let record =
            SiteRecord { name: name.into(), invite, public_key: None, certificate: None, revoked: false };
        self.sites.insert(name.into(), record.clone());
        Ok(record)
    }

    fn invited(
        &self,
        public_key: &[u8; 32],
        invite: &[u8; 16],
        proof: &[u8; 32],
        now_s: u64,
    ) -> Option<&SiteRecord> {
        let site = self.sites.values().find(|site| site.invite.id == *invite)?;
        let open = match &site.public_key {
            // A join that was cut off is repeated with the same key.
            Some(joined) => joined == public_key,
            None => now_s < site.invite.expires_s,
        };
        (open && !site.revoked && enrolment_proof_holds(&site.invite.secret, public_key, proof))
            .then_some(site)
    }

    /// Redeems an invite. `certify` makes the certificate for the site's name and key.
    pub fn enrol<E>(
        &mut self,
        public_key: &[u8; 32],
        invite: &[u8; 16],
        proof: &[u8; 32],
        now_s: u64,
        certify: impl FnOnce(&str) -> Result<CertificateDer<'static>, E>,
    ) -> Result<Result<SiteRecord, E>, RosterError> {
        let site = self.invited(public_key, invite, proof, now_s).ok_or(RosterError::Invite)?;
        let mut record = site.clone();
        if record.certificate.is_none() {
            match certify(&record.name) {
                Ok(certificate) => record.certificate = Some(certificate.to_vec()),
                Err(error) => return Ok(Err(error)),
            }
        }
        record.public_key = Some(*public_key);
        self.sites.insert(record.name.clone(), record.clone());
        Ok(Ok(record))
    }

    /// Keeps a site out from now on.
    pub fn revoke(&mut self, name: &str) -> Result<SiteRecord, RosterError> {
        let site = self.sites.get_mut(name).ok_or_else(|| RosterError::Unknown { name: name.into() })?;
        site.revoked = true;
        let record = site.clone();
        self.revocations.send_modify(|count| *count += 1);
        Ok(record)
    }

    /// Changes whenever a site is revoked: every live connection looks then whether it is that site's.
    pub fn revocations(&self) -> watch::Receiver<u64> {
        self.revocations.subscribe()
    }

    /// The next certificate of a joined site, for the key it has: the one it has, unless `is_due` says of that one that it
    /// should be renewed. None for a site that is not on the roster.
    pub fn renew<E>(
        &mut self,
        id: SiteId,
        is_due: impl FnOnce(&CertificateDer<'_>) -> bool,
        certify: impl FnOnce(&str, &[u8; 32]) -> Result<CertificateDer<'static>, E>,
    ) -> Result<Option<SiteRecord>, E> {
        let Some(site) = self.sites.values_mut().find(|site| site_id(site) == Some(id) && !site.revoked)
        else {
            return Ok(None);
        };
        let Some(public_key) = site.public_key else { return Ok(None) };
        let due = site.certificate.as_deref().is_none_or(|known| is_due(&CertificateDer::from(known)));
        if due {
            site.certificate = Some(certify(&site.name, &public_key)?.to_vec());
        }
        Ok(Some(site.clone()))
    }

    /// The name of a joined site that is not revoked.
    pub fn name_of(&self, id: SiteId) -> Option<&str> {
        let site = self.sites.values().find(|site| site_id(site) == Some(id) && !site.revoked)?;
        Some(&site.name)
    }

    /// All sites, for the operator.
    pub fn summaries(&self, online: &BTreeSet<SiteId>, now_s: u64) -> Vec<SiteSummary> {
        self.sites.values().map(|site| summary(site, online, now_s)).collect()
    }

    /// The identity of the site that joined as `name`.
    pub fn id_of(&self, name: &str) -> Result<SiteId, RosterError> {
        let site = self.sites.get(name).and_then(site_id);
        site.ok_or_else(|| RosterError::Unknown { name: name.into() })
    }
}

/// A site's identity, once it has joined.
pub fn site_id(site: &SiteRecord) -> Option<SiteId> {
    site.public_key.as_ref().map(SiteId::of_public_key)
}

/// One site, for the operator.
pub fn summary(site: &SiteRecord, online: &BTreeSet<SiteId>, now_s: u64) -> SiteSummary {
    let id = site_id(site);
    let status = match id {
        _ if site.revoked => SiteStatus::Revoked,
        Some(id) if online.contains(&id) => SiteStatus::Online,
        Some(_) => SiteStatus::Offline,
        None if now_s < site.invite.expires_s => SiteStatus::Invited,
        None => SiteStatus::InviteExpired,
    };
    SiteSummary { name: site.name.clone(), status, id }
}

/// The roster as the handshake and the driver share it.
pub type SharedRoster = Arc<RwLock<Roster>>;

/// Answers the handshake's question from the roster.
#[derive(Debug)]
pub struct RosterGate(pub SharedRoster);

impl Gate for RosterGate {
    fn admits(&self, peer: &Peer) -> bool {
        let roster = self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        match peer {
            Peer::Site(id) => roster.name_of(*id).is_some(),
            Peer::Operator { .. } => true,
            Peer::Coordinator => false,
            Peer::Enrolling { public_key, invite, proof } => {
                roster.invited(public_key, invite, proof, clock::unix_time_s()).is_some()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weighhouse_shared::tls::enrolment_proof;

    fn roster() -> Roster {
        let mut roster = Roster::default();
        roster.invite("berlin", InviteRecord { id: [1; 16], secret: [2; 32], expires_s: 100 }).unwrap();
        roster
    }

    fn enrol(roster: &mut Roster, key: u8, now_s: u64) -> Result<SiteRecord, RosterError> {
        let proof = enrolment_proof(&[2; 32], &[key; 32]);
        let certify = |_: &str| Ok::<_, std::convert::Infallible>(CertificateDer::from(vec![key]));
        let Ok(record) = roster.enrol(&[key; 32], &[1; 16], &proof, now_s, certify)?;
        Ok(record)
    }

    #[test]
    fn an_invite_is_single_use_but_a_cut_off_join_may_be_repeated_with_its_key() {
        let mut roster = roster();
        let first = enrol(&mut roster, 7, 50).unwrap();
        assert_eq!(enrol(&mut roster, 8, 50), Err(RosterError::Invite));
        assert_eq!(enrol(&mut roster, 7, 500).unwrap(), first);
    }

    #[test]
    fn an_expired_invite_and_a_wrong_proof_are_refused() {
        assert_eq!(enrol(&mut roster(), 7, 100), Err(RosterError::Invite));
        let certify = |_: &str| Ok::<_, ()>(CertificateDer::from(vec![]));
        assert_eq!(roster().enrol(&[7; 32], &[1; 16], &[0; 32], 50, certify), Err(RosterError::Invite));
    }

    #[test]
    fn a_site_is_given_a_new_certificate_when_its_own_is_due_and_only_then() {
        let mut roster = roster();
        let id = site_id(&enrol(&mut roster, 7, 50).unwrap()).unwrap();
        let mut renewed = |is_due: bool| {
            let certify = |name: &str, key: &[u8; 32]| {
                assert_eq!((name, key), ("berlin", &[7; 32]));
                Ok::<_, std::convert::Infallible>(CertificateDer::from(vec![8]))
            };
            let Ok(record) = roster.renew(id, |_| is_due, certify);
            record.unwrap().certificate.unwrap()
        };
        assert_eq!([renewed(false), renewed(true), renewed(false)], [[7], [8], [8]]);
        roster.revoke("berlin").unwrap();
        let never = |_: &str, _: &[u8; 32]| -> Result<_, ()> { panic!("nobody is certified") };
        assert_eq!(roster.renew(id, |_| true, never), Ok(None));
    }

    #[test]
    fn a_revocation_is_told_to_whoever_watches() {
        let mut roster = roster();
        let mut revocations = roster.revocations();
        assert!(!revocations.has_changed().unwrap());
        roster.revoke("berlin").unwrap();
        assert!(revocations.has_changed().unwrap());
        revocations.mark_unchanged();
        assert!(roster.revoke("bonn").is_err() && !revocations.has_changed().unwrap());
    }

    #[test]
    fn a_revoked_site_is_nobody_and_its_name_can_be_invited_anew() {
        let mut roster = roster();
        let id = site_id(&enrol(&mut roster, 7, 50).unwrap()).unwrap();
        assert_eq!(roster.name_of(id), Some("berlin"));
        let again = InviteRecord { id: [3; 16], secret: [4; 32], expires_s: 100 };
        assert!(matches!(roster.invite("berlin", again.clone()), Err(RosterError::Taken { .. })));
        roster.revoke("berlin").unwrap();
        assert_eq!(roster.name_of(id), None);
        assert_eq!(enrol(&mut roster, 7, 50), Err(RosterError::Invite));
        roster.invite("berlin", again).unwrap();
    }
}
