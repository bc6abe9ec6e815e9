//! How good predictions are, for each kind of label, from rows or from noised histograms.
//!
//! Predictions and labels, or a [`ScoreHistogram`] (at sites: noised, so counts may be negative or fractional),
//! enter; a [`Quality`] leaves, whose figures are `None` where they are not defined. Nothing here adds noise or
//! accounts for it.
//!
//! A site's histogram has two sides of equal-width bins over 0 to 1. [`mark`] says where each row counts:
//!
//! | label | bin | side | what the counts give |
//! | --- | --- | --- | --- |
//! | binary | the probability of 1 | whether it is 1 | AUC, log loss |
//! | classes | the probability of the predicted class | whether the prediction is right | accuracy, mean confidence |
//! | item | 1 / the rank of the row's item among all items | whether that is within 10 | hit rate@10, mean reciprocal rank |
//! | count | e / (1 + e), e the absolute error | whether the prediction is at or above the label | MAE, mean error |
//! | number | absolute error over half the label's range, at most 1 | as for counts | MAE, mean error |
//!
//! Whatever the kind, a row counts in one bin of one side, so what a customer can change does not depend on it.

use crate::schema::{LabelKind, Target};
use serde::{Deserialize, Serialize};

/// How far down an item may stand in a row's ranking to be a hit.
pub const HIT_RANK: usize = 10;

/// Scores closer to 0 or 1 than this count as this in a log loss, which is then at most 16.2 nats.
const LOG_LOSS_FLOOR: f64 = 1e-7;

/// Area under the ROC curve: the probability that a positive scores above a negative, ties counted half.
///
/// `labels` at least 0.5 are positive. `None` if a class is missing, the lengths differ or a score is NaN.
pub fn auc(scores: &[f32], labels: &[f32]) -> Option<f64> {
    if scores.len() != labels.len() || scores.iter().any(|score| score.is_nan()) {
        return None;
    }
    let mut ranked: Vec<(f32, bool)> = scores.iter().zip(labels).map(|(&s, &l)| (s, l >= 0.5)).collect();
    ranked.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let (mut area, mut below) = (0.0, 0.0);
    let mut positives = 0.0;
    // -0 and 0 are one score: equality of floats, not of bits.
    for ties in ranked.chunk_by(|a, b| a.0 == b.0) {
        let positive = ties.iter().filter(|(_, positive)| *positive).count() as f64;
        let negative = ties.len() as f64 - positive;
        area += positive * (below + negative / 2.0);
        below += negative;
        positives += positive;
    }
    let pairs = positives * below;
    (pairs > 0.0).then(|| area / pairs)
}

/// Mean binary cross-entropy of probabilities, in nats. Scores are kept off 0 and 1 by 1e-7.
///
/// `None` if there are no scores, the lengths differ or a score is NaN.
pub fn log_loss(scores: &[f32], labels: &[f32]) -> Option<f64> {
    if scores.is_empty() || scores.len() != labels.len() {
        return None;
    }
    let total: f64 = scores
        .iter()
        .zip(labels)
        .map(|(&score, &label)| {
            let (score, label) = (f64::from(score), f64::from(label));
            label * surprise(score) + (1.0 - label) * surprise(1.0 - score)
        })
        .sum();
    (!total.is_nan()).then(|| total / scores.len() as f64)
}

/// `-ln` of a probability kept off 0 and 1.
fn surprise(probability: f64) -> f64 {
    -probability.clamp(LOG_LOSS_FLOOR, 1.0 - LOG_LOSS_FLOOR).ln()
}

/// Counts of positives and negatives in equal-width bins of the score over `[0, 1]`.
///
/// The bins are public constants; the counts are data, and after noise they may be negative or fractional:
/// every function below takes a negative count as none.
#[derive(Clone, PartialEq)]
pub struct ScoreHistogram {
    /// Positives in each bin, lowest scores first.
    pub positive: Vec<f64>,
    /// Negatives in each bin, lowest scores first.
    pub negative: Vec<f64>,
}

