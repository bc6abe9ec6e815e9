//! One shopper: enters a chain and a branch's locale, leave weekly baskets and the answers to the chain's
//! offers.
//!
//! It promises that features show only what lies before the offer, and never the liking of coupons itself.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::FEATURES;
use super::chain::{CATEGORIES, Chain, DEPARTMENTS, IN_DEPARTMENT, KINDS, Locale, WARM_UP, WEEKS};
use super::draw::{gamma, logistic, lognormal, normal, pick, poisson, shares};

/// What one shopper bought in one week.
pub struct Week {
    trips: f64,
    spend: f64,
    items: [u32; CATEGORIES],
    promoted_items: u32,
}

/// A household, with what its branch can see of it and what it cannot.
pub struct Shopper {
    age: f64,
    income: f64,
    size: f64,
    has_children: bool,
    distance: f64,
    uses_app: bool,
    /// From here on unseen; about standard normal.
    coupon_liking: f64,
    trips_a_week: f64,
    /// Sums to 1 over categories.
    taste: [f64; CATEGORIES],
    /// The week from which this household mostly shops elsewhere.
    lapses_in: usize,
}

impl Shopper {
    /// Draws a household of a branch.
    pub fn draw(chain: &Chain, locale: &Locale, rng: &mut ChaCha8Rng) -> Self {
        let kind_index = pick(&locale.mix, rng);
        let kind = &KINDS[kind_index];
        let has_children = rng.random_bool(kind.children);
        let children = if has_children { rng.random_range(1..=3) } else { 0 };
        let appetite = std::array::from_fn(|k| chain.tastes[kind_index][k] * locale.taste[k]);
        Self {
            age: (kind.age + normal(0.9, rng)).round().clamp(0.0, 5.0),
            income: (kind.income + normal(1.3, rng)).round().clamp(0.0, 5.0),
            size: f64::from(1 + children + i32::from(rng.random_bool(0.6))),
            has_children,
            distance: (locale.distance * lognormal(0.6, rng)).min(10.0),
            uses_app: rng.random_bool(0.55),
            coupon_liking: kind.coupon_liking + normal(0.9, rng),
            trips_a_week: (kind.trips_a_week * locale.trips * gamma(1.8, rng) / 1.8).clamp(0.1, 6.0),
            taste: shares(shares(appetite).map(|share| gamma(50.0 * share, rng))),
            lapses_in: if rng.random_bool(0.25) { rng.random_range(WARM_UP..WEEKS + WARM_UP) } else { WEEKS },
        }
    }

    /// Fills this shopper's baskets of all weeks.
    pub fn shop(&self, chain: &Chain, locale: &Locale, rng: &mut ChaCha8Rng) -> Vec<Week> {
        let steered = 0.45 * logistic(self.coupon_liking - 0.3);
        (0..WEEKS)
            .map(|week| {
                let pace = if week < self.lapses_in { 1.0 } else { 0.2 };
                let trips = poisson(pace * self.trips_a_week * gamma(2.0, rng) / 2.0, rng);
                let mut bought = Week { trips, spend: 0.0, items: [0; CATEGORIES], promoted_items: 0 };
                for _ in 0..poisson(trips * (3.0 + 1.2 * self.size), rng) as usize {
                    let mut category = pick(&self.taste, rng);
                    if !chain.promoted[week][category] && rng.random_bool(steered) {
                        category = pick(&self.taste, rng);
                    }
                    let is_promoted = chain.promoted[week][category];
                    bought.items[category] += 1;
                    bought.promoted_items += u32::from(is_promoted);
                    bought.spend +=
                        locale.price * (1.5 + (category % 5) as f64) * if is_promoted { 0.75 } else { 1.0 };
                }
                bought
            })
            .collect()
    }

