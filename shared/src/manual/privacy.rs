//! What is promised to whom, and the mechanism behind each promise.
//!
//! # Unit and relation
//! The unit is one customer at one site: all rows with the same customer id. Two data sets are neighbours
//! when one has one customer more. A site's cap is an (epsilon, delta) pair; whatever leaves the site over
//! all jobs, rounds and evaluations together is (epsilon, delta)-differentially private for that relation.
//!
//! **Period.** With `cap.period_days` = N the same holds for what leaves in any N consecutive days (UTC), not for
//! the life of the ledger: a customer who stays for ten such periods may be charged ten caps, and whoever keeps all
//! that left has it all. The lifetime figure is reported beside the cap's. What a customer did in one period does
//! not become harmless in the next; a period bounds the rate of loss, not its sum.
//!
//! **Several sites.** A customer known to m sites of a federation is protected at each by that site's cap, and
//! by the sum of the m epsilons and of the m deltas against someone who sees all of them (basic composition;
//! Dwork and Roth 2014, theorem 3.16). `customers.max_sites` is the m that reports assume; no site can check
//! it, since sites never compare customers.
//!
//! # Threat model
//! The coordinator is curious and may ask for anything, also for more than a job's contract says; other
//! sites and everyone who sees a model may be in league with it. The site's own machine is trusted, and so
//! is its system's random generator. Not promised: anything against someone who can read the site's
//! memory or disk; timing; a customer known to several sites, whose guarantees add up over the sites.
//! That a site has both labels, has at least `customers.min` customers, and is there at all is not protected
//! either: with fewer the daemon does not run, whatever the job, so that no job's answer tells the count.
//!
//! # Policy
//! `policy.toml` is what the site's data-protection officer allows ([`policy`](crate::policy)). A job is held
//! against it before anything is computed: its task, its model, and the epsilon of its charges at the cap's own
//! delta, worked out by the accountant for training and held-out customers each; what the contract claims is not
//! read. With `approval = "ask"` a person decides as well. The coordinator hears which rule refused or that the site
//! waits, no figures: both are constants of policy and contract. When a person approves is not: that, like all
//! timing, is not protected.
//!
//! The text of every policy that held stands in the ledger, from `opened` on. Once one names an officer, the next
//! must carry that officer's signature over its exact bytes ([`Balance`](crate::ledger::Balance)), also one that
//! names another officer or none. So who edits `policy.toml` can stop the site, not loosen it. Who can also take
//! the ledger away begins anew; that the old one existed is what its witnesses know. An approval is not
//! signed: whoever may write in the site's folder gives it, within the policy and the cap.
//!
//! # What leaves, and what pays for it
//! | value | why it may leave |
//! | --- | --- |
//! | a model update | made of noised sums only; the debit of (job, round, training customers) |
//! | a masked share of a secure sum | masked integers that hold a share of the noise; the same debit, of the noise of the sum |
//! | keys, sealed shares and answers of a secure sum | made by chance; which of them is told depends on who survived a round |
//! | a histogram of held-out customers' scores and hits | noised; the debit of (job, round, held-out customers) |
//! | an answer to a job offer, a skipped round | depends on the contract, the site's settings and its ledger, not on records |
//! | what the budget still allows | the cap, and the kinds and numbers of steps charged: policy, contracts and ledger |
//! | how far the ledger has come | entries and a hash: contracts, the site's clock and hashes of what was released |
//! | what was debited for a contribution | the contract's charge, a constant of the job |
//! | versions, certificate requests | constants |
//!
//! A message that carries data can be built only from a noised value, and a noised value only with a debit
//! in hand; see the client's `noise` and `budget`.
//!
//! # Mechanisms
//! **Clipped sum** ([`privacy::grid`](crate::privacy::grid)). A customer's gradient is the mean over its rows. What is
//! summed of it is an integer vector: either the factors of a layer's gradient (input activations, or ids of
//! categories, and output gradients) are rounded to integers, or, for customers with many rows, the gradient's scaled entries,
//! each towards zero. Its squared L2 norm over all layers together, with the rows of one category added up first, is
//! bounded by a proof, or computed in integers where the bound does not decide, and is at most S^2 or the customer is scaled
//! down and checked again. The sum over
//! customers is exact. One customer more changes it by at most S = 2^24 in L2 norm, with no rounding left
//! out of the argument. A customer's integers do not depend on who else is in the batch. How the scale is first
//! guessed (fixed or automatic clipping) is no part of the argument: the check comes after either.
//!
//! **Noise** ([`privacy::DiscreteGaussian`](crate::privacy::DiscreteGaussian)). Each coordinate gets an exact sample
//! of the discrete Gaussian with parameter sigma = noise multiplier x S. For one release and neighbours at
//! distance at most S its Renyi divergence of order alpha is at most alpha / (2 z^2), z the noise multiplier
//! (Canonne, Kamath, Steinke 2020, "The Discrete Gaussian for Differential Privacy", theorem 4 and
//! proposition 5 for vectors).
//!
//! **Noise of a secure sum** ([`privacy::noise_share`](crate::privacy::noise_share)). With `mode = "secure_sum"` a site adds a
//! share of the noise to its clipped sum, and the coordinator sees only the sum over the survivors of a round. The clipped
//! sum is first rounded to a coarser grid, which raises the sensitivity to at most `2^(24 - shift) + sqrt(d)` units, and
//! held in a range, which does not; both are constants of the contract. Shares are made for h = t - c of them: t the
//! fewest survivors of a round that is opened (`min_sites`), c the sites that may be in league with the coordinator
//! (`colluding_sites`), whose own shares it knows. The sum of h shares is within exp(tau) of one discrete Gaussian at
//! every integer (Kairouz, Liu, Steinke 2021, "The distributed discrete Gaussian mechanism for federated learning with
//! secure aggregation", proposition 14); 2 d R tau, which is below 1e-100 for all but the smallest noise and never above
//! 1e-12, is charged to epsilon. All is modulo 2^32. That an entry wraps costs nothing, being a function of the noised
//! sum; its probability is below a millionth of delta over the whole job, and is charged to delta all the same. The debit is
//! that of the whole noise, and names h; it holds for a coordinator that sees sums only. What a site's own share promises
//! by itself, should masks or keys fail, is h times the divergence: `job plan` and `audit report` state the epsilon of
//! it. With 47 members, 40 survivors and 15 colluders the noise of the sum of all is sqrt(47/25) = 1.4 times what one
//! trusted party would need; noise of each site by itself would be 6.9 times that.
//!
//! With `groups` each group has such a sum, with t and c of its own; a customer of a site is in one of them, so the charge is the
//! same, while the mean over G groups has sqrt(G) times the noise ([`secure_sum`](super::secure_sum#groups)).
//!
//! A customer known to several members of a sum adds to each member's clipped sum: its guarantees add up as in all modes.
//!
//! **Sampling.** With a rate below 1 each customer is in a batch independently (Poisson); the coin is exact
//! for the rate's binary value. Amplification: Mironov, Talwar, Zhang 2019, "Renyi differential privacy of
//! the sampled Gaussian mechanism"; the bound at integer orders carries over to the discrete Gaussian because
//! each of its moments is at most the continuous one's.
//!
//! **Histogram.** A customer's weight, 1024 units, is spread over its rows, each of which counts in one bin, so a
//! customer changes the counts by at most 1024 in L2 norm. What the bins are follows from the kind of label
//! ([`evaluation`](crate::evaluation)); the bound does not. Mechanism and privacy map are OpenDP's; a release whose map says more than the
//! debit was charged is refused.
//!
//! **Two groups.** A customer either trains or is held out, by a hash of site and customer id; the share is
//! fixed when the ledger begins. A customer pays for one group only, so the site's figure is the larger of
//! the two (parallel composition; McSherry 2009, "Privacy integrated queries", theorem 4).
//!
//! **Composition** ([`ledger`](crate::ledger), [`accountant`](crate::privacy::accountant)). A later job may be chosen after seeing what
//! earlier ones released, so what is enforced is a Renyi filter at one fixed order: the order is chosen
//! before the first release, and again only when the officer sets another cap; the divergences of all charges at
//! that order, spent or set aside, may add up to no more than the cap allows there (Feldman and Zrnic 2021,
//! "Individual privacy accounting via a Renyi filter", theorem 4.3). Epsilon at the cap's delta follows at that
//! order (Canonne, Kamath, Steinke 2020, proposition 12). The best of several orders read afterwards would not be
//! covered: which is best could depend on the releases. Reported figures are the same sums at their best order.
//! A reservation sets a job's whole worst case aside before the job begins, so concurrent jobs cannot spend
//! the same budget.
//!
//! **What an audit shows.** [`Report`](crate::ledger::Report) has the enforced figure and, beside it, the certified one of
//! the privacy loss distributions. That one is sharper and holds for exactly the recorded events as if they
//! had been fixed beforehand, which jobs chosen in sight of earlier releases are not: it informs, and decides nothing.
//! Discrete noise enters it as [its continuous equivalent](crate::privacy::accountant::continuous_equivalent). A customer
//! known at k sites is charged k times the events.
//!
//! **Compression** ([`compression`](crate::compression)) works on the noised update and on what it left out of earlier noised
//! updates; its random rounding is drawn from a generator of its own. The compressed bytes are stored, and named in the
//! ledger, before they leave, so a retry sends the same ones.
//!
//! **Post-processing.** Local steps of whatever optimiser and its state, the proximal term, averaging over sites, the
//! server's step and its state, averaged weights and everything done with a model later cost nothing: they see noised
//! sums, public constants, and what was made of these. What a buffered update counts depends on version numbers only.
//!
//! # Crashes
//! The debit is on disk before noise is drawn; the noised bytes are stored before they are released; their
//! hash is on disk before the first of them leaves. A kill between any two of these loses at most a debit. A
//! round whose debit is spent gets the stored bytes, or nothing.
//!
//! # Witnesses
//! A ledger proves what is in it, not that it is the newest one. A site's disk restored from a backup has
//! forgotten what was spent since, and its chain is as good as ever. So the coordinator keeps, for each round,
//! how far the ledger of each site had come, by the site's own signature, and what it received; and answers with a
//! signature of its own, a *witness* ([`ledger::Witness`](crate::ledger::Witness)). A contribution counts only if the
//! head of the ledger that released it came first.
//!
//! What a witness proves, to anyone with the authority's certificate, the coordinator's, and the ledger: the
//! ledger once had so many entries, the last with this hash (a shorter one was set back, one with another line there
//! was rewritten), and these bytes reached the coordinator (with no entry that released them, they were not
//! paid for). Since lines are chained, a ledger that fits its newest witness has every entry before it.
//!
//! When it is found out: at the next contact, by both sides. The coordinator counts nothing of the site and shows
//! it as `ledger set back` until a head that follows comes; the site keeps the contradicting witness, ends, and
//! does not start again, with or without a coordinator, until the newest ledger is back.
//!
//! A ledger that is lost for good is not begun anew under the same key. Its site is revoked and joins as another one;
//! what its customers have paid so far is then the officer's to take off the new cap.
//!
//! What a witness does not prove:
//! - that the site said so: it carries the coordinator's signature only, over a head whose signature by the site it
//!   checked. A coordinator that lies can stop a site by it, as by not answering, but not make anything leave;
//! - anything against a coordinator in league with whoever restored the disk: it can leave witnesses out, or sign what
//!   it likes. Copies of `witnesses.jsonl` that the site or its data-protection officer carried away then speak against
//!   both;
//! - what left after the newest witness: a round that was never committed may have none. What the coordinator was
//!   told and had not yet stored is lost with a crash of its own;
//! - that a ledger longer than its newest witness goes on from it: the coordinator sees only the head. The
//!   site's own check, `audit verify`, and the next comparison by an auditor do see it;
//! - that the bytes named as received are all that were: they are what the coordinator admits to.
//!
//! # Known faults
//! Faults with which systems of this field were published, and the tests that fail if one is put in here. Tests
//! named without a place are in `tests/it`, as files `known_faults`, `kill_loop` and `durability`.
//!
//! | fault | test |
//! | --- | --- |
//! | pairwise mask keys folded to 28 bits | `secure_sum::keys::tests::every_byte_of_a_job_secret_changes_every_secret_that_derives_from_it`, `secure_sum::keys::tests::every_bit_of_an_agreement_changes_the_masks_seed` |
//! | central noise calibrated for uniform weights, applied to row-count weights | client `train`: `noise_and_denominator_are_the_contracts_whatever_the_batch_and_the_site`; coordinator `global_model`: `the_model_moves_by_the_mean_whatever_the_order` |
//! | sensitivity as a free parameter | `job`: `a_job_cannot_state_a_sensitivity_of_its_own`; `privacy::mechanism`: `a_mechanism_that_does_not_follow_from_its_statistic_is_found` |
//! | the Gaussian formula for an epsilon of at most 1 used for any | `accountant`: `noise_for_a_large_epsilon_is_not_that_of_the_formula_for_small_ones` |
//! | no composition over rounds; an accountant reset at each job or restart | `fault_no_composition_over_rounds_or_an_accountant_reset_at_each_job_or_restart` |
//! | floating-point Gaussian noise; a generator that is not cryptographic | `privacy::generator`: `the_keystream_is_that_of_aes_256_in_counter_mode`; `privacy::discrete_gaussian`: `samples_pass_chi_square_at_every_sigma`; `fault_noise_from_a_general_purpose_generator_or_in_floating_point` |
//! | exact row counts, losses and metrics sent in clear | `fault_exact_row_counts_losses_and_metrics_sent_in_clear` |
//! | values outside the encoding range wrapping in silence | client `update`: `a_change_beyond_the_encoding_is_saturated_never_wrapped`; client `noise`: `a_share_has_the_noise_of_its_part_around_a_sum_that_is_held_in_range`; `privacy::noise_share`: `a_sum_of_sites_at_the_end_of_their_range_does_not_wrap`; coordinator `admission`: `values_out_of_range_wrong_hashes_and_wrong_lengths_are_refused` |
//! | NaN updates reaching the global model | client `train`: `a_model_that_diverges_gives_no_update`; an update's integers have no NaN |
//! | noise added after unmasking | `fault_noise_added_after_unmasking_instead_of_at_the_site`; in a secure sum masks go over a `NoisedShare` only: client `noise`: `a_debit_pays_for_one_share_of_its_own_mechanism_only` |
//! | a retried round drawing new noise for free | `a_site_killed_at_any_stage_comes_back_or_is_left_out_and_the_sums_are_right`; `a_site_killed_at_every_step_never_spends_less_than_what_left_and_goes_on_by_itself`; client `budget`: `a_round_is_debited_once_and_its_bytes_are_bound_once_also_after_a_restart` |
//! | shuffled fixed-size batches accounted as Poisson | client `sampling`: `batch_sizes_vary_as_a_binomial_does`, `a_customer_is_drawn_independently_of_others_and_of_earlier_steps`; client `train`: `a_step_draws_its_customers_at_the_contracts_rate_anew_each_time` |
//! | the actual instead of the expected batch size as denominator | client `train`: `noise_and_denominator_are_the_contracts_whatever_the_batch_and_the_site` |
//! | an entry that is not on disk when what it pays for leaves | `every_ledger_entry_is_synced_before_what_it_pays_for_leaves_and_a_round_costs_two_syncs` |