impl ScoreHistogram {
    /// Counts `scores` by [`bin_of`], so every row counts once.
    ///
    /// # Panics
    /// If `bins` is 0 or the lengths differ.
    pub fn new(scores: &[f32], labels: &[f32], bins: usize) -> Self {
        assert!(bins > 0, "a histogram has at least one bin");
        assert_eq!(scores.len(), labels.len(), "a label for each score");
        let mut histogram = Self { positive: vec![0.0; bins], negative: vec![0.0; bins] };
        for (&score, &label) in scores.iter().zip(labels) {
            let counts = if label >= 0.5 { &mut histogram.positive } else { &mut histogram.negative };
            counts[bin_of(score.into(), bins)] += 1.0;
        }
        histogram
    }

    /// Bins as (middle of the scores, positives, negatives) with noise below zero cut off.
    fn bins(&self) -> impl Iterator<Item = (f64, f64, f64)> {
        let width = 1.0 / self.positive.len() as f64;
        let counts = self.positive.iter().zip(&self.negative);
        counts.enumerate().map(move |(bin, (&positive, &negative))| {
            ((bin as f64 + 0.5) * width, positive.max(0.0), negative.max(0.0))
        })
    }

    /// Positives and negatives in all bins.
    fn totals(&self) -> (f64, f64) {
        self.bins().fold((0.0, 0.0), |(p, n), (_, positive, negative)| (p + positive, n + negative))
    }
}

impl std::fmt::Debug for ScoreHistogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ScoreHistogram({} bins)", self.positive.len())
    }
}

/// [`auc`] with scores in the same bin taken as ties. `None` if a class is missing.
pub fn auc_from_histogram(histogram: &ScoreHistogram) -> Option<f64> {
    let (mut area, mut below) = (0.0, 0.0);
    for (_, positive, negative) in histogram.bins() {
        area += positive * (below + negative / 2.0);
        below += negative;
    }
    let (positives, negatives) = histogram.totals();
    let pairs = positives * negatives;
    (pairs > 0.0 && pairs.is_finite()).then(|| area / pairs)
}

/// [`log_loss`] with every score taken as the middle of its bin. `None` if all bins are empty.
pub fn log_loss_from_histogram(histogram: &ScoreHistogram) -> Option<f64> {
    let (positives, negatives) = histogram.totals();
    let count = positives + negatives;
    let total: f64 =
        histogram.bins().map(|(score, p, n)| p * surprise(score) + n * surprise(1.0 - score)).sum();
    (count > 0.0 && count.is_finite()).then(|| total / count)
}

/// Share of positives among all rows. `None` if all bins are empty.
pub fn base_rate(histogram: &ScoreHistogram) -> Option<f64> {
    let (positives, negatives) = histogram.totals();
    let count = positives + negatives;
    (count > 0.0 && count.is_finite()).then(|| positives / count)
}

/// The bin of `score` among so many: bin `b` of `n` holds scores from `b/n` up to but not including `(b+1)/n`, the
/// last one 1 too. Scores outside 0 to 1 count in the nearest bin and NaN in the first.
pub fn bin_of(score: f64, bins: usize) -> usize {
    // A cast from float saturates, and takes NaN to 0.
    ((score * bins as f64) as usize).min(bins.saturating_sub(1))
}

/// Where a row counts in a histogram.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mark {
    /// From 0 to 1; its bin is [`bin_of`] it.
    pub score: f64,
    /// Whether it counts among the first side's bins, [`ScoreHistogram::positive`].
    pub hit: bool,
}

/// Where a row with `prediction`, as many values as `target` has outputs, and `label` counts; see this module's header.
///
/// # Panics
/// If the label's class or item is not among the outputs.
pub fn mark(target: Target, prediction: &[f32], label: f32) -> Mark {
    match target {
        Target::Binary => Mark { score: prediction[0].into(), hit: label > 0.5 },
        Target::Classes(_) => {
            let (class, confidence) = predicted_class(prediction);
            Mark { score: confidence.into(), hit: class == label as usize }
        }
        Target::Item(_) => {
            let rank = rank_of(prediction, label as usize);
            Mark { score: 1.0 / rank as f64, hit: rank <= HIT_RANK }
        }
        Target::Count => {
            let error = f64::from(prediction[0]) - f64::from(label);
            let score = if error.is_finite() { error.abs() / (1.0 + error.abs()) } else { 1.0 };
            Mark { score, hit: error >= 0.0 }
        }
        Target::Number => {
            let error = f64::from(prediction[0].clamp(-1.0, 1.0)) - f64::from(label);
            Mark { score: error.abs().min(1.0), hit: error >= 0.0 }
        }
    }
}

