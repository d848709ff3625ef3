//! Captions to the tensors that the graph reads, without padding.
//!
//! See [`crate::model::graph`] for what each tensor means. Captions share the rows that attention
//! works on where they fit: best fit, the longest first, so that rows are nearly full and one long
//! caption doesn't widen a row for each short one. Of several widths of rows the cheapest is taken.
//!
//! # Invariants
//!
//! - Every token has a slot, no slot has two, and a caption lies in one row.
//! - Tensors are in the order in which the captions came: row `i` of the output is caption `i`.

/// Rows are a multiple of so many slots wide, where there are several: as many numbers are in one
/// of the CPU's vector registers.
const WIDTH_STEP: usize = 16;

/// Rows are no wider than this, in slots, unless a caption is longer.
const WIDTH_MAX: usize = 128;

/// What a slot costs by itself, to be gathered and gathered back: about as much as that it is
/// looked at by so many others.
const SLOT_COST: usize = 64;

/// A caption begins at a multiple of so many slots. The CPU's kernels sum a row's slots four at a
/// time: a caption that began between two fours would be summed in another order than alone, and
/// its vector would differ in the last digits.
const ALIGNMENT: usize = 4;

/// The tensors of a batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenBatch {
    /// `[tokens]`
    pub token_ids: Vec<i64>,
    /// `[tokens]`
    pub token_positions: Vec<i64>,
    /// `[tokens]`
    pub token_slots: Vec<i64>,
    /// `[rows, width]`
    pub slot_tokens: Vec<i64>,
    /// `[rows, width]`
    pub slot_captions: Vec<i32>,
    /// `[rows, places]`
    pub row_captions: Vec<i32>,
    /// `[captions]`
    pub caption_places: Vec<i64>,
    /// `[captions]`
    pub caption_lengths: Vec<f32>,
    /// Slots in a row.
    pub width: usize,
    /// Captions in the row that has most of them.
    pub places: usize,
}

impl TokenBatch {
    /// Packs captions, each given as its token ids.
    ///
    /// # Panics
    ///
    /// When there is no caption, or one without tokens: the stages before never make those.
    pub fn pack<'a>(captions: impl IntoIterator<Item = &'a [u32]>) -> TokenBatch {
        let mut batch = TokenBatch::default();
        let mut lengths = Vec::new();
        for ids in captions {
            assert!(!ids.is_empty(), "a caption has [CLS] and [SEP] at least");
            batch.token_ids.extend(ids.iter().map(|&id| i64::from(id)));
            batch.token_positions.extend(0..ids.len() as i64);
            batch.caption_lengths.push(ids.len() as f32);
            lengths.push(ids.len());
        }
        assert!(!lengths.is_empty(), "a batch has captions");

        let (slots, rows, width) = place(&lengths);
        batch.width = width;
        batch.token_slots.reserve(batch.token_ids.len());
        batch.slot_tokens.resize(rows * batch.width, 0);
        batch.slot_captions.resize(rows * batch.width, 0);
        let mut token = 0;
        for (caption, (&length, &first)) in lengths.iter().zip(&slots).enumerate() {
            for slot in first..first + length {
                batch.token_slots.push(slot as i64);
                batch.slot_tokens[slot] = token;
                batch.slot_captions[slot] = caption as i32 + 1;
                token += 1;
            }
        }
        batch.number_captions_of_rows(&slots, rows);
        batch
    }

    /// Gives the captions of a row its places, in the order of the captions.
    fn number_captions_of_rows(&mut self, slots: &[usize], rows: usize) {
        let mut taken = vec![0; rows];
        let in_row: Vec<(usize, usize)> = slots
            .iter()
            .map(|slot| {
                let row = slot / self.width;
                taken[row] += 1;
                (row, taken[row] - 1)
            })
            .collect();
        self.places = taken.into_iter().max().unwrap_or(0);
        self.row_captions.resize(rows * self.places, -1);
        for (caption, (row, place)) in in_row.into_iter().enumerate() {
            let place = row * self.places + place;
            self.row_captions[place] = caption as i32 + 1;
            self.caption_places.push(place as i64);
        }
    }

    /// Number of captions.
    pub fn captions(&self) -> usize {
        self.caption_lengths.len()
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.token_ids.len()
    }

    /// Number of attention's rows.
    pub fn rows(&self) -> usize {
        self.slot_tokens.len() / self.width
    }
}

