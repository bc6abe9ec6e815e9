//! Real customers dealt out to made-up sites, so that sites differ in their labels as much as is asked for.
//!
//! As in Hsu, Qi and Brown 2019 ("Measuring the Effects of Non-Identical Data Distribution for Federated Visual
//! Classification", section 3): each site draws its shares of the labels from a Dirichlet distribution with parameters alpha times the
//! labels' overall shares, then its customers one after the other by these, without putting back. What is dealt out
//! are customers with all their rows; a customer's label is that of its first row.

use super::{Draw, Holdout};
use anyhow::{Context, Result, bail};
use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Gamma};
use std::path::{Path, PathBuf};
use weighhouse_client::features::FeatureTable;
use weighhouse_client::records::{self, Records};
use weighhouse_shared::ids::SiteId;
use weighhouse_shared::schema::{Schema, Target};

/// Thousandths of the customers that are held out.
const HOLDOUT_PERMILLE: u32 = 100;
/// Groups that counts and numbers are put into, by size.
const SIZES: usize = 10;
/// Groups that items are put into, at most.
const ITEM_GROUPS: usize = 64;

/// How customers are dealt out.
#[derive(Debug, Clone, Copy)]
pub struct Deal {
    /// To how many sites.
    pub sites: usize,
    /// Customers of a site, at most.
    pub customers: usize,
    /// Above 0: near 0 each site has one label, at infinity all have the overall shares.
    pub alpha: f64,
    /// Of all that is drawn.
    pub seed: u64,
}

/// Customers, and whose they are.
#[derive(Debug)]
pub struct Split {
    customers: FeatureTable,
    dealt: Dealt,
    /// What [`skew`](Self::skew) returns.
    skew: f64,
}

/// Site i has the customers `order[starts[i]..starts[i + 1]]`.
#[derive(Debug, PartialEq)]
struct Dealt {
    order: Vec<u32>,
    starts: Vec<usize>,
}

impl Split {
    /// Reads the file, or the CSV files of the folder and its folders, at `data`, as a site reads its own, and deals out
    /// all customers but a tenth, who are held out.
    pub fn read(data: &Path, schema: &Schema, max_rows: usize, deal: Deal) -> Result<(Self, Holdout)> {
        let files = csv_files(data)?;
        let mut site = [0; 32];
        site[..8].copy_from_slice(&deal.seed.to_be_bytes());
        let split = records::Split { site: SiteId::from_bytes(site), holdout_permille: HOLDOUT_PERMILLE };
        let Records { training, holdout } = records::load(&files, schema, split)?;
        if training.customers() < deal.sites {
            bail!(
                "{} has {} customers to learn from, and --sites asks for {} sites; ask for at most as many as there are customers",
                data.display(),
                training.customers(),
                deal.sites
            );
        }
        let groups = groups(schema.label.kind.target(), &training.first_labels().collect::<Vec<f32>>());
        let dealt = Dealt::new(&groups, deal);
        let skew = dealt.skew(&groups);
        let holdout = Holdout::new(holdout, schema.label.kind.clone(), max_rows);
        Ok((Self { customers: training, dealt, skew }, holdout))
    }

    /// The customers of site `number`.
    pub fn site(&self, number: usize) -> FeatureTable {
        self.customers.of_some(self.dealt.site(number))
    }

    /// How many customers each site has at least and at most.
    pub fn sizes(&self) -> (usize, usize) {
        let sizes = || self.dealt.starts.windows(2).map(|of| of[1] - of[0]);
        (sizes().min().unwrap_or(0), sizes().max().unwrap_or(0))
    }

    /// The share of a site's customers that have its commonest label, the mean over sites.
    pub fn skew(&self) -> f64 {
        self.skew
    }
}

