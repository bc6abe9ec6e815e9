//! What a plan costs, asked of the real binary.

use crate::federation::{failure, output, run};
use serde_json::Value;
use std::path::Path;

/// Noise multiplier, sampling rate, steps, delta; certified lower and upper epsilon and Renyi epsilon by dp-accounting
/// 0.6.0 and prv_accountant 0.2.0, at tolerances of their own: two thousandths where they differ most.
const PUBLISHED: [([&str; 4], [f64; 3]); 4] = [
    (["1", "0.01", "1000", "1e-5"], [1.826223574764421, 1.8282369460536776, 2.101366525420273]),
    (["2", "0.05", "1000", "1e-6"], [4.157415065730865, 4.162611260561385, 4.475501458196101]),
    (["0.5", "0.001", "100000", "1e-5"], [13.008586401491872, 13.028774901147203, 14.604402564001301]),
    (["1", "1", "1", "1e-6"], [4.886543596498492, 4.886554124368604, 5.2215396311544175]),
];

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&output(&[&["privacy"], arguments, &["--format", "json"]].concat())).unwrap()
}

fn figures(answer: &Value) -> [f64; 3] {
    ["lower", "upper", "renyi"].map(|figure| answer["epsilon"][figure].as_f64().unwrap())
}

#[test]
fn epsilon_meets_published_figures_and_says_what_they_hold_for() {
    for ([z, q, steps, delta], [lower, upper, renyi]) in PUBLISHED {
        let plan = ["--noise-multiplier", z, "--sampling-rate", q, "--steps", steps, "--delta", delta];
        let answer = json(&[&["epsilon"][..], &plan].concat());
        let [our_lower, our_upper, our_renyi] = figures(&answer);
        assert!(our_upper >= lower && (our_upper / upper - 1.0).abs() < 1e-3, "{plan:?}: {answer}");
        assert!(our_lower <= upper && our_lower > 0.999 * our_upper, "{plan:?}: {answer}");
        assert!(our_renyi >= our_upper && (0.95..1.07).contains(&(our_renyi / renyi)), "{plan:?}: {answer}");
        assert_eq!(answer["relation"], "neighbouring data sets differ in one customer added or removed");
        assert!(answer["unit"].as_str().unwrap().starts_with("one customer at one site"));
        for figure in ["upper", "lower", "renyi"] {
            let holds = &answer["holds"][figure];
            assert!(holds["theorem"].is_string() && holds["noise"].is_string(), "{answer}");
            let adaptive = holds["choices"].as_str().unwrap().contains("in sight of earlier releases");
            assert_eq!(adaptive, figure == "renyi", "{answer}");
        }
    }
}

