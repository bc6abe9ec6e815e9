//! Certificates for sites: their first, for an invite, and each next one. Kept before they are sent.

use super::{Driver, DriverError, EnrolReply};
use rustls::pki_types::CertificateDer;
use weighhouse_shared::clock;
use weighhouse_shared::ids::SiteId;
use weighhouse_shared::tls;
use weighhouse_shared::wire::messages::{CoordinatorToSite, Enrolled, Renewed};

impl Driver {
    /// Lets the holder of an invite in; None if it is not good.
    pub(super) fn enrol(
        &mut self,
        public_key: &[u8; 32],
        invite: &[u8; 16],
        proof: &[u8; 32],
    ) -> Result<EnrolReply, DriverError> {
        let now_s = clock::unix_time_s();
        let certify = |name: &str| self.parts.issuer.issue_site(name, public_key, now_s);
        let record = {
            let mut roster = self.parts.roster.write().unwrap_or_else(std::sync::PoisonError::into_inner);
            match roster.enrol(public_key, invite, proof, now_s, certify) {
                Ok(Ok(record)) => record,
                Ok(Err(error)) => {
                    tracing::error!(%error, "a certificate could not be made");
                    return Ok(None);
                }
                Err(_) => return Ok(None),
            }
        };
        self.parts.store.put_site(&record)?;
        self.parts.store.sync()?;
        Ok(Some(Enrolled {
            name: record.name,
            certificate: record.certificate.unwrap_or_default(),
            authority: self.parts.authority.to_vec(),
        }))
    }

    /// Gives a connected site its next certificate.
    pub(super) fn renew(&mut self, site: SiteId) -> Result<(), DriverError> {
        let now_s = clock::unix_time_s();
        let is_due = |known: &CertificateDer<'_>| {
            tls::validity_of(known).map_or(true, |validity| validity.renewal_is_due(now_s))
        };
        let certify = |name: &str, key: &[u8; 32]| self.parts.issuer.issue_site(name, key, now_s);
        let renewed = {
            let mut roster = self.parts.roster.write().unwrap_or_else(std::sync::PoisonError::into_inner);
            roster.renew(site, is_due, certify)
        };
        match renewed {
            Ok(Some(record)) => {
                self.parts.store.put_site(&record)?;
                self.parts.store.sync()?;
                let certificate = record.certificate.unwrap_or_default();
                self.send(site, CoordinatorToSite::Renewed(Renewed { certificate }));
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(error) => {
                tracing::error!(site = %site.short(), %error, "a certificate could not be renewed");
                Ok(())
            }
        }
    }
}
