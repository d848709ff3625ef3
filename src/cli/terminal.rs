//! Drawing in a terminal: a panel over itself, and figures as blocks.

use console::truncate_str;

/// Returns the bytes that put `passing` in the place of the last panel, and `panel` below.
pub fn drawing(passing: &[String], panel: &[String], lines_before: usize, width: usize) -> String {
    let mut drawing = String::from("\r");
    if lines_before > 0 {
        drawing += &format!("\x1b[{lines_before}A");
    }
    for line in passing.iter().chain(panel) {
        drawing += &truncate_str(line, width, "…");
        drawing += "\x1b[K\n";
    }
    drawing + "\x1b[J"
}

/// Returns one block a value, the highest for the largest of them.
pub fn sparkline(values: &[f64]) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let largest = values.iter().copied().fold(0.0, f64::max);
    let block = |value: f64| {
        let share = if largest > 0.0 { value / largest } else { 0.0 };
        let height = (share * (BLOCKS.len() - 1) as f64).round() as usize;
        BLOCKS[height.min(BLOCKS.len() - 1)]
    };
    values.iter().map(|value| block(*value)).collect()
}

/// Returns a bar of `width` cells, of which a share is filled.
pub fn bar(share: f64, width: usize) -> String {
    let filled = ((share * width as f64).round() as usize).min(width);
    "█".repeat(filled) + &"░".repeat(width - filled)
}

#[cfg(test)]
mod tests {
    use console::{measure_text_width, strip_ansi_codes};

    use super::*;

    #[test]
    fn the_sparkline_scales_to_its_largest_value() {
        assert_eq!(sparkline(&[]), "");
        assert_eq!(sparkline(&[0.0, 0.0]), "▁▁");
        assert_eq!(sparkline(&[0.0, 50.0, 100.0]), "▁▅█");
        assert_eq!(sparkline(&[3.0, 3.0]), "██");
    }

    #[test]
    fn the_bar_stays_in_its_width() {
        assert_eq!(bar(0.0, 4), "░░░░");
        assert_eq!(bar(0.5, 4), "██░░");
        assert_eq!(bar(1.7, 4), "████");
    }

    #[test]
    fn lines_are_cut_to_the_width_and_not_within_a_wide_character() {
        for width in 0..40 {
            let drawing =
                drawing(&["折りたたみ式の木製デスク".into()], &["─".repeat(50)], 0, width);
            for line in drawing.lines() {
                // The carriage return at the beginning isn't of the line.
                let line = strip_ansi_codes(line.trim());
                assert!(measure_text_width(&line) <= width.max(1), "{width}: {line:?}");
            }
        }
        let drawing = drawing(&["折りたたみ".into()], &[], 0, 6);
        assert_eq!(strip_ansi_codes(&drawing).trim(), "折り…");
    }

    #[test]
    fn a_drawing_begins_where_the_last_one_did() {
        assert_eq!(drawing(&[], &["a".into()], 0, 9), "\ra\x1b[K\n\x1b[J");
        assert_eq!(drawing(&[], &["b".into()], 1, 9), "\r\x1b[1Ab\x1b[K\n\x1b[J");
        assert_eq!(drawing(&[], &[], 1, 9), "\r\x1b[1A\x1b[J");
    }
}
