//! Composition of grid losses in the frequency domain, with a bound on what rounding may have done.
//!
//! Enters: [`Lattice`]s on one [`Frame`] (grid step, length, tilt). Leaves: the composed probabilities in
//! a window of the grid, each with one error bound for all, and the figures that bound what lies outside.
//!
//! **Tilting.** Masses are multiplied by `exp(tilt x loss)` and normalised before the transform and divided
//! again after. That moves the middle of the composed law to the losses that decide delta, so that
//! round-off is relative to delta and not to 1, and what wraps round from below is multiplied
//! by `exp(-tilt x length)`.
//!
//! **Round-off.** Each output of a fast Fourier transform is a sum over a tree of depth `log2(n)` whose terms'
//! absolute values add up to at most the input's 1-norm; with twiddle factors and butterflies good to a few
//! unit round-offs, its error is at most [`TRANSFORM_ERROR`]` log2(n)` of that norm. Powers
//! multiply it by the number of releases, frequency by frequency; the mean over frequencies of
//! these errors bounds each composed probability's.

use std::sync::Arc;

use realfft::num_complex::Complex;
use realfft::{ComplexToReal, RealFftPlanner, RealToComplex};

use super::loss::Lattice;

/// Error of a fast Fourier transform, per doubling of its length, over the 1-norm of its input.
const TRANSFORM_ERROR: f64 = 8.0 * f64::EPSILON;

/// `ln` of a magnitude at which a frequency is taken to be zero.
const NEGLIGIBLE: f64 = -90.0;

/// Tilts, beside the frame's own, at which moments are kept to bound the mass above the window.
const PROBES: usize = 3;

/// The common grid of a composition.
#[derive(Clone)]
pub(super) struct Frame {
    /// Grid step, in nats.
    pub h: f64,
    /// Grid points in the window, a power of two.
    pub length: usize,
    /// Exponent, per nat, of the tilt.
    pub tilt: f64,
    probes: [f64; PROBES],
    forward: Arc<dyn RealToComplex<f64>>,
    inverse: Arc<dyn ComplexToReal<f64>>,
}

impl Frame {
    /// A frame whose moments are kept at tilts around `tilt + probe`.
    pub fn new(h: f64, length: usize, tilt: f64, probe: f64) -> Self {
        let mut planner = RealFftPlanner::new();
        Self {
            h,
            length,
            tilt,
            probes: [0.5, 1.0, 2.0].map(|share| share * probe),
            forward: planner.plan_fft_forward(length),
            inverse: planner.plan_fft_inverse(length),
        }
    }

    fn transform_error(&self) -> f64 {
        TRANSFORM_ERROR * (self.length as f64).log2()
    }

    /// Probability that wraps round from below the window, as it is counted inside.
    pub fn wrapped_from_below(&self) -> f64 {
        let passing = (-self.tilt * self.h * self.length as f64).exp();
        passing / (1.0 - passing)
    }
}

/// The tilted transform of one release.
#[derive(Clone)]
pub(super) struct StepSpectrum {
    bins: Vec<Complex<f64>>,
    /// `ln` of the tilted masses' sum.
    ln_mass: f64,
    /// `ln` of the tilted masses' sum at each probe, over that at the tilt.
    ln_probes: [f64; PROBES],
}

impl StepSpectrum {
    pub fn new(lattice: &Lattice, frame: &Frame) -> Self {
        let tilted = |slope| Tilted { masses: &lattice.masses, first: lattice.first, slope };
        let slope = frame.tilt * frame.h;
        let ln_mass = tilted(slope).ln_sum();
        let mut input = frame.forward.make_input_vec();
        tilted(slope).add_to(&mut input, ln_mass);
        let mut bins = frame.forward.make_output_vec();
        frame.forward.process(&mut input, &mut bins).expect("buffers made by the transform itself fit it");
        let ln_probes = frame.probes.map(|probe| tilted(slope + probe * frame.h).ln_sum() - ln_mass);
        Self { bins, ln_mass, ln_probes }
    }
}

/// Masses times `exp(slope x index)`.
///
/// The factor is found anew for each block of grid points and multiplied up within it, which is good to
/// twice as many unit round-offs as a block is long.
struct Tilted<'a> {
    masses: &'a [f64],
    first: i64,
    slope: f64,
}

/// Grid points in a block of [`Tilted`].
const BLOCK: usize = 64;

impl Tilted<'_> {
    /// Blocks, each with the exponent of its first factor; of one grid point where factors could overflow.
    fn blocks(&self) -> impl Iterator<Item = (i64, f64, &[f64])> {
        let size = if self.slope * (BLOCK as f64) < 300.0 { BLOCK } else { 1 };
        self.masses.chunks(size).enumerate().map(move |(block, masses)| {
            let index = self.first + (block * size) as i64;
            (index, self.slope * index as f64, masses)
        })
    }

    fn ln_sum(&self) -> f64 {
        let growth = self.slope.exp();
        let of_block = |(_, exponent, masses): (i64, f64, &[f64])| {
            let (sum, _) =
                masses.iter().fold((0.0, 1.0), |(sum, factor), mass| (sum + mass * factor, factor * growth));
            sum.ln() + exponent
        };
        let lns: Vec<f64> = self.blocks().map(of_block).collect();
        let largest = lns.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        largest + lns.iter().map(|ln| (ln - largest).exp()).sum::<f64>().ln()
    }

    /// Adds the tilted masses over `exp(ln_sum)` to `sums`, index `i` at `i` modulo the length.
    fn add_to(&self, sums: &mut [f64], ln_sum: f64) {
        let growth = self.slope.exp();
        for (index, exponent, masses) in self.blocks() {
            let mut position = index.rem_euclid(sums.len() as i64) as usize;
            let mut factor = (exponent - ln_sum).exp();
            let in_range = (1e-280..1e150).contains(&factor);
            for (k, mass) in masses.iter().enumerate() {
                sums[position] += if in_range {
                    mass * factor
                } else {
                    (mass.ln() + exponent + self.slope * k as f64 - ln_sum).exp()
                };
                factor *= growth;
                position += 1;
                if position == sums.len() {
                    position = 0;
                }
            }
        }
    }
}

