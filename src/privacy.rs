//! `weighhouse privacy …`: what a plan of noised releases costs, before anyone runs it.
//!
//! Reads no data, no home and no network: numbers in, figures out. Each figure is printed with what it holds for.

use crate::output::{Format, FormatArgument, print_json, table};
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde::Serialize;
use weighhouse_shared::privacy::accountant::{
    EpsilonBounds, GaussianEvent, continuous_equivalent, epsilon, noise_for, renyi_noise_for,
    renyi_steps_for, steps_for,
};
use weighhouse_shared::privacy::{Delta, Epsilon, NoiseMultiplier, SamplingRate};

/// Neighbouring data sets, in words.
const RELATION: &str = "neighbouring data sets differ in one customer added or removed";
/// Whom a figure protects, and what it is counted in.
const UNIT: &str = "one customer at one site (every row with the same customer id); epsilon in nats";

#[derive(Debug, Subcommand)]
pub enum PrivacyVerb {
    /// Show the epsilon of a plan
    #[command(
        after_help = "Example:\n  weighhouse privacy epsilon --noise-multiplier 1 --sampling-rate 0.01 --steps 1000 --delta 1e-5"
    )]
    Epsilon {
        #[command(flatten)]
        noise: NoiseArguments,
        #[command(flatten)]
        release: ReleaseArguments,
        #[command(flatten)]
        steps: StepsArgument,
        #[command(flatten)]
        format: FormatArgument,
    },
    /// Show the least noise that keeps an epsilon
    #[command(
        after_help = "Example:\n  weighhouse privacy noise --epsilon 8 --sampling-rate 0.01 --steps 1000 --delta 1e-5"
    )]
    Noise {
        #[command(flatten)]
        target: TargetArgument,
        #[command(flatten)]
        release: ReleaseArguments,
        #[command(flatten)]
        steps: StepsArgument,
        #[command(flatten)]
        format: FormatArgument,
    },
    /// Show how many steps keep an epsilon
    #[command(
        after_help = "Example:\n  weighhouse privacy steps --epsilon 8 --noise-multiplier 1 --sampling-rate 0.01 --delta 1e-5"
    )]
    Steps {
        #[command(flatten)]
        target: TargetArgument,
        #[command(flatten)]
        noise: NoiseArguments,
        #[command(flatten)]
        release: ReleaseArguments,
        #[command(flatten)]
        format: FormatArgument,
    },
}

#[derive(Debug, Clone, Copy, Args)]
pub struct NoiseArguments {
    /// Standard deviation of the noise over the clip norm
    #[arg(long, value_name = "MULTIPLIER", allow_negative_numbers = true)]
    noise_multiplier: NoiseMultiplier,
    /// Make `upper` cover discrete Gaussian noise of this sigma, in grid steps (a training job's is the multiplier x 2^24)
    #[arg(long, value_name = "SIGMA", allow_negative_numbers = true)]
    discrete_sigma: Option<f64>,
}

#[derive(Debug, Clone, Copy, Args)]
pub struct ReleaseArguments {
    /// Probability with which each customer enters each step (Poisson); 1 for everyone in every step
    #[arg(long, value_name = "RATE", allow_negative_numbers = true)]
    sampling_rate: SamplingRate,
    /// Probability with which the epsilon may fail
    #[arg(long, allow_negative_numbers = true)]
    delta: Delta,
}

#[derive(Debug, Clone, Copy, Args)]
pub struct StepsArgument {
    /// Noised releases: a job's rounds x local steps
    #[arg(long, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
}

#[derive(Debug, Clone, Copy, Args)]
pub struct TargetArgument {
    /// Epsilon to keep
    #[arg(long, allow_negative_numbers = true)]
    epsilon: Epsilon,
}

/// What every answer says beside its figures.
#[derive(Debug, Serialize)]
struct Terms {
    relation: &'static str,
    unit: &'static str,
    holds: Holds,
}

/// What each figure is, and what it holds for.
#[derive(Debug, Serialize)]
struct Holds {
    upper: Meaning,
    lower: Meaning,
    renyi: Meaning,
}

#[derive(Debug, Serialize)]
struct Meaning {
    bound: &'static str,
    theorem: &'static str,
    choices: &'static str,
    noise: &'static str,
}

