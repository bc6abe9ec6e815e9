//! The sum of a round's updates: integers, so any order and any thread count give the same bits, and one
//! accumulator however many sites there are.

use crate::admission::AdmittedUpdate;
use std::io;

/// A running sum.
#[derive(Debug)]
pub struct Aggregate {
    sum: Vec<i64>,
    updates: u32,
}

impl Aggregate {
    /// An empty sum of `parameters` values.
    pub fn new(parameters: usize) -> Self {
        Self { sum: vec![0; parameters], updates: 0 }
    }

    /// Adds an update. It was parsed before, so nothing in it can fail half-way but the disk; on an error
    /// the sum must be given up.
    pub fn add(&mut self, update: AdmittedUpdate) -> io::Result<()> {
        let mut at = 0;
        update.read(|part| {
            let (values, _) = part.as_chunks::<4>();
            for (sum, value) in self.sum[at..].iter_mut().zip(values) {
                // Each value is at most 2^29 and there are at most 2^17 sites: far from overflow.
                *sum += i64::from(i32::from_le_bytes(*value));
            }
            at += values.len();
        })?;
        self.updates += 1;
        Ok(())
    }

    /// Makes it the empty sum again, in the same memory.
    pub fn clear(&mut self) {
        if self.updates > 0 {
            self.sum.fill(0);
            self.updates = 0;
        }
    }

    /// How many updates are in it.
    pub fn updates(&self) -> u32 {
        self.updates
    }

    /// The sums.
    pub fn sums(&self) -> &[i64] {
        &self.sum
    }
}
