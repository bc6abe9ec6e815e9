//! What this site allows: a job's contract is held against `policy.toml` before anything is computed, and a
//! new `policy.toml` against the one in force. Pure; what a job costs is worked out from its charges, never
//! read from its claim.

use serde::Serialize;
use weighhouse_shared::ids::SiteId;
use weighhouse_shared::job::JobContract;
use weighhouse_shared::ledger::{Balance, Body, Charge, LedgerRule, Population};
use weighhouse_shared::policy::{ModelKind, Policy, PolicyRule, PolicyText, SecureSumRules, Task};
use weighhouse_shared::privacy::{Delta, accountant};

/// Why a job is refused, for people at the site. The coordinator is told [`PolicyRefusal::rule`] only.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PolicyRefusal {
    /// It costs a customer more than one job may.
    #[error(
        "`jobs.max_epsilon` in policy.toml allows one job epsilon {allowed} at delta {delta:e}, this one asks \
         {asked:.4} of each {payer} customer; its operator may submit a smaller one, or the data-protection \
         officer allow more"
    )]
    MaxEpsilon {
        /// Epsilon of the job's charges at the cap's delta.
        asked: f64,
        /// The most one job may ask for.
        allowed: f64,
        /// The cap's delta.
        delta: f64,
        /// "training" or "held-out".
        payer: &'static str,
    },
    /// It learns something else.
    #[error(
        "`jobs.tasks` in policy.toml allows {allowed}, this job learns `{asked}`; the data-protection officer \
         may add it"
    )]
    Tasks {
        /// What it learns.
        asked: Task,
        /// What may be learned.
        allowed: String,
    },
    /// It trains another model.
    #[error(
        "`jobs.models` in policy.toml allows {allowed}, this job trains `{asked}`; its operator may choose \
         another model, or the data-protection officer add it"
    )]
    Models {
        /// What it trains.
        asked: ModelKind,
        /// What may be trained.
        allowed: String,
    },
    /// A secure sum has members that are not listed.
    #[error(
        "`secure_sum.members` in policy.toml does not list {unknown}, a member of this job's secure sum; its operator may \
         leave the site out, or the data-protection officer add it"
    )]
    Members {
        /// The first of them.
        unknown: SiteId,
    },
    /// A secure sum has too few members.
    #[error(
        "`secure_sum.min_members` in policy.toml wants {wanted} members in a sum, this job's has {members}; its operator \
         may invite more or make fewer groups, or the data-protection officer lower it"
    )]
    FewMembers {
        /// How many there are.
        members: usize,
        /// How many there must be.
        wanted: u32,
    },
    /// In a secure sum, the site's own share of the noise promises too little.
    #[error(
        "`secure_sum.max_own_epsilon` in policy.toml is {allowed}, and without the other members' noise this job would cost \
         epsilon {asked:.3}; its operator may ask for a smaller epsilon, or the \
         data-protection officer raise it"
    )]
    OwnEpsilon {
        /// What the own share promises, at the cap's delta.
        asked: f64,
        /// The most there may be.
        allowed: f64,
    },
    /// Someone at the site said no.
    #[error(
        "it was refused here with `weighhouse client refuse`; to run it after all, its operator submits it again"
    )]
    Approval,
}

impl PolicyRefusal {
    /// The rule that was broken.
    pub fn rule(&self) -> PolicyRule {
        match self {
            Self::MaxEpsilon { .. } => PolicyRule::MaxEpsilon,
            Self::Tasks { .. } => PolicyRule::Tasks,
            Self::Models { .. } => PolicyRule::Models,
            Self::Members { .. } => PolicyRule::SecureSumMembers,
            Self::FewMembers { .. } => PolicyRule::SecureSumMinMembers,
            Self::OwnEpsilon { .. } => PolicyRule::SecureSumMaxOwnEpsilon,
            Self::Approval => PolicyRule::Approval,
        }
    }
}

