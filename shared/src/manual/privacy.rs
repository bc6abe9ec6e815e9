//! What is promised to whom, and the mechanism behind each promise.
//!
//! # Unit and relation
//! The unit is one customer at one site: all rows with the same customer id. Two data sets are neighbours
//! when one has one customer more. A site's cap is an (epsilon, delta) pair; whatever leaves the site over
//! all jobs, rounds and evaluations together is (epsilon, delta)-differentially private for that relation.
//!
//! # Threat model
//! The coordinator is curious and may ask for anything, also for more than a job's contract says; other
//! sites and everyone who sees a model may be in league with it. The site's own machine is trusted, and so
//! is its system's random generator. Not promised: anything against someone who can read the site's
//! memory or disk; timing; a customer known to several sites, whose guarantees add up over the sites.
//! That a site has both labels, has customers, and is there at all is not protected either.
//!
//! # What leaves, and what pays for it
//! | value | why it may leave |
//! | --- | --- |
//! | a model update | made of noised sums only; the debit of (job, round, training customers) |
//! | a histogram of held-out customers' scores | noised; the debit of (job, round, held-out customers) |
//! | an answer to a job offer, a skipped round | depends on the contract, the site's settings and its ledger, not on records |
//! | versions, certificate requests | constants |
//!
//! A message that carries data can be built only from a noised value, and a noised value only with a debit
//! in hand; see the client's `noise` and `budget`.
//!
//! # Mechanisms
//! **Clipped sum** ([`privacy::grid`](crate::privacy::grid)). A customer's gradient is the mean over its rows. It is
//! never formed in floating point: the factors of each layer's gradient (input activations and output
//! gradients) are rounded to integers, so the customer's gradient is an integer matrix; its squared L2 norm
//! is computed exactly and is at most S^2 or the customer is scaled down and checked again. The sum over
//! customers is exact. One customer more changes it by at most S = 2^24 in L2 norm, with no rounding left
//! out of the argument. A customer's integers do not depend on who else is in the batch.
//!
//! **Noise** ([`privacy::DiscreteGaussian`](crate::privacy::DiscreteGaussian)). Each coordinate gets an exact sample
//! of the discrete Gaussian with parameter sigma = noise multiplier x S. For one release and neighbours at
//! distance at most S its Renyi divergence of order alpha is at most alpha / (2 z^2), z the noise multiplier
//! (Canonne, Kamath, Steinke 2020, "The Discrete Gaussian for Differential Privacy", theorem 4 and
//! proposition 5 for vectors).
//!
//! **Sampling.** With a rate below 1 each customer is in a batch independently (Poisson); the coin is exact
//! for the rate's binary value. Amplification: Mironov, Talwar, Zhang 2019, "Renyi differential privacy of
//! the sampled Gaussian mechanism"; the bound at integer orders carries over to the discrete Gaussian because
//! each of its moments is at most the continuous one's.
//!
//! **Histogram.** A customer's weight, 1024 units, is spread over its rows, so a customer changes the counts
//! by at most 1024 in L2 norm. Mechanism and privacy map are OpenDP's; a release whose map says more than the
//! debit was charged is refused.
//!
//! **Two groups.** A customer either trains or is held out, by a hash of site and customer id; the share is
//! fixed when the ledger begins. A customer pays for one group only, so the site's figure is the larger of
//! the two (parallel composition; McSherry 2009, "Privacy integrated queries", theorem 4).
//!
//! **Composition** ([`accountant`](crate::privacy::accountant)). The enforced figure is the Renyi composition of all
//! recorded events, converted to epsilon at the cap's delta (Canonne, Kamath, Steinke 2020, proposition
//! 12). Bounding the sum at each order beforehand stays valid when later releases are chosen after seeing
//! earlier ones (Feldman and Zrnic 2021, "Individual privacy accounting via a Renyi filter", theorem 4.3).
//! A reservation sets a job's whole worst case aside before the job begins, so concurrent jobs cannot spend
//! the same budget.
//!
//! **Post-processing.** Local steps, averaging over sites, the server's step and everything done with a
//! model later cost nothing.
//!
//! # Crashes
//! The debit is on disk before noise is drawn; the noised bytes are stored before they are released; their
//! hash is on disk before the first of them leaves. A kill between any two of these loses at most a debit. A
//! round whose debit is spent gets the stored bytes, or nothing.
//!
//! # Known faults
//! Faults with which systems of this field were published, and the tests that fail if one is put in here. Tests
//! named without a place are in `tests/it`, as files `known_faults`, `kill_loop` and `durability`.
//!
//! | fault | test |
//! | --- | --- |
//! | pairwise mask keys folded to 28 bits | does not apply yet: there is no secure sum |
//! | central noise calibrated for uniform weights, applied to row-count weights | client `train`: `noise_and_denominator_are_the_contracts_whatever_the_batch_and_the_site`; coordinator `global_model`: `the_model_moves_by_the_mean_whatever_the_order` |
//! | sensitivity as a free parameter | `job`: `a_job_cannot_state_a_sensitivity_or_a_noise_of_its_own`; `privacy::mechanism`: `a_mechanism_that_does_not_follow_from_its_statistic_is_found` |
//! | the Gaussian formula for an epsilon of at most 1 used for any | `accountant`: `noise_for_a_large_epsilon_is_not_that_of_the_formula_for_small_ones` |
//! | no composition over rounds; an accountant reset at each job or restart | `fault_no_composition_over_rounds_or_an_accountant_reset_at_each_job_or_restart` |
//! | floating-point Gaussian noise; a generator that is not cryptographic | `privacy::generator`: `the_keystream_is_that_of_aes_256_ctr`; `privacy::discrete_gaussian`: `samples_pass_chi_square_at_every_sigma`; `fault_noise_from_a_general_purpose_generator_or_in_floating_point` |
//! | exact row counts, losses and metrics sent in clear | `fault_exact_row_counts_losses_and_metrics_sent_in_clear` |
//! | values outside the encoding range wrapping in silence | client `update`: `a_change_beyond_the_encoding_is_saturated_never_wrapped`; coordinator `admission`: `values_out_of_range_wrong_hashes_and_wrong_lengths_are_refused` |
//! | NaN updates reaching the global model | client `train`: `a_model_that_diverges_gives_no_update`; an update's integers have no NaN |
//! | noise added after unmasking | does not apply yet: there is no secure sum |
//! | a retried round drawing new noise for free | `a_site_killed_at_every_step_never_spends_less_than_what_left_and_goes_on_by_itself`; client `budget`: `a_round_is_debited_once_and_its_bytes_are_bound_once_also_after_a_restart` |
//! | shuffled fixed-size batches accounted as Poisson | client `sampling`: `batch_sizes_vary_as_a_binomial_does`, `a_customer_is_drawn_independently_of_others_and_of_earlier_steps`; client `train`: `a_step_draws_its_customers_at_the_contracts_rate_anew_each_time` |
//! | the actual instead of the expected batch size as denominator | client `train`: `noise_and_denominator_are_the_contracts_whatever_the_batch_and_the_site` |
//! | an entry that is not on disk when what it pays for leaves | `every_ledger_entry_is_synced_before_what_it_pays_for_leaves_and_a_round_costs_two_syncs` |
