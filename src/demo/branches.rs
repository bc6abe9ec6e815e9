//! The demo's made-up branches: enters a count and a seed, leaves a table of coupon offers a branch.
//!
//! Every number is drawn from the seed; nothing here comes from a real shop. A chain has four kinds of
//! household, 24 product categories and a calendar of coupon campaigns. A branch has its own mix of
//! households, tastes, prices and size. A shopper fills weekly baskets; each campaign then reaches some
//! shoppers, and whether one responds depends on [`chain::DRIVERS`], with a weight that is the chain's plus
//! a deviation of the branch. Much of the chain's part is spread thin over many features, so one branch
//! alone learns poorly what all branches learn well.
//!
//! Calibration, 12 branches, logistic regression, test AUC, mean over seeds 1 to 6. On the test offers of
//! all branches: pooled without privacy 0.826, one branch alone 0.757, site mode at epsilon 8 / 3 / 1 0.805
//! / 0.799 / 0.766. On a branch's own test offers: the pooled model 0.803, the branch's own 0.770.
//!
//! What it promises: the same arguments give the same tables; branch `i` does not depend on how many others
//! there are; a shopper is in the training or the test offers of one branch, never in both; features
//! respect [`FEATURES`].

mod chain;
mod draw;
mod shopper;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use chain::{Chain, Locale};
use shopper::Shopper;

/// A feature's column name and its public bounds, in the column's unit; values are clamped to them.
pub struct Feature {
    /// Name of the column.
    pub column: &'static str,
    /// Least value.
    pub min: f64,
    /// Greatest value.
    pub max: f64,
}

const fn feature(column: &'static str, min: f64, max: f64) -> Feature {
    Feature { column, min, max }
}

/// The features of an offer in column order. "4w" and "12w" are the weeks before the offer. Spend is
/// `ln(1 + currency a week)`, trips are a week, shares are of items; app opens, clicks and scans are
/// `ln(1 + count)`.
pub const FEATURES: [Feature; 28] = [
    feature("weeks_since_visit", 0.0, 6.0),
    feature("trips_4w", 0.0, 4.0),
    feature("trips_12w", 0.0, 4.0),
    feature("log_spend_4w", 0.0, 5.0),
    feature("log_spend_12w", 1.0, 5.0),
    feature("spend_trend", -1.5, 1.5),
    feature("active_weeks_12w", 0.0, 1.0),
    feature("items_a_trip", 2.0, 10.0),
    feature("categories_12w", 0.0, 1.0),
    feature("fresh_share", 0.0, 0.6),
    feature("frozen_share", 0.0, 0.5),
    feature("household_share", 0.0, 0.5),
    feature("promoted_share", 0.0, 0.5),
    feature("focus_share", 0.0, 0.6),
    feature("focus_categories", 0.0, 1.0),
    feature("weeks_since_focus", 0.0, 12.0),
    feature("offers_before", 0.0, 5.0),
    feature("responses_before", 0.0, 2.0),
    feature("app_opens", 0.0, 3.5),
    feature("newsletter_clicks", 0.0, 2.5),
    feature("shelf_scans", 0.0, 2.5),
    feature("age_band", 0.0, 5.0),
    feature("income_band", 0.0, 5.0),
    feature("household_size", 1.0, 6.0),
    feature("has_children", 0.0, 1.0),
    feature("distance_km", 0.0, 10.0),
    feature("is_personal", 0.0, 1.0),
    feature("discount", 0.1, 0.5),
];

/// One shopper offered one campaign.
#[derive(Debug, Clone, PartialEq)]
pub struct Offer {
    /// The shopper, unique over all branches.
    pub customer_id: String,
    /// Values of [`FEATURES`], in order and within their bounds.
    pub features: [f64; FEATURES.len()],
    /// Whether the shopper redeemed a coupon of the campaign.
    pub responded: bool,
}

/// The offers of one branch, three quarters of its shoppers in `train` and the others in `test`.
#[derive(Debug, Clone, PartialEq)]
pub struct Branch {
    /// `branch-01` and on.
    pub name: String,
    /// Offers to learn from.
    pub train: Vec<Offer>,
    /// Offers to shoppers that are not in `train`.
    pub test: Vec<Offer>,
}

/// Draws `count` branches from `seed`. A branch has 40 to 480 shoppers (about 165 in the mean) with up to 8
/// offers each.
pub fn branches(count: usize, seed: u64) -> Vec<Branch> {
    let chain = Chain::draw(&mut stream(seed, 0));
    (1..=count)
        .map(|number| {
            let rng = &mut stream(seed, number as u64);
            let locale = Locale::draw(rng);
            let mut branch =
                Branch { name: format!("branch-{number:02}"), train: Vec::new(), test: Vec::new() };
            for index in 0..locale.shoppers {
                let shopper = Shopper::draw(&chain, &locale, rng);
                let weeks = shopper.shop(&chain, &locale, rng);
                let split = if index % 4 == 3 { &mut branch.test } else { &mut branch.train };
                for (features, responded) in shopper.answer(&weeks, &chain, &locale, rng) {
                    split.push(Offer { customer_id: format!("{number:02}-{index:04}"), features, responded });
                }
            }
            branch
        })
        .collect()
}