/// The site has fewer customers than its policy wants. Stays at the site: its daemon does not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`customers.min` in policy.toml wants at least {min} customers, and the records have {customers}; add \
     records, or have the data-protection officer lower it"
)]
pub struct TooFewCustomers {
    /// Customers in the records, held-out ones too.
    pub customers: u64,
    /// How many there must be.
    pub min: u64,
}

/// All that `contract` may charge, by who pays: its worst case.
pub fn charges(contract: &JobContract) -> Vec<Charge> {
    let training = Charge { population: Population::Training, event: contract.training_charge() };
    let holdout = contract.evaluation_charge();
    let holdout = holdout.map(|event| Charge { population: Population::Holdout, event });
    std::iter::once(training).chain(holdout).collect()
}

/// Epsilon at `delta` that `charges` ask of the customers who pay most, and which ones they are: the Renyi
/// figure, training and held-out customers each on their own.
pub fn asked_epsilon(charges: &[Charge], delta: Delta) -> (f64, Population) {
    let figure = |payer| {
        let paid = charges.iter().filter(|charge| charge.population == payer).map(|charge| charge.event);
        (accountant::renyi_epsilon(&paid.collect::<Vec<_>>(), delta), payer)
    };
    let (training, holdout) = (figure(Population::Training), figure(Population::Holdout));
    if holdout.0 > training.0 { holdout } else { training }
}

/// Holds `contract` against the rules of `policy` for a single job.
pub fn check(contract: &JobContract, policy: &Policy) -> Result<(), PolicyRefusal> {
    let task = Task::from(&contract.schema.label.kind);
    if !policy.jobs.tasks.contains(&task) {
        return Err(PolicyRefusal::Tasks { asked: task, allowed: listed(&policy.jobs.tasks) });
    }
    let model = ModelKind::from(&contract.model);
    if !policy.jobs.models.contains(&model) {
        return Err(PolicyRefusal::Models { asked: model, allowed: listed(&policy.jobs.models) });
    }
    if let (Some(sum), Some(rules)) = (contract.federation.secure_sum(), &policy.secure_sum) {
        // Of a site's own group, which is no smaller than the smallest.
        let members = contract.federation.sum_groups().map_or(sum.members.len(), |groups| groups.sizes().0);
        check_members(&sum.members, members, rules)?;
        if let (Some(allowed), Some(own)) = (rules.max_own_epsilon, contract.local_charge()) {
            let (asked, allowed) = (accountant::renyi_epsilon(&[own], policy.cap.delta), allowed.value());
            if asked > allowed {
                return Err(PolicyRefusal::OwnEpsilon { asked, allowed });
            }
        }
    }
    let (asked, payer) = asked_epsilon(&charges(contract), policy.cap.delta);
    let allowed = policy.jobs.max_epsilon.value();
    if asked > allowed {
        let payer = match payer {
            Population::Training => "training",
            Population::Holdout => "held-out",
        };
        return Err(PolicyRefusal::MaxEpsilon { asked, allowed, delta: policy.cap.delta.value(), payer });
    }
    Ok(())
}

/// Holds the members of a secure sum, at least `count` in each of its sums, against the rules for them.
fn check_members(members: &[SiteId], count: usize, rules: &SecureSumRules) -> Result<(), PolicyRefusal> {
    if count < rules.min_members as usize {
        return Err(PolicyRefusal::FewMembers { members: count, wanted: rules.min_members });
    }
    let known = |member: &&SiteId| rules.members.as_ref().is_none_or(|known| known.contains(member));
    match members.iter().find(|member| !known(member)) {
        Some(unknown) => Err(PolicyRefusal::Members { unknown: *unknown }),
        None => Ok(()),
    }
}

/// Whether the site has the customers its policy wants.
pub fn check_customers(policy: &Policy, customers: u64) -> Result<(), TooFewCustomers> {
    let min = policy.customers.min;
    if customers < min { Err(TooFewCustomers { customers, min }) } else { Ok(()) }
}