/// The composition of any number of releases, as the product of their transforms.
#[derive(Clone)]
pub(super) struct Composed {
    /// The product at the lowest frequencies; the rest are negligible.
    bins: Vec<Complex<f64>>,
    /// `ln` of an upper bound on each product's true magnitude.
    ln_bounds: Vec<f64>,
    /// The smallest factor's magnitude at each frequency.
    weakest: Vec<f64>,
    steps: f64,
    ln_mass: f64,
    ln_probes: [f64; PROBES],
}

/// The composed probabilities in a window of the grid.
pub(super) struct Window {
    /// Tilted probabilities, the index `i` at `i` modulo the length.
    pub tilted: Vec<f64>,
    /// Bound on the error of each.
    pub error: f64,
    /// Highest index in the window.
    pub top: i64,
    /// Tilted probability above `top`.
    pub above: f64,
    /// `ln` of what the tilted probabilities are multiplied by, before `exp(-tilt h index)`.
    pub ln_mass: f64,
}

impl Composed {
    /// The composition of nothing.
    pub fn nothing(frame: &Frame) -> Self {
        let count = frame.length / 2 + 1;
        Self {
            bins: vec![Complex::new(1.0, 0.0); count],
            ln_bounds: vec![0.0; count],
            weakest: vec![1.0; count],
            steps: 0.0,
            ln_mass: 0.0,
            ln_probes: [0.0; PROBES],
        }
    }

    /// Composes `times` more releases of `step`.
    pub fn multiply(&mut self, step: &StepSpectrum, times: u32, frame: &Frame) {
        let factor_error = frame.transform_error();
        let count = f64::from(times);
        let mut last_live = 0;
        for (k, bin) in self.bins.iter_mut().enumerate() {
            let factor = step.bins[k];
            let magnitude = factor.norm_sqr().sqrt() + factor_error;
            // `ln x <= x - 1` settles most frequencies without a logarithm.
            let quick = self.ln_bounds[k] + count * (magnitude - 1.0);
            if quick >= NEGLIGIBLE {
                self.ln_bounds[k] += count * magnitude.ln();
            } else {
                self.ln_bounds[k] = f64::NEG_INFINITY;
            }
            if self.ln_bounds[k] < NEGLIGIBLE {
                self.ln_bounds[k] = f64::NEG_INFINITY;
                *bin = Complex::new(0.0, 0.0);
                continue;
            }
            last_live = k;
            self.weakest[k] = self.weakest[k].min(magnitude);
            *bin *= power(factor, times);
        }
        self.bins.truncate(last_live + 1);
        self.ln_bounds.truncate(last_live + 1);
        self.weakest.truncate(last_live + 1);
        self.steps += count;
        self.ln_mass += count * step.ln_mass;
        for (total, one) in self.ln_probes.iter_mut().zip(step.ln_probes) {
            *total += count * one;
        }
    }

    /// Transforms back. The window's top is where no more than `cut` of the tilted probability is above.
    pub fn window(&self, frame: &Frame, cut: f64) -> Window {
        let length = frame.length as f64;
        let probes = frame.probes.iter().zip(self.ln_probes);
        let top = probes
            .clone()
            .map(|(probe, ln)| (ln - cut.ln()) / (probe * frame.h))
            .fold(f64::INFINITY, f64::min)
            .ceil();
        let ln_above = probes.map(|(probe, ln)| ln - probe * frame.h * top).fold(f64::INFINITY, f64::min);

        let (mut sizes, mut errors) = (0.0, 0.0);
        for (&ln_bound, &weakest) in self.ln_bounds.iter().zip(&self.weakest) {
            let size = ln_bound.exp();
            let relative = self.steps * (frame.transform_error() / weakest + 8.0 * f64::EPSILON);
            sizes += size;
            errors += size * (2.0 * relative).min(2.0);
        }
        // Frequencies come in conjugate pairs; the mean over all `length` of them, and those left out.
        let error = 2.0 * (errors + frame.transform_error() * sizes) / length + 2.0 * NEGLIGIBLE.exp();

        let mut spectrum = self.bins.clone();
        spectrum.resize(frame.length / 2 + 1, Complex::new(0.0, 0.0));
        spectrum[0].im = 0.0;
        spectrum[frame.length / 2].im = 0.0;
        let mut tilted = frame.inverse.make_output_vec();
        frame
            .inverse
            .process(&mut spectrum, &mut tilted)
            .expect("buffers made by the transform itself fit it");
        for probability in &mut tilted {
            *probability /= length;
        }
        Window { tilted, error, top: top as i64, above: ln_above.exp(), ln_mass: self.ln_mass }
    }
}

/// `base^exponent` by squaring; the relative error is below `8 exponent` unit round-offs.
fn power(base: Complex<f64>, exponent: u32) -> Complex<f64> {
    let (mut result, mut square, mut left) = (Complex::new(1.0, 0.0), base, exponent);
    while left > 0 {
        if left & 1 == 1 {
            result *= square;
        }
        square *= square;
        left >>= 1;
    }
    result
}
