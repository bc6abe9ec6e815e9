//! Scoring a site's customers with a model, and what an explanation says.
//!
//! `weighhouse client predict` reads a model file and a table of the site's customers and writes the same rows with
//! what the model says about each. It runs at the site, sends nothing, and costs no privacy budget: whatever is
//! computed from a differentially private model is as private towards those whose records it learned from. The scores
//! themselves are personal data of the customers who are scored, and are the site's to protect.
//!
//! # Columns
//! First the customer and the columns of `--keep`, as they stand in the input; then the model's output; then, with
//! `--explain`, the reasons. One row comes out for each row in, in the same order. The label column is not needed.
//!
//! | the label's kind | columns |
//! | --- | --- |
//! | binary | `probability` of label 1, 0 to 1 |
//! | classes | `prediction`, the likeliest class (of equal ones the first); `probability_` and the class's name, for each |
//! | count | `expected`, the rate: how many are to be expected |
//! | number | `prediction`, in the label's own units; may lie somewhat outside the schema's bounds |
//! | item | `item_1`, `item_1_score`, `item_2`, ...: the best `--top` items, 10 if it is not given, at most 100; scores order the items of one row and mean nothing between rows |
//!
//! An item is called as in the label's `categories`, or `bucket 7` where it has `hash_buckets`; `other` stands for all
//! items that are not listed, or for an empty cell. `--new-items-only` leaves out what is in the row's own history: all
//! entries of its sequences that have the same `categories` or `hash_buckets` as the label, those before the last `length`
//! too. Where fewer items are left than asked for, cells are empty.
//!
//! | `--explain` | columns |
//! | --- | --- |
//! | always | the explained quantity and `base`, the same quantity of the neutral row |
//! | a number, 3 if none is given | `reason_1`, `reason_1_contribution`, ...: the features that moved the score most, by size; empty if fewer moved it |
//! | `all` | `contribution_` and the feature's name, for each feature in the schema's order |
//!
//! | the label's kind | the explained quantity |
//! | --- | --- |
//! | binary | `logit`; its logistic function is the probability |
//! | classes | `log_odds`: the logarithm of how much likelier the predicted class is than all others together; its logistic function is that class's probability. Logits of single classes would not do: all of them can rise by the same and nothing changes |
//! | count | `log_rate`: the natural logarithm of the rate |
//! | number | `explained_prediction`: the prediction, in the label's units |
//! | item | `explained_score`: the score of `item_1`; empty where no item is listed |
//!
//! # The method
//! Contributions are Shapley values (Strumbelj and Kononenko 2014, "Explaining prediction models and individual
//! predictions with feature contributions", Knowledge and Information Systems 41) on the explained quantity, against one
//! public neutral row: each number at the middle of its bounds, each category "other", no steps. They are what a
//! feature's change from the neutral value to the row's moves the quantity by, averaged over the orders in which features
//! can change.
//!
//! - They add up: `base` and all contributions give the quantity, for every row and every model, because every walk
//!   from the neutral row ends at the row.
//! - All sequences of a row are one feature, taken whole or left, at the place of the first of them and named by all with
//!   `+` between: they have one entry a step, so a row with the amounts of five visits and the shops of none is none that
//!   could be. What single steps contributed is not told.
//! - For a logistic model with less than three classes they are exact: weight times scaled value for a number, the
//!   difference of two weights for a category, for sequences their part of the sum. So they are for matrix
//!   factorisation that ranks, in which nothing but the history counts: `base` is the item's bias.
//! - For other models 32 permutations are drawn, each walked forwards and backwards (antithetic pairs; Mitchell et al.
//!   2022, "Sampling permutations for Shapley value estimation"). Interactions of two features are shared exactly; what
//!   three or more features do together is shared with a sampling error, which only shifts between these.
//! - They can be repeated: the permutations come from the hash of the model file and are the same for every row.
//!
//! A contribution says what moved the model, not what would change the customer; features that go together in the
//! records share what the model makes of them as it happened to learn it. The neutral row is a point of reference,
//! not a typical customer: nothing about the site's records is looked at for it.
//!
//! # Bad rows
//! A cell that is not a finite number where one is needed, an empty customer, a row of the wrong length: the line and the
//! column are named and nothing is written, or with `--skip-bad-rows` the row is left out and counted. Numbers
//! beyond their bounds count as the bound, as in training; unknown categories are "other".