/// What becomes of a policy's file when the daemon starts next.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Review {
    /// Whether it is the one in force already, to the letter.
    pub in_force: bool,
    /// Who signed it.
    pub signature: Signature,
    /// Why the daemon refuses it, if it does.
    pub refusal: Option<String>,
    /// What it changes.
    pub changes: Vec<Change>,
}

/// Who signed a policy's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Signature {
    /// There is no signature.
    Missing,
    /// An officer, whom the file or the policy in force names.
    Valid {
        /// The officer's public key, in hexadecimal.
        officer: String,
    },
    /// Nobody who is named, or it is of another text.
    Unknown,
}

/// A rule that differs from the one in force.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// Its key.
    pub key: String,
    /// The value in force; None if there is none.
    pub from: Option<serde_json::Value>,
    /// The new value; None if it is gone.
    pub to: Option<serde_json::Value>,
}

/// Holds a policy's file against the ledger that is to take it; against a new ledger if there is none.
pub fn review(proposed: &PolicyText, policy: &Policy, ledger: Option<&Balance>) -> Review {
    let current = ledger.and_then(Balance::policy);
    let officers = [Some(policy), current].into_iter().flatten().filter_map(|policy| policy.officer.as_ref());
    let signer = officers.into_iter().find(|officer| proposed.is_signed_by(officer));
    let signature = match (&proposed.signature, signer) {
        (None, _) => Signature::Missing,
        (Some(_), Some(officer)) => Signature::Valid { officer: officer.public_key.clone() },
        (Some(_), None) => Signature::Unknown,
    };
    let in_force = ledger.and_then(Balance::policy_text) == Some(proposed);
    let refused = if in_force { None } else { adopted(proposed, ledger).err() };
    let changes = current.map(|current| changes(current, policy)).unwrap_or_default();
    Review { in_force, signature, refusal: refused.map(|rule| rule.to_string()), changes }
}

fn adopted(proposed: &PolicyText, ledger: Option<&Balance>) -> Result<f64, LedgerRule> {
    let policy = proposed.clone();
    match ledger {
        Some(balance) => balance.clone().apply(u64::MAX, balance.time_s(), &Body::PolicySet { policy }),
        None => {
            let opened = Body::Opened { public_key: String::new(), holdout_permille: 0, policy };
            Balance::default().apply(0, 0, &opened)
        }
    }
}

/// The rules that differ, by key.
fn changes(from: &Policy, to: &Policy) -> Vec<Change> {
    let (from, to) = (rules(from), rules(to));
    let keys = from.keys().chain(to.keys()).collect::<std::collections::BTreeSet<_>>();
    let change = |key: &String| {
        let (from, to) = (from.get(key).cloned(), to.get(key).cloned());
        (from != to).then(|| Change { key: key.clone(), from, to })
    };
    keys.into_iter().filter_map(change).collect()
}

/// A policy's values by key, as `cap.epsilon`.
pub fn rules(policy: &Policy) -> std::collections::BTreeMap<String, serde_json::Value> {
    let sections = serde_json::to_value(policy).expect("a policy is plain numbers and words");
    let mut rules = std::collections::BTreeMap::new();
    for (section, values) in sections.as_object().into_iter().flatten() {
        for (key, value) in values.as_object().into_iter().flatten() {
            rules.insert(format!("{section}.{key}"), value.clone());
        }
    }
    rules
}

