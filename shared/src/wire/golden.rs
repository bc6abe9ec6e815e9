//! Every message's bytes, as the first release of protocol version 1 wrote them. A test that fails here
//! means that mixed releases no longer understand each other: add a message, never change one.

use super::frame::{self, Message};
use super::messages::*;
use crate::evaluation::Quality;
use crate::ids::{ContentHash, JobId, RoundId, SiteId};
use crate::job::RoundTask;
use crate::ledger::{
    Charge, Charged, Head, Population, Received, ReleaseKind, SignedWitness, Standing, Witness,
};
use crate::policy::PolicyRule;
use crate::privacy::accountant::GaussianEvent;
use crate::privacy::{Delta, Epsilon, NoiseMultiplier, SamplingRate};
use crate::secure_sum::agreement::{Answer, Question};
use crate::secure_sum::batch::{Grant, Offer, PeerOffer};
use crate::secure_sum::keys::SignedKey;
use data_encoding::HEXLOWER;
use proptest::prelude::*;
use std::fmt::Debug;
use std::path::PathBuf;

const JOB: JobId = JobId::from_bytes([0xaa; 32]);
const MODEL: ContentHash = ContentHash::from_bytes([0xbb; 32]);
const SITE: SiteId = SiteId::from_bytes([0xcc; 32]);
const ROUND: RoundId = RoundId(3);

fn signed() -> SignedContract {
    SignedContract { contract: vec![1, 2], certificate: vec![3], signature: vec![4, 5, 6] }
}

fn job_summary() -> JobSummary {
    JobSummary {
        job: JOB,
        name: "churn".into(),
        status: JobStatus::Failed { reason: "few".into() },
        rounds_done: 2,
        rounds: 20,
        sites: 12,
        epsilon: 8.0,
        delta: 1e-5,
    }
}

fn site_summary() -> SiteSummary {
    SiteSummary { name: "berlin".into(), status: SiteStatus::Online, id: Some(SITE) }
}

fn quality() -> Quality {
    Quality { auc: Some(0.75), hit_rate_at_10: Some(0.5), ..Quality::default() }
}

const HEAD: Head = Head { entries: 7, hash: MODEL };

fn witness() -> SignedWitness {
    let kind = ReleaseKind::Evaluation;
    let received = Received { job: JOB, round: ROUND, kind, content: MODEL, len: 320 };
    let witness = Witness { site: SITE, head: HEAD, time_s: 1_000, received: vec![received] };
    SignedWitness { witness, signature: "0a".into() }
}

const HOLDING: Holding = Holding { job: JOB, round: ROUND, content: MODEL, received: 131_072 };

fn from_sites() -> Vec<(&'static str, SiteToCoordinator)> {
    use SiteToCoordinator as M;
    let refused_policy = Decision::RefusedPolicy(PolicyRule::Approval);
    vec![
        ("hello", M::Hello(Hello { protocol: 1, release: "0.1.0".into() })),
        ("enrol", M::Enrol(Enrol {})),
        ("job_answer", M::JobAnswer(JobAnswer { job: JOB, decision: Decision::RefusedBudget })),
        ("evaluation", M::Evaluation(Evaluation { job: JOB, round: ROUND, histogram: vec![-1, 1 << 40] })),
        ("renew", M::Renew(Renew {})),
        ("round_skipped", M::RoundSkipped(RoundSkipped { job: JOB, round: ROUND })),
        ("standing", M::Standing(standing())),
        (
            "ledger_head",
            M::LedgerHead(LedgerHead { contribution: Some((JOB, ROUND)), head: HEAD, signature: vec![1, 2] }),
        ),
        ("job_answer_refused_policy", M::JobAnswer(JobAnswer { job: JOB, decision: refused_policy })),
        ("holding", M::Holding(HOLDING)),
        ("job_answer_waiting", M::JobAnswer(JobAnswer { job: JOB, decision: Decision::Waiting })),
        ("debited", M::Debited(Debited { job: JOB, round: ROUND, charge: charge() })),
        ("sum_key", M::SumKey(SumKey { job: JOB, key: signed_key() })),
        ("sum_offer", M::SumOffer(SumOffer { job: JOB, offer: offer() })),
        ("sum_answer", M::SumAnswer(SumAnswer { job: JOB, answer: answer() })),
    ]
}

fn signed_key() -> SignedKey {
    SignedKey { identity: [1; 32], key: [2; 32], signature: vec![3, 4] }
}

fn offer() -> Offer {
    Offer { batch: 5, publics: vec![[6; 32]], commitments: vec![[7; 32]], sealed: vec![vec![8, 9]] }
}

fn answer() -> Answer {
    Answer { round: ROUND, question: [1; 32], sealed: vec![2, 3], pads: vec![[4; 32]] }
}