/// The schema of the offers as the TOML that a job names: label, features and their public bounds.
pub fn synthetic_schema() -> String {
    let mut toml = String::from(
        "# The demo's made-up branches: one row is one shopper offered one coupon campaign; `responded` is 1 if it\n\
         # redeemed a coupon. `min` and `max` are public constants, in the units of the column, to which values are clamped.\n\
         name = \"branches\"\ncustomer = \"customer_id\"\n\n[label]\ncolumn = \"responded\"\nkind = \"binary\"\n",
    );
    for Feature { column, min, max } in &FEATURES {
        toml += &format!("\n[[features]]\ncolumn = \"{column}\"\nmin = {min:?}\nmax = {max:?}\n");
    }
    toml
}

/// The generator of one branch (from 1 on) or of the chain (0): the streams of a seed never overlap.
fn stream(seed: u64, number: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(number);
    rng
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::Path;

    use super::*;

    const SEEDS: [u64; 3] = [1, 2, 3];

    fn offers(branch: &Branch) -> impl Iterator<Item = &Offer> {
        branch.train.iter().chain(&branch.test)
    }

    fn shoppers(offers: &[Offer]) -> HashSet<&str> {
        offers.iter().map(|offer| offer.customer_id.as_str()).collect()
    }

    /// Greatest and least of `values`.
    fn extremes(values: impl Iterator<Item = f64>) -> (f64, f64) {
        values.fold((f64::MIN, f64::MAX), |(most, least), value| (most.max(value), least.min(value)))
    }

    #[test]
    fn the_same_seed_gives_the_same_branches_however_many_there_are() {
        let three = branches(3, 7);
        assert_eq!(three, branches(3, 7));
        assert_eq!(three, branches(5, 7)[..3]);
        assert_ne!(three, branches(3, 8));
    }

    #[test]
    fn branches_are_unlike_in_size_response_and_mix() {
        for seed in SEEDS {
            let branches = branches(12, seed);
            let mean = |branch: &Branch, of: &dyn Fn(&Offer) -> f64| {
                offers(branch).map(of).sum::<f64>() / offers(branch).count() as f64
            };
            let age = FEATURES.iter().position(|feature| feature.column == "age_band").expect("a column");
            let size = branches
                .iter()
                .map(|branch| (shoppers(&branch.train).len() + shoppers(&branch.test).len()) as f64);
            let response = branches.iter().map(|branch| mean(branch, &|offer| f64::from(offer.responded)));
            let mix = branches.iter().map(|branch| mean(branch, &|offer| offer.features[age]));
            let (most, least) = extremes(size);
            assert!(most > 3.0 * least, "seed {seed}: {least} to {most} shoppers");
            let (most, least) = extremes(response);
            assert!(most > 2.0 * least && least > 0.0, "seed {seed}: response from {least} to {most}");
            let (most, least) = extremes(mix);
            assert!(most > least + 0.7, "seed {seed}: mean age band from {least} to {most}");
        }
    }

    #[test]
    fn a_shopper_is_in_the_training_or_the_test_offers_of_one_branch() {
        for seed in SEEDS {
            let branches = branches(12, seed);
            let mut seen = HashSet::new();
            for side in branches.iter().flat_map(|branch| [&branch.train, &branch.test]) {
                for shopper in shoppers(side) {
                    assert!(seen.insert(shopper), "seed {seed}: {shopper} is on two sides");
                }
            }
        }
    }

    #[test]
    fn every_value_is_within_its_public_bounds_and_no_feature_is_constant() {
        for seed in SEEDS {
            let branches = branches(12, seed);
            for (column, Feature { column: name, min, max }) in FEATURES.iter().enumerate() {
                let values = branches.iter().flat_map(offers).map(|offer| offer.features[column]);
                let (most, least) = extremes(values);
                assert!(
                    *min <= least && least < most && most <= *max,
                    "seed {seed}: {name} from {least} to {most}"
                );
            }
        }
    }

    #[test]
    fn the_shipped_schema_is_the_generated_one() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/branches.schema.toml");
        let shipped = std::fs::read_to_string(&path).expect("the schema is shipped");
        assert_eq!(shipped, synthetic_schema(), "{} is out of date", path.display());
        toml::from_str::<toml::Table>(&shipped).expect("the schema is TOML");
    }
}
