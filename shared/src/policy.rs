//! The site's policy: what its data-protection officer allows. One TOML file, whose exact text stands in
//! the ledger from the moment it holds, with the officer's signature if it has one.

use crate::identity::{Identity, Purpose, is_signed_by};
use crate::ids::SiteId;
use crate::job::{MAX_MEMBERS, MIN_MEMBERS};
use crate::model::ModelSpec;
use crate::privacy::{Delta, Epsilon};
use crate::schema::LabelKind;
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The longest policy file, in bytes.
pub const MAX_POLICY_LEN: usize = 1 << 16;

/// `policy.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// What any one customer may be charged, over all jobs together.
    pub cap: Cap,
    /// What a single job may be.
    pub jobs: JobRules,
    /// What is assumed and required of the customers.
    #[serde(default)]
    pub customers: CustomerRules,
    /// With whom secure sums may be; absent: with any three or more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secure_sum: Option<SecureSumRules>,
    /// Who must sign the next change of this file; absent: nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub officer: Option<Officer>,
}

/// `[cap]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cap {
    /// The most epsilon.
    pub epsilon: Epsilon,
    /// Probability with which the cap on epsilon may fail.
    pub delta: Delta,
    /// The cap holds over any so many consecutive days (UTC), 1 to 36500; absent: for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub period_days: Option<u32>,
}

/// `[jobs]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobRules {
    /// The most epsilon one job may ask for.
    pub max_epsilon: Epsilon,
    /// Whether a job that keeps to the policy starts by itself.
    #[serde(default)]
    pub approval: Approval,
    /// What may be learned.
    pub tasks: Vec<Task>,
    /// Which models may be trained.
    pub models: Vec<ModelKind>,
}

/// Whether a job that keeps to the policy starts by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Approval {
    /// It does.
    #[default]
    Auto,
    /// Someone at the site approves or refuses each job.
    Ask,
}

/// What may be learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// A label that is 0 or 1: response, churn, purchase.
    Binary,
    /// A label that is one of a few classes: a segment, a channel.
    Classes,
    /// A label that is a count: visits, baskets.
    Count,
    /// A label that is a number: spend, days to the next visit.
    Number,
    /// A label that is one of many items, to be ranked: the next product.
    Item,
}

/// A kind of model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelKind {
    /// Logistic regression.
    Logistic,
    /// Multi-layer perceptron.
    Mlp,
    /// Both, over numbers and categories.
    WideAndDeep,
    /// A ranking of items.
    TwoTower,
    /// Factors of items and of customers.
    MatrixFactorisation,
    /// Long short-term memory over sequences.
    Lstm,
    /// Convolutions along sequences.
    Cnn,
    /// Attention over sequences.
    Transformer,
}

impl From<&LabelKind> for Task {
    fn from(label: &LabelKind) -> Self {
        match label {
            LabelKind::Binary => Self::Binary,
            LabelKind::Classes(_) => Self::Classes,
            LabelKind::Count => Self::Count,
            LabelKind::Number { .. } => Self::Number,
            LabelKind::Item(_) => Self::Item,
        }
    }
}

impl From<&ModelSpec> for ModelKind {
    fn from(model: &ModelSpec) -> Self {
        match model {
            ModelSpec::Logistic {} => Self::Logistic,
            ModelSpec::Mlp { .. } => Self::Mlp,
            ModelSpec::WideAndDeep { .. } => Self::WideAndDeep,
            ModelSpec::TwoTower { .. } => Self::TwoTower,
            ModelSpec::MatrixFactorisation { .. } => Self::MatrixFactorisation,
            ModelSpec::Lstm { .. } => Self::Lstm,
            ModelSpec::Cnn { .. } => Self::Cnn,
            ModelSpec::Transformer { .. } => Self::Transformer,
        }
    }
}

// As policy.toml writes them.
impl fmt::Display for Approval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Ask => "ask",
        })
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Binary => "binary",
            Self::Classes => "classes",
            Self::Count => "count",
            Self::Number => "number",
            Self::Item => "item",
        })
    }
}

impl fmt::Display for ModelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Logistic => "logistic",
            Self::Mlp => "mlp",
            Self::WideAndDeep => "wide_and_deep",
            Self::TwoTower => "two_tower",
            Self::MatrixFactorisation => "matrix_factorisation",
            Self::Lstm => "lstm",
            Self::Cnn => "cnn",
            Self::Transformer => "transformer",
        })
    }
}

/// A rule that a job can break, by its key in policy.toml: all that a refusal tells the coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PolicyRule {
    /// The job asks for more epsilon than one job may.
    #[serde(rename = "jobs.max_epsilon")]
    MaxEpsilon,
    /// It learns what may not be learned.
    #[serde(rename = "jobs.tasks")]
    Tasks,
    /// It trains a model that may not be trained.
    #[serde(rename = "jobs.models")]
    Models,
    /// Someone at the site refused it.
    #[serde(rename = "jobs.approval")]
    Approval,
    /// Its secure sum has members that are not listed.
    #[serde(rename = "secure_sum.members")]
    SecureSumMembers,
    /// Its secure sum has too few members.
    #[serde(rename = "secure_sum.min_members")]
    SecureSumMinMembers,
    /// A site's own share of its secure sum's noise promises too little.
    #[serde(rename = "secure_sum.max_own_epsilon")]
    SecureSumMaxOwnEpsilon,
}