/// The class of the highest probability, the first of equals, and that probability.
fn predicted_class(probabilities: &[f32]) -> (usize, f32) {
    let start = (0, probabilities.first().copied().unwrap_or(0.0));
    let later = probabilities.iter().copied().enumerate().skip(1);
    later.fold(start, |best, (class, p)| if p > best.1 { (class, p) } else { best })
}

/// The place of `item` in the ranking of all items by score, from 1; items that tie with it stand before it.
fn rank_of(scores: &[f32], item: usize) -> usize {
    let own = scores[item];
    // Its own score is not below itself, so it counts one; NaN is below nothing.
    scores.iter().filter(|&&score| score >= own || score.is_nan() || own.is_nan()).count().max(1)
}

/// How good a model is; figures that do not belong to the kind of its label are `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Binary: area under the receiver operating characteristic, 0 to 1.
    pub auc: Option<f64>,
    /// Binary: mean log loss, in nats.
    pub log_loss: Option<f64>,
    /// Classes: share of rows whose predicted class is right, 0 to 1.
    pub accuracy: Option<f64>,
    /// Classes: mean probability of the predicted class, 0 to 1; calibrated predictions have it near the accuracy.
    pub mean_confidence: Option<f64>,
    /// Items: share of rows whose item is among the 10 that score highest, 0 to 1.
    pub hit_rate_at_10: Option<f64>,
    /// Items: mean of 1 / the rank of the row's item among all items, 0 to 1. From a histogram each bin's rows count as
    /// the mean of 1 / rank over the ranks that fall into it: exact down to rank 4 with 20 bins.
    pub mean_reciprocal_rank: Option<f64>,
    /// Counts and numbers: mean absolute error, in the label's units. From a histogram errors count as the middle of
    /// their bin, those past half of a number's range as half of it, and those of a count past `bins - 1` as that.
    pub mean_absolute_error: Option<f64>,
    /// Counts and numbers: mean of prediction minus label, in the label's units; from a histogram likewise.
    pub mean_error: Option<f64>,
}

/// The figure that a kind of label is told by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Figure {
    /// [`Quality::auc`].
    #[serde(rename = "AUC")]
    Auc,
    /// [`Quality::accuracy`].
    #[serde(rename = "accuracy")]
    Accuracy,
    /// [`Quality::hit_rate_at_10`].
    #[serde(rename = "hit rate@10")]
    HitRateAt10,
    /// [`Quality::mean_absolute_error`].
    #[serde(rename = "MAE")]
    MeanAbsoluteError,
}

impl Figure {
    /// Of labels of `target`.
    pub fn of(target: Target) -> Self {
        match target {
            Target::Binary => Self::Auc,
            Target::Classes(_) => Self::Accuracy,
            Target::Item(_) => Self::HitRateAt10,
            Target::Count | Target::Number => Self::MeanAbsoluteError,
        }
    }

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auc => "AUC",
            Self::Accuracy => "accuracy",
            Self::HitRateAt10 => "hit rate@10",
            Self::MeanAbsoluteError => "MAE",
        }
    }

    /// What it says, for people, in one sentence.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Auc => "AUC: the chance that a row with label 1 is ranked above one with label 0.",
            Self::Accuracy => "Accuracy: the share of rows whose predicted class is right.",
            Self::HitRateAt10 => {
                "Hit rate@10: the share of rows whose own item is among the 10 that score highest."
            }
            Self::MeanAbsoluteError => "MAE: the mean absolute error, in the label's units; lower is better.",
        }
    }

    /// What it is in `quality`.
    pub fn in_quality(self, quality: &Quality) -> Option<f64> {
        match self {
            Self::Auc => quality.auc,
            Self::Accuracy => quality.accuracy,
            Self::HitRateAt10 => quality.hit_rate_at_10,
            Self::MeanAbsoluteError => quality.mean_absolute_error,
        }
    }
}

impl Quality {
    /// The figure that the kind of label is told by, with its name; None if it is not defined.
    pub fn headline(&self) -> Option<(Figure, f64)> {
        use Figure::{Accuracy, Auc, HitRateAt10, MeanAbsoluteError};
        let figures = [Auc, Accuracy, HitRateAt10, MeanAbsoluteError];
        figures.into_iter().find_map(|figure| Some((figure, figure.in_quality(self)?)))
    }

