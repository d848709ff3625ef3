//! The contracts with the outside: what a caption message looks like, and a vector record.

pub mod caption;
pub mod pointer;
pub mod vector;
