use super::*;
use crate::identity::Identity;
use crate::policy::first_policy;
use crate::privacy::grid::Grid;
use crate::privacy::{ClipNorm, Epsilon};

const JOB: JobId = JobId::from_bytes([3; 32]);

fn event(noise: f64, rate: f64, steps: u32) -> GaussianEvent {
    GaussianEvent {
        noise_multiplier: NoiseMultiplier::new(noise).unwrap(),
        sampling_rate: SamplingRate::new(rate).unwrap(),
        steps,
    }
}

fn delta() -> Delta {
    Delta::new(1e-5).unwrap()
}

/// A ledger of one job with `rounds` rounds, a day apart, under a policy that `change` made; its last round crashed.
fn ledger(rounds: u32, rate: f64, change: impl Fn(String) -> String) -> Audited {
    let grid = Grid::new(ClipNorm::new(0.5).unwrap());
    ledger_of(rounds, rate, change, |noise| Mechanism::clipped_gradient_sum(&grid, noise))
}

/// The same, each debit for what `drawn` makes of its noise multiplier.
fn ledger_of(
    rounds: u32,
    rate: f64,
    change: impl Fn(String) -> String,
    drawn: impl Fn(NoiseMultiplier) -> Mechanism,
) -> Audited {
    let identity = Identity::generate().unwrap();
    let one = Charge { population: Population::Training, event: event(5.0, rate, 1) };
    let all = Charge { event: GaussianEvent { steps: rounds, ..one.event }, ..one };
    let mechanism = drawn(one.event.noise_multiplier);
    let text = change(first_policy(Epsilon::new(8.0).unwrap(), delta()));
    let mut bodies = vec![
        Body::Opened {
            public_key: HEXLOWER.encode(&identity.public_key()),
            holdout_permille: 150,
            policy: PolicyText::unsigned(text),
        },
        Body::Reserved { job: JOB, name: "spring coupons".into(), charges: vec![all] },
    ];
    for round in 0..rounds {
        let (job, round, debit) = (JOB, RoundId(round), bodies.len() as u64);
        bodies.push(Body::Debited { job, round, charge: one, mechanism });
        if round.0 + 1 < rounds {
            let (kind, content) = (ReleaseKind::Update, ContentHash::of(&round.0.to_le_bytes()));
            bodies.push(Body::Released { job, round, kind, debit, content, len: 100 });
        }
    }
    let (mut chain, mut file) = (Chain::default(), Vec::new());
    for (index, body) in bodies.into_iter().enumerate() {
        let (next, _, line) = chain.next(body, &identity, 1_000 * DAY_S + index as u64 / 2 * DAY_S).unwrap();
        chain = next;
        file.extend_from_slice(line.as_bytes());
    }
    Audited::read(&file, |_| ()).unwrap()
}

#[test]
fn a_report_names_each_release_with_its_cost_and_adds_up_by_job() {
    let audited = ledger(4, 1.0, |text| text);
    let report = audited.report(None).unwrap();
    assert_eq!((report.entries, report.releases.len(), report.jobs.len()), (9, 3, 1));
    let (job, last) = (&report.jobs[0], &report.releases[2]);
    assert_eq!((job.updates, job.bytes, job.wasted, job.running), (3, 300, 1, true));
    assert_eq!((last.line, last.round, last.name.as_str()), (8, RoundId(2), "spring coupons"));
    let paid = accountant::renyi_epsilon(&[event(5.0, 1.0, 4)], delta());
    assert!((report.spent.spent / paid - 1.0).abs() < 1e-12 && (job.epsilon / paid - 1.0).abs() < 1e-12);
    assert!(last.epsilon_after < report.spent.spent);
    assert_eq!(report.curve.last().unwrap().1, report.spent.spent);
}

#[test]
fn the_certified_figures_are_those_of_slightly_less_noise_and_below_the_renyi_figure() {
    for rate in [1.0, 0.1] {
        let audited = ledger(6, rate, |text| text);
        let report = audited.report(None).unwrap();
        let discrete = accountant::epsilon(&[event(5.0, rate, 6)], delta());
        let Figures { renyi, certified_upper, certified_lower } = report.lifetime;
        assert!(certified_lower <= discrete.upper && discrete.lower <= certified_upper);
        assert!(certified_lower > 0.0 && certified_lower <= certified_upper && certified_upper < renyi);
        assert!((renyi / report.spent.spent - 1.0).abs() < 1e-12);
    }
}

