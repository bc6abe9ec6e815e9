//! Sites as they are: one folder a site, or one value of a column a site, each with its own customers, as `weighhouse demo`
//! has them.

use super::Draw;
use crate::demo::datasets::{Dataset, Rows};
use rand::seq::SliceRandom;
use weighhouse_client::features::FeatureTable;
use weighhouse_shared::schema::{InputShape, Schema};

/// Thousandths of a site's customers that it holds out if the job measures quality, as a new site does.
const HOLDOUT_PERMILLE: usize = 150;

/// Customers of sites as they are.
#[derive(Debug)]
pub struct OwnSites(Vec<FeatureTable>);

impl OwnSites {
    /// The training customers of `dataset`, without those that each site holds out by `seed` if it does.
    pub fn new(dataset: &Dataset, holds_out: bool, seed: u64) -> Self {
        let shape = dataset.schema.input_shape();
        let rng = &mut Draw::Split.of(seed);
        let tables = dataset.sites.iter().map(|site| {
            let table = table_of(&shape, &site.train);
            let mut customers: Vec<u32> = (0..table.customers() as u32).collect();
            if holds_out {
                customers.shuffle(rng);
                customers.truncate(customers.len() - customers.len() * HOLDOUT_PERMILLE / 1000);
            }
            table.of_some(&customers)
        });
        Self(tables.collect())
    }

    /// The customers of site `number`.
    pub fn site(&self, number: usize) -> FeatureTable {
        let table = &self.0[number];
        table.of_some(&(0..table.customers() as u32).collect::<Vec<_>>())
    }

    /// How many customers each site has at least and at most.
    pub fn sizes(&self) -> (usize, usize) {
        let sizes = || self.0.iter().map(FeatureTable::customers);
        (sizes().min().unwrap_or(0), sizes().max().unwrap_or(0))
    }
}

/// The test rows of all sites together.
pub fn tests(dataset: &Dataset, schema: &Schema) -> FeatureTable {
    let shape = schema.input_shape();
    let pooled = Rows::pooled(&shape, dataset.sites.iter().map(|site| &site.test));
    table_of(&shape, &pooled)
}

fn table_of(shape: &InputShape, rows: &Rows) -> FeatureTable {
    let starts = rows.starts.iter().map(|start| *start as usize).collect();
    FeatureTable::of_rows(shape.clone(), rows.table.clone(), starts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_site_keeps_its_own_customers_less_those_that_it_holds_out() {
        let dataset = Dataset::generate(3, 4).unwrap();
        let own = |holds_out, seed| OwnSites::new(&dataset, holds_out, seed);
        let (all, some) = (own(false, 1), own(true, 1));
        for (number, site) in dataset.sites.iter().enumerate() {
            let count = site.train_customers();
            assert_eq!(all.site(number).customers(), count);
            assert_eq!(some.site(number).customers(), count - count * 150 / 1000);
        }
        assert!(some.sizes().0 < all.sizes().0 && all.sizes().0 <= all.sizes().1);
        let tested: usize = dataset.sites.iter().map(|site| site.test.starts.len() - 1).sum();
        assert_eq!(own_tests(&dataset), tested);
    }

    fn own_tests(dataset: &Dataset) -> usize {
        tests(dataset, &dataset.schema).customers()
    }
}
