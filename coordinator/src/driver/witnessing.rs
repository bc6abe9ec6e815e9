//! Heads of sites' ledgers: kept with each commit, and held against what was kept before.

use super::{Connected, Driver, DriverError, ToSite, tell};
use crate::admission::ParsedUpdate;
use crate::job::Event;
use crate::store::Alarm;
use crate::witness::LedgerWatch;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use weighhouse_shared::clock;
use weighhouse_shared::ids::{ContentHash, JobId, RoundId, SiteId};
use weighhouse_shared::ledger::{Charge, Population, Received, ReleaseKind, SignedWitness};
use weighhouse_shared::wire::messages::{
    CoordinatorToSite, Debited, Decision, Evaluation, HeadVerdict, JobEvent, LedgerHead, Witnessed,
};

/// A site's ledger, and updates that overtook the head of the ledger that released them.
pub(super) struct SiteLedger {
    watch: LedgerWatch,
    parked: BTreeMap<JobId, ParsedUpdate>,
    /// What it says that it debited last for each job, in this connection.
    debited: BTreeMap<(JobId, Population), (RoundId, Charge)>,
    /// The newest connection; what an older one says late is no longer true.
    session: u64,
}

impl Driver {
    fn ledger(&mut self, site: SiteId) -> Result<&mut SiteLedger, DriverError> {
        match self.ledgers.entry(site) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(unknown) => {
                let watch = LedgerWatch::of(site, self.parts.store.newest_witness(site)?);
                Ok(unknown.insert(SiteLedger {
                    watch,
                    parked: BTreeMap::new(),
                    debited: BTreeMap::new(),
                    session: 0,
                }))
            }
        }
    }

    /// The same, to note what the site says: it is looked at when witnesses are written next.
    fn heard(&mut self, site: SiteId) -> Result<&mut LedgerWatch, DriverError> {
        self.heard.insert(site);
        Ok(&mut self.ledger(site)?.watch)
    }

    /// Whether the site's last head could not follow.
    pub(super) fn is_set_back(&self, site: SiteId) -> bool {
        self.alarms.get(&site).is_some_and(|alarm| alarm.standing)
    }

    /// A site begins a connection, and tells how far its ledger has come. A ledger that was set back gets
    /// the newest witness and the end of its connection.
    pub(super) fn connect(
        &mut self,
        site: SiteId,
        connected: Connected,
        told: &LedgerHead,
    ) -> Result<(), DriverError> {
        let ledger = self.ledger(site)?;
        if connected.session < ledger.session {
            connected.outbox.send(ToSite::Close);
            return Ok(());
        }
        ledger.session = connected.session;
        ledger.watch.reset();
        ledger.parked.clear();
        ledger.debited.clear();
        let witnessed = self.hear(site, told)?;
        let follows = witnessed.verdict == HeadVerdict::Follows;
        let message = CoordinatorToSite::Witnessed(witnessed);
        let answer = if follows { ToSite::Message(message) } else { ToSite::Last(message) };
        connected.outbox.send(answer);
        let old = if follows { self.online.insert(site, connected) } else { self.online.remove(&site) };
        if let Some(old) = old {
            old.outbox.send(ToSite::Close);
            self.for_all_jobs(Event::SiteOffline(site))?;
        }
        if follows { self.for_all_jobs(Event::SiteOnline(site)) } else { Ok(()) }
    }

    /// A connected site tells the head that covers its next contribution.
    pub(super) fn take_head(
        &mut self,
        site: SiteId,
        session: u64,
        told: &LedgerHead,
    ) -> Result<(), DriverError> {
        if self.online.get(&site).is_none_or(|connected| connected.session != session) {
            return Ok(());
        }
        let witnessed = self.hear(site, told)?;
        if witnessed.verdict != HeadVerdict::Follows {
            if let Some(connected) = self.online.remove(&site) {
                connected.outbox.send(ToSite::Last(CoordinatorToSite::Witnessed(witnessed)));
                self.for_all_jobs(Event::SiteOffline(site))?;
            }
            return Ok(());
        }
        let Some((job, round)) = told.contribution.filter(|(job, _)| self.jobs.contains_key(job)) else {
            return Ok(());
        };
        let ledger = self.ledger(site)?;
        ledger.watch.announce(job, round);
        match ledger.parked.remove(&job) {
            Some(update) => self.count_update(site, update),
            None => Ok(()),
        }
    }

    /// A connected site tells what it debited for its next contribution; its ledger and its witnesses hold it to that.
    pub(super) fn take_debited(
        &mut self,
        site: SiteId,
        session: u64,
        debited: &Debited,
    ) -> Result<(), DriverError> {
        let Debited { job, round, charge } = *debited;
        let current = self.online.get(&site).is_some_and(|connected| connected.session == session);
        if current && self.jobs.contains_key(&job) {
            self.ledger(site)?.debited.insert((job, charge.population), (round, charge));
        }
        Ok(())
    }

    /// What `site` says that it debited last for `job`.
    pub(super) fn debited(
        &self,
        site: SiteId,
        job: JobId,
        population: Population,
    ) -> Option<(RoundId, Charge)> {
        self.ledgers.get(&site)?.debited.get(&(job, population)).copied()
    }

    /// Holds a head against what is known. A contradiction is on disk on return, with a witness of all
    /// that was seen before it.
    fn hear(&mut self, site: SiteId, told: &LedgerHead) -> Result<Witnessed, DriverError> {
        let verdict = self.heard(site)?.hear(told.head);
        match (verdict, self.alarms.get_mut(&site)) {
            (HeadVerdict::Follows, Some(alarm)) if alarm.standing => {
                alarm.standing = false;
                tracing::warn!(site = %site.short(), entries = told.head.entries, "the site's newest ledger is back");
                self.parts.store.put_alarm(site, &self.alarms[&site])?;
                self.parts.store.sync()?;
            }
            (HeadVerdict::Follows, _) => {}
            (_, Some(alarm)) if alarm.standing && alarm.head == told.head => {}
            _ => self.raise_alarm(site, verdict, told)?,
        }
        let ledger = self.ledger(site)?;
        if verdict != HeadVerdict::Follows {
            ledger.watch.reset();
            ledger.parked.clear();
        }
        Ok(Witnessed { verdict, witness: ledger.watch.newest().cloned() })
    }

    fn raise_alarm(
        &mut self,
        site: SiteId,
        verdict: HeadVerdict,
        told: &LedgerHead,
    ) -> Result<(), DriverError> {
        tracing::error!(site = %site.short(), entries = told.head.entries, ?verdict, "a site's ledger contradicts its witnesses");
        let (head, signature) = (told.head, told.signature.clone());
        let alarm = Alarm { verdict, head, signature, time_s: clock::unix_time_s(), standing: true };
        self.parts.store.put_alarm(site, &alarm)?;
        self.alarms.insert(site, alarm);
        let witnessed = self.stage_witnesses()?;
        self.parts.store.sync()?;
        self.tell_witnessed(witnessed)?;
        let name = self.site_name(site);
        for job in self.jobs.values_mut() {
            if job.machine.answers().get(&site) == Some(&Decision::Accepted) {
                tell(&mut job.watchers, JobEvent::LedgerSetBack { site: name.clone() });
            }
        }
        Ok(())
    }

    /// Writes witnesses of all that is not witnessed yet; they hold once the store is synced.
    pub(super) fn stage_witnesses(&mut self) -> Result<Vec<SignedWitness>, DriverError> {
        let time_s = clock::unix_time_s();
        let heard = std::mem::take(&mut self.heard);
        let ledgers = heard.iter().filter_map(|site| self.ledgers.get(site));
        let fresh = ledgers.filter_map(|ledger| ledger.watch.unwitnessed(time_s));
        let signed: Vec<_> =
            fresh.map(|witness| SignedWitness::sign(witness, &self.parts.identity)).collect();
        signed.iter().try_for_each(|signed| self.parts.store.put_witness(signed))?;
        Ok(signed)
    }

    /// Tells sites of their witnesses, which are on disk.
    pub(super) fn tell_witnessed(&mut self, witnessed: Vec<SignedWitness>) -> Result<(), DriverError> {
        for signed in witnessed {
            let site = signed.witness.site;
            self.ledger(site)?.watch.keep(signed.clone());
            let message = Witnessed { verdict: HeadVerdict::Follows, witness: Some(signed) };
            self.send(site, CoordinatorToSite::Witnessed(message));
        }
        Ok(())
    }

    /// Notes that an update came. Returns it if the head that covers it came before; keeps it until then
    /// if not, one of each job.
    pub(super) fn received_update(
        &mut self,
        site: SiteId,
        update: ParsedUpdate,
    ) -> Result<Option<ParsedUpdate>, DriverError> {
        if self.is_set_back(site) {
            return Ok(None);
        }
        let ParsedUpdate { job, round, content, len, .. } = update;
        let kind = ReleaseKind::Update;
        self.heard(site)?.receive(Received { job, round, kind, content, len });
        let ledger = self.ledger(site)?;
        if ledger.watch.announced(job).is_none_or(|announced| announced < round) {
            ledger.parked.insert(job, update);
            return Ok(None);
        }
        Ok(Some(update))
    }

    /// Notes that an evaluation came. Whether the head that covers it came before.
    pub(super) fn received_evaluation(
        &mut self,
        site: SiteId,
        evaluation: &Evaluation,
    ) -> Result<bool, DriverError> {
        if self.is_set_back(site) {
            return Ok(false);
        }
        let bytes = Evaluation::released_bytes(&evaluation.histogram);
        let (content, len) = (ContentHash::of(&bytes), bytes.len() as u64);
        let (job, round, kind) = (evaluation.job, evaluation.round, ReleaseKind::Evaluation);
        let watch = self.heard(site)?;
        watch.receive(Received { job, round, kind, content, len });
        Ok(watch.announced(job) == Some(round))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::admission::Arriving;
    use crate::authority::{self, Issuer};
    use crate::driver::{Input, Outgoing, Parts, outbox};
    use crate::roster::Roster;
    use crate::spool::Spool;
    use crate::store::Store;
    use std::path::Path;
    use std::sync::Arc;
    use weighhouse_shared::compression::{Compression, Encoding};
    use weighhouse_shared::identity::{Identity, Purpose};
    use weighhouse_shared::job::JobFile;
    use weighhouse_shared::ledger::Head;
    use weighhouse_shared::tls::Role;
    use weighhouse_shared::wire::codec;
    use weighhouse_shared::wire::messages::{
        CoordinatorToOperator, JobAnswer, OperatorToCoordinator, Outcome, SignedContract,
    };
    use weighhouse_shared::wire::stream::Piece;

    pub const SITE: SiteId = SiteId::from_bytes([1; 32]);

    pub fn driver(state: &Path) -> Driver {
        // Within one process the database lets go of its lock a moment after it is dropped.
        let store = std::iter::repeat_with(|| Store::open(state)).take(100_000).find_map(Result::ok);
        let (authority_key, identity) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let authority = authority::authority_certificate(&authority_key).unwrap();
        let issuer = Issuer { key: authority_key, certificate: authority.clone() };
        let roster = Arc::new(Roster::default().into());
        let (certificate, public_address) = (authority.clone(), "localhost:1".to_owned());
        let store = store.unwrap();
        std::fs::create_dir_all(state.join("spool")).unwrap();
        let spool = Spool::new(state.join("spool"));
        let parts = Parts {
            store,
            spool,
            roster,
            issuer,
            authority,
            identity,
            certificate,
            public_address,
            metrics: Default::default(),
        };
        Driver::restore(parts).unwrap().0
    }

    pub fn head(entries: u64, contribution: Option<(JobId, RoundId)>) -> LedgerHead {
        let head = Head { entries, hash: ContentHash::of(&entries.to_le_bytes()) };
        LedgerHead { contribution, head, signature: vec![7] }
    }

    /// Connects; what the coordinator sends comes out.
    pub fn connect(driver: &mut Driver, session: u64, entries: u64) -> Outgoing {
        let (outbox, sent) = outbox();
        driver.take(Input::Connected { site: SITE, session, head: head(entries, None), outbox }).unwrap();
        sent
    }

    /// The site tells the charge of its update to `round`, as the contract has it, and then the head that covers it.
    pub fn announce(driver: &mut Driver, entries: u64, job: JobId, round: RoundId) {
        let event = driver.jobs[&job].machine.contract().round_charge();
        let charge = Charge { population: Population::Training, event };
        let debited = Debited { job, round, charge };
        driver.take(Input::Debited { site: SITE, session: 1, debited }).unwrap();
        let head = head(entries, Some((job, round)));
        driver.take(Input::Head { site: SITE, session: 1, head }).unwrap();
    }

    /// Runs a job of one site and two rounds without evaluation; the site has accepted it.
    fn run_job(driver: &mut Driver) -> JobId {
        submit(driver, "[training]\nrounds = 2")
    }

    /// Runs a job of one site without evaluation, with `more` after its federation's first key; the site has accepted it.
    pub fn submit(driver: &mut Driver, more: &str) -> JobId {
        let schema = toml::from_str(
            "name = \"test\"\ncustomer = \"id\"\nlabel = { column = \"y\", kind = \"binary\" }\n\
             features = [{ column = \"a\", min = 0.0, max = 1.0 }]",
        );
        let file: JobFile = toml::from_str(&format!(
            "name = \"test\"\nschema = \"x\"\n[privacy]\nepsilon = 8.0\ndelta = 1e-4\n\
             [evaluation]\nevery = 0\n[federation]\nmin_sites = 1\n{more}"
        ))
        .unwrap();
        let contract = codec::encode(&file.contract(schema.unwrap(), [0; 16]).unwrap());
        let operator = Identity::generate().unwrap();
        let now = clock::unix_time_s();
        let (key, authority) = (&driver.parts.issuer.key, &driver.parts.authority);
        let issued = authority::issue(key, authority, Role::Operator, "x", &operator.public_key(), now);
        let signature = operator.sign(Purpose::JobContract, &contract).to_vec();
        let signed = SignedContract { contract, certificate: issued.unwrap().to_vec(), signature };
        let answer = driver.request(OperatorToCoordinator::SubmitJob(signed));
        let Ok((CoordinatorToOperator::Submitted(job), _)) = answer else { panic!("the job is a good one") };
        accept(driver, job);
        job
    }

    pub fn accept(driver: &mut Driver, job: JobId) {
        driver.take(Input::Answer(SITE, JobAnswer { job, decision: Decision::Accepted })).unwrap();
    }

    pub fn update(
        driver: &Driver,
        job: JobId,
        round: RoundId,
        values: [i32; 2],
        spool: &Path,
    ) -> ParsedUpdate {
        let body = values.map(i32::to_le_bytes).concat();
        let base = driver.jobs[&job].machine.model();
        let (content, total) = (ContentHash::of(&body), body.len() as u64);
        let piece = Piece { job, round, base, content, total, offset: 0, len: body.len() as u32 };
        let encoding = Encoding { compression: Compression::None, parameters: 2 };
        let mut arriving = Arriving::begin(piece, encoding, &Spool::new(spool.into())).unwrap().unwrap();
        arriving.push(&body).unwrap();
        arriving.finish().unwrap().unwrap()
    }

    /// All that was sent so far.
    pub fn drain(sent: &mut Outgoing) -> Vec<ToSite> {
        std::iter::from_fn(|| sent.try_next()).collect()
    }

    fn witness_of(sent: &[ToSite]) -> Option<(HeadVerdict, Option<SignedWitness>)> {
        sent.iter().rev().find_map(|sent| match sent {
            ToSite::Message(CoordinatorToSite::Witnessed(told))
            | ToSite::Last(CoordinatorToSite::Witnessed(told)) => Some((told.verdict, told.witness.clone())),
            _ => None,
        })
    }

    pub fn receipts(sent: &[ToSite]) -> Vec<Outcome> {
        let receipt = |sent: &ToSite| match sent {
            ToSite::Message(CoordinatorToSite::Receipt(receipt)) => Some(receipt.outcome),
            _ => None,
        };
        sent.iter().filter_map(receipt).collect()
    }

    #[test]
    fn late_words_of_an_older_connection_raise_no_alarm() {
        let folder = tempfile::tempdir().unwrap();
        let mut driver = driver(folder.path());
        let mut newer = connect(&mut driver, 2, 12);
        let mut older = connect(&mut driver, 1, 10);
        driver.take(Input::Head { site: SITE, session: 1, head: head(11, None) }).unwrap();
        assert!(matches!(drain(&mut older)[..], [ToSite::Close]));
        assert_eq!(witness_of(&drain(&mut newer)), Some((HeadVerdict::Follows, None)));
        assert!(!driver.is_set_back(SITE) && driver.online[&SITE].session == 2);
    }

    #[test]
    fn a_ledger_set_back_is_remembered_over_a_restart_until_the_newest_is_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = driver(folder.path());
        drop(connect(&mut first, 1, 12));
        let mut sent = connect(&mut first, 2, 9);
        let sent = drain(&mut sent);
        assert!(matches!(sent.last(), Some(ToSite::Last(_))));
        let (verdict, witness) = witness_of(&sent).unwrap();
        let witness = witness.unwrap();
        assert_eq!((verdict, witness.witness.head), (HeadVerdict::SetBack, head(12, None).head));
        assert!(witness.is_signed_by(&first.parts.identity.public_key()));
        assert!(first.is_set_back(SITE) && !first.online.contains_key(&SITE));

        drop(first);
        let mut second = driver(folder.path());
        assert!(second.is_set_back(SITE));
        let mut sent = connect(&mut second, 1, 11);
        assert_eq!(witness_of(&drain(&mut sent)).unwrap().0, HeadVerdict::SetBack);
        let mut sent = connect(&mut second, 2, 12);
        assert_eq!(witness_of(&drain(&mut sent)).unwrap(), (HeadVerdict::Follows, Some(witness)));
        assert!(!second.is_set_back(SITE) && second.online.contains_key(&SITE));
    }

    #[test]
    fn an_update_that_overtakes_its_head_waits_for_it_and_is_witnessed_with_the_round() {
        let folder = tempfile::tempdir().unwrap();
        let mut driver = driver(&folder.path().join("state"));
        let mut sent = connect(&mut driver, 1, 3);
        let job = run_job(&mut driver);
        drain(&mut sent);
        let update = update(&driver, job, RoundId(0), [1, 2], folder.path());
        let content = update.content;
        driver.take(Input::Update(SITE, update)).unwrap();
        assert!(drain(&mut sent).is_empty(), "no head of the ledger that released it came yet");
        let told = head(6, Some((job, RoundId(0))));
        announce(&mut driver, 6, job, RoundId(0));
        let sent = drain(&mut sent);
        assert_eq!(receipts(&sent), [Outcome::Admitted]);
        let witness = witness_of(&sent).unwrap().1.unwrap().witness;
        assert_eq!(witness.head, told.head);
        assert!(
            matches!(&witness.received[..], [received] if received.content == content && received.len == 8)
        );
        assert_eq!(driver.jobs[&job].machine.round(), RoundId(1));
    }

    #[test]
    fn nothing_of_a_site_whose_ledger_was_set_back_counts() {
        let folder = tempfile::tempdir().unwrap();
        let mut driver = driver(&folder.path().join("state"));
        let mut sent = connect(&mut driver, 1, 3);
        let job = run_job(&mut driver);
        let (_, mut events) = driver.watch(job).unwrap().unwrap();
        driver.take(Input::Head { site: SITE, session: 1, head: head(2, Some((job, RoundId(0)))) }).unwrap();
        let update = update(&driver, job, RoundId(0), [1, 2], folder.path());
        driver.take(Input::Update(SITE, update)).unwrap();
        driver.take(Input::Head { site: SITE, session: 1, head: head(6, Some((job, RoundId(0)))) }).unwrap();
        assert!(receipts(&drain(&mut sent)).is_empty());
        assert_eq!(driver.jobs[&job].machine.round(), RoundId(0));
        assert_eq!(events.try_recv().unwrap(), JobEvent::LedgerSetBack { site: SITE.short() });
    }
}
