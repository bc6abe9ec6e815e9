//! What waits to be sent to one site: the driver puts it in, the site's session takes it out.

use crate::global_model::GlobalModel;
use std::sync::Arc;
use tokio::sync::{Notify, mpsc};
use weighhouse_shared::ids::{JobId, RoundId};
use weighhouse_shared::wire::messages::CoordinatorToSite;

/// What a session is told to send to its site.
#[derive(Debug)]
pub enum ToSite {
    /// A message.
    Message(CoordinatorToSite),
    /// A model's bytes for a round.
    Model {
        /// The job.
        job: JobId,
        /// The round.
        round: RoundId,
        /// The model.
        model: GlobalModel,
    },
    /// A last message; the connection ends once it has arrived.
    Last(CoordinatorToSite),
    /// The site was revoked, or connected a second time.
    Close,
}

/// What waits to be sent to one site before it is given up: far more than all jobs have to say at once.
const OUTBOX_LEN: usize = 1 << 14;

/// Where the driver puts what one site is to be sent. It never waits: a site that does not keep up loses its session
/// and is told anew in the next.
#[derive(Debug)]
pub struct Outbox {
    commands: mpsc::Sender<ToSite>,
    full: Arc<Notify>,
}

/// The other end of an [`Outbox`].
#[derive(Debug)]
pub struct Outgoing {
    commands: mpsc::Receiver<ToSite>,
    full: Arc<Notify>,
}

/// Both ends.
pub fn outbox() -> (Outbox, Outgoing) {
    let (sender, receiver) = mpsc::channel(OUTBOX_LEN);
    let full = Arc::new(Notify::new());
    (Outbox { commands: sender, full: full.clone() }, Outgoing { commands: receiver, full })
}

impl Outbox {
    /// Puts a command in.
    pub fn send(&self, command: ToSite) {
        // A session that just ended has dropped its end; its site is told again when it is back.
        if let Err(mpsc::error::TrySendError::Full(_)) = self.commands.try_send(command) {
            self.full.notify_one();
        }
    }
}

impl Outgoing {
    /// The next command; None once something was lost, or nothing more will come.
    pub async fn next(&mut self) -> Option<ToSite> {
        tokio::select! {
            biased;
            () = self.full.notified() => None,
            command = self.commands.recv() => command,
        }
    }

    /// The next command, if one waits.
    pub fn try_next(&mut self) -> Option<ToSite> {
        self.commands.try_recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_that_does_not_keep_up_loses_its_session_and_the_driver_never_waits() {
        let (outbox, mut outgoing) = outbox();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        outbox.send(ToSite::Close);
        assert!(runtime.block_on(outgoing.next()).is_some());
        (0..OUTBOX_LEN + 1).for_each(|_| outbox.send(ToSite::Close));
        assert!(runtime.block_on(outgoing.next()).is_none());
    }
}