    /// From the summed counts of sites: [`ScoreHistogram::positive`] first, then the other side.
    ///
    /// But for AUC and log loss, every figure is a ratio of plain sums of the counts, so that noise of either sign
    /// averages out, and is brought into its range.
    pub fn of_counts(label: &LabelKind, counts: &[i64]) -> Self {
        let (hits, misses) = counts.split_at(counts.len() / 2);
        let (hits, misses): (Sides, Sides) = (floats(hits), floats(misses));
        let bins = hits.len();
        let mean = |values: &dyn Fn(usize) -> [f64; 2]| mean_over(&hits, &misses, values);
        match label {
            LabelKind::Binary => {
                let histogram = ScoreHistogram { positive: hits, negative: misses };
                let (auc, log_loss) = (auc_from_histogram(&histogram), log_loss_from_histogram(&histogram));
                Self { auc, log_loss, ..Self::default() }
            }
            LabelKind::Classes(_) => {
                let middle = |bin: usize| (bin as f64 + 0.5) / bins as f64;
                let accuracy = mean(&|_| [1.0, 0.0]);
                Self { accuracy, mean_confidence: mean(&|bin| [middle(bin); 2]), ..Self::default() }
            }
            LabelKind::Item(_) => Self::of_ranks(label.target().outputs(), &hits, &misses),
            LabelKind::Count => {
                let edge = |bin: usize| bin as f64 / (bins - bin) as f64;
                let error = |bin: usize| {
                    if bin + 1 == bins { edge(bin) } else { (edge(bin) + edge(bin + 1)) / 2.0 }
                };
                Self::of_errors(mean(&|bin| [error(bin); 2]), mean(&|bin| [error(bin), -error(bin)]))
            }
            LabelKind::Number { min, max } => {
                let error = |bin: usize| (bin as f64 + 0.5) / bins as f64 * (max - min) / 2.0;
                Self::of_errors(mean(&|bin| [error(bin); 2]), mean(&|bin| [error(bin), -error(bin)]))
            }
        }
    }

    fn of_errors(mean_absolute_error: Option<f64>, mean_error: Option<f64>) -> Self {
        Self { mean_absolute_error, mean_error, ..Self::default() }
    }

    /// From counts by reciprocal rank among `items`. Bins into which no rank falls hold noise alone and are left out.
    fn of_ranks(items: usize, hits: &[f64], misses: &[f64]) -> Self {
        let bins = hits.len();
        let mut ranks = vec![[(0.0, 0.0); 2]; bins];
        for rank in 1..=items {
            let reciprocal = 1.0 / rank as f64;
            let (sum, count) = &mut ranks[bin_of(reciprocal, bins)][usize::from(rank > HIT_RANK)];
            *sum += reciprocal;
            *count += 1.0;
        }
        let left = |side: usize| {
            move |(counts, ranks): (&f64, &[(f64, f64); 2])| if ranks[side].1 > 0.0 { *counts } else { 0.0 }
        };
        let hits: Sides = hits.iter().zip(&ranks).map(left(0)).collect();
        let misses: Sides = misses.iter().zip(&ranks).map(left(1)).collect();
        let value = |bin: usize| ranks[bin].map(|(sum, count)| if count > 0.0 { sum / count } else { 0.0 });
        Self {
            hit_rate_at_10: mean_over(&hits, &misses, &|_| [1.0, 0.0]),
            mean_reciprocal_rank: mean_over(&hits, &misses, &value),
            ..Self::default()
        }
    }

