//! The accountant against published figures, closed forms and its own other half.

use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::privacy::Epsilon;

#[derive(Deserialize)]
struct Cell {
    noise_multiplier: f64,
    sampling_rate: f64,
    steps: u32,
    delta: f64,
    certified_lower: f64,
    certified_upper: f64,
    exact: Option<f64>,
}

#[derive(Deserialize)]
struct Published {
    cells: Vec<Cell>,
}

fn event(noise_multiplier: f64, sampling_rate: f64, steps: u32) -> GaussianEvent {
    GaussianEvent {
        noise_multiplier: NoiseMultiplier::new(noise_multiplier).unwrap(),
        sampling_rate: SamplingRate::new(sampling_rate).unwrap(),
        steps,
    }
}

fn delta(value: f64) -> Delta {
    Delta::new(value).unwrap()
}

/// What made the figures stands in the file's `source`. Unoptimised builds look at a fifth of the cells.
#[test]
fn published_figures_are_met_on_every_cell() {
    let text = include_str!("../../../tests/data/accounting.json");
    let published: Published = serde_json::from_str(text).unwrap();
    assert!(!published.cells.is_empty());
    let stride = if cfg!(debug_assertions) { 5 } else { 1 };
    for cell in published.cells.into_iter().step_by(stride) {
        let found =
            epsilon(&[event(cell.noise_multiplier, cell.sampling_rate, cell.steps)], delta(cell.delta));
        let place = format!("z {} q {} T {}", cell.noise_multiplier, cell.sampling_rate, cell.steps);
        assert!((found.upper / cell.certified_upper - 1.0).abs() < 1e-3, "{place}: {found:?}");
        assert!(found.upper >= cell.certified_lower, "{place}: {found:?}");
        assert!(found.lower <= cell.certified_upper, "{place}: {found:?}");
        assert!(found.lower >= found.upper * 0.999, "{place}: {found:?}");
        assert!(found.lower <= found.upper && found.upper <= found.renyi, "{place}: {found:?}");
        if let Some(exact) = cell.exact {
            assert!((found.upper - exact).abs() < 1e-6, "{place}: {found:?}");
        }
    }
}

/// `P(L > epsilon) - exp(epsilon) Q(L > epsilon)` in removal of one release, by the complementary error function.
fn exact_delta_of_one_release(z: f64, q: f64, epsilon: f64) -> f64 {
    let threshold = 0.5 + z * z * ((epsilon.exp() - (1.0 - q)) / q).ln();
    let above = |centre: f64| 0.5 * libm::erfc((threshold - centre) / (z * std::f64::consts::SQRT_2));
    q * above(1.0) - (epsilon.exp() - (1.0 - q)) * above(0.0)
}

#[test]
fn one_release_is_bracketed_closely() {
    for (z, q, at) in [(1.0, 0.1, 1e-3), (0.5, 0.01, 1e-4), (4.0, 0.9, 1e-6), (0.3, 0.5, 1e-9)] {
        let found = epsilon(&[event(z, q, 1)], delta(at));
        assert!(exact_delta_of_one_release(z, q, found.upper) <= at, "z {z} q {q}: {found:?}");
        assert!(exact_delta_of_one_release(z, q, found.upper * 0.999) > at, "z {z} q {q}: {found:?}");
        assert!(exact_delta_of_one_release(z, q, found.lower) >= at, "z {z} q {q}: {found:?}");
        assert!(exact_delta_of_one_release(z, q, found.lower * 1.001) < at, "z {z} q {q}: {found:?}");
    }
}

/// A release that samples next to nobody keeps the closed form from being used, and costs next to nothing.
#[test]
fn the_grid_agrees_with_the_closed_form() {
    for (z, steps, at) in [(1.0, 1, 1e-5), (5.0, 1000, 1e-6), (30.0, 100, 1e-9)] {
        let closed = epsilon(&[event(z, 1.0, steps)], delta(at));
        let grid = epsilon(&[event(z, 1.0, steps), event(10.0, 1e-12, 1)], delta(at));
        assert!(grid.upper >= closed.lower, "{grid:?} {closed:?}");
        assert!(grid.upper <= closed.upper * 1.0002, "{grid:?} {closed:?}");
        assert!(grid.lower <= closed.upper && grid.lower >= closed.lower * 0.999, "{grid:?} {closed:?}");
    }
}

