use super::*;
use crate::model::Optimizer;

#[test]
fn a_name_that_could_forge_a_line_at_the_site_is_refused() {
    let schema: Schema = toml::from_str(
        "name = \"test\"\ncustomer = \"id\"\nlabel = { column = \"y\", kind = \"binary\" }\n\
         features = [{ column = \"a\", min = 0.0, max = 1.0 }]",
    )
    .unwrap();
    let mut file: JobFile =
        toml::from_str("name = \"\"\nschema = \"x\"\n[privacy]\nepsilon = 8.0\ndelta = 1e-4").unwrap();
    for name in ["", "churn\n3f2a  safe", "\u{1b}[2Kchurn", &"n".repeat(129)] {
        file.name = name.into();
        assert_eq!(file.contract(schema.clone(), [0; 16]), Err(JobError::Name), "{name:?}");
    }
    file.name = "Kündigung, Frühjahr".into();
    assert!(file.contract(schema, [0; 16]).is_ok());
}

fn contract_of(training: &str, federation: &str) -> Result<JobContract, JobError> {
    contract_among(training, federation, &[])
}

fn secure_sum(members: usize, training: &str, federation: &str) -> Result<JobContract, JobError> {
    let id = |number: usize| {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        SiteId::from_bytes(bytes)
    };
    let members: Vec<SiteId> = (0..members).rev().map(id).collect();
    contract_among(training, &format!("mode = \"secure_sum\"\n{federation}"), &members)
}

fn contract_among(training: &str, federation: &str, members: &[SiteId]) -> Result<JobContract, JobError> {
    let schema: Schema = toml::from_str(
        "name = \"test\"\ncustomer = \"id\"\nlabel = { column = \"y\", kind = \"binary\" }\n\
         features = [{ column = \"a\", min = 0.0, max = 1.0 }]",
    )
    .unwrap();
    let file: JobFile = toml::from_str(&format!(
        "name = \"x\"\nschema = \"x\"\n[privacy]\nepsilon = 8.0\ndelta = 1e-4\n\
         [training]\n{training}\n[federation]\n{federation}"
    ))
    .unwrap();
    let contract = file.contract_among(schema, [0; 16], members)?;
    // What goes over the wire and into the store is the same contract.
    assert_eq!(codec::decode::<JobContract>(&codec::encode(&contract)).unwrap(), contract);
    Ok(contract)
}

#[test]
fn a_choice_is_fixed_with_its_usual_numbers_and_those_that_were_given() {
    let plain = contract_of("", "").unwrap();
    assert_eq!(plain.training.optimizer, Optimizer::Sgd { momentum: 0.0, weight_decay: 0.0 });
    assert_eq!((plain.federation.strategy, plain.federation.norm_bound), (Strategy::FedAvg, None));
    assert_eq!(plain.server_state(2), None);
    let contract = contract_of(
        "optimizer = \"adamw\"\nbeta1 = 0.5\nschedule = \"cosine\"\nwarmup_steps = 10\nproximal = 0.1",
        "strategy = \"fedyogi\"\nserver_beta2 = 0.9",
    )
    .unwrap();
    let (beta1, beta2, epsilon, weight_decay) = (0.5, 0.999, 1e-8, 0.01);
    assert_eq!(contract.training.optimizer, Optimizer::AdamW { beta1, beta2, epsilon, weight_decay });
    assert!(contract.training.learning_rate < plain.training.learning_rate);
    let yogi = Strategy::FedYogi { learning_rate: 0.05, beta1: 0.9, beta2: 0.9, epsilon: 1e-3 };
    assert_eq!(contract.federation.strategy, yogi);
    assert!(contract.server_state(2).is_some());
    assert!(contract_of("average_weights = 0.9", "").unwrap().server_state(2).is_some());
}