    /// The offers that reach this shopper: features at that time, and whether the shopper responds.
    pub fn answer(
        &self,
        weeks: &[Week],
        chain: &Chain,
        locale: &Locale,
        rng: &mut ChaCha8Rng,
    ) -> Vec<([f64; FEATURES.len()], bool)> {
        let mut answers: Vec<([f64; FEATURES.len()], bool)> = Vec::new();
        for campaign in &chain.calendar {
            if !rng.random_bool(if campaign.is_personal { 0.28 } else { 0.42 }) {
                continue;
            }
            let seen = Summary::of(&weeks[..campaign.week], &campaign.focus);
            let offers_before = answers.len() as f64;
            let responses_before = answers.iter().filter(|(_, responded)| *responded).count() as f64;
            // In the order of `DRIVERS`, each brought to about mean 0 and standard deviation 1.
            let drivers = [
                self.coupon_liking,
                (seen.focus_share - 0.25) / 0.12,
                (seen.trips_4w.ln_1p() - 0.8) / 0.45,
                seen.weeks_since_visit / 2.0,
                if campaign.is_personal { 1.0 } else { -1.0 },
                (campaign.discount - 0.3) / 0.09,
                (self.age - 2.4) / 1.5,
                (self.income - 2.4) / 1.4,
                if self.has_children { 1.0 } else { -0.4 },
                (self.distance - 3.0) / 2.0,
                (offers_before - 1.5) / 1.2,
                (seen.department_shares[0] - 0.27) / 0.12,
            ];
            let log_odds =
                locale.base + drivers.iter().zip(locale.weights).map(|(d, weight)| d * weight).sum::<f64>();
            let responded = rng.random_bool(logistic(log_odds));
            let engaged = |rate: f64, rng: &mut ChaCha8Rng| {
                poisson((0.7 * self.coupon_liking + normal(0.6, rng)).exp() * rate, rng).ln_1p()
            };
            let values = [
                seen.weeks_since_visit,
                seen.trips_4w,
                seen.trips_12w,
                seen.spend_4w.ln_1p(),
                seen.spend_12w.ln_1p(),
                seen.spend_4w.ln_1p() - seen.spend_12w.ln_1p(),
                seen.active_weeks_12w,
                seen.items_a_trip,
                seen.categories_12w,
                seen.department_shares[0],
                seen.department_shares[2],
                seen.department_shares[3],
                seen.promoted_share,
                seen.focus_share,
                seen.focus_categories,
                seen.weeks_since_focus,
                offers_before,
                responses_before,
                if self.uses_app { engaged(4.0, rng) } else { 0.0 },
                engaged(0.8, rng),
                engaged(0.8, rng),
                self.age,
                self.income,
                self.size,
                f64::from(self.has_children),
                self.distance,
                f64::from(campaign.is_personal),
                campaign.discount,
            ];
            let features = std::array::from_fn(|i| values[i].clamp(FEATURES[i].min, FEATURES[i].max));
            answers.push((features, responded));
        }
        answers
    }
}

/// A shopper's last 12 weeks as a branch sees them when it makes an offer.
struct Summary {
    weeks_since_visit: f64,
    trips_4w: f64,
    trips_12w: f64,
    spend_4w: f64,
    spend_12w: f64,
    active_weeks_12w: f64,
    items_a_trip: f64,
    categories_12w: f64,
    department_shares: [f64; DEPARTMENTS],
    promoted_share: f64,
    focus_share: f64,
    focus_categories: f64,
    weeks_since_focus: f64,
}

impl Summary {
    /// Sums up the last 12 of `weeks`, oldest first; shares are 0 for a shopper without items.
    fn of(weeks: &[Week], focus: &[bool; CATEGORIES]) -> Self {
        let quarter = &weeks[weeks.len() - 12..];
        let month = &weeks[weeks.len() - 4..];
        let trips: f64 = quarter.iter().map(|week| week.trips).sum();
        let bought: [u32; CATEGORIES] =
            std::array::from_fn(|k| quarter.iter().map(|week| week.items[k]).sum());
        let items = f64::from(bought.iter().sum::<u32>().max(1));
        let in_focus = |items: &[u32; CATEGORIES]| -> u32 {
            (0..CATEGORIES).filter(|&k| focus[k]).map(|k| items[k]).sum()
        };
        let since = |holds: &dyn Fn(&Week) -> bool| {
            quarter.iter().rev().take_while(|week| !holds(week)).count() as f64
        };
        Self {
            weeks_since_visit: since(&|week| week.trips > 0.0),
            trips_4w: month.iter().map(|week| week.trips).sum::<f64>() / 4.0,
            trips_12w: trips / 12.0,
            spend_4w: month.iter().map(|week| week.spend).sum::<f64>() / 4.0,
            spend_12w: quarter.iter().map(|week| week.spend).sum::<f64>() / 12.0,
            active_weeks_12w: quarter.iter().filter(|week| week.trips > 0.0).count() as f64 / 12.0,
            items_a_trip: items / trips.max(1.0),
            categories_12w: bought.iter().filter(|&&items| items > 0).count() as f64 / CATEGORIES as f64,
            department_shares: std::array::from_fn(|department| {
                let first = department * IN_DEPARTMENT;
                f64::from(bought[first..first + IN_DEPARTMENT].iter().sum::<u32>()) / items
            }),
            promoted_share: quarter.iter().map(|week| f64::from(week.promoted_items)).sum::<f64>() / items,
            focus_share: f64::from(in_focus(&bought)) / items,
            focus_categories: (0..CATEGORIES).filter(|&k| focus[k] && bought[k] > 0).count() as f64 / 6.0,
            weeks_since_focus: since(&|week| in_focus(&week.items) > 0),
        }
    }
}