/// `data` itself, or the CSV files in it and in its folders, in the order of their names.
fn csv_files(data: &Path) -> Result<Vec<PathBuf>> {
    if !data.exists() {
        bail!("{} does not exist; --data needs a CSV file, or a folder of them", data.display());
    }
    if !data.is_dir() {
        return Ok(vec![data.into()]);
    }
    let listed = |folder: &Path| -> Result<Vec<PathBuf>> {
        let failed = || format!("cannot read {}", folder.display());
        let items = std::fs::read_dir(folder).with_context(failed)?;
        let mut paths =
            items.map(|item| Ok(item.with_context(failed)?.path())).collect::<Result<Vec<PathBuf>>>()?;
        paths.sort();
        Ok(paths)
    };
    let mut files = Vec::new();
    for path in listed(data)? {
        if path.is_dir() {
            files.extend(listed(&path)?);
        } else {
            files.push(path);
        }
    }
    files.retain(|path| path.is_file() && path.extension().is_some_and(|end| end == "csv"));
    if files.is_empty() {
        bail!("there is no .csv file in {} or its folders; --data needs one", data.display());
    }
    Ok(files)
}

/// The group of each label: the label itself, or for counts and numbers its place by size, for items one of
/// [`ITEM_GROUPS`].
fn groups(target: Target, labels: &[f32]) -> Vec<usize> {
    match target {
        Target::Binary | Target::Classes(_) => labels.iter().map(|&label| label as usize).collect(),
        Target::Item(_) => labels.iter().map(|&label| label as usize % ITEM_GROUPS).collect(),
        Target::Count | Target::Number => {
            let mut sorted = labels.to_vec();
            sorted.sort_unstable_by(f32::total_cmp);
            let place = |label: f32| sorted.partition_point(|&other| other < label);
            labels.iter().map(|&label| place(label) * SIZES / labels.len()).collect()
        }
    }
}

impl Dealt {
    /// Deals out the customers whose labels are in these `groups`.
    fn new(groups: &[usize], deal: Deal) -> Self {
        let rng = &mut Draw::Split.of(deal.seed);
        let mut pools = vec![Vec::new(); groups.iter().max().map_or(0, |&most| most + 1)];
        for (customer, &group) in groups.iter().enumerate() {
            pools[group].push(customer as u32);
        }
        pools.retain(|pool| !pool.is_empty());
        pools.iter_mut().for_each(|pool| pool.shuffle(rng));
        let total = groups.len();
        let parameters: Vec<f64> =
            pools.iter().map(|pool| deal.alpha * pool.len() as f64 / total as f64).collect();
        let (mut order, mut starts) = (Vec::new(), vec![0]);
        for site in 0..deal.sites {
            let size = (site + 1) * total / deal.sites - site * total / deal.sites;
            let left = |(parameter, pool): (&f64, &Vec<u32>)| if pool.is_empty() { 0.0 } else { *parameter };
            let of_left: Vec<f64> = parameters.iter().zip(&pools).map(left).collect();
            let shares = dirichlet(&of_left, rng);
            for _ in 0..size.min(deal.customers) {
                let group = pick(&shares, &pools, rng);
                order.extend(pools[group].pop());
            }
            starts.push(order.len());
        }
        Self { order, starts }
    }

    fn site(&self, number: usize) -> &[u32] {
        &self.order[self.starts[number]..self.starts[number + 1]]
    }

    fn skew(&self, groups: &[usize]) -> f64 {
        let sites = self.starts.len() - 1;
        let mut counts = vec![0usize; groups.iter().max().map_or(0, |&most| most + 1)];
        let commonest = |site: usize| {
            counts.fill(0);
            let customers = self.site(site);
            customers.iter().for_each(|&customer| counts[groups[customer as usize]] += 1);
            counts.iter().max().copied().unwrap_or(0) as f64 / customers.len().max(1) as f64
        };
        (0..sites).map(commonest).sum::<f64>() / sites as f64
    }
}

/// A draw of the Dirichlet distribution with `parameters`, up to a factor; where a parameter is 0 the share is. If all
/// shares are too small to be told from 0, it is the limit for small parameters: one of them is all.
fn dirichlet(parameters: &[f64], rng: &mut ChaCha8Rng) -> Vec<f64> {
    // No distribution has the shape 0, which leaves a share of 0.
    let gamma = |&shape: &f64| Gamma::new(shape, 1.0).map_or(0.0, |gamma| gamma.sample(rng));
    let mut shares: Vec<f64> = parameters.iter().map(gamma).collect();
    if shares.iter().all(|&share| share == 0.0) {
        let mut point = rng.random::<f64>() * parameters.iter().sum::<f64>();
        let chosen = parameters.iter().position(|parameter| {
            point -= parameter;
            point < 0.0
        });
        let chosen = chosen.or_else(|| parameters.iter().rposition(|&parameter| parameter > 0.0));
        shares[chosen.unwrap_or(0)] = 1.0;
    }
    shares
}