    /// From rows themselves: `predictions` is `[rows, outputs]` as the label's target has outputs, `labels` is
    /// `[rows]`. All `None` without rows or if the lengths differ.
    pub fn of_rows(label: &LabelKind, predictions: &[f32], labels: &[f32]) -> Self {
        let target = label.target();
        let width = target.outputs();
        if labels.is_empty() || predictions.len() != labels.len() * width {
            return Self::default();
        }
        let rows = || predictions.chunks_exact(width).zip(labels.iter().copied());
        let mean = |value: &dyn Fn(&[f32], f32) -> f64| {
            let mean = rows().map(|(row, label)| value(row, label)).sum::<f64>() / labels.len() as f64;
            (!mean.is_nan()).then_some(mean)
        };
        let hits = || mean(&|row, label| f64::from(u8::from(mark(target, row, label).hit)));
        let scores = || mean(&|row, label| mark(target, row, label).score);
        match label {
            LabelKind::Binary => {
                let (auc, log_loss) = (auc(predictions, labels), log_loss(predictions, labels));
                Self { auc, log_loss, ..Self::default() }
            }
            LabelKind::Classes(_) => Self { accuracy: hits(), mean_confidence: scores(), ..Self::default() },
            LabelKind::Item(_) => {
                Self { hit_rate_at_10: hits(), mean_reciprocal_rank: scores(), ..Self::default() }
            }
            LabelKind::Count | LabelKind::Number { .. } => {
                let (scale, bound) = match label {
                    LabelKind::Number { min, max } => ((max - min) / 2.0, 1.0),
                    _ => (1.0, f32::INFINITY),
                };
                let error = |row: &[f32], label: f32| {
                    scale * (f64::from(row[0].clamp(-bound, bound)) - f64::from(label))
                };
                Self::of_errors(mean(&|row, label| error(row, label).abs()), mean(&error))
            }
        }
    }
}

type Sides = Vec<f64>;

fn floats(counts: &[i64]) -> Sides {
    counts.iter().map(|&count| count as f64).collect()
}

