//! Decisions that a newcomer would otherwise have to guess, with their reasons.
//!
//! **Gradients are integers before they are summed, by rounding their factors.** Rounding each customer's
//! gradient takes one in memory for each; rounding after a float sum leaves the sum's own error out of the
//! sensitivity. Rounded factors give both: an exact norm and an exact sum from one matrix product. Where a customer has so
//! many rows that their pairs cost more than its gradient (sequences of thirty steps), the gradient is made after all: one
//! product a customer instead of three for its norms and a part of the sum's.
//!
//! **Every parameterised layer is one of three kinds of tap.** Linear factors (activations and output gradients),
//! embedding factors (ids and gradients) and those of a gain (entry by entry) are all that clipping knows; the flat parameters are laid out by the taps, and
//! a sum that the taps do not fill panics. A new layer brings its factors or it cannot be trained.
//!
//! **Vocabularies are public and fixed in the schema.** A vocabulary read off a site's records would tell which
//! values occur there. Every category's weight is noised, whether any customer has it or not.
//!
//! **Our own matrix product instead of a library's.** The sensitivity argument needs a customer's integers to
//! be the same whoever else is in the batch; a library that changes its summation order with the batch size
//! does not promise that.
//!
//! **The ledger is text, one JSON object a line.** The officer can read it with any tool; hash chain and
//! signatures are over the exact bytes of a line, so readability costs no rigour.
//!
//! **A site keeps no database.** What it must not forget is the ledger; what it must be able to repeat is the
//! outbox. The coordinator offers a job again after every reconnect. Two kinds of plain files are all that
//! has to survive.
//!
//! **The outbox is not synced, the ledger is.** A power cut may lose the stored update; its debit is then
//! wasted, which is safe. Two syncs a round, both of the ledger, are enough.
//!
//! **Operators speak the same protocol.** An operator has a certificate of the authority with another role, and
//! signs jobs with its key: a coordinator that is taken over can neither make jobs nor speak as an operator.
//!
//! **A simulation runs the sites' own code, and its updates are of another type.** Clipping, noise and local steps take who
//! pays as a type parameter: a debit, which stands for an entry on disk, or a simulated site's round, which costs nobody
//! anything. Only a debit's updates give their bytes away; a simulated one can be read and not sent.
//!
//! **The enforced accountant is the Renyi filter.** It is valid for charges chosen along the way, which is what
//! a site's life is. The certified figures for a fixed plan are tighter by a few per cent and stand ready in
//! [`accountant`](crate::privacy::accountant).
//!
//! **Every site's gradient has the same public denominator.** A store with few customers moves the model less
//! and is noised as much as any other: its size does not show, and uniform weights stay fair to customers.
//!
//! **A round that everyone has left or skipped is given up, and the job goes on.** Its model stays as it was.
//! A round that waits in vain for enough sites ends the job with the reason.
//!
//! **Short models are values of the database, long ones files beside it.** The embedded database holds a value in
//! memory several times over while it writes it; a model of 40 MB would cost hundreds. The file is written
//! whole, synced and renamed before the round's record is.
//!
//! **Large memory and files are written over, not made anew.** What a round's data path costs beside encryption and
//! hashing is fresh pages: the system clears and accounts each one, in memory and in its file cache. So a site
//! receives each model into the memory of the one before and writes each update over the one before, and the coordinator
//! keeps its spool files and its sum for the next round and averages in the place of the old model. All of it is let go
//! when the job ends. A file or a buffer is used again only once nothing can still ask for what it held: an
//! outbox item after its round is over, a spool file after its sum, a buffer when the transport holds no part of it.
//!
//! **Contents are hashed with SHA-256, four times a round.** The site checks the model and names its update, the coordinator
//! checks each update and names the new model. Processors have instructions for it, so a content costs about
//! as much to hash as to encrypt and decrypt; anyone can check a hash in a ledger with the tools at hand, and it is
//! the same library that does everything else. Of the four none can go without loosening a promise.
//!
//! **The coordinator's connection identifiers survive its restart.** They and the reset tokens come from its key, so
//! a site learns at its next packet that the process it spoke to is gone, not after half a minute of silence.
//!
//! **OpenDP without its OpenSSL feature.** Its generator is then `rand`'s ChaCha20, seeded and reseeded by the system: a
//! cryptographic one too. OpenSSL, built from source, was a quarter of the whole build and a second crypto
//! library in the binary.
//!
//! **A decision about a job is a file, and a ring.** `client approve` must work with the daemon down, survive any kill and
//! take effect at once. So the file is the decision, and a Unix datagram beside it, with nothing in it, tells
//! a running daemon to look. It costs no dependency (a folder watcher would), no port, and follows the
//! folder into a container.
//!
//! **An optimiser's state at a site lives for one round.** Each round starts from the global model, which the site's last
//! steps are but a small part of; kept state would be of other parameters, would differ between sites that
//! took part and sites that were away, and would have to survive every kill. State over rounds belongs where every
//! round passes: `[federation] strategy`, at the coordinator. Adam at a site with the usual three local steps is
//! therefore close to descent by signs, and plain descent stays the default.
//!
//! **The server's state is stored by the round that it goes into.** State and model are written before the job's
//! record, one sync makes all three count, and what the round started from is dropped after that. So a
//! coordinator that is killed anywhere repeats a round from the state that belongs to its model, or has both
//! of the next one. State that is missing is an error, never a fresh start.
//!
//! **A secure sum's round is one step, and its defaults hold over sizes and epsilons.** With the noise of the sum alone a
//! batch of all customers is worth more than many steps a round: 50 rounds at a rate of 4.5 with gradients clipped to
//! 0.5, and the average of about the last fifth of the models, which takes out of the last steps what noise moved. Momentum
//! or an adaptive step gains where noise is little and loses more where it is much. Its members are named by hashes of
//! their keys, which the coordinator's list of sites has already; who signs by a key shows the key.
//!
//! **The average of the rounds' models is the final model, not a second one.** With `average_weights` the commit of the
//! last training round puts the average in the model's place: what is measured last and exported is the average. Rounds
//! go on from the model itself, as the average lags behind; a job that is stopped early has the model.
//!
//! **Clipping is fixed where a norm is chosen, else automatic.** Automatic clipping (Bu et al. 2023) saves the choice of a norm, and costs what
//! scores mean: where one label is rare, equal weight for every customer drives the scores of all towards the
//! frequent label's. On the demo's made-up branches (12 branches, default settings, epsilon 8 and 1, means of 8
//! runs) the log loss is 0.41 and 0.44 with automatic clipping against 0.24 and 0.28 with fixed; the AUC is 0.800 and
//! 0.775 against 0.818 and 0.771.
//!
//! **One key names the strategy.** Papers and other systems call the whole of rule and step by one name, so a job file does
//! as well; there is no second way to say the same. `fedprox` is the one name that says something of the sites: it needs
//! `training.proximal`, which plain `fedavg` refuses and the others take.
//!
//! **A round that everyone has left with too few contributions comes to nothing.** `min_sites` is what strategies
//! count on, so a smaller round is given up: its updates are dropped, the model stays, and what the sites debited for it is
//! spent.
//!
//! **One rule of liveness.** Within a round there are no deadlines for steps: once `min_sites` are in, the others are waited
//! for as long as something of anyone comes in within `max_idle_s`, and never past `max_time_s`. Before that only the latter
//! counts: training itself shows nothing.
//!
//! **Rules that need all updates keep them in one file, not in memory.** A hundred updates of 40 MB are 4 GB. Rows of a file
//! are read in blocks of columns that fit 16 MiB, so a larger federation costs more reading, not more memory, and no
//! more file handles.
//!
//! **Compression decodes at the door.** Admission turns compressed bytes into the integers that all else works with, as
//! they arrive; range checks, strategies and the norm bound know one form only. Steps of quantisation are integers too, so there is
//! no float on the way in that could be no number.
//! **An issuer stands between the authority and sites, and vouches for nobody else.** Invites and renewals need a key
//! at hand at the coordinator. Were it the authority's, whoever takes the coordinator over could make operators, and
//! jobs. What the handshake takes from a peer is its own certificate alone; the coordinator adds its issuer's to verify a
//! site's, and nothing to verify an operator's.
//!
//! **Revocation asks the roster, not a certificate list.** Every handshake passes the coordinator anyway, and every live
//! session watches the roster. Lists and status services (CRL, OCSP) are for verifiers who cannot ask.
//!
//! **Metrics are OpenMetrics text from prometheus-client over a hand-written loopback responder.** The library is the
//! project's own and small; an HTTP server for one path would be the largest part of the binary. A site exports no
//! durations: how long a round takes grows with its customers.
//!
//! **Explanations are Shapley values against a public row, by permutations that are the same for every row.** Gradients
//! and rules made for one kind of network would say nothing of the next; a baseline from the site's records would differ
//! between sites and tell of them.
