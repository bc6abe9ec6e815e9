//! A round that is open: which sites are in it, how far each has come, and when it may close.

use std::collections::{BTreeMap, BTreeSet};
use weighhouse_shared::ids::SiteId;
use weighhouse_shared::job::{Federation, RoundTask};

/// How far a site has come in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Progress {
    pub updated: bool,
    pub evaluated: bool,
    pub skipped: bool,
}

impl Progress {
    /// Whether the site is not waited for any more.
    pub fn is_done(self, task: RoundTask) -> bool {
        self.skipped || if task.train { self.updated } else { self.evaluated }
    }
}

/// The round.
#[derive(Debug, Clone)]
pub(super) struct OpenRound {
    pub task: RoundTask,
    pub opened: u64,
    /// When something of a site came in last.
    pub progressed: u64,
    pub sites: BTreeMap<SiteId, Progress>,
}

/// When an open round may close, in milliseconds of the machine's clock.
pub(super) struct Deadlines {
    /// Not before that.
    pub earliest: u64,
    /// Without progress until then, with enough contributions.
    pub idle: u64,
    /// At the latest.
    pub latest: u64,
}

impl OpenRound {
    /// Within the terms of `federation`.
    pub fn deadlines(&self, federation: &Federation) -> Deadlines {
        Deadlines {
            earliest: self.opened + 1000 * u64::from(federation.min_time_s),
            idle: self.progressed + 1000 * u64::from(federation.max_idle_s),
            latest: self.opened + 1000 * u64::from(federation.max_time_s),
        }
    }

    /// Whose updates are here.
    pub fn updated(&self) -> BTreeSet<SiteId> {
        self.sites.iter().filter(|(_, progress)| progress.updated).map(|(site, _)| *site).collect()
    }

    /// How many contributions are here.
    pub fn contributions(&self) -> u32 {
        let contributed =
            |progress: &&Progress| if self.task.train { progress.updated } else { progress.evaluated };
        self.sites.values().filter(contributed).count() as u32
    }
}