/// The closed form: `exact` of the published table, one release over everyone at noise 1.
#[test]
fn the_table_for_people_shows_rounded_bounds_their_relation_and_their_unit() {
    let text = output(&[
        "privacy",
        "epsilon",
        "--noise-multiplier",
        "1",
        "--sampling-rate",
        "1",
        "--steps",
        "1",
        "--delta",
        "1e-5",
    ]);
    // 4.3771780956812245, rounded up above and down below.
    assert!(text.contains("4.3772") && text.contains("4.3771"), "{text}");
    for words in
        ["relation: ", "unit: one customer at one site", "nats", "a plan fixed beforehand", "continuous"]
    {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn noise_keeps_the_epsilon_by_either_accountant_and_a_job_gets_the_renyi_one() {
    let plan = ["--sampling-rate", "0.01", "--steps", "1000", "--delta", "1e-5"];
    let answer = json(&[&["noise", "--epsilon", "8"][..], &plan].concat());
    let noise = |by: &str| answer[by]["noise_multiplier"].as_f64().unwrap();
    let (certified, renyi) = (&answer["certified"], &answer["renyi"]);
    assert!(noise("certified") < noise("renyi"), "{answer}");
    let kept = |found: f64| found <= 8.0 && found > 7.98;
    assert!(kept(figures(certified)[1]) && figures(certified)[2] > 8.0, "{answer}");
    assert!(kept(figures(renyi)[2]) && figures(renyi)[1] < 8.0, "{answer}");
    // Asked the other way round, the figures are the same.
    let multiplier = noise("certified").to_string();
    let back = json(&[&["epsilon", "--noise-multiplier", &multiplier][..], &plan].concat());
    assert_eq!(back["epsilon"], certified["epsilon"]);
}

#[test]
fn steps_are_the_most_that_keep_the_epsilon() {
    let plan = ["--noise-multiplier", "1", "--sampling-rate", "0.01", "--delta", "1e-5"];
    let answer = json(&[&["steps", "--epsilon", "2"][..], &plan].concat());
    for (by, figure) in [("certified", 1), ("renyi", 2)] {
        let steps = answer[by]["steps"].as_u64().unwrap();
        assert!(figures(&answer[by])[figure] <= 2.0, "{answer}");
        let more = (steps + 1).to_string();
        let more = json(&[&["epsilon", "--steps", &more][..], &plan].concat());
        assert!(figures(&more)[figure] > 2.0, "{more}");
    }
    let none = json(&[&["steps", "--epsilon", "1e-6"][..], &plan].concat());
    assert_eq!(none["certified"]["steps"], 0);
}

/// Discrete noise of sigma 6 covers what continuous noise of `1 x sqrt(1 - 9 / 36)` costs.
#[test]
fn discrete_noise_costs_what_its_continuous_equivalent_costs() {
    let plan = ["--sampling-rate", "0.01", "--steps", "1000", "--delta", "1e-5"];
    let discrete = ["epsilon", "--noise-multiplier", "1", "--discrete-sigma", "6"];
    let discrete = json(&[&discrete[..], &plan].concat());
    let equivalent = 0.75_f64.sqrt().to_string();
    let continuous = json(&[&["epsilon", "--noise-multiplier", &equivalent][..], &plan].concat());
    // The Renyi figure at the noise itself holds for discrete noise too.
    let expected = figures(&continuous)[1].min(figures(&discrete)[2]);
    assert!((figures(&discrete)[1] / expected - 1.0).abs() < 1e-3, "{discrete} {continuous}");
    assert!(discrete["holds"]["upper"]["noise"].as_str().unwrap().contains("discrete"));
    assert!(
        failure(
            &[&["privacy", "epsilon", "--noise-multiplier", "1", "--discrete-sigma", "3"][..], &plan]
                .concat()
        )
        .contains("too coarse")
    );
}

#[test]
fn bad_numbers_are_refused_in_one_line() {
    let plan = |changed: &'static str, value: &'static str| {
        let good = [
            ("--noise-multiplier", "1"),
            ("--sampling-rate", "0.01"),
            ("--steps", "10"),
            ("--delta", "1e-5"),
        ];
        let flat =
            good.into_iter().flat_map(|(name, good)| [name, if name == changed { value } else { good }]);
        ["privacy", "epsilon"].into_iter().chain(flat).collect::<Vec<_>>()
    };
    for (changed, value, says) in [
        ("--noise-multiplier", "0", "noise multiplier must be from 0.1"),
        ("--noise-multiplier", "-1", "noise multiplier must be from 0.1"),
        ("--sampling-rate", "1.5", "sampling rate must be above 0"),
        ("--sampling-rate", "NaN", "sampling rate must be above 0"),
        ("--delta", "0", "delta must be above 0"),
        ("--delta", "few", "not a number"),
        ("--steps", "0", "0 is not in 1.."),
        ("--steps", "-3", "-3"),
    ] {
        let arguments = plan(changed, value);
        let error = failure(&arguments);
        assert!(error.contains(says), "{changed} {value}: {error}");
        assert_eq!(run(&arguments).status.code(), Some(2), "{changed} {value}");
    }
    let error = failure(&[
        "privacy",
        "noise",
        "--epsilon",
        "1e-9",
        "--sampling-rate",
        "1",
        "--steps",
        "4294967295",
        "--delta",
        "1e-12",
    ]);
    assert!(
        error.contains("no noise multiplier up to") && error.contains("raise epsilon or delta"),
        "{error}"
    );
}

/// Each line of the README that asks for figures, run as it stands.
#[test]
fn the_readmes_privacy_commands_work() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let commands: Vec<&str> =
        readme.lines().filter_map(|line| line.strip_prefix("weighhouse privacy ")).collect();
    let verbs: Vec<&str> = commands.iter().filter_map(|command| command.split(' ').next()).collect();
    assert_eq!(verbs, ["epsilon", "noise", "steps"]);
    for command in commands {
        let arguments: Vec<&str> = std::iter::once("privacy").chain(command.split(' ')).collect();
        assert!(output(&arguments).contains("upper"));
    }
}
