//! One peer's conversation as a pure state machine: what it said and the time in, actions out.
//! [`crate::session`] carries them out in their order.
//!
//! A site greets with hello and the head of its ledger, in time; then it may say what it likes that a site may say.
//! A new site shows its invite and gets its certificate, no more.

use crate::driver::Input;
use weighhouse_shared::ids::SiteId;
use weighhouse_shared::wire::messages::{
    CoordinatorToSite, Hello, Holding, LedgerHead, SiteToCoordinator, VersionRefused, Welcome,
};
use weighhouse_shared::wire::{OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION, common_version};

/// How long a peer may take to greet, in milliseconds.
pub const GREETING_MS: u64 = 10_000;
/// The protocol version that brought [`Holding`].
const HOLDING_VERSION: u16 = 2;

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// A message came.
    Heard(SiteToCoordinator),
    /// Time has passed.
    Tick,
}

/// Something to do.
#[derive(Debug)]
pub enum Action {
    /// Send a message.
    Send(CoordinatorToSite),
    /// Send a message, and end once it has arrived.
    Last(CoordinatorToSite),
    /// Let the driver look at the invite.
    Enrol,
    /// Tell the driver that the site is there, with this head; its signature was checked.
    Connect(LedgerHead),
    /// Tell the driver what the site said.
    Tell(Input),
    /// The site has part of a model.
    Holds(Holding),
    /// End the connection.
    Fail(Failure),
}

/// Why a conversation is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The peer said something out of turn, or what it did not sign.
    Protocol,
    /// It does not greet.
    Silent,
}

/// Who the handshake let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// A site, in its so-manieth session, with its key.
    Site {
        /// Which one.
        site: SiteId,
        /// Counts sessions.
        session: u64,
        /// Its Ed25519 key.
        public_key: [u8; 32],
    },
    /// Whoever holds an invite.
    Enrolling,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Since when.
    Hello(u64),
    /// Since when.
    Head(u64),
    Up,
    Over,
}

/// One conversation.
#[derive(Debug)]
pub struct SessionMachine {
    who: Who,
    phase: Phase,
    /// What both speak, once the site has said hello.
    version: u16,
}

impl SessionMachine {
    /// Begins at `now`, in milliseconds of any steady clock.
    pub fn new(who: Who, now: u64) -> Self {
        Self { who, phase: Phase::Hello(now), version: OLDEST_PROTOCOL_VERSION }
    }

    /// Whether the greeting is over.
    pub fn is_up(&self) -> bool {
        self.phase == Phase::Up
    }

    /// Whether the site goes on with an upload that was cut off.
    pub fn resumes(&self) -> bool {
        self.version >= HOLDING_VERSION
    }

    /// When [`Event::Tick`] is due, if nothing else happens first.
    pub fn next_timeout(&self) -> Option<u64> {
        match self.phase {
            Phase::Hello(since) | Phase::Head(since) => Some(since + GREETING_MS),
            Phase::Up | Phase::Over => None,
        }
    }

    /// Takes what happened at `now`, returns what to do, in this order.
    pub fn handle(&mut self, event: Event, now: u64) -> Vec<Action> {
        let message = match event {
            Event::Tick => return if self.is_late(now) { self.fail(Failure::Silent) } else { Vec::new() },
            Event::Heard(message) => message,
        };
        match (self.who, self.phase, message) {
            (Who::Enrolling, Phase::Hello(_), SiteToCoordinator::Enrol(_)) => {
                self.phase = Phase::Over;
                vec![Action::Enrol]
            }
            (Who::Site { .. }, Phase::Hello(since), SiteToCoordinator::Hello(hello)) => {
                self.hello(&hello, since)
            }
            (Who::Site { public_key, .. }, Phase::Head(_), SiteToCoordinator::LedgerHead(head)) => {
                if !head.head.is_signed_by(&public_key, &head.signature) {
                    return self.fail(Failure::Protocol);
                }
                self.phase = Phase::Up;
                vec![Action::Connect(head)]
            }
            (Who::Site { site, session, public_key }, Phase::Up, message) => {
                self.said(site, session, &public_key, message)
            }
            _ => self.fail(Failure::Protocol),
        }
    }

    fn is_late(&self, now: u64) -> bool {
        self.next_timeout().is_some_and(|due| now >= due)
    }

    fn fail(&mut self, failure: Failure) -> Vec<Action> {
        self.phase = Phase::Over;
        vec![Action::Fail(failure)]
    }

    fn hello(&mut self, hello: &Hello, since: u64) -> Vec<Action> {
        let Some(protocol) = common_version(hello.protocol) else {
            self.phase = Phase::Over;
            let versions = VersionRefused { coordinator: PROTOCOL_VERSION, site: hello.protocol };
            return vec![Action::Last(CoordinatorToSite::VersionRefused(versions))];
        };
        if let Who::Site { site, .. } = self.who {
            tracing::info!(site = %site.short(), release = %hello.release.escape_debug(), "a site connected");
        }
        (self.phase, self.version) = (Phase::Head(since), protocol);
        let release = env!("CARGO_PKG_VERSION").to_owned();
        vec![Action::Send(CoordinatorToSite::Welcome(Welcome { protocol, release }))]
    }

