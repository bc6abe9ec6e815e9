//! Who shares masks with whom: everyone with everyone up to [`COMPLETE_SITES`] sites; beyond, the union of random
//! cycles, as few as keep the promise below, after Bell, Bonawitz, Gascon, Lepoint and Raykova 2020 ("Secure Single-Server
//! Aggregation with (Poly)Logarithmic Overhead").
//!
//! A site's circle is itself and its neighbours. It shares its secrets among its circle, any [`Graph::threshold`] of
//! which give them back. Of `n` sites let `c` collude, chosen before the graph is known, and let the coordinator choose
//! any `t` or more survivors after it is known, such that of each survivor's circle the threshold survive, which every
//! site checks ([`Graph::holds_among`]). Then but with probability 2^-[`SECURITY_BITS`], for every such choice,
//!
//! 1. no circle holds the threshold of colluding sites, so they open nothing by themselves;
//! 2. the honest survivors are connected, so that nothing but the sum over all of them can be computed.
//!
//! **Proof** for the union of m random cycles, each of which gives a site two neighbours. Let T be the threshold and a
//! number s; all logarithms are natural.
//!
//! *Circles.* Colluding draws among a site's 2 m are sums of variables that are independent from cycle to cycle and
//! negatively correlated within, each with mean p = c / (n - 1). More than T - s of them happen with probability
//! at most exp(-2 m KL(a, p)) by Chernoff's bound, a = (T - s + 1) / 2 m; n times that over all circles. If none does,
//! then of a survivor's circle at least s survivors are honest, itself among them: a connected part of the honest
//! survivors has at least s sites. (s >= 1 gives the first promise as well.)
//!
//! *Cuts.* Let h = n - c be honest, of which at most d = n - t do not survive. If the others fall apart, there is a part
//! A of s <= |A| <= (h - d) / 2 sites without an edge to the rest R, |R| = h - d - |A|. In one cycle, going through A in any
//! order, the successor of each of its sites is uniform over at least |R| and at most n - 1 sites, R among them as long as
//! no earlier successor was in R; so no successor of A is in R with probability at most (1 - |R| / (n - 1))^|A|, and in
//! all cycles with the m-th power of that. There are at most C(h, |A|) choices of A and (d + 1) C(h - |A|, d) of those
//! lost, for which the union bound pays.
//!
//! The number of cycles is the smallest for which some s brings the sum of both below 2^-[`SECURITY_BITS`]. With the
//! default terms (15 % lost, a third in league) that takes some 200 neighbours at any number of sites, since any choice of
//! the lost is paid for: fewer than 255 sites would save nothing. Cycles meet in some edges, so that few more sites than that
//! have too small circles for the threshold, and are refused when their job is written: by default those from 256 to some 430. In groups
//! of at most 255 they are served.

use super::keys::Secret;
use super::masks::keystream;
use super::shamir::MAX_SHARES;

/// Up to so many sites everyone shares masks with everyone.
pub const COMPLETE_SITES: usize = MAX_SHARES;

/// The graph's promises fail with probability at most 2 to the minus this, over the choice of the graph. A coordinator
/// that picks whom it puts on the roster draws a new graph each time: it would try 2^60 rosters for a chance of one half.
pub const SECURITY_BITS: f64 = 60.0;

/// Sites that are too many to be all neighbours, and no graph with fewer keeps the promise and goes on when sites are
/// lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "no graph of fewer than {MAX_SHARES} neighbours serves {sites} sites of which {colluding} may collude and {threshold} \
     survive; split them with federation.groups, lower federation.colluding_sites, or let at most {COMPLETE_SITES} sites take part"
)]
pub struct GraphError {
    sites: usize,
    threshold: usize,
    colluding: usize,
}

/// Who shares masks with whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Graph {
    /// Of each site, ascending, itself among them.
    circles: Vec<Vec<u16>>,
    threshold: usize,
}

