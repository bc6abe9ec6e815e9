//! Secure sums: what the coordinator learns of a round is the sum of the surviving sites' noised integers modulo 2^32, and
//! nothing else of them. Here are the protocol, whom it withstands, and why.
//!
//! The mode is a job's `[federation] mode = "secure_sum"`. What the noise inside the sum promises is
//! [`noise_share`](crate::privacy::noise_share)'s; this page is about the masks around it
//! ([`secure_sum`](crate::secure_sum)).
//!
//! # Whom it withstands
//! Let n members be named by the contract, t be the fewest survivors of a round (`min_sites`), c the members that may
//! collude (`colluding_sites`; a third by default), with 2 t > n + c.
//!
//! | who | may | learns |
//! | --- | --- | --- |
//! | the coordinator and up to c members | see all that they are sent and keep, together | sums over all honest survivors of a round, at least t - c sites' |
//! | a coordinator that lies | besides: send each site other rosters, batches, lists of survivors, keys, or bits, in any order, at any time, again and again | the same, or nothing |
//! | a member that does not keep to the protocol | stop the sums that it is in from opening, or add what it likes to them | nothing more |
//! | who takes a site's disk once the job is over | | nothing of its rounds: the job's secret is deleted |
//!
//! Not withstood: more than c members in league with the coordinator (what then still protects a site is its own share of
//! the noise: see [`JobContract::local_charge`](crate::job::JobContract::local_charge); `secure_sum.max_own_epsilon` in
//! its policy says how much that must be); an operator and a
//! coordinator in league that name members who are nobody (a site's policy may list the members that it accepts); a
//! home put back from a backup in the middle of a job, with the file of its secure sums (the ledger's witnesses find the
//! home out, and a site that is found out ends its service). Members are not proved to send sums of clipped gradients: what
//! a hostile member adds is bounded by the ring alone. Against that there are [groups](#groups).
//!
//! With groups n, t and c are those of each group, the largest n of all.
//!
//! # The protocol
//! Every secret of a site in a job derives from 32 random bytes, the job secret ([`keys`](crate::secure_sum::keys)): drawn
//! once, on disk before anything of it leaves, deleted when the job ends. So a site that was killed says the same
//! bytes again. All derivations are HKDF-SHA256 with labels of their own; all secrets have 256 bits.
//!
//! 1. *Once a job: keys.* With its acceptance each site sends an X25519 key for the job, signed by its identity over
//!    purpose, job and key. The coordinator fixes the roster, at least t members, and sends it to all on it. A site checks
//!    that each is a member by the contract, none is there twice, each signature holds, its own key is there. It takes one
//!    roster a job, on disk. The roster's hash R is in every derivation from here on.
//! 2. *Once every eight rounds: a batch.* For each of the rounds a site draws a seed b of its self-mask and an X25519 key
//!    x. It sends the public halves X, hashes of the b, and for each member of its circle a share of every b and x (Shamir
//!    with the circle's threshold, which is t while everyone is everyone's neighbour), sealed with AES-256-GCM by a key
//!    that only the two know, the public halves bound to it. The coordinator fixes the batch: those whose
//!    messages came, at least t; it passes their messages on. A site refuses the batch if any of them does not open: its public
//!    halves could be anyone's. It takes one list of sites a batch, on disk. The hash of the list, B, is in every mask.
//!    The message for the next batch goes up as soon as the one before is taken, so no round waits for it.
//! 3. *Each round, first trip.* Model down. Site i sends `y_i = v_i + PRG(b_i) + sum over neighbours j of
//!    (+ if i < j, - if i > j) PRG(s_ij)` modulo 2^32, with `v_i` its noised integers, `s_ij` HKDF of the X25519
//!    agreement of `x_i` and `x_j`, R, B and the round, and PRG AES-256 in counter mode. It is stored before it is sent, and
//!    debited before it is made, as every update; the coordinator adds it up as it arrives.
//! 4. *Each round, second trip.* The coordinator writes down the sum and whose it is of: the survivors U. It sends U and
//!    the list V of those who are to answer: at first the survivors that are there. A site answers if U and V are at
//!    least t sites of the batch, V is part of U, it is in V, of each survivor's circle the threshold is in U, and it has
//!    not answered for another U in this round, or in a later round. It writes down that it answers for U before
//!    it does. For each member of its circle it tells the share of b of a survivor or the share of x of another: one
//!    [`Told`](crate::secure_sum::agreement::Told) a site, which cannot hold both.
//! 5. *The answers open together or not at all.* Site j seals its answer with a key `e_j` for this answer and, for each k
//!    in V, sends `pad_jk`, the exclusive or, over the other l in V, of `PRF(pair secret of j and l; R, B, round, U, V)`
//!    at k, and `e_j` if k = j. The exclusive or over all j in V of `pad_jk` is `e_k`. This takes the place of a round of
//!    signatures: there is no third trip.
//! 6. From the shares the coordinator puts together b of each survivor (held against its hash) and x of each other site
//!    of the batch (held against X), expands the masks and takes them off. What is left is the sum of the survivors'
//!    `v_i`, bit for bit.
//!
//! A site that leaves between its upload and its answer is in U and not in V: the others are asked anew, with the same U
//! and a smaller V. A site that never uploads is not in U. With fewer than t at any stage the round waits until its time
//! is over and is abandoned: nothing is opened, the debit is spent, and the next round draws new noise and new masks. An
//! upload that comes later is still covered by its self-mask.
//!
//! # Why nothing else can be learned
//! HKDF and the hash are taken for random oracles, AES for a pseudorandom permutation, AES-GCM for an authenticated
//! encryption, X25519 for a group where the oracle Diffie-Hellman assumption holds, Ed25519 for unforgeable. The argument is that
//! of Bonawitz et al. 2017 ("Practical Secure Aggregation for Privacy-Preserving Machine Learning", theorem 6.5) and Bell et
//! al. 2020, with the consistency check moved into the answers.
//!
//! **One list a round.** *Claim: of the questions (U, V) of one round, only those of one U have answers that open.* An
//! honest site answers for one U a round, of one batch, under one roster. Let j honest be in V. Its key `e_j` is covered in
//! `pad_jj` by the strings of j with each other honest l in V; such a string is known to j and l only, and l says it in its
//! `pad_lj` for this very question, exclusive-or'ed with its strings with all other honest sites of V, or not at all. So
//! while one honest site of V has not answered this question, the sum of what the honest ones said at place j is
//! uniform, and `e_j` with it. Hence an answer of an honest site opens only if all honest sites of V answered the same
//! question, at least t - c of them. If answers for U and for U' both opened, two sets of t - c honest sites, which are
//! disjoint, would be among the n - c honest members: 2 (t - c) <= n - c, that is 2 t <= n + c, which the contract
//! excludes.
//!
//! **Never both secrets of a site.** For a site i, honest sites tell shares of b of i if i is in U, of x of i if it is not.
//! By the claim what opens is for one U; the colluding ones hold fewer shares than the threshold (c < t; beyond 255 sites by the first
//! promise of [`graph`](crate::secure_sum::graph)). So of an honest site, the coordinator learns at most b if it
//! survived, and at most x if it did not. In the second case `PRG(b)` covers its upload for good, if there is one.
//!
//! **Only the sum.** Let H be the honest sites of U. Each pair of neighbours in H shares a mask whose seed takes the x of one
//! of the two, and neither is opened. Replaced by uniform masks, these cover `v_i` such that all that is left of
//! the `v_i` is their sum over each connected part of H (Bonawitz et al., lemma 6.1). With the complete graph
//! H is connected; beyond 255 sites by the second promise of the graph. H has at least t - c sites, whose shares of the noise are
//! in every sum that is opened.
//!
//! **Past and future.** Round keys and seeds of different rounds derive from the job secret by HKDF: to open one says nothing
//! of another. The job's X25519 key is never opened. Once the job secret is deleted, nobody can answer for a past round.
//!
//! **The same vector under two lists.** `y_i` is made once a round, as a debit is spent; its masks are a function of R, B and the
//! round, of which a site takes one each. Whatever the coordinator starts again, it gets those bytes or none.
//!
//! # The graph
//! Up to 255 sites everyone shares masks with everyone. Beyond, some two hundred neighbours each keep both promises for
//! *any* list of survivors that the coordinator may choose after it knows the graph: see
//! [`graph`](crate::secure_sum::graph) for the bound and its proof, and for how many sites no such graph goes on with the
//! default terms (256 to some 430: such a job is refused when it is written; fewer colluding sites help, or groups). Pads are always among all who are asked: the
//! claim above needs no graph.
//!
//! # Groups
//! An opened sum is integers modulo 2^32: finite, whoever added what. But one hostile member moves it wherever it likes in the
//! ring. The grid is as fine as the honest sum allows ([`noise_share`](crate::privacy::noise_share), "Why nothing wraps"),
//! so the ring is about twice as wide as what all members of the sum could honestly add together, or less wide: that is the
//! bound of what one of them can do, in every round anew. It spoils a model that follows one sum over all.
//!
//! `[federation] groups = G` splits the members into G groups whose sizes differ by at most one. Each has a secure sum of its
//! own, with all of the above: roster, graph, batches, survivors, questions, answers, threshold. The strategy, a robust one
//! too, is applied to the means of the groups whose sums were opened, all with equal weight; `norm_bound` bounds each group's.
//! All groups go through a round at the same time. One with fewer than t members that are there, or that contribute, is left
//! out of the round, and its sum is not opened. A round with fewer than `min_groups` opened sums comes to nothing: more than
//! half of the groups by default, and as many as the strategy needs. A group that missed batches makes up for them, and
//! takes part again.
//!
//! **The promise** is that of one sum, in each group: `min_sites` and `colluding_sites` are of every group, a share of the noise
//! is made for t - c honest ones of its own group, and 2 t > n + c holds with the n of the largest. All that collude may so be in
//! one group. A customer of a site is in one group's sum, so the claim and the charge are those of one sum (parallel
//! composition). What one sum hides a site among is its group, not all members: `secure_sum.min_members` of a site's policy is
//! held against the smallest group.
//!
//! **The price** is noise. Each sum has the noise of the whole promise, and the mean over G of them that of G: about sqrt(G) times
//! the noise of one sum over all members (`job plan` says it), a little more where a group's 85 % are rounded up. The median
//! of many groups has 1.25 times the noise of their mean. At the coordinator the running sums take 4 p bytes a group.
//!
//! **The split** is a function of the contract: members in the order of SHA-256 of a label, the contract's nonce and their
//! identifier, dealt out one by one ([`grouped_members`](crate::job::JobContract::grouped_members)). The nonce is drawn by the operator's
//! program when the members are known, and signed with them. So a member cannot choose a key that puts it into some group: it
//! would have to know the nonce. The coordinator cannot change the split; it may refuse a job so that it is submitted again, for one
//! more draw each time that the operator is willing. The operator could draw until it likes the split; who signs the list of
//! members is believed anyway. None of this touches privacy, which holds for every split with at most c of each group
//! in league.
//!
//! **What is withstood.** k hostile members spoil at most k groups, and no other group's sum. With the median of m groups and
//! fewer than m / 2 spoiled ones, each parameter's step stays within those of the other groups. `trimmed_mean` bears the
//! share `trim_share` of m at least, `krum` and `multi_krum` f of 2 f + 3, `bulyan` f of 4 f + 3. m is `min_groups` at the
//! least and G at the most: whoever counts on more than `min_groups` counts on honest groups to be there. A hostile member
//! can also keep its group's sum closed; with one in more than G - `min_groups` groups no round commits, and each is
//! paid for.
//!
//! Fifteen sites of 200 customers learn logistic regression over 40 rounds at epsilon 8; of two hostile ones each is in a group
//! of its own. "turned": ten times what they should add, with the other sign; "largest": the largest integer that an honest site
//! may add, for each parameter; "chance": any of the 2^32. "holds": at least three quarters of the gain in log loss that one
//! sum over all has without an attack are left. A test of the coordinator runs it and holds this table to it.
//!
//! | `[federation]` | none | 1 turned | 1 largest | 1 chance | 2 turned | 2 largest | 2 chance |
//! | --- | --- | --- | --- | --- | --- | --- | --- |
//! | fedavg | holds | fails | fails | fails | fails | fails | fails |
//! | groups = 5, fedavg | holds | fails | fails | fails | fails | fails | fails |
//! | groups = 5, fedavg, norm_bound = 0.3 | holds | holds | holds | holds | holds | fails | holds |
//! | groups = 5, fedmedian | holds | holds | holds | holds | holds | holds | holds |
//! | groups = 5, trimmed_mean, trim_share = 0.4 | holds | holds | holds | holds | holds | holds | holds |
//! | groups = 5, krum, hostile_sites = 1 | holds | holds | holds | holds | holds | holds | holds |
//!
//! # What it costs
//! For n sites on the complete graph and p parameters, a site a round: n masks of 4 p bytes of AES, n X25519 agreements,
//! 66 n bytes of shares up and 98 n down (an eighth of a batch), 68 n bytes of answers up; the coordinator:
//! n + d n masks for d sites lost, and 4 p bytes of memory. `benches/secure_sum.rs` measures all of it beside plain rounds
//! in the same run.
//!
//! # Tests
//! | what must not happen | test |
//! | --- | --- |
//! | a dropout at any stage changes the sum, or opens one below the threshold | `secure_sum::tests::whoever_is_lost_at_whatever_stage_the_sum_is_that_of_the_survivors_or_nothing_opens` |
//! | both shares of a site are told | `secure_sum::tests::a_site_answers_for_one_list_of_survivors_a_round_also_after_a_restart` |
//! | two lists of survivors open | `secure_sum::tests::two_lists_of_survivors_open_neither` |
//! | a site is invented | `secure_sum::roster::tests::a_roster_of_strangers_doubles_forged_keys_or_too_few_is_refused`, `secure_sum::tests::questions_that_are_none_are_refused` |
//! | a key is put in the place of another | `secure_sum::tests::a_site_takes_one_list_of_sites_for_a_batch_and_only_what_they_sealed` |
//! | tampered, replayed, late or reordered messages open anything or change the sum | `secure_sum::tests::{what_was_tampered_with_is_found_and_the_others_open_without_it, an_answer_to_another_round_is_no_answer, messages_before_their_turn_are_refused}` |
//! | masked integers show anything | `secure_sum::tests::masked_integers_pass_a_test_of_uniformity_and_do_not_hang_together` |
//! | a site is summed with others than its group's | `client::secure_sum::tests::a_roster_with_a_member_of_another_group_is_refused` |
//! | a group has less than the promise | `job::tests::a_secure_sum_by_groups_keeps_its_promise_in_each_group` |
//! | a group below its threshold is opened, or stops the others | `coordinator::job::groups::tests` |
//! | a kill at any stage changes a sum or draws noise anew | `tests/it/secure_sum.rs` |