/// One of the `pools` that are not empty by their `shares`; by what is left in them if these have none.
fn pick(shares: &[f64], pools: &[Vec<u32>], rng: &mut ChaCha8Rng) -> usize {
    let left = |of: &dyn Fn(usize) -> f64| -> Vec<f64> {
        (0..pools.len()).map(|at| if pools[at].is_empty() { 0.0 } else { of(at) }).collect()
    };
    let mut weights = left(&|at| shares[at]);
    if weights.iter().sum::<f64>() <= 0.0 {
        weights = left(&|at| pools[at].len() as f64);
    }
    let mut point = rng.random::<f64>() * weights.iter().sum::<f64>();
    let chosen = weights.iter().position(|weight| {
        point -= weight;
        point < 0.0
    });
    // Rounding may leave a little of the point behind the last weight.
    chosen.or_else(|| weights.iter().rposition(|&weight| weight > 0.0)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deal(groups: &[usize], sites: usize, alpha: f64, seed: u64) -> Dealt {
        Dealt::new(groups, Deal { sites, customers: usize::MAX, alpha, seed })
    }

    #[test]
    fn every_customer_is_dealt_out_once_and_sites_are_of_one_size_whatever_alpha() {
        let groups: Vec<usize> = (0..1003).map(|customer| usize::from(customer % 4 == 0)).collect();
        for alpha in [1e-6, 0.1, 1.0, 1e6] {
            let dealt = deal(&groups, 20, alpha, 1);
            let mut order = dealt.order.clone();
            order.sort_unstable();
            assert!(order.into_iter().eq(0..1003), "alpha {alpha}");
            assert!(dealt.starts.windows(2).all(|of| (50..=51).contains(&(of[1] - of[0]))), "alpha {alpha}");
        }
    }

    /// Ten labels, as many of each, 100 sites of 20. At alpha 1000 a site's commonest label has little more than its tenth
    /// of 20, at 1e-3 all, but for sites whose label has run out.
    #[test]
    fn the_smaller_alpha_the_fewer_labels_a_site_has() {
        let groups: Vec<usize> = (0..2000).map(|customer| customer % 10).collect();
        let skew = |alpha: f64| deal(&groups, 100, alpha, 2).skew(&groups);
        let skews = [1000.0, 1.0, 1e-3].map(skew);
        assert!(skews[0] < 0.3 && skews[2] > 0.8, "{skews:?}");
        assert!(skews[0] < skews[1] && skews[1] < skews[2], "{skews:?}");
    }

    #[test]
    fn a_split_is_a_function_of_its_seed() {
        let groups: Vec<usize> = (0..300).map(|customer| customer % 3).collect();
        assert_eq!(deal(&groups, 7, 0.5, 3), deal(&groups, 7, 0.5, 3));
        assert_ne!(deal(&groups, 7, 0.5, 3), deal(&groups, 7, 0.5, 4));
        let few = Dealt::new(&groups, Deal { sites: 7, customers: 5, alpha: 0.5, seed: 3 });
        assert_eq!(few.starts.last(), Some(&35));
    }

    #[test]
    fn numbers_are_grouped_by_their_place_and_items_into_a_few() {
        let labels: Vec<f32> = (0..100).rev().map(|at| at as f32).collect();
        let by_size = groups(Target::Number, &labels);
        assert_eq!((by_size[0], by_size[99], by_size[50]), (9, 0, 4));
        assert_eq!(groups(Target::Item(1000), &[3.0, 67.0, 64.0]), [3, 3, 0]);
        assert_eq!(groups(Target::Count, &[2.0; 4]), [0; 4]);
    }
}