impl Graph {
    /// The graph among `sites` sites of which `colluding` may collude and at least `threshold` survive each round;
    /// a function of `seed` where it is random. `colluding < threshold <= sites`.
    pub fn new(
        sites: usize,
        threshold: usize,
        colluding: usize,
        seed: &[u8; 32],
    ) -> Result<Self, GraphError> {
        match cycles(sites, threshold, colluding)? {
            None => {
                let all: Vec<u16> = (0..sites as u16).collect();
                Ok(Self { circles: vec![all; sites], threshold })
            }
            Some(count) => {
                let graph = Self::of_cycles(count, sites, threshold, colluding, seed);
                let whole = graph.circles.iter().all(|circle| circle.len() >= graph.threshold);
                let members: usize = graph.circles.iter().map(Vec::len).sum();
                // On average enough of a circle survive when as many are lost as may be.
                let goes_on = members * threshold >= graph.threshold * sites * sites;
                if whole && goes_on { Ok(graph) } else { Err(GraphError { sites, threshold, colluding }) }
            }
        }
    }

    fn of_cycles(count: usize, sites: usize, threshold: usize, colluding: usize, seed: &[u8; 32]) -> Self {
        let mut circles: Vec<Vec<u16>> = (0..sites as u16).map(|site| vec![site]).collect();
        let mut draws = Draws::of(seed);
        for _ in 0..count {
            let cycle = draws.permutation(sites);
            for (at, site) in cycle.iter().enumerate() {
                let next = cycle[(at + 1) % sites];
                circles[usize::from(*site)].push(next);
                circles[usize::from(next)].push(*site);
            }
        }
        for circle in &mut circles {
            circle.sort_unstable();
            circle.dedup();
        }
        Self { circles, threshold: circle_threshold(count, sites, threshold, colluding) }
    }

    /// A graph of `cycles` cycles, whatever they keep, with this threshold in each circle.
    #[cfg(test)]
    pub(super) fn thin(cycles: usize, sites: usize, threshold: usize, seed: &[u8; 32]) -> Self {
        Self { threshold, ..Self::of_cycles(cycles, sites, sites, 0, seed) }
    }

    /// `site` and its neighbours, ascending.
    ///
    /// # Panics
    /// If there is no such site.
    pub fn circle(&self, site: u16) -> &[u16] {
        &self.circles[usize::from(site)]
    }

    /// At which point `holder` holds shares of the secrets of `owner`; None if it holds none.
    pub fn point(&self, owner: u16, holder: u16) -> Option<u8> {
        let place = self.circle(owner).binary_search(&holder).ok()?;
        u8::try_from(place + 1).ok()
    }

    /// Members of a circle whose shares give a secret of its centre back.
    pub fn threshold(&self) -> usize {
        self.threshold
    }

    /// Whether of each survivor's circle enough survive. `survivors` ascend.
    pub fn holds_among(&self, survivors: &[u16]) -> bool {
        let mut survives = vec![false; self.circles.len()];
        for site in survivors {
            survives[usize::from(*site)] = true;
        }
        let left = |circle: &[u16]| circle.iter().filter(|site| survives[usize::from(**site)]).count();
        survivors.iter().all(|site| left(self.circle(*site)) >= self.threshold)
    }
}

/// How many cycles the graph is made of; None if it is complete.
fn cycles(sites: usize, threshold: usize, colluding: usize) -> Result<Option<usize>, GraphError> {
    if sites <= COMPLETE_SITES {
        return Ok(None);
    }
    let most = (MAX_SHARES - 1) / 2;
    let keeps =
        |count: usize| failure(count, sites, threshold, colluding) <= -SECURITY_BITS * std::f64::consts::LN_2;
    if !keeps(most) {
        return Err(GraphError { sites, threshold, colluding });
    }
    let (mut fails, mut holds) = (0, most);
    while holds - fails > 1 {
        let middle = fails.midpoint(holds);
        if keeps(middle) { holds = middle } else { fails = middle }
    }
    Ok(Some(holds))
}

/// A third of the way from those who survive to those who collude, of a circle: more of it survives, and less colludes.
fn circle_threshold(cycles: usize, sites: usize, threshold: usize, colluding: usize) -> usize {
    ((2 * cycles + 1) * (2 * threshold + colluding)).div_ceil(3 * sites)
}