fn grant() -> Grant {
    let peer = PeerOffer { publics: vec![[6; 32]], sealed: vec![8, 9] };
    Grant { batch: 5, present: vec![0, 2, 600], offers: vec![peer] }
}

fn event() -> GaussianEvent {
    GaussianEvent {
        noise_multiplier: NoiseMultiplier::new(4.5).unwrap(),
        sampling_rate: SamplingRate::new(0.25).unwrap(),
        steps: 3,
    }
}

fn charge() -> Charge {
    Charge { population: Population::Holdout, event: event() }
}

fn refusals() -> Vec<RefusalCount> {
    vec![RefusalCount { outcome: Outcome::OutOfRange, count: 2 }]
}

fn standing() -> Standing {
    let order = Some(7.try_into().unwrap());
    Standing {
        cap_epsilon: Epsilon::new(8.0).unwrap(),
        cap_delta: Delta::new(1e-5).unwrap(),
        job_epsilon: Epsilon::new(2.0).unwrap(),
        training: Charged { events: vec![event()], order },
        holdout: Charged::default(),
    }
}

fn site_room() -> SiteRoom {
    let room = Room {
        as_of_s: 1_700_000_000,
        cap_epsilon: 8.0,
        cap_delta: 1e-5,
        job_epsilon: 2.0,
        epsilon: 0.5,
        training_steps: 90,
        evaluations: None,
    };
    SiteRoom { name: "berlin".into(), status: SiteStatus::Offline, room: Some(room) }
}

fn to_sites() -> Vec<(&'static str, CoordinatorToSite)> {
    use CoordinatorToSite as M;
    let task = RoundTask { train: true, evaluate: false };
    vec![
        ("welcome", M::Welcome(Welcome { protocol: 1, release: "0.1.0".into() })),
        ("version_refused", M::VersionRefused(VersionRefused { coordinator: 1, site: 2 })),
        (
            "enrolled",
            M::Enrolled(Enrolled { name: "berlin".into(), certificate: vec![1], authority: vec![2] }),
        ),
        ("renewed", M::Renewed(Renewed { certificate: vec![1] })),
        ("job_offer", M::JobOffer(signed())),
        ("round_start", M::RoundStart(RoundStart { job: JOB, round: ROUND, task, model: MODEL })),
        ("receipt", M::Receipt(Receipt { job: JOB, round: ROUND, outcome: Outcome::Corrupt })),
        ("job_ended", M::JobEnded(JobEnded { job: JOB, status: JobStatus::Finished })),
        ("witnessed", M::Witnessed(Witnessed { verdict: HeadVerdict::SetBack, witness: Some(witness()) })),
        ("holding", M::Holding(HOLDING)),
        (
            "receipt_rate_limited",
            M::Receipt(Receipt { job: JOB, round: ROUND, outcome: Outcome::RateLimited }),
        ),
        ("sum_roster", M::SumRoster(SumRoster { job: JOB, keys: vec![signed_key()] })),
        ("sum_batch", M::SumBatch(SumBatch { job: JOB, grant: grant() })),
        (
            "sum_question",
            M::SumQuestion(SumQuestion {
                job: JOB,
                question: Question { round: ROUND, survivors: vec![0, 1, 600], asked: vec![0, 600] },
            }),
        ),
    ]
}

fn from_operators() -> Vec<(&'static str, OperatorToCoordinator)> {
    use OperatorToCoordinator as M;
    vec![
        ("invite", M::Invite(Invite { name: "berlin".into(), valid_s: 3600 })),
        ("list_sites", M::ListSites(ListSites {})),
        ("revoke", M::Revoke(Revoke { name: "berlin".into() })),
        ("submit_job", M::SubmitJob(signed())),
        ("list_jobs", M::ListJobs(ListJobs {})),
        ("watch_job", M::WatchJob(WatchJob { job: JOB })),
        ("stop_job", M::StopJob(StopJob { job: JOB })),
        ("list_models", M::ListModels(ListModels {})),
        ("export_model", M::ExportModel(ExportModel { job: JOB })),
        ("ask_room", M::AskRoom(AskRoom { training: event(), holdout: Some(event()) })),
        ("list_witnesses", M::ListWitnesses(ListWitnesses { name: "berlin".into(), after: 7 })),
        ("list_refusals", M::ListRefusals(ListRefusals {})),
    ]
}

