//! The line of a pass's time by its tokens, through sizes of batches that were measured.
//!
//! It weighs all sizes alike, by relative errors, and has no memory: the budget chooses among them
//! by it. [`super::cost`] predicts the next pass instead, from the last ones that were made, one by
//! one.

use super::budget::Step;

/// Steps that make a line.
const LINE_STEPS_MIN: usize = 4;

/// By this factor a step may be faster or slower than the line says. Machines that others share are
/// as noisy as that.
const LINE_NEAR: f64 = 1.3;

/// Seconds of a pass by its tokens: `fixed + each * tokens`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    fixed: f64,
    each: f64,
}

impl Line {
    /// Returns the line with the least squares of relative errors, or none where a step is far from
    /// it, or there are too few.
    pub(super) fn through(steps: &[Step]) -> Option<Line> {
        if steps.len() < LINE_STEPS_MIN {
            return None;
        }
        // In each step's own time: 1 = fixed * u + each * v.
        let (mut uu, mut uv, mut vv, mut u_sum, mut v_sum) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for step in steps {
            let v = step.tokens_per_second;
            let u = v / step.tokens as f64;
            (uu, uv, vv) = (uu + u * u, uv + u * v, vv + v * v);
            (u_sum, v_sum) = (u_sum + u, v_sum + v);
        }
        let determinant = uu * vv - uv * uv;
        let fixed = (u_sum * vv - v_sum * uv) / determinant;
        let line = match fixed > 0.0 {
            true => Line { fixed, each: (v_sum * uu - u_sum * uv) / determinant },
            // No pass takes less than its tokens do.
            false => Line { fixed: 0.0, each: v_sum / vv },
        };
        let is_near = |step: &Step| {
            let ratio = line.tokens_per_second(step.tokens as f64) / step.tokens_per_second;
            ratio.is_finite() && (1.0 / LINE_NEAR..=LINE_NEAR).contains(&ratio)
        };
        (line.each > 0.0 && steps.iter().all(is_near)).then_some(line)
    }

    /// Returns what a pass of so many tokens takes.
    pub(super) fn seconds(&self, tokens: f64) -> f64 {
        self.fixed + self.each * tokens
    }

    /// Returns the tokens a second of batches of so many.
    pub(super) fn tokens_per_second(&self, tokens: f64) -> f64 {
        tokens / self.seconds(tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(sizes: &[usize], seconds: impl Fn(f64) -> f64) -> Vec<Step> {
        let step = |&tokens: &usize| Step {
            tokens,
            tokens_per_second: tokens as f64 / seconds(tokens as f64),
        };
        sizes.iter().map(step).collect()
    }

    #[test]
    fn goes_through_four_steps_that_lie_on_it() {
        let exact = |tokens: f64| 0.016 + 0.005 * tokens;
        let line = Line::through(&steps(&[16, 64, 256, 512], exact)).unwrap();
        for tokens in [1.0, 100.0, 1000.0] {
            assert!((line.seconds(tokens) / exact(tokens) - 1.0).abs() < 1e-9, "{line:?}");
        }
        assert!(Line::through(&steps(&[16, 64, 256], exact)).is_none());
    }

    #[test]
    fn no_pass_takes_less_than_its_tokens_do() {
        let line = Line::through(&steps(&[16, 20, 24, 28], |t| 0.001 * t.powf(1.2))).unwrap();
        assert_eq!(line.seconds(0.0), 0.0, "{line:?}");
    }
}