/// A bound of the natural logarithm of the probability that a graph of so many cycles breaks a promise, as proved above.
fn failure(cycles: usize, sites: usize, threshold: usize, colluding: usize) -> f64 {
    let own = circle_threshold(cycles, sites, threshold, colluding);
    let least = (1..=own.min((threshold - colluding) / 2).min(40)).map(|smallest| {
        let circles = (sites as f64).ln() + circles_failure(cycles, sites, colluding, own - smallest + 1);
        log_sum(circles, cuts_failure(cycles, sites, threshold, colluding, smallest))
    });
    least.fold(0.0, f64::min)
}

/// ... that one circle has `too_many` colluding sites.
fn circles_failure(cycles: usize, sites: usize, colluding: usize, too_many: usize) -> f64 {
    let draws = 2.0 * cycles as f64;
    let (a, p) = (too_many as f64 / draws, colluding as f64 / (sites - 1) as f64);
    match (colluding, a > p) {
        (0, _) => f64::NEG_INFINITY,
        (_, false) => 0.0,
        _ if a > 1.0 => f64::NEG_INFINITY,
        _ => {
            let rest = if a < 1.0 { (1.0 - a) * ((1.0 - a) / (1.0 - p)).ln() } else { 0.0 };
            -draws * (a * (a / p).ln() + rest)
        }
    }
}

/// ... that honest survivors fall apart into parts of at least `smallest`.
fn cuts_failure(cycles: usize, sites: usize, threshold: usize, colluding: usize, smallest: usize) -> f64 {
    let (honest, lost) = (sites - colluding, sites - threshold);
    let left = honest - lost;
    let parts = (smallest..=left / 2).map(|part| {
        let lost_of = lost.min((honest - part) / 2);
        let choices =
            log_choose(honest, part) + log_choose(honest - part, lost_of) + ((lost + 1) as f64).ln();
        let missed = (1.0 - (left - part) as f64 / (sites - 1) as f64).ln();
        choices + (cycles * part) as f64 * missed
    });
    parts.fold(f64::NEG_INFINITY, log_sum)
}

fn log_choose(of: usize, chosen: usize) -> f64 {
    let log_factorial = |count: usize| libm::lgamma(count as f64 + 1.0);
    log_factorial(of) - log_factorial(chosen) - log_factorial(of - chosen)
}

fn log_sum(a: f64, b: f64) -> f64 {
    let (small, large) = (a.min(b), a.max(b));
    if small == f64::NEG_INFINITY { large } else { large + (small - large).exp().ln_1p() }
}

/// Uniform draws from a seed that is public.
struct Draws {
    stream: Vec<u8>,
    key: Secret,
    used: usize,
}

impl Draws {
    fn of(seed: &[u8; 32]) -> Self {
        let key = Secret::from_bytes(*seed).derive(b"graph\0", &[]);
        let mut stream = vec![0; 8192];
        keystream(&key, &mut stream);
        Self { stream, key, used: 0 }
    }

    fn word(&mut self) -> u64 {
        if self.used == self.stream.len() {
            self.key = self.key.derive(b"next\0", &[]);
            keystream(&self.key, &mut self.stream);
            self.used = 0;
        }
        let mut word = [0; 8];
        word.copy_from_slice(&self.stream[self.used..self.used + 8]);
        self.used += 8;
        u64::from_le_bytes(word)
    }

