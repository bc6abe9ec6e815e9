//! What a chain's branches have in common and what sets one apart: enters a generator, leave [`Chain`] and
//! [`Locale`].
//!
//! It promises weights, mixes and tastes that differ from branch to branch around those of the chain.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::draw::{gamma, lognormal, normal, shares};

/// Product categories, in four departments in a row: fresh, pantry, frozen, household.
pub const CATEGORIES: usize = 24;
pub const DEPARTMENTS: usize = 4;
pub const IN_DEPARTMENT: usize = CATEGORIES / DEPARTMENTS;
/// Weeks simulated; the first campaign comes after [`WARM_UP`] weeks, then one every [`CAMPAIGN_EVERY`].
pub const WEEKS: usize = 44;
pub const WARM_UP: usize = 13;
const CAMPAIGN_EVERY: usize = 4;

/// What makes a shopper respond: the chain's weight of each driver, in log odds a driver's unit (about one
/// standard deviation), and the standard deviation of a branch's deviation from it.
pub const DRIVERS: [(f64, f64); 12] = [
    (0.90, 0.15),  // liking of coupons, seen only through what the shopper clicks, scans and buys
    (0.50, 0.15),  // appetite for the campaign's focus categories
    (0.40, 0.12),  // visits in the last month
    (-0.35, 0.12), // weeks since the last visit
    (0.45, 0.12),  // a personal mailing rather than a leaflet
    (0.35, 0.12),  // depth of the discount
    (0.40, 0.18),  // age
    (-0.45, 0.18), // income
    (0.30, 0.18),  // children
    (-0.35, 0.15), // distance
    (-0.30, 0.09), // offers received before: fatigue
    (0.35, 0.15),  // share of fresh food
];
/// Log odds of a response with every driver at 0, and its standard deviation over branches.
const BASE: (f64, f64) = (-2.6, 0.5);

/// A kind of household: what its members have in common, whatever their branch.
pub struct Kind {
    pub trips_a_week: f64,
    pub coupon_liking: f64,
    /// Means, in bands 0 to 5.
    pub age: f64,
    pub income: f64,
    /// Probability that there are children, at most three.
    pub children: f64,
    /// Log appetite for each department.
    pub appetite: [f64; DEPARTMENTS],
}

/// Singles, couples, families and pensioners.
#[rustfmt::skip]
pub const KINDS: [Kind; 4] = [
    Kind { trips_a_week: 0.8, coupon_liking: -0.5, age: 1.0, income: 2.2, children: 0.05, appetite: [-0.1, 0.0, 0.6, -0.3] },
    Kind { trips_a_week: 1.2, coupon_liking: 0.0, age: 2.4, income: 3.4, children: 0.10, appetite: [0.4, 0.0, 0.0, 0.0] },
    Kind { trips_a_week: 2.0, coupon_liking: 0.5, age: 2.2, income: 2.6, children: 0.90, appetite: [0.0, 0.3, 0.2, 0.3] },
    Kind { trips_a_week: 1.6, coupon_liking: 0.2, age: 4.3, income: 1.6, children: 0.02, appetite: [0.3, 0.2, -0.4, 0.0] },
];

/// A coupon campaign of the chain.
pub struct Campaign {
    /// Sent before this week's shopping, counted from 0.
    pub week: usize,
    pub is_personal: bool,
    pub discount: f64,
    /// Its six focus categories.
    pub focus: [bool; CATEGORIES],
}

/// What all branches share.
pub struct Chain {
    /// Popularity of each category with each kind of household; sums to 1 over categories.
    pub tastes: [[f64; CATEGORIES]; KINDS.len()],
    /// Categories at a reduced price, by week.
    pub promoted: Vec<[bool; CATEGORIES]>,
    pub calendar: Vec<Campaign>,
}

impl Chain {
    /// Draws what all branches share.
    pub fn draw(rng: &mut ChaCha8Rng) -> Self {
        let popularity: [f64; CATEGORIES] = std::array::from_fn(|_| lognormal(0.4, rng));
        let tastes = std::array::from_fn(|kind| {
            let appetite = &KINDS[kind].appetite;
            shares(std::array::from_fn(|category| {
                popularity[category] * appetite[category / IN_DEPARTMENT].exp() * lognormal(0.3, rng)
            }))
        });
        let promoted = (0..WEEKS).map(|_| std::array::from_fn(|_| rng.random_bool(0.2))).collect();
        let calendar = (WARM_UP..WEEKS)
            .step_by(CAMPAIGN_EVERY)
            .map(|week| Campaign {
                week,
                is_personal: rng.random_bool(0.4),
                discount: rng.random_range(0.15..0.45),
                focus: {
                    let mut focus = [false; CATEGORIES];
                    rand::seq::index::sample(rng, CATEGORIES, 6)
                        .into_iter()
                        .for_each(|category| focus[category] = true);
                    focus
                },
            })
            .collect();
        Self { tastes, promoted, calendar }
    }
}

/// What makes a branch unlike the others.
pub struct Locale {
    pub shoppers: usize,
    /// Share of each kind of household.
    pub mix: [f64; KINDS.len()],
    /// Factor on the popularity of each category.
    pub taste: [f64; CATEGORIES],
    /// Factors on prices and on trips.
    pub price: f64,
    pub trips: f64,
    /// Typical distance of a shopper's home, km.
    pub distance: f64,
    /// Log odds with every driver at 0, and a weight a driver: the chain's plus this branch's deviation.
    pub base: f64,
    pub weights: [f64; DRIVERS.len()],
}

impl Locale {
    /// Draws one branch of any chain.
    pub fn draw(rng: &mut ChaCha8Rng) -> Self {
        Self {
            shoppers: (140.0 * lognormal(0.6, rng)).clamp(40.0, 480.0) as usize,
            mix: shares(std::array::from_fn(|_| gamma(1.5, rng))),
            taste: std::array::from_fn(|_| lognormal(0.4, rng)),
            price: lognormal(0.1, rng),
            trips: lognormal(0.15, rng),
            distance: rng.random_range(1.0..5.0),
            base: BASE.0 + normal(BASE.1, rng),
            weights: DRIVERS.map(|(weight, spread)| weight + normal(spread, rng)),
        }
    }
}
