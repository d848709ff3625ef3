//! Captions to the tensors that the graph reads, without padding.
//!
//! See [`crate::model::graph`] for what each tensor means. Captions share the rows that attention
//! works on where they fit: best fit, the longest first, so that rows are nearly full and one long
//! caption doesn't widen a row for each short one.
//!
//! # Invariants
//!
//! - Every token has a slot, no slot has two, and a caption lies in one row.
//! - Tensors are in the order in which the captions came: row `i` of the output is caption `i`.

/// A row of attention is at least this wide, in tokens. Narrower rows make the products inside
/// attention too small to be fast, wider ones make more of a row another caption's business.
pub const WIDTH_MIN: usize = 64;

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

        batch.width = row_width(&lengths);
        let (slots, rows) = fill_rows(&lengths, batch.width);
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

/// Wide enough for the longest caption, and no wider than all of them together need.
fn row_width(lengths: &[usize]) -> usize {
    let aligned = lengths.iter().map(|length| length.next_multiple_of(ALIGNMENT));
    let longest = aligned.clone().max().unwrap_or(ALIGNMENT);
    longest.max(WIDTH_MIN.min(aligned.sum()))
}

/// Returns the first slot of each caption, and the number of rows.
fn fill_rows(lengths: &[usize], width: usize) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&caption| std::cmp::Reverse(lengths[caption]));
    // Rows by the number of their free slots.
    let mut by_free: Vec<Vec<usize>> = vec![Vec::new(); width + 1];
    let mut slots = vec![0; lengths.len()];
    let mut rows = 0;
    for caption in order {
        let length = lengths[caption].next_multiple_of(ALIGNMENT);
        let tightest = (length..=width).find(|&free| !by_free[free].is_empty());
        let (row, free) = match tightest.and_then(|free| Some((by_free[free].pop()?, free))) {
            Some(found) => found,
            None => {
                rows += 1;
                (rows - 1, width)
            }
        };
        slots[caption] = row * width + (width - free);
        by_free[free - length].push(row);
    }
    (slots, rows)
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
        assert_eq!(pack(&[16; 10]), (3, WIDTH_MIN));
        assert_eq!(pack(&[24, 24, 40, 40]), (2, WIDTH_MIN));
    }

    proptest! {
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