#[test]
fn a_customer_at_several_sites_is_charged_for_all_of_them() {
    let audited = ledger(3, 1.0, |text| text.replace("max_sites = 1", "max_sites = 4"));
    let report = audited.report(None).unwrap();
    let four = accountant::renyi_epsilon(&[event(5.0, 1.0, 12)], delta());
    assert!((report.at_max_sites.renyi / four - 1.0).abs() < 1e-12);
    assert!(report.guarantee().iter().any(|words| words.contains("at 4 sites")));
}

#[test]
fn with_a_period_the_curve_falls_again_and_the_words_say_both_figures() {
    let audited = ledger(4, 1.0, |text| text.replace("# period_days = 365", "period_days = 10"));
    let report = audited.report(Some(1_030 * DAY_S)).unwrap();
    assert_eq!((report.spent.spent, report.period.renyi), (0.0, 0.0));
    assert!(report.spent.lifetime > 0.0 && report.lifetime.renyi == report.spent.lifetime);
    let highest = report.curve.iter().map(|(_, epsilon)| *epsilon).fold(0.0, f64::max);
    assert_eq!((highest, report.curve.last().unwrap().1), (report.spent.lifetime, 0.0));
    let words = report.guarantee().join(" ");
    assert!(
        words.contains("In the last 10 days, nothing left") && words.contains("since the ledger"),
        "{words}"
    );
}

#[test]
fn the_odds_in_words_are_rounded_against_the_site() {
    assert_eq!((factor(1.0).as_str(), certainty(1.0).as_str()), ("2.72", "73.11 %"));
    assert_eq!((factor(8.0).as_str(), certainty(8.0).as_str()), ("2981", "99.97 %"));
    assert_eq!((short(0.5).as_str(), short(0.500_1).as_str()), ("0.500", "0.501"));
    assert_eq!(
        (factor(f64::INFINITY).as_str(), certainty(40.0).as_str()),
        ("without bound", "more than 99.99 %")
    );
}

#[test]
fn many_kinds_of_events_are_rounded_together_on_the_costlier_side() {
    let kinds: Vec<GaussianEvent> = (0..500)
        .map(|index| event(3.0 + f64::from(index) / 100.0, 0.01 + f64::from(index) / 1e5, 2))
        .collect();
    let few = coarsened(kinds.clone(), MAX_KINDS);
    assert!(few.len() <= MAX_KINDS);
    assert_eq!(few.iter().map(|event| event.steps).sum::<u32>(), 1000);
    let (exact, rounded) =
        (accountant::renyi_epsilon(&kinds, delta()), accountant::renyi_epsilon(&few, delta()));
    assert!(rounded >= exact && rounded < 2.0 * exact, "{rounded} for {exact}");
    let extreme = [event(0.1, 1e-300, 1), event(1e6, 0.5, u32::MAX), event(0.3, 1.0, 1)];
    assert!(coarsened(extreme.to_vec(), 2).len() <= 2);
}

#[test]
fn an_empty_ledger_has_no_report() {
    assert!(Audited::read(b"", |_| ()).unwrap().report(None).is_none());
}

/// Of 16 honest shares one alone has a quarter of the noise: sixteen times the loss, about.
#[test]
fn a_report_of_secure_sums_says_what_the_sites_own_shares_alone_still_promise() {
    assert_eq!(ledger(4, 1.0, |text| text).report(None).unwrap().without_masks, None);
    let clip = ClipNorm::new(0.5).unwrap();
    let audited = ledger_of(4, 1.0, |text| text, |noise| Mechanism::noise_share(clip, 10, 30, 16, noise));
    let report = audited.report(None).unwrap();
    let (with, without) = (report.lifetime.renyi, report.without_masks.unwrap());
    let wanted = crate::privacy::accountant::renyi_epsilon(&[event(1.25, 1.0, 4)], delta());
    assert!((without / wanted - 1.0).abs() < 1e-9, "{without} is not {wanted}");
    assert!(without > 3.0 * with && report.jobs[0].epsilon_without_masks == Some(without));
    let words = report.guarantee().join("\n");
    assert!(
        words.contains("this site's own shares would still bound") && words.contains(&short(without)),
        "{words}"
    );
    assert!(report.lifetime.certified_upper <= with && report.lifetime.certified_lower > 0.0);
}
