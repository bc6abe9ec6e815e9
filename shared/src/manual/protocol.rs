//! What travels, in which order, and what each side may rely on.
//!
//! # Connection
//! One UDP port, QUIC, TLS 1.3 with certificates on both sides, ALPN `weighhouse/1`, key exchange
//! X25519MLKEM768 only. The coordinator's handshake lets in: sites and operators whose certificate the
//! federation's authority signed and the roster has not revoked; and enrolling sites whose self-signed
//! certificate carries a valid proof of an open invite's secret ([`tls`](crate::tls)). Anyone else has seen the
//! coordinator's certificate and nothing more.
//!
//! # Frames
//! Control messages are frames: length, number, canonical bytes ([`wire::frame`](crate::wire::frame)). A frame is at
//! most 1 MiB. Numbers are never reused; golden bytes of every message stand under `tests/data/wire/v1/`.
//! Decoders refuse trailing bytes and forged lengths.
//!
//! # Contents
//! Models and updates travel in pieces of at most 4 MiB, each on a unidirectional stream that begins with a
//! header naming job, round, base model, hash, total length and offset ([`wire::stream`](crate::wire::stream)).
//! A piece holds whole values; a site drops a model that is cut inside one.
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
//! JobAnswer (accepted | refused
//!            | waiting)          ->
//!                                <-      RoundStart, model in pieces
//! LedgerHead                     ->
//! Evaluation (noised, paid)      ->
//! update in pieces (noised, paid)->
//!                                <-      Receipt (admitted | why not)
//!                                <-      Witnessed (once the round is on disk)
//!                                <-      JobEnded
//! Standing                       ->
//! ```
//! A site that says it waits, for its own people to approve the job, may say accepted or refused at any later time
//! without being asked; the job does not wait for it, unless it has too few sites without it.
//!
//! A start and its model travel on different streams and may come in any order. After a lost connection the
//! coordinator offers again and starts the open round again; the site answers from its ledger and its
//! outbox.
//!
//! # Who may rely on what
//! - A site believes nothing: signature, contract, schema, policy and budget are its own checks.
//! - The coordinator admits an update only if it is whole, has the contract's length and range, is for the
//!   open round and its model, and is the site's first.
//! - Heads of a site's ledger only grow: a shorter one, or another of the same length, ends the connection, and
//!   nothing of that site counts until one follows. An update that overtakes its head waits for it. What an
//!   older connection says late is ignored.
//! - A witness that a site is told is on the coordinator's disk; it is stored with the round, at no sync of its own.
//! - A round is committed once: the new model, the round and the job's place are on disk before any site
//!   hears of the next round.