#[test]
fn nothing_released_costs_nothing() {
    for events in [vec![], vec![event(1.0, 0.1, 0)]] {
        let found = epsilon(&events, delta(1e-6));
        assert_eq!((found.upper, found.lower, found.renyi), (0.0, 0.0, 0.0));
    }
}

#[test]
fn the_corners_of_the_ranges_give_ordered_figures() {
    for z in [0.1, 1e6] {
        for (q, steps) in [(1e-9, 1), (1e-9, 1_000_000), (0.5, 1), (0.5, 1_000_000), (1.0 - 1e-12, 100)] {
            for at in [1e-300, 1e-15, 0.5] {
                let found = epsilon(&[event(z, q, steps)], delta(at));
                let ordered = 0.0 <= found.lower && found.lower <= found.upper && found.upper <= found.renyi;
                assert!(ordered, "z {z} q {q} T {steps} delta {at}: {found:?}");
            }
        }
    }
}

#[test]
fn a_mixed_composition_costs_more_than_its_parts_and_less_than_their_sum() {
    let (first, second) = (event(1.5, 0.05, 300), event(6.0, 1.0, 20));
    let both = epsilon(&[first, second], delta(2e-6));
    let parts = [first, second].map(|event| epsilon(&[event], delta(1e-6)));
    assert!(both.upper <= parts[0].upper + parts[1].upper, "{both:?} {parts:?}");
    let alone = [first, second].map(|event| epsilon(&[event], delta(2e-6)));
    assert!(alone.iter().all(|alone| both.upper > alone.upper), "{both:?} {alone:?}");
}

#[test]
fn a_serialised_event_cannot_hold_a_bad_value() {
    let json = serde_json::to_string(&event(1.0, 0.1, 3)).unwrap();
    assert_eq!(serde_json::from_str::<GaussianEvent>(&json).unwrap(), event(1.0, 0.1, 3));
    assert!(serde_json::from_str::<GaussianEvent>(&json.replace("0.1", "1.5")).is_err());
}

