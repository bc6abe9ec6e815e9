use super::*;
use weighhouse_shared::job::{JobFile, UPDATE_STEP};
use weighhouse_shared::schema::Schema;

fn contract(training: &str, federation: &str) -> JobContract {
    let schema: Schema = toml::from_str(
        "name = \"test\"\ncustomer = \"id\"\nlabel = { column = \"y\", kind = \"binary\" }\n\
         features = [{ column = \"a\", min = 0.0, max = 1.0 }, { column = \"b\", min = 0.0, max = 1.0 }]",
    )
    .unwrap();
    let file = format!(
        "name = \"test\"\nschema = \"x\"\n[training]\nrounds = 3\n{training}\n[privacy]\nepsilon = 8.0\ndelta = 1e-4\n\
         [federation]\n{federation}"
    );
    toml::from_str::<JobFile>(&file).unwrap().contract(schema, [0; 16]).unwrap()
}

/// The models of the rounds at `sites` sites of 20 customers; seed 1 for these, 2 for noise.
fn models(contract: &JobContract, sites: usize, work: Work) -> Vec<Vec<f32>> {
    let network = contract.network().unwrap();
    let customers = Customers::Generated(Generated::new(&contract.schema, 20, 1));
    let mut simulation = Simulation::new(contract, &network, &customers, work, contract.id()).unwrap();
    let mut generator = Generator::from_seed(2);
    (0..contract.training.rounds)
        .map(|_| {
            simulation.round(0..sites, &mut generator, || ()).unwrap();
            simulation.parameters()
        })
        .collect()
}

/// With more sites than cores, so that who works on which site changes from run to run.
#[test]
fn which_core_works_on_which_site_changes_no_bit() {
    let compared = "strategy = \"multi_krum\"\nmin_sites = 5\nmax_sites = 100";
    for federation in ["", "strategy = \"fedadam\"", "strategy = \"fedmedian\"", compared] {
        let contract = contract("clipping = \"quantile\"", federation);
        let first = models(&contract, 40, Work::Train);
        assert_eq!(first, models(&contract, 40, Work::Train), "{federation}");
        assert!(first[2].iter().all(|parameter| parameter.is_finite() && *parameter != 0.0));
    }
}

/// Whatever the rule, that of equal updates is the update.
#[test]
fn sites_that_do_nothing_move_the_model_by_their_constant_by_every_rule() {
    let trimmed = "strategy = \"trimmed_mean\"\nmin_sites = 5";
    let krum = "strategy = \"krum\"\nmin_sites = 5\nmax_sites = 100";
    for federation in ["", "strategy = \"fedmedian\"", trimmed, krum] {
        let contract = contract("", federation);
        let start = contract.network().unwrap().initial_parameters(*contract.id().as_bytes());
        let end = models(&contract, 7, Work::Nothing).pop().unwrap();
        for (start, end) in start.iter().zip(end) {
            assert!((end - start - 3.0 * UPDATE_STEP as f32).abs() < 1e-9, "{federation}: {start} {end}");
        }
    }
}

/// One of three values leaves in a round: three steps in three rounds if what is left out were lost, six if it is not.
#[test]
fn what_compression_leaves_out_is_kept_for_each_site() {
    let contract = contract("", "compression = \"top_k\"\ntop_k_share = 0.3");
    let network = contract.network().unwrap();
    let customers = Customers::Generated(Generated::new(&contract.schema, 20, 1));
    let mut simulation =
        Simulation::new(&contract, &network, &customers, Work::Nothing, contract.id()).unwrap();
    let start = simulation.parameters();
    for _ in 0..3 {
        simulation.round(0..4, &mut Generator::from_seed(3), || ()).unwrap();
    }
    let moved: f32 = simulation.parameters().iter().zip(&start).map(|(end, start)| end - start).sum();
    assert!(moved > 4.5 * UPDATE_STEP as f32, "{moved}");
}

#[test]
fn cohorts_are_of_one_size_and_a_function_of_the_seed() {
    let draw = |seed| {
        let mut cohorts = Cohorts::new(50, 5, seed);
        [(); 3].map(|()| cohorts.draw().collect::<Vec<usize>>())
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    for cohort in draw(1) {
        assert!(cohort.len() == 5 && cohort.is_sorted() && cohort.iter().all(|&site| site < 50));
    }
    assert!(Cohorts::new(3, 3, 1).draw().eq(0..3));
}

#[test]
fn a_site_has_the_same_customers_each_time_and_others_than_its_neighbour() {
    let schema = contract("", "").schema;
    let labels = |seed, site| {
        let generated = Generated::new(&schema, 64, seed);
        generated.site(site).first_labels().collect::<Vec<f32>>()
    };
    assert_eq!(labels(1, 7), labels(1, 7));
    assert_ne!(labels(1, 7), labels(1, 8));
    assert_ne!(labels(1, 7), labels(2, 7));
}
