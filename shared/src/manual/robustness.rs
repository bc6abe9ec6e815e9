//! What hostile or broken sites can do to a model: which contributions are refused, and what each strategy
//! withstands of those that are not.
//!
//! # Admission
//! A contribution is held against the contract and the open round before it counts, by the coordinator's `admission`,
//! `job` and `driver`. A refusal costs the site its vote in that round and nothing else. Each check has a label
//! ([`Outcome`](crate::wire::messages::Outcome)); the coordinator counts refusals by job and label (`job list`, `job watch`, both
//! with `--format json`), and the site reads label and reason in `client status` and `client jobs`.
//!
//! | check | label |
//! | --- | --- |
//! | shape: as many values as the model has parameters, or the histogram bins | `wrong_shape` |
//! | size: not longer than any contribution to the job; read in bounded memory | `too_long` |
//! | finiteness: integers have none that is not finite; bytes of floats that are not are told apart | `not_finite` |
//! | range: each value at most 2^29 steps of 2^-20 | `out_of_range` |
//! | round: the open one, of a site that is in it | `wrong_round`; `late` if it has closed |
//! | base model version: the hash of the round's model | `wrong_model` |
//! | replay: one contribution of each kind a site and round | `repeated` |
//! | charge: what the site's ledger debited is what the contract says | `wrong_charge` |
//! | ledger: a head that covers it came before it | `unwitnessed` |
//! | hash: what arrived is what the sender named | `corrupt` |
//! | rate: ten refusals for a fault at once, then one more every 6 s | `rate_limited` |
//!
//! All that needs no body is checked before the body is read. Being late and repeating after a lost link are no faults: they
//! do not count towards the rate. The debit is the site's word, in a message of its own; its ledger's head, which
//! covers it, is witnessed, so an audit finds a lie.
//!
//! # Strategies
//! `[federation] strategy` names one rule over the sites' updates and one step with what comes of it. With n updates of
//! which f may be hostile (`hostile_sites`):
//!
//! | strategy | rule | step | needs |
//! | --- | --- | --- | --- |
//! | `fedavg` | mean | added (McMahan et al. 2017) | |
//! | `fedprox` | mean | added; local steps are pulled back by `training.proximal` (Li et al. 2020) | |
//! | `fedavgm` | mean | with momentum (Hsu et al. 2019) | |
//! | `fedadagrad`, `fedadam`, `fedyogi` | mean | adaptive (Reddi et al. 2021) | |
//! | `fedmedian` | median of each parameter (Yin et al. 2018) | added | |
//! | `trimmed_mean` | mean of each parameter without the share `trim_share` at each end (Yin et al. 2018) | added | n at least 1 / `trim_share` |
//! | `krum` | the update with the smallest sum of squared distances to its n - f - 2 nearest (Blanchard et al. 2017) | added | n at least 2 f + 3 |
//! | `multi_krum` | mean of the n - f best by that score | added | n at least 2 f + 3 |
//! | `bulyan` | n - 2 f by Krum, one after the other; in each parameter the mean of the n - 4 f closest to their median (El Mhamdi et al. 2018) | added | n at least 4 f + 3 |
//!
//! `norm_bound` goes with each: the coordinator scales every update down to that L2 norm first. It is no privacy
//! measure; what protects customers happened at the site.
//!
//! n is held against `min_sites`, since a round may close with no more. Hostile sites can also stay silent or be refused, so
//! a `min_sites` above the number of honest sites lets them stop the job: the last row below.
//!
//! In a secure sum nobody sees single updates. With `groups` the rules are applied to the means of groups, and n, `min_sites`
//! and f above are groups: see [`secure_sum`](super::secure_sum#groups).
//!
//! All rules work on integers and none depends on the order of arrival, not in one bit: columns are sorted, distances are exact, equal
//! scores are decided by the contents' hashes. Beside 8 bytes a parameter for the result, the mean needs no memory;
//! the others keep updates in one file and read it in blocks of 16 MiB, whatever the model and however many the
//! sites; those that compare all updates hold 16 n^2 bytes of distances, for at most 1000 sites.
//!
//! # What each withstands
//! Ten sites of 200 customers learn logistic regression over 40 rounds, with a little noise; three of them are hostile.
//! "holds": at least three quarters of the gain in log loss that averaging has without an attack are left. "stalls": rounds
//! do not get `min_sites` contributions. A test of the coordinator runs it and holds this table to it.
//!
//! | strategy | none | sign flip | scaled | noise | NaN | label flip | colluding |
//! | --- | --- | --- | --- | --- | --- | --- | --- |
//! | fedavg | holds | fails | fails | fails | holds | fails | fails |
//! | fedprox | holds | fails | fails | fails | holds | fails | fails |
//! | fedavgm | holds | fails | holds | fails | holds | fails | fails |
//! | fedadagrad | holds | fails | holds | fails | holds | fails | fails |
//! | fedadam | holds | fails | holds | fails | holds | fails | fails |
//! | fedyogi | holds | fails | holds | fails | holds | fails | fails |
//! | fedavg, norm_bound = 0.2 | holds | holds | holds | holds | holds | holds | holds |
//! | fedmedian | holds | holds | holds | holds | holds | holds | holds |
//! | trimmed_mean, trim_share = 0.3 | holds | holds | holds | holds | holds | holds | holds |
//! | krum, hostile_sites = 2 | holds | holds | holds | holds | holds | holds | holds |
//! | multi_krum, hostile_sites = 2 | holds | holds | holds | fails | holds | holds | holds |
//! | bulyan, hostile_sites = 1 | holds | holds | holds | holds | holds | holds | holds |
//! | multi_krum, hostile_sites = 3, min_sites = 9 | holds | holds | holds | holds | stalls | holds | holds |
//!
//! The attacks: the update times -4; times 100; Gaussian noise of 4 a parameter; floats that are no numbers, which
//! admission refuses; honest training on labels turned over; one vector from all three, their mean update times -3. Here sites
//! differ little and the noise is small. Where sites differ much, or privacy noise drowns the signal, a robust rule
//! costs quality (Krum follows one site alone) and protects less: plan with `job plan`, which simulates the strategy.