impl fmt::Display for PolicyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MaxEpsilon => "jobs.max_epsilon",
            Self::Tasks => "jobs.tasks",
            Self::Models => "jobs.models",
            Self::Approval => "jobs.approval",
            Self::SecureSumMembers => "secure_sum.members",
            Self::SecureSumMinMembers => "secure_sum.min_members",
            Self::SecureSumMaxOwnEpsilon => "secure_sum.max_own_epsilon",
        })
    }
}

/// `[customers]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CustomerRules {
    /// The daemon does not run with fewer customers than this.
    pub min: u64,
    /// Sites at which one customer is assumed to be known, 1 to 1000; reports show the figure for it.
    pub max_sites: u32,
}

impl Default for CustomerRules {
    fn default() -> Self {
        Self { min: 1, max_sites: 1 }
    }
}

/// `[secure_sum]`: what the members of a job's secure sum must be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SecureSumRules {
    /// The fewest members of one sum: with groups, of a group.
    pub min_members: u32,
    /// The only sites that may be members, this one among them; absent: any that the operator signs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub members: Option<Vec<SiteId>>,
    /// The most epsilon, at the cap's delta, of a job's training that this site's own share of the noise must still promise
    /// if the sum's masks were broken or all other members colluded; absent: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_own_epsilon: Option<Epsilon>,
}

impl Default for SecureSumRules {
    fn default() -> Self {
        Self { min_members: MIN_MEMBERS as u32, members: None, max_own_epsilon: None }
    }
}

/// `[officer]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Officer {
    /// Ed25519 public key, 32 bytes in hexadecimal.
    pub public_key: String,
}

/// Why a text is not a policy.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PolicyError {
    /// It is not TOML of the right shape.
    #[error("{reason}")]
    Parse {
        /// Line, column, and what was expected.
        reason: String,
    },
    /// A number is out of its range.
    #[error("`{field}` must be {range}")]
    Range {
        /// Where it stands.
        field: &'static str,
        /// What it may be.
        range: &'static str,
    },
}

impl Policy {
    /// Reads and checks a policy's text.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        if text.len() > MAX_POLICY_LEN {
            return Err(PolicyError::Parse { reason: format!("it is longer than {MAX_POLICY_LEN} bytes") });
        }
        let policy: Self =
            toml::from_str(text).map_err(|error| PolicyError::Parse { reason: error.to_string() })?;
        let check =
            |field, range, holds| if holds { Ok(()) } else { Err(PolicyError::Range { field, range }) };
        let days = policy.cap.period_days;
        check("cap.period_days", "from 1 to 36500", days.is_none_or(|days| (1..=36_500).contains(&days)))?;
        let sites = policy.customers.max_sites;
        check("customers.max_sites", "from 1 to 1000", (1..=1000).contains(&sites))?;
        let members = policy.secure_sum.as_ref().map_or(MIN_MEMBERS, |rules| rules.min_members as usize);
        let members_hold = (MIN_MEMBERS..=MAX_MEMBERS).contains(&members);
        check("secure_sum.min_members", "from 3 to 1024", members_hold)?;
        let officer = policy.officer.as_ref();
        let key_holds = officer.is_none_or(|officer| officer.key().is_some());
        check("officer.public_key", "32 bytes in lower-case hexadecimal", key_holds)?;
        Ok(policy)
    }
}

impl Officer {
    /// The holder of `key`.
    pub fn of(key: &Identity) -> Self {
        Self { public_key: HEXLOWER.encode(&key.public_key()) }
    }

    /// The first eight digits: enough for people.
    pub fn short(&self) -> String {
        self.public_key.chars().take(8).collect()
    }

    /// The key's bytes.
    pub fn key(&self) -> Option<[u8; 32]> {
        HEXLOWER.decode(self.public_key.as_bytes()).ok()?.try_into().ok()
    }
}

/// A policy's exact text, and the officer's signature over it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyText {
    /// The file.
    pub text: String,
    /// Ed25519, 64 bytes in hexadecimal, over the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
}

impl PolicyText {
    /// A policy that nobody signed.
    pub fn unsigned(text: String) -> Self {
        Self { text, signature: None }
    }

    /// The policy as `officer` signs it.
    pub fn signed(text: String, officer: &Identity) -> Self {
        let signature = HEXLOWER.encode(&officer.sign(Purpose::Policy, text.as_bytes()));
        Self { text, signature: Some(signature) }
    }

    /// Whether the holder of `officer` signed exactly this text.
    pub fn is_signed_by(&self, officer: &Officer) -> bool {
        let signature = self.signature.as_ref().and_then(|text| HEXLOWER.decode(text.as_bytes()).ok());
        let signed = officer.key().zip(signature);
        signed.is_some_and(|(key, signature)| {
            is_signed_by(&key, Purpose::Policy, self.text.as_bytes(), &signature)
        })
    }
}