fn to_operators() -> Vec<(&'static str, CoordinatorToOperator)> {
    use CoordinatorToOperator as M;
    let model = ModelSummary {
        job: JOB,
        name: "churn".into(),
        rounds: 20,
        model: MODEL,
        parameters: 30,
        quality: Some(quality()),
    };
    let committed = JobEvent::Committed(RoundSummary {
        round: ROUND,
        sites: 12,
        model: MODEL,
        quality: Some(quality()),
        epsilon: 1.5,
    });
    let answered = JobEvent::Answered { site: "berlin".into(), decision: Decision::Accepted };
    let contributed = JobEvent::Contributed { round: ROUND, sites_in: 1, sites: 12 };
    let refused = JobEvent::Refused { site: "berlin".into(), round: ROUND, outcome: Outcome::NotFinite };
    vec![
        ("invited", M::Invited(Invited { invite: "weighhouse-1-abc".into() })),
        ("sites", M::Sites(vec![site_summary()])),
        ("revoked", M::Revoked(site_summary())),
        ("submitted", M::Submitted(JOB)),
        ("jobs", M::Jobs(vec![job_summary()])),
        ("progress_status", M::Progress(JobEvent::Status(JobStatus::Running))),
        ("progress_answered", M::Progress(answered)),
        ("progress_contributed", M::Progress(contributed)),
        ("progress_committed", M::Progress(committed)),
        ("stopped", M::Stopped(job_summary())),
        ("models", M::Models(vec![model])),
        ("model", M::Model(ModelHeader { contract: vec![1, 2], rounds: 20, model: MODEL, len: 120 })),
        ("refused", M::Refused(Refused { reason: "no".into() })),
        ("room", M::Room(vec![site_room()])),
        ("witnesses", M::Witnesses(WitnessesHeader { count: 2, len: 900, last: 9, certificate: vec![1] })),
        ("progress_ledger_set_back", M::Progress(JobEvent::LedgerSetBack { site: "berlin".into() })),
        ("progress_refused", M::Progress(refused)),
        ("progress_left_out", M::Progress(JobEvent::LeftOut { site: "berlin".into(), round: ROUND })),
        ("progress_refusals", M::Progress(JobEvent::Refusals(refusals()))),
        ("refusals", M::Refusals(vec![JobRefusals { job: JOB, refused: refusals() }])),
    ]
}

fn golden_file(direction: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "tests", "data", "wire", "v1", direction].iter().collect()
}

/// Compares each message's frame with its line in the golden file, and reads it back.
fn check<M: Message + PartialEq + Debug>(direction: &str, messages: &[(&str, M)]) {
    let written: String = messages
        .iter()
        .map(|(name, message)| format!("{name} {}\n", HEXLOWER.encode(&frame::encode(message))))
        .collect();
    let path = golden_file(&format!("{direction}.hex"));
    if std::env::var_os("WEIGHHOUSE_WRITE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &written).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    for (line, golden) in written.lines().zip(golden.lines()) {
        assert_eq!(line, golden, "{direction}");
    }
    assert_eq!(written.lines().count(), golden.lines().count());
    for (name, message) in messages {
        let bytes = frame::encode(message);
        let (len, body) = bytes.split_first_chunk::<4>().unwrap();
        assert_eq!(frame::checked_len(u32::from_le_bytes(*len)).unwrap(), body.len());
        assert_eq!(&frame::decode::<M>(body).unwrap(), message, "{name}");
        let longer = [body, &[0]].concat();
        assert!(frame::decode::<M>(&longer).is_err(), "{name} takes a trailing byte");
        for end in 0..body.len() {
            assert!(frame::decode::<M>(&body[..end]).is_err(), "{name} reads when cut at {end}");
        }
    }
}

#[test]
fn every_message_has_its_golden_bytes_and_refuses_cut_and_longer_ones() {
    check("site_to_coordinator", &from_sites());
    check("coordinator_to_site", &to_sites());
    check("operator_to_coordinator", &from_operators());
    check("coordinator_to_operator", &to_operators());
}

#[test]
fn frame_numbers_are_unique_over_all_directions() {
    let mut numbers: Vec<u16> = Vec::new();
    numbers.extend(from_sites().iter().map(|(_, message)| message.to_numbered().0));
    numbers.extend(to_sites().iter().map(|(_, message)| message.to_numbered().0));
    numbers.extend(from_operators().iter().map(|(_, message)| message.to_numbered().0));
    numbers.extend(to_operators().iter().map(|(_, message)| message.to_numbered().0));
    numbers.sort_unstable();
    numbers.dedup();
    // 13 + 13 + 12 + 13; progress has eight samples of one number.
    assert_eq!(numbers.len(), 51);
}

fn survives(bytes: &[u8]) {
    let _ = frame::decode::<SiteToCoordinator>(bytes);
    let _ = frame::decode::<CoordinatorToSite>(bytes);
    let _ = frame::decode::<OperatorToCoordinator>(bytes);
    let _ = frame::decode::<CoordinatorToOperator>(bytes);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_bytes_make_a_decoder_panic(number in 0u16..320, body in proptest::collection::vec(any::<u8>(), 0..300)) {
        survives(&[number.to_le_bytes().as_slice(), &body].concat());
        survives(&body);
    }

    #[test]
    fn no_flipped_bit_makes_a_decoder_panic(message in 0usize..19, at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let messages = to_operators();
        let mut bytes = frame::encode(&messages[message].1).split_off(4);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        survives(&bytes);
    }
}