/// Returns the first slot of each caption, the number of rows and their width, of all widths the
/// one that costs least: a slot looks at all of its row, also at what is another caption's or
/// nobody's.
fn place(lengths: &[usize]) -> (Vec<usize>, usize, usize) {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&caption| std::cmp::Reverse(lengths[caption]));
    let sizes: Vec<usize> =
        order.iter().map(|&caption| lengths[caption].next_multiple_of(ALIGNMENT)).collect();
    let longest = sizes[0].next_multiple_of(WIDTH_STEP);
    let whole: usize = sizes.iter().sum();

    let mut best = (usize::MAX, longest);
    for width in (longest..=longest.max(WIDTH_MAX)).step_by(WIDTH_STEP) {
        // All of them in one row need no more than that.
        let width = width.min(whole);
        let cost_of = |rows: usize| rows * width * (width + SLOT_COST);
        if cost_of(whole.div_ceil(width)) < best.0 {
            best = best.min((cost_of(fill_rows(&sizes, width, |_, _| {})), width));
        }
    }

    let width = best.1;
    let mut slots = vec![0; lengths.len()];
    let rows = fill_rows(&sizes, width, |place, slot| slots[order[place]] = slot);
    (slots, rows, width)
}

/// Fills rows of that width by best fit. Tells where each of the sizes, which come in falling
/// order, is placed, and returns the number of rows.
fn fill_rows(sizes: &[usize], width: usize, mut placed: impl FnMut(usize, usize)) -> usize {
    // For each number of free slots the last row that has it, and for each row the one before it.
    let mut last_with: Vec<Option<usize>> = vec![None; width + 1];
    let mut before: Vec<Option<usize>> = Vec::new();
    for (place, &size) in sizes.iter().enumerate() {
        let tightest = (size..=width).find_map(|free| Some((free, last_with[free]?)));
        let (free, row) = tightest.unwrap_or_else(|| {
            before.push(None);
            (width, before.len() - 1)
        });
        if tightest.is_some() {
            last_with[free] = before[row];
        }
        placed(place, row * width + (width - free));
        before[row] = last_with[free - size].replace(row);
    }
    before.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_caption_alone_takes_one_row_hardly_longer() {
        let batch = TokenBatch::pack([&[101u32, 7, 102][..]]);
        assert_eq!((batch.rows(), batch.width), (1, 4));
        assert_eq!(batch.token_ids, [101, 7, 102]);
        assert_eq!(batch.token_slots, [0, 1, 2]);
        assert_eq!(batch.slot_captions, [1, 1, 1, 0]);
        assert_eq!((batch.places, &batch.row_captions[..]), (1, &[1][..]));
        assert_eq!(batch.caption_places, [0]);
        assert_eq!(batch.caption_lengths, [3.0]);
    }

    #[test]
    fn short_captions_do_not_pay_for_a_long_one() {
        let long = vec![1u32; 128];
        let short = vec![2u32; 16];
        let captions = std::iter::once(&long).chain(std::iter::repeat_n(&short, 24));
        let batch = TokenBatch::pack(captions.map(Vec::as_slice));
        assert_eq!((batch.rows(), batch.width), (4, 128));
    }

    #[test]
    fn a_row_has_several_short_captions_and_the_longest_are_placed_first() {
        let pack = |lengths: &[usize]| {
            let captions: Vec<Vec<u32>> = lengths.iter().map(|&n| vec![1; n]).collect();
            let batch = TokenBatch::pack(captions.iter().map(Vec::as_slice));
            (batch.rows(), batch.width)
        };
        assert_eq!(pack(&[16, 16, 24, 24, 24, 8, 8, 8]), (4, 32));
        assert_eq!(pack(&[24, 24, 24, 40, 40, 40]), (3, 64));
    }

    #[test]
    fn captions_that_fit_one_row_have_it_no_wider_than_they_need() {
        let captions = [vec![1u32; 18], vec![2; 19]];
        let batch = TokenBatch::pack(captions.iter().map(Vec::as_slice));
        assert_eq!((batch.rows(), batch.width), (1, 40));
    }

    #[test]
    fn a_caption_longer_than_the_widest_rows_has_one_as_long_as_itself() {
        let captions = [vec![1u32; 300], vec![2; 19], vec![2; 120]];
        let batch = TokenBatch::pack(captions.iter().map(Vec::as_slice));
        assert_eq!((batch.rows(), batch.width), (2, 304));
        assert_eq!(TokenBatch::pack([&captions[0][..]]).width, 300);
    }

    proptest! {
        #[test]
        fn no_other_width_would_cost_less(lengths in prop::collection::vec(1usize..200, 1..80)) {
            let (_, rows, width) = place(&lengths);
            let mut sizes: Vec<usize> =
                lengths.iter().map(|length| length.next_multiple_of(ALIGNMENT)).collect();
            sizes.sort_unstable_by(|a, b| b.cmp(a));
            let cost_of = |rows: usize, width: usize| rows * width * (width + SLOT_COST);
            let longest = sizes[0].next_multiple_of(WIDTH_STEP);
            for other in (longest..=WIDTH_MAX).step_by(WIDTH_STEP) {
                let rows_of_other = fill_rows(&sizes, other, |_, _| {});
                prop_assert!(cost_of(rows, width) <= cost_of(rows_of_other, other));
            }
        }

        #[test]
        fn every_token_has_a_slot_of_its_own_among_its_caption(
            lengths in prop::collection::vec(1usize..130, 1..50),
        ) {
            let captions: Vec<Vec<u32>> =
                lengths.iter().map(|&n| (0..n as u32).collect()).collect();
            let batch = TokenBatch::pack(captions.iter().map(Vec::as_slice));
            prop_assert_eq!(batch.tokens(), lengths.iter().sum::<usize>());
            prop_assert_eq!(batch.captions(), lengths.len());

            let mut used = vec![false; batch.slot_tokens.len()];
            let mut row_of = vec![None; lengths.len()];
            let captions = (0..lengths.len()).flat_map(|c| std::iter::repeat_n(c, lengths[c]));
            for (token, caption) in captions.enumerate() {
                let slot = batch.token_slots[token] as usize;
                prop_assert!(!used[slot], "a slot has one token");
                used[slot] = true;
                prop_assert_eq!(batch.slot_tokens[slot] as usize, token);
                prop_assert_eq!(batch.slot_captions[slot] as usize, caption + 1);
                let row = slot / batch.width;
                prop_assert_eq!(*row_of[caption].get_or_insert(row), row);
                let place = batch.token_positions[token] as usize;
                prop_assert_eq!((slot - place) % ALIGNMENT, 0);
            }
            for (used, caption) in used.iter().zip(&batch.slot_captions) {
                prop_assert_eq!(*used, *caption != 0);
            }
            for (caption, &place) in batch.caption_places.iter().enumerate() {
                prop_assert_eq!(batch.row_captions[place as usize] as usize, caption + 1);
                prop_assert_eq!(Some(place as usize / batch.places), row_of[caption]);
            }
            let free = batch.row_captions.iter().filter(|caption| **caption == -1).count();
            prop_assert_eq!(batch.row_captions.len(), batch.captions() + free);
            prop_assert_eq!(batch.row_captions.len(), batch.rows() * batch.places);
            // First fit and best fit leave no two rows that would go into one.
            let mut fill = vec![0usize; batch.rows()];
            for (caption, row) in row_of.iter().enumerate() {
                fill[row.unwrap()] += lengths[caption].next_multiple_of(ALIGNMENT);
            }
            fill.sort_unstable();
            if let [a, b, ..] = fill[..] {
                prop_assert!(a + b > batch.width);
            }
        }
    }
}
