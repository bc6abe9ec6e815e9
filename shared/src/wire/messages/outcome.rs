//! What becomes of what a site sends: one label for each check, the same in messages, counters and JSON.

use serde::{Deserialize, Serialize};

/// What became of what a site sent: counted, or refused for the first check that it fails. A refusal loses the site
/// its own vote in the round and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It counts.
    Admitted,
    /// It does not have the model's number of parameters or the histogram's number of bins.
    WrongShape,
    /// A value is outside the encoding's range.
    OutOfRange,
    /// The round has not begun, has no such part, or goes without this site.
    WrongRound,
    /// It was trained from another model than the round's.
    WrongModel,
    /// The site has already contributed to this round.
    Repeated,
    /// What arrived is not what the sender said it would be.
    Corrupt,
    /// No head of the ledger that released it came before it.
    Unwitnessed,
    /// It is longer than any contribution to the job.
    TooLong,
    /// Where integers belong there are floats, and some are no finite numbers.
    NotFinite,
    /// The round closed before it came: the site was slow, which is no fault.
    Late,
    /// The site's ledger did not debit what the contract says it costs.
    WrongCharge,
    /// Too many contributions of the site were refused lately; this one was not read.
    RateLimited,
}

impl Outcome {
    /// Every way to be refused.
    pub const REFUSALS: [Self; 12] = [
        Self::WrongShape,
        Self::OutOfRange,
        Self::WrongRound,
        Self::WrongModel,
        Self::Repeated,
        Self::Corrupt,
        Self::Unwitnessed,
        Self::TooLong,
        Self::NotFinite,
        Self::Late,
        Self::WrongCharge,
        Self::RateLimited,
    ];

    /// Its name in counters, metrics, logs and JSON; never changed, never reused.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Admitted => "admitted",
            Self::WrongShape => "wrong_shape",
            Self::OutOfRange => "out_of_range",
            Self::WrongRound => "wrong_round",
            Self::WrongModel => "wrong_model",
            Self::Repeated => "repeated",
            Self::Corrupt => "corrupt",
            Self::Unwitnessed => "unwitnessed",
            Self::TooLong => "too_long",
            Self::NotFinite => "not_finite",
            Self::Late => "late",
            Self::WrongCharge => "wrong_charge",
            Self::RateLimited => "rate_limited",
        }
    }

    /// What it means for the people of the site that sent it, and what they can do.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Admitted => "it counts",
            Self::WrongShape => {
                "it does not have the job's number of values; use the same release as the coordinator"
            }
            Self::OutOfRange => {
                "a value is outside the encoding's range; the job's step size may be too large"
            }
            Self::WrongRound => "the round does not take it from this site; it takes part again in the next",
            Self::WrongModel => "it was trained from another model than the round's",
            Self::Repeated => "the site has contributed to this round already",
            Self::Corrupt => "it arrived damaged; check the network if this goes on",
            Self::Unwitnessed => "the ledger's head that covers it did not come before it",
            Self::TooLong => "it is longer than the job allows; use the same release as the coordinator",
            Self::NotFinite => {
                "it holds floats that are no finite numbers; use the same release as the coordinator"
            }
            Self::Late => "the round closed before it came; nothing is held against the site",
            Self::WrongCharge => {
                "the ledger did not debit what the contract says; use the same release as the coordinator"
            }
            Self::RateLimited => "too much of this site was refused lately; it is read again within a minute",
        }
    }

    /// Whether more of these than a site may have in a while keep its next ones from being read. Slowness and a
    /// repetition after a lost link are no faults, and cost no reading.
    pub fn is_fault(self) -> bool {
        !matches!(self, Self::Admitted | Self::Late | Self::Repeated | Self::RateLimited)
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.label())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_a_label_of_its_own_that_is_also_its_name_in_json() {
        let labels: std::collections::BTreeSet<_> =
            Outcome::REFUSALS.iter().map(|outcome| outcome.label()).collect();
        assert_eq!(labels.len(), Outcome::REFUSALS.len());
        for outcome in Outcome::REFUSALS {
            assert_eq!(serde_json::to_string(&outcome).unwrap(), format!("\"{outcome}\""));
            assert_ne!(outcome, Outcome::Admitted);
        }
    }
}