#[test]
fn a_secure_sum_is_fixed_among_its_members_with_a_threshold_that_no_two_lists_of_survivors_can_share() {
    for (members, min_sites, colluding) in [(3, 3, 1), (4, 4, 1), (10, 9, 3), (47, 40, 15), (1024, 871, 341)]
    {
        let contract = secure_sum(members, "", "").unwrap();
        let sum = contract.federation.secure_sum().unwrap();
        assert_eq!((sum.members.len(), sum.colluding_sites), (members, colluding));
        assert_eq!(
            (contract.federation.min_sites, contract.federation.max_sites),
            (min_sites, members as u32)
        );
        assert!(2 * min_sites > members as u32 + colluding && sum.honest_shares(min_sites) >= 1);
        assert_eq!((contract.training.local_steps, sum.is_member(SiteId::from_bytes([0; 32]))), (1, true));
        assert!(!sum.is_member(SiteId::from_bytes([77; 32])));
        let (all, alone) = (contract.training_charge(), contract.local_charge().unwrap());
        let ratio = all.noise_multiplier.value() / alone.noise_multiplier.value();
        assert!((ratio - f64::from(min_sites - colluding).sqrt()).abs() < 1e-9, "{ratio}");
        let encoding = contract.sum_encoding(2).unwrap().unwrap();
        assert!((encoding.local_multiplier() / alone.noise_multiplier.value() - 1.0).abs() < 1e-9);
    }
    for members in [0, 2, 1025] {
        assert_eq!(secure_sum(members, "", "").unwrap_err(), JobError::Members { got: members });
    }
    let contract = secure_sum(10, "", "min_sites = 7\ncolluding_sites = 3").unwrap();
    let ProtectionMode::SecureSum(sum) = &contract.federation.mode else { panic!("it is one") };
    let with = |members: Vec<SiteId>| {
        let mode = ProtectionMode::SecureSum(SecureSum { members, ..sum.clone() });
        JobContract { federation: Federation { mode, ..contract.federation.clone() }, ..contract.clone() }
    };
    let (mut swapped, mut doubled) = (sum.members.clone(), sum.members.clone());
    swapped.swap(1, 2);
    doubled[1] = doubled[0];
    for members in [swapped, doubled] {
        assert_eq!(with(members).validate(), Err(JobError::MemberOrder));
    }
    let fewer = with(sum.members[1..].to_vec()).validate().unwrap_err().to_string();
    assert!(fewer.contains("federation.max_sites must be the number of members"), "{fewer}");
}

/// Every count of members and groups that can be, by the default terms.
#[test]
fn a_secure_sum_by_groups_keeps_its_promise_in_each_group() {
    for (members, groups) in (2..9).flat_map(|groups| (3 * groups..3 * groups + 40).map(move |n| (n, groups)))
    {
        let contract = secure_sum(members as usize, "", &format!("groups = {groups}")).unwrap();
        let federation = &contract.federation;
        let sums = federation.sum_groups().unwrap();
        let (smallest, largest) = sums.sizes();
        let (t, c) = (federation.min_sites, sums.sum.colluding_sites);
        assert!(2 * t > largest as u32 + c && t as usize <= smallest && c as usize == smallest / 3);
        assert!(federation.fewest_sites() == sums.min_groups * t && 2 * sums.min_groups > groups);
        let lists = contract.grouped_members();
        assert!(lists.len() == groups as usize);
        let mut all: Vec<SiteId> = lists.concat();
        all.sort_unstable();
        assert_eq!(all, sums.sum.members);
        for list in &lists {
            assert!((smallest..=largest).contains(&list.len()) && list.is_sorted());
            assert_eq!(contract.group_of_member(list[0]).as_ref(), Some(list));
        }
    }
    // A customer is in one sum: the same noise, the same charge. The share of a site is larger, being one of fewer.
    let [one, five] = ["", "groups = 5"].map(|keys| secure_sum(45, "", keys).unwrap());
    assert_eq!(one.training_charge(), five.training_charge());
    let (alone, in_group) = (one.local_charge().unwrap(), five.local_charge().unwrap());
    assert!(in_group.noise_multiplier.value() > 2.0 * alone.noise_multiplier.value());
    let share = |contract: &JobContract| contract.sum_encoding(2).unwrap().unwrap().local_multiplier();
    assert!((share(&five) / in_group.noise_multiplier.value() - 1.0).abs() < 1e-9);
}

