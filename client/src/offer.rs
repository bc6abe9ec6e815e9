//! Whether this site takes part in an offered job: the operator's signature, the contract's own rules,
//! the site's columns, its policy, its people if the policy says so, and last its budget. A job is judged
//! before anything is computed, and nothing in the answer depends on records.

use crate::approvals::{Approvals, ApprovalsError, Verdict};
use crate::budget::{Budget, BudgetError};
use crate::policy::{self, PolicyRefusal};
use rustls::pki_types::CertificateDer;
use std::sync::Arc;
use weighhouse_shared::identity::{Purpose, is_signed_by};
use weighhouse_shared::ids::JobId;
use weighhouse_shared::job::JobContract;
use weighhouse_shared::policy::{Approval, Policy};
use weighhouse_shared::schema::Schema;
use weighhouse_shared::tls::verified_operator_key;
use weighhouse_shared::wire::codec;
use weighhouse_shared::wire::messages::{Decision, SignedContract};

/// A contract whose signature and rules were checked.
#[derive(Debug, Clone)]
pub struct CheckedContract {
    /// Its hash.
    pub job: JobId,
    /// What it says.
    pub contract: Arc<JobContract>,
}

/// Why a site does not take part, or not yet; for the site's own log.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    /// No operator of this federation signed it.
    #[error("no operator of this federation signed the job")]
    Signature,
    /// It breaks its own rules.
    #[error("the job's contract is not valid: {reason}")]
    Contract {
        /// What is wrong.
        reason: String,
    },
    /// It is for other columns.
    #[error(
        "the job is for the schema `{wanted}`, which differs from this site's `{own}`; agree on one schema file"
    )]
    Schema {
        /// The job's schema.
        wanted: String,
        /// The site's.
        own: String,
    },
    /// It is a secure sum of others.
    #[error(
        "the job's secure sum does not name this site among its members; it joined after the job was submitted, and its \
         operator may submit the job again"
    )]
    NotAMember,
    /// The policy refuses.
    #[error(transparent)]
    Policy(#[from] PolicyRefusal),
    /// Someone at the site has to approve it.
    #[error("it waits for `weighhouse client approve {}`", job.short())]
    Waiting {
        /// The job.
        job: JobId,
    },
    /// It cannot be put before the site's people.
    #[error(transparent)]
    Approvals(#[from] ApprovalsError),
    /// The budget refuses.
    #[error(transparent)]
    Budget(#[from] BudgetError),
}

impl OfferError {
    /// What the coordinator is told: a label, no figures.
    pub fn decision(&self) -> Decision {
        match self {
            Self::Signature | Self::Contract { .. } | Self::NotAMember => Decision::RefusedContract,
            Self::Schema { .. } => Decision::RefusedSchema,
            Self::Policy(refusal) => Decision::RefusedPolicy(refusal.rule()),
            Self::Waiting { .. } | Self::Approvals(_) => Decision::Waiting,
            Self::Budget(_) => Decision::RefusedBudget,
        }
    }
}

/// Checks signature, rules and columns of an offer.
pub fn check(
    offer: &SignedContract,
    authority: &CertificateDer<'static>,
    own: &Schema,
    now_s: u64,
) -> Result<CheckedContract, OfferError> {
    let certificate = CertificateDer::from(offer.certificate.as_slice());
    let key = verified_operator_key(authority, &certificate, now_s).map_err(|_| OfferError::Signature)?;
    if !is_signed_by(&key, Purpose::JobContract, &offer.contract, &offer.signature) {
        return Err(OfferError::Signature);
    }
    let invalid = |reason: String| OfferError::Contract { reason };
    let contract: JobContract = codec::decode(&offer.contract).map_err(|error| invalid(error.to_string()))?;
    contract.validate().map_err(|error| invalid(error.to_string()))?;
    if contract.schema.hash() != own.hash() {
        return Err(OfferError::Schema { wanted: contract.schema.name, own: own.name.clone() });
    }
    Ok(CheckedContract { job: contract.id(), contract: Arc::new(contract) })
}

/// Holds a checked offer against the policy and, if that says so, what the site's people decided. A job
/// that runs already was approved, or came when no approval was asked for.
pub fn permit(
    checked: &CheckedContract,
    offer: &SignedContract,
    rules: &Policy,
    approvals: &Approvals,
    budget: &Budget,
    now_s: u64,
) -> Result<(), OfferError> {
    let CheckedContract { job, contract } = checked;
    if contract.federation.secure_sum().is_some_and(|sum| !sum.is_member(budget.site())) {
        return Err(OfferError::NotAMember);
    }
    policy::check(contract, rules)?;
    let verdict = match rules.jobs.approval {
        Approval::Auto => return Ok(()),
        Approval::Ask if budget.balance().running_jobs().any(|running| running == *job) => {
            approvals.find(*job)?.map_or(Verdict::Approved, |case| case.verdict)
        }
        Approval::Ask => approvals.ask(*job, contract, offer, now_s)?,
    };
    match verdict {
        Verdict::Approved | Verdict::Ended => Ok(()),
        Verdict::Waiting => Err(OfferError::Waiting { job: *job }),
        Verdict::Refused => Err(PolicyRefusal::Approval.into()),
    }
}

/// Sets the job's worst case aside, or refuses with the figures.
pub fn reserve(checked: &CheckedContract, budget: &mut Budget) -> Result<(), OfferError> {
    let charges = policy::charges(&checked.contract);
    Ok(budget.reserve(checked.job, &checked.contract.name, charges)?)
}

/// A contract that holds, for tests of other modules.
#[cfg(test)]
pub(crate) fn sample_contract() -> JobContract {
    sample_among("", &[])
}

/// A contract of a secure sum of so many members, the sites 0, 1 and so on.
#[cfg(test)]
pub(crate) fn sample_secure_sum(members: u8) -> JobContract {
    sample_grouped_sum(members, 1)
}

/// The same in so many groups.
#[cfg(test)]
pub(crate) fn sample_grouped_sum(members: u8, groups: u32) -> JobContract {
    let members: Vec<_> =
        (0..members).map(|id| weighhouse_shared::ids::SiteId::from_bytes([id; 32])).collect();
    sample_among(&format!("[federation]\nmode = \"secure_sum\"\ngroups = {groups}"), &members)
}

#[cfg(test)]
fn sample_among(more: &str, members: &[weighhouse_shared::ids::SiteId]) -> JobContract {
    use weighhouse_shared::job::JobFile;
    let schema: Schema = toml::from_str(
        "name = \"test\"\ncustomer = \"id\"\nlabel = { column = \"y\", kind = \"binary\" }\n\
         features = [{ column = \"a\", min = 0.0, max = 1.0 }]",
    )
    .unwrap();
    let text = format!("name = \"test\"\nschema = \"x\"\n[privacy]\nepsilon = 8.0\ndelta = 1e-4\n{more}");
    toml::from_str::<JobFile>(&text).unwrap().contract_among(schema, [0; 16], members).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;
    use weighhouse_shared::identity::Identity;
    use weighhouse_shared::job::ProtectionMode;
    use weighhouse_shared::policy::{PolicyRule, PolicyText, first_policy};
    use weighhouse_shared::privacy::{Delta, Epsilon};

    struct Site {
        _folder: tempfile::TempDir,
        budget: Budget,
        approvals: Approvals,
        policy: Policy,
    }

    /// A site whose policy allows the sample job.
    fn site(approval: Approval) -> Site {
        let folder = tempfile::tempdir().unwrap();
        let text = first_policy(Epsilon::new(8.0).unwrap(), Delta::new(1e-4).unwrap());
        let mut policy = Policy::parse(&text).unwrap();
        policy.jobs.approval = approval;
        let identity = Identity::generate().unwrap();
        let ledger = folder.path().join("ledger.jsonl");
        let budget = Budget::open(&ledger, identity, &PolicyText::unsigned(text), 150).unwrap();
        let approvals = Approvals::at(folder.path());
        Site { _folder: folder, budget, approvals, policy }
    }

    fn checked() -> (CheckedContract, SignedContract) {
        let contract = sample_contract();
        let bytes = codec::encode(&contract);
        let offer = SignedContract { contract: bytes, certificate: Vec::new(), signature: Vec::new() };
        (CheckedContract { job: contract.id(), contract: Arc::new(contract) }, offer)
    }

    /// What the site says; a permitted job reserves.
    fn answer(site: &mut Site) -> Decision {
        let (checked, offer) = checked();
        let permitted = permit(&checked, &offer, &site.policy, &site.approvals, &site.budget, 5);
        let reserved = permitted.and_then(|()| reserve(&checked, &mut site.budget));
        reserved.map_or_else(|error| error.decision(), |()| Decision::Accepted)
    }

    fn decide(site: &Site, verdict: Verdict) {
        let case = site.approvals.find(checked().0.job).unwrap().unwrap();
        site.approvals.decide(&case, verdict, 6).unwrap();
    }

    #[test]
    fn a_job_reserves_nothing_before_it_is_approved_and_leaves_when_refused_later() {
        let mut site = site(Approval::Ask);
        for _ in 0..2 {
            assert_eq!(answer(&mut site), Decision::Waiting);
        }
        assert_eq!(site.budget.balance().running_jobs().count(), 0);
        decide(&site, Verdict::Approved);
        assert_eq!(answer(&mut site), Decision::Accepted);
        assert_eq!(site.budget.balance().running_jobs().count(), 1);
        decide(&site, Verdict::Refused);
        assert_eq!(answer(&mut site), Decision::RefusedPolicy(PolicyRule::Approval));
    }

    #[test]
    fn a_job_that_ran_before_approval_was_asked_for_goes_on() {
        let mut site = site(Approval::Auto);
        assert_eq!(answer(&mut site), Decision::Accepted);
        site.policy.jobs.approval = Approval::Ask;
        assert_eq!(answer(&mut site), Decision::Accepted);
    }

    #[test]
    fn a_secure_sum_that_does_not_name_the_site_is_refused_and_one_that_does_is_not() {
        let site = site(Approval::Auto);
        let mut contract = sample_secure_sum(3);
        let permitted = |contract: &JobContract| {
            let (_, offer) = checked();
            let checked = CheckedContract { job: contract.id(), contract: Arc::new(contract.clone()) };
            permit(&checked, &offer, &site.policy, &site.approvals, &site.budget, 5)
        };
        let refusal = permitted(&contract).unwrap_err();
        assert!(matches!(refusal, OfferError::NotAMember));
        assert_eq!(refusal.decision(), Decision::RefusedContract);
        let ProtectionMode::SecureSum(sum) = &mut contract.federation.mode else { panic!("it is one") };
        sum.members[2] = site.budget.site();
        sum.members.sort_unstable();
        permitted(&contract).unwrap();
    }

    #[test]
    fn a_running_job_that_a_new_policy_forbids_is_refused_by_its_rule() {
        let mut site = site(Approval::Auto);
        assert_eq!(answer(&mut site), Decision::Accepted);
        site.policy.jobs.max_epsilon = Epsilon::new(2.0).unwrap();
        assert_eq!(answer(&mut site), Decision::RefusedPolicy(PolicyRule::MaxEpsilon));
    }
}