fn listed<T: std::fmt::Display>(allowed: &[T]) -> String {
    match allowed {
        [] => "nothing".into(),
        allowed => allowed.iter().map(|item| format!("`{item}`")).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offer::{sample_contract, sample_grouped_sum, sample_secure_sum};
    use weighhouse_shared::identity::Identity;
    use weighhouse_shared::job::Evaluation;
    use weighhouse_shared::model::ModelSpec;
    use weighhouse_shared::policy::first_policy;
    use weighhouse_shared::privacy::{Epsilon, NoiseMultiplier};

    /// A policy that allows all that a job of the sample's kind asks, at its own delta.
    fn policy(max_epsilon: f64, delta: f64) -> Policy {
        let text = first_policy(Epsilon::new(max_epsilon).unwrap(), Delta::new(delta).unwrap());
        Policy::parse(&text).unwrap()
    }

    fn rule(contract: &JobContract, policy: &Policy) -> Option<PolicyRule> {
        check(contract, policy).err().map(|refusal| refusal.rule())
    }

    #[test]
    fn a_job_is_judged_by_its_charges_at_the_policys_delta_and_not_by_its_claim() {
        let mut contract = sample_contract();
        assert_eq!((contract.privacy.epsilon.value(), contract.privacy.delta.value()), (8.0, 1e-4));
        assert_eq!(rule(&contract, &policy(8.0, 1e-4)), None);
        assert_eq!(rule(&contract, &policy(8.0, 1e-6)), Some(PolicyRule::MaxEpsilon));
        contract.privacy.epsilon = Epsilon::new(1e-3).unwrap();
        let Err(refusal) = check(&contract, &policy(2.0, 1e-4)) else { panic!("the claim was believed") };
        let text = refusal.to_string();
        assert!(text.contains("`jobs.max_epsilon`") && text.contains("epsilon 2 at delta 1e-4"), "{text}");
    }

    #[test]
    fn held_out_customers_are_asked_no_more_than_training_ones_may_be() {
        let mut contract = sample_contract();
        let few = contract.evaluation.take().unwrap();
        assert_eq!(rule(&contract, &policy(8.0, 1e-4)), None);
        let noise_multiplier = NoiseMultiplier::new(few.noise_multiplier.value() / 4.0).unwrap();
        contract.evaluation = Some(Evaluation { noise_multiplier, ..few });
        let Err(PolicyRefusal::MaxEpsilon { payer, .. }) = check(&contract, &policy(8.0, 1e-4)) else {
            panic!("the holdout's charge was not counted")
        };
        assert_eq!(payer, "held-out");
    }

    #[test]
    fn a_task_or_model_that_is_not_listed_is_refused_by_its_rule() {
        let mut contract = sample_contract();
        let mut policy = policy(8.0, 1e-4);
        policy.jobs.models = vec![ModelKind::Logistic];
        assert_eq!(rule(&contract, &policy), None);
        contract.model = ModelSpec::Mlp { hidden: vec![4], dropout: 0.0, activation: Default::default() };
        assert_eq!(rule(&contract, &policy), Some(PolicyRule::Models));
        policy.jobs.tasks.clear();
        assert_eq!(rule(&contract, &policy), Some(PolicyRule::Tasks));
        assert!(check(&contract, &policy).unwrap_err().to_string().contains("allows nothing"));
    }

    #[test]
    fn a_secure_sum_with_too_few_or_unlisted_members_is_refused_by_its_rule() {
        let contract = sample_secure_sum(4);
        let members = &contract.federation.secure_sum().unwrap().members;
        let mut policy = policy(8.0, 1e-4);
        assert_eq!(rule(&contract, &policy), None);
        let mut pinned = |min_members: u32, members: Option<Vec<SiteId>>| {
            policy.secure_sum = Some(SecureSumRules { min_members, members, max_own_epsilon: None });
            rule(&contract, &policy)
        };
        assert_eq!(pinned(4, None), None);
        assert_eq!(pinned(5, None), Some(PolicyRule::SecureSumMinMembers));
        assert_eq!(pinned(3, Some(members.clone())), None);
        assert_eq!(pinned(3, Some(members[1..].to_vec())), Some(PolicyRule::SecureSumMembers));
        policy.secure_sum =
            Some(SecureSumRules { min_members: 9, members: Some(Vec::new()), max_own_epsilon: None });
        assert_eq!(rule(&sample_contract(), &policy), None);
    }

    #[test]
    fn the_fewest_members_that_a_site_wants_are_those_of_its_group() {
        let contract = sample_grouped_sum(11, 2);
        let mut policy = policy(8.0, 1e-4);
        for (min_members, refused) in [(5, None), (6, Some(PolicyRule::SecureSumMinMembers))] {
            policy.secure_sum = Some(SecureSumRules { min_members, ..SecureSumRules::default() });
            assert_eq!(rule(&contract, &policy), refused);
        }
    }

    #[test]
    fn a_secure_sum_whose_own_share_promises_too_little_is_refused_by_its_rule() {
        let contract = sample_secure_sum(4);
        let mut policy = policy(8.0, 1e-4);
        let own = accountant::renyi_epsilon(&[contract.local_charge().unwrap()], policy.cap.delta);
        let whole = accountant::renyi_epsilon(&[contract.training_charge()], policy.cap.delta);
        assert!(own > whole);
        let mut with = |most: f64| {
            let max_own_epsilon = Some(Epsilon::new(most).unwrap());
            policy.secure_sum = Some(SecureSumRules { max_own_epsilon, ..SecureSumRules::default() });
            rule(&contract, &policy)
        };
        assert_eq!(with(own * 1.001), None);
        assert_eq!(with(own * 0.999), Some(PolicyRule::SecureSumMaxOwnEpsilon));
    }

    #[test]
    fn a_site_with_fewer_customers_than_its_policy_wants_does_not_run() {
        let mut policy = policy(8.0, 1e-4);
        policy.customers.min = 50;
        assert_eq!(check_customers(&policy, 50), Ok(()));
        assert!(check_customers(&policy, 49).unwrap_err().to_string().contains("`customers.min`"));
    }

    #[test]
    fn a_review_says_who_signed_what_changes_and_whether_the_ledger_takes_it() {
        let officer = Identity::generate().unwrap();
        let key = data_encoding::HEXLOWER.encode(&officer.public_key());
        let first = first_policy(Epsilon::new(8.0).unwrap(), Delta::new(1e-5).unwrap())
            .replace("# [officer]\n# public_key = \"…\"", &format!("[officer]\npublic_key = \"{key}\""));
        let reviewed = |text: &PolicyText, ledger: Option<&Balance>| {
            review(text, &Policy::parse(&text.text).unwrap(), ledger)
        };
        let unsigned = reviewed(&PolicyText::unsigned(first.clone()), None);
        assert_eq!((unsigned.signature, unsigned.refusal.is_some()), (Signature::Missing, true));
        let signed = PolicyText::signed(first.clone(), &officer);
        assert_eq!(reviewed(&signed, None).refusal, None);

        let mut ledger = Balance::default();
        let opened = Body::Opened { public_key: String::new(), holdout_permille: 0, policy: signed.clone() };
        ledger.apply(0, 0, &opened).unwrap();
        let same = reviewed(&signed, Some(&ledger));
        assert!(same.in_force && same.refusal.is_none() && same.changes.is_empty());
        let second = first.replace("max_epsilon = 8.0", "max_epsilon = 2.0");
        let forged = PolicyText::signed(second.clone(), &Identity::generate().unwrap());
        let forged = reviewed(&forged, Some(&ledger));
        assert_eq!(forged.signature, Signature::Unknown);
        assert!(forged.refusal.unwrap().contains("weighhouse policy sign"));
        let good = reviewed(&PolicyText::signed(second, &officer), Some(&ledger));
        assert_eq!((good.signature, good.refusal), (Signature::Valid { officer: key }, None));
        let change = Change {
            key: "jobs.max_epsilon".into(),
            from: Some(serde_json::json!(8.0)),
            to: Some(serde_json::json!(2.0)),
        };
        assert_eq!(good.changes, [change]);
    }
}