#[test]
fn the_split_is_another_with_another_nonce_and_the_same_for_all_who_read_the_contract() {
    let contract = secure_sum(20, "", "groups = 4").unwrap();
    let with = |nonce| JobContract { nonce, ..contract.clone() }.grouped_members();
    assert_eq!(with([7; 16]), with([7; 16]));
    assert_ne!(with([7; 16]), with([8; 16]));
    // Whoever leaves or joins changes nothing but the deal: no member's place depends on another's choice of identifier.
    let alone = secure_sum(20, "", "").unwrap();
    assert_eq!(alone.grouped_members(), [alone.federation.secure_sum().unwrap().members.clone()]);
    assert!(contract_of("", "").unwrap().grouped_members().is_empty());
    assert_eq!(contract.group_of_member(SiteId::from_bytes([77; 32])), None);
}

#[test]
fn strategies_compare_groups_and_as_many_must_be_opened_as_they_need() {
    for (keys, groups, min_groups) in [
        ("", 5, 3),
        ("strategy = \"fedmedian\"", 5, 3),
        ("strategy = \"fedmedian\"\nmin_groups = 4", 5, 4),
        ("strategy = \"trimmed_mean\"", 5, 5),
        ("strategy = \"trimmed_mean\"\ntrim_share = 0.3", 6, 4),
        ("strategy = \"krum\"", 7, 5),
        ("strategy = \"bulyan\"", 9, 7),
        ("strategy = \"fedadam\"\nnorm_bound = 0.1", 2, 2),
    ] {
        let contract = secure_sum(36, "", &format!("groups = {groups}\n{keys}")).unwrap();
        assert_eq!(contract.federation.sum_groups().unwrap().min_groups, min_groups, "{keys}");
    }
    for (federation, says) in [
        (
            "groups = 13",
            "leaves a group with fewer than 3 of 36 members; use at most 12 groups, or invite more",
        ),
        ("groups = 0", "federation.groups must be from 1 to 64, got 0"),
        ("groups = 65", "federation.groups must be from 1 to 64, got 65"),
        ("groups = 5\nmin_groups = 2", "min_groups must be more than half of groups and at most all, got 2"),
        ("groups = 5\nmin_groups = 6", "more than half of groups and at most all, got 6"),
        ("min_groups = 2", "federation.min_groups goes with federation.groups above 1 only"),
        ("groups = 1\nmin_groups = 1", "federation.min_groups goes with federation.groups above 1 only"),
        ("groups = 1\nstrategy = \"krum\"", "let it compare the sums of groups"),
        (
            "groups = 4\nstrategy = \"krum\"",
            "needs the sums of at least 5 groups in a round (2 hostile_sites + 3)",
        ),
        ("groups = 5\nmin_groups = 3\nstrategy = \"trimmed_mean\"", "min_groups is 3 of 5 groups; raise it"),
        ("groups = 5\nmin_sites = 8", "from 1 to the members of the smallest group, got 8"),
        (
            "groups = 5\nmin_sites = 5\ncolluding_sites = 2",
            "with 8 members in a group of which 2 may collude",
        ),
        ("groups = 5\ncompression = \"int8\"", "compression"),
        ("groups = 5\nschedule = \"buffered\"", "use synchronous"),
    ] {
        let error = secure_sum(36, "", federation).unwrap_err().to_string();
        assert!(error.contains(says), "{federation}: {error}");
    }
    for key in ["groups = 1", "min_groups = 3"] {
        let stray = contract_of("", key).unwrap_err().to_string();
        assert!(stray.contains("only; leave it out"), "{stray}");
    }
}

/// Golden: what sites and coordinators of an earlier release read as a contract is as it was.
#[test]
fn a_job_without_groups_is_written_as_before_there_were_any() {
    let hex = |mode: &ProtectionMode| data_encoding::HEXLOWER.encode(&codec::encode(mode));
    let sum = SecureSum { members: vec![SiteId::from_bytes([0xab; 32])], colluding_sites: 5 };
    assert_eq!(hex(&ProtectionMode::Site), "00000000");
    // One member, itself, and how many may collude.
    let of_sum = format!("0100000000000000{}05000000", "ab".repeat(32));
    assert_eq!(hex(&ProtectionMode::SecureSum(sum.clone())), format!("01000000{of_sum}"));
    let groups = SumGroups { sum, groups: 6, min_groups: 4 };
    assert_eq!(hex(&ProtectionMode::GroupedSums(groups)), format!("02000000{of_sum}0600000004000000"));
    for keys in ["", "groups = 1"] {
        let contract = secure_sum(10, "", keys).unwrap();
        assert!(matches!(contract.federation.mode, ProtectionMode::SecureSum(_)));
    }
}

