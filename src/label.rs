//! Closed sets of values that metrics have as labels.

/// Gives an enum `ALL` and `as_label` from one list. A variant that is not in the list doesn't
/// compile, so no series can be forgotten.
macro_rules! labels {
    ($kind:ident { $($variant:ident => $label:literal,)+ }) => {
        impl $kind {
            /// All of them, in order.
            pub const ALL: [$kind; [$($label),+].len()] = [$($kind::$variant),+];

            /// Returns it as a metric label.
            pub fn as_label(self) -> &'static str {
                match self {
                    $($kind::$variant => $label,)+
                }
            }
        }
    };
}

pub(crate) use labels;
