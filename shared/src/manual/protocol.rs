//! What travels, in which order, and what each side may rely on.
//!
//! # Connection
//! One UDP port, QUIC, TLS 1.3 with certificates on both sides, ALPN `weighhouse/1`, key exchange
//! X25519MLKEM768 only. The coordinator's handshake lets in: operators whose certificate the federation's authority
//! signed; sites whose certificate its issuer signed and the roster has not revoked; and enrolling sites whose
//! self-signed certificate carries a valid proof of an open invite's secret ([`tls`](crate::tls)). Anyone else has seen
//! the coordinator's certificate and nothing more.
//!
//! # Certificates
//! The authority signs three: the coordinator's, the operator's, and an issuer's, whose key is the coordinator's and which
//! signs sites'. A site trusts the authority; a coordinator or an operator that only the issuer vouches for is nobody. So
//! the authority's key is needed once in years and may be kept elsewhere (`coordinator renew`), or be another
//! organisation's (`coordinator init --external-authority`); whoever takes the coordinator over can let sites in, and can
//! neither make jobs nor speak as an operator.
//!
//! | certificate | life | renewed |
//! | --- | --- | --- |
//! | a site's | 2 years | by itself once less than a third is left: looked at on each connection and daily, for the same key |
//! | coordinator's, operator's | 2 years | by the daemon, at its start and daily, if `authority.key` is in the home; else by `coordinator renew` or `install` |
//! | issuer's | 5 years | as the coordinator's |
//! | authority's | 20 years | never: it is what a site joined |
//!
//! No certificate outlives its signer's. An invite is good for the hours it was made for, and for one site; a join that
//! was cut off may be repeated with the same key. Revocation ends the site's live connections at once, whatever they are
//! doing or waiting for; it needs no certificate list, since every handshake asks the roster.
//!
//! # Versions
//! The protocol's major version is in the handshake (`weighhouse/1`), its minor version in the first message
//! ([`wire::PROTOCOL_VERSION`](crate::wire::PROTOCOL_VERSION)). Both sides speak the older minor version of both, as long as
//! it is at least [`wire::OLDEST_PROTOCOL_VERSION`](crate::wire::OLDEST_PROTOCOL_VERSION); else the site is told both versions.
//! So sites and coordinator may be updated in any order.
//!
//! # Frames
//! Control messages are frames: length, number, canonical bytes ([`wire::frame`](crate::wire::frame)). A frame is at
//! most 1 MiB. Numbers are never reused; golden bytes of every message stand under `tests/data/wire/v1/`.
//! Decoders refuse trailing bytes and forged lengths.
//!
//! # Contents
//! Models and updates travel in pieces of at most 4 MiB, each on a unidirectional stream that begins with a
//! header naming job, round, base model, hash, total length and offset ([`wire::stream`](crate::wire::stream)).
//! A piece of a model holds whole values; a site drops a model that is cut inside one. An update is 32-bit integers, or
//! compressed as the contract says ([`compression`](crate::compression)); either way its length is a constant of the job.
//!
//! What arrived in part outlives its connection. Before the answer that makes a round start again, a site says how much
//! of which model it holds; before the start, the coordinator says how much it holds of the site's update; the rest is
//! sent from there. The hash is that of the whole in any case.
//!
//! # State machines
//! What is said and done on either side is decided by pure machines, time being an argument: a site's sessions
//! (`client::session::machine`), its rounds (`client::round`), the way of one item from its debit to its departure
//! (`client::payment`); the coordinator's conversations (`coordinator::session::machine`) and jobs with their rounds
//! (`coordinator::job`), over which the driver saves before it sends, on whatever disk it is given. `tests/it/cluster.rs` puts all of them
//! together in memory and plays thousands of random sequences of deliveries, losses, crashes and pauses against a book
//! of what must hold; a failure names the seed that replays it.
//!
//! # Limits
//! | what | limit |
//! | --- | --- |
//! | before an address is shown | a stateless retry (RFC 9000, section 8.1.2), nothing kept |
//! | handshakes under way | 256, of one address 64, each 10 s |
//! | connections | 20 000, of one key 16 |
//! | greeting | 10 s; a site waits 30 s for the coordinator's |
//! | what was begun (a frame, a piece, the reading of either) | a block of 128 KiB in 30 s, or the connection ends |
//! | streams at a time, of one peer | 4 each way |
//! | on its way from one site | 128 KiB; 4 MiB while its update is being read |
//! | updates read at a time, until counted | 8 of all sites; those that came in part: 16 kept |
//! | waiting for one site | 16 384 messages, and of each job the newest model only |
//! | a frame | 1 MiB; memory grows with what came, not with what was announced |
//!
//! # A site's conversation
//! ```text
//! site                                   coordinator
//! Hello, LedgerHead              ->
//!                                <-      Welcome | VersionRefused
//!                                <-      Witnessed (newest witness; or: set back, and the end)
//!                                <-      JobOffer (contract, operator's certificate and signature)
//! Standing (what the budget
//!           still allows)        ->
//! Holding (of a model, if any)   ->
//! JobAnswer (accepted | refused
//!            | waiting)          ->
//!                                <-      Holding (of the site's update, if any)
//!                                <-      RoundStart, model in pieces
//! Debited (what each
//!          contribution cost)    ->
//! LedgerHead                     ->
//! Evaluation (noised, paid)      ->
//! update in pieces (noised, paid)->
//!                                <-      Receipt (admitted | why not)
//!                                <-      Witnessed (once the round is on disk)
//!                                <-      JobEnded
//! Standing                       ->
//! Renew (by the calendar)        ->
//!                                <-      Renewed (its next certificate)
//! ```
//! In a job whose mode is `secure_sum` a site says `SumKey` before its answer, hears `SumRoster` and, every eight rounds,
//! `SumBatch`, answers each of the two with a `SumOffer`, and after its update hears `SumQuestion` and says
//! `SumAnswer`: see [`secure_sum`](super::secure_sum).
//!
//! A site that says it waits, for its own people to approve the job, may say accepted or refused at any later time
//! without being asked; the job does not wait for it, unless it has too few sites without it.
//!
//! A start and its model travel on different streams and may come in any order. After a lost connection the
//! coordinator offers again and starts the open round again; the site answers from its ledger and its
//! outbox.
//!
//! # A round
//! A round opens for all sites that agreed and are there, and for those that come before `min_time_s` are over. It closes
//! when nobody is waited for and `min_sites` contributed; `max_idle_s` after the last sign of progress it closes without
//! the missing ones, and at `max_time_s` in any case. A sign of progress is a contribution, a piece of an update, or a
//! site that comes back. A site is missing while it is online and silent; one whose connection is gone is waited for 10 s.
//! At `max_time_s` with fewer than `min_sites` the job ends with a reason; a round that everyone skipped or left
//! before is given up.
//!
//! In a secure sum a round that would commit is opened first ([`secure_sum`](super::secure_sum)): the survivors are on disk
//! before any of them is asked; whoever leaves, or does not answer in 30 s, is left out of those who are asked; at
//! `max_time_s` after its close a round that is not open is given up, and the job goes on. With groups a round is for those
//! groups that have `min_sites` there, at least `min_groups`; it closes when so many have `min_sites` contributions, and commits
//! when so many are open and those of the others whose survivors are gone had 10 s to come back.
//!
//! With `schedule = "buffered"` sites do not go through rounds together (Nguyen et al. 2022, "FedBuff"). A `RoundStart` then
//! names the number of the site's own next update, and the newest model. Its update counts from whichever version
//! of the job's model it was made, by 1 / sqrt(1 + versions since); when `buffer_size` are in, the coordinator steps with their
//! weighted sum over `buffer_size`. The site's ledger debits one such update a number, at most `training.rounds` of them; after
//! a lost link the site sends the bytes stored for the number it is asked for. Only the final model is evaluated.
//!
//! # Who may rely on what
//! - A site believes nothing: signature, contract, schema, policy and budget are its own checks.
//! - The coordinator admits an update only if it passes every check of [`robustness`](super::robustness); the receipt has
//!   the label of the one that it failed. What needs no body is checked before the body is read.
//! - A site that a round closed without is told `late`, and is in the next round.
//! - Heads of a site's ledger only grow: a shorter one, or another of the same length, ends the connection, and
//!   nothing of that site counts until one follows. An update that overtakes its head waits for it. What an
//!   older connection says late is ignored.
//! - A witness that a site is told is on the coordinator's disk; it is stored with the round, at no sync of its own.
//! - A round is committed once: the new model, the round and the job's place are on disk before any site
//!   hears of the next round.
