//! Medians and quantiles, each with one meaning for all figures that are reported or chosen by.

/// Numbers in their order, the least first.
#[derive(Clone, Debug)]
pub struct Sorted(Vec<f64>);

impl Sorted {
    /// Puts numbers in order.
    pub fn of(numbers: impl IntoIterator<Item = f64>) -> Sorted {
        let mut numbers: Vec<f64> = numbers.into_iter().collect();
        numbers.sort_unstable_by(f64::total_cmp);
        Sorted(numbers)
    }

    /// Returns how many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Returns the number in the middle, or the mean of the two that are; `None` where there are
    /// none.
    pub fn median(&self) -> Option<f64> {
        let middle = self.count() / 2;
        match self.count() {
            0 => None,
            odd if odd % 2 == 1 => Some(self.0[middle]),
            _ => Some((self.0[middle - 1] + self.0[middle]) / 2.0),
        }
    }

    /// Returns the least of the numbers that at least this share of all doesn't exceed: for 0 the
    /// least, for 1 the largest; `None` where there are none.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        debug_assert!((0.0..=1.0).contains(&share), "a share is a part of the whole");
        let rank = (self.count() as f64 * share).ceil() as usize;
        self.0.get(rank.max(1) - 1).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(Sorted::of([5.0, 1.0, 2.0]).median(), Some(2.0));
        assert_eq!(Sorted::of([4.0, 1.0, 2.0, 3.0]).median(), Some(2.5));
        assert_eq!(Sorted::of([]).median(), None);
    }

    #[test]
    fn a_quantile_is_one_of_the_numbers() {
        let hundred = Sorted::of((1..=100).rev().map(f64::from));
        assert_eq!(hundred.count(), 100);
        for (share, number) in [(0.0, 1.0), (0.01, 1.0), (0.5, 50.0), (0.99, 99.0), (1.0, 100.0)] {
            assert_eq!(hundred.quantile(share), Some(number), "{share}");
        }
        assert_eq!(Sorted::of([7.0]).quantile(0.01), Some(7.0));
        assert_eq!(Sorted::of([3.0, 1.0, 2.0]).quantile(0.5), Some(2.0));
        assert_eq!(Sorted::of([]).quantile(0.5), None);
    }
}