#[test]
fn certified_noise_is_less_than_renyi_noise() {
    let (target, at) = (Epsilon::new(1.0).unwrap(), delta(1e-6));
    let solved = noise_for(target, at, SamplingRate::new(0.01).unwrap(), 1000).unwrap().value();
    assert!(renyi_epsilon(&[event(solved, 0.01, 1000)], at) > 1.0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// The true figure is monotone, and between the two; so no lower one may pass an upper one that should be above it.
    #[test]
    fn bounds_never_contradict_each_other_at_the_ends_of_the_ranges(
        ln_z in -1.2..4.6_f64, ln_q in -13.8..0.0_f64, ln_steps in 0.0..16.0_f64, ln_delta in -27.6..-6.9_f64,
        change in 1.0001..1.1_f64,
    ) {
        let (z, q, steps, at) = (ln_z.exp(), ln_q.exp().min(1.0), ln_steps.exp().ceil() as u32, ln_delta.exp());
        let bounds = epsilon(&[event(z, q, steps)], delta(at));
        prop_assert!(bounds.upper.is_finite() && bounds.lower <= bounds.upper, "{bounds:?}");
        prop_assert!(bounds.upper <= bounds.renyi, "{bounds:?}");
        let more_noise = epsilon(&[event(z * change, q, steps)], delta(at));
        let more_sampling = epsilon(&[event(z, (q * change).min(1.0), steps)], delta(at));
        let more_steps = epsilon(&[event(z, q, (f64::from(steps) * change).ceil() as u32)], delta(at));
        let more_delta = epsilon(&[event(z, q, steps)], delta(at * change));
        prop_assert!(more_noise.lower <= bounds.upper, "noise {bounds:?} {more_noise:?}");
        prop_assert!(more_sampling.upper >= bounds.lower, "sampling {bounds:?} {more_sampling:?}");
        prop_assert!(more_steps.upper >= bounds.lower, "steps {bounds:?} {more_steps:?}");
        prop_assert!(more_delta.lower <= bounds.upper, "delta {bounds:?} {more_delta:?}");
    }

    /// Several kinds of release, at sampling rates that training uses.
    #[test]
    fn mixed_compositions_are_bracketed_closely_in_any_order(
        kinds in prop::collection::vec((-0.7..2.0_f64, -6.0..0.0_f64, 1..2000_u32), 2..4), ln_delta in -16.0..-9.0_f64,
    ) {
        let mut events: Vec<GaussianEvent> =
            kinds.iter().map(|&(ln_z, ln_q, steps)| event(ln_z.exp(), ln_q.exp().min(1.0), steps)).collect();
        let found = epsilon(&events, delta(ln_delta.exp()));
        prop_assert!(found.lower >= 0.999 * found.upper && found.upper <= found.renyi, "{found:?}");
        events.reverse();
        // Split as a ledger holds it.
        events[0].steps -= 1;
        events.push(GaussianEvent { steps: 1, ..events[0] });
        let again = epsilon(&events, delta(ln_delta.exp()));
        prop_assert!((again.upper / found.upper - 1.0).abs() < 2e-4, "{found:?} {again:?}");
    }

    /// Up to the grid's width, stated in the module's documentation.
    #[test]
    fn epsilon_is_monotone_in_every_argument(
        ln_z in -0.7..3.0_f64, ln_q in -7.0..0.0_f64, ln_steps in 0.0..8.0_f64, ln_delta in -25.0..-5.0_f64,
        change in 1.0005..2.0_f64,
    ) {
        let (z, q, steps, at) = (ln_z.exp(), ln_q.exp().min(1.0), ln_steps.exp().ceil() as u32, ln_delta.exp());
        let bounds = epsilon(&[event(z, q, steps)], delta(at));
        let more_noise = epsilon(&[event(z * change, q, steps)], delta(at));
        let more_sampling = epsilon(&[event(z, (q * change).min(1.0), steps)], delta(at));
        let more_steps = epsilon(&[event(z, q, (f64::from(steps) * change).ceil() as u32)], delta(at));
        let more_delta = epsilon(&[event(z, q, steps)], delta(at * change));
        let grid = 1.0 + 1e-4;
        prop_assert!(more_noise.upper <= bounds.upper * grid, "noise {bounds:?} {more_noise:?}");
        prop_assert!(more_sampling.upper * grid >= bounds.upper, "sampling {bounds:?} {more_sampling:?}");
        prop_assert!(more_steps.upper * grid >= bounds.upper, "steps {bounds:?} {more_steps:?}");
        prop_assert!(more_delta.upper <= bounds.upper * grid, "delta {bounds:?} {more_delta:?}");
        prop_assert!(bounds.lower <= bounds.upper && bounds.upper <= bounds.renyi, "{bounds:?}");
    }
}

/// sigma = sqrt(2 ln(1.25 / delta)) / epsilon is proved for an epsilon of at most 1 (Dwork and Roth 2014,
/// theorem A.1). At 16 it gives less privacy than it says; ours is calibrated at any epsilon.
#[test]
fn noise_for_a_large_epsilon_is_not_that_of_the_formula_for_small_ones() {
    let (at, everyone) = (delta(1e-5), SamplingRate::new(1.0).unwrap());
    let textbook = |asked: f64| (2.0 * (1.25f64 / 1e-5).ln()).sqrt() / asked;
    assert!(epsilon(&[event(textbook(16.0), 1.0, 1)], at).lower > 16.0);
    for asked in [0.5, 2.0, 8.0, 16.0] {
        let asked = Epsilon::new(asked).unwrap();
        for noise in [noise_for(asked, at, everyone, 1), renyi_noise_for(asked, at, everyone, 1)] {
            let found = epsilon(&[event(noise.unwrap().value(), 1.0, 1)], at);
            assert!(found.upper <= asked.value(), "{asked:?}: {found:?}");
        }
    }
}
