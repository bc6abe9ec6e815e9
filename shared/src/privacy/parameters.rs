//! The numbers a privacy claim is made of, as types that cannot hold a bad value.
//!
//! Each type's constructor and its `Deserialize` share one check, so a value that came from a job
//! file, a ledger or the network obeys the same range as one written in code.

use serde::{Deserialize, Serialize};

/// Why a number is not a privacy parameter.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("{name} must be {range}, got {got}")]
pub struct OutOfRange {
    name: &'static str,
    range: &'static str,
    got: f64,
}

macro_rules! parameter {
    ($(#[$doc:meta])* $type:ident, $name:literal, $range:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
        #[serde(try_from = "f64", into = "f64")]
        pub struct $type(f64);

        impl $type {
            #[doc = concat!("Checks that `value` is ", $range, ".")]
            pub fn new(value: f64) -> Result<Self, OutOfRange> {
                let check: fn(f64) -> bool = $check;
                if value.is_finite() && check(value) {
                    Ok(Self(value))
                } else {
                    Err(OutOfRange { name: $name, range: $range, got: value })
                }
            }

            /// The number itself.
            pub const fn value(self) -> f64 {
                self.0
            }
        }

        impl TryFrom<f64> for $type {
            type Error = OutOfRange;
            fn try_from(value: f64) -> Result<Self, OutOfRange> {
                Self::new(value)
            }
        }

        impl From<$type> for f64 {
            fn from(parameter: $type) -> f64 {
                parameter.0
            }
        }

        impl std::str::FromStr for $type {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                let value: f64 = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
                Self::new(value).map_err(|error| error.to_string())
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

parameter!(
    /// Privacy loss, in nats: outcomes are at most `exp(epsilon)` times as likely with one customer
    /// more or less, but for a probability of [`Delta`].
    Epsilon, "epsilon", "above 0 and at most 1000", |value| value > 0.0 && value <= 1000.0
);
parameter!(
    /// Probability with which the [`Epsilon`] bound may fail.
    Delta, "delta", "above 0 and below 1", |value| value > 0.0 && value < 1.0
);
parameter!(
    /// L2 norm to which one customer's gradient is clipped, in units of the loss gradient.
    ClipNorm, "clip norm", "from 1e-6 to 1e6", |value| (1e-6..=1e6).contains(&value)
);
parameter!(
    /// Standard deviation of the noise divided by the L2 sensitivity of what it is added to.
    NoiseMultiplier, "noise multiplier", "from 0.1 to 1e6", |value| (0.1..=1e6).contains(&value)
);
parameter!(
    /// Probability with which each customer is in a batch, independently of all others (Poisson sampling).
    SamplingRate, "sampling rate", "above 0 and at most 1", |value| value > 0.0 && value <= 1.0
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_out_of_range_cannot_be_built_or_deserialised() {
        for bad in ["-1.0", "0.0", "1e300"] {
            assert!(serde_json::from_str::<Epsilon>(bad).is_err(), "{bad}");
            assert!(bad.parse::<Epsilon>().is_err(), "{bad}");
        }
        assert!(Epsilon::new(f64::NAN).is_err());
        assert!(SamplingRate::new(1.0).is_ok());
        assert!(SamplingRate::new(1.0 + 1e-12).is_err());
        assert!(Delta::new(1.0).is_err());
    }
}
