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
//! | model's output | columns |
//! | --- | --- |
//! | probability of label 1 | `probability`, 0 to 1 |
//!
//! | `--explain` | columns |
//! | --- | --- |
//! | always | the explained quantity (`logit`) and `base`, the same quantity of the neutral row |
//! | a number, 3 if none is given | `reason_1`, `reason_1_contribution`, ...: the features that moved the score most, by size; empty if fewer moved it |
//! | `all` | `contribution_` and the feature's name, for each feature in the schema's order |
//!
//! # The method
//! Contributions are Shapley values (Strumbelj and Kononenko 2014, "Explaining prediction models and individual
//! predictions with feature contributions", Knowledge and Information Systems 41) on the logit, against one public neutral
//! row: each number at the middle of its bounds, each category "other". They are what a feature's change from
//! the neutral value to the row's moves the logit by, averaged over the orders in which features can change.
//!
//! - They add up: `base` and all contributions give the logit, for every row and every model, because every walk
//!   from the neutral row ends at the row.
//! - For a logistic model they are exact: weight times scaled value for a number, the difference of two weights for a
//!   category.
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