/// The commented policy that a site begins with.
pub fn first_policy(cap_epsilon: Epsilon, cap_delta: Delta) -> String {
    format!(
        "# What this site allows. Owned by its data-protection officer; every version that was in force\n\
         # stands in the ledger. The daemon reads it when it starts.\n\
         \n\
         [cap]\n\
         # The most any one customer may be charged, over all jobs together: the lock of this site.\n\
         epsilon = {epsilon:?}\n\
         # Probability with which the cap on epsilon may fail; well below 1 / customers.\n\
         delta = {delta:?}\n\
         # Count only the last so many days, any such window, instead of the whole life of the ledger.\n\
         # period_days = 365\n\
         \n\
         [jobs]\n\
         # The most epsilon one job may ask for.\n\
         max_epsilon = {epsilon:?}\n\
         # \"auto\": a job that keeps to this policy starts by itself. \"ask\": it waits for\n\
         # `weighhouse client approve JOB`.\n\
         approval = \"auto\"\n\
         # What may be learned, and with which models.\n\
         tasks = [\"binary\", \"classes\", \"count\", \"number\", \"item\"]\n\
         models = [\"logistic\", \"mlp\", \"wide_and_deep\", \"two_tower\", \"matrix_factorisation\", \"lstm\", \"cnn\",\n\
         \x20   \"transformer\"]\n\
         \n\
         [customers]\n\
         # The daemon does not run with fewer customers than this.\n\
         min = 1\n\
         # At how many sites of the federation one customer is assumed to be known; the report shows the\n\
         # figure for it.\n\
         max_sites = 1\n\
         \n\
         # Jobs in which the coordinator sees only the sum over the sites.\n\
         [secure_sum]\n\
         # The fewest members of such a sum.\n\
         min_members = 3\n\
         # The only sites that may be members, this one among them, by their whole identifiers; left out: any that the\n\
         # operator signs.\n\
         # members = []\n\
         # The most epsilon that this site's own share of the noise must still promise for a whole job, were the masks of\n\
         # the sum broken or all other members in league with the coordinator; left out: any.\n\
         # max_own_epsilon = 40.0\n\
         \n\
         # Once an officer is named here and has signed the file (`weighhouse policy sign`), a change that\n\
         # the officer has not signed is refused.\n\
         # [officer]\n\
         # public_key = \"…\"\n",
        epsilon = cap_epsilon.value(),
        delta = cap_delta.value(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> String {
        first_policy(Epsilon::new(8.0).unwrap(), Delta::new(1e-5).unwrap())
    }

    #[test]
    fn the_first_policy_reads_back() {
        let policy = Policy::parse(&sample()).unwrap();
        assert_eq!((policy.cap.epsilon.value(), policy.cap.period_days), (8.0, None));
        assert_eq!((policy.jobs.approval, policy.officer), (Approval::Auto, None));
    }

    #[test]
    fn a_rule_is_told_by_its_key() {
        for rule in [
            PolicyRule::MaxEpsilon,
            PolicyRule::Tasks,
            PolicyRule::Models,
            PolicyRule::Approval,
            PolicyRule::SecureSumMembers,
            PolicyRule::SecureSumMinMembers,
            PolicyRule::SecureSumMaxOwnEpsilon,
        ] {
            assert_eq!(serde_json::to_value(rule).unwrap(), rule.to_string());
            let key = rule.to_string();
            let (section, key) = key.split_once('.').unwrap();
            let text = sample().replace("# members", "members").replace("# max_own", "max_own");
            let policy: toml::Table = toml::from_str(&text).unwrap();
            assert!(policy[section].get(key).is_some(), "{rule}");
        }
    }

    #[test]
    fn a_rule_out_of_range_or_unknown_is_refused_by_name() {
        for (from, to, says) in [
            ("# period_days = 365", "period_days = 0", "cap.period_days"),
            ("max_sites = 1", "max_sites = 0", "customers.max_sites"),
            ("# [officer]\n# public_key = \"…\"", "[officer]\npublic_key = \"AB\"", "officer.public_key"),
            ("min = 1", "minimum = 1", "minimum"),
            ("tasks = [\"binary\", ", "tasks = [\"identify\", ", "identify"),
        ] {
            let error = Policy::parse(&sample().replace(from, to)).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
    }

    #[test]
    fn a_signature_holds_for_the_exact_text_and_key_only() {
        let (officer, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let named = |key: &Identity| Officer { public_key: HEXLOWER.encode(&key.public_key()) };
        let mut policy = PolicyText::signed(sample(), &officer);
        assert!(policy.is_signed_by(&named(&officer)) && !policy.is_signed_by(&named(&other)));
        policy.text.push(' ');
        assert!(!policy.is_signed_by(&named(&officer)));
        assert!(!PolicyText::unsigned(sample()).is_signed_by(&named(&officer)));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in ".{0,400}") {
            let _ = Policy::parse(&text);
        }
    }
}
