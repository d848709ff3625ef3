//! Line charts as SVG.

use std::fmt::Write;

/// A line of a chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Points, from left to right.
    pub points: Vec<(f64, f64)>,
}

/// How the x axis goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Evenly.
    Linear,
    /// Each doubling takes as much room as the one before.
    Doubling,
}

/// A line chart. Its y axis begins at 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// The title.
    pub title: String,
    /// What the x axis shows, with its unit.
    pub x_label: String,
    /// What the y axis shows, with its unit.
    pub y_label: String,
    /// How the x axis goes.
    pub x_scale: Scale,
    /// The lines.
    pub series: Vec<Series>,
}

const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 480.0;
/// The drawing's edges within the picture.
const LEFT: f64 = 80.0;
const RIGHT: f64 = 600.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 420.0;

/// Colours that people with colour blindness tell apart, by Okabe and Ito.
const COLOURS: [&str; 7] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];

/// Ticks of an axis, about.
const TICKS: f64 = 6.0;

impl Chart {
    /// Returns the picture.
    pub fn to_svg(&self) -> String {
        let points = || self.series.iter().flat_map(|s| s.points.iter().copied());
        let (x_ticks, x_range) = self.x_axis(points().map(|p| p.0).collect());
        let y_max = points().map(|p| p.1).filter(|y| y.is_finite()).fold(0.0, f64::max);
        let y_ticks = ticks(0.0, if y_max > 0.0 { y_max } else { 1.0 });
        let y_range = (0.0, *y_ticks.last().expect("an axis has ticks"));
        let x_place = |x: f64| LEFT + share(self.position(x), x_range) * (RIGHT - LEFT);
        let y_place = |y: f64| BOTTOM - share(y, y_range) * (BOTTOM - TOP);

        let mut svg = Svg(String::new());
        svg.line_of(format_args!(
            r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">"##
        ));
        svg.line_of(format_args!(r##"<rect width="100%" height="100%" fill="#ffffff"/>"##));
        let middle = (LEFT + RIGHT) / 2.0;
        svg.text(middle, 28.0, r#"text-anchor="middle" font-size="17""#, &self.title);
        svg.text(middle, HEIGHT - 14.0, r#"text-anchor="middle""#, &self.x_label);
        let turned = format!(
            r#"text-anchor="middle" transform="rotate(-90 18 {y})""#,
            y = (TOP + BOTTOM) / 2.0
        );
        svg.text(18.0, (TOP + BOTTOM) / 2.0, &turned, &self.y_label);
        for &tick in &y_ticks {
            let y = y_place(tick);
            svg.line(LEFT, y, RIGHT, y, "#dddddd");
            svg.text(LEFT - 8.0, y + 4.0, r#"text-anchor="end""#, &number(tick));
        }
        for &tick in &x_ticks {
            let x = x_place(tick);
            svg.line(x, BOTTOM, x, BOTTOM + 5.0, "#000000");
            svg.text(x, BOTTOM + 20.0, r#"text-anchor="middle""#, &number(tick));
        }
        svg.line(LEFT, BOTTOM, RIGHT, BOTTOM, "#000000");
        svg.line(LEFT, TOP, LEFT, BOTTOM, "#000000");

        for (index, series) in self.series.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            let places: Vec<(f64, f64)> = series
                .points
                .iter()
                .filter(|(x, y)| x.is_finite() && y.is_finite())
                .map(|&(x, y)| (x_place(x), y_place(y)))
                .collect();
            let path: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            svg.line_of(format_args!(
                r##"<polyline fill="none" stroke="{colour}" stroke-width="2" points="{}"/>"##,
                path.join(" ")
            ));
            for (x, y) in places {
                svg.line_of(format_args!(
                    r##"<circle cx="{x:.1}" cy="{y:.1}" r="3" fill="{colour}"/>"##
                ));
            }
            let y = TOP + 10.0 + 22.0 * index as f64;
            svg.line(RIGHT + 20.0, y, RIGHT + 45.0, y, colour);
            svg.text(RIGHT + 52.0, y + 4.0, "", &series.name);
        }
        svg.0.push_str("</svg>\n");
        svg.0
    }

    /// Returns the ticks of the x axis, and its range in positions.
    fn x_axis(&self, mut values: Vec<f64>) -> (Vec<f64>, (f64, f64)) {
        values.retain(|x| x.is_finite());
        values.sort_by(f64::total_cmp);
        values.dedup();
        let (Some(&first), Some(&last)) = (values.first(), values.last()) else {
            return (Vec::new(), (0.0, 1.0));
        };
        // Where only a few places were measured they are the ticks.
        let ticks = match self.x_scale {
            Scale::Linear if values.len() > 10 => ticks(first, last),
            _ => values,
        };
        (ticks, (self.position(first), self.position(last)))
    }

    fn position(&self, x: f64) -> f64 {
        match self.x_scale {
            Scale::Linear => x,
            Scale::Doubling => x.log2(),
        }
    }
}

/// Where a value lies in a range, from 0 to 1; in the middle of a range without length.
fn share(value: f64, (from, to): (f64, f64)) -> f64 {
    if to > from { (value - from) / (to - from) } else { 0.5 }
}

/// Round numbers that cover a range.
fn ticks(from: f64, to: f64) -> Vec<f64> {
    let rough = (to - from).max(f64::MIN_POSITIVE) / TICKS;
    let decade = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|n| n * decade).into_iter().find(|s| *s >= rough);
    let step = step.unwrap_or(10.0 * decade);
    let first = (from / step).floor() as i64;
    let last = (to / step).ceil() as i64;
    (first..=last).map(|n| n as f64 * step).collect()
}

fn number(value: f64) -> String {
    // A step's multiple has digits behind those that it means.
    let text = format!("{value:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

struct Svg(String);

impl Svg {
    fn line_of(&mut self, arguments: std::fmt::Arguments<'_>) {
        writeln!(self.0, "{arguments}").expect("a string takes everything");
    }

    fn line(&mut self, x1: f64, y1: f64, x2: f64, y2: f64, colour: &str) {
        self.line_of(format_args!(
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" stroke="{colour}"/>"#
        ));
    }

    fn text(&mut self, x: f64, y: f64, attributes: &str, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        self.line_of(format_args!(r#"<text x="{x:.1}" y="{y:.1}" {attributes}>{text}</text>"#));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(x_scale: Scale, series: Vec<Series>) -> Chart {
        Chart {
            title: "Speed & <more>".into(),
            x_label: "tokens".into(),
            y_label: "tokens a second".into(),
            x_scale,
            series,
        }
    }

    fn series(name: &str, points: &[(f64, f64)]) -> Series {
        Series { name: name.into(), points: points.to_vec() }
    }

    /// Holds that tags nest and close, attributes are quoted, and no bare `&` stands in text.
    #[track_caller]
    fn assert_well_formed(xml: &str) {
        let mut open: Vec<&str> = Vec::new();
        let mut rest = xml.trim();
        while let Some(begin) = rest.find('<') {
            for entity in rest[..begin].split('&').skip(1) {
                assert!(["amp;", "lt;", "gt;"].iter().any(|e| entity.starts_with(e)), "{entity}");
            }
            assert!(!rest[..begin].contains('>'), "{rest}");
            let end = begin + rest[begin..].find('>').expect("a tag closes");
            let tag = &rest[begin + 1..end];
            assert!(!tag.contains('<') && tag.matches('"').count().is_multiple_of(2), "{tag}");
            let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
            match (tag.starts_with('/'), tag.ends_with('/')) {
                (true, _) => assert_eq!(open.pop(), Some(name)),
                (false, false) => open.push(name),
                (false, true) => {}
            }
            rest = &rest[end + 1..];
            assert!(!open.is_empty() || rest.is_empty(), "one root: {rest}");
        }
        assert!(open.is_empty() && rest.is_empty(), "{open:?} {rest}");
    }

    #[test]
    fn a_chart_is_well_formed_and_has_its_series() {
        let lines =
            vec![series("packed", &[(16.0, 5.0), (2048.0, 1e4)]), series("a<b", &[(16.0, 3.0)])];
        let svg = chart(Scale::Doubling, lines).to_svg();
        assert_well_formed(&svg);
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert_eq!(svg.matches("<circle").count(), 3);
        for text in ["Speed &amp; &lt;more&gt;", ">packed<", ">a&lt;b<", ">2048<", ">10000<"] {
            assert!(svg.contains(text), "{text}\n{svg}");
        }
    }

    #[test]
    fn nothing_to_draw_is_no_reason_to_fail() {
        for points in [&[][..], &[(1.0, 0.0)], &[(1.0, f64::NAN), (f64::INFINITY, 1.0)]] {
            let svg = chart(Scale::Linear, vec![series("none", points)]).to_svg();
            assert_well_formed(&svg);
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
        assert_well_formed(&chart(Scale::Linear, Vec::new()).to_svg());
    }

    #[test]
    fn ticks_are_round_and_cover_the_range() {
        assert_eq!(ticks(0.0, 97.0), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(number(0.1 + 0.2), "0.3");
        assert_eq!(number(10_000.0), "10000");
    }
}
