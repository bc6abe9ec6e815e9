//! How good scores are: area under the ROC curve, log loss, base rate, from scores or from their histograms.
//!
//! Scores and labels, or a [`ScoreHistogram`] (at sites: noised, so counts may be negative or fractional), enter;
//! plain numbers leave, or `None` where the number is not defined. Nothing here adds noise or accounts for it.

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
    /// Counts `scores`; bin `b` of `n` holds scores from `b/n` up to but not including `(b+1)/n`, the last one 1 too.
    ///
    /// Scores outside `[0, 1]` count in the nearest bin and NaN in the first, so every row counts once.
    ///
    /// # Panics
    /// If `bins` is 0 or the lengths differ.
    pub fn new(scores: &[f32], labels: &[f32], bins: usize) -> Self {
        assert!(bins > 0, "a histogram has at least one bin");
        assert_eq!(scores.len(), labels.len(), "a label for each score");
        let mut histogram = Self { positive: vec![0.0; bins], negative: vec![0.0; bins] };
        for (&score, &label) in scores.iter().zip(labels) {
            // A cast from float saturates, and takes NaN to 0.
            let bin = ((f64::from(score) * bins as f64) as usize).min(bins - 1);
            let counts = if label >= 0.5 { &mut histogram.positive } else { &mut histogram.negative };
            counts[bin] += 1.0;
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