impl Terms {
    fn new(discrete: bool) -> Self {
        const FIXED: &str = "a plan fixed beforehand";
        let upper = Meaning {
            bound: "certified upper bound",
            theorem: "privacy loss distributions (connect the dots), composed; without sampling the Gaussian's exact curve",
            choices: FIXED,
            noise: if discrete { "discrete Gaussian of this sigma" } else { "continuous Gaussian" },
        };
        let lower = Meaning {
            bound: "certified lower bound: no less can be claimed",
            theorem: "privacy loss distributions, rounded down",
            choices: FIXED,
            noise: "continuous Gaussian",
        };
        let renyi = Meaning {
            bound: "upper bound; what a job's contract and the ledger use",
            theorem: "Renyi composition of the sampled Gaussian",
            choices: "also choices made in sight of earlier releases",
            noise: "discrete or continuous Gaussian",
        };
        Self { relation: RELATION, unit: UNIT, holds: Holds { upper, lower, renyi } }
    }

    fn legend(&self) -> String {
        let row = |name: &str, meaning: &Meaning| {
            let Meaning { bound, theorem, choices, noise } = meaning;
            format!("{name}: {bound}\n       by {theorem}\n       for {choices}; {noise} noise")
        };
        let Holds { upper, lower, renyi } = &self.holds;
        let rows = [row("upper", upper), row("lower", lower), row("renyi", renyi)];
        format!("relation: {}\nunit: {}\n\n{}", self.relation, self.unit, rows.join("\n"))
    }
}

/// A plan and its figures.
#[derive(Debug, Clone, Copy, Serialize)]
struct Priced {
    noise_multiplier: NoiseMultiplier,
    sampling_rate: SamplingRate,
    steps: u32,
    delta: Delta,
    /// Sigma of discrete noise that `upper` was raised for, in grid steps.
    discrete_sigma: Option<f64>,
    epsilon: EpsilonBounds,
}

impl Priced {
    /// The figures of `event`. With a `discrete_sigma`, `upper` is that of the continuous noise which the
    /// discrete one is never less private than; `lower` and `renyi` are the event's own.
    fn new(event: GaussianEvent, delta: Delta, discrete_sigma: Option<f64>) -> Result<Self> {
        let mut figures = epsilon(&[event], delta);
        if let Some(sigma) = discrete_sigma {
            let noise_multiplier = equivalent(event.noise_multiplier, Some(sigma))?;
            let covering = epsilon(&[GaussianEvent { noise_multiplier, ..event }], delta);
            // The Renyi figure holds for the discrete noise as it stands.
            figures.upper = covering.upper.max(figures.upper).min(figures.renyi);
        }
        let GaussianEvent { noise_multiplier, sampling_rate, steps } = event;
        Ok(Self { noise_multiplier, sampling_rate, steps, delta, discrete_sigma, epsilon: figures })
    }

    fn rows(&self) -> Vec<Vec<String>> {
        let EpsilonBounds { upper, lower, renyi } = self.epsilon;
        vec![vec![
            self.noise_multiplier.to_string(),
            self.sampling_rate.to_string(),
            self.steps.to_string(),
            format!("{:e}", self.delta.value()),
            rounded_up(upper),
            rounded_down(lower),
            rounded_up(renyi),
        ]]
    }
}

const COLUMNS: [&str; 7] = ["noise", "sampling", "steps", "delta", "upper", "lower", "renyi"];

/// The noise multiplier to account for in certified figures.
fn equivalent(noise_multiplier: NoiseMultiplier, discrete_sigma: Option<f64>) -> Result<NoiseMultiplier> {
    let Some(sigma) = discrete_sigma else { return Ok(noise_multiplier) };
    continuous_equivalent(noise_multiplier, sigma).with_context(|| {
        format!(
            "discrete noise of sigma {sigma} is too coarse for a certified figure; give a larger --discrete-sigma, \
             or leave it out and use the renyi figure"
        )
    })
}

/// Five significant digits, the last rounded up, so that a printed upper bound is one.
fn rounded_up(value: f64) -> String {
    significant(value, f64::ceil)
}

/// Five significant digits, the last rounded down.
fn rounded_down(value: f64) -> String {
    significant(value, f64::floor)
}

fn significant(value: f64, round: fn(f64) -> f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    if !value.is_finite() {
        return "not bounded".to_owned();
    }
    let digits = 4 - value.log10().floor() as i32;
    if digits > 9 {
        // Few digits before the exponent: a true bound, at the cost of one unit of the last.
        let scale = 10f64.powi(digits);
        return format!("{:e}", round(value * scale) / scale);
    }
    let scale = 10f64.powi(digits.max(0));
    format!("{:.*}", digits.max(0) as usize, round(value * scale) / scale)
}