    /// Uniform below `bound`, but for at most 2^-50: the product's high word.
    fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.word()) * bound as u128) >> 64) as usize
    }

    fn permutation(&mut self, count: usize) -> Vec<u16> {
        let mut order: Vec<u16> = (0..count as u16).collect();
        for last in (1..count).rev() {
            order.swap(last, self.below(last + 1));
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn up_to_255_sites_all_are_neighbours_and_hold_shares_at_points_of_their_own() {
        for sites in [3, 10, 64, 255] {
            let graph = Graph::new(sites, sites, sites / 3, &[0; 32]).unwrap();
            for owner in 0..sites as u16 {
                assert_eq!(graph.circle(owner).len(), sites);
                let points: Vec<u8> = (0..sites as u16).filter_map(|site| graph.point(owner, site)).collect();
                assert!(points.iter().copied().eq(1..=sites as u8));
            }
        }
    }

    /// The default terms: a third collude, 15 % may be lost.
    #[test]
    fn beyond_that_some_two_hundred_neighbours_keep_the_promises_or_the_sites_are_refused() {
        let new = |sites: usize, seed| Graph::new(sites, (sites * 85).div_ceil(100), sites / 3, &[seed; 32]);
        for sites in [600, 1024] {
            let graph = new(sites, 7).unwrap();
            let most = (0..sites as u16).map(|site| graph.circle(site).len()).max().unwrap();
            assert!((150..=MAX_SHARES).contains(&most) && graph.threshold() < most, "{sites}: {most}");
            for owner in (0..sites as u16).step_by(37) {
                for neighbour in graph.circle(owner) {
                    assert!(graph.point(*neighbour, owner).is_some(), "neighbours are mutual");
                }
            }
            let all: Vec<u16> = (0..sites as u16).collect();
            assert!(graph.holds_among(&all));
            // One in ten is lost: those left can go on.
            let left: Vec<u16> = (0..sites as u16).filter(|site| site % 20 < 18).collect();
            assert!(graph.holds_among(&left));
            assert_ne!(new(sites, 8).unwrap(), graph);
        }
        assert!(new(300, 7).is_err(), "circles would be smaller than their threshold");
        assert!(Graph::new(1024, 690, 341, &[7; 32]).is_err(), "a third lost and a third in league");
    }

    /// The bound against what it bounds, for a graph too thin to be used: 20 sites on one to three cycles, none lost,
    /// fixed seeds. The chance that some 3 sites or more have no edge out is at most the bound plus four standard
    /// deviations of 400 trials (alpha below 1e-4 a case).
    #[test]
    fn the_bound_of_cuts_is_not_below_what_happens() {
        let (sites, smallest) = (20, 3);
        for count in 1..4 {
            let bound = cuts_failure(count, sites, sites, 10, smallest).exp().min(1.0);
            let apart = (0..400u32).filter(|trial| {
                let mut seed = [0; 32];
                seed[..4].copy_from_slice(&trial.to_le_bytes());
                let mut draws = Draws::of(&seed);
                let mut edges = vec![[false; 20]; sites];
                for _ in 0..count {
                    let cycle = draws.permutation(sites);
                    for at in 0..sites {
                        let (a, b) = (usize::from(cycle[at]), usize::from(cycle[(at + 1) % sites]));
                        (edges[a][b], edges[b][a]) = (true, true);
                    }
                }
                falls_apart(&edges, 10, smallest)
            });
            let share = apart.count() as f64 / 400.0;
            assert!(share <= bound + 4.0 * (0.25f64 / 400.0).sqrt(), "{count}: {share} above {bound}");
        }
    }

    /// Whether the first `honest` sites have a connected part of `smallest` to half of them.
    fn falls_apart(edges: &[[bool; 20]], honest: usize, smallest: usize) -> bool {
        let mut part_of: Vec<Option<usize>> = vec![None; honest];
        let mut sizes = Vec::new();
        for start in 0..honest {
            if part_of[start].is_some() {
                continue;
            }
            let (mut open, mut size) = (vec![start], 0);
            part_of[start] = Some(sizes.len());
            while let Some(site) = open.pop() {
                size += 1;
                for other in 0..honest {
                    if edges[site][other] && part_of[other].is_none() {
                        part_of[other] = Some(sizes.len());
                        open.push(other);
                    }
                }
            }
            sizes.push(size);
        }
        sizes.iter().any(|size| (smallest..=honest / 2).contains(size))
    }

    #[test]
    fn survivors_whose_circles_are_too_empty_are_not_accepted() {
        let graph = Graph::new(5, 4, 1, &[0; 32]).unwrap();
        assert!(graph.holds_among(&[0, 1, 2, 4]));
        assert!(!graph.holds_among(&[0, 1, 2]));
    }
}