/// The graph of sites that are too many to be all neighbours is drawn once they are there; that there is none of so many is
/// said before.
#[test]
fn members_whom_no_graph_serves_are_refused_when_the_job_is_written() {
    let refused = secure_sum(300, "", "").unwrap_err().to_string();
    assert!(refused.contains("serves 300 sites of which 100 may collude and 255 survive"), "{refused}");
    assert!(refused.contains("split them with federation.groups"), "{refused}");
    for (members, keys) in [(255, ""), (300, "groups = 2"), (600, "")] {
        assert!(secure_sum(members, "", keys).is_ok(), "{members} {keys}");
    }
}

#[test]
fn what_a_secure_sum_cannot_be_beside_is_refused_with_what_to_do() {
    for (training, federation, says) in [
        ("", "min_sites = 6", "min_sites must be at least 7, got 6; raise it"),
        ("", "min_sites = 8\ncolluding_sites = 8", "must be at least 10, got 8"),
        ("", "min_sites = 11", "from 1 to the number of members"),
        ("", "max_sites = 10", "federation.max_sites goes with mode = \"site\" only"),
        ("", "strategy = \"fedmedian\"", "let it compare the sums of groups: federation.groups = 5"),
        ("", "norm_bound = 1.0", "federation.norm_bound"),
        ("", "compression = \"int8\"", "compression"),
        ("", "schedule = \"buffered\"", "use synchronous"),
        ("local_steps = 2", "", "use more rounds"),
        ("optimizer = \"adam\"", "", "\"fedavgm\" or \"fedadam\""),
        ("momentum = 0.9", "", "\"fedavgm\" or \"fedadam\""),
        ("expected_customers = 1000000000", "", "does not fit into 32 bits"),
        ("proximal = 0.1", "strategy = \"fedprox\"", "training.proximal"),
        ("clipping = \"quantile\"", "", "use fixed or automatic"),
    ] {
        let error = secure_sum(10, training, federation).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let stray = contract_of("", "colluding_sites = 1").unwrap_err().to_string();
    assert!(stray.contains("federation.colluding_sites goes with mode = \"secure_sum\" only"), "{stray}");
}

#[test]
fn a_key_that_does_nothing_beside_the_choice_is_refused() {
    for (training, federation, says) in [
        ("beta1 = 0.9", "", "training.beta1 goes with optimizer = \"adam\" or \"adamw\" only; leave it out"),
        ("optimizer = \"adam\"\nmomentum = 0.9", "", "training.momentum goes with optimizer = \"sgd\" only"),
        ("", "server_learning_rate = 1.0", "\"fedadam\" or \"fedyogi\" only; leave it out"),
        ("", "strategy = \"krum\"\ntrim_share = 0.1", "strategy = \"trimmed_mean\" only"),
        ("", "strategy = \"fedmedian\"\nhostile_sites = 2", "\"multi_krum\" or \"bulyan\" only"),
        ("", "compression = \"int8\"\ntop_k_share = 0.1", "compression = \"top_k\" only"),
        ("proximal = 0.1", "", "training.proximal goes with strategy = \"fedprox\""),
        ("", "strategy = \"fedadam\"\nserver_momentum = 0.9", "strategy = \"fedavgm\" only; leave it out"),
        ("", "strategy = \"fedavgm\"\nserver_epsilon = 0.1", "federation.server_epsilon goes with"),
    ] {
        let error = contract_of(training, federation).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn numbers_of_optimizers_out_of_their_range_are_refused_by_name() {
    let adam = |key: &str| format!("optimizer = \"adam\"\n{key}");
    let server = |key: &str| format!("strategy = \"fedadam\"\n{key}");
    for (training, federation) in [
        ("momentum = 1.0".to_owned(), String::new()),
        ("weight_decay = -0.1".into(), String::new()),
        ("proximal = inf".into(), String::new()),
        ("average_weights = 1.0".into(), String::new()),
        ("warmup_steps = 90".into(), String::new()),
        (adam("beta1 = -0.5"), String::new()),
        (adam("beta2 = 1.0"), String::new()),
        (adam("epsilon = 0.0"), String::new()),
        (String::new(), server("server_learning_rate = 0.0")),
        (String::new(), server("server_beta1 = 1.5")),
        (String::new(), server("server_beta2 = nan")),
        (String::new(), server("server_epsilon = 2.0")),
        (String::new(), "strategy = \"fedavgm\"\nserver_momentum = 1.0".into()),
        (String::new(), "strategy = \"fedadagrad\"\nserver_epsilon = 0.0".into()),
        (String::new(), "strategy = \"trimmed_mean\"\nmin_sites = 9\ntrim_share = 0.5".into()),
        (String::new(), "strategy = \"krum\"\nmin_sites = 9\nhostile_sites = 0".into()),
        (String::new(), "strategy = \"krum\"\nmin_sites = 9\nmax_sites = 1001".into()),
        (String::new(), "min_time_s = 601".into()),
        (String::new(), "max_idle_s = 0".into()),
        (String::new(), "compression = \"top_k\"\ntop_k_share = 0.0".into()),
        (String::new(), "compression = \"top_k\"\ntop_k_share = 1.5".into()),
        (String::new(), "norm_bound = 0.0".into()),
        (String::new(), "norm_bound = nan".into()),
    ] {
        let error = contract_of(&training, &federation).unwrap_err();
        let JobError::Range { field, .. } = error else { panic!("{error}") };
        let (table, key) = field.split_once('.').unwrap();
        assert!(
            if table == "training" { training.contains(key) } else { federation.contains(key) },
            "{field}"
        );
    }
    assert!(contract_of("warmup_steps = 89", "").is_ok());
    // A contract from the network is checked by the same rules.
    let mut contract = contract_of("", "").unwrap();
    contract.training.optimizer = Optimizer::Sgd { momentum: f64::NAN, weight_decay: 0.0 };
    assert!(matches!(contract.validate(), Err(JobError::Range { field: "training.momentum", .. })));
    let mut contract = contract_of("", "").unwrap();
    contract.federation.strategy = Strategy::FedAvgM { learning_rate: 1e3, momentum: 0.9 };
    assert!(contract.validate().is_err());
}

#[test]
fn a_buffered_job_is_charged_for_as_many_updates_as_one_in_rounds_and_one_evaluation() {
    let rounds = contract_of("", "min_sites = 4").unwrap();
    let buffered = contract_of("", "min_sites = 4\nschedule = \"buffered\"").unwrap();
    assert_eq!(buffered.federation.schedule, FederationSchedule::Buffered { buffer_size: 4 });
    assert_eq!(buffered.training_charge(), rounds.training_charge());
    assert_eq!(buffered.evaluation_charge().unwrap().steps, 1);
    let last = buffered.training.rounds;
    let evaluated: Vec<u32> =
        (0..=last).filter(|round| buffered.task(crate::ids::RoundId(*round)).unwrap().evaluate).collect();
    assert_eq!(evaluated, [last]);
    for (keys, says) in [
        ("schedule = \"buffered\"\nbuffer_size = 3", "buffer_size must be from 1 to min_sites"),
        ("schedule = \"buffered\"\nstrategy = \"fedmedian\"", "does not go with schedule"),
        ("schedule = \"buffered\"\nmin_time_s = 1", "min_time_s must be 0"),
        ("buffer_size = 2", "federation.buffer_size goes with schedule = \"buffered\" only"),
    ] {
        let error = contract_of("", keys).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn an_update_counts_less_the_older_its_model() {
    assert_eq!(staleness_weight(0), WHOLE_WEIGHT);
    assert_eq!(staleness_weight(3), WHOLE_WEIGHT / 2);
    assert!((0..1000).all(|age| staleness_weight(age) > staleness_weight(age + 1)));
}

#[test]
fn a_strategy_that_too_few_sites_cannot_carry_is_refused_with_how_many_it_needs() {
    for (strategy, min_sites, needs) in [
        ("krum\"\nhostile_sites = 3", 8, "at least 9 sites in a round (2 hostile_sites + 3)"),
        ("multi_krum", 4, "at least 5 sites"),
        ("bulyan\"\nhostile_sites = 2", 10, "at least 11 sites in a round (4 hostile_sites + 3)"),
        ("trimmed_mean\"\ntrim_share = 0.25", 3, "at least 4 sites"),
    ] {
        // The key's closing quote stands in the strategies with numbers already.
        let quote = if strategy.contains('"') { "" } else { "\"" };
        let keys =
            |sites: u32| format!("strategy = \"{strategy}{quote}\nmax_sites = 50\nmin_sites = {sites}");
        let error = contract_of("", &keys(min_sites)).unwrap_err();
        assert!(matches!(error, JobError::TooFewSites { .. }), "{error}");
        assert!(error.to_string().contains(needs), "{error}");
        assert!(contract_of("", &keys(min_sites + 1)).is_ok(), "{strategy}");
    }
    let krum = contract_of("", "strategy = \"krum\"\nmin_sites = 12\nmax_sites = 50").unwrap();
    assert_eq!(krum.federation.strategy, Strategy::Krum { hostile_sites: 4 });
}

#[test]
fn every_strategy_is_asked_for_by_its_usual_name() {
    for name in [
        "fedavg",
        "fedprox",
        "fedavgm",
        "fedadagrad",
        "fedadam",
        "fedyogi",
        "fedmedian",
        "trimmed_mean",
        "krum",
        "multi_krum",
        "bulyan",
    ] {
        let proximal = if name == "fedprox" { "proximal = 0.1" } else { "" };
        let keys = format!("strategy = \"{name}\"\nmin_sites = 10\nmax_sites = 50\nnorm_bound = 2.0");
        let contract = contract_of(proximal, &keys).unwrap();
        assert_eq!(contract.federation.strategy.name(), name);
        assert!(contract.federation.strategy.rule().min_updates() <= 10);
    }
    let unpulled = contract_of("", "strategy = \"fedprox\"").unwrap_err().to_string();
    assert!(unpulled.contains("training.proximal must be above 0"), "{unpulled}");
    assert!(contract_of("proximal = 0.1", "strategy = \"fedadam\"").is_ok());
}

#[test]
fn a_customer_with_more_steps_or_candidates_than_are_proved_for_is_refused() {
    let contract_of = |length: u32, negatives: u32, rows: u32| {
        let schema: Schema = toml::from_str(&format!(
            "name = \"test\"\ncustomer = \"id\"\n\
             label = {{ column = \"y\", kind = \"item\", hash_buckets = 9 }}\n\
             features = [{{ column = \"a\", hash_buckets = 4, length = {length} }}]",
        ))
        .unwrap();
        let file: JobFile = toml::from_str(&format!(
            "name = \"x\"\nschema = \"x\"\n[privacy]\nepsilon = 8.0\ndelta = 1e-4\n\
             [training]\nmax_rows_per_customer = {rows}\n\
             [model.two_tower]\nhidden = [2]\ndim = 2\nnegatives = {negatives}"
        ))
        .unwrap();
        file.contract(schema, [0; 16])
    };
    assert!(contract_of(1024, 1, 64).is_ok());
    let long = contract_of(1024, 1, 65).unwrap_err().to_string();
    assert_eq!(
        long,
        "training.max_rows_per_customer = 65 with 1024 steps a row is more than 65536 a customer; lower \
         max_rows_per_customer to 64, or the schema's `length`"
    );
    assert!(contract_of(1, 1023, 64).is_ok());
    let many = contract_of(1, 1024, 64).unwrap_err().to_string();
    assert!(many.contains("with 1025 candidate items a row") && many.contains("to 63, or"), "{many}");
}

/// Clip norm and noise multiplier are all there is: what one customer can change follows from the
/// clipping.
#[test]
fn a_job_cannot_state_a_sensitivity_of_its_own() {
    let file = |more: &str| {
        toml::from_str::<JobFile>(&format!(
            "name = \"x\"\nschema = \"x\"\n[privacy]\nepsilon = 8.0\ndelta = 1e-4\n{more}"
        ))
    };
    file("clip_norm = 0.5").unwrap();
    for more in ["sensitivity = 0.1", "sigma = 1.0"] {
        assert!(file(more).unwrap_err().to_string().contains("unknown field"), "{more}");
    }
}