/// An answer by the certified accountant and one by the Renyi accountant.
#[derive(Debug, Serialize)]
struct TwoAnswers {
    #[serde(flatten)]
    terms: Terms,
    target_epsilon: Epsilon,
    /// By the certified upper figure.
    certified: Priced,
    /// By the Renyi figure, as job contracts are made; null where no noise reaches the target.
    renyi: Option<Priced>,
}

impl TwoAnswers {
    fn print(&self, format: Format) -> Result<()> {
        match format {
            Format::Json => print_json(self)?,
            Format::Text => {
                let named = |name: &str, answer: Option<&Priced>| match answer {
                    Some(priced) => {
                        priced.rows().into_iter().map(|row| [vec![name.to_owned()], row].concat()).collect()
                    }
                    None => vec![vec![name.to_owned(), "out of reach".to_owned()]],
                };
                let rows =
                    [named("upper", Some(&self.certified)), named("renyi", self.renyi.as_ref())].concat();
                let header: Vec<&str> = std::iter::once("kept by").chain(COLUMNS).collect();
                println!("{}\n\n{}", table(&header, &rows), self.terms.legend());
            }
        }
        Ok(())
    }
}

#[derive(Debug, Serialize)]
struct OneAnswer {
    #[serde(flatten)]
    terms: Terms,
    #[serde(flatten)]
    priced: Priced,
}

pub fn run(verb: PrivacyVerb) -> Result<()> {
    match verb {
        PrivacyVerb::Epsilon { noise, release, steps, format } => {
            let NoiseArguments { noise_multiplier, discrete_sigma } = noise;
            let ReleaseArguments { sampling_rate, delta } = release;
            let event = GaussianEvent { noise_multiplier, sampling_rate, steps: steps.steps };
            let priced = Priced::new(event, delta, discrete_sigma)?;
            let answer = OneAnswer { terms: Terms::new(discrete_sigma.is_some()), priced };
            match format.format {
                Format::Json => print_json(&answer)?,
                Format::Text => {
                    println!("{}\n\n{}", table(&COLUMNS, &answer.priced.rows()), answer.terms.legend());
                }
            }
            Ok(())
        }
        PrivacyVerb::Noise { target, release, steps, format } => {
            let (ReleaseArguments { sampling_rate, delta }, StepsArgument { steps }) = (release, steps);
            let target = target.epsilon;
            let priced = |noise_multiplier| {
                Priced::new(GaussianEvent { noise_multiplier, sampling_rate, steps }, delta, None)
            };
            let certified = priced(noise_for(target, delta, sampling_rate, steps)?)?;
            let renyi = renyi_noise_for(target, delta, sampling_rate, steps).ok().map(priced).transpose()?;
            let terms = Terms::new(false);
            TwoAnswers { terms, target_epsilon: target, certified, renyi }.print(format.format)
        }
        PrivacyVerb::Steps { target, noise, release, format } => {
            let NoiseArguments { noise_multiplier, discrete_sigma } = noise;
            let ReleaseArguments { sampling_rate, delta } = release;
            let target = target.epsilon;
            let covering = equivalent(noise_multiplier, discrete_sigma)?;
            let priced = |steps| {
                Priced::new(GaussianEvent { noise_multiplier, sampling_rate, steps }, delta, discrete_sigma)
            };
            // The Renyi figure holds for discrete noise at its own multiplier, and may allow more there.
            let by_renyi = renyi_steps_for(target, delta, noise_multiplier, sampling_rate);
            let certified = priced(steps_for(target, delta, covering, sampling_rate).max(by_renyi))?;
            let renyi = Some(priced(by_renyi)?);
            let terms = Terms::new(discrete_sigma.is_some());
            TwoAnswers { terms, target_epsilon: target, certified, renyi }.print(format.format)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_bounds_are_rounded_outwards() {
        assert_eq!(
            (rounded_up(1.826_41), rounded_down(1.826_49)),
            ("1.8265".to_owned(), "1.8264".to_owned())
        );
        assert_eq!(
            (rounded_up(123_456.7), rounded_down(123_456.7)),
            ("123457".to_owned(), "123456".to_owned())
        );
        assert_eq!((rounded_up(0.0), rounded_up(f64::INFINITY)), ("0".to_owned(), "not bounded".to_owned()));
        assert_eq!(rounded_up(1.234_561e-9), "1.2346e-9");
    }
}
