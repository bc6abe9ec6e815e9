//! Running it in production: services, containers, backups, updates, what to watch.
//!
//! # Where it runs
//! One program, `weighhouse`, and one folder a daemon, its home. `deploy/` in the repository has systemd units for a
//! coordinator and for sites, hardened so that a daemon can touch its home and the network and nothing else, and a
//! `Containerfile` for both. A coordinator listens on one UDP port, 7443 unless `coordinator.toml` says another; a site
//! listens on nothing and needs UDP out to that port. `weighhouse doctor --home DIR` says what is missing, before
//! the first start and whenever something seems wrong.
//!
//! | | coordinator | site |
//! | --- | --- | --- |
//! | processors | 2; more shorten rounds of large models with many sites | as many as the model's training should use |
//! | memory | the model a few times over | the records, and the model a few times over |
//! | disk | the models of all rounds that are kept | the ledger, and one round's update in the outbox |
//! | clock | kept by a time service: certificates and periods of budgets go by it | the same |
//!
//! # A daemon may be killed
//! At any instruction. A round is committed once or not at all; a site repeats what it had released, byte for byte, and
//! never draws noise twice for one debit. So restart on failure, update by replacing the program and restarting, and do
//! not wait for a good moment. Sites and coordinator may be updated in any order within a major version
//! ([`protocol`](super::protocol), Versions).
//!
//! # Backups
//! - A coordinator: the whole home, with the daemon stopped, or as a snapshot of the file system. Without `state/` the federation
//!   starts without jobs and sites.
//! - A site: `site.key`, the certificates, `client.toml`, `policy.toml` and its signature. **Not the ledger**: a site whose
//!   `ledger.jsonl` was put back to an older copy has forgotten what it spent. It is found out at its next contact, and stops.
//!   A copy for the archive is right; putting one back is not. A site that lost its ledger joins anew.
//!   Nor the folder `secure_sums`: it holds the secrets of running jobs, is deleted with them, and must not be put back.
//! - The authority's key: offline, twice ([`protocol`](super::protocol), Certificates).
//! - The officer's key: with the officer.
//!
//! # The log
//! On standard error. `RUST_LOG` chooses what is in it: `warn,weighhouse=info` unless set; `weighhouse=debug` for more. Each
//! line stands in its spans: `site` (which site), `job`, `round` (job and round), by the identifiers' first
//! characters, as all commands show them. No line depends on records: no cell, no count of rows, no loss, no
//! gradient. Errors in the site's own files name line and column, and stay in the site's log.
//!
//! # Metrics
//! Off unless the daemon's settings say where: `metrics = "127.0.0.1:9464"` in `client.toml` (above `[data]`) or
//! `coordinator.toml`. Loopback only; anything else is refused, so let an agent on the machine fetch
//! `http://127.0.0.1:9464/metrics` (OpenMetrics text). Nothing in them depends on records: where a row below could, it is
//! left out, which is why there are no durations and sizes of a site's work.
//!
//! | metric | kind | what |
//! | --- | --- | --- |
//! | `weighhouse_site_connected` | gauge | 1 while the coordinator knows this site |
//! | `weighhouse_site_connections_total` | counter | times it came to be connected |
//! | `weighhouse_site_decisions_total` | counter, by `decision` | answers to jobs: `accepted`, `refused`, `waiting` |
//! | `weighhouse_site_jobs_ended_total` | counter | jobs it took part in that are over |
//! | `weighhouse_site_contributions_total` | counter | rounds for which something was sent or skipped |
//! | `weighhouse_site_epsilon_spent` | gauge | paid by the customer who paid most, by the Renyi filter, in the policy's period |
//! | `weighhouse_site_epsilon_reserved` | gauge | the same with what running jobs have set aside |
//! | `weighhouse_site_epsilon_cap` | gauge | the policy's cap |
//! | `weighhouse_site_certificate_expiry_timestamp_seconds` | gauge | when its certificate ends, in seconds since 1970 |
//! | `weighhouse_coordinator_sites_online` | gauge | sites whose session is open |
//! | `weighhouse_coordinator_jobs_running` | gauge | jobs that are not over |
//! | `weighhouse_coordinator_rounds_committed_total` | counter | rounds whose model is on disk |
//! | `weighhouse_coordinator_contributions_total` | counter, by `outcome` | what became of updates and evaluations: `admitted`, or why not |
//! | `weighhouse_coordinator_certificate_expiry_timestamp_seconds` | gauge | when its certificate ends, in seconds since 1970 |
//!
//! Worth an alarm: a site not connected for an hour; `epsilon_spent` near `epsilon_cap`; a certificate with less than 30
//! days; contributions that are not admitted; jobs that run while no round is committed.
