//! Drawing in a terminal: a panel over itself, and figures as blocks.

use std::io;

use console::{Term, truncate_str};

/// A panel of lines in a terminal. A drawing is one write, so nothing flickers, and the cursor is
/// never hidden, so whatever ends the process leaves the terminal as it was.
pub struct Panel {
    term: Term,
    /// Lines that are there.
    lines: usize,
}

impl Panel {
    /// Returns a panel that isn't there yet; `None` where the terminal is none, or can't draw.
    pub fn on(term: Term) -> Option<Panel> {
        (term.is_term() && !console::is_dumb()).then_some(Panel { term, lines: 0 })
    }

    /// Draws the panel's lines, made for a width, over those that are there; what is `passing`
    /// stays above them.
    ///
    /// # Errors
    ///
    /// When the terminal can't be written.
    pub fn draw(
        &mut self,
        passing: &[String],
        panel: impl FnOnce(usize) -> Vec<String>,
    ) -> io::Result<()> {
        let (rows, columns) = self.term.size();
        // A full last column makes some terminals wrap.
        let width = usize::from(columns).saturating_sub(1);
        let mut panel = panel(width);
        // What doesn't fit scrolls away, and can't be drawn over.
        panel.truncate(usize::from(rows).saturating_sub(1));
        self.term.write_str(&drawing(passing, &panel, self.lines, width))?;
        self.lines = panel.len();
        Ok(())
    }
}

/// Returns the bytes that put `passing` in the place of the last panel, and `panel` below.
fn drawing(passing: &[String], panel: &[String], lines_before: usize, width: usize) -> String {
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