    fn said(
        &mut self,
        site: SiteId,
        session: u64,
        public_key: &[u8; 32],
        message: SiteToCoordinator,
    ) -> Vec<Action> {
        vec![match message {
            SiteToCoordinator::JobAnswer(answer) => Action::Tell(Input::Answer(site, answer)),
            SiteToCoordinator::Evaluation(evaluation) => Action::Tell(Input::Evaluation(site, evaluation)),
            SiteToCoordinator::RoundSkipped(skipped) => Action::Tell(Input::Skipped(site, skipped)),
            SiteToCoordinator::Standing(standing) => Action::Tell(Input::Standing(site, standing)),
            SiteToCoordinator::LedgerHead(head) if head.head.is_signed_by(public_key, &head.signature) => {
                Action::Tell(Input::Head { site, session, head })
            }
            SiteToCoordinator::Debited(debited) => Action::Tell(Input::Debited { site, session, debited }),
            SiteToCoordinator::Holding(holding) => Action::Holds(holding),
            SiteToCoordinator::SumKey(told) => Action::Tell(Input::SumKey(site, told)),
            SiteToCoordinator::SumOffer(told) => Action::Tell(Input::SumOffer(site, told)),
            SiteToCoordinator::SumAnswer(told) => Action::Tell(Input::SumAnswer(site, told)),
            SiteToCoordinator::Renew(_) => Action::Tell(Input::Renew(site)),
            SiteToCoordinator::LedgerHead(_) | SiteToCoordinator::Hello(_) | SiteToCoordinator::Enrol(_) => {
                return self.fail(Failure::Protocol);
            }
        }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weighhouse_shared::identity::Identity;
    use weighhouse_shared::ids::ContentHash;
    use weighhouse_shared::ledger::Head;
    use weighhouse_shared::wire::messages::Enrol;

    fn site(identity: &Identity) -> SessionMachine {
        let (site, public_key) = (identity.site(), identity.public_key());
        SessionMachine::new(Who::Site { site, session: 1, public_key }, 5)
    }

    fn hello(protocol: u16) -> Event {
        Event::Heard(SiteToCoordinator::Hello(Hello { protocol, release: "x".into() }))
    }

    fn head(signer: &Identity) -> Event {
        let head = Head { entries: 1, hash: ContentHash::of(b"line") };
        let signature = head.sign(signer).to_vec();
        Event::Heard(SiteToCoordinator::LedgerHead(LedgerHead { contribution: None, head, signature }))
    }

    #[test]
    fn a_site_that_greets_is_connected_with_the_head_it_signed() {
        let identity = Identity::generate().unwrap();
        let mut machine = site(&identity);
        let welcome = machine.handle(hello(PROTOCOL_VERSION), 6);
        assert!(matches!(&welcome[..], [Action::Send(CoordinatorToSite::Welcome(_))]));
        assert!(matches!(&machine.handle(head(&identity), 7)[..], [Action::Connect(_)]));
        assert!(machine.is_up() && machine.next_timeout().is_none());
        assert!(matches!(&machine.handle(head(&identity), 8)[..], [Action::Tell(Input::Head { .. })]));
    }

    #[test]
    fn a_peer_that_does_not_greet_in_time_is_dropped_also_between_hello_and_head() {
        let identity = Identity::generate().unwrap();
        for greets in [false, true] {
            let mut machine = site(&identity);
            if greets {
                machine.handle(hello(PROTOCOL_VERSION), 9_000);
            }
            assert_eq!(machine.next_timeout(), Some(5 + GREETING_MS));
            assert!(machine.handle(Event::Tick, 4 + GREETING_MS).is_empty());
            let late = machine.handle(Event::Tick, 5 + GREETING_MS);
            assert!(matches!(&late[..], [Action::Fail(Failure::Silent)]));
        }
    }

    #[test]
    fn what_is_out_of_turn_or_signed_by_another_ends_the_conversation() {
        let (identity, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let failed = |actions: Vec<Action>| matches!(&actions[..], [Action::Fail(Failure::Protocol)]);
        assert!(failed(site(&identity).handle(head(&identity), 6)));
        let mut machine = site(&identity);
        machine.handle(hello(PROTOCOL_VERSION), 6);
        assert!(failed(machine.handle(head(&other), 7)));
        assert!(failed(machine.handle(head(&identity), 8)), "it is over");
        let mut machine = SessionMachine::new(Who::Enrolling, 0);
        assert!(failed(machine.handle(hello(PROTOCOL_VERSION), 1)));
        let mut machine = SessionMachine::new(Who::Enrolling, 0);
        let enrol = || Event::Heard(SiteToCoordinator::Enrol(Enrol {}));
        assert!(matches!(&machine.handle(enrol(), 1)[..], [Action::Enrol]));
        assert!(failed(machine.handle(enrol(), 2)));
    }

    #[test]
    fn a_version_that_is_no_longer_spoken_is_told_both_versions_last_and_the_older_of_both_is_spoken() {
        let mut machine = site(&Identity::generate().unwrap());
        let told = machine.handle(hello(OLDEST_PROTOCOL_VERSION - 1), 6);
        assert!(matches!(&told[..], [Action::Last(CoordinatorToSite::VersionRefused(_))]));
        for (theirs, common) in
            [(PROTOCOL_VERSION + 1, PROTOCOL_VERSION), (OLDEST_PROTOCOL_VERSION, OLDEST_PROTOCOL_VERSION)]
        {
            let mut machine = site(&Identity::generate().unwrap());
            let told = machine.handle(hello(theirs), 6);
            let [Action::Send(CoordinatorToSite::Welcome(welcome))] = &told[..] else { panic!("{told:?}") };
            assert_eq!(welcome.protocol, common);
            assert_eq!(machine.resumes(), common >= HOLDING_VERSION);
        }
    }
}