/// Mean over rows of `values(bin)`, which is for the first side and the other, brought between the least and the greatest
/// of them. None if the counts do not add up to more than none.
fn mean_over(hits: &[f64], misses: &[f64], values: &dyn Fn(usize) -> [f64; 2]) -> Option<f64> {
    let (mut sum, mut rows) = (0.0, 0.0);
    let (mut least, mut greatest) = (f64::INFINITY, f64::NEG_INFINITY);
    for (bin, counts) in hits.iter().zip(misses).enumerate() {
        for (count, value) in [*counts.0, *counts.1].into_iter().zip(values(bin)) {
            sum += count * value;
            rows += count;
            (least, greatest) = (least.min(value), greatest.max(value));
        }
    }
    (rows > 0.0).then(|| (sum / rows).clamp(least, greatest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Items;

    #[test]
    fn auc_is_the_share_of_pairs_in_order_with_ties_counted_half() {
        // Positives 0.8, 0.5, 0.5; negatives 0.5, 0.2: pairs 1+1, 0.5+1, 0.5+1 of 6.
        let auc = auc(&[0.8, 0.5, 0.5, 0.5, 0.2], &[1.0, 1.0, 0.0, 1.0, 0.0]).unwrap();
        assert!((auc - 5.0 / 6.0).abs() < 1e-12, "{auc}");
        assert_eq!(super::auc(&[-0.0, 0.0], &[1.0, 0.0]), Some(0.5));
    }

    #[test]
    fn what_is_not_defined_is_none() {
        assert_eq!(auc(&[0.1, 0.9], &[1.0, 1.0]), None);
        assert_eq!(auc(&[], &[]), None);
        assert_eq!(auc(&[f32::NAN, 0.5], &[1.0, 0.0]), None);
        assert_eq!(log_loss(&[], &[]), None);
        assert_eq!(log_loss(&[f32::NAN], &[1.0]), None);
        let empty = ScoreHistogram { positive: vec![-3.0, 0.0], negative: vec![0.0, -1.0] };
        assert_eq!(auc_from_histogram(&empty), None);
        assert_eq!(log_loss_from_histogram(&empty), None);
        assert_eq!(base_rate(&empty), None);
    }

    #[test]
    fn log_loss_is_the_mean_surprise_and_stays_finite_at_0_and_1() {
        let loss = log_loss(&[0.25, 0.25], &[1.0, 0.0]).unwrap();
        assert!((loss - (4.0f64.ln() + (4.0f64 / 3.0).ln()) / 2.0).abs() < 1e-12, "{loss}");
        assert!((log_loss(&[0.0], &[1.0]).unwrap() - 16.118_095).abs() < 1e-5);
        assert!(log_loss(&[1.0], &[1.0]).unwrap() < 1.1e-7);
    }

    #[test]
    fn a_histogram_of_many_bins_tells_what_the_scores_tell() {
        let scores: Vec<f32> = (0..2000).map(|i| ((i * 7919) % 2003) as f32 / 2003.0).collect();
        let labels: Vec<f32> = scores
            .iter()
            .enumerate()
            .map(|(i, &s)| f32::from(u8::from((i * 31) % 101 < (s * 101.0) as usize)))
            .collect();
        let histogram = ScoreHistogram::new(&scores, &labels, 100);
        assert_eq!(histogram.totals().0 + histogram.totals().1, 2000.0);
        let (exact, binned) = (auc(&scores, &labels).unwrap(), auc_from_histogram(&histogram).unwrap());
        assert!((exact - binned).abs() < 1e-3, "{exact} against {binned}");
        let (exact, binned) =
            (log_loss(&scores, &labels).unwrap(), log_loss_from_histogram(&histogram).unwrap());
        assert!((exact - binned).abs() < 5e-3, "{exact} against {binned}");
        let rate = f64::from(labels.iter().sum::<f32>()) / 2000.0;
        assert!((base_rate(&histogram).unwrap() - rate).abs() < 1e-6);
    }

    #[test]
    fn every_score_falls_into_one_bin_and_negative_counts_are_none() {
        let odd = ScoreHistogram::new(&[-1.0, f32::NAN, 1.0, 2.0, f32::INFINITY, 0.5], &[1.0; 6], 2);
        assert_eq!(odd.positive, [2.0, 4.0]);
        let noised = ScoreHistogram { positive: vec![-5.0, 3.0], negative: vec![4.0, -2.0] };
        assert_eq!(auc_from_histogram(&noised), Some(1.0));
        assert_eq!(base_rate(&noised), Some(3.0 / 7.0));
    }

    /// Counts rows as a site does.
    fn counted(label: &LabelKind, predictions: &[f32], labels: &[f32], bins: usize) -> Vec<i64> {
        let mut counts = vec![0; 2 * bins];
        for (row, &y) in predictions.chunks_exact(label.target().outputs()).zip(labels) {
            let Mark { score, hit } = mark(label.target(), row, y);
            counts[bin_of(score, bins) + if hit { 0 } else { bins }] += 1024;
        }
        counts
    }

    fn classes(count: usize) -> LabelKind {
        LabelKind::Classes((0..count).map(|class| class.to_string()).collect())
    }

    #[test]
    fn accuracy_is_of_the_likeliest_class_and_confidence_of_its_probability() {
        let predictions = [0.6, 0.3, 0.1, 0.2, 0.2, 0.6, 0.4, 0.4, 0.2, 0.1, 0.8, 0.1];
        let labels = [0.0, 1.0, 1.0, 1.0];
        let exact = Quality::of_rows(&classes(3), &predictions, &labels);
        assert_eq!(exact.accuracy, Some(0.5), "the first of equals is predicted");
        assert!((exact.mean_confidence.unwrap() - 0.6).abs() < 1e-6);
        assert_eq!(exact.headline(), Some((Figure::Accuracy, 0.5)));
        assert_eq!((exact.auc, exact.hit_rate_at_10, exact.mean_absolute_error), (None, None, None));
        let binned = Quality::of_counts(&classes(3), &counted(&classes(3), &predictions, &labels, 100));
        assert_eq!(binned.accuracy, exact.accuracy);
        assert!((binned.mean_confidence.unwrap() - 0.6).abs() < 0.006, "{binned:?}");
    }

    #[test]
    fn a_hit_is_an_item_among_the_ten_highest_and_ties_stand_before_it() {
        let items = LabelKind::Item(Items::HashBuckets(29));
        // Item i scores -i: item r - 1 has rank r.
        let scores: Vec<f32> = (0..30).map(|item| -(item as f32)).collect();
        let labels: Vec<f32> = [1, 2, 4, 10, 11, 30].map(|rank: i16| f32::from(rank - 1)).into();
        let predictions = scores.repeat(labels.len());
        let exact = Quality::of_rows(&items, &predictions, &labels);
        assert!((exact.hit_rate_at_10.unwrap() - 4.0 / 6.0).abs() < 1e-12);
        let reciprocal = (1.0 + 0.5 + 0.25 + 0.1 + 1.0 / 11.0 + 1.0 / 30.0) / 6.0;
        assert!((exact.mean_reciprocal_rank.unwrap() - reciprocal).abs() < 1e-12);
        let mut counts = counted(&items, &predictions, &labels, 20);
        let binned = Quality::of_counts(&items, &counts);
        assert_eq!(binned.hit_rate_at_10, exact.hit_rate_at_10);
        assert!((binned.mean_reciprocal_rank.unwrap() - reciprocal).abs() < 0.01, "{binned:?}");
        // No reciprocal rank is in 0.55 to 0.95, and none of a miss above 0.1: what is counted there is noise.
        counts[11..19].fill(1 << 20);
        counts[22..].fill(-(1 << 20));
        assert_eq!(Quality::of_counts(&items, &counts), binned);
        // A model that tells nothing apart hits nothing.
        assert_eq!(mark(items.target(), &[0.5; 30], 3.0), Mark { score: 1.0 / 30.0, hit: false });
        assert_eq!(mark(items.target(), &[f32::NAN; 30], 3.0).score, 1.0 / 30.0);
    }

    #[test]
    fn errors_of_numbers_and_counts_are_in_the_labels_units() {
        let number = LabelKind::Number { min: 100.0, max: 300.0 };
        // On -1 to 1; 5 is brought to 1.
        let (predictions, labels) = ([0.5, -0.25, 5.0], [0.0, 0.0, 0.75]);
        let exact = Quality::of_rows(&number, &predictions, &labels);
        assert!((exact.mean_absolute_error.unwrap() - 100.0 / 3.0).abs() < 1e-4, "{exact:?}");
        assert!((exact.mean_error.unwrap() - 50.0 / 3.0).abs() < 1e-4, "{exact:?}");
        let binned = Quality::of_counts(&number, &counted(&number, &predictions, &labels, 200));
        assert!((binned.mean_absolute_error.unwrap() - 100.0 / 3.0).abs() < 0.3, "{binned:?}");
        assert!((binned.mean_error.unwrap() - 50.0 / 3.0).abs() < 0.3, "{binned:?}");
        assert_eq!(binned.headline().unwrap().0.name(), "MAE");

        let (predictions, labels) = ([2.5, 0.5, 7.0], [0.0, 1.0, 3.0]);
        let exact = Quality::of_rows(&LabelKind::Count, &predictions, &labels);
        assert!((exact.mean_absolute_error.unwrap() - 7.0 / 3.0).abs() < 1e-6);
        assert!((exact.mean_error.unwrap() - 2.0).abs() < 1e-6);
        let counts = counted(&LabelKind::Count, &predictions, &labels, 200);
        let binned = Quality::of_counts(&LabelKind::Count, &counts);
        assert!((binned.mean_absolute_error.unwrap() - 7.0 / 3.0).abs() < 0.05, "{binned:?}");
        assert!((binned.mean_error.unwrap() - 2.0).abs() < 0.05, "{binned:?}");
        // However far off, an error counts as bins - 1 at most.
        let far = counted(&LabelKind::Count, &[f32::INFINITY, 1e30], &[0.0, 5.0], 20);
        assert_eq!(Quality::of_counts(&LabelKind::Count, &far).mean_absolute_error, Some(19.0));
    }

    /// Noise of either sign that adds up to nothing changes no ratio of sums, and one that outweighs all rows gives a
    /// figure in its range or none.
    #[test]
    fn noise_averages_out_and_figures_stay_in_their_range() {
        let mut counts = vec![0; 40];
        (counts[15], counts[35]) = (3000, 1000);
        let clean = Quality::of_counts(&classes(4), &counts);
        assert_eq!(clean.accuracy, Some(0.75));
        for bin in 0..10 {
            counts[2 * bin] += 5000;
            counts[2 * bin + 1] -= 5000;
        }
        assert_eq!(Quality::of_counts(&classes(4), &counts).accuracy, Some(0.75));
        assert_eq!(Quality::of_counts(&classes(4), &[4, -3]).accuracy, Some(1.0));
        let items = LabelKind::Item(Items::HashBuckets(4));
        let number = LabelKind::Number { min: 0.0, max: 1.0 };
        for kind in [classes(4), items, LabelKind::Count, number] {
            let nothing = Quality::of_counts(&kind, &[-7, 2, -4, 1]);
            assert_eq!(nothing.headline(), None, "{kind:?}");
            assert_eq!(Quality::of_rows(&kind, &[], &[]), Quality::default());
        }
    }
}
