//! Connections as the two ends see them: control messages in order, contents in any order beside them, and two
//! ends that learn of a loss each in their own time.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::collections::VecDeque;
use weighhouse_shared::wire::messages::{CoordinatorToSite, SiteToCoordinator};
use weighhouse_shared::wire::stream::{Content, Piece};

/// One connection.
#[derive(Debug, Default)]
pub struct Link {
    pub site: usize,
    pub up: VecDeque<SiteToCoordinator>,
    pub updates: Vec<Content>,
    pub down: VecDeque<CoordinatorToSite>,
    pub models: Vec<Content>,
    /// What is on its way is lost, and so is what is still sent.
    pub cut: bool,
    pub site_left: bool,
    pub hq_left: bool,
}

impl Link {
    pub fn of(site: usize) -> Self {
        Self { site, ..Self::default() }
    }

    pub fn cut(&mut self) {
        self.cut = true;
        self.up.clear();
        self.down.clear();
        self.updates.clear();
        self.models.clear();
    }

    pub fn send_up(&mut self, message: SiteToCoordinator) {
        if !self.cut {
            self.up.push_back(message);
        }
    }

    pub fn send_down(&mut self, message: CoordinatorToSite) {
        if !self.cut {
            self.down.push_back(message);
        }
    }

    /// Loses, doubles or swaps messages, as no honest transport does. Greetings and heads keep their places: what
    /// they mean is their order.
    pub fn disturb(&mut self, random: &mut ChaCha8Rng) {
        let what = random.random_range(0..3);
        match random.random_bool(0.5) {
            true => disturb(&mut self.up, what, random, |message| {
                matches!(message, SiteToCoordinator::Hello(_) | SiteToCoordinator::LedgerHead(_))
            }),
            false => disturb(&mut self.down, what, random, |message| {
                matches!(message, CoordinatorToSite::Welcome(_) | CoordinatorToSite::Witnessed(_))
            }),
        }
    }
}

fn disturb<M: Clone>(
    queue: &mut VecDeque<M>,
    what: u32,
    random: &mut ChaCha8Rng,
    keeps_its_place: impl Fn(&M) -> bool,
) {
    if queue.is_empty() {
        return;
    }
    let at = random.random_range(0..queue.len());
    if keeps_its_place(&queue[at]) {
        return;
    }
    match what {
        0 => {
            queue.remove(at);
        }
        1 => queue.insert(at, queue[at].clone()),
        _ if at + 1 < queue.len() && !keeps_its_place(&queue[at + 1]) => queue.swap(at, at + 1),
        _ => {}
    }
}

/// The header under which a whole content travels here.
pub fn piece(content: &Content) -> Piece {
    let Content { job, round, base, hash, ref bytes } = *content;
    Piece { job, round, base, content: hash, total: bytes.len() as u64, offset: 0, len: bytes.len() as u32 }
}
